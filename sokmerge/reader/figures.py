"""Figures that can be cited: a picture, the data behind it, and where both come from.

What :func:`show_figure` does with the files depends on who runs the notebook, as the environment
variable ``SOKMERGE_FIGURES`` says:

``show`` (nothing set: a reader at work)
    displays the figure and touches no file, so that turning a knob never changes what is published;
``write`` (``sokmerge chapters execute``)
    also writes ``<id>.svg``, ``.pdf``, ``.csv`` and ``.json``, where their content is new;
``verify`` (the tests)
    compares the data, computed again, with the published CSV and fails the cell if they differ.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sokmerge import inputs
from sokmerge.errors import ArgumentError, FileError
from sokmerge.files import sha256, write_atomically
from sokmerge.reader import pictures, provenance, records
from sokmerge.reader.citations import book
from sokmerge.reader.repository import PUBLIC, find_root, root
from sokmerge.reader.tables import Table, difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MODE", "STAGE", "show_figure"]

MODE = "SOKMERGE_FIGURES"
"""Environment variable: ``show``, ``write`` or ``verify``."""

STAGE = "SOKMERGE_FIGURES_STAGE"
"""Environment variable: folder that takes written figures until the whole chapter has run."""

RTOL, ATOL = 1e-3, 1e-6


def show_figure(
    fig: Figure,
    *,
    id: str,
    caption: str,
    alt: str,
    data: Mapping[str, Any],
    seed: int | Iterable[int] | None = None,
    recipes: Iterable[Any] = (),
    rtol: float = RTOL,
    atol: float = ATOL,
) -> None:
    r"""Show a figure and keep with it all that is needed to trust, reuse and cite it.

    A cell shows one figure, so that it can be numbered and have its own address ``#fig-<id>``.

    Args:
        fig: a matplotlib figure; it is closed afterwards.
        id: its address, lower-case words joined by hyphens, once in the whole book.
        caption: what is seen, as MyST text: mathematics and ``{cite}`` work.
        alt: what is seen, for those who cannot: plain text.
        data: the numbers that are drawn, column name to values, or a DataFrame.
        seed: seed or seeds of what is random in it.
        recipes: of the networks in it, as names or objects with ``name`` and ``hash``.
        rtol, atol: data computed again agree with the published ones if
            :math:`|x - y| \le a + r\,|x|`; kept in the figure's JSON.

    Raises:
        ArgumentError: an argument is missing its text, the data are not finite, or an id occurs
            twice in a chapter.
        FileError: the published data are missing or differ from those computed now (``verify``),
            or the files cannot be written (``write``).

    >>> import matplotlib.pyplot as plt
    >>> fig, ax = plt.subplots()
    >>> lines = ax.plot([0.0, 0.5, 1.0], [0.0, 1.0, 0.0])
    >>> show_figure(
    ...     fig,
    ...     id="a-barrier",
    ...     caption="A barrier of height $1$.",
    ...     alt="A line rises from 0 to 1 and falls back to 0.",
    ...     data={"alpha": [0.0, 0.5, 1.0], "loss": [0.0, 1.0, 0.0]},
    ... )
    Figure a-barrier: A line rises from 0 to 1 and falls back to 0.
    """
    if not hasattr(fig, "savefig"):
        raise ArgumentError("fig", found=type(fig).__name__, expected="a matplotlib Figure")
    made = _Made(
        id=records.check_id("id", id),
        caption=records.check_text("caption", caption, "Say in a sentence what is seen."),
        alt=records.check_text("alt", alt, "Say what is seen to someone who cannot see it."),
        table=Table.of(data),
        seeds=_seeds(seed),
        recipes=tuple(provenance.recipe_names(recipes)),
        rtol=rtol,
        atol=atol,
    )
    mode = _mode()
    base = find_root() if mode == "show" else root()
    if mode == "verify":
        _verify(made, base)
    origin = _write(made, fig, base) if mode == "write" else _origin(made, base)
    picture = pictures.png(fig, made.id, _brief(origin))
    if plt := _pyplot():
        plt.close(fig)  # the notebook would show it a second time
    records.show(
        {
            "text/plain": f"Figure {made.id}: {made.alt}",
            "image/png": base64.b64encode(picture).decode(),
            records.FIGURE: made.record(),
        },
        # Not compared between runs, as digits beyond the tolerance may differ.
        {"image/png": {"alt": made.alt}, "sokmerge": {"csv": pictures.digest(made.table.csv())}},
    )


@dataclass(frozen=True)
class _Made:
    """The checked arguments of a figure."""

    id: str
    caption: str
    alt: str
    table: Table
    seeds: tuple[int, ...]
    recipes: tuple[str, ...]
    rtol: float
    atol: float

    def record(self) -> dict[str, Any]:
        """Return what describes the figure and is the same on every machine."""
        return {
            "id": self.id,
            "caption": self.caption,
            "alt": self.alt,
            "columns": list(self.table.columns),
            "rows": len(self.table.rows),
            "seeds": list(self.seeds),
            "recipes": list(self.recipes),
            "tolerance": {"rtol": self.rtol, "atol": self.atol},
        }


def _mode() -> str:
    mode = os.environ.get(MODE, "show")
    if mode not in ("show", "write", "verify"):
        raise ArgumentError(MODE, found=repr(mode), expected="show, write or verify")
    return mode


def _seeds(seed: int | Iterable[int] | None) -> tuple[int, ...]:
    if seed is None:
        return ()
    return tuple(int(item) for item in seed) if isinstance(seed, Iterable) else (int(seed),)


def _pyplot() -> Any:
    import sys

    return sys.modules.get("matplotlib.pyplot")


def _origin(made: _Made, base: Path | None) -> dict[str, Any]:
    """Return the full provenance."""
    described = made.record() | {"inputs": inputs.recorded(), "licence": pictures.LICENCE}
    return described | provenance.circumstances(base)


def _published(path: Path, content: str) -> dict[str, Any] | None:
    """Return the provenance at ``path`` if it is that of the same content.

    So a figure is written again only if something in it has changed, and the commit, code and
    versions in it are those that first made this content.
    """
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return before if before.get("content") == content else None


def _brief(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provenance that goes into a picture: files read are one hash there."""
    left_out = ("caption", "alt", "files", "columns", "rows", "tolerance")
    brief = {key: value for key, value in origin.items() if key not in left_out}
    read = brief["inputs"]
    return brief | {"inputs": {"files": len(read), "sha256": provenance.combined(read)}}


