"""What the built site needs beyond what the theme gives, so that it works offline and for all.

MathJax comes from the package `sphinx-mathjax-offline`. Of its 24 MB the pages use one script,
which holds every TeX package, and the fonts; only these are copied.
"""

from __future__ import annotations

import re
import shutil
from importlib.metadata import distribution
from pathlib import Path, PurePosixPath
from typing import Any

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

MATHJAX = PurePosixPath("sphinx-mathjax-offline/static/mathjax")
WANTED = ("tex-chtml-full.js", "output/chtml/fonts/woff-v2/*.woff")


def copy_mathjax(app: Sphinx, exception: Exception | None) -> None:
    """Copy the script and the fonts to `_static/mathjax` of the built site."""
    if exception is not None or app.builder.format != "html":
        return
    target = Path(app.outdir, "_static", "mathjax")
    for file in distribution("sphinx-mathjax-offline").files or ():
        path = PurePosixPath(file.as_posix())
        if MATHJAX in path.parents and any(path.match(f"{MATHJAX}/{name}") for name in WANTED):
            copy = target / path.relative_to(MATHJAX)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.locate(), copy)


def one_address(app: Sphinx, config: Config) -> None:
    """Let Open Graph take the address of the site from `html.baseurl`."""
    config.ogp_site_url = config.html_baseurl


def without_thebe(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    """Leave out the scripts of Thebe, which Jupyter Book adds, and adds twice.

    The book has no live cells on its pages; two declarations of one constant are an error, and
    the script would be fetched from elsewhere.
    """
    scripts = context.get("script_files", [])
    context["script_files"] = [s for s in scripts if "thebe" not in _source(s)]


def _source(script: Any) -> str:
    attributes = getattr(script, "attributes", {})
    return f"{getattr(script, 'filename', script)} {attributes.get('body', '')}".lower()


def repaired(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    """Mend what extensions write into the body and a screen reader stumbles over.

    The entries of the bibliography get the role that their list asks for, and the boxes of
    exercises, solutions and definitions lose an id that is the same in each of them.
    """
    body = context.get("body", "")
    if 'class="citation-list"' in body:
        body = body.replace('role="doc-biblioentry"', 'role="listitem"')
    context["body"] = re.sub(r'<section id="(\w+-content)">', r'<section class="\1">', body)


def plain_property(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Keep the first line of a property's docstring a sentence.

    Napoleon, which runs before, takes what stands before a colon in it for the type.
    """
    types = [line for line in lines if line.startswith(":type: ")]
    if what == "property" and types:
        lines.remove(types[0])
        first = next(number for number, line in enumerate(lines) if line.strip())
        lines[first] = f"{types[0].removeprefix(':type: ')}: {lines[first].strip()}"


def anywhere_in_the_library(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Element
) -> Element | None:
    """Find what a docstring names without its module, if the library has one thing of the name.

    A docstring is shown where its function is offered, not where it is defined; the neighbours
    that it names may be shown elsewhere.
    """
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.isidentifier():
        return None
    found = {
        name
        for name, entry in env.domains["py"].objects.items()
        if name.endswith(f".{target}") and not entry.aliased
    }
    if len(found) != 1:
        return None
    (name,) = found
    entry = env.domains["py"].objects[name]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, name)


def setup(app: Sphinx) -> dict[str, object]:
    """Connect the parts."""
    app.connect("config-inited", one_address)
    app.connect("autodoc-process-docstring", plain_property, priority=900)
    app.connect("missing-reference", anywhere_in_the_library)
    app.connect("html-page-context", without_thebe, priority=900)
    app.connect("html-page-context", repaired)
    app.connect("build-finished", copy_mathjax)
    return {"version": "2", "parallel_read_safe": True, "parallel_write_safe": True}
