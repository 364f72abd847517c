r"""Routers, which say how much of each model an input needs, and networks made for one input.

A router is a linear map of features. What it is trained for differs between the methods, and
stands with them; :func:`task_router` learns to tell from which task an input comes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F

from sokmerge.errors import ArgumentError
from sokmerge.merge.descent import descend, require_schedule
from sokmerge.network import Network
from sokmerge.params import Params

__all__ = [
    "Features",
    "Router",
    "embedding",
    "flat",
    "merged_for_each",
    "require_applicable",
    "task_router",
]


@dataclass(frozen=True, eq=False)
class Features:
    """A function of inputs to vectors, shape (n, d), and its cost.

    Attributes:
        function: the function.
        passes: forward passes through a network of the common architecture, for one input.
        parameters: numbers that it has to hold besides those of the models.
    """

    function: Callable[[Tensor], Tensor]
    passes: float = 0
    parameters: int = 0

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the features."""
        return self.function(inputs)


flat = Features(lambda inputs: inputs.flatten(1))
"""The inputs themselves, as vectors."""


def embedding(module: nn.Module, params: Params, layer: str) -> Features:
    """Return what goes into one layer of a network, as vectors: the mean over places, if any.

    Of an input of shape (n, places, d), as in a transformer, the mean is taken over all between
    the first and the last dimension.

    Args:
        module: the network, in evaluation mode.
        params: its parameters, and buffers where it has any that count.
        layer: the name of a submodule, such as the classifier's last layer.

    Raises:
        ArgumentError: the parameters do not belong to the module, or it has no such layer.

    >>> net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)).eval()
    >>> point = {n: torch.ones_like(p) for n, p in net.named_parameters()}
    >>> embedding(net, point, "2")(torch.tensor([[3.0]]))
    tensor([[3., 3.]])
    """
    network = Network(module)
    network.require(params=params)
    layers = dict(network.skeleton.named_modules())
    if layer not in layers:
        raise ArgumentError("layer", found=repr(layer), expected=f"one of {sorted(layers)[1:]}")
    seen: list[Tensor] = []
    layers[layer].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    state = {**network.buffers, **params}

    def features(inputs: Tensor) -> Tensor:
        seen.clear()
        network(state, inputs)
        found = seen.pop()
        return found.flatten(1, -2).mean(1) if found.dim() > 2 else found

    held = sum(tensor.numel() for tensor in params.values())
    return Features(features, passes=1, parameters=held)


@dataclass(frozen=True, eq=False)
class Router:
    r"""A linear map of features, with or without a softmax.

    .. math:: r(x) = W\phi(x)+b \qquad\text{or}\qquad r(x) = \operatorname{softmax}(W\phi(x)+b)

    Attributes:
        weight: W, shape (models, d).
        bias: b, shape (models,).
        features: :math:`\phi`.
        normalised: whether there is a softmax.
    """

    weight: Tensor
    bias: Tensor
    features: Features = flat
    normalised: bool = True

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the coefficients of each input, shape (n, models)."""
        return self.of(self.features(inputs))

    def of(self, features: Tensor) -> Tensor:
        """Return the coefficients that belong to features."""
        scores = F.linear(features, self.weight, self.bias)
        return scores.softmax(1) if self.normalised else scores

    def trained(
        self,
        objective: Callable[[Router, int], Tensor],
        *,
        steps: int,
        lr: float,
    ) -> Router:
        """Return the router after some steps of Adam on an objective.

        Args:
            objective: a differentiable function of a router and the number of the step.
            steps: how many.
            lr: the rate.
        """

        def of(free: dict[str, Tensor], step: int) -> Tensor:
            return objective(dataclasses.replace(self, **free), step)

        start = {"weight": self.weight, "bias": self.bias}
        return dataclasses.replace(self, **descend(start, of, steps=steps, lr=lr))

    @property
    def parameters(self) -> int:
        """How many numbers the router holds."""
        return self.weight.numel() + self.bias.numel() + self.features.parameters


def constant(
    value: float | Tensor, columns: int, features: Features, inputs: Tensor, *, normalised: bool
) -> Router:
    r"""Return a router that gives the same coefficients to all inputs, from which to train.

    It reads :math:`(\phi(x)-m)/(s\sqrt d)`, with the mean m and the deviation s of the d features
    over the inputs: then a rate means the same for features of any scale and number.
    """
    with torch.no_grad():
        seen = features(inputs)
    centre, size = _moments(seen)
    size = size * seen.shape[1] ** 0.5
    scaled = Features(
        lambda x: (features(x) - centre) / size,
        passes=features.passes,
        parameters=features.parameters + 2 * seen.shape[1],
    )
    return _level(value, columns, scaled, seen, normalised)


def _level(value, columns: int, features: Features, like: Tensor, normalised: bool) -> Router:
    weight = torch.zeros(columns, like.shape[1], dtype=like.dtype, device=like.device)
    bias = torch.zeros(columns, dtype=like.dtype, device=like.device) + value
    return Router(weight, bias, features, normalised)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the deviation of each feature, 1 where it never varies."""
    deviation = features.std(0, correction=0)
    return features.mean(0), deviation.where(deviation > 0, 1.0)


