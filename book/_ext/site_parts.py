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

from sphinx.application import Sphinx
from sphinx.config import Config

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


def setup(app: Sphinx) -> dict[str, object]:
    """Connect the parts."""
    app.connect("config-inited", one_address)
    app.connect("html-page-context", without_thebe, priority=900)
    app.connect("html-page-context", repaired)
    app.connect("build-finished", copy_mathjax)
    return {"version": "2", "parallel_read_safe": True, "parallel_write_safe": True}
