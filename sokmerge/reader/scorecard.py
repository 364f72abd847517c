"""The scorecard: what was observed of each of the four properties, and what became of it here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sokmerge.reader import listing
from sokmerge.reader.chapters import Chapter
from sokmerge.reader.estimates import Verdict
from sokmerge.reader.myst import literal, table
from sokmerge.reader.sortable import NOTHING

__all__ = ["PROPERTIES", "counted", "is_on_a_property", "measured", "scorecard"]

PROPERTIES: Mapping[str, Sequence[str]] = {
    "Mode convexity": ("properties/convexity",),
    "Mode determinism": ("properties/determinism",),
    "Mode directedness": ("properties/directedness",),
    "Mode connectivity": ("properties/connectivity", "properties/modulo-permutation"),
}
"""The properties in the survey's order, each with the chapters that measure it."""

_VERDICTS = (Verdict.SUPPORTED, Verdict.NOT_SUPPORTED, Verdict.INCONCLUSIVE)


def is_on_a_property(chapter: Chapter) -> bool:
    """Return whether a chapter measures one of the four properties."""
    return any(chapter.name in names for names in PROPERTIES.values())


def scorecard(chapters: Iterable[Chapter]) -> str:
    """Return the scorecard as MyST: how many claims of each property hold, and a table of each.

    Args:
        chapters: chapters of the book; those that are not on a property are left out.
    """
    chapters = {chapter.name: chapter for chapter in chapters if is_on_a_property(chapter)}
    groups = {
        name: [chapters[each] for each in names if each in chapters]
        for name, names in PROPERTIES.items()
    }
    claims = {name: own for name, group in groups.items() if (own := listing.claims(group))}
    every = [claim for own in claims.values() for claim in own]
    if not every:
        return "No chapter on a property holds a claim yet.\n"
    parts = [counted(every), "", _counts({**claims, "All": every})]
    for name, own in claims.items():
        places = " and ".join(f"{{doc}}`/notebooks/{each.name}`" for each in groups[name])
        parts += [f"### {name}", "", f"In {places}. {counted(own)}", "", _table(own)]
    return "\n".join(parts)


def counted(claims: Iterable[Mapping[str, Any]], what: str = "Claims") -> str:
    """Return how many claims there are, and how many of each verdict, as a sentence.

    >>> counted([{"verdict": "supported"}, {"verdict": "not supported"}])
    'Claims: 2, of which 1 supported, 1 not supported.'
    """
    verdicts = [claim["verdict"] for claim in claims]
    counts = [
        f"{verdicts.count(verdict)} {verdict}" for verdict in _VERDICTS if verdict in verdicts
    ]
    return f"{what}: {len(verdicts)}" + (f", of which {', '.join(counts)}." if counts else ".")


def measured(claim: Mapping[str, Any]) -> list[str]:
    """Return what each test of a claim found and expected, as MyST."""
    space = "\N{NO-BREAK SPACE}"
    return [
        f"{literal(test['label'])}: {literal(test['measured'])}, n{space}={space}{test['n']}; "
        f"expected {literal(test['relation'])}{space}{test['threshold']:g}"
        for test in claim["tests"]
    ]


def _counts(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    rows = []
    for name, claims in groups.items():
        verdicts = [claim["verdict"] for claim in claims]
        numbers = [len(verdicts), *(verdicts.count(verdict) for verdict in _VERDICTS)]
        rows.append([name.removeprefix("Mode ").capitalize(), *map(str, numbers)])
    heads = ["Property", "Claims", "Supported", "Not supported", "Inconclusive"]
    return table(heads, rows, "22 13 21 19 25", "sm-counts")


def _table(claims: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"{literal(claim['statement'])} {{cite:p}}`{claim['source']}`",
            literal(claim["reported"]),
            "\n\n".join(measured(claim)),
            f"{{claim}}`{claim['id']}`",
            f"{{numref}}`fig-{claim['figure']}`" if claim.get("figure") else NOTHING,
        ]
        for claim in claims
    ]
    heads = ["Observation", "Reported", "Measured here", "Verdict", "Figure"]
    return table(heads, rows, "26 18 27 19 10", "sm-sortable sm-scorecard")
