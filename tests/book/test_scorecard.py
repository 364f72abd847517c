"""The pages of parts with a scorecard: every claim in its place, no verdict but the card's."""

from __future__ import annotations

import posixpath

import pytest

from sokmerge.reader import listing, scorecard
from sokmerge.reader.chapters import chapters

pytestmark = pytest.mark.site

PART = pytest.mark.parametrize("part", scorecard.PARTS, ids=lambda part: part.name, scope="module")
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def page(part):
    """The address of the page of a part."""
    return f"book/{part.name}.html"


@pytest.fixture(scope="module")
def claims(root, part):
    """The claims of the chapters of a part, by id, in the order of its groups."""
    found = {made.name: made for made in chapters(root)}
    return {c["id"]: c for c in listing.claims(found[n] for n in part.chapters if n in found)}


@PART
def test_every_claim_of_a_part_has_a_row(site, page, claims):
    rows = site.pages[page].select("table.sm-scorecard tbody tr")
    ids = [row.select_one("a:has(.sm-verdict)")["href"].split("#claim-")[1] for row in rows]
    assert ids == list(claims)
    for row, claim in zip(rows, claims.values(), strict=True):
        cells = row.select("td")
        assert cells[0].text.startswith(claim["statement"][:20])
        assert all(test["measured"] in cells[2].text for test in claim["tests"])
        assert cells[3].text.strip().endswith(claim["verdict"])
        figure = cells[-1].select_one("a")
        assert bool(figure) == bool(claim.get("figure"))
        if figure:
            assert figure["href"].endswith(f"#fig-{claim['figure']}")


@PART
def test_the_counts_are_those_of_the_rows(site, page, claims):
    table = site.pages[page].select_one("table.sm-counts")
    last = [cell.text.strip() for cell in table.select("tbody tr")[-1].select("td")]
    verdicts = [claim["verdict"] for claim in claims.values()]
    words = ("supported", "not supported", "inconclusive at this scale")
    assert last == ["All", *map(str, [len(claims), *map(verdicts.count, words)])]


def test_each_link_to_a_claim_says_what_its_card_says(site):
    """In the table and in the text, on every page."""
    seen = 0
    for path, page in site.pages.items():
        for link in page.select("a:has(.sm-verdict)"):
            target, anchor = link["href"].split("#")
            if target:  # a link within a page names none
                target = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
            card = site.pages[target or path].select_one(f"#{anchor}")
            said = " ".join(link.select_one(".sm-verdict").text.split()[1:])
            assert f"Claim {said}" in " ".join(card.text.split()), f"{path}: {link['href']}"
            assert link["title"] in card.text
            seen += 1
    assert seen > 50


@PART
def test_on_a_phone_a_claim_is_a_card(watched, address, page):
    with watched(viewport=PHONE, is_mobile=True, has_touch=True) as seen:
        page = seen.open(address + page)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        cell = page.locator("table.sm-scorecard tbody td:nth-child(4)").first
        assert cell.evaluate("e => getComputedStyle(e, '::before').content") == '"Verdict"'
        wide = """() => [...document.querySelectorAll('table.sm-counts, table.sm-scorecard td')]
            .filter(e => e.getBoundingClientRect().right > innerWidth).length"""
        assert page.evaluate(wide) == 0


@PART
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_verdict_stands_out_from_its_ground(watched, address, page, scheme):
    grounds = """() => [...new Set([...document.querySelectorAll('.sm-verdict')].map(e => {
        const look = getComputedStyle(e);
        return look.color + ' on ' + look.backgroundColor;
    }))]"""
    with watched(color_scheme=scheme) as seen:
        looks = seen.open(address + page).evaluate(grounds)
        assert looks and all(look.startswith("rgb(255, 255, 255) on rgb(") for look in looks)
        assert "rgba(0, 0, 0, 0)" not in " ".join(looks)


@PART
def test_a_heading_sorts_the_scorecard(watched, address, page):
    with watched(viewport={"width": 1280, "height": 900}) as seen:
        page = seen.open(address + page)
        table = page.locator("table.sm-scorecard").first
        head = table.locator("th", has_text="Verdict")
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "ascending"
        words = table.locator("tbody td:nth-child(4)").all_inner_texts()
        assert len(words) > 2
        order = [words.index(word) for word in words]
        assert order == sorted(order), "equal verdicts stand together"
        seen.assert_quiet()
