"""Numbers as a reader sees them: few digits, and none that another processor would change."""

from __future__ import annotations

import math
from numbers import Integral

from sokmerge.errors import ArgumentError

__all__ = ["FLOOR", "MOST_DIGITS", "significant", "with_interval"]

MOST_DIGITS = 4
"""No more significant digits than these are ever printed in the book."""

FLOOR = 1e-6
"""Measurements below this are rounding noise of float32 and differ between processors."""


def significant(value: float, digits: int = 3, *, floor: float = FLOOR) -> str:
    r"""Write a number with few significant digits.

    A number :math:`x` is rounded at the digit :math:`10^{\lfloor\log_{10}|x|\rfloor + 1 - k}` for
    :math:`k` digits; zeros at the end of a fraction are dropped. Integers are exact and stay so.

    Args:
        value: a finite number.
        digits: how many significant digits, 1 to 4.
        floor: what lies closer to zero is written as ``<floor``, as its digits mean nothing.

    Raises:
        ArgumentError: the number is NaN or infinite, or ``digits`` is not in 1 to 4.

    >>> significant(0.123456), significant(12345.6), significant(0.5), significant(12000)
    ('0.123', '12300', '0.5', '12000')
    >>> significant(0.000012345), significant(3e-9), significant(-3e-9), significant(0.0)
    ('1.23e-05', '<1e-06', '>-1e-06', '0')
    """
    if not 1 <= digits <= MOST_DIGITS:
        raise ArgumentError("digits", found=repr(digits), expected=f"1 to {MOST_DIGITS}")
    if not math.isfinite(value):
        raise ArgumentError("value", found=repr(value), expected="a finite number")
    if isinstance(value, Integral):
        return str(int(value))
    value = float(value)
    if value == 0:
        return "0"
    if abs(value) < floor:
        return f"<{floor:.0e}" if value > 0 else f">-{floor:.0e}"
    rounded = float(f"{value:.{digits - 1}e}")
    exponent = math.floor(math.log10(abs(rounded)))
    if exponent < -4:
        return f"{rounded:.{digits - 1}e}"
    text = f"{rounded:.{max(0, digits - 1 - exponent)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def with_interval(mean: float, low: float, high: float) -> tuple[str, str, str]:
    """Write a mean and its interval to the same decimal place, chosen by the interval's width.

    Two digits of the half-width are shown, so that no digit is printed that the measurement does
    not support, and never more than four significant digits.

    >>> with_interval(0.123456, 0.101, 0.1459)
    ('0.123', '0.101', '0.146')
    >>> with_interval(1.2345, 1.2345, 1.2345)
    ('1.23', '1.23', '1.23')
    >>> with_interval(2e-9, -1e-9, 5e-9)
    ('0', '0', '0')
    """
    values = (mean, low, high)
    largest, half = max(map(abs, values)), (high - low) / 2
    if largest < FLOOR:
        return ("0", "0", "0")
    top = math.floor(math.log10(largest))
    if half < FLOOR / 2:
        decimals = 2 - top
    else:
        decimals = min(1 - math.floor(math.log10(half)), MOST_DIGITS - 1 - top)
    texts = [f"{round(value, decimals):.{max(0, decimals)}f}" for value in values]
    shown = [text.removeprefix("-") if float(text) == 0 else text for text in texts]
    return shown[0], shown[1], shown[2]
