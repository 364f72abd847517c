"""Errors that say what was wrong, with which argument or file, and what to do.

Every error of this package is built from the same four parts, so that its message reads

    ``<subject>: found <found>; expected <expected>. <do>``

where the subject names the argument or the file.
"""

from __future__ import annotations

__all__ = ["SokmergeError", "ArgumentError", "FileError", "UnknownNameError"]


class SokmergeError(Exception):
    """Base of all errors raised on purpose by this package.

    Args:
        subject: the argument or file that is at fault, by name.
        found: what was found there.
        expected: what would have been accepted.
        do: one sentence, what the reader can do about it.

    >>> raise ArgumentError("alphas", found="an empty list", expected="numbers in [0, 1]")
    Traceback (most recent call last):
    ...
    sokmerge.errors.ArgumentError: alphas: found an empty list; expected numbers in [0, 1].
    """

    def __init__(self, subject: str, *, found: str, expected: str, do: str = "") -> None:
        self.subject, self.found, self.expected, self.do = subject, found, expected, do
        message = f"{subject}: found {found}; expected {expected}."
        super().__init__(f"{message} {do}" if do else message)

    def __reduce__(self):  # keyword-only parts would be lost between processes otherwise
        return _rebuild, (type(self), self.subject, self.found, self.expected, self.do)


def _rebuild(
    kind: type[SokmergeError], subject: str, found: str, expected: str, do: str
) -> SokmergeError:
    return kind(subject, found=found, expected=expected, do=do)


class ArgumentError(SokmergeError, ValueError):
    """An argument has a wrong value, shape, dtype, device or key."""


class FileError(SokmergeError, OSError):
    """A file is missing, altered, truncated or cannot be written."""

    def __str__(self) -> str:  # OSError formats its arguments in its own way
        return str(self.args[0])


class UnknownNameError(SokmergeError, LookupError):
    """A recipe, family, chapter, figure, claim or method of that name does not exist."""
