"""The built pages for those who read them in the dark, with a screen reader or by keyboard."""

from __future__ import annotations

import pytest

axe = pytest.importorskip("axe_playwright_python.sync_playwright")

pytestmark = pytest.mark.site


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
