"""The site, built once for all tests that look at it, and a browser to look at it with."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from bs4 import BeautifulSoup
from filelock import FileLock

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

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


# The browser's own traffic (updates, sync) would look like traffic of the page.
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Keep the log of the test clean."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A page that is left while it loads hangs up on the server; that is no fault of it."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    """The site, served on this machine only."""
    handler = functools.partial(_Quiet, directory=str(site.html))
    with _Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's chromium; where there is none, the tests that need it say so and are skipped."""
    driver = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    with driver.sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield instance
        instance.close()


@dataclass
class Watched:
    """A page, and what went wrong on it."""

    page: Page
    elsewhere: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def open(self, url: str) -> Page:
        """Open a page and wait until its formulas are set."""
        self.page.goto(url)
        self.page.wait_for_load_state("load")
        self.page.evaluate("() => window.MathJax?.startup?.promise")
        return self.page

    def assert_quiet(self) -> None:
        """Fail if the page reported an error or asked for what is not there or not here."""
        assert not self.errors
        assert not self.missing
        assert not self.elsewhere, "the page asked for something from elsewhere"


@pytest.fixture
def watched(browser: Browser, address: str) -> Callable[..., AbstractContextManager[Watched]]:
    """Make pages on which every request to elsewhere is refused and noted."""

    @contextmanager
    def make(**options: object) -> Iterator[Watched]:
        context = browser.new_context(**options)
        page = context.new_page()
        page.set_default_timeout(20_000)
        seen = Watched(page)

        def guard(route: Route) -> None:
            url = route.request.url
            if url.startswith((address, "data:", "blob:")):
                route.continue_()
            else:
                seen.elsewhere.append(url)
                route.abort()

        context.route("**/*", guard)
        page.on("console", lambda m: seen.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.on("response", lambda r: seen.missing.append(r.url) if r.status >= 400 else None)
        try:
            yield seen
        finally:
            context.close()

    return make
