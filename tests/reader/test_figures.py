"""Figures: files that are the same for the same content, and data that are verified."""

import base64
import hashlib
import json
import re
import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from sokmerge import inputs
from sokmerge.errors import ArgumentError, FileError
from sokmerge.reader import figures, pictures, provenance, records, show_figure

X = np.linspace(0, 1, 7)
FILES = ("svg", "pdf", "csv", "json")


def draw(y=X**2) -> Figure:
    fig = Figure(figsize=(2, 1))
    fig.subplots().plot(X, y)
    return fig


def show(y=X**2, **changed) -> None:
    parts = {"id": "a-line", "caption": "A line $y$.", "alt": "It <rises>.", "seed": [0, 1]}
    show_figure(draw(y), **(parts | {"data": {"x": X, "y": y}} | changed))


@pytest.fixture
def shown(monkeypatch):
    bundles = []
    monkeypatch.setattr(records, "show", lambda data, meta=None: bundles.append((data, meta)))
    return bundles


@pytest.fixture
def publishing(small_book, monkeypatch):
    """Folder of the figure's files, in a process that writes them and has read nothing yet."""
    monkeypatch.setenv("SOKMERGE_FIGURES", "write")
    monkeypatch.setattr(inputs, "_recorded", {})
    return small_book / "book" / "public" / "figures" / "a-line"


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_reader_at_work_writes_nothing(small_book, shown):
    before = sorted(small_book.rglob("*"))
    show()
    assert sorted(small_book.rglob("*")) == before
    assert set(shown[0][0]) == {"text/plain", "image/png", records.FIGURE}


def test_outside_of_the_book_it_is_shown_and_no_commit_is_claimed(tmp_path, monkeypatch, shown):
    monkeypatch.delenv("SOKMERGE_FIGURES", raising=False)
    monkeypatch.chdir(tmp_path)
    show()
    png = base64.b64decode(shown[0][0]["image/png"])
    assert pictures.provenance_of_png(png)["commit"] == "unknown"
    assert list(tmp_path.iterdir()) == []


def test_all_files_are_written_and_vouched_for(publishing, shown):
    inputs.record(inputs.PACKAGE / "testbed" / "some.npz", "0" * 64)
    show(recipes=["mlp-s0-0123"], rtol=1e-2)
    files = bytes_of(publishing)
    assert set(files) == {f"a-line.{suffix}" for suffix in FILES}
    told = json.loads(files["a-line.json"])
    for name, digest in told["files"].items():
        assert hashlib.sha256(files[name]).hexdigest() == digest
    assert told["seeds"] == [0, 1] and told["recipes"] == ["mlp-s0-0123"]
    assert told["inputs"] == {"testbed/some.npz": "0" * 64}
    assert told["tolerance"] == {"rtol": 1e-2, "atol": 1e-6}
    assert set(told["versions"]) == {"python", "torch", "numpy", "matplotlib"}
    assert "A small book" in told["citation"] and "CC BY 4.0" in told["licence"]
    assert len(told["code"]) == 64 and told["device"] and told["commit"]
    table = pd.read_csv(publishing / "a-line.csv")
    assert np.allclose(table["y"], X**2, rtol=1e-5)
    assert shown[0][1]["sokmerge"]["csv"] == told["files"]["a-line.csv"]


def test_provenance_is_inside_every_picture(publishing, shown):
    show()
    files = bytes_of(publishing)
    png = base64.b64decode(shown[0][0]["image/png"])
    inside = pictures.provenance_of_png(png)
    assert inside["id"] == "a-line" and inside["code"] == provenance.code()
    svg = files["a-line.svg"].decode()
    described = re.search(r"<dc:description>(.*?)</dc:description>", svg, re.DOTALL)
    assert described and json.loads(described[1]) == inside
    assert "<title>a-line</title>" in svg and "<desc>It &lt;rises&gt;.</desc>" in svg
    assert inside["code"].encode() in files["a-line.pdf"]
    assert re.search(rb"CreationDate|dc:date", b"".join(files.values())) is None


