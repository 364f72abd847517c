"""What the built site needs from elsewhere is copied into it, so that it works offline.

MathJax comes from the package `sphinx-mathjax-offline`. Of its 24 MB the pages use one script, which
holds every TeX package, and the fonts; only these are copied.
"""

from __future__ import annotations

import shutil
from importlib.metadata import distribution
from pathlib import Path, PurePosixPath

from sphinx.application import Sphinx

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


def one_address(app: Sphinx, config: object) -> None:
    """Open Graph takes the address of the site from `html.baseurl`."""
    config.ogp_site_url = config.html_baseurl


def setup(app: Sphinx) -> dict[str, object]:
    """Connect the two."""
    app.connect("config-inited", one_address)
    app.connect("build-finished", copy_mathjax)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
