"""Each check of `rlhf doctor` finds what it is for, and says how to mend it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli import doctor_checks
from services.mesh.settings import Environment
from services.supervisor.embedded import Home, StartFailed


@pytest.mark.parametrize(
    ("finding", "level"),
    [
        (doctor_checks.check_platform("Linux", (3, 11)), "ok"),
        (doctor_checks.check_platform("Linux", (3, 13)), "fail"),
        (doctor_checks.check_platform("Darwin", (3, 11)), "fail"),
        (doctor_checks.check_cores(2), "ok"),
        (doctor_checks.check_cores(1), "warn"),
        (doctor_checks.check_memory(16 * 10**9), "ok"),
        (doctor_checks.check_memory(5 * 10**9), "warn"),
        (doctor_checks.check_memory(2 * 10**9), "fail"),
        (doctor_checks.check_open_files(65_536), "ok"),
        (doctor_checks.check_open_files(-1), "ok"),
        (doctor_checks.check_open_files(1024), "warn"),
        (doctor_checks.check_open_files(256), "fail"),
        (doctor_checks.check_clock(2_000_000_000, 1_900_000_000), "ok"),
        (doctor_checks.check_clock(0, 1_900_000_000), "fail"),
        (doctor_checks.check_shared_memory(Path("/nowhere")), "warn"),
        (doctor_checks.check_binary("x", lambda: ["/bin/true"]), "ok"),
        (doctor_checks.check_binary("x", lambda: ["/bin/false"]), "fail"),
        (doctor_checks.check_binary("x", lambda: ["/nowhere"]), "fail"),
        (doctor_checks.check_confinement(["/bin/true"]), "ok"),
        (doctor_checks.check_confinement(["/bin/false"]), "warn"),
        (doctor_checks.check_confinement(["/nowhere"]), "warn"),
    ],
)
def test_level_and_remedy(finding: doctor_checks.Finding, level: str) -> None:
    assert finding.level == level
    assert bool(finding.remedy) == (level != "ok")


def test_missing_wheel_is_a_finding() -> None:
    def missing() -> list[str]:
        raise StartFailed("NO_POSTGRES", "the package is missing")

    finding = doctor_checks.check_binary("postgres", missing)
    assert (finding.level, finding.message) == ("fail", "the package is missing")


def test_installed_packages_are_as_pinned() -> None:
    assert [finding.level for finding in doctor_checks.check_packages("cpu")] == ["ok"]


def test_package_of_another_version_and_missing_one_are_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["pytest==1.0", "not-there>=1", "typer>=0.1", 'also-not-there>=1; extra == "gpu"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    (finding,) = doctor_checks.check_packages("cpu")
    assert finding.level == "fail"
    assert "pytest is " in finding.message
    assert "not-there is missing" in finding.message
    assert "also" not in finding.message


def test_home_open_to_others_is_warned_of(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert doctor_checks.check_home(tmp_path).level == "warn"
    tmp_path.chmod(0o700)
    assert doctor_checks.check_home(tmp_path).level == "ok"
    assert doctor_checks.check_home(tmp_path / "new").level == "ok"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_home_of_somebody_else_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 12345)
    finding = doctor_checks.check_home(tmp_path)
    assert (finding.level, "12345" in finding.message) == ("fail", True)


def test_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (finding,) = doctor_checks.check_ports(Home(tmp_path), Environment({"RLHF_GATEWAY_HTTP_LISTEN": address}))
    assert finding.level == "fail"
    assert address in finding.message
    (finding,) = doctor_checks.check_ports(Home(tmp_path), Environment({"RLHF_GATEWAY_HTTP_LISTEN": address}))
    assert finding.level == "ok"


def test_json_and_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    from services.cli.__main__ import app

    good, bad = doctor_checks.Finding("one", "ok", "fine"), doctor_checks.Finding("two", "fail", "broken", "mend it")
    for findings, code in (([good], 0), ([good, bad], 1)):
        monkeypatch.setattr(doctor_checks, "examine", lambda home, environment, found=findings: iter(found))
        result = CliRunner().invoke(app, ["doctor", "-o", "json"])
        assert result.exit_code == code
        document = json.loads(result.stdout)
        assert document["ok"] is (code == 0)
        assert len(document["findings"]) == len(findings)
        assert "mend it" in CliRunner().invoke(app, ["doctor"]).stdout or code == 0
