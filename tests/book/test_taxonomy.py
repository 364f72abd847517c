"""The page of all methods in a browser: a map that fits, lists on a phone, tables that sort."""

from __future__ import annotations

import pytest

from sokmerge import merge

pytestmark = pytest.mark.site

PAGE = "book/taxonomy.html"
PHONE = {"width": 390, "height": 844}
NAMES = [declaration.name for declaration in merge.methods()]


def test_every_method_is_on_the_map_in_the_list_and_in_both_tables(site):
    page = site.pages[PAGE]
    assert sorted(text.text for text in page.select("svg .sm-map-name")) == sorted(NAMES)
    assert sorted(code.text for code in page.select(".sm-map-listing li code")) == sorted(NAMES)
    first, second = page.select("table.sm-sortable")
    for table in (first, second):
        rows = table.select("tbody tr")
        assert [row.select_one("td code").text for row in rows] == sorted(NAMES)


def test_every_method_has_its_formula_and_its_paper(site):
    first, second = site.pages[PAGE].select("table.sm-sortable")
    assert len(first.select("tbody td:nth-child(3) a.reference")) == len(NAMES)
    assert all(row.select("td:nth-child(2) .math") for row in second.select("tbody tr"))


def test_map_and_tables_link_the_same_sections(site):
    """That each link leads somewhere is seen with all other links of the site."""
    page = site.pages[PAGE]
    on_map = {a["href"] for a in page.select("svg a.sm-map-method")}
    in_list = {a["href"] for a in page.select(".sm-map-listing li a")}
    tables = page.select("table.sm-sortable")
    in_tables = [{a["href"] for a in table.select("td:first-child a")} for table in tables]
    assert on_map == in_list == in_tables[0] == in_tables[1]
    assert {a["aria-label"].split(":")[0] for a in page.select("svg a.sm-map-method")} <= set(NAMES)


# What leaves its box, or is smaller than can be read, in the drawing as it is shown.
MISFITS = """() => [...document.querySelectorAll('.sm-map-head, .sm-map-method')].flatMap(group => {
        const box = group.querySelector('rect').getBoundingClientRect();
        return [...group.querySelectorAll('text')].filter(text => {
            const at = text.getBoundingClientRect();
            return at.left < box.left || at.right > box.right || at.height < 11;
        }).map(text => text.textContent);
    })"""


@pytest.mark.parametrize("width", [1440, 1280, 1024])
def test_the_map_fits_and_can_be_read(watched, address, width):
    with watched(viewport={"width": width, "height": 900}) as seen:
        page = seen.open(address + PAGE)
        assert page.locator(".sm-map-drawing").is_visible()
        assert not page.locator(".sm-map-listing").is_visible()
        assert not page.evaluate(MISFITS)
        room = page.locator(".sm-map").bounding_box()
        drawn = page.locator(".sm-map-drawing").bounding_box()
        assert drawn["x"] >= room["x"] - 1
        assert drawn["x"] + drawn["width"] <= room["x"] + room["width"] + 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_link_of_the_map_shows_that_it_has_the_focus(watched, address, scheme):
    with watched(color_scheme=scheme, viewport={"width": 1280, "height": 900}) as seen:
        page = seen.open(address + PAGE)
        links = page.locator(".sm-map-drawing a")
        assert links.count(), "nothing on the map is linked"
        look = "getComputedStyle(document.activeElement.querySelector('rect'))"
        page.locator(".sm-map-legend").click()  # the keyboard goes on from here
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('.sm-map-drawing') !== null")
        assert page.evaluate(f"{look}.strokeWidth") == "3px"
        focused = page.evaluate(f"[{look}.stroke, {look}.fill]")
        assert focused[0] != focused[1]
        assert page.evaluate("document.activeElement.getAttribute('aria-label')")


