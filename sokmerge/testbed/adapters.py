r"""Adapters: ways to train less than a whole network, from a start.

:class:`LowRank` trains a product of two thin matrices beside each weight (LoRA, Hu et al. 2021,
arXiv:2106.09685). :class:`Tangent` trains the first-order model of the network around its start
(Ortiz-Jimenez, Favero and Frossard 2023, arXiv:2305.12827).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from sokmerge.errors import ArgumentError

__all__ = ["Adapter", "LowRank", "Tangent"]


@dataclass(frozen=True)
class LowRank:
    r"""Train :math:`W = W_0 + BA` with :math:`A` of shape (rank, in) and :math:`B` (out, rank).

    :math:`B` starts at zero, so that training starts at the start; biases and :math:`W_0` stay.
    The adapted network has the parameters ``<layer>.down`` (A) and ``<layer>.up`` (B).

    >>> net = LowRank(rank=2).adapt(nn.Sequential(nn.Linear(4, 3)), seed=0)
    >>> {name: tuple(p.shape) for name, p in net.named_parameters()}
    {'0.down': (2, 4), '0.up': (3, 2)}
    """

    rank: int = 4

    def adapt(self, module: nn.Module, seed: int) -> nn.Module:
        """Return a copy of a module whose linear layers have factors in place of parameters."""
        adapted = copy.deepcopy(module)
        generator = torch.Generator().manual_seed(seed)
        linear = [name for name, part in adapted.named_modules() if isinstance(part, nn.Linear)]
        for name in linear:
            parent, _, last = name.rpartition(".")
            layer = _LowRankLinear(adapted.get_submodule(name), self.rank, generator)
            setattr(adapted.get_submodule(parent), last, layer)
        if left := [n for n, _ in adapted.named_parameters() if not n.endswith((".down", ".up"))]:
            raise ArgumentError(
                "module", found=f"a parameter {left[0]!r}", expected="linear layers alone"
            )
        return adapted

    def state(self, adapted: nn.Module) -> dict[str, Tensor]:
        """Return what is saved of an adapted network: its factors."""
        return adapted.state_dict()


@dataclass(frozen=True)
class Tangent:
    r"""Train :math:`f(x;\theta_0) + J_\theta f(x;\theta_0)\,(\theta-\theta_0)` over :math:`\theta`.

    >>> net = nn.Linear(2, 1)
    >>> x, linear = torch.ones(3, 2), Tangent().adapt(net, seed=0)
    >>> torch.allclose(linear(x), net(x))
    True
    """

    def adapt(self, module: nn.Module, seed: int) -> nn.Module:
        """Return the first-order model around a module's parameters, itself at the module."""
        return _FirstOrder(module)

    def state(self, adapted: nn.Module) -> dict[str, Tensor]:
        """Return what is saved of an adapted network: parameters with the module's own names."""
        return adapted.network.state_dict()


Adapter = LowRank | Tangent


class _LowRankLinear(nn.Module):
    def __init__(self, linear: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("weight", linear.weight.detach(), persistent=False)
        self.register_buffer("bias", linear.bias.detach(), persistent=False)
        drawn = torch.randn(rank, linear.in_features, generator=generator)
        self.down = nn.Parameter(drawn / math.sqrt(linear.in_features))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight + self.up @ self.down).T + self.bias


class _FirstOrder(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(module)
        # A plain dictionary: the start is neither trained nor saved.
        self.start = {name: p.detach().clone() for name, p in module.named_parameters()}

    def forward(self, x: Tensor) -> Tensor:
        start = {name: tensor.to(x.device) for name, tensor in self.start.items()}
        step = {name: p - start[name] for name, p in self.network.named_parameters()}
        value, change = jvp(lambda at: functional_call(self.network, at, (x,)), (start,), (step,))
        return value + change