def task_router(
    inputs: Sequence[Tensor], *, features: Features = flat, steps: int = 200, lr: float = 0.05
) -> Router:
    r"""Return a router that tells from which task an input comes: a logistic regression.

    .. math:: \min_{W,b}\ -\frac1T\sum_t\frac1{n_t}\sum_{x\in X_t}\log r_t(x), \qquad
              r(x) = \operatorname{softmax}(W\phi(x)+b)

    (The router of Twin-Merging, Lu et al. 2024) The features are standardised by
    their mean and deviation over all inputs, which then enter W and b. The problem is convex; Adam
    takes its steps on all inputs at once. Steps and rate are ours.

    Args:
        inputs: examples of one task after the other, without labels. All tasks count the same.
        features: :math:`\phi`.
        steps: steps of Adam.
        lr: its rate.

    Raises:
        ArgumentError: fewer than two tasks, a task without inputs, or steps or a rate that cannot
            be used.

    >>> router = task_router([torch.tensor([[-1.0], [-2.0]]), torch.tensor([[1.0], [2.0]])])
    >>> router(torch.tensor([[-1.5], [1.5]])).argmax(1)
    tensor([0, 1])
    """
    require_schedule(steps, lr)
    if len(inputs) < 2 or not all(len(x) for x in inputs):
        raise ArgumentError(
            "inputs",
            found=f"{[len(x) for x in inputs]} inputs of each task",
            expected="two tasks or more, with examples of each",
        )
    with torch.no_grad():
        each = [features(x) for x in inputs]
        mean, deviation = _moments(torch.cat(each))
    start = _level(0.0, len(inputs), features, each[0], normalised=True)
    standard = [(f - mean) / deviation for f in each]

    def surprise(router: Router, _: int) -> Tensor:
        logs = [F.linear(f, router.weight, router.bias).log_softmax(1) for f in standard]
        return -torch.stack([each[:, t].mean() for t, each in enumerate(logs)]).mean()

    found = start.trained(surprise, steps=steps, lr=lr)
    weight = found.weight / deviation
    return dataclasses.replace(found, weight=weight, bias=found.bias - weight @ mean)


def merged_for_each(
    network: Network,
    fixed: Params,
    origin: Params,
    vectors: Mapping[str, Tensor],
    coefficients: Mapping[str, Tensor],
    inputs: Tensor,
) -> Tensor:
    r"""Return the outputs of networks that are made for one input each.

    .. math:: f_{\theta(x)}(x), \qquad \theta^l(x) = \theta_0^l + \sum_i c_i^l(x)\,v_i^l

    Args:
        network: the architecture.
        fixed: entries, parameters and buffers, that are the same for all inputs.
        origin: :math:`\theta_0^l` of the entries l that are not.
        vectors: :math:`v^l` of these entries, shape (models, ...).
        coefficients: :math:`c^l` of these entries, shape (n, models).
        inputs: shape (n, ...).
    """
    own = {}
    for name, vector in vectors.items():
        shares = coefficients[name].to(vector.dtype)
        if name in network.buffers:  # statistics are used, not differentiated
            shares = shares.detach()
        flattened = shares @ vector.flatten(1)
        moved = flattened.view(len(inputs), *vector.shape[1:]) + origin[name]
        own[name] = moved.to(fixed[name].dtype if name in fixed else origin[name].dtype)
    rest = {name: tensor for name, tensor in fixed.items() if name not in own}

    def one(here: dict[str, Tensor], x: Tensor) -> Tensor:
        return network({**rest, **here}, x[None])[0]

    return vmap(one)(own, inputs)


def require_applicable(network: Network, models: Sequence[Params], router: object, least: int):
    """Raise unless networks can be made of these models for one input each.

    Raises:
        ArgumentError: models that do not belong to the network, BatchNorm statistics of which the
            models hold none, or something that is no router.
    """
    network.require(**{f"models[{i}]": model for i, model in enumerate(models)})
    if network.keeps_statistics and not network.buffers.keys() <= models[0].keys():
        raise ArgumentError(
            "models",
            found="parameters without buffers, of a network that keeps BatchNorm statistics",
            expected="models that hold their buffers",
            do="A network that is made for one input has no batch to estimate them on.",
        )
    if router is not None and not callable(router):
        raise ArgumentError("router", found=type(router).__name__, expected="a function of inputs")
    if len(models) < least:
        raise ArgumentError("models", found=f"{len(models)} models", expected=f"at least {least}")


def cost(router: object) -> tuple[float, int]:
    """Return the forward passes and the parameters of a router that may be any function."""
    if isinstance(router, Router):
        return router.features.passes, router.parameters
    return 0, 0
