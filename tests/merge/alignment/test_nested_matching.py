"""Units within units, and units that meet themselves: against brute force, and against plants."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from sokmerge import params, symmetry
from sokmerge.errors import ArgumentError
from sokmerge.merge import activation_matching, weight_matching
from sokmerge.merge.alignment import matching
from sokmerge.merge.alignment.matching import assign, assign_nested, nested
from sokmerge.merge.alignment.similarities import Similarities
from sokmerge.symmetry import Axis, Block, PermutationGroup

seeds = st.integers(0, 2**31)


def _normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Attending(nn.Module):
    """A stream with attention and an MLP, as in a transformer; heads, channels, hidden units."""

    def __init__(self, module: str) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        if module == "library":
            self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        else:
            self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.norm = nn.LayerNorm(8)
        self.up, self.down, self.head = nn.Linear(8, 10), nn.Linear(10, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.embed(x)
        if hasattr(self, "attend"):
            x = x + self.attend(x, x, x, need_weights=False)[0]
        else:
            b, n, _ = x.shape
            q, k, v = (p(x).view(b, n, 2, 4).transpose(1, 2) for p in (self.q, self.k, self.v))
            made = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            x = x + self.o(made.transpose(1, 2).reshape(b, n, 8))
        return self.head(x + self.down(torch.nn.functional.gelu(self.up(self.norm(x)))))


def _network(module="library", seed=0):
    net = Attending(module).double().eval()
    point = {
        name: _normal(*p.shape, seed=seed + i) / (p[0].numel() ** 0.5 if p.dim() > 1 else 2)
        for i, (name, p) in enumerate(net.named_parameters())
    }
    x = _normal(16, 5, 3, seed=seed + 1000)
    return net, point, x, symmetry.of(net, x)


def _noisy(point, share, seed):
    return {
        name: t + share * t.std(correction=0) * _normal(*t.shape, seed=seed + i)
        for i, (name, t) in enumerate(point.items())
    }


def _same(p, q):
    return p.keys() == q.keys() and all(torch.equal(p[k], q[k]) for k in p)


# --- the assignment ---------------------------------------------------------------------------


def _all_of(group):
    """Every element of a small group with blocks in blocks."""

    def extended(chosen, blocks):
        if not blocks:
            yield chosen
            return
        block, *rest = blocks
        if block.within is None:
            options = map(torch.tensor, itertools.permutations(range(block.size)))
        else:
            wholes = chosen[block.within].tolist()
            each = block.size // len(wholes)
            inside = list(itertools.permutations(range(each)))
            options = (
                torch.tensor([w * each + i for w, o in zip(wholes, orders, strict=True) for i in o])
                for orders in itertools.product(inside, repeat=len(wholes))
            )
        for order in options:
            yield from extended({**chosen, block.name: order}, rest)

    yield from extended({}, list(group.blocks))


TREES = {
    "one child": (("h", 3, None), ("c", 6, "h")),
    "two children": (("h", 2, None), ("c", 4, "h"), ("d", 6, "h")),
    "three levels": (("h", 2, None), ("c", 4, "h"), ("d", 8, "c")),
}


@pytest.mark.parametrize("tree", TREES)
@given(seed=seeds)
@settings(max_examples=5)
def test_the_nested_assignment_is_the_best_of_all(tree, seed):
    blocks = tuple(Block(name, size, (), within=within) for name, size, within in TREES[tree])
    group = PermutationGroup(blocks)
    scores = {b.name: _normal(b.size, b.size, seed=seed + i) for i, b in enumerate(blocks)}

    def value(element):
        return sum(float(s.gather(1, element[n][:, None]).sum()) for n, s in scores.items())

    ((_, together),) = nested(group).items()
    found = assign_nested(together, scores)
    group._require_element(found)
    assert value(found) == pytest.approx(max(map(value, _all_of(group))), rel=1e-12)


def test_many_units_are_left_to_lapx_and_a_few_are_not(monkeypatch):
    """Where it is installed; a stand-in shows which of the two was asked, and how."""
    asked = []

    class Stand:
        @staticmethod
        def lapjv(cost):
            asked.append(cost.shape)
            found = matching.linear_sum_assignment(cost)[1]
            return 0.0, found, found.argsort()

    monkeypatch.setitem(__import__("sys").modules, "lap", Stand)
    monkeypatch.setattr(matching, "_has_lapx", lambda: True)
    monkeypatch.setattr(matching, "_LARGE", 5)
    similarity = _normal(5, 5, seed=0)
    large = assign(similarity)
    assert asked == [(5, 5)]
    assign(similarity[:4, :4])
    assert len(asked) == 1
    monkeypatch.setattr(matching, "_has_lapx", lambda: False)
    assert torch.equal(assign(similarity), large) and len(asked) == 1


# --- networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["library", "by hand"])
def test_heads_channels_stream_and_hidden_units_are_aligned_back(module):
    net, a, _, group = _network(module)
    assert {b.within is None for b in group.blocks} == {True, False}
    planted = group.sample(3)
    b = group.act(planted, _noisy(a, 0.01, seed=50))
    found = weight_matching(a, b, group)
    assert _same(found.permutation, group.invert(planted))
    assert found.similarity == pytest.approx(
        float(params.inner(a, group.act(found.permutation, b))), rel=1e-12
    )


@pytest.mark.parametrize("similarity", ["inner product", "correlation"])
@pytest.mark.parametrize("module", ["library", "by hand"])
def test_what_no_layer_reads_is_matched_by_its_weights(module, similarity):
    """In the library's attention no submodule reads the values; by hand only q and k are unread."""
    net, a, x, group = _network(module)
    unread = [block.name for block in group.blocks if block.site is None]
    assert 0 < len(unread) < len(group.blocks)
    planted = group.sample(4)
    b = group.act(planted, _noisy(a, 0.01, seed=50))
    found = activation_matching(net, a, b, group, x, similarity=similarity)
    assert _same(found.permutation, group.invert(planted))


