"""``sokmerge chapters | pages | claims | figures``: the book from the command line."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Any

import typer

from sokmerge.errors import SokmergeError
from sokmerge.reader import freshness, guards, listing
from sokmerge.reader import pages as book_pages
from sokmerge.reader.chapters import Chapter, chapter, chapters
from sokmerge.reader.repository import root

__all__ = ["register"]

group = typer.Typer(no_args_is_help=True, help="The chapters: list, execute, check.")

Names = Annotated[
    list[str] | None,
    typer.Argument(help="Chapters, such as landscape/modes-and-barriers; all by default."),
]
Ids = Annotated[list[str] | None, typer.Argument(help="Only these; all by default.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(group, name="chapters")
    for command in (pages, claims, figures):
        app.command()(command)


@group.command("list")
def list_() -> None:
    """List the chapters, what each holds, and why it is stale if it is."""
    for found in chapters(root()):
        seconds = found.content.metadata.get(freshness.KEY, {}).get("seconds")
        held = f"{len(found.figures)} figures, {len(found.claims)} claims"
        took = "never executed" if seconds is None else f"{seconds:g} CPU s"
        reasons = freshness.stale(found) if seconds is not None else []
        typer.echo(f"{found.name}  {held}, {took}" + (", stale" if reasons else ""))
        for reason in reasons:
            typer.echo(f"  {reason}")


@group.command()
def execute(
    names: Names = None,
    stale: Annotated[bool, typer.Option("--stale", help="Only those that are stale.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="How many at a time, one thread each.")] = 2,
) -> None:
    """Execute chapters and write their outputs, figures and stamps."""
    from sokmerge.reader import execution

    selected = _selected(names)
    if stale:
        reasons = {found.name: freshness.stale(found) for found in selected}
        selected = [found for found in selected if reasons[found.name]]
        for found in selected:
            typer.echo(f"{found.name} is stale: {'; '.join(reasons[found.name][:3])}")

    def done(made: Chapter) -> None:
        typer.echo(f"{made.name}  {made.content.metadata[freshness.KEY]['seconds']:g} CPU s")

    try:
        failed = execution.execute(selected, jobs=jobs, done=done)
    except KeyboardInterrupt:
        typer.echo("Stopped. What was finished is kept; the others are as before.", err=True)
        raise typer.Exit(130) from None
    _tell(failed)
    typer.echo(f"{len(selected) - len(failed)} chapters executed, {len(failed)} failed")
    if failed:
        raise typer.Exit(1)


@group.command()
def repeat(
    names: Names = None,
    jobs: Annotated[int, typer.Option(min=1, help="How many at a time, one thread each.")] = 2,
) -> None:
    """Execute chapters with another zoo and keep only the verdicts of their claims.

    SOKMERGE_MASTER_SEED says which zoo; `sokmerge zoo retrain` and `sokmerge results make` make
    its networks and tables. The chapters and their figures stay as they are.
    """
    from sokmerge.reader import execution, repeats
    from sokmerge.testbed.recipes import master_seed

    master = master_seed()
    repeats.require_another(master)
    made: list[Chapter] = []
    selected = _selected(names)
    failed = execution.execute(selected, jobs=jobs, done=made.append, write=False)
    known = {claim["id"]: claim for claim in listing.claims(selected)}
    for claim in listing.claims(made):
        before = known.get(claim["id"], {}).get("verdict", "not there")
        same = "" if before == claim["verdict"] else f", here {before}"
        typer.echo(f"{claim['id']}: {claim['verdict']}{same}")
    _tell(failed)
    typer.echo(repeats.keep(root(), made, master))
    if failed:
        raise typer.Exit(1)


@group.command()
def check(names: Names = None) -> None:
    """Check what must hold in the chapters; exit 1 and say what does not."""
    selected = _selected(names)
    told = [f"{found.name}: {problem}" for found in selected for problem in guards.check(found)]
    if not names:
        told += [*guards.check_book(root()), *_check_methods(selected)]
    for problem in told:
        typer.echo(problem, err=True)
    typer.echo(f"{len(selected)} chapters checked, {len(told)} problems")
    if told:
        raise typer.Exit(1)


def _check_methods(found: list[Chapter]) -> list[str]:
    """Return which methods are not explained, cited and compared, in a book with such a part."""
    if not any(made.name.startswith("merging/") for made in found):
        return []
    from sokmerge import merge, studies

    compared = set(studies.results("bake-off")["method"])
    return guards.check_methods(root(), merge.methods(), compared)


def pages() -> None:
    """Write the claims ledger, the figure index, the taxonomy and the figures' PNG files."""
    from sokmerge import merge

    for path in book_pages.write(root(), merge.methods()):
        typer.echo(path)


def claims(ids: Ids = None, as_json: AsJson = False) -> None:
    """Print the claims of the book with their computed verdicts."""
    found = listing.select("claim", listing.claims(chapters(root())), ids or ())
    if as_json:
        _print_json(found)
        return
    _print_table(
        ("claim", "chapter", "source", "verdict"),
        [(item["id"], item["chapter"], item["source"], item["verdict"]) for item in found],
    )
    verdicts = Counter(item["verdict"] for item in found)
    counted = ", ".join(f"{number} {verdict}" for verdict, number in sorted(verdicts.items()))
    typer.echo(f"{len(found)} claims" + (f": {counted}" if counted else ""))


def figures(ids: Ids = None, as_json: AsJson = False) -> None:
    """Print the figures of the book with their addresses."""
    found = listing.select("figure", listing.figures(chapters(root())), ids or ())
    if as_json:
        _print_json(found)
        return
    _print_table(
        ("figure", "chapter", "address"),
        [(item["id"], item["chapter"], item["address"]) for item in found],
    )
    typer.echo(f"{len(found)} figures")


def _tell(failed: list[SokmergeError]) -> None:
    """Print why chapters failed, each with what its process told."""
    for error in failed:
        typer.echo(f"{getattr(error, 'trace', '')}\nerror: {error}", err=True)


def _selected(names: list[str] | None) -> list[Chapter]:
    base = root()
    if not names:
        return chapters(base)
    return list({found.name: found for found in (chapter(name, base) for name in names)}.values())


def _print_json(content: Any) -> None:
    typer.echo(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False))


def _print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())
