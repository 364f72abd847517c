r"""A network as a pure function of its parameters.

Merging and probing are functions on :data:`~sokmerge.params.Params`. A module enters them only
here: read once, never changed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sokmerge.errors import ArgumentError
from sokmerge.params import Params, require_finite, require_matching

__all__ = ["Network"]

Result = TypeVar("Result")

_BatchNorm = nn.modules.batchnorm._BatchNorm  # the common base of BatchNorm1d, 2d and 3d


class Network:
    r"""The function :math:`(\theta, x)\mapsto f_\theta(x)` that a module describes.

    The module is copied without its tensors, so that later changes to it have no effect here and
    nothing done here, hooks included, is seen there.

    Args:
        module: the network, in evaluation mode.
        device: where its buffers are kept; by default where they are.

    Attributes:
        skeleton: the structure, with tensors that hold no values.
        parameters: the module's own parameters, which say what fits.
        buffers: the module's own buffers.

    Raises:
        ArgumentError: the module or a part of it is in training mode.

    >>> net = nn.Linear(2, 1, bias=False).eval()
    >>> Network(net)({"weight": torch.tensor([[1.0, 2.0]])}, torch.ones(1, 2))
    tensor([[3.]])
    """

    def __init__(self, module: nn.Module, device: torch.device | None = None) -> None:
        for name, part in module.named_modules():
            if part.training:
                raise ArgumentError(
                    "module",
                    found=f"{f'its part {name!r}' if name else 'a module'} in training mode",
                    expected="evaluation mode",
                    do="Call module.eval() first: dropout would make the results random.",
                )
        self.parameters = {n: p.detach().to(device) for n, p in module.named_parameters()}
        self.buffers = {n: b.detach().clone().to(device) for n, b in module.named_buffers()}
        self.skeleton = _without_values(module)
        self._estimator = _estimator(module)

    def __call__(self, state: Params, inputs: Tensor) -> Tensor:
        """Return the outputs at a state: parameters and, where there are any, buffers."""
        return self.at(state, lambda function: function(inputs))

    def at(self, state: Params, work: Callable[[nn.Module], Result]) -> Result:
        """Return what ``work`` makes of the function at a state.

        For many batches at one state this is faster than a call for each: the tensors are put in
        their places once.
        """
        return _at(self.skeleton, state, work)

    @property
    def keeps_statistics(self) -> bool:
        """Whether there are BatchNorm layers whose statistics belong to the parameters."""
        return self._estimator is not None

    @property
    def keeping(self) -> tuple[str, ...]:
        """The names of those layers, in the order in which the module holds them."""
        return () if self._estimator is None else tuple(_keeping(self._estimator))

    def require(self, **named: Params) -> None:
        """Raise unless the Params belong to this network and are finite.

        Buffers may be among them, the same ones in all.
        """
        for name, params in named.items():
            given = {k: b for k, b in self.buffers.items() if k in params}
            require_matching(module={**self.parameters, **given}, **{name: params})
        require_matching(**named)
        require_finite(**named)

    def state(self, params: Params, inputs: Tensor | None) -> dict[str, Tensor]:
        r"""Return parameters and buffers, the BatchNorm statistics estimated on ``inputs``.

        A mean and a variance of activations belong to the parameters that made the activations.
        At any other point they are wrong, and a barrier measured with them is an artefact (Jordan
        et al. 2022). One pass over all the inputs at once gives, layer after layer, the mean
        :math:`\mu` and the unbiased variance :math:`\sigma^2` of each channel over the inputs and
        over space, whatever the statistics were before.

        Args:
            params: the point; where it holds buffers, they take the place of the module's.
            inputs: shape (n, ...), taken as one batch; not used, and may be None, if the network
                keeps no statistics.
        """
        if self._estimator is None:
            return {**self.buffers, **params}
        # The pass overwrites statistics in place: those of the caller must not be among them.
        fresh = {name: params.get(name, buffer).clone() for name, buffer in self.buffers.items()}
        state = {**params, **fresh}
        with torch.inference_mode():
            _at(self._estimator, state, lambda function: function(inputs))
        return state


class _Worker(nn.Module):
    """Calls a function of the module it holds, so that ``functional_call`` spans that function."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, work: Callable[[nn.Module], Result]) -> Result:
        return work(self.module)


def _at(skeleton: nn.Module, state: Params, work: Callable[[nn.Module], Result]) -> Result:
    named = {f"module.{name}": tensor for name, tensor in state.items()}
    return functional_call(_Worker(skeleton), named, (work,))


def _estimator(module: nn.Module) -> nn.Module | None:
    """Return a skeleton whose BatchNorm layers, and nothing else, take one batch's statistics.

    With a momentum of one, the statistics after a pass are those of that pass alone. None if
    there is no such layer.
    """
    skeleton = _without_values(module)
    layers = _keeping(skeleton)
    for layer in layers.values():
        layer.train()
        layer.momentum = 1.0
    return skeleton if layers else None


def _keeping(module: nn.Module) -> dict[str, nn.Module]:
    """Return the BatchNorm layers that keep statistics, by name."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and layer.track_running_stats
    }


def _without_values(module: nn.Module) -> nn.Module:
    """Copy a module's structure, its tensors on meta, where they take no memory."""
    memo: dict[int, Tensor] = {}
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad)
    for b in module.buffers():
        memo[id(b)] = b.detach().to("meta")
    return copy.deepcopy(module, memo)
