"""The architectures: shapes, names, seeds, and what leaves their function unchanged."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sokmerge.errors import ArgumentError
from sokmerge.testbed import device, models

ARCHITECTURES = [
    models.MLP(width=8, depth=2),
    models.PlainCNN(channels=(4, 6)),
    models.ResidualCNN(norm="batch", channels=(4, 6)),
    models.ResidualCNN(norm="layer", channels=(4, 4, 6)),
    models.TinyViT(patch=7, width=8, depth=2, heads=2),
]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_module_is_built_ready(arch):
    before = torch.get_rng_state()
    module = models.build(arch, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert not module.training
    assert module(torch.randn(3, 1, 28, 28)).shape == (3, 10)
    assert all(p.isfinite().all() and p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_seed_decides_the_weights(arch):
    flat = [torch.cat([p.flatten() for p in models.build(arch, s).parameters()]) for s in (1, 1, 2)]
    assert torch.equal(flat[0], flat[1]) and not torch.equal(flat[0], flat[2])


@given(width=st.integers(1, 64))
def test_weights_start_within_pytorch_bounds(width):
    module = models.build(models.MLP(width=width))
    assert module.hidden[1].weight.abs().max() <= width**-0.5
    assert module.hidden[0].bias.abs().max() <= 784**-0.5


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_memory_format_does_not_change_the_function(arch):
    module, x = models.build(arch), torch.randn(4, 1, 28, 28)
    expected = module(x)
    module = module.to(memory_format=torch.channels_last)
    torch.testing.assert_close(module(x.contiguous(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("images", [16, 40])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_memory_format_does_not_change_the_gradients(arch, images):
    x = torch.randn(images, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    found = []
    for form, kind in ((torch.channels_last, x.dtype), (torch.contiguous_format, torch.float64)):
        module = models.build(arch).train().to(kind, memory_format=form)
        module(x.to(kind).contiguous(memory_format=form)).square().mean().backward()
        found.append([parameter.grad for parameter in module.parameters()])
    most = max(double.norm() for double in found[1])
    for single, double in zip(*found, strict=True):
        # Not entry by entry: a ReLU near zero may be on in one precision and off in the other. What
        # no output depends on, as on a bias of keys, has a gradient that is but rounding.
        assert (single - double).norm() < 2e-3 * double.norm() + 1e-6 * most


def test_the_chain_names_layers_in_order():
    for arch in ARCHITECTURES[:2]:
        layers = dict(models.build(arch).named_modules())
        widths = [layers[name].weight.shape for name in models.chain(arch)]
        assert all(a[0] == b[1] for a, b in zip(widths, widths[1:], strict=False))
    with pytest.raises(ArgumentError, match="^arch: found ResidualCNN"):
        models.chain(models.ResidualCNN())


def test_a_vision_transformer_agrees_with_the_encoder_of_torch():
    net = models.build(models.TinyViT(patch=7, width=8, depth=1, heads=2), seed=3)
    plain = nn.TransformerEncoderLayer(
        8, 2, 16, activation="gelu", norm_first=True, batch_first=True, dropout=0.0
    )
    own = net.layer[0]
    three = (own.query, own.key, own.value)
    plain.load_state_dict({
        "self_attn.in_proj_weight": torch.cat([part.weight for part in three]),
        "self_attn.in_proj_bias": torch.cat([part.bias for part in three]),
        **{f"{to}.{kind}": getattr(part, kind) for to, part in {
            "self_attn.out_proj": own.out, "linear1": own.up, "linear2": own.down,
            "norm1": own.norm[0], "norm2": own.norm[1],
        }.items() for kind in ("weight", "bias")},
    })  # fmt: skip
    tokens = torch.randn(3, 16, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(own(tokens), plain.eval()(tokens))


def test_a_vision_transformer_sees_which_patch_is_where():
    arch = models.TinyViT(patch=7, width=8, depth=1, heads=2)
    net, x = models.build(arch), torch.randn(2, 1, 28, 28)
    moved = x.roll(7, dims=-1)
    assert (net(x) - net(moved)).abs().max() > 1e-6
    with torch.no_grad():
        net.place.zero_()  # without it the mean of the tokens does not
    torch.testing.assert_close(net(x), net(moved))


def test_channel_layer_norm_commutes_with_permutations():
    norm = models.ChannelLayerNorm(6)
    permutation = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 6, 5, 5)
    torch.testing.assert_close(norm(x[:, permutation]), norm(x)[:, permutation])
    torch.testing.assert_close(norm(x).mean(dim=1), torch.zeros(2, 5, 5), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "arch",
    [
        "MLP",
        models.MLP(width=0),
        models.PlainCNN(channels=()),
        models.ResidualCNN(norm="group"),
        models.TinyViT(patch=5),
        models.TinyViT(width=8, heads=3),
    ],
)
def test_no_such_architecture(arch):
    with pytest.raises(ArgumentError, match="found .* expected"):
        models.build(arch)


def test_the_environment_decides_the_device(monkeypatch):
    monkeypatch.setenv("SOKMERGE_DEVICE", "cpu")
    assert device() == torch.device("cpu")
    monkeypatch.setenv("SOKMERGE_DEVICE", "abacus")
    with pytest.raises(ArgumentError, match="^SOKMERGE_DEVICE: found 'abacus'"):
        device()
