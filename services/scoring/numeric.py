"""Numbers in running text: found in linear time, compared in decimal arithmetic that cannot overflow.

Understood: signs, thousands separated by commas, decimals, powers of ten (1.5e-3), fractions (3/4, \\frac{3}{4}) and
per cent. Not understood, because they can mean two things: decimal commas and thousands separated by spaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Context, Decimal, DecimalException
from typing import Literal

Which = Literal["last", "first", "only"]
Percent = Literal["divide", "ignore"]

# Longer runs of digits are noise; a cap keeps arithmetic on them from growing.
LONGEST_NUMBER = 1_000

# Possessive quantifiers throughout: nothing that has matched is tried a second time, so no text is slow.
_UNSIGNED = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3}(?![0-9]))++|[0-9]++)(?:\.[0-9]++)?+|\.[0-9]++)(?:[eE][-+]?[0-9]++)?+"
_SIGN = r"(?:(?<![0-9A-Za-z.)\]}])[-+])?+"
_LATEX = rf"{_SIGN}\\[dt]?frac\{{(?P<over>[-+]?{_UNSIGNED})\}}\{{(?P<under>[-+]?{_UNSIGNED})\}}"
_PLAIN = rf"{_SIGN}{_UNSIGNED}(?: ?/ ?(?P<divisor>{_UNSIGNED}))?+"
_NUMBER = re.compile(rf"(?P<number>{_LATEX}|{_PLAIN})(?P<percent> ?\\?%)?+")

# Full-width forms and the other minus signs. Not NFKC, which turns 10² into 102.
_SAME_CHARACTER = str.maketrans("０１２３４５６７８９．，％－＋−–⁄∕", "0123456789.,%-+--//")

# No traps: an operation without a result gives NaN, which `_finite` refuses, instead of raising.
_ARITHMETIC = Context(prec=60, Emin=-999_999, Emax=999_999, traps=[])


@dataclass(frozen=True)
class Number:
    """A number as it was written: 50% has value 50 and `percent`."""

    value: Decimal
    percent: bool = False

    def reading(self, percent: Percent) -> Decimal:
        """The value, a hundredth of it for a percentage under `divide`."""
        return _ARITHMETIC.divide(self.value, Decimal(100)) if self.percent and percent == "divide" else self.value


def find(text: str, which: Which = "last") -> Number | None:
    """The last or the first number of a text; with `only`, None unless there is exactly one."""
    numbers = _numbers(text)
    first = next(numbers, None)
    if which == "first" or first is None:
        return first
    last = first
    for count, number in enumerate(numbers):
        if which == "only" and count == 0:
            return None
        last = number
    return last


def close(candidate: Decimal, reference: Decimal, absolute: float, relative: float) -> bool:
    """|candidate − reference| ≤ max(absolute, relative · |reference|), the tolerances read as they are written: 0.3 is
    three tenths and not the float just below it."""
    difference = _ARITHMETIC.abs(_ARITHMETIC.subtract(candidate, reference))
    allowed = max(Decimal(str(absolute)), _ARITHMETIC.multiply(Decimal(str(relative)), _ARITHMETIC.abs(reference)))
    return difference.is_finite() and difference <= allowed


def _numbers(text: str) -> Iterator[Number]:
    for match in _NUMBER.finditer(text.translate(_SAME_CHARACTER)):
        value = _value(match)
        if value is not None:
            yield Number(value, match["percent"] is not None)


def _value(match: re.Match[str]) -> Decimal | None:
    """The value of a match; None for a division by zero and for what is too long or too large."""
    written = match["number"]
    if len(written) > LONGEST_NUMBER:
        return None
    if match["over"] is not None:
        negative, over, under = written.startswith("-"), match["over"], match["under"]
        value = _ARITHMETIC.divide(_decimal(over), _decimal(under))
        return _finite(-value if negative else value)
    if match["divisor"] is not None:
        return _finite(_ARITHMETIC.divide(_decimal(written.partition("/")[0]), _decimal(match["divisor"])))
    return _finite(_decimal(written))


def _decimal(written: str) -> Decimal:
    try:
        return _ARITHMETIC.create_decimal(written.replace(",", "").strip())
    except DecimalException:  # an exponent beyond what the type holds
        return Decimal("NaN")


def _finite(value: Decimal) -> Decimal | None:
    return value if value.is_finite() else None
