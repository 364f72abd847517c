"""``sokmerge zoo``: list, verify and retrain the networks of the book."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Annotated

import typer
from tqdm import tqdm

from sokmerge.errors import ArgumentError, FileError
from sokmerge.testbed import zoo
from sokmerge.testbed.checkpoint import Entry
from sokmerge.testbed.recipes import Recipe, families, family, named

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="The trained networks of the book.")

Names = Annotated[
    list[str] | None,
    typer.Argument(help="Families or recipes, such as cnn or mlp-width-64-s3; all by default."),
]
MasterSeed = Annotated[
    int | None,
    typer.Option(
        min=0, help="Another zoo, of other seeds; 0 is the shipped one.", show_default=False
    ),
]


@app.command("list")
def list_(names: Names = None, master_seed: MasterSeed = None) -> None:
    """List families, or the networks of the families that are named."""
    header = ("name", "networks", "parameters", "test accuracy", "test loss", "kB", "seconds")
    groups = (
        {name: family(name, master=master_seed) for name in families()}
        if not names
        else {recipe.name: (recipe,) for recipe in _recipes(names, master_seed)}
    )
    _table([header, *(_row(name, recipes) for name, recipes in groups.items())])


@app.command()
def verify(names: Names = None, master_seed: MasterSeed = None) -> None:
    """Check each checkpoint against its manifest and its architecture; exit 1 if one fails."""
    problems: list[str] = []
    recipes = _recipes(names, master_seed)
    for recipe in tqdm(recipes, desc="verify", unit="network", leave=False):
        try:
            zoo.verify(recipe)
        except FileError as error:
            problems.append(str(error))
    for folder in sorted({zoo.folder_of(recipe) for recipe in recipes}):
        problems += [f"{path}: not listed in the manifest beside it" for path in zoo.strays(folder)]
    for problem in problems:
        typer.echo(problem, err=True)
    typer.echo(f"{len(recipes)} networks checked, {len(problems)} problems")
    if problems:
        raise typer.Exit(1)


@app.command()
def retrain(
    names: Annotated[list[str] | None, typer.Argument(help="Families or recipes to train.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Train every family.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Train also what is there and sound.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 1,
    into: Annotated[
        Path | None,
        typer.Option(help="Folder to write to; by default where each network is looked for."),
    ] = None,
    master_seed: MasterSeed = None,
    device: Annotated[str, typer.Option(help="Where to train, such as cuda.")] = "cpu",
) -> None:
    """Train the networks whose checkpoint is missing or altered.

    What is finished is kept: stop with Ctrl-C and run the same command to go on.
    """
    if bool(names) == all_:
        raise ArgumentError(
            "names",
            found="names and --all together" if names else "neither names nor --all",
            expected="names of families or recipes, or --all",
            do="`sokmerge zoo list` prints the names.",
        )
    recipes = _recipes(names, master_seed)
    with tqdm(total=len(recipes), desc="train", unit="network") as bar:

        def done(recipe: Recipe, entry: Entry) -> None:
            bar.set_postfix_str(f"{recipe.name} {entry.test.accuracy:.3f}")
            bar.update()

        try:
            zoo.retrain(recipes, into=into, again=again, device=device, jobs=jobs, done=done)
        except KeyboardInterrupt:
            bar.close()
            typer.echo("Stopped. What was finished is kept; the same command goes on.", err=True)
            raise typer.Exit(130) from None


def _recipes(names: Iterable[str] | None, master: int | None) -> list[Recipe]:
    chosen = (recipe for name in names or families() for recipe in named(name, master=master))
    return list(dict.fromkeys(chosen))


def _row(name: str, recipes: tuple[Recipe, ...]) -> tuple[str, ...]:
    entries = [entry for recipe in recipes if (entry := zoo.entry(recipe))]
    there = f"{len(entries)} of {len(recipes)}"
    if not entries:
        return (name, there, "", "", "", "", "")
    return (
        name,
        there,
        f"{entries[0].parameters:,}",
        f"{mean(entry.test.accuracy for entry in entries):.4f}",
        f"{mean(entry.test.loss for entry in entries):.4f}",
        f"{sum(entry.bytes for entry in entries) / 1000:,.0f}",
        f"{mean(entry.seconds for entry in entries):.1f}",
    )


def _table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        typer.echo("  ".join(cells).rstrip())
