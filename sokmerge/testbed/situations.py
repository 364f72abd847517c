"""The four situations in which two networks are merged: same or different start, same or different
task.

Whether a method works depends on them more than on anything else, which is why one table of all
methods over the four says what merging has to do with the loss landscape.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from sokmerge.errors import ArgumentError
from sokmerge.testbed import data
from sokmerge.testbed.fullset import Split
from sokmerge.testbed.recipes import CORRUPTIONS, SEEDS, Recipe, family
from sokmerge.testbed.tasks import Task, Together

__all__ = ["NAMES", "Situation", "situation"]

Name = Literal[
    "same start, same task",
    "same start, different tasks",
    "different starts, same task",
    "different starts, different tasks",
]
NAMES: tuple[Name, ...] = get_args(Name)


@dataclass(frozen=True)
class Situation:
    """Two networks to merge, and what to hold the result against.

    Attributes:
        name: one of :data:`NAMES`.
        seed: which of the zoo's seeds.
        models: the recipes of the two networks. Of the same task each has seen half of the images;
            of different tasks, all images in one of two corruptions.
        start: the recipe of the network from which both started; None if they have their own.
        joint: the recipe of a network trained as the first one was, on all that the two have seen
            together. It is not in the zoo.
        tasks: the two tasks on whose images, taken together, a merge is judged. A task of None is
            the images as they are.
    """

    name: Name
    seed: int
    models: tuple[Recipe, Recipe]
    start: Recipe | None
    joint: Recipe
    tasks: tuple[Task | None, Task | None]

    def inputs(
        self, split: Split, *, limit: int | None = None, device: torch.device | str | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of both tasks together.

        Args:
            split: ``"train"`` or ``"test"``.
            limit: take that many images, before the tasks; each is seen in each task.
            device: where the tensors go.
        """
        images = data.fashion(split, limit=limit, device=device)
        both = [task for task in self.tasks if task is not None]
        return Together(tuple(both))(*images) if both else images

    def inputs_of(
        self, model: int, split: Split, *, limit: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of the task of one of the two networks."""
        task, images = self.tasks[model], data.fashion(split, limit=limit)
        return task(*images) if task is not None else images


def situation(name: Name, seed: int, *, master: int | None = None) -> Situation:
    """Return one of the four situations, for one of the zoo's seeds.

    Raises:
        ArgumentError: there is no such situation or seed.

    >>> situation("different starts, same task", 3).models[0].name
    'lone-image-half-a-s203'
    """
    if name not in NAMES:
        raise ArgumentError("name", found=repr(name), expected=f"one of {NAMES}")
    if seed not in SEEDS:
        raise ArgumentError("seed", found=repr(seed), expected=f"a number from 0 to {SEEDS[-1]}")
    together, same = name.startswith("same start"), name.endswith("same task")
    pair = ("image-half-a", "image-half-b") if same else ("noisy", "bright")

    def of(family_name: str) -> Recipe:
        return family(family_name, master=master)[seed]

    first, second = (of(each if together else f"lone-{each}") for each in pair)
    tasks = (None, None) if same else tuple(CORRUPTIONS[each] for each in pair)
    return Situation(
        name=name,
        seed=seed,
        models=(first, second),
        start=of("broad") if together else None,
        joint=replace(first, family="joint", tasks=() if same else (Together(tasks),)),
        tasks=tasks,
    )
