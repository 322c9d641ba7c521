"""A run waits for a Ray that is being started again, says so, and can be stopped meanwhile."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from services.mesh.runs.process import Control, StopRequestedError
from services.mesh.runs.runners import Entrypoint
from services.mesh.runs.runners.local import LocalRun
from services.trainer.verl import ray_connection
from services.trainer.verl.failures import RayUnreachableError, explain
from services.trainer.verl.ray_connection import wait_for_ray


@pytest.fixture
def address() -> str:
    """Where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_a_ray_that_stays_away_is_a_reason_to_try_again(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_connection, "_POLL_SECONDS", 0.01)
    told: list[str] = []
    with pytest.raises(RayUnreachableError, match="nobody listens") as raised:
        wait_for_ray(address, Control(tmp_path), lambda: told.append("waiting"), patience_seconds=0.2)
    assert explain(raised.value).reason == "RAY_UNREACHABLE"
    assert told == ["waiting"], "once, and again only after a minute"


def test_a_run_that_waits_for_ray_can_be_stopped(tmp_path: Path, address: str) -> None:
    def stop() -> None:
        LocalRun(tmp_path, Entrypoint("python", "none", {})).request_stop()

    with pytest.raises(StopRequestedError):
        wait_for_ray(address, Control(tmp_path), stop)
