"""The picture of a group: every entry of every drawn axis has its block's colour, or stays grey."""

import matplotlib.colors
import matplotlib.pyplot as plt
import pytest
from matplotlib.patches import Rectangle

from sokmerge.reader.groups import group_map
from sokmerge.symmetry import Axis, Block, PermutationGroup


@pytest.fixture
def drawn():
    heads = Block("heads", 2, (Axis("table", 1),))
    values = Block(
        "values", 4,
        (Axis("qv.weight", 0, places=((4,), (5,), (6,), (7,)), length=8), Axis("out.weight", 1)),
        within="heads",
    )  # fmt: skip
    fig, ax = plt.subplots()
    shapes = {"table": (3, 2), "qv.weight": (8, 3), "out.weight": (2, 4, 5, 5)}
    group_map(ax, PermutationGroup((heads, values)), shapes, names={"heads": "both heads"})
    yield ax
    plt.close(fig)


def _grey(patch):
    r, g, b, _ = matplotlib.colors.to_rgba(patch.get_facecolor())
    return r == g == b


def test_bars_have_letters_and_the_list_says_what_they_are(drawn):
    told = [text.get_text() for text in drawn.texts]
    assert told == [
        "A", "table", "B", "qv", "B", "out",
        "A", "both heads, 2 units", "B", "values, 4 units, equally many in each unit of A",
    ]  # fmt: skip


def test_what_stays_is_grey_and_a_part_of_an_axis_is_a_part_of_its_bar(drawn):
    bars = [p for p in drawn.patches if isinstance(p, Rectangle)]
    coloured = [p for p in bars if not _grey(p)]
    assert len(coloured) == 3 + 2  # along three axes, and in the list
    (half,) = [p for p in coloured if p.get_height() == pytest.approx(0.5)]
    assert half.get_y() == pytest.approx(-1)  # the last four of eight rows
    for text in drawn.texts:  # nothing is cut off
        x, y = text.get_position()
        assert drawn.get_xlim()[0] <= x <= drawn.get_xlim()[1]
        assert drawn.get_ylim()[0] <= y <= drawn.get_ylim()[1]


def test_rows_wrap_where_the_width_ends():
    group = PermutationGroup((Block("a", 4, (Axis("m0.weight", 0),)),))
    fig, ax = plt.subplots()
    group_map(ax, group, {f"m{i}.weight": (4, 4) for i in range(9)}, width=5)
    tops = {round(p.get_y() + p.get_height(), 6) for p in ax.patches if p.get_height() > 0.9}
    assert len(tops) > 1
    assert max(p.get_x() + p.get_width() for p in ax.patches) <= 5
    plt.close(fig)
