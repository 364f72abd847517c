"""The role `claim`: a link to a claim's card, with the verdict that was computed for it.

``{claim}`the-id` `` shows the verdict, ``{claim}`some words <the-id>` `` the words and then the
verdict. The verdict is read from the chapter that holds the claim, so a page cannot say another.
A claim that no chapter holds is a warning, and so fails the build.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.nodes import Element, Node, system_message
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import ReferenceRole
from sphinx.util.nodes import make_refnode

from sokmerge.reader import listing
from sokmerge.reader.chapters import chapters
from sokmerge.reader.claims import MARKS
from sokmerge.reader.estimates import Verdict

logger = logging.getLogger(__name__)

KINDS = {
    Verdict.SUPPORTED: "supported",
    Verdict.NOT_SUPPORTED: "not-supported",
    Verdict.INCONCLUSIVE: "inconclusive",
}
"""Of each verdict: the class by which the style sheet knows it."""

CLAIMS: dict[str, dict[str, Any]] = {}
"""The claims of the book by id."""


class ClaimRole(ReferenceRole):
    """A claim's verdict, with words before it if there are any, as a link to its card."""

    def run(self) -> tuple[list[Node], list[system_message]]:
        """Read the claim; without one, warn and leave the words alone."""
        claim = CLAIMS.get(self.target)
        if claim is None:
            close = difflib.get_close_matches(self.target, CLAIMS, 3, 0.5)
            known = f"; close to it: {', '.join(close)}" if close else ""
            logger.warning(
                "no chapter holds the claim %r%s", self.target, known, location=self.get_location()
            )
            return [nodes.Text(self.title)], []
        # The page is read again when the chapter has changed.
        self.env.note_dependency(f"notebooks/{claim['chapter']}.ipynb")
        verdict = claim["verdict"]
        words = f"{MARKS[verdict][0]}\N{NO-BREAK SPACE}{verdict}"
        mark = nodes.inline("", words, classes=["sm-verdict", f"sm-{KINDS[verdict]}"])
        parts = [nodes.Text(f"{self.title} "), mark] if self.has_explicit_title else [mark]
        content = nodes.inline("", "", *parts)
        link = pending_xref(
            "", content, refdomain="", reftype="claim", reftarget=self.target, refwarn=True,
            refexplicit=True, chapter=f"notebooks/{claim['chapter']}", statement=claim["statement"],
        )  # fmt: skip
        self.set_source_info(link)
        return [link], []


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Element
) -> Element | None:
    """Make the link once all pages are known; a chapter that is no page of the book has none."""
    if node.get("reftype") != "claim" or node["chapter"] not in env.found_docs:
        return None
    target = f"claim-{node['reftarget']}"
    return make_refnode(
        app.builder, node["refdoc"], node["chapter"], target, content, node["statement"]
    )


def read_claims(app: Sphinx) -> None:
    """Read the claims of all chapters, once a build."""
    CLAIMS.clear()
    CLAIMS.update((claim["id"], claim) for claim in listing.claims(chapters(Path(app.srcdir))))


def setup(app: Sphinx) -> dict[str, object]:
    """Connect the parts."""
    app.add_role("claim", ClaimRole())
    app.connect("builder-inited", read_claims)
    app.connect("missing-reference", resolve)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
