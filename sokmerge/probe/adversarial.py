r"""Adversarial inputs: the worst that a small change of an input can do, looked for by gradients.

An attack looks for a point of high loss near an input, in the box

.. math:: B_\varepsilon(x)=\{x' : \lVert x'-x\rVert_\infty\le\varepsilon,\
          \text{low}\le x'\le\text{high}\}.

What it finds is a lower bound on the worst loss there, and the accuracy under attack an upper
bound on the accuracy that no attack can break. A network may only seem robust because an attack
is weak: see what more steps and restarts find, and that a large :math:`\varepsilon` breaks all.

Inputs, ``epsilon``, ``bounds`` and ``step_size`` are in one unit, that of the inputs. Where inputs
were normalised from intensities by :math:`x=(p-\mu)/\sigma`, a change of :math:`e` in intensity is
``epsilon`` :math:`=e/\sigma`, and black and white give ``bounds``
:math:`=\bigl((0-\mu)/\sigma,\ (1-\mu)/\sigma\bigr)`. Where :math:`\sigma` differs from channel to
channel, all of these may be tensors that broadcast against one input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sokmerge.errors import ArgumentError
from sokmerge.network import Network
from sokmerge.params import Params, host, stream

__all__ = ["Adversarial", "fgsm", "pgd"]

Loss = Callable[..., Tensor]
Size = float | Tensor

#: How far inputs may lie out of bounds, as a share of the width between them: by rounding.
_SLACK = 1e-4


@dataclass(frozen=True)
class Adversarial:
    """What an attack found.

    Attributes:
        inputs: the changed inputs, shaped as those that were given.
        success: whether the network errs there, shape (n,).
        loss: the loss of each, shape (n,).
        n: number of inputs.
    """

    inputs: Tensor
    success: Tensor
    loss: Tensor
    n: int

    @property
    def accuracy(self) -> float:
        """Share of inputs that are still classified rightly. This waits for the device."""
        return 1 - float(host(self.success.to(self.loss.dtype).mean()))

    @property
    def accuracy_stderr(self) -> float:
        r"""Its standard error, :math:`\sqrt{a(1-a)/(n-1)}`; NaN for one input."""
        share = self.accuracy
        return math.sqrt(share * (1 - share) / (self.n - 1)) if self.n > 1 else math.nan


def fgsm(
    network: Network,
    params: Params,
    inputs: Tensor,
    targets: Tensor,
    *,
    epsilon: Size,
    bounds: tuple[Size, Size],
    loss: Loss = F.cross_entropy,
    calibration: Tensor | None = None,
    chunk: int = 500,
) -> Adversarial:
    r"""Take one step along the signs of the gradient: the fast gradient sign method.

    .. math:: x' = \Pi_{[\text{low},\,\text{high}]}
              \bigl(x+\varepsilon\,\operatorname{sign}\nabla_x\,\ell(f_\theta(x),y)\bigr)

    If the loss were linear in the input, this were the worst point of the box (Goodfellow et al.
    2014). It costs one gradient, and says little about a network that was trained against it.

    Args:
        network: the network.
        params: the point; buffers may be among them.
        inputs: shape (n, ...), within ``bounds``.
        targets: shape (n,), whole numbers.
        epsilon: how much each entry may change, in the unit of the inputs; 0 or more.
        bounds: the least and the greatest value of an entry, in that unit.
        loss: a function ``loss(outputs, targets, reduction="none")``, to be made large.
        calibration: inputs on which BatchNorm statistics are estimated; by default ``inputs``.
        chunk: examples in one pass.

    Returns:
        The changed inputs and whether the network errs there.

    Raises:
        ArgumentError: inputs and targets that do not fit or lie out of bounds, a negative
            ``epsilon``, or params that do not belong to the network.

    >>> net = torch.nn.Linear(2, 2, bias=False).eval()
    >>> point = {"weight": torch.tensor([[1.0, -1.0], [0.0, 0.0]])}  # class 0 where x1 > x2
    >>> x, y = torch.tensor([[0.6, 0.4]]), torch.tensor([0])
    >>> found = fgsm(Network(net), point, x, y, epsilon=0.3, bounds=(0.0, 1.0))
    >>> found.inputs, found.accuracy
    (tensor([[0.3000, 0.7000]]), 0.0)
    """
    attack = _Attack(network, params, inputs, targets, epsilon, bounds, loss, calibration, chunk)
    return attack.run(lambda batch, rows: batch.move(batch.x, epsilon))


def pgd(
    network: Network,
    params: Params,
    inputs: Tensor,
    targets: Tensor,
    *,
    epsilon: Size,
    steps: int,
    bounds: tuple[Size, Size],
    key: str,
    step_size: Size | None = None,
    restarts: int = 1,
    loss: Loss = F.cross_entropy,
    calibration: Tensor | None = None,
    chunk: int = 500,
) -> Adversarial:
    r"""Climb the loss within the box from random starts: projected gradient descent.

    .. math:: x_{t+1} = \Pi_{B_\varepsilon(x)}
              \bigl(x_t+a\,\operatorname{sign}\nabla_x\,\ell(f_\theta(x_t),y)\bigr),
              \qquad x_0=\Pi_{B_\varepsilon(x)}(x+u),\quad u\sim U[-\varepsilon,\varepsilon]

    (Madry et al. 2017; descent on the negative loss.) Of the input itself and all points on the way
    from all starts, that is returned which is misclassified with the greatest loss; where none is,
    the one of the greatest loss. So more restarts, or more steps of one size, never find less.
    With ``steps=0`` the starts alone are tried: random noise, the control of every attack.

    Args:
        network: the network.
        params: the point; buffers may be among them.
        inputs: shape (n, ...), within ``bounds``.
        targets: shape (n,), whole numbers.
        epsilon: how much each entry may change, in the unit of the inputs; 0 or more.
        steps: gradient steps from each start, 0 or more.
        bounds: the least and the greatest value of an entry, in that unit.
        key: names the random starts. They are drawn on the CPU, one stream for each restart.
        step_size: a; by default 2.5 ``epsilon`` / ``steps``, which lets a path cross the box.
        restarts: number of starts, at least 1.
        loss: a function ``loss(outputs, targets, reduction="none")``, to be made large.
        calibration: inputs on which BatchNorm statistics are estimated; by default ``inputs``.
        chunk: examples in one pass.

    Returns:
        For each input the best that was found.

    Raises:
        ArgumentError: as :func:`fgsm`; and a negative number of steps, or no restart.

    >>> net = torch.nn.Linear(2, 2, bias=False).eval()
    >>> point = {"weight": torch.tensor([[1.0, -1.0], [0.0, 0.0]])}  # class 0 where x1 > x2
    >>> x, y = torch.tensor([[0.6, 0.4]]), torch.tensor([0])
    >>> found = pgd(
    ...     Network(net), point, x, y, epsilon=0.3, steps=5, bounds=(0.0, 1.0), key="example"
    ... )
    >>> found.inputs, found.n
    (tensor([[0.3000, 0.7000]]), 1)
    """
    if steps < 0 or restarts < 1:
        raise ArgumentError(
            "restarts" if restarts < 1 else "steps",
            found=f"{steps} steps from {restarts} starts",
            expected="0 or more steps from at least one start",
        )
    attack = _Attack(network, params, inputs, targets, epsilon, bounds, loss, calibration, chunk)
    size = 2.5 * epsilon / max(steps, 1) if step_size is None else step_size

    def climb(batch: _Batch, rows: slice) -> None:
        batch.keep(batch.x)
        for start in starts:
            here = batch.project(batch.x + epsilon * start[rows].to(batch.x))
            for _ in range(steps):
                here = batch.move(here, size, keep=True)
            batch.keep(here)

    starts = [_start(inputs, f"{key}:{number}") for number in range(restarts)]
    return attack.run(climb)


def _start(inputs: Tensor, key: str) -> Tensor:
    """Return uniform numbers of [-1, 1], one for each entry of the inputs."""
    return torch.rand(inputs.shape, generator=stream(key), dtype=torch.float32) * 2 - 1


class _Attack:
    """A network at a point, and inputs with the boxes around them."""

    def __init__(
        self,
        network: Network,
        params: Params,
        inputs: Tensor,
        targets: Tensor,
        epsilon: Size,
        bounds: tuple[Size, Size],
        loss: Loss,
        calibration: Tensor | None,
        chunk: int,
    ) -> None:
        if len(inputs) == 0 or targets.shape != inputs.shape[:1] or chunk < 1:
            raise ArgumentError(
                "targets",
                found=f"shape {tuple(targets.shape)} for inputs of shape {tuple(inputs.shape)}, "
                f"in chunks of {chunk}",
                expected="one for each input, and at least one input",
            )
        network.require(params=params)
        low, high, reach = (
            size.to(inputs) if isinstance(size, Tensor) else inputs.new_full((), size)
            for size in (*bounds, epsilon)
        )
        out = torch.maximum(low - inputs, inputs - high) / (high - low)
        least, narrow, most = (float(host(t)) for t in (reach.min(), (high - low).min(), out.max()))
        if least < 0:
            raise ArgumentError("epsilon", found=f"{least:.3g}", expected="0 or more")
        if narrow <= 0 or most > _SLACK:
            raise ArgumentError(
                "bounds",
                found=f"inputs outside of them by {most:.3g} of their width"
                if narrow > 0
                else f"a width of {narrow:.3g}",
                expected="inputs between the first and the greater second",
                do="Bounds are in the unit of the inputs: normalise them as the inputs were.",
            )
        self.network, self.loss, self.chunk = network, loss, chunk
        self.inputs, self.targets = inputs, targets
        self.low, self.high, self.epsilon = low, high, reach
        state = network.state(params, inputs if calibration is None else calibration)
        # What was made in inference mode may not be part of a gradient; a copy may.
        self.state = {k: t.clone() if t.is_inference() else t for k, t in state.items()}

    def run(self, work: Callable[[_Batch, slice], Tensor | None]) -> Adversarial:
        """Let ``work`` attack each chunk; a point that it returns is what was found."""
        found = []
        for first in range(0, len(self.inputs), self.chunk):
            rows = slice(first, first + self.chunk)
            batch = _Batch(self, rows)
            point = work(batch, rows)
            if point is not None:
                batch.keep(point)
            found.append((batch.best, batch.errs, batch.height))
        best, errs, height = (torch.cat(parts) for parts in zip(*found, strict=True))
        return Adversarial(best, errs, height, len(best))


class _Batch:
    """A chunk under attack: the best point so far, whether the network errs there, and its loss."""

    def __init__(self, attack: _Attack, rows: slice) -> None:
        self.attack, self.x, self.y = attack, attack.inputs[rows].detach(), attack.targets[rows]
        self.lower = torch.maximum(self.x - attack.epsilon, attack.low)
        self.upper = torch.minimum(self.x + attack.epsilon, attack.high)
        self.best, self.errs, self.height = self.x, None, None

    def project(self, point: Tensor) -> Tensor:
        """Return the nearest point of the box."""
        return torch.minimum(torch.maximum(point, self.lower), self.upper)

    def move(self, point: Tensor, size: Size, *, keep: bool = False) -> Tensor:
        """Take a step of a size along the signs of the gradient; keep where it began, if better."""
        leaf = point.detach().requires_grad_()
        with torch.enable_grad():
            outputs = self.attack.network(self.attack.state, leaf)
            losses = self.attack.loss(outputs, self.y, reduction="none")
            (slope,) = torch.autograd.grad(losses.sum(), leaf)
        if keep:
            self._keep(point, outputs.detach(), losses.detach())
        return self.project(point + size * slope.sign())

    @torch.no_grad()
    def keep(self, point: Tensor) -> None:
        """Keep a point where it is better than the best so far."""
        outputs = self.attack.network(self.attack.state, point)
        self._keep(point, outputs, self.attack.loss(outputs, self.y, reduction="none"))

    def _keep(self, point: Tensor, outputs: Tensor, losses: Tensor) -> None:
        errs = outputs.argmax(1) != self.y
        if self.errs is None or self.height is None:
            self.best, self.errs, self.height = point, errs, losses
            return
        better = (errs & ~self.errs) | ((errs == self.errs) & (losses > self.height))
        wide = better.view(-1, *[1] * (point.dim() - 1))
        self.best = torch.where(wide, point, self.best)
        self.errs, self.height = errs | self.errs, torch.where(better, losses, self.height)
