r"""Lines and simplexes of networks, learned as a whole, and the networks within them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sokmerge.errors import ArgumentError
from sokmerge.merge.descent import descend, require_schedule
from sokmerge.merge.ensembling.deep_ensemble import probability_ensemble
from sokmerge.merge.ensembling.predictor import Predictor
from sokmerge.merge.operands import require_models
from sokmerge.merge.task_vectors.vectors import names as floating
from sokmerge.merge.taxonomy import method
from sokmerge.params import Params, combine, normal_like, wide

__all__ = ["Simplexes", "learned_line", "simplex", "simplex_volume"]

Loss = Callable[[dict[str, Tensor], int], Tensor]
"""A differentiable function of parameters and of the number of a step, by which it can choose its
batch; it returns a scalar."""


@dataclass(frozen=True, eq=False)
class Simplexes:
    r"""Simplexes of networks: each the convex hull of its corners. A line is one of two corners.

    Attributes:
        corners: for each simplex the parameters at its corners.
    """

    corners: tuple[tuple[Params, ...], ...]

    def point(self, weights: Sequence[float], simplex: int = 0) -> dict[str, Tensor]:
        r"""Return :math:`\sum_j w_j\,\theta_j` over the corners of one simplex.

        Raises:
            ArgumentError: not one weight for each corner.
        """
        return combine(list(weights), self.corners[simplex])

    def middle(self, simplex: int = 0) -> dict[str, Tensor]:
        """Return the centre of one simplex: for a line its midpoint."""
        number = len(self.corners[simplex])
        return self.point([1 / number] * number, simplex)

    def sample(self, number: int, *, seed: int) -> list[dict[str, Tensor]]:
        """Return points drawn uniformly, the simplexes taking turns.

        Args:
            number: how many points.
            seed: decides them; the first ones are the same for any number.
        """
        points = []
        for i in range(number):
            at = i % len(self.corners)
            weights = _uniform(len(self.corners[at]), f"{seed}:sample:{i}")
            points.append(self.point(weights, at))
        return points

    def ensemble(
        self, number: int, *, module: nn.Module, seed: int, calibration: Tensor | None = None
    ) -> Predictor:
        """Return the ensemble of points drawn by :meth:`sample`, with the mean probabilities."""
        points = self.sample(number, seed=seed)
        return probability_ensemble(points, module=module, calibration=calibration)


@method(
    branch="ensembling",
    paper="wortsman2021learning",
    needs=("training", "data"),
    returns="population",
    scope="model",
    equation=r"\min_{\theta_1,\theta_2}\ \mathbb E_{\alpha\sim U[0,1]}"
    r"L\bigl((1-\alpha)\theta_1+\alpha\theta_2\bigr)+\beta\cos^2(\theta_1,\theta_2)",
)
def learned_line(
    models: Sequence[Params],
    *,
    loss: Loss,
    steps: int,
    lr: float = 1e-3,
    beta: float = 0.0,
    seed: int = 0,
) -> Simplexes:
    r"""Train all networks on a line, or on a simplex, at once.

    .. math:: \min_{\theta_1,\ldots,\theta_m}\ \mathbb E_{w}\,L\Bigl(\sum_j w_j\theta_j\Bigr)
              + \beta\,\mathbb E_{j\ne k}\cos^2(\theta_j,\theta_k)

    The corners are trained together: each step draws one point, w uniform on the simplex, takes
    the gradient there and passes it to each corner in proportion to its weight (Wortsman et al.
    2021, algorithm 1). The second term pushes the corners apart. A step costs as much as a step
    of one network. With two models the result is a line, whose midpoint is one network, and whose
    points make an ensemble.

    BatchNorm statistics belong to a point and have to be estimated at each one that is used: see
    ``calibration`` in :meth:`Simplexes.ensemble`.

    Scope: the model. There is neither a tie rule nor a sign rule. The order of the models decides
    which of them gets which random weight.

    Args:
        models: parameters at the corners before training, two or more; in the paper different
            random weights.
        loss: a differentiable function of parameters and of the number of the step, a scalar.
        steps: steps of Adam.
        lr: the rate of Adam.
        beta: the weight of the second term.
        seed: decides the random points.

    Raises:
        ArgumentError: fewer than two models, models that do not match or are not finite, steps, a
            rate or a weight that cannot be used, or corners that did not stay finite.

    >>> corners = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}]
    >>> line = learned_line(corners, loss=lambda p, step: p["w"].square().sum(), steps=0)
    >>> line.middle()["w"], line.point([0.75, 0.25])["w"]
    (tensor([2.]), tensor([1.5000]))
    """
    require_models(models, least=2)
    require_schedule(steps, lr)
    _require_weight("beta", beta)
    names = floating(models[0])

    def objective(free: dict[str, Tensor], step: int) -> Tensor:
        corners = [_corner(free, models[0], names, j) for j in range(len(models))]
        weights = _uniform(len(models), f"{seed}:line:{step}")
        value = loss(_mixed(corners, weights, names), step)
        if beta:
            value = value + beta * _squared_cosines(corners, names)
        return value

    start = {f"{j}:{name}": m[name] for j, m in enumerate(models) for name in names}
    free = descend(start, objective, steps=steps, lr=lr)
    corners = tuple(_corner(free, model, names, j) for j, model in enumerate(models))
    return Simplexes((corners,))


@method(
    branch="ensembling",
    paper="benton2021loss",
    needs=("training", "data"),
    returns="population",
    scope="model",
    equation=r"\min_{\theta_k}\ \mathbb E_{\phi\in S}L(\phi)-\lambda\log V(S),\ "
    r"S=\operatorname{conv}(\theta_1,\ldots,\theta_k)",
)
def simplex(
    models: Sequence[Params],
    *,
    loss: Loss,
    corners: int = 2,
    steps: int,
    lr: float = 1e-3,
    volume: float = 1e-3,
    spread: float = 0.1,
    seed: int = 0,
) -> Simplexes:
    r"""Grow simplexes of low loss from trained networks, corner by corner.

    .. math:: \min_{\theta_k}\ \mathbb E_{\phi\sim U(S)}\,L(\phi)-\lambda\log V(S),
              \qquad S = \operatorname{conv}(\theta_1,\ldots,\theta_k)

    The models stay as they are. New corners are added one after the other and trained alone, so
    that the loss is low at random points of the simplex and its volume V is large (SPRO, Benton et
    al. 2021). With one model this is a simplex around it, and an ensemble of its points
    the paper's ESPRO. With several, each model and all the new corners make a simplex;
    these share the new corners, and so connect the models.

    A new corner begins at the mean of the models and the corners before it, moved by noise: at
    the mean itself the volume is zero, and its logarithm has no gradient.

    Scope: the model. There is neither a tie rule nor a sign rule.

    Args:
        models: parameters of trained networks.
        loss: a differentiable function of parameters and of the number of the step, a scalar.
        corners: how many corners are added.
        steps: steps of Adam for each new corner.
        lr: the rate of Adam.
        volume: :math:`\lambda`, how much a larger volume is worth.
        spread: the size of the noise, as a share of the root mean square of each tensor.
        seed: decides the noise and the random points.

    Raises:
        ArgumentError: no models, models that do not match or are not finite, no new corner,
            steps, a rate, a weight or a spread that cannot be used, or corners that did not stay
            finite.

    >>> found = simplex([{"w": torch.zeros(2) + 1}], loss=lambda p, step: p["w"].square().sum(),
    ...                 corners=2, steps=1)
    >>> len(found.corners), len(found.corners[0])
    (1, 3)
    """
    require_models(models)
    require_schedule(steps, lr)
    _require_weight("volume", volume)
    if corners < 1:
        raise ArgumentError("corners", found=f"{corners}", expected="at least one")
    if not 0 < spread < math.inf:
        raise ArgumentError("spread", found=f"{spread}", expected="a positive, finite number")
    names = floating(models[0])
    added: list[dict[str, Tensor]] = []
    for number in range(corners):
        known = [*models, *added]
        centre = combine([1 / len(known)] * len(known), known)
        start = _shaken(centre, spread, f"{seed}:{number}")

        def objective(free: dict[str, Tensor], step: int, number=number) -> Tensor:
            chosen = random.Random(f"{seed}:{number}:{step}").randrange(len(models))
            here = [models[chosen], *added, free]
            weights = _uniform(len(here), f"{seed}:simplex:{number}:{step}")
            value = loss({**models[0], **_mixed(here, weights, names)}, step)
            if volume:
                logs = [_log_volume([m, *added, free], names) for m in models]
                value = value - volume * torch.stack(logs).logsumexp(0).to(value.dtype)
            return value

        free = descend({n: start[n] for n in names}, objective, steps=steps, lr=lr)
        added.append({**models[0], **free})
    return Simplexes(tuple((model, *added) for model in models))


def simplex_volume(corners: Sequence[Params]) -> Tensor:
    r"""Return the volume of a simplex, a scalar: of a line its length, of a triangle its area.

    .. math:: V = \frac1{d!}\sqrt{\det G}, \qquad
              G_{jk} = \langle\theta_j-\theta_0,\ \theta_k-\theta_0\rangle

    Args:
        corners: :math:`\theta_0,\ldots,\theta_d`, at least two.

    Raises:
        ArgumentError: fewer than two corners, or corners that do not match or are not finite.

    >>> at = [(0.0, 0.0), (3.0, 0.0), (0.0, 4.0)]
    >>> round(float(simplex_volume([{"w": torch.tensor(each)} for each in at])), 6)
    6.0
    """
    require_models(corners, least=2)
    return _log_volume(corners, floating(corners[0])).exp()


def _log_volume(corners: Sequence[Params], names: Sequence[str]) -> Tensor:
    edges = [{n: wide(c[n]) - wide(corners[0][n]) for n in names} for c in corners[1:]]
    rows = [[sum((a[n] * b[n]).sum() for n in names) for b in edges] for a in edges]
    gram = torch.stack([torch.stack(row) for row in rows])
    return torch.linalg.slogdet(gram).logabsdet / 2 - math.lgamma(len(edges) + 1)


def _squared_cosines(corners: Sequence[Params], names: Sequence[str]) -> Tensor:
    """Return the mean squared cosine between two corners."""

    def inner(a: Params, b: Params) -> Tensor:
        return sum((a[n] * b[n]).sum() for n in names)

    pairs = [(a, b) for i, a in enumerate(corners) for b in corners[:i]]
    each = [inner(a, b).square() / (inner(a, a) * inner(b, b)) for a, b in pairs]
    return torch.stack(each).mean()


def _mixed(
    corners: Sequence[Params], shares: Sequence[float], names: Sequence[str]
) -> dict[str, Tensor]:
    """Return a point of a simplex, differentiable in its corners, with all entries of the first."""

    def total(name: str) -> Tensor:
        terms = (_at_least_single(c[name]) * w for c, w in zip(corners, shares, strict=True))
        return sum(terms).to(corners[0][name].dtype)

    return {**corners[0], **{name: total(name) for name in names}}


def _at_least_single(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _corner(
    free: Mapping[str, Tensor], like: Params, names: Sequence[str], number: int
) -> dict[str, Tensor]:
    return {**like, **{name: free[f"{number}:{name}"] for name in names}}


def _shaken(params: Params, spread: float, key: str) -> dict[str, Tensor]:
    """Return params plus noise; it differs between keys, tensors and nothing else."""
    noise = normal_like(params, random.Random(f"{key}:noise").randrange(2**31))
    return {
        name: t + spread * wide(t).square().mean().sqrt().to(t.dtype) * noise[name]
        if t.is_floating_point()
        else t
        for name, t in params.items()
    }


def _uniform(number: int, key: str) -> list[float]:
    """Return weights drawn uniformly from a simplex; they are drawn on the host."""
    drawn = random.Random(key)
    waits = [drawn.expovariate(1.0) for _ in range(number)]
    return [wait / math.fsum(waits) for wait in waits]


def _require_weight(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ArgumentError(name, found=f"{value}", expected="a finite number, 0 or more")
