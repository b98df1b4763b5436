"""Numbers as people read them."""

import math
from collections.abc import Iterable
from datetime import UTC, datetime

from pd_pipeline.evaluation.results import Difference, Share
from pd_pipeline.evaluation.statistics import Estimate, Position

MINUS = "\N{MINUS SIGN}"


def decimals(values: Iterable[float]) -> int:
    """Digits after the point that suit the largest of `values`: three figures of what is below a tenth."""
    largest = max((abs(value) for value in values), default=0.0)
    if not 0 < largest < 0.1:
        return 1 if largest >= 100 else 2 if largest >= 1 else 3
    return min(12, 2 - math.floor(math.log10(largest)))


def number(value: float, digits: int) -> str:
    """1234.5 -> 1,234 or 1,234.5: thousands set apart, a true minus sign."""
    text = f"{value:,.{digits}f}"
    return text.replace("-", MINUS if any(digit in text for digit in "123456789") else "")  # no minus before zero


def percent(value: float, digits: int = 1) -> str:
    """0.985 -> 98.5 %."""
    return f"{number(100 * value, digits)} %"


def moment(text: str) -> str:
    """2026-07-14T09:30:05+00:00 -> 2026-07-14 09:30 UTC."""
    return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def interval(found: Estimate | Position | Difference | Share, digits: int, sign: int = 1) -> str:
    """3.6 (2.9 to 4.3): a value with its interval, which may be unknown; with `sign` -1 those of the opposite."""
    value = number(sign * found.value, digits)
    if found.low is None or found.high is None:
        return f"{value} (no interval)"
    low, high = sorted((sign * found.low, sign * found.high))
    return f"{value} ({number(low, digits)} to {number(high, digits)})"
