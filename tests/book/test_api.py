"""The API page offers all that the merging package makes public, each thing in one place."""

from __future__ import annotations

import importlib
import pkgutil
import re

import pytest

from sokmerge import merge

BRANCHES = [m.name for m in pkgutil.iter_modules(merge.__path__) if m.ispkg]


@pytest.mark.parametrize("branch", BRANCHES)
def test_what_a_branch_makes_public_is_on_the_page_once(root, branch):
    page = (root / "book" / "api.md").read_text(encoding="utf-8")
    assert re.search(r"^\.\. automodule:: sokmerge\.merge\n   :members:\n", page, re.MULTILINE)
    told = re.search(rf"automodule:: sokmerge\.merge\.{branch}\n   :members: (.*)\n", page)
    listed = told[1].split(", ") if told else []
    public = importlib.import_module(f"sokmerge.merge.{branch}").__all__
    assert listed == [name for name in public if name not in merge.__all__]


def test_every_declared_method_is_offered_by_its_own_name():
    for declaration in merge.methods():
        assert getattr(merge, declaration.name) is declaration.function
        assert declaration.name in merge.__all__
