"""Recipes: everything that decides a trained network, frozen, and the families the book uses.

A recipe's hash names its checkpoint, so that a checkpoint can never be taken for the network of
another recipe: change one number, and the name changes with it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Literal

from sokmerge.errors import ArgumentError, UnknownNameError
from sokmerge.testbed.data import Scale
from sokmerge.testbed.models import MLP, Architecture, PlainCNN, ResidualCNN
from sokmerge.testbed.tasks import Task

__all__ = ["FAMILIES", "SEEDS", "Recipe", "families", "family", "master_seed", "named"]

#: Raised whenever :mod:`sokmerge.testbed.training` changes what a recipe means.
PROCEDURE = 1

SEEDS = range(5)


@dataclass(frozen=True)
class Recipe:
    """A training run: architecture, data, optimisation and seeds.

    Args:
        family: the name under which networks that differ in their seed alone stand together. It
            is the only field that does not enter the hash.
        arch: the network.
        seed: seed of the initial weights.
        order_seed: seed of the order in which training images come.
        scale: which Fashion-MNIST, see :func:`sokmerge.testbed.data.fashion`.
        limit: train on that many images only.
        tasks: what is done to inputs and targets, in order, before training.
        optimizer: ``"adam"`` or ``"sgd"`` (then with Nesterov momentum 0.9).
        lr: the first learning rate.
        schedule: ``"cosine"``, which falls to zero at the last step, or ``"constant"``.
        weight_decay: added to the gradient as that multiple of the weights.
        batch: images a step; the last batch of an epoch may be smaller.
        epochs: passes over the training images.

    >>> recipe = Recipe("example", MLP(width=8), seed=3, order_seed=3)
    >>> recipe.name, recipe.file_name == f"example-s3-{recipe.hash}.safetensors"
    ('example-s3', True)
    """

    family: str
    arch: Architecture
    seed: int
    order_seed: int
    scale: Scale = "small"
    limit: int | None = None
    tasks: tuple[Task, ...] = ()
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = 0.0
    batch: int = 128
    epochs: int = 20

    def __post_init__(self) -> None:
        for name, allowed in {
            "optimizer": ("adam", "sgd"),
            "schedule": ("cosine", "constant"),
        }.items():
            if getattr(self, name) not in allowed:
                raise ArgumentError(
                    f"Recipe.{name}", found=repr(getattr(self, name)), expected=f"one of {allowed}"
                )
        for name, positive in {
            "lr": self.lr > 0,
            "batch": self.batch >= 1,
            "epochs": self.epochs >= 1,
        }.items():
            if not positive:
                raise ArgumentError(
                    f"Recipe.{name}", found=repr(getattr(self, name)), expected="a positive number"
                )

    @property
    def name(self) -> str:
        """Family and seed: what the command line calls the recipe."""
        return f"{self.family}-s{self.seed}"

    @cached_property
    def canonical(self) -> str:
        """The recipe as JSON in one fixed form: sorted keys, no spaces, family left out."""
        described = _plain(self) | {"procedure": PROCEDURE}
        del described["kind"], described["family"]
        return json.dumps(described, sort_keys=True, separators=(",", ":"))

    @cached_property
    def hash(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of :attr:`canonical`."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()[:12]

    @property
    def file_name(self) -> str:
        """The name of the recipe's checkpoint."""
        return f"{self.name}-{self.hash}.safetensors"


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        inner = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        return {"kind": type(value).__name__} | inner
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value


def _of(arch: Architecture, lr: float = 1e-3) -> Callable[[str, int], Recipe]:
    def recipe(family: str, seed: int) -> Recipe:
        return Recipe(family, arch, seed=seed, order_seed=seed, lr=lr)

    return recipe


#: Name of each family, and how the recipe of one seed is made.
#:
#: All share one standard recipe: Adam (Kingma and Ba 2015, arXiv:1412.6980) whose rate falls to
#: zero by a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983), batches of 128, no
#: regularisation, 20 epochs. Two numbers were chosen, on networks of seed 7000, which are not in
#: the zoo, and by the accuracy of test and the loss of training alone; no merge was looked at.
#: Epochs: of 10, 20 and 40 the first from which doubling gains less than half a point of
#: accuracy, on average over MLPs of widths 16, 32, 128 and 512 (10 to 20 gains 0.8 points, 20
#: to 40 gains 0.2). Rate: 1e-3, at which the plain CNN is still far from converged; it has the
#: best of 1e-3, 3e-3 and 1e-2, which is the last.
FAMILIES: dict[str, Callable[[str, int], Recipe]] = {
    **{f"mlp-width-{width}": _of(MLP(width)) for width in (16, 32, 64, 128, 256, 512)},
    "cnn": _of(PlainCNN(), lr=1e-2),
    "residual-batch": _of(ResidualCNN(norm="batch")),
    "residual-layer": _of(ResidualCNN(norm="layer")),
}


def families() -> tuple[str, ...]:
    """Return the names of all families."""
    return tuple(FAMILIES)


def family(name: str, *, master: int | None = None) -> tuple[Recipe, ...]:
    """Return the recipes of a family, one for each seed.

    Args:
        name: one of :func:`families`.
        master: the master seed; seed ``s`` of the family becomes ``1000 * master + s``. With 0
            these are the networks the package ships, with any other number a second zoo, on
            which every claim must stand as well. By default :func:`master_seed`.

    Raises:
        UnknownNameError: there is no such family; the message names the nearest.

    >>> [recipe.seed for recipe in family("cnn", master=2)]
    [2000, 2001, 2002, 2003, 2004]
    """
    if name not in FAMILIES:
        raise _unknown("family", name, families())
    first = 1000 * (master_seed() if master is None else master)
    return tuple(FAMILIES[name](name, first + seed) for seed in SEEDS)


def named(name: str, *, master: int | None = None) -> tuple[Recipe, ...]:
    """Return the recipes that a name stands for: those of a family, or a single one.

    Args:
        name: a family, such as ``"cnn"``, or a family and a seed, such as ``"cnn-s3"``.
        master: the master seed of a family, see :func:`family`. A name with a seed says it all,
            as ``"cnn-s2003"``.

    Raises:
        UnknownNameError: there is neither such a family nor such a recipe.

    >>> [recipe.name for recipe in named("mlp-width-64-s3")]
    ['mlp-width-64-s3']
    """
    if name in FAMILIES:
        return family(name, master=master)
    stem, _, digits = name.rpartition("-s")
    if stem in FAMILIES and digits.isdecimal() and int(digits) % 1000 in SEEDS:
        return (FAMILIES[stem](stem, int(digits)),)
    recipes = (recipe.name for each in FAMILIES for recipe in family(each, master=master))
    raise _unknown("recipe or family", name, (*families(), *recipes))


def master_seed() -> int:
    """Return the master seed, the environment variable ``SOKMERGE_MASTER_SEED``; 0 by default.

    Raises:
        ArgumentError: the variable is no whole number of at least 0.
    """
    chosen = os.environ.get("SOKMERGE_MASTER_SEED", "0")
    if not chosen.isdecimal():
        raise ArgumentError(
            "SOKMERGE_MASTER_SEED", found=repr(chosen), expected="a whole number, 0 or more"
        )
    return int(chosen)


def _unknown(kind: str, name: str, known: tuple[str, ...]) -> UnknownNameError:
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    return UnknownNameError(
        kind,
        found=repr(name),
        expected=f"one of {', '.join(near)}" if near else "a name that `sokmerge zoo list` prints",
        do="Did you mean one of these?" if near else "",
    )
