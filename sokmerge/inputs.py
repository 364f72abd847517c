"""Which files of data and which checkpoints a process has read.

A result depends on the code that made it and on the files it read. Whoever reads such a file
records it here; whoever stamps a result asks for the list.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["record", "recorded", "PACKAGE"]

PACKAGE = Path(__file__).resolve().parent
_recorded: dict[str, str] = {}


def record(path: Path, digest: str) -> None:
    """Note that this process has read ``path``, whose content has the SHA-256 ``digest``.

    A file inside the package is noted by its path relative to it, so that the note is the same
    on every machine; any other file is noted by its name alone.
    """
    path = Path(path).resolve()
    inside = path.is_relative_to(PACKAGE)
    _recorded[path.relative_to(PACKAGE).as_posix() if inside else path.name] = digest


def recorded() -> dict[str, str]:
    """Return what has been read so far: name to SHA-256, in order of the names."""
    return dict(sorted(_recorded.items()))
