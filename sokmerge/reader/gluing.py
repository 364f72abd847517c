"""Numbers in the text of a page, taken from the computation."""

from __future__ import annotations

from sokmerge.errors import ArgumentError
from sokmerge.reader import records
from sokmerge.reader.digits import significant
from sokmerge.reader.estimates import Estimate

__all__ = ["glue"]


def glue(name: str, value: float | str | Estimate, digits: int = 3) -> None:
    """Store a value under a name, so that the text can quote it as ``{glue:text}`name```.

    Nothing is displayed in the notebook. The output is the one that ``myst_nb.glue(name, value,
    display=False)`` makes, so that the pages need nothing of this package.

    Args:
        name: lower-case words joined by hyphens, once in a notebook.
        value: a number, which is rounded; an estimate, which is written with its interval to the
            digits that this supports; or a text, which stays as it is.
        digits: significant digits of a number, 1 to 4. Three agree between processors.

    Raises:
        ArgumentError: a bad name, a number that is not finite, or ``digits`` out of range.

    >>> glue("barrier-of-one-pair", 0.123456)
    """
    records.check_id("name", name)
    if isinstance(value, Estimate):
        text = value.interval
    elif isinstance(value, str):
        text = records.check_text("value", value)
    else:
        try:
            text = significant(value, digits)
        except TypeError as error:
            raise ArgumentError(
                "value",
                found=type(value).__name__,
                expected="a number, an Estimate or a text",
                do="Of a tensor take .item().",
            ) from error
    metadata = {"scrapbook": {"name": name, "mime_prefix": records.GLUE}}
    records.show({records.GLUE + "text/plain": repr(text)}, metadata)
