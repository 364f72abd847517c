"""What a process has read is noted under a name that is the same on every machine."""

from __future__ import annotations

import pytest

from sokmerge import inputs


@pytest.fixture(autouse=True)
def _nothing_read_yet(monkeypatch):
    monkeypatch.setattr(inputs, "_recorded", {})


def test_names_are_relative_to_the_package_or_bare(tmp_path):
    inputs.record(inputs.PACKAGE / "testbed" / ".." / "testbed" / "x.npz", "1")
    inputs.record(tmp_path / "mine.safetensors", "2")
    assert inputs.recorded() == {"mine.safetensors": "2", "testbed/x.npz": "1"}
    assert list(inputs.recorded()) == sorted(inputs.recorded())


def test_the_list_is_a_copy_and_the_last_reading_counts(tmp_path):
    inputs.record(tmp_path / "a", "old")
    inputs.recorded().clear()
    inputs.record(tmp_path / "a", "new")
    assert inputs.recorded() == {"a": "new"}
