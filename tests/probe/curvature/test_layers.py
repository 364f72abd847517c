"""First and second derivatives of the layers against differences and against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.nn import functional as F

from sokmerge.probe.curvature.layers import Layers

CONVOLUTIONS = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1},
    "sides": {"stride": (1, 2), "padding": (0, 1), "dilation": (2, 1)},
    "groups": {"groups": 2, "padding": [1]},
    "words": {"padding": "same"},
}


def _tensors(groups=1):
    torch.manual_seed(0)
    shapes = (2, 4, 5, 5), (6, 4 // groups, 3, 3), (6,)
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("arguments", [2, 3], ids=["without a bias", "with a bias"])
def test_a_convolution_is_the_same_twice_differentiable_function(options, arguments):
    inputs = _tensors(options.get("groups", 1))[:arguments]

    def ours(*tensors):
        with Layers(second=True):
            return F.conv2d(*tensors, **options)

    torch.testing.assert_close(ours(*inputs), F.conv2d(*inputs, **options))
    assert gradcheck(ours, inputs, fast_mode=True)
    assert gradgradcheck(ours, inputs, fast_mode=True)


@pytest.mark.parametrize("call", [F.relu, torch.relu, torch.Tensor.relu, nn.ReLU()])
def test_a_relu_is_the_same_twice_differentiable_function(call):
    x = torch.randn(7, dtype=torch.float64, requires_grad=True)

    def ours(x):
        with Layers(second=True):
            return call(x)

    assert torch.equal(ours(x), F.relu(x))
    assert type(ours(x).grad_fn).__name__ == "_ReluBackward"
    assert gradcheck(ours, x) and gradgradcheck(ours, x)
    at_zero = torch.zeros(3, requires_grad=True)
    assert torch.equal(*(grad(f(at_zero).sum(), at_zero)[0] for f in (ours, F.relu)))


def test_only_what_fits_is_replaced():
    x, weight, bias = _tensors()
    with Layers(second=True):
        kept = {
            "a keyword": F.conv2d(input=x, weight=weight).grad_fn,
            "one image": F.conv2d(x[0], weight).grad_fn,
            "padding in words": F.conv2d(x, weight, padding="same").grad_fn,
            "in place": F.relu(x.clone(), inplace=True).grad_fn,
            "another layer": F.gelu(x).grad_fn,
        }
    ours = {name for name, function in kept.items() if type(function).__name__[0] == "_"}
    assert ours == {"a keyword"}


def test_without_second_derivatives_it_is_linear_in_what_comes_from_behind():
    x, weight, bias = _tensors()
    with Layers(second=False):
        y = F.conv2d(F.relu(x), weight, bias, padding=1)
    w = torch.randn_like(y, requires_grad=True)
    by_weight, by_bias = grad(y, [weight, bias], w, create_graph=True)
    tangents = torch.randn_like(weight), torch.randn_like(bias)
    (moved,) = grad([by_weight, by_bias], w, tangents, retain_graph=True)
    expected = F.conv2d(F.relu(x), tangents[0], tangents[1], padding=1)
    torch.testing.assert_close(moved, expected)
    assert grad(by_weight.sum(), weight, allow_unused=True) == (None,)
