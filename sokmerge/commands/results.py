"""``sokmerge results``: list, make and check the tables that studies leave behind."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from sokmerge import studies
from sokmerge.errors import FileError
from sokmerge.reader.tables import Table, difference
from sokmerge.studies.study import describe, described, folder

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="The results of the longer studies.")

Names = Annotated[list[str] | None, typer.Argument(help="Studies; all by default.")]
Jobs = Annotated[int, typer.Option(min=1, help="How many seeds at a time, one thread each.")]


@app.command("list")
def list_() -> None:
    """List the studies, the rows of their results and what they took."""
    for name in studies.names():
        try:
            told = describe(name)
        except FileError:
            typer.echo(f"{name}  not made yet: sokmerge results make {name}")
            continue
        seeds = len(told["seeds"])
        typer.echo(f"{name}  {told['rows']} rows, {seeds} seeds, {told['seconds']:g} CPU s")


@app.command()
def make(
    names: Names = None,
    jobs: Jobs = 1,
    into: Annotated[
        Path | None, typer.Option(help="Folder to write to; by default where they are read.")
    ] = None,
) -> None:
    """Run studies for every seed and write their results."""
    for name in names or studies.names():
        path = studies.make(name, jobs=jobs, into=into)
        typer.echo(f"{path}  {described(path.parent, name)['seconds']:g} CPU s")


@app.command()
def check(
    names: Names = None,
    seed: Annotated[int, typer.Option(help="Which seed to run again.")] = 0,
    rtol: Annotated[float, typer.Option(help="How far two numbers may differ, relatively.")] = 1e-2,
    atol: Annotated[float, typer.Option(help="And absolutely.")] = 1e-2,
) -> None:
    """Run one seed of studies again and compare with their results; exit 1 if they differ.

    Where a study trains, another processor gives other networks, and other numbers with them.
    """
    differ = False
    for name in names or studies.names():
        kept = _rows(folder() / f"{name}.csv", name, seed)
        with tempfile.TemporaryDirectory() as there:
            made = studies.make(name, seeds=[seed], into=Path(there))
            again = _rows(made, name, seed)
        found = difference(kept, again, rtol=rtol, atol=atol)
        differ = differ or found is not None
        typer.echo(f"{name}, seed {seed}: {found or f'{len(again.rows)} rows agree'}")
    if differ:
        raise typer.Exit(1)


def _rows(path: Path, name: str, seed: int) -> Table:
    """Return the rows of one seed, without the columns that vary."""
    table = Table.read(path.read_text(encoding="utf-8"))
    varying = studies.named(name).varying
    kept = [i for i, column in enumerate(table.columns) if column not in varying]
    at = table.columns.index("seed")
    rows = tuple(tuple(row[i] for i in kept) for row in table.rows if row[at] == str(seed))
    return Table(tuple(table.columns[i] for i in kept), rows)
