"""The ledger and the index hold what the notebooks hold, and Sphinx takes them without a word."""

import base64
import re
import subprocess
import sys

import pytest

from sokmerge.reader import Claim, Estimate, pages, pictures
from sokmerge.reader.chapters import chapter, chapters

CONFIG = """
extensions = ["myst_nb", "sphinxcontrib.bibtex"]
bibtex_bibfiles = ["book/references.bib"]
nb_execution_mode = "off"
numfig = True
myst_enable_extensions = ["dollarmath"]
html_extra_path = ["book/public"]
suppress_warnings = ["mystnb.unknown_mime_type"]
exclude_patterns = ["_build"]
"""

INDEX = """
# Start

See {numref}`fig-loss-line`.

```{toctree}
notebooks/part/demo
book/claims-ledger
book/figure-index
book/references
```
"""


def test_without_a_chapter_the_pages_say_so(small_book):
    chapter("demo").path.unlink()
    ledger, index = pages.write(small_book)
    assert "No chapter holds a claim yet." in ledger.read_text()
    assert "No chapter holds a figure yet." in index.read_text()


def test_pages_are_written_once(executed_book):
    assert len(pages.write(executed_book)) == 3
    assert pages.write(executed_book) == []


def test_the_png_is_that_of_the_notebook(executed_book):
    pages.write(executed_book)
    png = (executed_book / "book/public/figures/loss-line/loss-line.png").read_bytes()
    assert png == base64.b64decode(chapter("demo").figures[0].output.data["image/png"])
    assert pictures.provenance_of_png(png)["id"] == "loss-line"


def test_text_of_a_claim_is_taken_literally(executed_book):
    made = chapter("demo")
    record = made.claims[0].record
    record.update(statement="It's *not* $x$ | `y` <b> [z]_w {v}", reported="a\nb")
    ledger = pages.claims_ledger([made])
    assert r"It's \*not\* \$x\$ \| \`y\` \<b\> \[z\]\_w \{v\}" in ledger


def test_verdicts_are_counted(executed_book):
    made = chapter("demo")
    high = Estimate.of([1.0, 1.1, 0.9, 1.0, 1.0], label="x")
    parts = {"source": "doe2020line", "statement": "s", "reported": "r", "prediction": "p"}
    cell = [cell for cell in made.content.cells if cell.cell_type == "code"][6]
    for number, test in enumerate((high < 0.5, high > 1.0)):
        claim = Claim(id=f"claim-{number}", tests=[test], **parts)
        cell.outputs.append(type(cell.outputs[0])(cell.outputs[0] | {"data": claim.bundle()}))
    counts = "Claims: 3, of which 1 supported, 1 not supported, 1 inconclusive at this scale."
    assert counts in pages.claims_ledger([made])


@pytest.mark.slow
def test_sphinx_builds_all_without_a_warning(executed_book):
    pages.write(executed_book)
    (executed_book / "conf.py").write_text(CONFIG)
    (executed_book / "index.md").write_text(INDEX)
    (executed_book / "book/references.md").write_text("# References\n\n```{bibliography}\n```\n")
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-b", "html", ".", "_build"],
        cwd=executed_book,
        check=True,
        capture_output=True,
        text=True,
    )
    site = executed_book / "_build"
    page = (site / "notebooks/part/demo.html").read_text()
    figure = re.search(r'<figure[^>]*id="fig-loss-line".*?</figure>', page, re.DOTALL)[0]
    assert 'alt="A parabola: 0 at both ends &amp; 0.25 between."' in figure
    assert '<span class="caption-number">Fig. 1 </span>' in figure
    assert r"\(L(\theta_\alpha)\)" in figure and "references.html" in figure
    assert "book/figure-index.html#files-of-loss-line" in figure
    assert "id='claim-line-has-a-barrier'" in page
    assert '<span class="pasted-text">0.25</span>' in page
    assert "Fig. 1</span></a>" in (site / "index.html").read_text()
    for name in ("claims-ledger", "figure-index"):
        html = (site / "book" / f"{name}.html").read_text()
        local = [
            link
            for link in re.findall(r'(?:href|src)="([^"#]*)', html)
            if link and not link.startswith(("http", "data:"))
        ]
        assert len(local) > 5
        assert all((site / "book" / link.split("?")[0]).exists() for link in local)


def test_order_is_that_of_the_table_of_contents(executed_book, add_chapter):
    for name in ("part/alpha", "zeta/last", "beta/unlisted"):
        add_chapter(executed_book, name, ["1"])
    with open(executed_book / "_toc.yml", "a") as toc:
        toc.write("- file: notebooks/zeta/last\n- file: notebooks/part/alpha.ipynb\n")
    names = [made.name for made in chapters()]
    assert names == ["part/demo", "zeta/last", "part/alpha", "beta/unlisted"]
