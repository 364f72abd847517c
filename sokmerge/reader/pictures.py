"""A drawing as svg, pdf and png: the same bytes for the same content, provenance inside.

The provenance is a JSON text. It stands in the ``dc:description`` of an SVG, the ``Keywords`` of
a PDF and the ``Provenance`` text of a PNG; title, rights and source stand in the usual fields.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LICENCE", "draft_svg", "svg", "pdf", "png", "provenance_of_png", "digest"]

LICENCE = "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/"

_PLACE = "provenance-of-this-figure"
_DPI = 120
_COLOURS = 128


def draft_svg(fig: Figure, title: str, alt: str) -> str:
    """Draw an SVG with an empty place for the provenance: what is drawn, and nothing else.

    >>> from matplotlib.figure import Figure
    >>> "<title>A</title>" in draft_svg(Figure(figsize=(1, 1)), "A", "an empty square")
    True
    """
    import matplotlib

    stream = io.StringIO()
    described = {
        "Title": title,
        "Description": _PLACE,
        "Rights": LICENCE,
        "Creator": "sokmerge",
        "Date": None,
    }
    # Without a fixed salt the ids inside an SVG are random.
    with matplotlib.rc_context({"svg.hashsalt": "sokmerge", "svg.fonttype": "path"}):
        fig.savefig(stream, format="svg", metadata=described)
    drawn = stream.getvalue()
    # For a screen reader an SVG is a picture with a name and a description.
    start = drawn.index("<svg ")
    drawn = drawn[:start] + drawn[start:].replace("<svg ", '<svg role="img" ', 1)
    named = f"<title>{escape(title)}</title>"
    return drawn.replace(named, f"{named}\n <desc>{escape(alt)}</desc>", 1)


def svg(draft: str, provenance: Mapping[str, Any]) -> str:
    """Put the provenance into its place in a draft."""
    return draft.replace(_PLACE, escape(_json(provenance)), 1)


def pdf(fig: Figure, title: str, caption: str, provenance: Mapping[str, Any]) -> bytes:
    """Draw a PDF without a date, fonts embedded as outlines that printers accept."""
    import matplotlib

    stream = io.BytesIO()
    described = {
        "Title": title,
        "Subject": caption,
        "Keywords": _json(provenance),
        "Author": LICENCE,
        "Creator": "sokmerge",
        "CreationDate": None,
    }
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        fig.savefig(stream, format="pdf", metadata=described)
    return stream.getvalue()


def png(fig: Figure, title: str, provenance: Mapping[str, Any]) -> bytes:
    """Draw a PNG of few colours, small enough for a notebook that holds half a dozen of them."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    stream = io.BytesIO()
    fig.savefig(stream, format="png", dpi=_DPI)
    drawn = Image.open(stream).convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    described = PngInfo()
    described.add_itxt("Title", title)
    described.add_itxt("Copyright", LICENCE)
    described.add_itxt("Software", "sokmerge")
    described.add_itxt("Provenance", _json(provenance))
    stream = io.BytesIO()
    drawn.save(stream, format="png", optimize=True, pnginfo=described, dpi=(_DPI, _DPI))
    return stream.getvalue()


def provenance_of_png(content: bytes) -> dict[str, Any]:
    """Read back the provenance that :func:`png` put into a picture; empty if there is none."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as picture:
        return json.loads(picture.text.get("Provenance", "{}"))


def digest(*parts: str) -> str:
    """Return the SHA-256 of texts, one after the other."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, sort_keys=True)
