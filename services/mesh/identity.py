"""Who calls, and whether they may.

For now one token opens everything; what matters is that every call passes through `authorize` with its verb and
resource, so that roles can come later without touching a service.
"""

from __future__ import annotations

import contextlib
import contextvars
import hmac
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from services.mesh.errors import NotFound, PermissionDenied, Unauthenticated

_TOKEN_BYTES = 32
SECRET_PREFIX = "secret:"  # noqa: S105 - how one is referred to
_SECRET_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_LONGEST_SECRET = 65_536


@dataclass(frozen=True)
class Principal:
    """Who a call comes from: `user:owner` for the holder of the token, `service:<name>` for a process of the mesh."""

    name: str


_current: contextvars.ContextVar[Principal | None] = contextvars.ContextVar("principal", default=None)


def current() -> Principal | None:
    """The caller of the RPC in progress; None outside one."""
    return _current.get()


def become(principal: Principal) -> None:
    """Set the caller for the rest of this task."""
    _current.set(principal)


def ensure_token(path: Path) -> str:
    """The token in `path`; made at random with mode 0600 when the file is not there.

    The file appears with the token in it: processes that start together all read the same one.
    """
    if path.exists():
        return read_token(path)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(_TOKEN_BYTES) + "\n")
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        fresh.unlink()
    return read_token(path)


def rotate_token(path: Path) -> str:
    """Put another token in the place of the one in `path`, at once: a reader sees the old one or the new."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        token = ensure_token(fresh)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return token


def read_token(path: Path) -> str:
    """The token in `path`. Raises Unauthenticated when there is none to read."""
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise Unauthenticated("NO_TOKEN", f"cannot read the token file {path}: {error.strerror}", path=path) from None
    if not token:
        raise Unauthenticated("NO_TOKEN", f"the token file {path} is empty", path=path)
    return token


def check_secret_reference(reference: str) -> str:
    """The name in `secret:<name>`. Raises ValueError, without the text: somebody may have put a secret there."""
    name = reference.removeprefix(SECRET_PREFIX)
    if not reference.startswith(SECRET_PREFIX) or not _SECRET_NAME.fullmatch(name):
        raise ValueError(f"must be {SECRET_PREFIX}<name>, a file of the secrets' folder, and never the secret itself")
    return name


def read_secret(folder: Path, reference: str) -> str:
    """The secret behind `secret:<name>`: the file of that name in `folder`. Raises NotFound, ValueError."""
    name = check_secret_reference(reference)
    try:
        value = (folder / name).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise NotFound("SECRET_NOT_FOUND", f"there is no readable secret {name!r} in {folder}", name=name) from None
    # It becomes a header of HTTP, and a client that refuses one quotes it.
    if not value or len(value) > _LONGEST_SECRET or not (value.isascii() and value.isprintable()):
        message = f"the secret {name!r} in {folder} must be one line of printable ASCII, of at most {_LONGEST_SECRET}"
        raise NotFound("SECRET_NOT_FOUND", message, name=name)
    return value


def authenticate(metadata: Iterable[tuple[str, str | bytes]], token: str) -> Principal:
    """The principal of a call by its `authorization: Bearer …` header. Raises Unauthenticated."""
    given = next((value for key, value in metadata if key == "authorization"), "")
    scheme, _, credential = (given if isinstance(given, str) else "").partition(" ")
    if scheme.lower() != "bearer" or not credential:
        raise Unauthenticated("NO_TOKEN", "send the token as `authorization: Bearer <token>`")
    if not hmac.compare_digest(credential.strip().encode(), token.encode()):
        raise Unauthenticated("WRONG_TOKEN", "the token is not the one of this mesh")
    return Principal("user:owner")


def authorize(principal: Principal | None, verb: str, resource: str) -> None:
    """Whether `principal` may do `verb` (the RPC's name) to `resource` (a resource name; empty for the whole service).

    Raises PermissionDenied. Today every authenticated principal may do everything.
    """
    if principal is None:
        raise PermissionDenied("NOT_ALLOWED", f"nobody may {verb} {resource}", verb=verb, resource=resource)
