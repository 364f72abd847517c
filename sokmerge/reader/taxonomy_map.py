"""The map of the methods: one drawing, and the same as a list where there is no room for it.

The drawing is SVG inside the page, so that its links work and its colours are those of the page.
What a method needs is told by a word, a shape and a colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from sokmerge.reader.methods import Method

__all__ = ["NEEDS", "branches", "drawing", "listing", "map_of"]

NEEDS = {
    "base": "M-5-5h10v10h-10z",
    "statistics": "M-5 5v-4h3v4zM-1.5 5v-10h3v10zM2 5v-7h3v7z",
    "inputs": "M0-5a5 5 0 1 0 .01 0zM0-2a2 2 0 1 1-.01 0z",
    "data": "M0-5a5 5 0 1 0 .01 0z",
    "symmetry": "M0-6L6 0L0 6L-6 0z",
    "training": "M-5 5L0-5L5 5z",
    "trajectory": "M-6 5L-2-3L2 3L6-5L6-1L2 7L-2 1L-4 5z",
}
"""What a method may need, with the shape of its mark around (0, 0), in the order of the map."""

_NOTHING = "models only"
_MARKS = {**NEEDS, _NOTHING: "M-5-1.2h10v2.4h-10z"}

# A sub-branch is a chapter. Where a branch has one only, it has the branch's own name.
_SUB_BRANCHES = {"weight-aggregation": "averages"}

_NAME, _WORD = 7.3, 5.7  # widths of a letter, of the names and of the words below
_MARK, _SPACE, _LEAST = 16, 7, 100
_PAD, _GAP, _STEM = 8, 14, 12
_BOX, _ROW, _HEAD, _BELOW = 40, 46, 30, 22


@dataclass(frozen=True)
class _Column:
    """One sub-branch, and where it stands."""

    branch: str
    chapter: str
    methods: tuple[Method, ...]
    x: float
    width: float

    @property
    def middle(self) -> float:
        return self.x + self.width / 2


def branches(methods: Sequence[Method]) -> dict[str, dict[str, list[Method]]]:
    """Return branches to chapters to methods; those that need least come first.

    The order of the branches, and of the chapters in a branch, is that in which they are met.
    """
    found: dict[str, dict[str, list[Method]]] = {}
    for method in methods:
        found.setdefault(method.branch, {}).setdefault(method.chapter, []).append(method)
    order = list(NEEDS)

    def demand(method: Method) -> tuple[object, ...]:
        return len(method.needs), sorted(map(order.index, method.needs)), method.name

    return {
        branch: {chapter: sorted(of, key=demand) for chapter, of in chapters.items()}
        for branch, chapters in found.items()
    }


def sub_branch(chapter: str) -> str:
    """Return what a sub-branch is called.

    >>> sub_branch("task-vectors"), sub_branch("weight-aggregation")
    ('task vectors', 'averages')
    """
    return _SUB_BRANCHES.get(chapter, chapter.replace("-", " "))


def map_of(methods: Sequence[Method], links: Mapping[str, str], chapters: Mapping[str, str]) -> str:
    """Return the map as HTML, without a blank line: legend, drawing, list.

    Args:
        methods: the methods.
        links: addresses of the sections of methods, by name; a method without is not linked.
        chapters: addresses of chapters, by the last part of their names.
    """
    legend = "".join(
        f"<li>{_mark_alone(need)}<span>{need}</span></li>"
        for need in _MARKS
        if any(need in _needs(m) for m in methods)
    )
    return "\n".join(
        [
            '<div class="sm-map">',
            f'<ul class="sm-map-legend" aria-label="Marks: what a method needs">{legend}</ul>',
            drawing(methods, links, chapters),
            listing(methods, links, chapters),
            "</div>",
            "",
        ]
    )


# --- the drawing ----------------------------------------------------------------------------------


def drawing(
    methods: Sequence[Method], links: Mapping[str, str], chapters: Mapping[str, str]
) -> str:
    """Return the map as an SVG element."""
    columns = _columns(methods)
    width = columns[-1].x + columns[-1].width if columns else 0
    tops = [0.0, _HEAD + _BELOW, 2 * (_HEAD + _BELOW)]
    first = 3.0 * (_HEAD + _BELOW)
    height = first + max((len(c.methods) for c in columns), default=0) * _ROW
    owned = {b: list(of) for b, of in groupby(columns, key=lambda column: column.branch)}
    middles = {b: (of[0].x + of[-1].x + of[-1].width) / 2 for b, of in owned.items()}
    # The root stands straight above the branch in the middle.
    root = sorted(middles.values())[len(middles) // 2] if len(middles) % 2 else width / 2
    parts = [
        f'<svg class="sm-map-drawing" viewBox="-2 -2 {width + 4:.0f} {height + 4:.0f}" '
        f'style="max-width:{1.15 * width:.0f}px" role="group" '
        f'aria-label="Map of {len(methods)} merging methods by branch">',
        *_head("model merging", root, tops[0], None),
    ]
    for branch, own in owned.items():
        middle, alone = middles[branch], len(own) == 1
        parts += [_elbow(root, tops[0] + _HEAD, middle, tops[1])]
        parts += _head(branch, middle, tops[1], chapters.get(own[0].chapter) if alone else None)
        for column in own:
            if alone:
                parts.append(_elbow(middle, tops[1] + _HEAD, column.x + 4, first))
            else:
                parts.append(_elbow(middle, tops[1] + _HEAD, column.middle, tops[2]))
                address = chapters.get(column.chapter)
                parts += _head(sub_branch(column.chapter), column.middle, tops[2], address)
                parts.append(_elbow(column.middle, tops[2] + _HEAD, column.x + 4, first))
            parts += _stack(column, first, links)
    return "\n".join([*parts, "</svg>"])


def _columns(methods: Sequence[Method]) -> list[_Column]:
    columns, x = [], 0.0
    for branch, chapters in branches(methods).items():
        for chapter, own in chapters.items():
            lengths = [len(branch) * _NAME if len(chapters) == 1 else 0]
            lengths += [len(sub_branch(chapter)) * _NAME]
            lengths += [_STEM + len(method.name) * _NAME for method in own]
            lengths += [_STEM + _words_width(method) for method in own]
            width = max(*lengths, _LEAST) + 2 * _PAD
            columns.append(_Column(branch, chapter, tuple(own), x, width))
            x += width + _GAP
    return columns


def _words_width(method: Method) -> float:
    return sum(_MARK + _SPACE + len(need) * _WORD for need in _needs(method)) - _SPACE


def _needs(method: Method) -> tuple[str, ...]:
    """Return what stands under a method's name."""
    return method.needs or (_NOTHING,)


