"""Every declared method is explained in a chapter, cited there, and compared with the others."""

from __future__ import annotations

from pathlib import Path

from sokmerge import merge, studies
from sokmerge.reader import guards

ROOT = Path(__file__).resolve().parents[2]


def test_every_method_has_a_section_a_citation_and_a_row_of_the_bake_off() -> None:
    compared = set(studies.results("bake-off")["method"])
    assert guards.check_methods(ROOT, merge.methods(), compared) == []
