"""The language and vision models of transformers, small and with random weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install -e '.[transformers]'"
)

from transformers.models.llama.modeling_llama import LlamaRMSNorm  # noqa: E402

from sokmerge import params, symmetry  # noqa: E402
from sokmerge.merge import weight_matching  # noqa: E402

KINDS = ("rescaling", "flips", "mixing")
TOKENS = torch.arange(10).view(2, 5) % 7


class Logits(nn.Module):
    """A model of transformers as a function of one tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):
        options = {} if x.is_floating_point() else {"use_cache": False}
        if isinstance(self.model, transformers.BertForMaskedLM):
            options = {}
        return self.model(x, **options).logits


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=12, n_layer=2, n_head=3, n_inner=16
    )
    return transformers.GPT2LMHeadModel(config), TOKENS, (3, 3)


def bert():
    config = transformers.BertConfig(
        vocab_size=11, hidden_size=12, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=16, max_position_embeddings=8,
    )  # fmt: skip
    return transformers.BertForMaskedLM(config), TOKENS, (3, 3)


def vit():
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=12, num_hidden_layers=2,
        num_attention_heads=3, intermediate_size=16, num_labels=4,
    )  # fmt: skip
    inputs = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    return transformers.ViTForImageClassification(config), inputs, (3, 3)


def llama(shared=4):
    config = transformers.LlamaConfig(
        vocab_size=11, hidden_size=12, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=shared, intermediate_size=16, max_position_embeddings=8, head_dim=4,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config), TOKENS, (4, 4)


def grouped_llama():
    """Heads that share keys and values stay, until blocks can lie in one another side by side."""
    model, inputs, _ = llama(shared=2)
    return model, inputs, ()


BUILDERS = {f.__name__: f for f in (gpt2, bert, vit, llama, grouped_llama)}


def _normalised(self, x):
    return F.rms_norm(x, x.shape[-1:], self.weight, self.variance_epsilon)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_function_stays_and_a_copy_is_aligned_back(
    name, randomise, change, monkeypatch
):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, inputs, heads = BUILDERS[name]()
    module = randomise(Logits(model))
    group = symmetry.of(module, inputs)
    assert not group.unknown
    # Llama normalises in single precision whatever it is given: its digits would be lost.
    monkeypatch.setattr(LlamaRMSNorm, "forward", _normalised)
    assert group.free > (0.6 if name == "grouped_llama" else 0.9) * group.hidden > 0
    wholes = [b for b in group.blocks if any(c.within == b.name for c in group.blocks)]
    assert tuple(block.size for block in wholes) == heads
    state = module.state_dict()
    for seed in range(2):
        moved = group.act(group.sample(seed), state)
        assert change(module, state, moved, (inputs,)) < 1e-9
    for kind in KINDS:
        other = getattr(group, kind)
        moved = other.act(other.sample(0), state)
        assert change(module, state, moved, (inputs,)) < 1e-9, kind
    assert group.flips.units > 0 and (group.mixing.units > 0 or name == "grouped_llama")
    theta = params.of(module)
    planted = group.sample(2)
    found = weight_matching(theta, group.act(planted, theta), group, orders=5)
    back = group.act(found.permutation, group.act(planted, theta))
    assert all(torch.equal(back[key], theta[key]) for key in theta)
