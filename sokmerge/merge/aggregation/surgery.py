"""Representation surgery: a small correction of what a merged network says before its head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sokmerge.errors import ArgumentError
from sokmerge.merge.aggregation.average import average
from sokmerge.merge.descent import descend, require_schedule
from sokmerge.merge.operands import require_models
from sokmerge.merge.taxonomy import method
from sokmerge.network import Network
from sokmerge.params import Params, stream

__all__ = ["Operated", "representation_surgery"]


@dataclass(frozen=True, eq=False)
class Operated:
    """A merged network with the correction for one task. Call it with inputs of that task.

    Attributes:
        predict: the function of inputs.
        down: the first matrix of the correction, shape (rank, features).
        up: the second matrix, shape (features, rank).
        before: mean absolute difference between the representation of the merged network and
            that of the task's own network, on the inputs given; a scalar.
        after: the same with the correction.
    """

    predict: Callable[[Tensor], Tensor]
    down: Tensor
    up: Tensor
    before: Tensor
    after: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the outputs for inputs of the task."""
        return self.predict(inputs)


@method(
    branch="weight aggregation",
    paper="yang2024representation",
    needs=("inputs",),
    returns="predictor",
    scope="output",
    equation=r"\hat z=z-U\max(Dz,0),\ \min_{U,D}\textstyle\sum_x\lVert\hat z(x)-z_i(x)\rVert_1",
)
def representation_surgery(
    models: Sequence[Params],
    *,
    module: nn.Module,
    layer: str,
    inputs: Sequence[Tensor],
    merged: Params | None = None,
    rank: int = 16,
    steps: int = 200,
    lr: float = 0.01,
    seed: int = 0,
) -> tuple[Operated, ...]:
    r"""Return for each task the merged network with its representation corrected.

    .. math:: \hat z = z - U\,\max(D\,z, 0), \qquad
              \min_{U,D}\ \frac{1}{n d}\sum_x \lVert \hat z(x) - z_i(x)\rVert_1

    What a merged network makes of an input just before its head, the representation
    :math:`z\in\mathbb R^d`, differs from what the task's own network makes of it, :math:`z_i`.
    Yang et al. (2024) subtract an estimate of the difference, a map of low rank with
    :math:`D\in\mathbb R^{r\times d}` and :math:`U\in\mathbb R^{d\times r}` for each task, fitted
    to unlabelled inputs. What comes next, the layer named, is the task's own. So one must know
    which task an input belongs to.

    The correction starts at zero: U is zero, D is normal with variance :math:`1/d`. Adam takes its
    steps on all inputs at once. Steps, rate and rank are ours.

    Args:
        models: parameters of the networks, one for each task.
        module: the architecture, in evaluation mode; its own parameters are not used, and it is
            not changed.
        layer: the name of the part of the module that reads the representation, such as
            ``"head"``; it is called once, with one tensor whose last dimension are features.
        inputs: for each task unlabelled inputs, shape (n, ...).
        merged: the network to correct, by default the average of the models.
        rank: r, at least 1.
        steps: steps of Adam; with 0 nothing is corrected, but the head is the task's own.
        lr: the rate of Adam.
        seed: says how D is drawn.

    Raises:
        ArgumentError: arguments that are not as described.

    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).eval()
    >>> head = torch.ones(1, 2)
    >>> models = [{"0.weight": s * torch.eye(2), "1.weight": head} for s in (1.0, 3.0)]
    >>> x = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    >>> first, second = representation_surgery(models, module=net, layer="1", inputs=[x, x])
    >>> bool(first.after < 0.2 * first.before and second.after < 0.2 * second.before)
    True
    """
    require_models(models)
    require_schedule(steps, lr)
    merged = average(models) if merged is None else merged
    network = Network(module, next(iter(merged.values())).device)
    network.require(**{f"models[{i}]": m for i, m in enumerate(models)}, merged=merged)
    names = dict(network.skeleton.named_modules())
    if layer not in names or not layer:
        raise ArgumentError(
            "layer", found=repr(layer), expected=f"one of {', '.join(n for n in names if n)}"
        )
    if len(inputs) != len(models) or any(len(x) == 0 for x in inputs):
        raise ArgumentError(
            "inputs",
            found=f"{[len(x) for x in inputs]} examples",
            expected=f"some for each of {len(models)} models, in the same order",
        )
    if rank < 1:
        raise ArgumentError("rank", found=f"{rank}", expected="at least 1")
    found = []
    for i, (model, x) in enumerate(zip(models, inputs, strict=True)):
        own = {key: model[key] for key in model if key.startswith(f"{layer}.")}
        state = {key: t.clone() for key, t in network.state({**merged, **own}, x).items()}
        z = _represented(module, layer, state, x)
        target = _represented(module, layer, network.state(model, x), x)
        found.append(_operated(module, layer, state, z, target, rank, steps, lr, f"{seed}:{i}"))
    return tuple(found)


def _operated(
    module: nn.Module,
    layer: str,
    state: Params,
    z: Tensor,
    target: Tensor,
    rank: int,
    steps: int,
    lr: float,
    key: str,
) -> Operated:
    features = z.shape[-1]
    drawn = torch.randn(rank, features, generator=stream(f"surgery:{key}")) / features**0.5
    start = {"down": drawn.to(z), "up": torch.zeros(features, rank).to(z)}

    def distance(matrices: dict[str, Tensor], _: int = 0) -> Tensor:
        return (_corrected(z, matrices) - target).abs().mean()

    matrices = descend(start, distance, steps=steps, lr=lr)
    network = Network(module, z.device)

    def correct(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (_corrected(arguments[0], matrices),)

    network.skeleton.get_submodule(layer).register_forward_pre_hook(correct)

    def predict(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return network(state, inputs)

    return Operated(predict, **matrices, before=distance(start), after=distance(matrices))


def _corrected(z: Tensor, matrices: dict[str, Tensor]) -> Tensor:
    return z - (z @ matrices["down"].T).relu() @ matrices["up"].T


def _represented(module: nn.Module, layer: str, state: Params, inputs: Tensor) -> Tensor:
    """Return what a part of the network is given."""
    network, given = Network(module, inputs.device), []

    def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        given.append(arguments[0])

    network.skeleton.get_submodule(layer).register_forward_pre_hook(keep)
    with torch.no_grad():
        network(state, inputs)
    if len(given) != 1:
        raise ArgumentError(
            "layer", found=f"{layer!r}, called {len(given)} times", expected="a part called once"
        )
    return given[0]
