"""The built pages in a real browser: quiet, offline, in the dark, on a phone."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.site

PHONE = {"width": 390, "height": 844}


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
