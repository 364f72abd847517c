"""A sample of torchvision's models: `make symmetry` checks them all."""

from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "book" / "symmetries.md"

pytest.importorskip("torchvision")

from sokmerge.commands import symmetry as command  # noqa: E402

SAMPLE = ["squeezenet1_1", "resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5",
          "regnet_x_400mf", "googlenet", "efficientnet_b0"]  # fmt: skip


@pytest.mark.parametrize("name", SAMPLE)
def test_a_random_element_keeps_the_function_and_moves_nearly_all(name):
    row = command.examine(name)
    assert row.change <= 1e-9
    assert row.free > 0.9 * row.hidden > 0
    assert row.moved > 0.9
    assert not row.unknown
    told = command.page([row]).split("|---:|\n")[1].split("\n")[0].rsplit("|", 2)[0]
    assert told in PAGE.read_text(encoding="utf-8")  # all but the rounding of the change


def test_the_page_counts_what_the_rows_say():
    good = command.Row("a", 1_500_000, 100, 95, 3, 1.0, 1e-15, (), 1.0)
    poor = command.Row("b", 2_000_000, 1000, 400, 3, 0.5, 1e-3, (), 1.0)
    page = command.page([poor, good])
    assert "1 of 2 models change by less" in page
    assert "1 of 2 models have more than 90 %" in page
    assert "| a | 1.5 M | 100 | 95 % | 3 | 100 % | 1e-15 |\n| b | 2.0 M | 1,000 | 40 % |" in page


def test_the_page_holds_all_models_and_none_that_changed():
    told = PAGE.read_text(encoding="utf-8")
    count = len(command.models())
    assert f"{count} of {count} models change by less than" in told
    assert all(f"| {name} |" in told for name in command.models())


def test_all_eighty_are_there_and_each_can_be_asked_for():
    assert len(command.models()) >= 80
    assert len(set(command.models())) == len(command.models())
