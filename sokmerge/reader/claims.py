"""Claims of the literature, held against what was measured here.

A claim names its source, says what was shown there and what would be seen here if it holds, and
carries the tests that decide. The verdict is computed from them; nobody types it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Any

from sokmerge.errors import ArgumentError
from sokmerge.reader import records
from sokmerge.reader.digits import significant, with_interval
from sokmerge.reader.estimates import Test, Verdict

__all__ = ["MARKS", "Claim", "show_claim", "source_in_words"]

_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_:.+/-]*")

# Of each verdict: an icon, and a colour that carries white text at a contrast of 7 to 1.
MARKS = {
    Verdict.SUPPORTED: ("\N{CHECK MARK}", "#14532d"),
    Verdict.NOT_SUPPORTED: ("\N{BALLOT X}", "#7f1d1d"),
    Verdict.INCONCLUSIVE: ("\N{CIRCLE WITH LEFT HALF BLACK}", "#5b3a00"),
}


@dataclass(frozen=True)
class Claim:
    """A published observation and the tests that it must pass at our scale.

    Attributes:
        id: its address, lower-case words joined by hyphens.
        statement: the observation in one sentence.
        source: BibTeX key of the paper that reports it.
        reported: what was shown there, and at what scale.
        prediction: what would be seen here if it holds, in words.
        tests: that prediction as comparisons of estimates with numbers.
        figure: id of the figure, in the same chapter, in which it can be seen.

    Raises:
        ArgumentError: an empty text, a bad id or key, or no test.

    >>> from sokmerge.reader import Estimate
    >>> barrier = Estimate.of([0.01, 0.02, 0.01, 0.03, 0.02], label="aligned barrier", unit="nats")
    >>> claim = Claim(
    ...     id="aligned-barrier-vanishes",
    ...     statement="After alignment the line between two networks has no barrier.",
    ...     source="ainsworth2022git",
    ...     reported="zero barrier between wide networks on CIFAR-10",
    ...     prediction="less than 0.05 nats at the largest width",
    ...     tests=[barrier < 0.05],
    ... )
    >>> claim.verdict
    'supported'
    """

    id: str
    statement: str
    source: str
    reported: str
    prediction: str
    tests: Iterable[Test]
    figure: str | None = None

    def __post_init__(self) -> None:
        records.check_id("id", self.id)
        if self.figure is not None:
            records.check_id("figure", self.figure)
        for name in ("statement", "reported", "prediction"):
            object.__setattr__(self, name, records.check_text(name, getattr(self, name)))
        if not isinstance(self.source, str) or not _KEY.fullmatch(self.source):
            raise ArgumentError(
                "source", found=repr(self.source), expected="a key of book/references.bib"
            )
        object.__setattr__(self, "tests", tuple(self.tests))
        if not self.tests or not all(isinstance(test, Test) for test in self.tests):
            raise ArgumentError(
                "tests",
                found=repr(self.tests),
                expected="one or more comparisons of an Estimate with a number",
                do="Write for example tests=[estimate < 0.05].",
            )

    @property
    def verdict(self) -> str:
        """Supported if all tests are, not supported if any is not, else inconclusive."""
        verdicts = {test.verdict for test in self.tests}
        if Verdict.NOT_SUPPORTED in verdicts:
            return Verdict.NOT_SUPPORTED
        return Verdict.SUPPORTED if verdicts == {Verdict.SUPPORTED} else Verdict.INCONCLUSIVE

    def record(self) -> dict[str, Any]:
        """Return the claim as JSON content, numbers rounded to what is printed."""
        return {
            "id": self.id,
            "statement": self.statement,
            "source": self.source,
            "reported": self.reported,
            "prediction": self.prediction,
            "verdict": self.verdict,
            "tests": [_test_record(test) for test in self.tests],
        } | ({"figure": self.figure} if self.figure else {})

    def bundle(self) -> dict[str, Any]:
        """Return the card, MIME type to content: text, HTML and the record."""
        record = self.record()
        return {
            "text/plain": _as_text(record),
            "text/html": _as_html(record),
            records.CLAIM: record,
        }

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        return self.bundle()


def show_claim(claim: Claim) -> None:
    """Show the card of a claim: what was said, what was measured, and the computed verdict.

    >>> from sokmerge.reader import Estimate
    >>> gain = Estimate.of([1.0, 1.1, 0.9, 1.2, 0.8], label="gain")
    >>> show_claim(Claim(
    ...     id="gain", statement="There is a gain.", source="doe2020gain", reported="a gain of 2",
    ...     prediction="a gain above 0", tests=[gain > 0],
    ... ))
    Claim gain: supported
      There is a gain.
      Shown by Doe 2020: a gain of 2
      Predicted here: a gain above 0
      Measured: gain 1.00 [0.80, 1.20] (n = 5)
        expected > 0: supported, as the whole interval is > 0
    """
    records.show(claim.bundle())


def source_in_words(key: str) -> str:
    """Return the author and year that a BibTeX key is made of, or the key itself.

    >>> source_in_words("ainsworth2022git"), source_in_words("survey")
    ('Ainsworth 2022', 'survey')
    """
    match = re.fullmatch(r"([A-Za-z]+)[-_:]?(\d{4})[A-Za-z0-9_:-]*", key)
    return f"{match[1].capitalize()} {match[2]}" if match else key


def _test_record(test: Test) -> dict[str, Any]:
    estimate = test.estimate
    mean, low, high = with_interval(estimate.mean, estimate.low, estimate.high)
    return {
        "label": estimate.label,
        "relation": test.relation,
        "threshold": float(significant(test.threshold, 4, floor=0)),
        "mean": float(mean),
        "low": float(low),
        "high": float(high),
        "n": estimate.n,
        "unit": estimate.unit,
        "method": estimate.method,
        "measured": estimate.interval,
        "verdict": test.verdict,
        "reason": test.reason,
    }


def _expected(test: dict[str, Any]) -> str:
    bound = f"{significant(test['threshold'], 4)} {test['unit']}".rstrip()
    return f"expected {test['relation']} {bound}: {test['verdict']}, as {test['reason']}"


def _as_text(record: dict[str, Any]) -> str:
    lines = [
        f"Claim {record['id']}: {record['verdict']}",
        f"  {record['statement']}",
        f"  Shown by {source_in_words(record['source'])}: {record['reported']}",
        f"  Predicted here: {record['prediction']}",
    ]
    for test in record["tests"]:
        lines.append(f"  Measured: {test['label']} {test['measured']} (n = {test['n']})")
        lines.append(f"    {_expected(test)}")
    return "\n".join(lines)


def _as_html(record: dict[str, Any]) -> str:
    """Return the card as HTML that needs no style sheet and takes its colours from the page."""
    icon, colour = MARKS[record["verdict"]]
    address = f"claim-{record['id']}"
    rows = [
        f"<p style='margin:.4em 0'><strong>{title}</strong> {escape(text)}</p>"
        for title, text in (
            (f"{source_in_words(record['source'])} reported:", record["reported"]),
            ("Prediction at our scale:", record["prediction"]),
        )
    ]
    measured = "".join(
        f"<li style='margin:.2em 0'>{escape(test['label'])}: "
        f"<strong>{escape(test['measured'])}</strong> "
        f"(mean and {escape(test['method'])}, n = {test['n']}); {escape(_expected(test))}</li>"
        for test in record["tests"]
    )
    return (
        f"<div id='{address}' role='group' aria-labelledby='{address}-statement' "
        "style='border:1px solid rgba(128,128,128,.6);border-left:.4em solid "
        f"{colour};border-radius:.3em;padding:.6em 1em;margin:1em 0;"
        "background:rgba(128,128,128,.08);overflow-wrap:anywhere;text-align:left'>"
        f"<p style='margin:.2em 0 .6em'><span style='background:{colour};color:#fff;"
        "border-radius:.3em;padding:.15em .6em;font-weight:600;display:inline-block'>"
        f"<span aria-hidden='true'>{icon}</span> Claim {record['verdict']}</span></p>"
        f"<p id='{address}-statement' style='margin:.4em 0;font-size:1.1em'>"
        f"{escape(record['statement'])}</p>"
        f"{''.join(rows)}"
        "<p style='margin:.4em 0 0'><strong>Measured:</strong></p>"
        f"<ul style='margin:.2em 0;padding-left:1.4em'>{measured}</ul></div>"
    )
