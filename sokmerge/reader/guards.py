"""What must hold in a chapter so that comparing it with a new run proves something.

Comparing can pass emptily: a cell that was never run is not compared, a picture never is. So each
guard here looks at what a chapter holds and returns what is wrong, in words; nothing if all is
well.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from nbformat import NotebookNode

from sokmerge.reader import listing, pictures, records, repeats
from sokmerge.reader.chapters import Chapter, chapters, code_cells, displays
from sokmerge.reader.citations import keys_of
from sokmerge.reader.digits import MOST_DIGITS
from sokmerge.reader.freshness import KEY, stale
from sokmerge.reader.methods import Method, label_of, sections
from sokmerge.reader.repository import PUBLIC, toc

__all__ = ["GUARDS", "check", "check_book", "check_methods"]

MOST_BYTES = 300_000
CELLS = range(8, 15)
MOST_LINES = 12
MOST_SECONDS = 60

_NEVER_COMPARED = {"image/png", "image/jpeg", "application/vnd.jupyter.widget-view+json"}
_IGNORED = {"nbval-ignore-output", "nbval-skip"}
_IGNORED_COMMENTS = ("# NBVAL_IGNORE_OUTPUT", "# NBVAL_SKIP")
_FRACTION = re.compile(r"(?<![\w.])(\d+\.\d+|\d+(?=[eE][-+]?\d))(?:[eE][-+]?\d+)?(?!\w|\.\d)")


def counts(chapter: Chapter) -> Iterator[str]:
    """Execution counts ascend from 1: the cells ran once, in order, in one process."""
    for number, cell in enumerate(code_cells(chapter.content), start=1):
        if cell.execution_count != number:
            yield f"code cell {number} has the execution count {cell.execution_count}"


def compared(chapter: Chapter) -> Iterator[str]:
    """There is something that a new run is compared with."""
    if not any(
        _is_compared(cell) and any(_comparable(output) for output in cell.outputs)
        for cell in code_cells(chapter.content)
    ):
        yield "no code cell has an output that a new run is compared with"


def clean(chapter: Chapter) -> Iterator[str]:
    """No error and no warning stands in the outputs."""
    for number, cell in enumerate(code_cells(chapter.content), start=1):
        for output in cell.outputs:
            if output.output_type == "error" and "raises-exception" not in _tags(cell):
                yield f"code cell {number} ends in {output.ename}"
            if output.output_type == "stream" and output.name == "stderr":
                yield f"code cell {number} writes to stderr: {output.text.strip()[:80]!r}"


def size(chapter: Chapter) -> Iterator[str]:
    """The file is small enough to be read and versioned."""
    found = chapter.path.stat().st_size
    if found >= MOST_BYTES:
        yield f"the file has {found} bytes, {MOST_BYTES} or more"


def shape(chapter: Chapter) -> Iterator[str]:
    """The code is short enough to be read: solutions of exercises apart."""
    told = list(_told_cells(chapter.content))
    if len(told) not in CELLS:
        yield f"{len(told)} code cells besides solutions, not {CELLS[0]} to {CELLS[-1]}"
    for number, cell in told:
        lines = len(cell.source.splitlines())
        if lines > MOST_LINES:
            yield f"code cell {number} has {lines} lines, more than {MOST_LINES}"


def digits(chapter: Chapter) -> Iterator[str]:
    """No number is printed to more digits than another processor would give."""
    for number, cell in enumerate(code_cells(chapter.content), start=1):
        if not _is_compared(cell):
            continue
        for text in _texts(cell):
            for match in _FRACTION.finditer(text):
                if len(match[1].replace(".", "").lstrip("0")) > MOST_DIGITS:
                    yield f"code cell {number} prints {match[0]}, over {MOST_DIGITS} digits"


def figures(chapter: Chapter) -> Iterator[str]:
    """Each figure stands alone in its cell, numbered and described, as its files say."""
    cells = code_cells(chapter.content)
    for figure in chapter.figures:
        name, cell = figure.record["id"], cells[figure.cell - 1]
        if len(displays(cell)) != 1:
            yield f"code cell {figure.cell} shows more than the figure {name}"
        told = cell.metadata.get("mystnb", {})
        if (
            told.get("figure", {}).get("name") != f"fig-{name}"
            or not told["figure"].get("caption", "").startswith(figure.record["caption"])
            or told.get("image", {}).get("alt") != figure.record["alt"]
        ):
            yield f"figure {name} has another caption or alternative text on the page"
        folder = chapter.base / PUBLIC / name
        for suffix in ("svg", "pdf", "csv", "json"):
            if not (folder / f"{name}.{suffix}").is_file():
                yield f"figure {name} has no {suffix}"
        png = base64.b64decode(figure.output.data.get("image/png", ""))
        if not png or pictures.provenance_of_png(png).get("id") != name:
            yield f"figure {name} has no picture that names it"


def pointed(chapter: Chapter) -> Iterator[str]:
    """A claim that names a figure names one of its own chapter."""
    known = {figure.record["id"] for figure in chapter.figures}
    for claim in chapter.claims:
        named = claim.record.get("figure")
        if named is not None and named not in known:
            yield f"claim {claim.record['id']} names the figure {named!r}, which is not here"


def glued(chapter: Chapter) -> Iterator[str]:
    """Each number that the text quotes was computed, and each name stands once."""
    names = Counter(
        output.metadata["scrapbook"]["name"]
        for cell in code_cells(chapter.content)
        for output in cell.outputs
        if "scrapbook" in output.get("metadata", {})
    )
    yield from (f"{name!r} is glued {n} times" for name, n in names.items() if n > 1)
    for cell in chapter.content.cells:
        if cell.cell_type == "markdown":
            for name in re.findall(r"\{glue:(?:text|md|)\}`([^`:]+)(?::[^`]*)?`", cell.source):
                if name not in names:
                    yield f"the text quotes {name!r}, which no cell glues"


def quick(chapter: Chapter) -> Iterator[str]:
    """It runs in under a minute on one core."""
    seconds = chapter.content.metadata.get(KEY, {}).get("seconds", 0)
    if seconds >= MOST_SECONDS:
        yield f"it took {seconds:g} CPU seconds, {MOST_SECONDS} or more"


def fresh(chapter: Chapter) -> Iterator[str]:
    """What is shown is what the code shows now."""
    yield from (f"stale: {reason}" for reason in stale(chapter))


GUARDS: tuple[Callable[[Chapter], Iterable[str]], ...] = (
    counts,
    compared,
    clean,
    size,
    shape,
    digits,
    figures,
    pointed,
    glued,
    quick,
    fresh,
)
"""All guards of a chapter."""


def check(chapter: Chapter) -> list[str]:
    """Return all that is wrong with a chapter, in words."""
    return [told for guard in GUARDS for told in guard(chapter)]


def check_book(base: Path) -> list[str]:
    """Return what is wrong between the chapters and pages.

    Ids used twice, sources unknown, links to claims that there are not, files left.
    """
    found = chapters(base)
    told = []
    for kind, shown in (("figure", "figures"), ("claim", "claims")):
        uses = Counter(item.record["id"] for chapter in found for item in getattr(chapter, shown))
        told += [f"{kind} {name} occurs {n} times" for name, n in sorted(uses.items()) if n > 1]
    claims = [claim.record for chapter in found for claim in chapter.claims]
    if claims:
        known = keys_of(base)
        told += [
            f"claim {claim['id']} cites {claim['source']}, which is not in book/references.bib"
            for claim in claims
            if claim["source"] not in known
        ]
    held = {claim["id"]: claim for claim in claims}
    told += [
        f"book/{page.name} links the claim {name!r}, which no chapter holds"
        for page in sorted((base / "book").glob("*.md"))
        for name in listing.linked(page.read_text(encoding="utf-8"))
        if name not in held
    ]
    elsewhere = repeats.kept(base)
    told += [
        f"{repeats.FILE} holds a verdict on {name!r}, which no chapter asks like that now: "
        "sokmerge chapters repeat, with SOKMERGE_MASTER_SEED, makes it again"
        for name in sorted(elsewhere["claims"])
        if name not in held or repeats.repeated(held[name], elsewhere) is None
    ]
    ids = {figure.record["id"] for chapter in found for figure in chapter.figures}
    folder = base / PUBLIC
    left = {path.name for path in folder.glob("*/")} - ids
    told += [f"{PUBLIC / name} belongs to no chapter" for name in sorted(left)]
    listed = toc(base)
    return told + [
        f"notebooks/{chapter.name} is not in _toc.yml"
        for chapter in found
        if chapter.name not in listed
    ]


def check_methods(base: Path, methods: Iterable[Method], compared: Collection[str]) -> list[str]:
    """Return which method lacks a section of its own, a citation there, or a row of comparison.

    A section is a labelled one, ``(method-the-name)=``, in a chapter on merging; it cites the
    paper that the method is declared to be from. A section on no method is told as well.

    Args:
        base: root of the book.
        methods: all methods.
        compared: names of the methods that the bake-off has measured.
    """
    methods = list(methods)
    found, keys, told = sections(chapters(base)), keys_of(base), []
    for method in methods:
        name, label = method.name, label_of(method.name)
        own = found.get(label, [])
        places = " and ".join(section.chapter for section in own)
        if not own:
            told.append(f"method {name} has no section: no chapter holds ({label})=")
        elif len(own) > 1:
            told.append(f"method {name} has {len(own)} sections, in {places}")
        elif not places.startswith("merging/"):
            told.append(f"method {name} has its section in {places}, which is not on merging")
        if method.paper not in keys:
            told.append(f"method {name} is from {method.paper}, not in book/references.bib")
        if own and not any(method.paper in section.cites for section in own):
            told.append(f"method {name} does not have {method.paper} cited in its section")
        if name not in compared:
            told.append(f"method {name} has no row in the bake-off")
    known = {label_of(method.name) for method in methods}
    return told + [
        f"notebooks/{section.chapter} explains ({label})=, which no method is called"
        for label, own in found.items()
        if label not in known
        for section in own
    ]


def _tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _is_compared(cell: NotebookNode) -> bool:
    return not _IGNORED.intersection(_tags(cell)) and not any(
        line.strip() in _IGNORED_COMMENTS for line in cell.source.splitlines()
    )


def _comparable(output: NotebookNode) -> bool:
    return output.output_type == "stream" or bool(set(output.get("data", {})) - _NEVER_COMPARED)


def _texts(cell: NotebookNode) -> Iterator[str]:
    for output in cell.outputs:
        if output.output_type == "stream":
            yield output.text
        for mime, content in output.get("data", {}).items():
            if mime.endswith("text/plain") and records.FIGURE not in output.data:
                yield content


def _told_cells(content: NotebookNode) -> Iterator[tuple[int, NotebookNode]]:
    """Yield number and cell of the code that is not the solution of an exercise."""
    number, solving = 0, False
    for cell in content.cells:
        if cell.cell_type == "markdown":
            marks = re.findall(r"\{solution-(start|end)\}", cell.source)
            solving = marks[-1] == "start" if marks else solving
        elif cell.cell_type == "code":
            number += 1
            if not solving and "solution" not in _tags(cell):
                yield number, cell
