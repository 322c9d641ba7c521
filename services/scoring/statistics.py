"""How sure a measured accuracy is, and whether one model beats another on the same problems. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt
from statistics import NormalDist


@dataclass(frozen=True)
class Interval:
    """A closed range, of a proportion or of a difference between two."""

    low: float
    high: float

    def overlaps(self, other: Interval) -> bool:
        """Whether the two share a value. If not, the two proportions differ by more than both uncertainties."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class PairedDifference:
    """What changed between two measurements of the same items.

    `difference` is the second proportion minus the first; `gained` and `lost` count the items that only the second or
    only the first had right; `p_value` is McNemar's.
    """

    difference: float
    interval: Interval
    gained: int
    lost: int
    p_value: float


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion; it holds near 0 and 1, where p ± 1.96·√(p(1−p)/n) does not.

    Wilson 1927, J. Am. Stat. Assoc. 22:209; recommended by Brown, Cai, DasGupta 2001, Statistical Science 16:101.
    Raises ValueError unless 0 ≤ successes ≤ trials and trials > 0.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} of {trials}")
    z = _quantile(confidence)
    proportion = successes / trials
    scale = 1 + z * z / trials
    centre = (proportion + z * z / (2 * trials)) / scale
    half = z / scale * sqrt(proportion * (1 - proportion) / trials + z * z / (4 * trials * trials))
    # At 0 and n the bound is exactly 0 and 1; rounding must not put it beside.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return Interval(low, high)


def compare(first: Sequence[bool], second: Sequence[bool], confidence: float = 0.95) -> PairedDifference:
    """Compare two models that answered the same items, given in the same order.

    The interval is Wald's on matched pairs with ½ added to each of the four cells: Agresti, Min 2005, Statistics in
    Medicine 24:729, "Wald+2". Raises ValueError unless the two have the same length, above 0.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} items")
    gained = sum(after and not before for before, after in zip(first, second, strict=True))
    lost = sum(before and not after for before, after in zip(first, second, strict=True))
    trials = len(first) + 2
    centre = (gained - lost) / trials
    half = _quantile(confidence) * sqrt((gained + lost + 1) - (gained - lost) ** 2 / trials) / trials
    interval = Interval(max(-1.0, centre - half), min(1.0, centre + half))
    return PairedDifference((gained - lost) / len(first), interval, gained, lost, mcnemar(gained, lost))


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided McNemar test: how likely so uneven a split of the changed items is by chance alone.

    p = min(1, 2·Σ_{k ≤ min(g, l)} C(g+l, k) / 2^(g+l)). McNemar 1947, Psychometrika 12:153, in its binomial form.
    """
    changed = gained + lost
    tail = sum(comb(changed, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**changed)


def _quantile(confidence: float) -> float:
    """z with P(|Z| ≤ z) = confidence. Raises ValueError (StatisticsError) unless 0 < confidence < 1."""
    return NormalDist().inv_cdf((1 + confidence) / 2)
