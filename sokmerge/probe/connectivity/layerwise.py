r"""Connectivity layer by layer: of parameters, of features, and of halves of networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from sokmerge.errors import ArgumentError
from sokmerge.network import Network
from sokmerge.params import Params, host, lerp, wide
from sokmerge.probe.representation import activations, feature_cosine, linear_cka
from sokmerge.probe.risk import EmpiricalRisk, mean_and_stderr, require_finite_loss

__all__ = [
    "FeatureConnectivity",
    "LayerBarriers",
    "Stitches",
    "feature_connectivity",
    "layer_barriers",
    "stitching",
]


@dataclass(frozen=True)
class LayerBarriers:
    """The barrier of a network in which one group of layers at a time is moved.

    Attributes:
        groups: names of the groups of layers.
        loss, loss_stderr: the highest excess loss of each group, and its standard error there.
        error, error_stderr: the highest excess error, as a share of the examples.
        alphas: where the highest excess loss is.
        excess_loss, excess_error: the excess of each group at all positions, shape
            (groups, points). In the middle of an odd number of positions a group is averaged; at
            the last one it is that of the other network.
        n: number of examples.
    """

    groups: tuple[str, ...]
    loss: np.ndarray
    loss_stderr: np.ndarray
    error: np.ndarray
    error_stderr: np.ndarray
    alphas: np.ndarray
    excess_loss: np.ndarray
    excess_error: np.ndarray
    n: int


def layer_barriers(
    risk: EmpiricalRisk,
    a: Params,
    b: Params,
    groups: Mapping[str, Sequence[str]],
    points: int = 11,
) -> LayerBarriers:
    r"""Move one group of layers from a to b and leave the others where a has them.

    .. math:: B_\ell = \max_\alpha\Bigl[ L\bigl(\theta_A\text{ with layer }\ell\text{ at }
              (1-\alpha)\theta_A^\ell+\alpha\theta_B^\ell\bigr)
              - \bigl((1-\alpha)L(\theta_A)+\alpha L(\theta_B)\bigr)\Bigr]

    (Adilova et al. 2023). A group of all layers gives the ordinary barrier. With a group the end
    of the line is no trained network, but a with layers of b; that is the point.

    Args:
        risk: the risk to evaluate.
        a: parameters of the network that is changed.
        b: parameters of the network from which layers are taken.
        groups: name of a group to names of its parameters.
        points: positions, the ends among them.

    Raises:
        ArgumentError: points that do not belong to the risk's network, a group that is empty or
            names what is no parameter, fewer than two positions, or a loss that overflows.

    >>> net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).eval()
    >>> risk = EmpiricalRisk(net, torch.ones(2, 1), torch.ones(2, 1),
    ...                      loss=lambda f, y, reduction: (f - y).square().mean(1))
    >>> a, b = ({f"{k}.weight": torch.tensor([[w]]) for k in (0, 1)} for w in (1.0, -1.0))
    >>> groups = {"first": ["0.weight"], "all": ["0.weight", "1.weight"]}
    >>> layer_barriers(risk, a, b, groups, points=3).loss  # one sign is wrong; both fit, half way 0
    array([4., 1.])
    """
    risk.require_valid(a=a, b=b)
    if points < 2:
        raise ArgumentError("points", found=f"{points}", expected="at least the two ends")
    for group, names in groups.items():
        unknown = [name for name in names if name not in a]
        if unknown or not names:
            raise ArgumentError(
                f"groups[{group!r}]",
                found=f"{unknown or 'nothing'}",
                expected="names of parameters, at least one",
            )
    alphas = np.linspace(0, 1, points)
    ends = [torch.stack(risk.per_example(end)) for end in (a, b)]
    rows = []
    for names in groups.values():
        found = []
        for alpha in map(float, alphas):
            moved = lerp({n: a[n] for n in names}, {n: b[n] for n in names}, alpha)
            loss, error = torch.stack(risk.per_example({**a, **moved}))
            height = (1 - alpha) * (loss - ends[0][0]) + alpha * (loss - ends[1][0])
            found.append(torch.stack([height, error - (ends[0][1] + ends[1][1]) / 2]))
        excess = torch.stack(found, 1)
        require_finite_loss(excess[0], "the way from a to b")
        rows.append([host(each) for s in excess for each in mean_and_stderr(s)])
    where = [int(np.argmax(row[0])) for row in rows], [int(np.argmax(row[2])) for row in rows]
    pick = [np.array([row[k][where[k // 2][i]] for i, row in enumerate(rows)]) for k in range(4)]
    curves = {"excess_loss": [row[0] for row in rows], "excess_error": [row[2] for row in rows]}
    whole = {name: np.array(values) for name, values in curves.items()}
    return LayerBarriers(tuple(groups), *pick, alphas=alphas[where[0]], n=risk.n, **whole)


@dataclass(frozen=True)
class FeatureConnectivity:
    r"""How far the features of a point between two networks are from between their features.

    Attributes:
        layers: names of the layers.
        gap, gap_stderr: mean of :math:`1-\cos` between the features at the point and the
            interpolated features, and its standard error over inputs.
        apart, apart_stderr: mean of :math:`1-\cos` between the features of the two networks: what
            there is to bridge.
        cka: linear CKA between the two networks.
        n: number of inputs. Inputs on which a layer is silent in one of the two do not count
            there.
    """

    layers: tuple[str, ...]
    gap: np.ndarray
    gap_stderr: np.ndarray
    apart: np.ndarray
    apart_stderr: np.ndarray
    cka: np.ndarray
    n: int


def feature_connectivity(
    network: Network,
    a: Params,
    b: Params,
    inputs: Tensor,
    layers: Sequence[str],
    *,
    alpha: float = 0.5,
    at: Literal["output", "input"] = "output",
    calibration: Tensor | None = None,
) -> FeatureConnectivity:
    r"""Measure layer-wise linear feature connectivity.

    .. math:: \operatorname{gap}_\ell = 1-\cos\Bigl(f_\ell\bigl((1-\alpha)\theta_A+\alpha\theta_B
              \bigr),\ (1-\alpha)f_\ell(\theta_A)+\alpha f_\ell(\theta_B)\Bigr),

    its mean over inputs (Zhou et al. 2023, who ask that it vanish in every layer). It says nothing
    where a and b have nearly the same features; so what lies between them is given too.

    Args:
        network: the network.
        a: parameters at alpha = 0.
        b: parameters at alpha = 1.
        inputs: shape (n, ...).
        layers: names of submodules.
        alpha: where between a and b.
        at: whether the features are what a layer gives out or what it is given.
        calibration: inputs on which BatchNorm statistics are estimated; by default ``inputs``.

    Raises:
        ArgumentError: as :func:`~sokmerge.probe.activations`.

    >>> net = nn.Linear(2, 2, bias=False).eval()
    >>> a, b = {"weight": torch.eye(2)}, {"weight": torch.eye(2).flip(0)}
    >>> found = feature_connectivity(Network(net), a, b, torch.eye(2), [""])
    >>> found.gap.round(6), found.apart.round(6)  # a linear network: no gap, though far apart
    (array([0.]), array([1.]))
    """
    how = {"at": at, "calibration": calibration}
    of_a, of_b, of_mid = (
        activations(network, p, inputs, layers, **how) for p in (a, b, lerp(a, b, alpha))
    )
    rows = []
    for name in layers:
        x, y = wide(of_a[name]), wide(of_b[name])
        between = feature_cosine(of_mid[name], torch.lerp(x, y, alpha))
        gap, apart = (_mean_of_known(1 - c) for c in (between, feature_cosine(x, y)))
        rows.append([*gap, *apart, linear_cka(x, y)])
    return FeatureConnectivity(tuple(layers), *np.array(rows).T, n=len(inputs))


@dataclass(frozen=True)
class Stitches:
    """Networks whose bottom is one network and whose top is another, by where they are joined.

    Attributes:
        layers: the first layer of the top.
        loss, loss_stderr: mean loss of each stitched network and its standard error.
        error, error_stderr: its share of wrong answers.
        penalty, penalty_stderr: its loss less that of the network whose top it has.
        error_penalty, error_penalty_stderr: the same of the error.
        n: number of examples.
    """

    layers: tuple[str, ...]
    loss: np.ndarray
    loss_stderr: np.ndarray
    error: np.ndarray
    error_stderr: np.ndarray
    penalty: np.ndarray
    penalty_stderr: np.ndarray
    error_penalty: np.ndarray
    error_penalty_stderr: np.ndarray
    n: int


def stitching(
    risk: EmpiricalRisk,
    a: Params,
    b: Params,
    layers: Sequence[str],
    *,
    fit: EmpiricalRisk | None = None,
    steps: int = 0,
    lr: float = 1e-2,
) -> Stitches:
    r"""Join the bottom of a to the top of b and measure what that costs.

    With :math:`A_\ell` what a gives to layer :math:`\ell`, the stitched network is
    :math:`T^b_\ell\bigl(S\,A_\ell(x)\bigr)`, where S is linear and acts on the units of each place
    alike: a 1 x 1 convolution (Lenc and Vedaldi 2015; Bansal et al. 2021). Bansal et al. train S on
    the task. Here S is the affine map that predicts what b gives to the layer best, by least
    squares, and is then trained on the task for ``steps`` steps. Without data to fit it, S is the
    identity, as in Zhou et al. (2023): then units must correspond one to one.

    Everything that comes before a layer must reach the rest through it alone: a layer within a
    residual block cannot be stitched.

    Args:
        risk: the risk to evaluate.
        a: parameters of the bottom.
        b: parameters of the top.
        layers: names of the first layers of the top.
        fit: examples to which S is fitted; None for the identity.
        steps: steps of Adam on the task, a chunk of ``fit`` each.
        lr: the rate of Adam.

    Raises:
        ArgumentError: points that do not belong to the risk's network, a layer that it does not
            have, or steps without examples.

    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).eval()
    >>> x = torch.eye(2).repeat(3, 1)
    >>> risk = EmpiricalRisk(net, x, x @ torch.tensor([[1.0], [2.0]]),
    ...                      loss=lambda f, y, reduction: (f - y).square().mean(1))
    >>> a = {"0.weight": torch.eye(2), "1.weight": torch.tensor([[1.0, 2.0]])}
    >>> b = {"0.weight": torch.eye(2).flip(0), "1.weight": torch.tensor([[2.0, 1.0]])}
    >>> stitching(risk, a, b, ["1"]).penalty, stitching(risk, a, b, ["1"], fit=risk).loss.round(6)
    (array([1.]), array([0.]))
    """
    risk.require_valid(a=a, b=b)
    known = dict(risk.network.skeleton.named_modules())
    for name in layers:
        if name not in known:
            raise ArgumentError("layers", found=repr(name), expected="submodules of the network")
    if steps and fit is None:
        raise ArgumentError("fit", found="None", expected=f"examples for the {steps} steps")
    own = torch.stack(risk.per_example(b))
    rows = []
    for name in layers:
        joint = _identity
        if fit is not None:
            joint = _fitted(fit, a, b, name, steps, lr)
        found = torch.stack(_stitched(risk, a, b, name, joint))
        require_finite_loss(found[0], "the stitched network")
        samples = (found[0], found[1], found[0] - own[0], found[1] - own[1])
        rows.append([float(host(each)) for s in samples for each in mean_and_stderr(s)])
    return Stitches(tuple(layers), *np.array(rows).T, n=risk.n)


Joint = Callable[[Tensor], Tensor]


def _identity(features: Tensor) -> Tensor:
    return features


def _stitched(
    risk: EmpiricalRisk, a: Params, b: Params, layer: str, joint: Joint
) -> tuple[Tensor, Tensor]:
    """Return loss and error of each example in the stitched network."""
    states = risk.state(a), risk.state(b)
    losses, errors = [], []
    with torch.no_grad():
        for x, y in risk.chunks():
            outputs = _through(risk.network, *states, layer, joint, x)
            losses.append(risk.losses(outputs, y))
            known = outputs.dim() == 2 and y.dim() == 1 and not y.is_floating_point()
            wrong = (outputs.argmax(1) != y) if known else torch.full_like(losses[-1], torch.nan)
            errors.append(wrong.to(outputs.dtype))
    return torch.cat(losses), torch.cat(errors)


def _through(
    network: Network, bottom: Params, top: Params, layer: str, joint: Joint, x: Tensor
) -> Tensor:
    """Return the outputs of the top on what the bottom gives to a layer."""
    given: list[Tensor] = []
    module = network.skeleton.get_submodule(layer)
    handle = module.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    try:
        network(bottom, x)
    finally:
        handle.remove()
    handle = module.register_forward_pre_hook(lambda _, __: (joint(given[0].detach()),))
    try:
        return network(top, x)
    finally:
        handle.remove()


def _fitted(fit: EmpiricalRisk, a: Params, b: Params, layer: str, steps: int, lr: float) -> Joint:
    """Return the best affine map from what a gives to a layer to what b gives to it."""
    module = fit.network.skeleton.get_submodule(layer)
    seen: list[list[Tensor]] = []
    with torch.no_grad():
        for params in (a, b):
            state, parts = fit.state(params), []
            handle = module.register_forward_pre_hook(
                lambda _, arguments, parts=parts: parts.append(_rows(module, arguments[0]))
            )
            for x, _ in fit.chunks():
                fit.network(state, x)
            handle.remove()
            seen.append(parts)
        gram = crossed = 0
        for x, y in zip(*seen, strict=True):
            x, y = wide(torch.cat([x, x.new_ones(len(x), 1)], 1)), wide(y)
            gram, crossed = gram + x.mT @ x, crossed + x.mT @ y
        # Units that never fire make it singular; a little ridge leaves them out.
        ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype).to(gram)
        solution = torch.linalg.solve(gram + ridge, crossed).to(seen[1][0][0].dtype)
    matrix, offset = solution[:-1].contiguous(), solution[-1].contiguous()

    def joint(features: Tensor) -> Tensor:
        if units_last(module):
            return features @ matrix + offset
        return (features.movedim(1, -1) @ matrix + offset).movedim(-1, 1)

    if steps:
        states = fit.state(a), fit.state(b)
        matrix.requires_grad_()
        offset.requires_grad_()
        optimizer = torch.optim.Adam([matrix, offset], lr=lr)
        chunks = list(fit.chunks())
        for step in range(steps):
            x, y = chunks[step % len(chunks)]
            with torch.enable_grad():
                outputs = _through(fit.network, *states, layer, joint, x)
                value = fit.losses(outputs, y).mean()
                matrix.grad, offset.grad = torch.autograd.grad(value, [matrix, offset])
            optimizer.step()
        matrix.requires_grad_(False)
        offset.requires_grad_(False)
    return joint


def units_last(layer: nn.Module) -> bool:
    """Return whether a layer has its units on the last axis; otherwise they are on axis 1."""
    return isinstance(layer, nn.Linear | nn.LayerNorm)


def _rows(layer: nn.Module, features: Tensor) -> Tensor:
    """Return features as a matrix: a row an input and place, a column a unit."""
    return (features if units_last(layer) else features.movedim(1, -1)).flatten(0, -2)


def _mean_of_known(values: Tensor) -> tuple[float, float]:
    """Return the mean of the values that are not NaN, and its standard error."""
    known = ~values.isnan()
    n = known.sum()
    mean = values.where(known, 0.0).sum() / n
    variance = (values - mean).square().where(known, 0.0).sum() / (n - 1)
    return float(host(mean)), float(host((variance / n).sqrt()))