def test_what_was_settled_by_activations_is_not_undone_by_weights():
    """Heads that are observed keep their order, whatever the weights of their queries say."""
    net, a, x, group = _network("by hand")
    observed = {block.name for block in group.blocks if block.site is not None}
    (values,) = (b for b in group.blocks if b.within and b.site is not None)
    swapped = dict(a)
    for name in ("q", "k"):  # queries and keys of the heads exchanged, values left alone
        for kind in ("weight", "bias"):
            swapped[f"{name}.{kind}"] = a[f"{name}.{kind}"].roll(4, 0)
    by_weights = weight_matching(a, swapped, group)
    found = activation_matching(net, a, swapped, group, x)
    assert values.name in observed
    scores = found.permutation[values.within]
    assert torch.equal(found.permutation[values.name] // 4, scores.repeat_interleave(4))
    group._require_element(found.permutation)
    group._require_element(by_weights.permutation)


def test_a_layer_that_reads_what_it_makes_is_aligned_back():
    """A recurrent layer: the objective is quadratic in its permutation."""

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.r, self.h = nn.RNN(3, 7), nn.Linear(7, 2)

        def forward(self, x):
            return self.h(self.r(x)[0])

    net = Recurrent().double().eval()
    group = symmetry.of(net, torch.zeros(4, 2, 3, dtype=torch.float64))
    a = {n: _normal(*p.shape, seed=i) for i, (n, p) in enumerate(net.named_parameters())}
    planted = group.sample(1)
    found = weight_matching(a, group.act(planted, a), group)
    assert _same(found.permutation, group.invert(planted))
    assert found.similarity == pytest.approx(float(params.inner(a, a)), rel=1e-12)


@given(seed=seeds)
@settings(max_examples=10)
def test_where_units_meet_themselves_no_step_goes_down(seed):
    group = PermutationGroup((Block("r", 4, (Axis("w", 0), Axis("w", 1))),))
    a, b = ({"w": _normal(4, 4, seed=seed + i)} for i in range(2))
    found = weight_matching(a, b, group)
    start = float(params.inner(a, b))
    best = max(float(params.inner(a, group.act(e, b))) for e in _all_of(group))
    assert start - 1e-9 <= found.similarity <= best + 1e-9


# --- what has changed is what is multiplied -----------------------------------------------------


@given(seed=seeds)
@settings(max_examples=10)
def test_an_updated_similarity_is_the_one_computed_anew(seed):
    net = nn.Sequential(
        nn.Conv2d(1, 9, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 12), nn.Linear(12, 2)
    )
    group = symmetry.chain(net, ["0", "3", "4"])
    a, b = (params.normal_like(params.of(net), seed=seed + i) for i in range(2))
    kept = Similarities(a, b, group)
    permutation = group.sample(seed)
    for step in range(4):
        name = group.blocks[step % 2].name
        order = permutation[name].clone()
        order[[0, 1]] = order[[1, 0]]
        permutation = {**permutation, name: order}
        for block in group.blocks:
            torch.testing.assert_close(
                kept.of(block, permutation), Similarities(a, b, group).of(block, permutation)
            )


def test_of_several_orders_the_best_is_kept_whatever_runs_at_a_time():
    net = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))
    group = symmetry.chain(net, ["0", "1", "2", "3"])
    a, b = (params.normal_like(params.of(net), seed=i) for i in (0, 1))
    each = [weight_matching(a, b, group, seed=s) for s in range(2, 6)]
    assert len({m.similarity for m in each}) > 1
    for jobs in (1, 3):
        best = weight_matching(a, b, group, seed=2, orders=4, jobs=jobs)
        assert best.similarity == max(m.similarity for m in each)
    for wrong in ({"orders": 0}, {"jobs": 0}):
        with pytest.raises(ArgumentError, match="expected at least one"):
            weight_matching(a, b, group, **wrong)
