"""The fast way of max pooling gives the very numbers of the ordinary one, or is not taken."""

from __future__ import annotations

import copy

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from sokmerge.probe.pooling import _TilingMaxPool2d, quicken

sizes = st.integers(1, 4)


def _quick(layer):
    holder = nn.Sequential(copy.deepcopy(layer))
    quicken(holder)
    return holder[0]


@given(
    high=sizes, wide=sizes, rows=st.integers(4, 11), columns=st.integers(4, 11),
    channels=st.integers(1, 5), last=st.booleans(), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_values_are_the_same_bit_for_bit(high, wide, rows, columns, channels, last, seed):
    x = torch.randn(3, channels, rows, columns, generator=torch.Generator().manual_seed(seed))
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    layer = nn.MaxPool2d((high, wide))
    quick = _quick(layer)
    assert type(quick) is _TilingMaxPool2d
    with torch.inference_mode():
        assert torch.equal(quick(x), layer(x))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_passed_on(value):
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 1, 2] = value
    with torch.inference_mode():
        torch.testing.assert_close(
            _quick(nn.MaxPool2d(2))(x), nn.MaxPool2d(2)(x), equal_nan=True, rtol=0, atol=0
        )


@pytest.mark.parametrize(
    "layer",
    [nn.MaxPool2d(3, stride=2), nn.MaxPool2d(2, padding=1), nn.MaxPool2d(2, dilation=2),
     nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(2, return_indices=True),
     nn.MaxPool1d(2), nn.AvgPool2d(2), type("Mine", (nn.MaxPool2d,), {})(2)],
    ids=repr,
)  # fmt: skip
def test_other_layers_are_left_alone(layer):
    assert type(_quick(layer)) is type(layer)


def test_gradients_and_single_images_take_the_ordinary_way():
    quick, x = _quick(nn.MaxPool2d(2)), torch.zeros(1, 1, 2, 2, requires_grad=True)
    quick(x).sum().backward()
    assert x.grad.sum() == 1 and x.grad.max() == 1  # one of equal maxima, as in PyTorch
    with torch.inference_mode():
        assert quick(torch.ones(1, 4, 4)).shape == (1, 2, 2)
        with pytest.raises(RuntimeError, match="too small"):
            quick(torch.ones(1, 1, 1, 4))
