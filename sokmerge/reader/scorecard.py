"""The scorecard of a part of the book: what was observed, and what became of it here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sokmerge.reader import listing, repeats
from sokmerge.reader.chapters import Chapter
from sokmerge.reader.estimates import Verdict
from sokmerge.reader.myst import literal, table
from sokmerge.reader.sortable import NOTHING

__all__ = ["PARTS", "PROPERTIES", "TRUST", "Part", "counted", "measured", "scorecard"]


@dataclass(frozen=True)
class Part:
    """A part of the book whose page has a scorecard.

    Attributes:
        name: of its page, and of the folder of its notebooks.
        kind: what a group is, as the head of a column.
        groups: the groups in the order of the page, each with the chapters that measure it.
    """

    name: str
    kind: str
    groups: Mapping[str, Sequence[str]]

    @property
    def chapters(self) -> list[str]:
        """The names of its chapters, in order."""
        return [name for names in self.groups.values() for name in names]


PROPERTIES = Part(
    "properties",
    "Property",
    {
        "Mode convexity": ("properties/convexity",),
        "Mode determinism": ("properties/determinism",),
        "Mode directedness": ("properties/directedness",),
        "Mode connectivity": ("properties/connectivity", "properties/modulo-permutation"),
    },
)
"""The properties in the survey's order."""

TRUST = Part(
    "trust",
    "Chapter",
    {
        "Interpretability": ("trust/interpretability",),
        "Security": ("trust/security",),
        "Robustness": ("trust/robustness",),
        "Federation": ("trust/federation",),
    },
)

PARTS = (PROPERTIES, TRUST)

_VERDICTS = (Verdict.SUPPORTED, Verdict.NOT_SUPPORTED, Verdict.INCONCLUSIVE)


def scorecard(
    part: Part, chapters: Iterable[Chapter], known: Mapping[str, Any] = repeats.NOTHING
) -> str:
    """Return a scorecard as MyST: how many claims of each group hold, and a table of each.

    Args:
        part: which part of the book.
        chapters: chapters of the book; those of other parts are left out.
        known: the verdicts in another zoo, as :func:`~sokmerge.reader.repeats.kept` returns them;
            if one of the claims is among them, a column says what became of each.
    """
    chapters = {chapter.name: chapter for chapter in chapters if chapter.name in part.chapters}
    groups = {
        name: [chapters[each] for each in names if each in chapters]
        for name, names in part.groups.items()
    }
    claims = {name: own for name, group in groups.items() if (own := listing.claims(group))}
    every = [claim for own in claims.values() for claim in own]
    if not every:
        return "No chapter of this part holds a claim yet.\n"
    others = {claim["id"]: repeats.repeated(claim, known) for claim in every}
    parts = [counted(every), "", _counts(part, {**claims, "All": every})]
    if any(others.values()):
        parts += [_told(every, others), ""]
    for name, own in claims.items():
        places = " and ".join(f"{{doc}}`/notebooks/{each.name}`" for each in groups[name])
        parts += [f"### {name}", "", f"In {places}. {counted(own)}", "", _table(own, others)]
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


def _counts(part: Part, groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    rows = []
    for name, claims in groups.items():
        verdicts = [claim["verdict"] for claim in claims]
        numbers = [len(verdicts), *(verdicts.count(verdict) for verdict in _VERDICTS)]
        rows.append([name.removeprefix("Mode ").capitalize(), *map(str, numbers)])
    heads = [part.kind, "Claims", "Supported", "Not supported", "Inconclusive"]
    return table(heads, rows, "22 13 21 19 25", "sm-counts")


def _told(claims: Sequence[Mapping[str, Any]], others: Mapping[str, Any]) -> str:
    """Return in how many claims another zoo led to the same verdict, and to its opposite."""
    again = [(claim, other) for claim in claims if (other := others[claim["id"]])]
    pairs = [
        (claim["verdict"], other["verdict"])
        for claim, other in again
        if not repeats.of_both(claim, other)
    ]
    same = sum(here == there for here, there in pairs)
    opposite = sum(Verdict.INCONCLUSIVE not in pair and pair[0] != pair[1] for pair in pairs)
    told = (
        f"Of {len(pairs)} claims that were asked again in a zoo trained from other seeds, "
        f"{same} have the same verdict there, {opposite} the opposite one."
    )
    if both := len(again) - len(pairs):
        told += f" {both} more, which five networks did not settle, rest on both zoos at once."
    return told


def _other(claim: Mapping[str, Any], other: Mapping[str, Any] | None) -> str:
    if other is None:
        return NOTHING
    if repeats.of_both(claim, other):
        return "both in one"
    if other["verdict"] == claim["verdict"]:
        return "same"
    found = "; ".join(
        f"{literal(test['label'])}: {literal(test['measured'])}" for test in other["tests"]
    )
    return f"{other['verdict']}\n\n{found}"


def _table(claims: Iterable[Mapping[str, Any]], others: Mapping[str, Any]) -> str:
    again = any(others.values())
    rows = [
        [
            f"{literal(claim['statement'])} {{cite:p}}`{claim['source']}`",
            literal(claim["reported"]),
            "\n\n".join(measured(claim)),
            f"{{claim}}`{claim['id']}`",
            *([_other(claim, others[claim["id"]])] if again else []),
            f"{{numref}}`fig-{claim['figure']}`" if claim.get("figure") else NOTHING,
        ]
        for claim in claims
    ]
    heads = ["Observation", "Reported", "Measured here", "Verdict", "Figure"]
    widths = "26 18 27 19 10"
    if again:
        heads.insert(4, "Another zoo")
        widths = "23 15 22 17 14 9"
    return table(heads, rows, widths, "sm-sortable sm-scorecard")
