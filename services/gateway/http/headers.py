"""The headers of a request, read once: every layer asks for some of them."""

from __future__ import annotations

from starlette.types import Scope

_READ = "rlhf.headers"


def of(scope: Scope) -> dict[str, str]:
    """By name in lower case. Of a header that stands several times the first counts."""
    found: dict[str, str] | None = scope.get(_READ)
    if found is None:
        found = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
        scope[_READ] = found
    return found
