"""Networks aligned back to themselves."""

from pathlib import Path

import pytest

pytest.importorskip("torchvision")

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