def _write(made: _Made, fig: Figure, base: Path) -> dict[str, Any]:
    """Write the files of a figure and return its provenance."""
    folder = Path(os.environ.get(STAGE) or base / PUBLIC) / made.id
    if STAGE in os.environ and folder.exists():
        raise ArgumentError(
            "id",
            found=f"{made.id!r}, a second time in this chapter",
            expected="an id that no other figure has",
        )
    draft = pictures.draft_svg(fig, made.id, made.alt)
    described = json.dumps([made.record(), inputs.recorded()], sort_keys=True)
    content = pictures.digest(described, draft, made.table.csv())
    origin = _published(base / PUBLIC / made.id / f"{made.id}.json", content)
    cited = {"content": content, "citation": book(base).citation(made.id)}
    origin = origin or _origin(made, base) | cited
    brief = _brief(origin)
    contents: dict[str, bytes] = {
        f"{made.id}.svg": pictures.svg(draft, brief).encode(),
        f"{made.id}.pdf": pictures.pdf(fig, made.id, made.caption, brief),
        f"{made.id}.csv": made.table.csv().encode(),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
    # The JSON comes last and vouches for the others.
    files = {name: sha256(folder / name) for name in contents}
    text = json.dumps({**origin, "files": files}, ensure_ascii=False, indent=2, sort_keys=True)
    write_atomically(folder / f"{made.id}.json", text + "\n")
    return origin


def _verify(made: _Made, base: Path) -> None:
    path = base / PUBLIC / made.id / f"{made.id}.csv"
    do = "Run `sokmerge chapters execute` on this chapter and look at what has changed."
    if not path.is_file():
        raise FileError(str(path), found="no file", expected="the published data", do=do)
    published = Table.read(path.read_text(encoding="utf-8"))
    told = difference(published, made.table, rtol=made.rtol, atol=made.atol)
    if told:
        raise FileError(
            str(path),
            found=told,
            expected=f"the same within rtol {made.rtol:g} and atol {made.atol:g}",
            do=do,
        )
