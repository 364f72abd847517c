r"""Training that looks for the worst nearby: against changed inputs, or against moved weights.

Both are runs of :class:`~sokmerge.testbed.loop.Run` that differ in what one step does, and so in
nothing else: images, their order, rate and schedule are the recipe's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sokmerge import params
from sokmerge.errors import ArgumentError
from sokmerge.params import Params
from sokmerge.testbed import models, training
from sokmerge.testbed.loop import Run, one_thread
from sokmerge.testbed.recipes import Recipe

__all__ = ["Hardened", "SharpnessAware", "harden"]

Attack = Callable[[Params, Tensor, Tensor, int], Tensor]


class Hardened(Run):
    r"""Adversarial training: each step is taken on inputs that were changed to be hard.

    .. math:: \min_\theta\ \mathbb E\ \max_{x'\in B(x)}\ \ell\bigl(f_\theta(x'), y\bigr)

    (Madry et al. 2017, arXiv:1706.06083.) The maximum is what the attack finds.

    Args:
        attack: from the present parameters, inputs, targets and the number of the step to the
            inputs to train on.
        *args: as for :class:`~sokmerge.testbed.loop.Run`.
        **how: as for :class:`~sokmerge.testbed.loop.Run`.
    """

    def __init__(self, *args: Any, attack: Attack, **how: Any) -> None:
        super().__init__(*args, **how)
        self.attack = attack

    def descend(self, inputs: Tensor, targets: Tensor) -> None:
        """Take one step on what the attack makes of a batch."""
        super().descend(self.attack(params.of(self.module), inputs, targets, self.step), targets)


class SharpnessAware(Run):
    r"""Sharpness-aware minimisation: each step uses the gradient of a worse point nearby.

    .. math:: \theta_{t+1}=\theta_t-\eta\,\nabla L\bigl(\theta_t+\hat\epsilon\bigr),\qquad
              \hat\epsilon=\rho\,\frac{\nabla L(\theta_t)}{\lVert\nabla L(\theta_t)\rVert}

    with both gradients on one batch (Foret et al. 2020, arXiv:2010.01412). The optimizer is the
    recipe's. A step costs two gradients.

    Args:
        radius: :math:`\rho`, in the unit of the weights; at 0 the run is the plain one.
        *args: as for :class:`~sokmerge.testbed.loop.Run`.
        **how: as for :class:`~sokmerge.testbed.loop.Run`.

    Raises:
        ArgumentError: a negative radius.
    """

    def __init__(self, *args: Any, radius: float, **how: Any) -> None:
        if not radius >= 0:
            raise ArgumentError("radius", found=f"{radius}", expected="0 or more")
        super().__init__(*args, **how)
        self.radius = radius

    def descend(self, inputs: Tensor, targets: Tensor) -> None:
        """Climb to the worse point, take the gradient there, come back, and take the step."""
        weights = [p for p in self.module.parameters() if p.requires_grad]
        slopes = torch.autograd.grad(F.cross_entropy(self.module(inputs), targets), weights)
        length = torch.stack([slope.square().sum() for slope in slopes]).sum().sqrt()
        before = [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            for weight, slope in zip(weights, slopes, strict=True):
                weight.add_(slope * (self.radius / length.clamp_min(1e-12)))
        self.optimizer.zero_grad()
        F.cross_entropy(self.module(inputs), targets).backward()
        with torch.no_grad():
            for weight, place in zip(weights, before, strict=True):
                weight.copy_(place)
        self.optimizer.step()


def harden(
    kind: type[Run],
    recipe: Recipe,
    start: Params | None = None,
    inputs: Tensor | None = None,
    targets: Tensor | None = None,
    **how: Any,
) -> dict[str, Tensor]:
    """Run a recipe to its end with steps of another kind, and return where that leads.

    It is to :func:`sokmerge.testbed.training.fine_tune` what ``kind`` is to ``Run``; with ``Run``
    itself both give the same network, bit for bit.

    Args:
        kind: :class:`Hardened`, :class:`SharpnessAware` or ``Run``.
        recipe: how to train.
        start: the parameters to start from; by default the recipe's own random weights.
        inputs: what to train on; the recipe's own training images by default.
        targets: their targets.
        **how: what ``kind`` needs, such as ``attack``.
    """
    if inputs is None or targets is None:
        inputs, targets = training.inputs_of(recipe, "train")
    module = models.build(recipe.arch, seed=recipe.seed)
    if start is not None:
        module.load_state_dict({**module.state_dict(), **start})
    with one_thread():
        run = kind(module.to(inputs.device), inputs, targets, recipe, **how)
        run.to(run.total)
    return params.of(run.module)
