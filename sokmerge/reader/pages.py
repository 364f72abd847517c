"""Pages that are made from what the notebooks hold: the claims ledger and the figure index.

So are the parts of the taxonomy page that say what each method is, if the methods are given, and
the scorecards of the parts that have one.

They are plain MyST. Files of figures are linked by HTML, for they are no pages of the book: the
site has ``book/public`` at its root.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from sokmerge.files import write_atomically
from sokmerge.reader import listing, repeats, scorecard, taxonomy_map, taxonomy_table
from sokmerge.reader.chapters import Chapter, chapters
from sokmerge.reader.citations import keys_of
from sokmerge.reader.claims import MARKS
from sokmerge.reader.methods import Method, label_of, sections
from sokmerge.reader.myst import literal, table
from sokmerge.reader.repository import PUBLIC, toc

__all__ = ["write", "claims_ledger", "figure_index", "taxonomy"]

_TO_ROOT = ".."  # all pages lie in book/, one folder below the root of the site

_LEDGER = """\
(claims-ledger)=
# Claims ledger

Each claim of the literature that this book tests, with what was measured here. A verdict is
computed from the measurements: *supported* if the whole 95 % interval lies on the predicted side,
*not supported* if it lies on the other, and *inconclusive at this scale* if neither holds or if
there are fewer than five replicates. `sokmerge claims --json` prints the same as data.
"""

_INDEX = """\
(figure-index)=
# Figure index

Each figure of the book with its permanent address, its files and how to cite it. All figures and
their data may be used under [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/). The
provenance names seeds, networks, code, versions and device; it also stands inside each picture.
`sokmerge figures --json` prints the same as data.
"""


def write(base: Path, methods: Sequence[Method] = ()) -> list[Path]:
    """Write these pages, and each figure's PNG as its notebook holds it.

    Args:
        base: root of the book.
        methods: if there are any, the parts of the taxonomy page are written too.

    Returns:
        the files whose content is new.
    """
    found = chapters(base)
    contents: dict[Path, bytes] = {
        base / "book" / "claims-ledger.md": claims_ledger(found).encode(),
        base / "book" / "figure-index.md": figure_index(found).encode(),
    }
    listed = toc(base)
    if methods:
        pages = [chapter for chapter in found if chapter.name in listed]
        for name, text in taxonomy(pages, methods, keys_of(base)).items():
            contents[base / "book" / "_taxonomy" / name] = text.encode()
    elsewhere = repeats.kept(base)
    for part in scorecard.PARTS:
        own = [made for made in found if made.name in part.chapters and made.name in listed]
        if own:
            folder = base / "book" / f"_{part.name}"
            card = scorecard.scorecard(part, own, elsewhere)
            contents[folder / "scorecard.md"] = card.encode()
            contents[folder / "links.md"] = _counted_links(base, part.name, found).encode()
    for chapter in found:
        for figure in chapter.figures:
            name = figure.record["id"]
            png = base64.b64decode(figure.output.data["image/png"])
            contents[base / PUBLIC / name / f"{name}.png"] = png
    new = [
        path
        for path, content in contents.items()
        if not path.is_file() or path.read_bytes() != content
    ]
    return [write_atomically(path, contents[path]) for path in new]


def claims_ledger(found: Iterable[Chapter]) -> str:
    """Return the page of all claims as MyST text."""
    claims = listing.claims(found)
    if not claims:
        return f"{_LEDGER}\nNo chapter holds a claim yet.\n"
    parts = [_LEDGER, f"{scorecard.counted(claims)}\n"]
    for name, group in groupby(claims, key=lambda claim: claim["chapter"]):
        items = list(group)
        parts.append(f"## {{doc}}`{literal(items[0]['title'])} </notebooks/{name}>`\n")
        parts.append(_table(items))
    return "\n".join(parts)


def figure_index(found: Iterable[Chapter]) -> str:
    """Return the page of all figures as MyST text."""
    figures = listing.figures(found)
    if not figures:
        return f"{_INDEX}\nNo chapter holds a figure yet.\n"
    parts = [_INDEX]
    for name, group in groupby(figures, key=lambda figure: figure["chapter"]):
        items = list(group)
        parts.append(f"## {{doc}}`{literal(items[0]['title'])} </notebooks/{name}>`\n")
        parts += map(_figure, items)
    return "\n".join(parts)


def taxonomy(found: Iterable[Chapter], methods: Sequence[Method], keys: set[str]) -> dict[str, str]:
    """Return the parts of the taxonomy page: ``map.html``, ``needs.md``, ``equations.md``.

    A method that no chapter explains yet is shown without a link, a paper that is not in the
    bibliography by its key, so that the page can always be built; that nothing is missing is for
    :func:`~sokmerge.reader.guards.check_methods` to say.
    """
    found = list(found)
    known = sections(found)
    links = {
        method.name: f"{_TO_ROOT}/{known[label_of(method.name)][0].address}"
        for method in methods
        if label_of(method.name) in known
    }
    addresses = {chapter.name.rsplit("/", 1)[-1]: f"{_TO_ROOT}/{chapter.page}" for chapter in found}
    return {
        "map.html": taxonomy_map.map_of(methods, links, addresses),
        "needs.md": taxonomy_table.first_table(methods, links.keys(), keys),
        "equations.md": taxonomy_table.second_table(methods, links.keys()),
    }


def _counted_links(base: Path, part: str, found: Iterable[Chapter]) -> str:
    """Return how many claims the page of a part links, by verdict."""
    page = base / "book" / f"{part}.md"
    linked = set(listing.linked(page.read_text(encoding="utf-8"))) if page.is_file() else set()
    claims = [claim for claim in listing.claims(found) if claim["id"] in linked]
    return scorecard.counted(claims, "Claims that it links") + "\n"


def _table(claims: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"{MARKS[claim['verdict']][0]} {claim['verdict']}",
            f"{literal(claim['statement'])}\n\n{{cite:t}}`{claim['source']}`. "
            f'<a href="{_TO_ROOT}/{claim["address"]}">Card</a>',
            "\n\n".join(scorecard.measured(claim)),
            f"Reported: {literal(claim['reported'])}\n\nPredicted: {literal(claim['prediction'])}",
        ]
        for claim in claims
    ]
    heads = ["Verdict", "Claim", "Measured here", "Reported and predicted"]
    return table(heads, rows, "14 30 28 28", "claims-ledger")


def _figure(figure: Mapping[str, Any]) -> str:
    name = figure["id"]
    files = ", ".join(
        f'<a href="{_TO_ROOT}/{path}" download>{told}</a>'
        for told, path in (
            ("SVG", figure["files"]["svg"]),
            ("PDF", figure["files"]["pdf"]),
            ("PNG", figure["files"]["png"]),
            ("data (CSV)", figure["files"]["csv"]),
            ("provenance (JSON)", figure["files"]["json"]),
        )
    )
    permalink = f'<a href="{_TO_ROOT}/{figure["address"]}">#fig-{name}</a>'
    return f"""\
(files-of-{name})=
### {name.replace("-", " ").capitalize()}

```{{image}} public/figures/{name}/{name}.png
:alt: {figure["alt"]}
:width: 100%
```

{{numref}}`fig-{name}`. {figure["caption"]}

Permalink: {permalink}. Files: {files}.

```bibtex
{figure["bibtex"]}
```
"""
