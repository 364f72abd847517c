"""A number for each seed out of a long table, and several series in one picture."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from sokmerge.errors import ArgumentError
from sokmerge.reader.series import chosen, series


def test_what_was_not_asked_for_is_averaged_and_seeds_are_in_order():
    rows = [
        {"seed": seed, "part": part, "x": x, "value": 100 * seed + x}
        for seed in (1, 0)
        for part in "ab"
        for x in (1, 3)
    ]
    table = pd.DataFrame(rows)
    assert chosen(table, part="a").tolist() == [2, 102]
    assert chosen(table, part="b", x=3).tolist() == [3, 103]
    with pytest.raises(ArgumentError, match="column"):
        chosen(table, y=1)
    with pytest.raises(ArgumentError, match="no row"):
        chosen(table, part="c")


def test_series_have_looks_of_their_own_and_may_be_points():
    _, (joined, apart) = plt.subplots(1, 2)
    samples = {"one": [[1.0, 2.0], [2.0, 3.0]], "two": [[3.0, 4.0], [4.0, 5.0]]}
    series(joined, [1, 2], samples, xlabel="step")
    series(apart, ["a", "b"], samples, line=False)
    looks = [
        {(c.lines[0].get_marker(), c.lines[0].get_linestyle()) for c in ax.containers}
        for ax in (joined, apart)
    ]
    assert len(looks[0]) == 2 and {style for _, style in looks[1]} == {"None"}
    assert joined.get_xlabel() == "step" and len(apart.get_legend().get_texts()) == 2
    with pytest.raises(ArgumentError, match="series"):
        series(joined, [1], {str(i): [[1.0, 2.0]] for i in range(7)})
    plt.close("all")
