"""Which of Ray's workers are forked, and as what."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from services.mesh.processes.fork_server import ray_worker
from services.mesh.processes.fork_server.client import VARIABLE

RAYLET = {"RAY_JOB_ID": "01000000", "RAY_RAYLET_PID": "77", "PATH": "/bin"}


def arguments(language: str = "PYTHON", **context: Any) -> list[str]:
    """As the raylet gives them."""
    context = {"py_executable": sys.executable, "command_prefix": [], "override_worker_entrypoint": None, **context}
    return [
        "/ray/default_worker.py",
        "--node-id=1",
        f"--language={language}",
        f"--serialized-runtime-env-context={json.dumps(context)}",
        "--startup-token=4",
    ]


def test_a_worker_of_a_job_with_a_server_is_forked() -> None:
    request = ray_worker.forked(arguments(env_vars={VARIABLE: "/s", "PATH": "/theirs"}), RAYLET)
    assert request is not None
    assert request.arguments == ("/ray/default_worker.py", "--node-id=1", "--startup-token=4")
    assert request.environment == {**RAYLET, VARIABLE: "/s", "PATH": "/theirs"}
    assert request.folder == str(Path.cwd()) and not request.detached


@pytest.mark.parametrize(
    "given",
    [
        arguments(env_vars={}),
        arguments(),
        arguments("JAVA", env_vars={VARIABLE: "/s"}),
        arguments(env_vars={VARIABLE: "/s"}, py_executable="/other/python"),
        arguments(env_vars={VARIABLE: "/s"}, command_prefix=["cd /somewhere &&"]),
        arguments(env_vars={VARIABLE: "/s"}, override_worker_entrypoint="/other.py"),
        arguments(env_vars={VARIABLE: "/s", "PATH": "/mine:${PATH}"}),
        ["/ray/default_worker.py", "--language=PYTHON"],
    ],
)
def test_every_other_is_left_to_ray(given: list[str]) -> None:
    assert ray_worker.forked(given, RAYLET) is None


def test_rays_own_script_is_where_we_look_for_it() -> None:
    text = Path(ray_worker.stock_script()).read_text()
    assert _options(text) == {"--serialized-runtime-env-context", "--language"}


def _options(text: str) -> set[str]:
    return {
        line.strip().strip('",') for line in text.replace("(", "(\n").replace(",", ",\n").splitlines() if '"--' in line
    }
