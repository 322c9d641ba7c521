"""The token file, and who is let in."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mesh import identity
from services.mesh.errors import PermissionDenied, Unauthenticated


def test_the_token_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = identity.ensure_token(path)
    assert len(token) >= 43
    assert identity.ensure_token(path) == identity.read_token(path) == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_processes_that_start_together_get_one_token(tmp_path: Path) -> None:
    for round_ in range(20):
        path, together, found = tmp_path / f"token{round_}", threading.Barrier(8), []

        def ensure(path: Path = path, together: threading.Barrier = together, found: list[str] = found) -> None:
            together.wait()
            found.append(identity.ensure_token(path))

        threads = [threading.Thread(target=ensure) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        assert set(found) == {identity.read_token(path)}


def test_no_token_to_read(tmp_path: Path) -> None:
    with pytest.raises(Unauthenticated, match="cannot read"):
        identity.read_token(tmp_path / "none")
    (tmp_path / "empty").touch()
    with pytest.raises(Unauthenticated, match="empty"):
        identity.read_token(tmp_path / "empty")


@pytest.mark.parametrize("header", ["Bearer secret", "bearer secret", "BEARER secret "])
def test_the_token_lets_in(header: str) -> None:
    assert identity.authenticate([("x", "y"), ("authorization", header)], "secret").name == "user:owner"


@given(st.text() | st.binary())
def test_nothing_else_does(header: str | bytes) -> None:
    with pytest.raises(Unauthenticated):
        identity.authenticate([("authorization", header)], "\x00secret")


@pytest.mark.parametrize("header", ["", "secret", "Basic secret", "Bearer", "Bearer ", "Bearer secre", "Bearer sécret"])
def test_near_misses(header: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        identity.authenticate([("authorization", header)], "secret")
    assert "secret" not in str(caught.value)


def test_nobody_may_do_nothing() -> None:
    identity.authorize(identity.Principal("user:owner"), "GetJob", "projects/p")
    with pytest.raises(PermissionDenied):
        identity.authorize(None, "GetJob", "projects/p")
