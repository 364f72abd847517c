"""Where the book explains a method: the labelled section of a chapter, and what it cites.

This package knows no network and no method. It is given what it needs of one
(:class:`Method`), and finds the rest in the notebooks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from sokmerge.reader.chapters import Chapter

__all__ = ["Method", "Section", "label_of", "sections"]

_LABEL = re.compile(r"^\((method-[a-z0-9-]+)\)=\s*$")
_HEADING = re.compile(r"^(#{1,6})\s+\S")
_FENCE = re.compile(r"^\s*(`{3,}|~{3,})")
_CITE = re.compile(r"\{cite(?::\w+)?\}`([^`]+)`")


class Method(Protocol):
    """What the book says of a method; ``sokmerge.merge.Declaration`` is one."""

    @property
    def name(self) -> str: ...
    @property
    def branch(self) -> str: ...
    @property
    def chapter(self) -> str: ...
    @property
    def paper(self) -> str: ...
    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def returns(self) -> str: ...
    @property
    def scope(self) -> str: ...
    @property
    def equation(self) -> str: ...
    @property
    def ties(self) -> str | None: ...
    @property
    def signs(self) -> str | None: ...
    @property
    def defaults(self) -> Mapping[str, object]: ...


@dataclass(frozen=True)
class Section:
    """The section of a chapter that explains a method.

    Attributes:
        label: such as ``method-task-arithmetic``.
        chapter: name of the chapter, such as ``merging/task-vectors``.
        cites: the keys of all works that the section cites.
    """

    label: str
    chapter: str
    cites: frozenset[str]

    @property
    def address(self) -> str:
        """Where it stands on the site.

        >>> Section("method-ties", "merging/task-vectors", frozenset()).address
        'notebooks/merging/task-vectors.html#method-ties'
        """
        return f"notebooks/{self.chapter}.html#{self.label}"


def label_of(name: str) -> str:
    """Return the label of a method's section.

    >>> label_of("task_arithmetic")
    'method-task-arithmetic'
    """
    return f"method-{name.replace('_', '-')}"


def sections(found: Iterable[Chapter]) -> dict[str, list[Section]]:
    """Return the labelled sections of the chapters by label; a sound book has one of each.

    A section reaches from its label to the next heading that is not below its own, or to the
    next such label.
    """
    by_label: dict[str, list[Section]] = {}
    for chapter in found:
        for label, text in _labelled(_lines(chapter)):
            cites = {key.strip() for keys in _CITE.findall(text) for key in keys.split(",")}
            section = Section(label, chapter.name, frozenset(cites))
            by_label.setdefault(label, []).append(section)
    return by_label


def _lines(chapter: Chapter) -> Iterator[str]:
    """Yield the lines of a chapter's text, not those of its fenced blocks that quote code.

    A label in a directive (an admonition, say) is one as well, so only the fences of code count.
    """
    for cell in chapter.content.cells:
        if cell.cell_type == "markdown":
            quoting = ""
            for line in cell.source.splitlines():
                fence = _FENCE.match(line)
                if fence and not quoting and "{" not in line:
                    quoting = fence[1]
                elif fence and quoting and line.strip() == quoting:
                    quoting = ""
                elif not quoting:
                    yield line


def _labelled(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    label, level, text = "", 0, []
    for line in lines:
        found, heading = _LABEL.match(line), _HEADING.match(line)
        ends = found or (heading and level and len(heading[1]) <= level)
        if label and ends:
            yield label, "\n".join(text)
            label, level, text = "", 0, []
        if found:
            label = found[1]
        elif label:
            if heading and not level:
                level = len(heading[1])
            text.append(line)
    if label:
        yield label, "\n".join(text)
