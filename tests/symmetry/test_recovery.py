"""Networks aligned back to themselves, and groups against specifications written by hand."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")

from sokmerge import symmetry  # noqa: E402
from sokmerge.commands import recovery  # noqa: E402

PAGE = Path(__file__).parents[2] / "book" / "recovery.md"


@pytest.mark.parametrize(
    "name", ["ResNet-20", "ViT, four layers, 64 wide, four heads",
             "Swin, two stages, 32 and 64 wide"],
)  # fmt: skip
def test_a_transformed_and_disturbed_copy_is_aligned_back(name):
    row = recovery.recover(name)
    assert row.moved > 0.9
    assert row.by_weights == row.by_activations == 1
    (line,) = [line for line in recovery.page([row]).splitlines() if line.startswith(f"| {name}")]
    assert line in PAGE.read_text(encoding="utf-8")


def test_the_page_holds_all_networks_and_all_come_back_by_their_weights():
    rows = [line.split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines()]
    found = {row[0].removeprefix("| "): row[5] for row in rows if len(row) == 7}
    assert {name: found[name] for name in recovery.NETWORKS} == dict.fromkeys(
        recovery.NETWORKS, "100 %"
    )


def _resnet20_by_hand():
    """The specification that Ainsworth et al. (2022) write for ResNet-20 with BatchNorm.

    A block for the stream of each stage, and one inside each residual block; for each the weights
    with the axis along which they lie.
    """

    def norm(name, block):
        return {(f"{name}.{kind}", 0): block
                for kind in ("weight", "bias", "running_mean", "running_var")}  # fmt: skip

    found = {("conv1.weight", 0): "stream1", **norm("bn1", "stream1"),
             ("linear.weight", 1): "stream3"}  # fmt: skip
    for stage in (1, 2, 3):
        for number in range(3):
            here, inner = f"layer{stage}.{number}", f"inner{stage}.{number}"
            before = f"stream{stage - (stage > 1 and number == 0)}"
            after = f"stream{stage}"
            found |= {(f"{here}.conv1.weight", 1): before, (f"{here}.conv1.weight", 0): inner,
                      (f"{here}.conv2.weight", 1): inner, (f"{here}.conv2.weight", 0): after}
            found |= norm(f"{here}.bn1", inner) | norm(f"{here}.bn2", after)
            if before != after:
                found |= {(f"{here}.shortcut.0.weight", 1): before,
                          (f"{here}.shortcut.0.weight", 0): after,
                          **norm(f"{here}.shortcut.1", after)}  # fmt: skip
    return found


def test_the_derived_group_of_resnet20_is_the_one_written_by_hand():
    group = symmetry.of(recovery.ResNet20(4).eval(), torch.zeros(1, 3, 8, 8))
    derived = {(axis.parameter, axis.dim): b.name for b in group.blocks for axis in b.axes}
    by_hand = _resnet20_by_hand()
    assert derived.keys() == by_hand.keys()
    assert len(set(zip(derived.values(), (by_hand[k] for k in derived), strict=True))) == 12
    assert len(set(derived.values())) == len(set(by_hand.values())) == 12
    assert all(axis.places is None for block in group.blocks for axis in block.axes)
