"""ETag of an answer to a GET: the resource's own `etag` where it has one, otherwise a hash of the answer.

Weak, since one answer goes out plain or packed. Source: RFC 9110, 8.8.3 and 13.1.2.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

_OPAQUE = re.compile(r"[\x21\x23-\x7e]{1,200}")
_HASH_BYTES = 16


def of(reply: Any, body: bytes) -> str:
    """`reply` is the message and `body` its JSON."""
    own = getattr(reply, "etag", "")
    if not (isinstance(own, str) and _OPAQUE.fullmatch(own)):
        own = hashlib.blake2b(body, digest_size=_HASH_BYTES).hexdigest()
    return f'W/"{own}"'


def is_known(if_none_match: str | None, etag: str) -> bool:
    """Whether the client has this answer already; compared weakly."""
    if if_none_match is None:
        return False
    tags = (tag.strip().removeprefix("W/") for tag in if_none_match.split(","))
    return any(tag in ("*", etag.removeprefix("W/")) for tag in tags)
