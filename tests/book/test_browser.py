"""The built pages in a real browser: quiet, offline, in the dark, on a phone, by keyboard."""

from __future__ import annotations

import functools
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)

pytestmark = [
    pytest.mark.site,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]

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
PHONE = {"width": 390, "height": 844}


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Keep the log of the test clean."""


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    """The site, served on this machine only."""
    handler = functools.partial(_Quiet, directory=str(site.html))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield instance
        instance.close()


@dataclass
class Watched:
    """A page, and what went wrong on it."""

    page: sync_api.Page
    elsewhere: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def open(self, url: str) -> sync_api.Page:
        """Open a page and wait until its formulas are set."""
        self.page.goto(url)
        self.page.wait_for_load_state("load")
        self.page.evaluate("() => window.MathJax?.startup?.promise")
        return self.page

    def assert_quiet(self) -> None:
        assert not self.errors
        assert not self.missing
        assert not self.elsewhere, "the page asked for something from elsewhere"


@pytest.fixture
def watched(browser, address):
    """Make pages on which every request to elsewhere is refused and noted."""

    @contextmanager
    def make(**options: object) -> Iterator[Watched]:
        context = browser.new_context(**options)
        page = context.new_page()
        page.set_default_timeout(20_000)
        seen = Watched(page)

        def guard(route: sync_api.Route) -> None:
            url = route.request.url
            if url.startswith((address, "data:", "blob:")):
                route.continue_()
            else:
                seen.elsewhere.append(url)
                route.abort()

        context.route("**/*", guard)
        page.on("console", lambda m: seen.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.on(
            "response", lambda r: seen.missing.append(r.url) if r.status >= 400 else None
        )
        try:
            yield seen
        finally:
            context.close()

    return make


def test_a_page_opens_without_an_error_or_a_request_to_elsewhere(watched, address, document):
    with watched() as seen:
        page = seen.open(f"{address}{document}.html")
        # Pictures below the fold are fetched when they are scrolled to.
        page.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
        page.wait_for_function("[...document.images].every(i => i.complete)")
        empty = "[...document.images].filter(i => !i.naturalWidth).map(i => i.src)"
        assert not page.evaluate(empty)
        seen.assert_quiet()


def test_formulas_are_set_from_the_site_itself(watched, address, document):
    with watched() as seen:
        page = seen.open(f"{address}{document}.html")
        formulas = page.locator("article .math").count()
        assert page.locator("article .math mjx-container").count() >= formulas
        assert page.locator("mjx-merror, [data-mjx-error]").count() == 0
        if formulas:
            # Fonts that did not arrive would leave the formula in a text face.
            page.evaluate("document.fonts.ready")
            assert page.evaluate("document.fonts.check('16px MJXTEX-I') || document.fonts.size > 0")
        seen.assert_quiet()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(watched, address, document, scheme):
    with watched(color_scheme=scheme, reduced_motion="reduce") as seen:
        page = seen.open(f"{address}{document}.html")
        found = axe.Axe().run(page).response["violations"]
        grave = [
            f"{item['id']} ({item['impact']}): {node['html'][:200]} {node['failureSummary'][:300]}"
            for item in found
            if item["impact"] in ("serious", "critical")
            for node in item["nodes"]
        ]
        assert not grave, "\n".join(grave)


def test_a_phone_does_not_scroll_sideways(watched, address, document):
    with watched(viewport=PHONE, is_mobile=True, has_touch=True) as seen:
        page = seen.open(f"{address}{document}.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        wide = """() => [...document.querySelectorAll('article *')].filter(e => {
            const box = e.getBoundingClientRect();
            if (box.right <= innerWidth + 1 || !box.width) return false;
            for (let p = e.parentElement; p; p = p.parentElement)
                if (['auto', 'scroll', 'hidden', 'clip'].includes(getComputedStyle(p).overflowX)
                    && p.tagName !== 'HTML' && p.tagName !== 'BODY') return false;
            return true;
        }).slice(0, 5).map(e => e.outerHTML.slice(0, 120))"""
        assert not page.evaluate(wide)


def test_the_contents_open_on_a_phone(watched, address, site):
    with watched(viewport=PHONE, is_mobile=True, has_touch=True) as seen:
        page = seen.open(f"{address}{site.documents[0]}.html")
        contents = page.locator("nav.bd-links").first
        assert not contents.is_visible()
        page.locator("button.primary-toggle").first.click()
        contents.wait_for(state="visible")
        with page.expect_navigation():
            contents.get_by_role("link", name="Glossary").click()
        assert "Glossary" in page.title()
        seen.assert_quiet()


@pytest.mark.parametrize("word", ["barrier", "permutation"])
def test_search_finds_a_word_of_the_book(watched, address, site, word):
    with watched() as seen:
        page = seen.open(f"{address}{site.documents[0]}.html")
        page.keyboard.press("Control+k")
        field = page.locator("#pst-search-dialog input[type=search]")
        field.wait_for(state="visible")
        field.fill(word)
        with page.expect_navigation():
            field.press("Enter")
        results = page.locator("#search-results li a")
        results.first.wait_for()
        targets = {link.get_attribute("href") for link in results.all()}
        assert any("glossary.html" in str(target) for target in targets)
        notebooks = [name for name in site.documents if name.startswith("notebooks/")]
        if notebooks:
            assert any(name in str(target) for name in notebooks for target in targets)
        seen.assert_quiet()


def test_the_theme_switch_gives_a_dark_page(watched, address, site):
    with watched(color_scheme="light") as seen:
        page = seen.open(f"{address}{site.documents[0]}.html")
        theme = "document.documentElement.dataset.theme"
        ground = "getComputedStyle(document.body).backgroundColor"
        assert page.evaluate(theme) == "light"
        before = page.evaluate(ground)
        switch = page.locator(".theme-switch-button:visible").first
        for _ in range(3):  # auto, light, dark in turn
            switch.click()
            if page.evaluate(theme) == "dark":
                break
        assert page.evaluate(theme) == "dark"
        assert page.evaluate(ground) != before
        # The choice stays on the next page.
        page = seen.open(f"{address}book/glossary.html")
        assert page.evaluate(theme) == "dark"
        seen.assert_quiet()


CONTRAST = """() => {
    const numbers = text => text.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
        .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = element => {
        for (let e = element; e; e = e.parentElement) {
            const c = numbers(getComputedStyle(e).backgroundColor);
            if (c.length === 3 || c[3] > 0.5) return c;
        }
        return [255, 255, 255];
    };
    const ratio = element => {
        const [a, b] = [light(numbers(getComputedStyle(element).color)), light(ground(element))];
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    };
    return [...document.querySelectorAll('article :is(p, li, td, th, dt, dd, h1, h2, figcaption)')]
        .filter(e => e.offsetParent && e.textContent.trim())
        .map(e => [ratio(e), e.outerHTML.slice(0, 120)])
        .filter(([value]) => value < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(watched, address, document, scheme):
    with watched(color_scheme=scheme) as seen:
        page = seen.open(f"{address}{document}.html")
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        assert not page.evaluate(CONTRAST)


def test_figures_lie_on_white_in_the_dark(watched, address, document):
    with watched(color_scheme="dark") as seen:
        page = seen.open(f"{address}{document}.html")
        looks = page.evaluate(
            """() => [...document.querySelectorAll('article img')].map(i => {
                const style = getComputedStyle(i);
                return [style.backgroundColor, style.filter];
            })"""
        )
        assert all(look == ["rgb(255, 255, 255)", "none"] for look in looks), looks


def test_the_keyboard_suffices(watched, address, site):
    with watched() as seen:
        page = seen.open(f"{address}{site.documents[0]}.html")
        page.keyboard.press("Tab")
        focused = "document.activeElement.textContent.trim()"
        assert page.evaluate(focused).startswith("Skip to main content")
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('main, #main-content') !== null")
        # Everything that takes focus afterwards shows it.
        shown = """() => {
            const e = document.activeElement, s = getComputedStyle(e);
            return e.tagName === 'BODY' || s.outlineStyle !== 'none' || s.boxShadow !== 'none';
        }"""
        for _ in range(12):
            page.keyboard.press("Tab")
            assert page.evaluate(shown), page.evaluate("document.activeElement.outerHTML")
        page.keyboard.press("Control+k")
        field = page.locator("#pst-search-dialog input[type=search]")
        field.wait_for(state="visible")
        page.keyboard.press("Escape")
        field.wait_for(state="hidden")
        seen.assert_quiet()


def test_solutions_open_with_the_keyboard(watched, address, document):
    with watched() as seen:
        page = seen.open(f"{address}{document}.html")
        for solution in page.locator("article .solution.dropdown").all():
            button = solution.locator("button.toggle-button")
            content = solution.locator(".solution-content")
            assert not content.is_visible()
            button.focus()
            page.keyboard.press("Enter")
            content.wait_for(state="visible")
        seen.assert_quiet()
