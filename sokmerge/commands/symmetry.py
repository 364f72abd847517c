"""``sokmerge symmetry``: derive the symmetry of torchvision's models, and prove it."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from sokmerge import symmetry
from sokmerge.errors import ArgumentError, UnknownNameError
from sokmerge.params import stream
from sokmerge.reader.repository import root

__all__ = ["app", "Row", "examine", "models", "page"]

app = typer.Typer(no_args_is_help=True, help="The symmetry of networks, derived from their graphs.")

Names = Annotated[list[str] | None, typer.Argument(help="Models of torchvision; all by default.")]

BOUND = 1e-9
"""How far an output may move, relative to the largest one, in double precision."""


@dataclass(frozen=True)
class Row:
    """What was found for one model.

    Attributes:
        model: its name.
        parameters: how many numbers it has.
        hidden: how many channels its layers make, without the outputs.
        free: how many of them the group moves.
        blocks: how many blocks the group has.
        moved: share of the parameters' tensors that a random element changes.
        change: largest change of an output under that element, relative to the largest output.
        unknown: operators without a rule.
        seconds: CPU seconds of the derivation.
    """

    model: str
    parameters: int
    hidden: int
    free: int
    blocks: int
    moved: float
    change: float
    unknown: tuple[str, ...]
    seconds: float


@app.command()
def check(names: Names = None) -> None:
    """Derive the symmetry of models and check that a random element keeps the function."""
    rows = list(_examined(names))
    wrong = [row.model for row in rows if not row.change <= BOUND]
    typer.echo(f"{len(rows)} models, {len(wrong)} changed" + "".join(f" {w}" for w in wrong))
    if wrong:
        raise typer.Exit(1)


@app.command()
def table() -> None:
    """Check all models and write the page of the book, book/symmetries.md."""
    path = root() / "book" / "symmetries.md"
    rows = list(_examined(None))
    path.write_text(page(rows), encoding="utf-8")
    typer.echo(path)
    if any(not row.change <= BOUND for row in rows):
        raise typer.Exit(1)


@app.command()
def recovery() -> None:
    """Align networks back to themselves and write the page of the book, book/recovery.md."""
    from sokmerge.commands import recovery as recovered

    _torchvision()
    rows = []
    for name in recovered.NETWORKS:
        rows.append(row := recovered.recover(name))
        typer.echo(
            f"{name}: {row.blocks} blocks, back by weights {row.by_weights:.3f} "
            f"({row.seconds:.1f} CPU s), by activations {row.by_activations:.3f}"
        )
    path = root() / "book" / "recovery.md"
    path.write_text(recovered.page(rows), encoding="utf-8")
    typer.echo(path)


@app.command()
def show(name: Annotated[str, typer.Argument(help="A model of torchvision.")]) -> None:
    """Print the group of one model, and what stays in it."""
    _require([name])
    module, inputs = _build(name)
    typer.echo(str(symmetry.of(module, inputs)))


def models() -> list[str]:
    """Return the names of torchvision's classification models, the small ones first."""
    listed = _torchvision().list_models(module=_torchvision())
    large = ("128gf", "vit_h", "32gf", "vit_l", "16gf", "v2_l", "convnext_large", "101_64")
    return sorted(listed, key=lambda name: (any(part in name for part in large), name))


def examine(name: str, seed: int = 0) -> Row:
    """Derive the symmetry of a model and let a random element act on random parameters."""
    module, inputs = _build(name)
    began = time.process_time()
    group = symmetry.of(module, inputs)
    seconds = time.process_time() - began
    module = _filled(module, name)
    x = torch.randn(inputs.shape, generator=stream(f"{name}: input"), dtype=torch.float64)
    state = module.state_dict()
    with torch.inference_mode():
        before = module(x)
        moved = group.act(group.sample(seed), state)
        after = functional_call(module, moved, (x,))
    change = float((after - before).abs().max() / before.abs().max())
    parameters = dict(module.named_parameters())
    different = sum(not torch.equal(moved[key], state[key]) for key in parameters)
    return Row(
        name,
        sum(p.numel() for p in parameters.values()),
        group.hidden,
        group.free,
        len(group.blocks),
        different / len(parameters),
        change,
        group.unknown,
        seconds,
    )


# --- building ---------------------------------------------------------------------------------


def _torchvision() -> Any:
    try:
        from torchvision import models
    except ImportError as error:
        raise ArgumentError(
            "torchvision",
            found="no such package",
            expected="torchvision beside torch",
            do="Install it: pip install 'sokmerge[book]'.",
        ) from error
    return models


