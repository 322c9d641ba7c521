"""What can be said where a part is not known, so that one answer tells everything that is wrong with a request.

A rule about several values cannot be asked where one of them is wrong by itself, or was not found. `partial_instance`
makes an object whose other fields raise UnknownField as soon as they are read; `collect_violations` asks rules and
skips each that has met such a field. So no rule has to think of it: it is asked where all that it reads is known, and
only there.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NoReturn, TypeVar

from services.mesh.errors import InvalidArgument, NotFound, Violation

K = TypeVar("K")
T = TypeVar("T")


class UnknownField(Exception):
    """A field was read whose value is not known. No AttributeError: `hasattr` would swallow that."""


def partial_instance(kind: type[K], known: Mapping[str, Any]) -> K:
    """An instance of the dataclass `kind` that has the `known` fields; reading another one raises UnknownField."""
    missing = [field.name for field in dataclasses.fields(kind) if field.name not in known]  # type: ignore[arg-type]
    if not missing:
        return kind(**known)
    # Properties of a class of its own: they come before the defaults, which dataclasses keep on theirs.
    members = {name: property(functools.partial(_refuse, name)) for name in missing}
    made: Any = object.__new__(type(kind.__name__, (kind,), members))
    for name, value in known.items():
        object.__setattr__(made, name, value)
    return made


def collect_violations(*rules: Callable[[], Iterable[Violation]]) -> list[Violation]:
    """What the rules say, each of which finds or does not find one thing; one that reads what is unknown says nothing.

    A rule is given as a function without arguments, so that its own are read where it can be skipped:
    `collect_violations(lambda: check_length(params.max_length, facts), …)`.
    """
    return [violation for rule in rules for violation in value_or(functools.partial(_all, rule), [])]


def value_or(read: Callable[[], T], otherwise: T) -> T:
    """What `read` gives, or `otherwise` where it meets something unknown."""
    try:
        return read()
    except UnknownField:
        return otherwise


async def find_or_report(pending: Awaitable[T], field: str, found: list[Violation]) -> T | None:
    """What a look-up gives; where that is an error of the caller's, None, and what is wrong goes to `found`."""
    try:
        return await pending
    except InvalidArgument as error:
        found += [Violation(field, violation.description) for violation in error.violations]
    except NotFound as error:
        found.append(Violation(field, str(error)))
    return None


def _all(rule: Callable[[], Iterable[Violation]]) -> list[Violation]:
    return list(rule())


def _refuse(name: str, owner: object) -> NoReturn:
    raise UnknownField(name)
