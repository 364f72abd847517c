"""The site, built once for all tests that look at it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml
from bs4 import BeautifulSoup
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Site:
    """The built site.

    Attributes:
        html: its folder.
        log: what the build printed.
        config: `_config.yml`.
        documents: names of the sources in the order of the contents, without suffix.
    """

    html: Path
    log: str
    config: dict[str, Any]
    documents: tuple[str, ...]

    @cached_property
    def pages(self) -> dict[str, BeautifulSoup]:
        """Every page of the book, by its path."""
        paths = [f"{document}.html" for document in self.documents]
        return {
            path: BeautifulSoup((self.html / path).read_text(encoding="utf-8"), "html.parser")
            for path in paths
        }


def documents() -> tuple[str, ...]:
    """Return what `_toc.yml` lists, in its order."""
    found: list[str] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            found.extend(node[key] for key in ("root", "file") if key in node)
            for key in ("parts", "chapters", "sections"):
                walk(node.get(key, []))
        elif isinstance(node, list):
            for item in node:
                walk(item)

    walk(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8")))
    return tuple(found)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that asks for `document` each page of the contents in turn."""
    if "document" in metafunc.fixturenames:
        metafunc.parametrize("document", documents())


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Site:
    """Build the site from scratch, once for all workers, with warnings counted as errors."""
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "site"
    shared.mkdir(exist_ok=True)
    log = shared / "build.log"
    with FileLock(shared / "lock"):
        if not log.exists():
            log.write_text(_build(shared), encoding="utf-8")
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    return Site(shared / "_build" / "html", log.read_text(encoding="utf-8"), config, documents())


def _build(target: Path) -> str:
    """Build into a folder and return what was printed; a test reads it for warnings."""
    build = ["jupyter-book", "build", str(ROOT), "--path-output", str(target)]
    told = ""
    for command in (["sokmerge", "pages"], [*build, "-W", "-n", "--keep-going"]):
        done = subprocess.run(
            [str(Path(sys.executable).with_name(command[0])), *command[1:]],
            cwd=ROOT,
            env={**os.environ, "NO_COLOR": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        told += done.stdout
        if done.returncode:
            told += f"ERROR: {command[0]} ended with {done.returncode}\n"
    return told
