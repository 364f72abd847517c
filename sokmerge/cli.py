"""The command ``sokmerge``: it assembles the groups of :mod:`sokmerge.commands`."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from sokmerge.commands import book, results, symmetry, zoo
from sokmerge.errors import SokmergeError

__all__ = ["app"]


class _Reporting(TyperGroup):
    """A group that prints an error raised on purpose as one line, and exits with 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SokmergeError as error:
            typer.echo(f"error: {error}", err=True)
            sys.exit(1)


app = typer.Typer(
    cls=_Reporting,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The command line of a book on model merging that computes.",
)
app.add_typer(zoo.app, name="zoo")
app.add_typer(results.app, name="results")
app.add_typer(symmetry.app, name="symmetry")
book.register(app)