def _elbow(x0: float, y0: float, x1: float, y1: float) -> str:
    """Draw a line down, across, and down again."""
    half = y1 - _BELOW / 2
    return f'<path class="sm-map-edge" d="M{x0:g} {y0:g}V{half:g}H{x1:g}V{y1:g}"/>'


def _head(text: str, middle: float, top: float, address: str | None) -> list[str]:
    width = len(text) * _NAME + 2 * _PAD
    box = (
        f'<rect x="{middle - width / 2:g}" y="{top:g}" width="{width:g}" height="{_HEAD}" rx="6"/>'
    )
    told = f'<text x="{middle:g}" y="{top + 20:g}" text-anchor="middle">{escape(text)}</text>'
    return _linked("sm-map-head", f"Chapter: {text}", address, [box, told])


def _stack(column: _Column, first: float, links: Mapping[str, str]) -> list[str]:
    x, width = column.x + _STEM, column.width - _STEM
    last = first + (len(column.methods) - 1) * _ROW + _BOX / 2
    parts = [f'<path class="sm-map-edge" d="M{column.x + 4:g} {first:g}V{last:g}"/>']
    for i, method in enumerate(column.methods):
        top = first + i * _ROW
        parts.append(f'<path class="sm-map-edge" d="M{column.x + 4:g} {top + _BOX / 2:g}h8"/>')
        inside = [
            f'<rect x="{x:g}" y="{top:g}" width="{width:g}" height="{_BOX}" rx="4"/>',
            f'<text class="sm-map-name" x="{x + _PAD:g}" y="{top + 16:g}">'
            f"{escape(method.name)}</text>",
        ]
        at = x + _PAD
        for need in _needs(method):
            inside.append(_mark(need, at + 6, top + 28))
            inside.append(
                f'<text class="sm-map-need" x="{at + _MARK:g}" y="{top + 32:g}">{need}</text>'
            )
            at += _MARK + _SPACE + len(need) * _WORD
        parts += _linked("sm-map-method", _told(method), links.get(method.name), inside)
    return parts


def _linked(name: str, told: str, address: str | None, inside: Sequence[str]) -> list[str]:
    """Return a group, and a link around it where there is somewhere to go."""
    if address is None:
        return [f'<g class="{name}">', *inside, "</g>"]
    start = f'<a class="{name}" href="{escape(address)}" aria-label="{escape(told)}">'
    return [start, f"<title>{escape(told)}</title>", *inside, "</a>"]


def _told(method: Method) -> str:
    return f"{method.name}: needs {', '.join(method.needs) or 'nothing but the models'}"


def _mark(need: str, x: float, y: float) -> str:
    place = f' transform="translate({x:g} {y:g})"' if x or y else ""
    name = need.replace(" ", "-")
    return f'<path class="sm-need sm-need-{name}" d="{_MARKS[need]}"{place}/>'


def _mark_alone(need: str) -> str:
    return (
        f'<svg class="sm-mark" viewBox="-8 -8 16 16" aria-hidden="true">{_mark(need, 0, 0)}</svg>'
    )


# --- the list -------------------------------------------------------------------------------------


def listing(
    methods: Sequence[Method], links: Mapping[str, str], chapters: Mapping[str, str]
) -> str:
    """Return the map as lists that unfold, for pages too narrow for the drawing."""
    parts = ['<div class="sm-map-listing">']
    for branch, by_chapter in branches(methods).items():
        for chapter, own in by_chapter.items():
            name = branch if len(by_chapter) == 1 else f"{branch}: {sub_branch(chapter)}"
            parts.append(f"<details><summary>{escape(name)} ({len(own)})</summary>")
            if chapter in chapters:
                parts.append(f'<p><a href="{escape(chapters[chapter])}">To the chapter</a></p>')
            parts.append("<ul>")
            for method in own:
                told = f"<code>{escape(method.name)}</code>"
                if method.name in links:
                    told = f'<a href="{escape(links[method.name])}">{told}</a>'
                needs = "".join(f"<span>{_mark_alone(n)}{n}</span>" for n in _needs(method))
                parts.append(f'<li>{told}<span class="sm-needs">{needs}</span></li>')
            parts.append("</ul></details>")
    return "\n".join([*parts, "</div>"])