def test_marks_and_words_stand_out(watched, address):
    """3 : 1 for marks and 4.5 : 1 for words, on the ground of their box."""
    ratios = """() => {
        const numbers = text => text.match(/[\\d.]+/g).map(Number);
        const light = c => numbers(c).slice(0, 3).map(v => v / 255)
            .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        return [...document.querySelectorAll('.sm-map-method :is(.sm-need, text)')].map(e => {
            const ground = e.closest('.sm-map-method').querySelector('rect');
            const [a, b] = [e, ground].map(x => light(getComputedStyle(x).fill));
            const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            return [ratio, e.tagName === 'text' ? 4.5 : 3, e.outerHTML];
        }).filter(([ratio, least]) => ratio < least);
    }"""
    for scheme in ("light", "dark"):
        with watched(color_scheme=scheme, viewport={"width": 1280, "height": 900}) as seen:
            assert not seen.open(address + PAGE).evaluate(ratios)


def test_on_a_phone_the_map_is_lists_that_unfold(watched, address):
    with watched(viewport=PHONE, is_mobile=True, has_touch=True) as seen:
        page = seen.open(address + PAGE)
        assert not page.locator(".sm-map-drawing").is_visible()
        summaries = page.locator(".sm-map-listing summary")
        assert summaries.count() >= 3
        for i in range(summaries.count()):
            summaries.nth(i).focus()
            page.keyboard.press("Enter")
        names = page.locator(".sm-map-listing li code").all()
        assert sum(name.is_visible() for name in names) == len(NAMES)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_on_a_phone_a_row_is_a_card(watched, address):
    with watched(viewport=PHONE, is_mobile=True, has_touch=True) as seen:
        page = seen.open(address + PAGE)
        cell = page.locator("table.sm-sortable tbody tr td:nth-child(2)").first
        assert cell.evaluate("e => getComputedStyle(e, '::before').content") == '"Branch"'
        wide = """() => [...document.querySelectorAll('table.sm-sortable, table.sm-sortable td')]
            .filter(e => e.getBoundingClientRect().right > innerWidth).length"""
        assert page.evaluate(wide) == 0
        button = page.locator("table.sm-sortable th button").first
        assert button.is_visible()


def test_without_scripts_the_tables_are_plain(watched, address):
    with watched(java_script_enabled=False) as seen:
        seen.page.goto(address + PAGE)
        assert seen.page.locator("table.sm-sortable tbody tr").count() == 2 * len(NAMES)
        assert seen.page.locator("table.sm-sortable button").count() == 0


def test_a_heading_sorts_the_table_and_says_so(watched, address):
    with watched(viewport={"width": 1280, "height": 900}) as seen:
        page = seen.open(address + PAGE)
        table = page.locator("table.sm-sortable").first
        cells = table.locator("tbody td:nth-child(5)")
        written = cells.all_inner_texts()
        head = table.locator("th", has_text="Scope")
        assert head.get_attribute("aria-sort") == "none"
        head.locator("button").focus()
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"
        assert cells.all_inner_texts() == sorted(written)
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        assert cells.all_inner_texts() == sorted(written, reverse=True)
        other = table.locator("th", has_text="Method")
        other.locator("button").click()
        assert head.get_attribute("aria-sort") == "none"
        assert table.locator("tbody td:first-child").all_inner_texts() == sorted(NAMES)
        # Formulas have no order.
        equation = page.locator("table.sm-sortable").nth(1).locator("th", has_text="Equation")
        assert equation.locator("button").count() == 0
        seen.assert_quiet()


NUMBERS = """<table class="sm-sortable">
<thead><tr><th>Method</th><th>Error</th><th>Cost</th></tr></thead>
<tbody><tr><th>a</th><td>10.5 ± 1</td><td data-sort="3">three</td></tr>
<tr><th>b</th><td>9</td><td data-sort="20">twenty</td></tr>
<tr><th>c</th><td>–</td><td data-sort="1">one</td></tr>
<tr><th>d</th><td>−2e-1</td><td data-sort="">?</td></tr>
<tr><th>e</th><td>9</td><td data-sort="7">seven</td></tr></tbody></table>"""


def test_numbers_are_sorted_as_numbers_and_what_is_empty_comes_last(browser, root):
    page = browser.new_page()
    page.set_content(NUMBERS)
    page.add_script_tag(path=root / "book" / "_static" / "sortable.js")

    def order(head):
        page.locator("th button", has_text=head).click()
        return "".join(page.locator("tbody th").all_inner_texts())

    assert order("Error") == "dbeac"
    assert order("Error") == "abedc"
    assert order("Cost") == "caebd"
    assert order("Cost") == "beacd"
    assert order("Method") == "abcde"
    page.close()