class _Empty(TorchFunctionMode):
    """Make what layers allocate for their parameters without memory."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (torch.empty, torch.zeros, torch.ones, torch.full):
            kwargs["device"] = "meta"
        return function(*args, **kwargs)


def _build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a model and an input of about the smallest size that it takes."""
    size, options = 64, {}
    if name.startswith("vit_"):
        size = options["image_size"] = 2 * int(name.rsplit("_", 1)[-1])
    elif name == "maxvit_t":
        size = 224
    elif name == "inception_v3":
        size = 96
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    make = _torchvision().get_model
    if name.startswith("swin_v2"):  # it computes tables where it is made, which must have values
        module = make(name, weights=None, **options)
    else:
        with _Empty():
            module = make(name, weights=None, **options)
    return module.eval(), torch.zeros(1, 3, size, size)


def _filled(module: nn.Module, name: str) -> nn.Module:
    """Return the module in double precision, with random parameters and statistics."""
    tables = {n: b.clone() for n, b in module.named_buffers() if not b.is_meta}
    module = module.double()
    if any(t.is_meta for t in (*module.parameters(), *module.buffers())):
        module = module.to_empty(device="cpu")
    generator = stream(f"{name}: parameters")
    with torch.no_grad():
        for key, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if key in tables and "running" not in key:
                tensor.copy_(tables[key])
            elif not tensor.is_floating_point():
                tensor.zero_()
            elif key.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=generator)
            elif tensor.dim() <= 1:
                tensor.uniform_(-0.5, 0.5, generator=generator).add_(key.endswith("weight"))
            else:
                bound = (3 / tensor[0].numel()) ** 0.5
                tensor.uniform_(-bound, bound, generator=generator)
    return module


def _require(names: list[str]) -> None:
    known = models()
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            raise UnknownNameError(
                "model",
                found=repr(name),
                expected="a classification model of torchvision"
                + (f", such as {', '.join(close)}" if close else ""),
            )


def _examined(names: list[str] | None) -> Iterator[Row]:
    _require(names or [])
    for name in names or models():
        row = examine(name)
        share = f"{row.free} of {row.hidden} channels free"
        typer.echo(
            f"{row.model:<20} change {row.change:.0e}, {share}, {row.blocks} blocks, "
            f"{row.seconds:.1f} CPU s" + "".join(f"; unknown: {u}" for u in row.unknown)
        )
        yield row


# --- the page ---------------------------------------------------------------------------------

_PAGE = """\
---
myst:
  html_meta:
    description: "The permutation symmetry of {count} torchvision models, derived and checked."
---

# Symmetries of {count} networks

<!-- Written by `sokmerge symmetry table`; changes by hand are lost. -->

Which units of a network may trade places is read off its graph: {{py:func}}`sokmerge.symmetry.of`
traces the network, follows every axis through every operator, and says what moves together and
what stays.
Here it does so for all {count} classification models that torchvision {version} lists, and a random
element of each group is put to the test.

- The output stays: {kept} of {count} models change by less than {bound:.0e} of their largest
  output.
- The groups are large: {wide} of {count} models have more than 90 % of their hidden channels in a
  group that moves them.

Matchings that read these groups whole bring a re-indexed and disturbed network
[back to itself](recovery.md).
The same result tells what may be done to units beyond permuting them: multiply them by positive
numbers ({{py:attr}}`~sokmerge.symmetry.Symmetry.rescaling`), by -1
({{py:attr}}`~sokmerge.symmetry.Symmetry.flips`), and whole sets of them by invertible matrices
({{py:attr}}`~sokmerge.symmetry.Symmetry.mixing`).

Each model has random parameters and random BatchNorm statistics, in double precision and in
evaluation mode, and reads one random image of about the smallest size that it takes.
Hidden channels are the rows of the weights of all linear layers and convolutions, without those
that make the network's outputs; free are those that the group can move.
A block is a set of axes that move together; change is the largest difference of an output before
and after, divided by the largest output.

| model | parameters | hidden channels | free | blocks | tensors moved | change |
|---|---:|---:|---:|---:|---:|---:|
{rows}

To make it again:

```
make symmetry
```
"""


def page(rows: list[Row]) -> str:
    """Return the page of the book for these rows."""
    import torchvision

    told = "\n".join(
        f"| {r.model} | {r.parameters / 1e6:.1f} M | {r.hidden:,} | {_percent(r.free / r.hidden)} "
        f"| {r.blocks} | {_percent(r.moved)} | {r.change:.0e} |"
        for r in sorted(rows, key=lambda row: row.model)
    )
    return _PAGE.format(
        count=len(rows),
        version=torchvision.__version__.split("+")[0],
        kept=sum(r.change <= BOUND for r in rows),
        wide=sum(r.free > 0.9 * r.hidden for r in rows),
        bound=BOUND,
        rows=told,
    )


def _percent(share: float) -> str:
    """Rounded down, so that 100 % means all."""
    return f"{int(share * 1000) / 10:g} %"
