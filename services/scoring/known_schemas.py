"""Errors of schemas, as another process has found them."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

# By digest; "" where nothing is wrong.
_faults: ContextVar[Mapping[bytes, str]] = ContextVar("faults", default=MappingProxyType({}))


@contextlib.contextmanager
def known(faults: Iterable[tuple[Any, str]]) -> Iterator[None]:
    """A block in which these schemas are not checked again: each with what is wrong with it, or ""."""
    token = _faults.set({_digest(schema): fault for schema, fault in faults})
    try:
        yield
    finally:
        _faults.reset(token)


def fault_of(schema: Any) -> str | None:
    """None where it is not known."""
    faults = _faults.get()
    return faults.get(_digest(schema)) if faults else None


def _digest(schema: Any) -> bytes:
    # It came as JSON.
    return hashlib.sha256(json.dumps(schema).encode()).digest()
