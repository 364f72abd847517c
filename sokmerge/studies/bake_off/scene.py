"""One situation of the bake-off, with all that a method may ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from sokmerge import merge, symmetry
from sokmerge.network import Network
from sokmerge.params import Params
from sokmerge.params import of as params_of
from sokmerge.probe import EmpiricalRisk
from sokmerge.testbed import models as architectures
from sokmerge.testbed import training, zoo
from sokmerge.testbed.recipes import Recipe
from sokmerge.testbed.situations import Situation

__all__ = ["EXAMPLES", "GRID", "Outcome", "Predictor", "Scene"]

EXAMPLES = 1000
GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)

Predictor = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Outcome:
    """What a method gives: a function of inputs, or one for each of the two tasks.

    Attributes:
        predict: gives logits, or logarithms of probabilities.
        passes: forward passes through a network of the common size for one input.
    """

    predict: Predictor | tuple[Predictor, Predictor]
    passes: float = 1


class Scene:
    """One situation and seed, with what methods ask for, computed when first asked for."""

    def __init__(self, told: Situation) -> None:
        self.told = told
        self.seed = told.seed
        self.module, first = zoo.load(told.models[0])
        self.models = [first, zoo.load(told.models[1])[1]]
        self.group = symmetry.chain(self.module, architectures.chain(told.models[0].arch))
        self.network = Network(self.module)
        self.test = told.inputs("test")
        self.own_tests = [told.inputs_of(k, "test") for k in (0, 1)]
        self.examples = told.inputs("train", limit=EXAMPLES)
        self.own_examples = [told.inputs_of(k, "train", limit=EXAMPLES) for k in (0, 1)]
        self.risk = EmpiricalRisk(self.module, *self.examples)

    @cached_property
    def base(self) -> Params:
        """The common start, or the initial weights of the first network."""
        if self.told.start is not None:
            return zoo.load(self.told.start)[1]
        recipe = self.told.models[0]
        return params_of(architectures.build(recipe.arch, recipe.seed))

    @cached_property
    def starts(self) -> list[Params]:
        """Where each of the two networks began."""
        if self.told.start is not None:
            return [self.base, self.base]
        return [params_of(architectures.build(r.arch, r.seed)) for r in self.told.models]

    def score(self, params: Params) -> float:
        """Accuracy on the labelled examples."""
        return self.risk(params).accuracy

    def loss(self, params: Params) -> Tensor:
        """Mean cross-entropy on the labelled examples, to be differentiated."""
        inputs, targets = self.examples
        return F.cross_entropy(
            torch.func.functional_call(self.module, dict(params), (inputs,)), targets
        )

    def own_loss(self, task: int) -> Callable[[Params], Tensor]:
        """The same for the examples of one task."""
        inputs, targets = self.own_examples[task]

        def loss(params: Params) -> Tensor:
            logits = torch.func.functional_call(self.module, dict(params), (inputs,))
            return F.cross_entropy(logits, targets)

        return loss

    def entropy(self, params: Params) -> Tensor:
        """Mean entropy of the predictions on the examples, for which no labels are needed."""
        logits = torch.func.functional_call(self.module, dict(params), (self.examples[0],))
        return -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()

    def at(self, params: Params) -> Outcome:
        """The network with these parameters."""
        return Outcome(self.function(params))

    def function(self, params: Params) -> Predictor:
        """The function that the network computes with these parameters."""
        state = self.network.state(params, None)
        return lambda inputs: self.network(state, inputs)

    def resized(self, params: Params) -> Outcome:
        """A network of widths of its own, whose passes cost as its parameters say."""
        network = Network(merge.resized(self.module, params))
        share = sum(t.numel() for t in params.values()) / sum(t.numel() for t in self.base.values())
        return Outcome(lambda inputs: network(params, inputs), passes=share)

    def per_task(self, params: Sequence[Params]) -> Outcome:
        """One network for each task."""
        first, second = (self.function(each) for each in params)
        return Outcome((first, second))

    def best_step(
        self, method: Callable[..., Params], models: Sequence[Params] | None = None, **how: object
    ) -> Outcome:
        """The merge with the length of the common step, ``scale``, that is best on the examples."""
        models = self.models if models is None else models
        made = (method(models, base=self.base, scale=scale, **how) for scale in GRID)
        return self.at(max(made, key=self.score))

    @cached_property
    def step(self) -> float:
        """The length of the step that is best for the plain sum of task vectors."""

        def accuracy(scale: float) -> float:
            return self.score(merge.task_arithmetic(self.models, base=self.base, scale=scale))

        return max(GRID, key=accuracy)

    def aligned(self, matching: merge.Matching) -> list[Params]:
        """The two networks, the second one re-indexed."""
        return [self.models[0], self.group.act(matching.permutation, self.models[1])]

    def matched(self, matching: merge.Matching) -> Outcome:
        """The average after re-indexing."""
        return self.at(merge.average(self.aligned(matching)))

    @cached_property
    def better(self) -> int:
        """Which of the two networks is better on the examples."""
        return max((0, 1), key=lambda k: self.score(self.models[k]))

    def run(self, **changes: object) -> list[Params]:
        """Points after each epoch of a run that starts and trains as the better network did."""
        points: list[Params] = []
        recipe = replace(self.told.models[self.better], **changes)

        def keep(epoch: int, params: dict[str, Tensor]) -> None:
            points.append({name: tensor.clone() for name, tensor in params.items()})

        training.fine_tune(recipe, self.starts[self.better], each_epoch=keep)
        return points

    def clients(self, epochs: int) -> list[Callable[[Params], Params]]:
        """For each network a function that trains on from any point, on that network's images."""

        def client(recipe: Recipe) -> Callable[[Params], Params]:
            recipe = replace(recipe, epochs=epochs, schedule="constant")
            data = training.inputs_of(recipe, "train")
            return lambda params: training.fine_tune(recipe, params, *data)

        return [client(recipe) for recipe in self.told.models]

    @property
    def epochs(self) -> int:
        """How many epochs each of the two networks was trained."""
        return self.told.models[0].epochs

    def relatives(self, kind: str) -> list[Params] | None:
        """Networks of the same tasks and start that were tuned in another way, if there are any."""
        names = [f"{kind}-{recipe.family}" for recipe in self.told.models]
        if not set(names) <= set(zoo.families()):
            return None
        return [zoo.load(zoo.family(name)[self.seed])[1] for name in names]
