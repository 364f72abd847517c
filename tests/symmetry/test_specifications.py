"""The derived groups against permutations written down by hand, layer by layer.

A specification says of each dimension of each parameter which permutation it goes with, as
Ainsworth et al. (2022, arXiv:2209.04836) do for their MLP, VGG and ResNet-20; a dash stays. The
networks are those that `sokmerge symmetry recovery` aligns back.
"""

from __future__ import annotations

import functools
from collections import defaultdict

import pytest
import torch

pytest.importorskip("torchvision")

from sokmerge import symmetry  # noqa: E402
from sokmerge.commands.recovery import NETWORKS, ResNet20, filled  # noqa: E402
from sokmerge.merge import weight_matching  # noqa: E402
from sokmerge.symmetry import Axis, Block, PermutationGroup  # noqa: E402

STAYS = "-"


def _linear(name, made, read):
    return {f"{name}.weight": (made, read), f"{name}.bias": (made,)}


def _convolution(name, made, read):
    return {f"{name}.weight": (made, read, STAYS, STAYS)}


def _norm(name, units):
    kinds = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{kind}": (units,) for kind in kinds}


def _mlp():
    """Three hidden layers: each permutes the rows of one layer and the columns of the next."""
    units = [STAYS, "first", "second", "third", STAYS]
    names = ("1", "3", "5", "7")
    spec = {}
    for name, read, made in zip(names, units[:-1], units[1:], strict=True):
        spec |= _linear(name, made, read)
    return spec


def _vgg():
    """A chain too; a norm goes with the convolution before it."""
    spec, read = {}, STAYS
    for place in (0, 4, 8, 11, 15, 18, 22, 25):  # of the convolutions of VGG-11 with BatchNorm
        made = f"convolution {place}"
        spec |= _convolution(f"features.{place}", made, read)
        spec |= {f"features.{place}.bias": (made,)}
        spec |= _norm(f"features.{place + 1}", made)
        read = made
    for place, made in ((0, "hidden 1"), (2, "hidden 2"), (4, STAYS)):
        spec |= _linear(f"classifier.{place}", made, read)
        read = made
    return spec


def _resnet20():
    """A stage has one order of its own, since each block adds to what the one before made.

    Only where a stage begins, a shortcut of its own reads one order and makes the next. The units
    between the two convolutions of a block are free.
    """
    spec = _convolution("conv1", "stage 1", STAYS) | _norm("bn1", "stage 1")
    before = "stage 1"
    for stage in (1, 2, 3):
        after = f"stage {stage}"
        for block in (0, 1, 2):
            name, inner = f"layer{stage}.{block}", f"within {stage}.{block}"
            spec |= _convolution(f"{name}.conv1", inner, before) | _norm(f"{name}.bn1", inner)
            spec |= _convolution(f"{name}.conv2", after, inner) | _norm(f"{name}.bn2", after)
            if before != after:
                spec |= _convolution(f"{name}.shortcut.0", after, before)
                spec |= _norm(f"{name}.shortcut.1", after)
            before = after
    return spec | _linear("linear", STAYS, before)


SPECIFICATIONS = {
    "MLP": (NETWORKS["MLP, three hidden layers of 512"], _mlp),
    "VGG-11": (NETWORKS["VGG-11 with BatchNorm, a quarter as wide"], _vgg),
    "ResNet-20": (lambda: (ResNet20(width=4), (1, 3, 32, 32)), _resnet20),
}


@functools.cache
def _derived(name):
    """The network and its derived group."""
    with torch.device("meta" if name == "VGG-11" else "cpu"):  # without values, as it is large
        module, shape = SPECIFICATIONS[name][0]()
    return module, symmetry.of(module, torch.zeros(1, *shape[1:]))


def _classes(spec):
    """The axes that go with each permutation."""
    found = defaultdict(set)
    for name, units in spec.items():
        for dim, which in enumerate(units):
            if which != STAYS:
                found[which].add((name, dim))
    return {frozenset(axes) for axes in found.values()}


def _group(spec, state):
    """The group that a specification describes."""
    axes = defaultdict(list)
    for name, units in spec.items():
        for dim, which in enumerate(units):
            if which != STAYS:
                axes[which].append(Axis(name, dim, buffer="running" in name))
    return PermutationGroup(
        tuple(
            Block(which, state[along[0].parameter].shape[along[0].dim], tuple(along))
            for which, along in axes.items()
        )
    )


@pytest.mark.parametrize("name", SPECIFICATIONS)
def test_the_derived_group_is_the_one_written_down(name):
    (module, derived), spec = _derived(name), SPECIFICATIONS[name][1]()
    state = module.state_dict()
    assert {n for n, t in state.items() if t.is_floating_point()} == set(spec)
    found = {frozenset((x.parameter, x.dim) for x in b.axes) for b in derived.blocks}
    assert found == _classes(spec)
    assert all(x.repeat == 1 and x.places is None for b in derived.blocks for x in b.axes)
    sizes = {block.size for block in derived.blocks}
    assert sizes == {block.size for block in _group(spec, state).blocks}


def test_so_the_same_matching_follows():
    module, derived = _derived("ResNet-20")
    module = filled(module, "specification")
    state = {name: t.detach() for name, t in module.state_dict().items()}
    other = {name: t.flip(0) if t.dim() else t for name, t in state.items()}
    written = _group(_resnet20(), state)
    by_axis = {frozenset((x.parameter, x.dim) for x in b.axes): b for b in derived.blocks}
    planted = written.sample(seed=1)
    ends = {
        "planted": written.act(planted, state),
        "another network": other,
    }
    for end in ends.values():
        # Both start with the identity; the blocks take turns in the order in which they stand.
        same = PermutationGroup(tuple(
            by_axis[frozenset((x.parameter, x.dim) for x in block.axes)]
            for block in written.blocks
        ))  # fmt: skip
        by_hand, found = (weight_matching(state, end, group) for group in (written, same))
        assert by_hand.similarity == pytest.approx(found.similarity, rel=1e-12)
        for one, two in zip(written.blocks, same.blocks, strict=True):
            assert torch.equal(by_hand.permutation[one.name], found.permutation[two.name])
    back = weight_matching(state, ends["planted"], written).permutation
    home = written.invert(planted)
    assert all(torch.equal(back[block.name], home[block.name]) for block in written.blocks)
