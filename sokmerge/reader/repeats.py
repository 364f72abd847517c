"""The verdicts of claims in another zoo: the same chapters, with all networks trained anew.

A claim on five seeds is a claim on five seeds. Another master seed makes another zoo and other
tables; what the claims say then is kept in one file of the book, beside the verdicts that the
chapters show. It holds no verdict of a claim that has come to ask something else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sokmerge.errors import ArgumentError, FileError
from sokmerge.files import write_atomically
from sokmerge.reader.chapters import Chapter
from sokmerge.reader.estimates import REPLICATES

__all__ = ["FILE", "NOTHING", "keep", "kept", "of_both", "repeated", "require_another"]

FILE = "book/another-zoo.json"
"""Where the verdicts stand, below the root of the book."""

NOTHING: Mapping[str, Any] = {"master seed": None, "claims": {}}
"""What is known of another zoo where none was tried."""

_ASKED = ("label", "relation", "threshold")


def kept(base: Path) -> Mapping[str, Any]:
    """Return what is kept of another zoo: its ``master seed``, and ``claims`` by id.

    A claim has ``chapter``, ``verdict`` and ``tests``; a book that kept none has no claims.

    Raises:
        FileError: the file cannot be read.
    """
    path = base / FILE
    if not path.exists():
        return NOTHING
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(
            str(path),
            found=f"that it cannot be read ({error})",
            expected="verdicts of claims",
            do="Make it again: SOKMERGE_MASTER_SEED=1 sokmerge chapters repeat.",
        ) from error


def require_another(master: int) -> None:
    """Raise ArgumentError if a master seed is 0, that of the zoo that ships."""
    if master == 0:
        raise ArgumentError(
            "SOKMERGE_MASTER_SEED",
            found="0, the zoo that ships",
            expected="the master seed of another zoo",
            do="Write for example SOKMERGE_MASTER_SEED=1 sokmerge chapters repeat.",
        )


def keep(base: Path, made: Iterable[Chapter], master: int) -> Path:
    """Keep the verdicts of chapters that were executed with another zoo.

    Claims of other chapters stay as they are, if they are of the same zoo.

    Args:
        base: root of the book.
        made: the chapters as they came out.
        master: the master seed of that zoo; not 0, which is the zoo that ships.

    Raises:
        ArgumentError: ``master`` is 0.
    """
    require_another(master)
    made = list(made)
    before = kept(base)
    again = {chapter.name for chapter in made}
    claims = {
        name: claim
        for name, claim in before["claims"].items()
        if before["master seed"] == master and claim["chapter"] not in again
    }
    for chapter in made:
        for claim in chapter.claims:
            tests = [
                {key: test[key] for key in (*_ASKED, "measured", "n")}
                for test in claim.record["tests"]
            ]
            told = {"chapter": chapter.name, "verdict": claim.record["verdict"], "tests": tests}
            claims[claim.record["id"]] = told
    content = {"master seed": master, "claims": claims}
    return write_atomically(base / FILE, json.dumps(content, indent=1, sort_keys=True) + "\n")


def repeated(claim: Mapping[str, Any], known: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return what became of a claim in another zoo, or None if it was not asked so there.

    Args:
        claim: a claim as :func:`~sokmerge.reader.listing.claims` lists it.
        known: what :func:`kept` returns.

    >>> asked = {"label": "gain", "relation": ">", "threshold": 0.0, "measured": "1.0"}
    >>> other = {"verdict": "supported", "tests": [{**asked, "measured": "0.9"}]}
    >>> known = {"master seed": 1, "claims": {"a-gain": other}}
    >>> repeated({"id": "a-gain", "tests": [asked]}, known)["verdict"]
    'supported'
    >>> repeated({"id": "a-gain", "tests": [{**asked, "threshold": 1.0}]}, known)
    """
    other = known["claims"].get(claim["id"])
    if other is None or _asked(other) != _asked(claim):
        return None
    return other


def of_both(claim: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether a claim rests on both zoos at once, so that it comes out alike in either.

    >>> asked = {"label": "gain", "relation": ">", "threshold": 0.0, "measured": "1.0", "n": 10}
    >>> of_both({"tests": [asked]}, {"tests": [asked]})
    True
    >>> of_both({"tests": [asked]}, {"tests": [{**asked, "measured": "0.9"}]})
    False
    """
    pairs = list(zip(claim["tests"], other["tests"], strict=True))
    return all(
        here["measured"] == there["measured"] and here["n"] == there["n"] >= 2 * REPLICATES
        for here, there in pairs
    )


def _asked(claim: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return [tuple(test[key] for key in _ASKED) for test in claim["tests"]]
