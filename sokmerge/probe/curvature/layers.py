r"""Convolution and ReLU with second derivatives that cost no more than they must.

Going back twice through PyTorch's own convolution computes the derivative by the input of the
first layer, which nobody asked for, and takes slow kernels for two of the three others; through
its ReLU it makes and adds tensors of zeros. Here each second derivative of a convolution is again
a convolution or one of its two transposes, as the function is linear in each of its arguments.
Measured on a processor with a small CNN: two thirds of the time for a product with the Hessian.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["Layers"]

_RELU = (F.relu, torch.relu, Tensor.relu)


class Layers(TorchFunctionMode):
    """While it is active, convolutions and ReLUs are those of this module, wherever they fit.

    Args:
        second: whether derivatives of the gradient are wanted by all that it depends on. If not,
            only by the gradient that comes from behind, in which it is linear.
    """

    def __init__(self, second: bool) -> None:
        super().__init__()
        self.second = second

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.conv2d and (given := _plain_convolution(*args, **kwargs)):
            return _Convolution.apply(*given, self.second)
        if function in _RELU and not kwargs.get("inplace") and len(args) == 1:
            return _Relu.apply(args[0])
        return function(*args, **kwargs)


_Options = tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]


def _plain_convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, _Options] | None:
    """Return the arguments of a convolution of a batch with padding in numbers, else None."""
    if isinstance(padding, str) or input.dim() != 4:
        return None
    pairs = (_pair(stride), _pair(padding), _pair(dilation))
    return input, weight, bias, (*pairs, groups)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))


def _back(
    g: Tensor, x: Tensor, weight: Tensor, options: _Options, mask: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the derivatives of a convolution by its input, its weight and its bias."""
    stride, padding, dilation, groups = options
    return torch.ops.aten.convolution_backward(
        g, x, weight, [weight.shape[0]], stride, padding, dilation, False, [0, 0], groups, mask
    )


class _Convolution(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, options, second):
        ctx.save_for_backward(x, weight)
        ctx.options, ctx.second = options, second
        return torch.conv2d(x, weight, bias, *options)

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        mask = tuple(ctx.needs_input_grad[:3])
        if not torch.is_grad_enabled():
            return (*_back(g, x, weight, ctx.options, mask), None, None)
        if not ctx.second:
            x, weight = x.detach(), weight.detach()
        return (*_Backward.apply(g, x, weight, ctx.options, mask), None, None)


class _Backward(Function):
    """The derivatives of a convolution, as a function of g, x and the weight."""

    @staticmethod
    def forward(ctx, g, x, weight, options, mask):
        ctx.save_for_backward(g, x, weight)
        ctx.set_materialize_grads(False)
        ctx.options = options
        return _back(g, x, weight, options, mask)

    @staticmethod
    def backward(ctx, along_x, along_weight, along_bias):
        g, x, weight = ctx.saved_tensors
        by_g, by_x, by_weight = None, None, None
        if ctx.needs_input_grad[0]:
            terms = []
            if along_x is not None:
                terms.append(torch.conv2d(along_x, weight, None, *ctx.options))
            if along_weight is not None:
                terms.append(torch.conv2d(x, along_weight, along_bias, *ctx.options))
            elif along_bias is not None:
                terms.append(along_bias[:, None, None].expand_as(g))
            by_g = sum(terms[1:], terms[0]) if terms else None
        if ctx.needs_input_grad[1] and along_weight is not None:
            by_x, _, _ = _back(g, x, along_weight, ctx.options, (True, False, False))
        if ctx.needs_input_grad[2] and along_x is not None:
            _, by_weight, _ = _back(g, along_x, weight, ctx.options, (False, True, False))
        return by_g, by_x, by_weight, None, None


class _Relu(Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.relu(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return torch.ops.aten.threshold_backward(g, y, 0)
        return _Gate.apply(g, y.detach())


class _Gate(Function):
    """What of a gradient goes back through a ReLU; it is constant in the input of the ReLU."""

    @staticmethod
    def forward(ctx, g, y):
        ctx.save_for_backward(y)
        return torch.ops.aten.threshold_backward(g, y, 0)

    @staticmethod
    def backward(ctx, along):
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(along, y, 0), None
