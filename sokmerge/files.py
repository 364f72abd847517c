"""Files: their content hash, and writing them whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from sokmerge.errors import FileError

__all__ = ["sha256", "write_atomically"]


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: str | bytes | Callable[[Path], object]) -> Path:
    """Write a file so that a reader sees the old content or the new one, never a part.

    The content goes to a temporary file in the same folder, is flushed to the disk and then
    takes the place of ``path`` in one step. If anything fails, what was there stays.

    Args:
        path: the file to write; missing parent folders are made.
        content: text, bytes, or a function that writes to the path it is given (for libraries
            that save to a path themselves).

    Returns:
        ``path``.

    Raises:
        FileError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(temporary)
        elif isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            temporary.write_text(content, encoding="utf-8")
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise FileError(
            str(path),
            found=f"that it cannot be written ({error.strerror or error})",
            expected="a writable folder with room on its disk",
            do="What was there before is untouched. Free some space or choose another folder.",
        ) from error
    finally:
        with contextlib.suppress(OSError):  # moved, or never made
            temporary.unlink()
    return path
