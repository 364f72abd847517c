"""The page of the benchmarks: each file of this folder writes a section of its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sokmerge.files import write_atomically


@pytest.fixture(scope="module")
def write_section(root: Path) -> Callable[[str, str], None]:
    """Put a text in the place of the section of that name, and leave the others as they are."""
    page = root / "book" / "benchmarks.md"

    def write(name: str, text: str) -> None:
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        section = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        before = page.read_text(encoding="utf-8")
        after, found = section.subn(lambda _: f"{begin}\n{text.strip()}\n{end}", before)
        assert found == 1, f"{page} has {found} sections called {name}"
        write_atomically(page, after)

    return write
