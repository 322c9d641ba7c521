"""Intervals and tests against other implementations, and against what they promise."""

import random
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scoring.statistics import Interval, compare, mcnemar, wilson


# statsmodels 0.15.0: proportion_confint(successes, trials, 1 - confidence, "wilson"); scipy 1.17.1:
# binomtest(successes, trials).proportion_ci(confidence, "wilson") gives the same twelve digits.
@pytest.mark.parametrize(
    ("successes", "trials", "confidence", "low", "high"),
    [
        (0, 500, 0.95, 0.0, 0.00762434046155),
        (1, 500, 0.95, 0.000353136394559, 0.0112407067051),
        (360, 500, 0.95, 0.679081333238, 0.757563956959),
        (499, 500, 0.95, 0.988759293295, 0.999646863605),
        (500, 500, 0.95, 0.992375659538, 1.0),
        (7, 10, 0.90, 0.44169979587, 0.873123416097),
        (674, 1000, 0.99, 0.634780149359, 0.710926125255),
    ],
)
def test_wilson(successes: int, trials: int, confidence: float, low: float, high: float) -> None:
    interval = wilson(successes, trials, confidence)
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-11, abs=1e-15)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_in_range_holds_the_proportion_and_mirrors(case: tuple[int, int]) -> None:
    successes, trials = case
    interval, mirrored = wilson(successes, trials), wilson(trials - successes, trials)
    assert 0 <= interval.low <= successes / trials <= interval.high <= 1
    assert (interval.low, interval.high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low))


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="of"):
        wilson(successes, trials)


# statsmodels 0.15.0: mcnemar([[0, gained], [lost, 0]], exact=True).pvalue; scipy 1.17.1:
# binomtest(min(gained, lost), gained + lost).pvalue gives the same.
@pytest.mark.parametrize(
    ("gained", "lost", "p_value"),
    [
        (0, 0, 1.0),
        (5, 0, 0.0625),
        (8, 2, 0.109375),
        (90, 31, 7.480237585894541e-08),
        (31, 90, 7.480237585894541e-08),
        (400, 350, 0.07350777405843484),
        (1500, 1000, 1.3325871648376767e-23),
    ],
)
def test_mcnemar(gained: int, lost: int, p_value: float) -> None:
    assert mcnemar(gained, lost) == pytest.approx(p_value, rel=1e-9)


def test_a_paired_difference() -> None:
    first = [True] * 330 + [True] * 31 + [False] * 90 + [False] * 49
    second = [True] * 330 + [False] * 31 + [True] * 90 + [False] * 49
    result = compare(first, second)
    assert (result.gained, result.lost, result.difference) == (90, 31, 59 / 500)
    # By hand: cells 90.5 and 31.5 of 502; variance of a difference of two multinomial shares.
    gain, loss = 90.5 / 502, 31.5 / 502
    half = 1.959963984540054 * sqrt((gain * (1 - gain) + loss * (1 - loss) + 2 * gain * loss) / 502)
    assert (result.interval.low, result.interval.high) == pytest.approx((gain - loss - half, gain - loss + half))
    assert result.p_value == pytest.approx(7.480237585894541e-08)


def test_pairing_sees_what_two_separate_intervals_do_not() -> None:
    first = [True] * 350 + [False] * 150
    second = [True] * 375 + [False] * 125
    assert wilson(350, 500).overlaps(wilson(375, 500))
    assert compare(first, second).interval.low > 0


def test_the_interval_covers_as_often_as_it_says() -> None:
    """2,000 samples of 200 pairs whose true difference is 0.10: a 95 % interval misses it in about 100 of them."""
    generator = random.Random(0)
    missed = 0
    for _ in range(2_000):
        kinds = generator.choices(["gained", "lost", "both"], [0.20, 0.10, 0.70], k=200)
        interval = compare([kind != "gained" for kind in kinds], [kind != "lost" for kind in kinds]).interval
        missed += not interval.low <= 0.10 <= interval.high
    assert 60 < missed < 140  # mean 100, standard deviation 9.7


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_swapping_the_models_turns_the_sign(pairs: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    forth, back = compare(first, second), compare(second, first)
    assert forth.difference == -back.difference == pytest.approx((sum(second) - sum(first)) / len(pairs))
    assert (forth.interval.low, forth.interval.high) == pytest.approx((-back.interval.high, -back.interval.low))
    assert 0 < forth.p_value == back.p_value <= 1


@pytest.mark.parametrize(("first", "second"), [([], []), ([True], [])])
def test_compare_refuses(first: list[bool], second: list[bool]) -> None:
    with pytest.raises(ValueError, match="items"):
        compare(first, second)


def test_overlap_includes_a_shared_end() -> None:
    assert Interval(0, 1).overlaps(Interval(1, 2))
    assert not Interval(0, 1).overlaps(Interval(1.1, 2))
    assert not Interval(1.1, 2).overlaps(Interval(0, 1))
