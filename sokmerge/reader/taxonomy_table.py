"""Two tables of all methods, as MyST: what each needs and gives, and how it is written and set."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from sokmerge.reader.methods import Method, label_of
from sokmerge.reader.myst import literal, table
from sokmerge.reader.taxonomy_map import branches, sub_branch

__all__ = ["first_table", "second_table"]

# A bracket that is escaped, as in \{, counts as the bracket it is.
_TOKENS = re.compile(
    r"(?P<space>,\s*\\(?: |qquad\b|quad\b)\s*)"
    r"|(?P<opens>\\?[{(\[]|\\langle\b)|(?P<closes>\\?[})\]]|\\rangle\b)|\\."
)


def first_table(methods: Sequence[Method], explained: Collection[str], keys: set[str]) -> str:
    """Return the table of branch, paper, needs, scope and result.

    Args:
        methods: the methods.
        explained: names of those that a chapter has a section on: these are linked.
        keys: the bibliography: other papers are named by their keys.
    """
    rows = []
    for branch, chapters in branches(methods).items():
        for chapter, own in chapters.items():
            place = branch if len(chapters) == 1 else f"{branch}: {sub_branch(chapter)}"
            for m in own:
                paper = f"{{cite:t}}`{m.paper}`" if m.paper in keys else f"`{m.paper}`"
                needs = ", ".join(m.needs) or "–"
                rows.append([_name(m, explained), place, paper, needs, m.scope, m.returns])
    heads = ["Method", "Branch", "Paper", "Needs", "Scope", "Returns"]
    return table(heads, sorted(rows, key=_by_name), "18 20 24 16 10 12", "sm-sortable")


def second_table(methods: Sequence[Method], explained: Collection[str]) -> str:
    """Return the table of equation, defaults, tie rule and sign rule."""
    rows = [
        [
            _name(m, explained),
            "\n\n".join(f"${part}$" for part in statements(m.equation)),
            ", ".join(f"`{key}={_shown(value)}`" for key, value in m.defaults.items()) or "–",
            literal(m.ties or "–"),
            literal(m.signs or "–"),
        ]
        for m in methods
    ]
    heads = ["Method", "Equation", "Defaults", "Ties", "Signs"]
    return table(heads, sorted(rows, key=_by_name), "16 36 16 16 16", "sm-sortable")


def statements(equation: str) -> list[str]:
    r"""Split an equation where a comma and a space stand outside of all brackets.

    >>> statements(r"\theta=\tau,\ \tau=f(a,\ b)")
    ['\\theta=\\tau', '\\tau=f(a,\\ b)']
    """
    parts, start, depth = [], 0, 0
    for token in _TOKENS.finditer(equation):
        if token["space"] and depth == 0:
            parts.append(equation[start : token.start()])
            start = token.end()
        depth += bool(token["opens"]) - bool(token["closes"])
    return [*parts, equation[start:]]


def _name(method: Method, explained: Collection[str]) -> str:
    if method.name in explained:
        return f"[`{method.name}`](#{label_of(method.name)})"
    return f"`{method.name}`"


def _by_name(row: Sequence[str]) -> str:
    return row[0].strip("[`")


def _shown(value: object) -> str:
    """Return a default as code; a function within one has no name that a reader could use."""
    name = getattr(value, "__name__", None)
    return name or re.sub(r"<function [^ ]+ at 0x[0-9a-f]+>", "...", repr(value))
