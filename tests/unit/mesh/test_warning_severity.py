"""A warning that repeats never becomes less severe."""

from __future__ import annotations

from itertools import product

import pytest

from services.mesh.jobs.warnings import JobWarning, Severity


@pytest.mark.parametrize(("first", "later"), list(product(Severity, Severity)))
def test_a_repetition_does_not_lower_the_severity(first: Severity, later: Severity) -> None:
    one, other = (JobWarning(reason="A_B", message=str(each), severity=each) for each in (first, later))
    both = one.then(other)
    order = [Severity.INFO, Severity.WARNING, Severity.ERROR]
    assert (both.severity, both.message, both.count) == (order[max(map(order.index, (first, later)))], str(later), 2)
