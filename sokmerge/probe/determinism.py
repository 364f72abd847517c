r"""How early a run has chosen its mode: instability, the tangent kernel, small pushes, pruning.

Two children of one state differ in what came after it. If the line between them is flat, what came
after did not decide in which region they end (instability analysis, Frankle et al. 2020).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from sokmerge import params as algebra
from sokmerge.errors import ArgumentError
from sokmerge.network import Network
from sokmerge.params import Params, host
from sokmerge.probe.line import Barrier, barrier
from sokmerge.probe.representation import activations, disagreement, linear_cka
from sokmerge.probe.risk import EmpiricalRisk

__all__ = [
    "STABLE",
    "Instability",
    "instability",
    "iterative_pruning",
    "kernel_distance",
    "kernel_velocity",
    "magnitude_mask",
    "masked",
    "push_all_weights",
    "push_one_weight",
    "shuffled_mask",
    "tangent_kernel",
]

#: The error barrier below which Frankle et al. (2020) call a network stable to the noise of SGD.
STABLE = 0.02


@dataclass(frozen=True)
class Instability:
    r"""What lies between the children of one state, pair by pair.

    All arrays have shape (pairs,), the pairs of ``itertools.combinations(range(children), 2)``.
    Pairs share children, so they are not independent; the state is the unit of replication.

    Attributes:
        loss, loss_stderr: loss barriers, in the unit of the loss, and their standard errors over
            the examples.
        error, error_stderr: error barriers, shares of the examples, and their standard errors.
        distance: :math:`\lVert\theta_i-\theta_j\rVert`.
        cosine: of :math:`\theta_i` and :math:`\theta_j`.
        disagreement: share of inputs that two children put into different classes; NaN where no
            inputs were given.
        cka: for each layer that was asked for, the linear CKA of what it is given.
        barriers: the barriers, with their lines.
    """

    loss: np.ndarray
    loss_stderr: np.ndarray
    error: np.ndarray
    error_stderr: np.ndarray
    distance: np.ndarray
    cosine: np.ndarray
    disagreement: np.ndarray
    cka: Mapping[str, np.ndarray]
    barriers: tuple[Barrier, ...] = field(repr=False)

    def stable(self, threshold: float = STABLE) -> bool:
        """Whether the mean error barrier of the pairs is below a threshold, 2 % by default."""
        return bool(self.error.mean() < threshold)


def instability(
    risk: EmpiricalRisk,
    children: Sequence[Params],
    *,
    points: int = 9,
    inputs: Tensor | None = None,
    layers: Sequence[str] = (),
    calibration: Tensor | None = None,
) -> Instability:
    r"""Measure what lies between networks that were trained from one state.

    Of each pair the loss and the error barrier (:func:`sokmerge.probe.barrier`); the maximum of
    the latter is the linear interpolation instability of Frankle et al. (2020), who take 30
    positions.

    Args:
        risk: the risk that barriers are measured in.
        children: two or more points.
        points: positions on each line.
        inputs: for disagreement and CKA; without them these are not measured.
        layers: names of submodules whose inputs are compared by linear CKA.
        calibration: inputs on which BatchNorm statistics are estimated for both of these; by
            default ``inputs``.

    Raises:
        ArgumentError: fewer than two children, layers without inputs, or children that do not
            belong to the network.

    >>> from torch import nn
    >>> net = nn.Linear(2, 2, bias=False).eval()
    >>> x, y = torch.eye(2), torch.tensor([0, 1])
    >>> a, b = {"weight": 2 * torch.eye(2)}, {"weight": 3 * torch.eye(2)}
    >>> found = instability(EmpiricalRisk(net, x, y), [a, b], inputs=x)
    >>> found.error, found.disagreement, found.stable()
    (array([0.]), array([0.]), True)
    """
    if len(children) < 2:
        raise ArgumentError("children", found=f"{len(children)}", expected="at least two")
    if layers and inputs is None:
        raise ArgumentError("inputs", found="None", expected="inputs, for the layers' CKA")
    pairs = list(itertools.combinations(range(len(children)), 2))
    walls = tuple(barrier(risk, children[i], children[j], points) for i, j in pairs)
    differ, alike = np.full(len(pairs), np.nan), {}
    if inputs is not None:
        network = risk.network
        rows = [
            activations(network, child, inputs, layers, at="input", calibration=calibration)
            for child in children
        ]
        with torch.no_grad():
            told = inputs if calibration is None else calibration
            logits = [network(network.state(child, told), inputs) for child in children]
        differ = np.array([disagreement(logits[i], logits[j]) for i, j in pairs])
        alike = {
            name: np.array([linear_cka(rows[i][name], rows[j][name]) for i, j in pairs])
            for name in layers
        }

    def of(measure: Callable[[Params, Params], Tensor]) -> np.ndarray:
        return np.array([float(host(measure(children[i], children[j]))) for i, j in pairs])

    return Instability(
        *(
            np.array([getattr(wall, name) for wall in walls])
            for name in ("loss", "loss_stderr", "error", "error_stderr")
        ),
        distance=of(algebra.distance),
        cosine=of(algebra.cosine),
        disagreement=differ,
        cka=alike,
        barriers=walls,
    )


def tangent_kernel(
    network: Network,
    params: Params,
    inputs: Tensor,
    *,
    calibration: Tensor | None = None,
    chunk: int = 25,
) -> Tensor:
    r"""Return the empirical neural tangent kernel of a network at a point.

    .. math:: K_{(i,c),(j,d)} = \bigl\langle \nabla_\theta f_\theta(x_i)_c,\;
              \nabla_\theta f_\theta(x_j)_d\bigr\rangle

    (Jacot, Gabriel and Hongler 2018). For small steps, and as long as K does not change, training
    by gradient descent is regression with this kernel.

    BatchNorm statistics are estimated at the point and then held fixed.

    Args:
        network: the network; its outputs have shape (n, classes).
        params: the point.
        inputs: shape (n, ...). All gradients are held at once: n x classes x parameters numbers.
        calibration: inputs for BatchNorm statistics; by default ``inputs``.
        chunk: examples of which gradients are taken together.

    Returns:
        Shape (n * classes, n * classes), symmetric and positive semi-definite; the rows of one
        example stand together.

    Raises:
        ArgumentError: params that do not belong to the network, no inputs, or outputs that are no
            vector for each input.

    >>> from torch import nn
    >>> net = Network(nn.Linear(2, 1).eval())  # the kernel of a linear function: <x, x'> + 1
    >>> tangent_kernel(net, net.parameters, torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
    tensor([[2., 2.],
            [2., 6.]])
    """
    network.require(params=params)
    if len(inputs) == 0 or chunk < 1:
        raise ArgumentError(
            "inputs", found=f"{len(inputs)} in chunks of {chunk}", expected="at least one of each"
        )
    state = network.state(params, inputs if calibration is None else calibration)
    moving = {name: state[name].detach() for name in network.parameters}
    fixed = {name: tensor for name, tensor in state.items() if name not in moving}

    def outputs(point: Params, x: Tensor) -> Tensor:
        return functional_call(network.skeleton, {**fixed, **point}, (x[None],))[0]

    gradients = vmap(jacrev(outputs), (None, 0))
    parts = [gradients(moving, x) for x in inputs.split(chunk)]
    first = next(iter(moving))
    if parts[0][first].ndim - moving[first].ndim != 2:
        raise ArgumentError(
            "network",
            found="outputs that are no vector for each input",
            expected="outputs of shape (n, classes)",
        )
    kernel: Tensor | None = None
    for name, tensor in moving.items():
        rows = torch.cat([part[name].detach().reshape(-1, tensor.numel()) for part in parts])
        product = rows @ rows.mT
        kernel = product if kernel is None else kernel + product
    assert kernel is not None
    return kernel


def kernel_distance(first: Tensor, second: Tensor) -> float:
    r"""Return how far two kernels point in different directions.

    .. math:: S(K,L) = 1-\frac{\langle K,L\rangle}{\lVert K\rVert\,\lVert L\rVert}

    with the Frobenius product (Fort et al. 2020). It is 0 where one is a multiple of the other; of
    two positive semi-definite kernels it is at most 1.

    Args:
        first, second: of one shape, such as two of :func:`tangent_kernel` on the same inputs.

    Raises:
        ArgumentError: the shapes differ.

    >>> kernel_distance(torch.eye(2), 3 * torch.eye(2))
    0.0
    """
    if first.shape != second.shape:
        raise ArgumentError(
            "second",
            found=f"shape {tuple(second.shape)}",
            expected=f"shape {tuple(first.shape)}, as the first",
        )
    return 1 - float(host(algebra.cosine({"": first}, {"": second})))


def kernel_velocity(kernels: Sequence[Tensor], steps: Sequence[int]) -> np.ndarray:
    r"""Return the distance of successive kernels of a run for each step between them.

    .. math:: v_t = \frac{S(K_t,K_{t+\Delta t})}{\Delta t}

    Args:
        kernels: along a run.
        steps: when, increasing; one for each kernel.

    Returns:
        Shape (kernels - 1,).

    Raises:
        ArgumentError: fewer than two kernels, or steps that do not fit.

    >>> kernel_velocity([torch.eye(2), torch.eye(2), torch.ones(2, 2)], [0, 5, 7]).round(3)
    array([0.   , 0.146])
    """
    rising = all(a < b for a, b in itertools.pairwise(steps))
    if len(kernels) < 2 or len(steps) != len(kernels) or not rising:
        raise ArgumentError(
            "steps",
            found=f"{list(steps)} for {len(kernels)} kernels",
            expected="increasing steps, one for each of two kernels or more",
        )
    moved = [kernel_distance(*two) for two in itertools.pairwise(kernels)]
    return np.array(moved) / np.diff(np.asarray(steps, dtype=float))


def push_one_weight(params: Params, size: float, seed: int) -> dict[str, Tensor]:
    """Return params with ``size`` added to one entry, which is drawn uniformly, as is its sign.

    As one entry is moved in the experiments of Kwok et al. (2025).

    Args:
        params: the point; entries that are no floating-point numbers are left alone.
        size: the length of the push.
        seed: which entry.

    Raises:
        ArgumentError: there is no floating-point entry.

    >>> pushed = push_one_weight({"w": torch.zeros(2, 3)}, 0.5, seed=1)["w"]
    >>> int((pushed != 0).sum()), float(pushed.abs().max())
    (1, 0.5)
    """
    sizes = {name: t.numel() for name, t in params.items() if t.is_floating_point()}
    if not sum(sizes.values()):
        raise ArgumentError("params", found="no floating-point entry", expected="at least one")
    drawn = random.Random(seed)
    place, sign = drawn.randrange(sum(sizes.values())), drawn.choice((-1.0, 1.0))
    pushed = dict(params)
    for name, count in sizes.items():
        if place < count:
            push = torch.zeros_like(params[name]).flatten()
            push[place] = sign * size
            pushed[name] = params[name] + push.view(params[name].shape)
            break
        place -= count
    return pushed


def push_all_weights(params: Params, size: float, seed: int) -> dict[str, Tensor]:
    """Return params moved by ``size`` in a direction that is drawn uniformly from the sphere.

    Args:
        params: the point; entries that are no floating-point numbers are left alone.
        size: the length of the push.
        seed: which direction.

    >>> p = {"w": torch.zeros(20)}
    >>> round(float(algebra.distance(p, push_all_weights(p, 0.5, seed=1))), 6)
    0.5
    """
    noise = algebra.normal_like(params, seed)
    length = algebra.norm(noise)
    return algebra.entrywise(lambda p, n: p + (size / length * n).to(p.dtype), params, noise)


def magnitude_mask(
    params: Params,
    keep: float,
    *,
    names: Sequence[str] | None = None,
    within: Params | None = None,
) -> dict[str, Tensor]:
    r"""Mark the entries of largest magnitude, over all tensors together.

    Args:
        params: a trained network.
        keep: the share of all entries of the chosen tensors that is kept, in [0, 1]; their number
            is rounded.
        names: which tensors are pruned; by default those of two or more dimensions, which leaves
            biases and normalisation whole.
        within: a mask that this one lies within, for pruning step by step. Where it has fewer
            entries than are to be kept, some of what it has pruned comes back.

    Returns:
        For each chosen tensor a tensor of its shape and dtype, 1 where it is kept and 0 where not.

    Raises:
        ArgumentError: a share outside [0, 1], an unknown name, or nothing to prune.

    >>> theta = {"w": torch.tensor([[0.1, -3.0], [2.0, 0.5]]), "b": torch.zeros(2)}
    >>> magnitude_mask(theta, 0.5)
    {'w': tensor([[0., 1.],
            [1., 0.]])}
    """
    if not 0 <= keep <= 1:
        raise ArgumentError("keep", found=repr(keep), expected="a share from 0 to 1")
    if names is None:
        names = [n for n, t in params.items() if t.is_floating_point() and t.dim() >= 2]
    if unknown := [name for name in names if name not in params]:
        raise ArgumentError("names", found=repr(unknown[0]), expected=f"some of {[*params]}")
    if not names:
        raise ArgumentError("names", found="no tensor", expected="at least one to prune")
    size = {name: params[name].abs() for name in names}
    if within is not None:  # what is pruned stands behind the smallest that is not
        size = {n: s.where(within[n].bool(), -torch.ones_like(s)) for n, s in size.items()}
    every = torch.cat([s.flatten() for s in size.values()])
    kept = torch.zeros_like(every)
    kept[every.argsort(descending=True, stable=True)[: round(keep * len(every))]] = 1.0
    parts = kept.split([s.numel() for s in size.values()])
    return {n: part.view(s.shape) for (n, s), part in zip(size.items(), parts, strict=True)}


def masked(params: Params, mask: Params) -> dict[str, Tensor]:
    """Return params with zeros where a mask has them; tensors that it leaves out stay whole.

    >>> masked({"w": torch.ones(2), "b": torch.ones(1)}, {"w": torch.tensor([1.0, 0.0])})
    {'w': tensor([1., 0.]), 'b': tensor([1.])}
    """
    return {name: t * mask[name] if name in mask else t for name, t in params.items()}


def shuffled_mask(mask: Params, seed: int) -> dict[str, Tensor]:
    """Return a mask with as many entries in each tensor, in places that are drawn at random.

    It is what a mask that was found is held against: the same sparsity, layer by layer.

    >>> found = {"w": torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])}
    >>> float(shuffled_mask(found, seed=0)["w"].sum())
    2.0
    """
    order = algebra.normal_like(mask, seed)
    return {n: m.flatten()[order[n].flatten().argsort()].view(m.shape) for n, m in mask.items()}


def iterative_pruning(
    train: Callable[[dict[str, Tensor]], Params],
    first: Params,
    *,
    share: float,
    rounds: int,
    names: Sequence[str] | None = None,
) -> tuple[dict[str, Tensor], ...]:
    """Prune by magnitude in rounds, each of which trains what the rounds before have left.

    With a ``train`` that goes on from the state of one step, it is iterative magnitude pruning
    with rewinding to that step (Frankle et al. 2020; step 0: Frankle and Carbin 2019).

    Args:
        train: from a mask to the parameters of the network that was trained with it.
        first: the trained dense network.
        share: what each round prunes of what is left, in [0, 1).
        rounds: how many masks are made, at least 1.
        names: as in :func:`magnitude_mask`.

    Returns:
        The masks, each within the one before; ``train`` was called with all but the last.

    Raises:
        ArgumentError: a share or a number of rounds that is not as described.

    >>> theta = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    >>> masks = iterative_pruning(lambda mask: masked(theta, mask), theta, share=0.5, rounds=2)
    >>> [int(mask["w"].sum()) for mask in masks]
    [2, 1]
    """
    if not 0 <= share < 1 or rounds < 1:
        raise ArgumentError(
            "share", found=f"{share} in {rounds} rounds", expected="a share from 0 to 1, 1 round"
        )
    masks = [magnitude_mask(first, 1 - share, names=names)]
    for done in range(1, rounds):
        trained = train(masks[-1])
        keep = (1 - share) ** (done + 1)
        masks.append(magnitude_mask(trained, keep, names=names, within=masks[-1]))
    return tuple(masks)
