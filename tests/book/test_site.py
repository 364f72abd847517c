"""The built pages on disk: complete, linked, described, and in need of nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from bs4 import BeautifulSoup, Tag

pytestmark = pytest.mark.site

SUFFIXES = ("svg", "pdf", "png", "csv", "json")


def figures(root: Path) -> list[str]:
    return sorted(path.parent.name for path in root.glob("book/public/figures/*/*.json"))


def test_the_build_has_no_warning(site):
    bad = [line for line in site.log.splitlines() if re.search(r"WARNING|ERROR", line)]
    assert not bad, "\n".join(bad)


def test_every_document_of_the_contents_is_a_page(site):
    missing = [name for name in site.documents if not (site.html / f"{name}.html").is_file()]
    assert not missing
    assert (site.html / "index.html").is_file()


def test_a_page_has_a_language_a_title_one_heading_and_a_description(site):
    described = {}
    for path, page in site.pages.items():
        assert page.html["lang"] == "en", path
        assert page.title and site.config["title"] in page.title.text, path
        assert len(page.select("article h1")) == 1, path
        assert page.select_one('meta[name="viewport"]'), path
        (description,) = page.select('meta[name="description"]')
        assert len(description["content"]) >= 40, f"{path}: {description}"
        described.setdefault(description["content"], []).append(path)
        assert page.select_one('meta[property="og:title"]')["content"], path
        address = page.select_one('meta[property="og:url"]')["content"]
        assert address == site.config["html"]["baseurl"] + path
    assert all(len(paths) == 1 for paths in described.values()), described


def test_headings_do_not_skip_a_level(site):
    for path, page in site.pages.items():
        levels = [int(tag.name[1]) for tag in page.select("article :is(h1, h2, h3, h4, h5, h6)")]
        steps = list(zip(levels, levels[1:], strict=False))
        assert all(after <= before + 1 for before, after in steps), f"{path}: {levels}"


def test_an_id_occurs_once_on_a_page(site):
    for path, page in site.pages.items():
        ids = [tag["id"] for tag in page.select("[id]") if not tag.find_parent("svg")]
        twice = {name for name in ids if ids.count(name) > 1}
        # The theme draws its search field and its theme switch for the header and for the sidebar.
        assert not {name for name in twice if not name.startswith(("pst-", "search-"))}, path


def test_nothing_is_left_unrendered(site):
    for path, page in site.pages.items():
        assert not page.select(".problematic, .system-message"), path
        words = " ".join(
            text
            for text in page.select_one("article").find_all(string=True)
            if not text.find_parent(["pre", "code", "script"])
        )
        assert not re.search(r"<Figure size|\{(numref|ref|cite|term|glue|eq|doc)[:}]|\?\?", words)


def test_launch_buttons_point_to_the_notebook(site, root):
    repository = site.config["repository"]
    owner_and_name = urlsplit(repository["url"]).path.strip("/")
    branch = repository["branch"]
    notebooks = [name for name in site.documents if (root / f"{name}.ipynb").is_file()]
    assert notebooks, "the contents list no notebook"
    for name in notebooks:
        links = {
            a["href"] for a in site.pages[f"{name}.html"].select(".article-header-buttons a[href]")
        }
        blob = f"{owner_and_name}/blob/{branch}/{name}.ipynb"
        lab = f"{owner_and_name}/{branch}?urlpath=lab/tree/{name}.ipynb"
        assert f"https://colab.research.google.com/github/{blob}" in links, f"{name}: {links}"
        assert f"https://mybinder.org/v2/gh/{lab}" in links, f"{name}: {links}"
        tracked = subprocess.run(
            ["git", "ls-files", "--error-unmatch", f"{name}.ipynb"], cwd=root, capture_output=True
        )
        if (root / ".git").exists():
            assert tracked.returncode == 0, f"{name}.ipynb is linked, but not in the repository"


def test_every_picture_says_what_it_shows(site):
    for path, page in site.pages.items():
        for image in page.select("img"):
            alt = image.get("alt")
            assert alt, f"{path}: {image.get('src')} has no alternative text"
            assert not re.search(r"\.(png|svg|jpe?g)$|_images/|^Figure$", alt), f"{path}: {alt}"
        for image in page.select("article figure img"):
            assert len(image["alt"]) >= 30, f"{path}: {image['alt']}"


def test_every_figure_has_a_number_a_caption_and_its_own_address(site, root):
    anchors = {
        figure["id"]: (path, figure)
        for path, page in site.pages.items()
        for figure in page.select("article figure[id]")
    }
    for name in figures(root):
        assert f"fig-{name}" in anchors, f"no page shows the figure {name}"
        path, figure = anchors[f"fig-{name}"]
        caption = figure.select_one("figcaption")
        assert caption.select_one(".caption-number"), f"{path}: {name} has no number"
        assert len(caption.select_one(".caption-text").text) >= 20, f"{path}: {name}"


def test_the_files_of_every_figure_have_their_stable_addresses(site, root):
    for name in figures(root):
        for suffix in SUFFIXES:
            file = site.html / "figures" / name / f"{name}.{suffix}"
            assert file.is_file() and file.stat().st_size, f"figures/{name}/{name}.{suffix}"


def _links(page: BeautifulSoup) -> list[str]:
    return [tag["href"] for tag in page.select("a[href]")]


def test_every_internal_link_and_anchor_resolves(site):
    ids: dict[Path, set[str]] = {}

    def anchors(file: Path) -> set[str]:
        if file not in ids:
            page = BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser")
            named = {tag[key] for key in ("id", "name") for tag in page.select(f"[{key}]")}
            ids[file] = named
        return ids[file]

    broken = []
    for path, page in site.pages.items():
        for link in _links(page):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = unquote(urlsplit(urljoin(f"/{path}", link)).path)
            file = site.html / target.lstrip("/")
            if file.is_dir():
                file = file / "index.html"
            if not file.is_file():
                broken.append(f"{path} -> {link}")
            elif parts.fragment and file.suffix == ".html":
                if unquote(parts.fragment) not in anchors(file):
                    broken.append(f"{path} -> {link}")
    assert not broken


def test_links_to_elsewhere_are_encrypted(site):
    plain = {
        (path, link)
        for path, page in site.pages.items()
        for link in _links(page)
        if link.startswith("http://")
    }
    assert not plain


def _assets(page: BeautifulSoup) -> list[str]:
    """Addresses that a browser fetches when it opens the page."""
    fetched = [tag["src"] for tag in page.select("[src]")]
    fetched += [
        tag["href"]
        for tag in page.select("link[href]")
        if not set(tag["rel"]) & {"canonical", "next", "prev", "index", "search", "author"}
    ]
    for tag in page.select("[srcset]"):
        fetched += [part.split()[0] for part in tag["srcset"].split(",")]
    fetched += [tag["data"] for tag in page.select("object[data]")]
    return fetched


def test_no_page_fetches_anything_from_elsewhere(site):
    for path, page in site.pages.items():
        for address in _assets(page):
            parts = urlsplit(address)
            if parts.scheme == "data":
                continue
            assert not parts.scheme and not parts.netloc, f"{path}: {address}"
            file = site.html / unquote(urlsplit(urljoin(f"/{path}", address)).path).lstrip("/")
            assert file.is_file(), f"{path}: {address} is not there"
        for style in page.select("style"):
            assert not _remote(style.text), path


def test_no_style_sheet_fetches_anything_from_elsewhere(site):
    for file in site.html.rglob("*.css"):
        assert not _remote(file.read_text(encoding="utf-8")), file


def _remote(css: str) -> list[str]:
    return re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)'\"]+", css)


@pytest.mark.parametrize(
    "css",
    [
        '@import "https://fonts.example/face.css";',
        "p { background: url(//cdn.example/a.png) }",
        "@font-face { src: url('https://cdn.example/a.woff2') }",
    ],
)
def test_the_look_for_what_is_fetched_has_teeth(css):
    assert _remote(css)
    page = BeautifulSoup('<script src="https://cdn.example/a.js"></script>', "html.parser")
    assert _assets(page) == ["https://cdn.example/a.js"]
    assert not _remote("p { background: url(a.png) } q { src: url('../f.woff2') }")


def test_mathjax_comes_with_the_site(site):
    scripts = [
        tag["src"]
        for page in site.pages.values()
        for tag in page.select("script[src*=mathjax], script[src*=MathJax]")
    ]
    assert scripts, "no page has a formula"
    assert all(re.search(r"_static/mathjax/tex-chtml-full\.js", source) for source in scripts)
    fonts = list((site.html / "_static" / "mathjax").rglob("*.woff"))
    assert len(fonts) >= 20


def test_no_path_of_this_machine_is_published(site, root):
    home = str(Path.home())
    private = {str(root), *({home} if len(home) > 5 else ())}
    pattern = re.compile("|".join(map(re.escape, sorted(private))) + r"|/(?:tmp|home|root)/\w")
    texts = [*site.html.rglob("*.html"), *site.html.rglob("searchindex.js")]
    texts += [*site.html.glob("figures/*/*.json"), *site.html.glob("figures/*/*.svg")]
    for file in texts:
        found = pattern.search(file.read_text(encoding="utf-8"))
        assert not found, f"{file.relative_to(site.html)}: {found and found[0]}"


def test_search_knows_a_word_of_every_document(site):
    index = (site.html / "searchindex.js").read_text(encoding="utf-8")
    for name in site.documents:
        assert f'"{name}"' in index, name


def test_the_address_of_the_repository_stands_in_one_place(site, root):
    """Other files read it from `_config.yml`; notebooks, which cannot, repeat it exactly."""
    url = site.config["repository"]["url"]
    found = subprocess.run(
        [
            "git",
            "grep",
            "--untracked",
            "-IoE",
            r"https://github\.com/[A-Za-z0-9_-]+/sokmerge[A-Za-z0-9_./-]*",
        ],
        cwd=root,
        capture_output=True,
        text=True,
    )
    if found.returncode > 1:
        pytest.skip("not a git checkout")
    for line in found.stdout.splitlines():
        file, _, address = line.partition(":")
        if file != "_config.yml":
            assert file.endswith(".ipynb"), line
        assert re.split(r"\.git\b|/blob/|/archive/", address)[0].rstrip("/") == url, line


def test_every_page_is_reached_from_the_first(site):
    first = site.pages[f"{site.documents[0]}.html"]
    sidebar: Tag = first.select_one("nav.bd-links")
    reached = {
        unquote(urlsplit(urljoin(f"/{site.documents[0]}.html", a["href"])).path).lstrip("/")
        for a in sidebar.select("a[href]")
        if a["href"] != "#"
    }
    reached.add(f"{site.documents[0]}.html")
    assert reached >= {f"{name}.html" for name in site.documents}
