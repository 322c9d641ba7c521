"""Starts of the mesh that fail, and one that stays in front. Ray is named as another's, which saves its start."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fix_mesh import Mesh, embedded_mesh


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with embedded_mesh(tmp_path / "home", RLHF_RAY_ADDRESS="127.0.0.1:1") as mesh:
        yield mesh


def test_process_that_fails_is_named_with_its_last_lines_and_nothing_stays(mesh: Mesh) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        mesh.environment["RLHF_GATEWAY_GRPC_LISTEN"] = f"127.0.0.1:{taken.getsockname()[1]}"
        done = mesh.rlhf("up")
    assert done.returncode == 1
    assert "the mesh did not come up: gateway ended with exit code" in done.stderr
    assert "  | " in done.stderr
    assert mesh.processes() == []
    assert mesh.rlhf("status").returncode == 3
    assert not mesh.home.endpoints.exists()


def test_wrong_setting_is_told(mesh: Mesh) -> None:
    """All at once, of whichever process, before anything starts."""
    mesh.environment |= {"RLHF_TRAINER_SLOTS": "many", "RLHF_TRAINER_LEASE_SECONDS": "15s", "RLHF_TRAINER_SLOT": "1"}
    done = mesh.rlhf("up")
    assert done.returncode == 2
    assert "RLHF_TRAINER_SLOTS" in done.stderr and "RLHF_TRAINER_LEASE_SECONDS" in done.stderr
    assert not mesh.home.run.exists()


REWARD = """
import os
try:
    os.write(os.memfd_create("x"), bytes(1 << 20))
    held = 1
except PermissionError:
    held = 0
def score(samples): return [{"score": 7, "parts": {"user": os.getuid(), "held": held}}]
"""


@pytest.mark.parametrize("prefix", [(), ("unshare", "--user", "--map-user=1000", "--map-group=1000")])
def test_reward_in_python_runs_isolated_in_the_mesh_of_root_and_of_another_user(
    mesh: Mesh, prefix: tuple[str, ...]
) -> None:
    """Another user has no capability: what root may do is of no help to him."""
    if prefix and os.geteuid() == 0:
        mesh.prefix = prefix
        if subprocess.run([*mesh.prefix, "true"], check=False).returncode:
            pytest.skip("this machine makes no namespace of users")
    mesh.environment["RLHF_TRAINER_CUSTOM_CODE"] = "allow"
    done = mesh.rlhf("up")
    assert done.returncode == 0, done.stderr
    test = ("reward", "test", "custom", "--completion", "x", "-o", "json")
    scored = mesh.rlhf(*test, f"--set=source={REWARD}")
    assert scored.returncode == 0, scored.stderr
    [verdict] = json.loads(scored.stdout)["verdicts"]
    assert (verdict["score"], verdict["parts"]["held"]) == (7, 0), verdict
    assert verdict["parts"]["user"] != 0, verdict
    refused = mesh.rlhf(*test, "--set=source=def score(samples): return [1e300]")
    assert refused.returncode == 1 and "REWARD_FAILED" in refused.stdout, refused


@pytest.mark.parametrize("whose", ["the user's", "the home's"])
def test_the_ports_speak_tls_and_the_command_needs_no_certificate(mesh: Mesh, tmp_path: Path, whose: str) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-days", "1", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    mesh.environment |= {"RLHF_TLS_CERTIFICATE": str(certificate), "RLHF_TLS_KEY": str(key)}
    if whose == "the home's":
        certificate = mesh.home.certificate
        mesh.environment |= {"RLHF_TLS_CERTIFICATE": "home", "RLHF_TLS_KEY": ""}
    done = mesh.rlhf("up")
    assert done.returncode == 0, done.stderr
    assert mesh.rlhf("dataset", "list").returncode == 0
    told = mesh.endpoints()
    assert told["http"].startswith("https://127.0.0.1:")
    trusting = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(certificate)))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), trusting)
    assert opener.open(f"{told['http']}/readyz", timeout=10).status == 200
    by_port = ("--server", told["grpc"], "--token-file", str(mesh.home.token))
    assert mesh.rlhf(*by_port, "--certificates", str(certificate), "dataset", "list").returncode == 0
    assert mesh.rlhf(*by_port, "dataset", "list").returncode != 0


def test_up_in_front_stays_until_it_is_told_to_end(mesh: Mesh) -> None:
    with subprocess.Popen(
        mesh.command("up", "--foreground"), env=mesh.environment, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while not mesh.home.endpoints.exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.1)
        assert mesh.status()["up"]
        assert mesh.rlhf("up").returncode == 0
        process.terminate()
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "[✓] gateway " in stderr
    assert mesh.processes() == []