def test_bytes_are_the_same_in_another_process(publishing, shown, small_book, monkeypatch):
    monkeypatch.setattr(provenance, "device", lambda: "cpu")  # as a process without torch says
    show()
    here = bytes_of(publishing)
    for path in publishing.iterdir():
        path.unlink()
    code = (
        "import numpy as np; from matplotlib.figure import Figure\n"
        "from sokmerge.reader import show_figure\n"
        "x = np.linspace(0, 1, 7); fig = Figure(figsize=(2, 1)); fig.subplots().plot(x, x**2)\n"
        "show_figure(fig, id='a-line', caption='A line $y$.', alt='It <rises>.', seed=[0, 1],"
        " data={'x': x, 'y': x**2})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=small_book)
    there = bytes_of(publishing)
    assert here["a-line.csv"] == there["a-line.csv"]
    # The two processes have imported different modules, which is all that may differ.
    hide = re.compile(rb"[0-9a-f]{64}")
    for name in here:
        assert hide.sub(b"", here[name]) == hide.sub(b"", there[name])


def test_equal_content_keeps_the_first_files_under_a_later_commit(publishing, shown, monkeypatch):
    show()
    first = bytes_of(publishing)
    monkeypatch.setattr(provenance, "commit", lambda base: "a later commit")
    show()
    assert bytes_of(publishing) == first
    assert shown[0] == shown[1]
    show(caption="Another caption.")
    assert json.loads(bytes_of(publishing)["a-line.json"])["commit"] == "a later commit"


@pytest.mark.parametrize(("factor", "agrees"), [(1.0, True), (1.0005, True), (1.01, False)])
def test_data_computed_again_must_agree(publishing, shown, monkeypatch, factor, agrees):
    show()
    monkeypatch.setenv("SOKMERGE_FIGURES", "verify")
    before = bytes_of(publishing)
    if agrees:
        show(factor * X**2)
    else:
        with pytest.raises(FileError, match=r"a-line.csv: found row 2, column 'y'"):
            show(factor * X**2)
        show(factor * X**2, rtol=0.1)
    assert bytes_of(publishing) == before


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"x": X}, "columns"),
        ({"x": X[:3], "y": X[:3] ** 2}, "7 rows there, 3 now"),
        ({"x": X, "y": ["a"] * 7}, "row 1, column 'y': 0 there, a now"),
    ],
)
def test_other_tables_do_not_agree(publishing, shown, monkeypatch, data, told):
    show()
    monkeypatch.setenv("SOKMERGE_FIGURES", "verify")
    with pytest.raises(FileError, match=told):
        show(data=data)


def test_data_that_were_never_published_do_not_verify(publishing, shown, monkeypatch):
    monkeypatch.setenv("SOKMERGE_FIGURES", "verify")
    with pytest.raises(FileError, match="found no file"):
        show()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"id": "A line"}, "id: found 'A line'"),
        ({"caption": ""}, "caption: found ''"),
        ({"alt": " "}, "alt: found ' '"),
        ({"data": {}}, "data: found"),
        ({"data": {"x": X, "y": X[:2]}}, "lengths {'x': 7, 'y': 2}"),
        ({"data": {"x": [0.0, float("nan")]}}, r"data\['x'\]\[1\]: found nan"),
        ({"data": {"x": [None]}}, "found None"),
    ],
)
def test_a_figure_that_is_not_described_is_refused(small_book, changed, told):
    with pytest.raises(ArgumentError, match=told):
        show(**changed)


def test_modes_and_figures_are_checked(small_book, monkeypatch):
    monkeypatch.setenv("SOKMERGE_FIGURES", "wrte")
    with pytest.raises(ArgumentError, match="SOKMERGE_FIGURES: found 'wrte'"):
        show()
    with pytest.raises(ArgumentError, match="fig: found str"):
        show_figure("x", id="a", caption="b", alt="c", data={"x": [1]})


def test_an_id_stands_once_in_a_chapter(publishing, shown, monkeypatch, tmp_path):
    monkeypatch.setenv("SOKMERGE_FIGURES_STAGE", str(tmp_path / "stage"))
    show()
    assert not publishing.exists()
    with pytest.raises(ArgumentError, match="'a-line', a second time"):
        show()


def test_what_cannot_be_written_is_told_and_the_rest_stays(publishing, shown, monkeypatch):
    show()
    before = bytes_of(publishing)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FileError, match="No space left on device.*untouched"):
        show(2 * X**2)
    assert bytes_of(publishing) == before


def test_the_figure_is_closed_after_it_was_shown(small_book, shown):
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots()
    ax.plot(X, X)
    show_figure(fig, id="a", caption="b", alt="c", data=pd.DataFrame({"x": X}))
    assert not plt.fignum_exists(fig.number)


def test_style_is_told_apart_without_colour_vision_and_fits_a_notebook(small_book, shown):
    from sokmerge.reader import style

    with matplotlib.rc_context():
        style()
        import matplotlib.pyplot as plt

        fig, ax = plt.subplots()
        grid = np.sin(9 * X[:, None]) + X
        fig.colorbar(ax.contourf(grid, levels=30))
        show_figure(fig, id="a", caption="b", alt="c", data={"x": grid.ravel()})
        assert len(set(matplotlib.rcParams["axes.prop_cycle"].by_key()["color"])) == 7
    assert len(shown[0][0]["image/png"]) < 60_000


@pytest.mark.parametrize(
    ("text", "told"),
    [("", r"columns \[\] there"), ("x\n1\n2,3\n", "row 2: 2 cells there, 1 now")],
)
def test_a_csv_that_was_mangled_is_told(text, told):
    assert re.search(
        told,
        figures.difference(
            figures.Table.read(text), figures.Table.of({"x": [1, 2]}), rtol=0, atol=0
        ),
    )


def test_tables_read_back_what_they_wrote():
    table = figures.Table.of({"name": ["a, b", 'c "d"'], "x": [1e-9, 123456789.0], "n": [1, 2]})
    assert figures.Table.read(table.csv()) == table
    assert table.rows[1] == ('c "d"', "1.23457e+08", "2")
