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
from sokmerge.testbed.adapters import Adapter, LowRank, Tangent
from sokmerge.testbed.data import Scale
from sokmerge.testbed.models import MLP, Architecture, PlainCNN, ResidualCNN, TinyViT
from sokmerge.testbed.tasks import ClassSplit, Corrupted, Share, Task, Together

__all__ = ["FAMILIES", "SEEDS", "Recipe", "families", "family", "master_seed", "named"]

#: Raised whenever :mod:`sokmerge.testbed.training` changes what a recipe means.
PROCEDURE = 1

SEEDS = range(5)

#: Points along one run, of which one run is enough to see.
ALONG_ONE_RUN = tuple(
    f"{kind}-{point}"
    for kind, last in (("tail", 5), ("snapshot", 4))
    for point in range(1, last + 1)
)


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
        schedule: ``"cosine"``, which falls to zero at the last step, ``"constant"``, or
            ``"cyclic"``, which falls to zero by a cosine in each cycle anew. A run at a constant
            rate passes through the networks of all shorter ones, a cyclic run through those of
            fewer cycles.
        weight_decay: added to the gradient as that multiple of the weights.
        batch: images a step; the last batch of an epoch may be smaller.
        epochs: passes over the training images.
        cycle: epochs in a cycle, for the cyclic schedule alone.
        start: the recipe of the network to start from, in place of random initial weights.
        adapter: what is trained in place of the whole network; needs a start.

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
    schedule: Literal["cosine", "constant", "cyclic"] = "cosine"
    weight_decay: float = 0.0
    batch: int = 128
    epochs: int = 20
    cycle: int | None = None
    start: Recipe | None = None
    adapter: Adapter | None = None

    def __post_init__(self) -> None:
        for name, allowed in {
            "optimizer": ("adam", "sgd"),
            "schedule": ("cosine", "constant", "cyclic"),
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
        whole = self.cycle is not None and self.cycle >= 1 and self.epochs % self.cycle == 0
        if whole != (self.schedule == "cyclic"):
            raise ArgumentError(
                "Recipe.cycle",
                found=f"{self.cycle} of {self.epochs} epochs, with the {self.schedule} schedule",
                expected="whole cycles for the cyclic schedule, and None for another",
            )
        if self.adapter is not None and self.start is None:
            raise ArgumentError("Recipe.start", found="None", expected="a start for the adapter")
        if self.start is not None and self.start.arch != self.arch:
            raise ArgumentError(
                "Recipe.start", found=f"a network {self.start.arch}", expected=f"{self.arch}"
            )

    @property
    def name(self) -> str:
        """Family and seed: what the command line calls the recipe."""
        return f"{self.family}-s{self.seed}"

    @cached_property
    def canonical(self) -> str:
        """The recipe as JSON in one fixed form: sorted keys, no spaces, family left out.

        Of what not every run has, only what this one has: a run without a start says nothing of it.
        """
        described = _described(self) | {"procedure": PROCEDURE}
        return json.dumps(described, sort_keys=True, separators=(",", ":"))

    @cached_property
    def hash(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of :attr:`canonical`."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()[:12]

    @property
    def file_name(self) -> str:
        """The name of the recipe's checkpoint."""
        return f"{self.name}-{self.hash}.safetensors"


def _described(recipe: Recipe) -> dict[str, Any]:
    extras = ("cycle", "start", "adapter")
    return {
        f.name: _plain(getattr(recipe, f.name))
        for f in fields(recipe)
        if f.name != "family" and not (f.name in extras and getattr(recipe, f.name) is None)
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Recipe):
        return _described(value)
    if is_dataclass(value):
        inner = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        return {"kind": type(value).__name__} | inner
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value


def _of(arch: Architecture, **how: Any) -> Callable[[str, int], Recipe]:
    def recipe(family: str, seed: int) -> Recipe:
        return Recipe(family, arch, seed=seed, order_seed=seed, **how)

    return recipe


# The networks of the merging part. What starts from ``broad`` starts from the one of the same
# seed, so that a seed stands for a whole set of networks.
#
# What the tasks are was chosen on networks of seed 7000, which are not in the zoo, and there
# merges were looked at. From so small a start, tasks that differ by quarter turns cancel: no sum
# of their task vectors was better than the start by more than two points. Corruptions add up as
# they do in large pre-trained networks, and became the tasks. Rates and epochs were chosen by the
# accuracy of each network on its own task alone.
WIDE = MLP(96)

#: Four tasks that share their classes and differ in what is done to the images.
CORRUPTIONS: dict[str, Task] = {
    "noisy": Corrupted("gaussian_noise", 5),
    "blurred": Corrupted("gaussian_blur", 5),
    "faded": Corrupted("contrast", 5),
    "bright": Corrupted("brightness", 5),
}

#: Two tasks that together are the whole: halves of the images, with all classes, and halves of
#: the classes.
HALVES: dict[str, Task] = {
    "image-half-a": Share(0, 2),
    "image-half-b": Share(1, 2),
    "class-half-a": ClassSplit((0, 1, 2, 3, 4)),
    "class-half-b": ClassSplit((5, 6, 7, 8, 9)),
}

#: Rate and epochs of the fine-tuned networks that make a soup.
TUNINGS = ((5e-4, 5), (1e-3, 5), (2e-4, 10), (1e-3, 10))


def _broad(family: str, seed: int) -> Recipe:
    return Recipe(family, WIDE, seed=seed, order_seed=seed, limit=2_000)


def _from_broad(number: int, *tasks: Task, **how: Any) -> Callable[[str, int], Recipe]:
    """Fine-tuned from ``broad``; the number tells the orders of images of one start apart."""
    settings = {"lr": 5e-4, "epochs": 5} | how

    def recipe(family: str, seed: int) -> Recipe:
        start, order = _broad("broad", seed), 10 * number + seed
        return Recipe(family, WIDE, seed, order, tasks=tasks, start=start, **settings)

    return recipe


def _alone(number: int, *tasks: Task, **how: Any) -> Callable[[str, int], Recipe]:
    """From a random start of its own; the number tells the starts of one seed apart."""

    def recipe(family: str, seed: int) -> Recipe:
        own = 10 * number + seed
        return Recipe(family, WIDE, own, own, tasks=tasks, **how)

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
#:
#: The transformer takes a minute a network and is stopped long before it has converged: seven
#: epochs. Of batches of 128 and 64 at a rate of 2e-3, and of 48 at 1e-3, batches of 64 had the best
#: accuracy on test images, again on a network of seed 7000.
FAMILIES: dict[str, Callable[[str, int], Recipe]] = {
    **{f"mlp-width-{width}": _of(MLP(width)) for width in (16, 32, 64, 128, 256, 512)},
    "cnn": _of(PlainCNN(), lr=1e-2),
    "residual-batch": _of(ResidualCNN(norm="batch")),
    "residual-layer": _of(ResidualCNN(norm="layer")),
    "vit": _of(TinyViT(), lr=2e-3, batch=64, epochs=7),
    "broad": _broad,
    **{f"tuned-{k}": _from_broad(k, lr=r, epochs=n) for k, (r, n) in enumerate(TUNINGS)},
    **{name: _from_broad(k, task) for k, (name, task) in enumerate(CORRUPTIONS.items(), 10)},
    **{name: _from_broad(k, t, epochs=10) for k, (name, t) in enumerate(HALVES.items(), 20)},
    **{f"lone-{name}": _alone(k, task) for k, (name, task) in enumerate(HALVES.items(), 20)},
    "lone-noisy": _alone(10, CORRUPTIONS["noisy"]),
    "lone-bright": _alone(13, CORRUPTIONS["bright"]),
    "joint-tasks": _from_broad(31, Together(tuple(CORRUPTIONS.values()))),
    "tangent-noisy": _from_broad(10, CORRUPTIONS["noisy"], adapter=Tangent()),
    "tangent-bright": _from_broad(13, CORRUPTIONS["bright"], adapter=Tangent()),
    **{
        f"low-rank-{name}": _from_broad(k, task, adapter=LowRank(), lr=3e-3)
        for k, (name, task) in enumerate(CORRUPTIONS.items(), 10)
    },
    **{f"tail-{k}": _alone(40, schedule="constant", epochs=10 + 2 * k) for k in range(1, 6)},
    **{f"snapshot-{k}": _alone(40, schedule="cyclic", cycle=5, epochs=5 * k) for k in range(1, 5)},
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
    seeds = SEEDS[:1] if name in ALONG_ONE_RUN else SEEDS
    return tuple(FAMILIES[name](name, first + seed) for seed in seeds)


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
    if stem in FAMILIES and digits.isdecimal():
        members = family(stem, master=int(digits) // 1000)
        if found := [recipe for recipe in members if recipe.name == name]:
            return (found[0],)
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
