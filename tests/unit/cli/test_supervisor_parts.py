"""What the supervisor is made of: logs that stay short, ports that stay the same, what the services are told."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from services.cli.commands import lifecycle
from services.mesh.errors import InvalidArgument
from services.mesh.processes import procfs
from services.mesh.settings import Environment
from services.supervisor import logs, mesh_plan, ports, state
from services.supervisor.embedded import Home
from services.supervisor.logs import rotate
from services.supervisor.state import MeshState, Phase
from tests.fix_member import background, until


def test_log_that_is_too_long_is_copied_aside_and_a_writer_goes_on_at_its_start(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    with log.open("ab", buffering=0) as writer:
        for number in range(5):
            writer.write(b"%d" % number * 100)
            assert rotate(log, max_bytes=100, keep=3)
            assert log.stat().st_size == 0
        writer.write(b"next")
    assert log.read_bytes() == b"next"
    assert [Path(f"{log}.{number}").read_bytes()[:1] for number in (1, 2, 3)] == [b"4", b"3", b"2"]
    assert not Path(f"{log}.4").exists()


def test_short_or_absent_log_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert not rotate(log)
    log.write_text("short")
    assert not rotate(log)
    assert log.read_text() == "short"


async def test_a_log_that_cannot_be_copied_aside_hinders_no_other_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that is full for a while."""
    monkeypatch.setattr(logs, "_INTERVAL_SECONDS", 0.01)
    for name in ("a.log", "b.log"):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, logs.MAX_BYTES)
        (tmp_path / f"{name}.2").touch()
        (tmp_path / f"{name}.3").mkdir()  # whose place no file can take
    async with background(logs.keep_short(tmp_path)):
        for name in ("b.log", "a.log"):
            (tmp_path / f"{name}.3").rmdir()
            await until(lambda name=name: not (tmp_path / name).stat().st_size)


def test_ports_are_those_of_last_time_unless_somebody_took_one(tmp_path: Path) -> None:
    path = tmp_path / "ports.json"
    first = ports.Ports(path, ())
    taken = {name: first.take(name) for name in ("a", "b")}
    first.save()
    with socket.create_server(("127.0.0.1", taken["b"])):
        again = ports.Ports(path, ())
        assert again.take("a") == taken["a"]
        assert again.take("b") not in taken.values()
        # Of a process that lives on and is to be kept.
        assert ports.Ports(path, {"b"}).take("b") == taken["b"]


def test_broken_ports_file_costs_only_the_memory(tmp_path: Path) -> None:
    (tmp_path / "ports.json").write_text("{")
    assert ports.Ports(tmp_path / "ports.json", ()).take("a") > 0


def options(**values: str) -> mesh_plan.Options:
    return mesh_plan.Options.read(Environment(values))


@pytest.fixture
def root(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.make()
    return home


def test_services_learn_all_addresses_and_the_embedded_parts_no_secret(root: Home) -> None:
    plan = mesh_plan.build(
        root, options(), {"PATH": "/bin", "RLHF_POSTGRES_URL": "", "RLHF_X": "secret", "RAY_ADDRESS": "x"}, ()
    )
    assert [each.program.name for each in plan.foundations] == ["postgres", "nats", "ray", "fork-server"]
    assert [each.program.name for each in plan.services] == [
        "dataset", "dataset.worker", "trainer", "trainer.worker", "gateway",
    ]  # fmt: skip
    for planned in plan.services:
        told = planned.program.environment
        assert told["RLHF_DATASET_TARGET"] == told["RLHF_DATASET_LISTEN"] == plan.endpoints["services"]["dataset"]
        needed = {"dataset": 2, "trainer": 2, "gateway": 0}.get(planned.program.name, 1)
        urls = [told.get(f"RLHF_{name}_URL") for name in ("POSTGRES", "NATS")]
        assert urls == [*[plan.endpoints["postgres_url"], plan.endpoints["nats_url"]][:needed], *[None] * (2 - needed)]
        assert told["RLHF_RAY_ADDRESS"] == plan.endpoints["ray_address"]
        assert (told["RAY_AUTH_MODE"], told["RAY_USE_TLS"]) == ("token", "1")
        assert told["RLHF_HOME"] == str(root.root)
        assert planned.needs == ("postgres", "nats")
        assert planned.program.death_signal is not None
    for planned in plan.foundations:
        told = planned.program.environment
        assert not [key for key in told if key.startswith("RLHF_") and key != "RLHF_SUPERVISED_HOME"]
        assert "RAY_ADDRESS" not in told
    passwords = [path.read_text().strip() for path in (root.postgres / "password", root.nats / "seed")]
    words = " ".join(word for each in (*plan.foundations, *plan.services) for word in each.program.arguments)
    assert not any(password in words for password in passwords)
    assert not any(password in repr(plan.services[0].program) for password in passwords)
    environments = " ".join(str(dict(each.program.environment)) for each in (*plan.foundations, *plan.services))
    assert not any(password in environments + str(plan.endpoints) for password in passwords)


def test_each_process_has_a_page_for_prometheus_where_it_is_asked_for(root: Home) -> None:
    asked = options(RLHF_TELEMETRY="prometheus,otlp", RLHF_PROMETHEUS_LISTEN="127.0.0.1:9000")
    inherited = {"RLHF_TELEMETRY": "prometheus,otlp", "OTEL_EXPORTER_OTLP_HEADERS": "api-key=secret"}
    plan = mesh_plan.build(root, asked, inherited, ())
    pages = plan.endpoints["metrics"]
    assert list(pages) == [each.program.name for each in plan.services]
    assert len(set(pages.values())) == len(pages) and "http://127.0.0.1:9000/metrics" not in pages.values()
    for planned in plan.services:
        told = planned.program.environment
        assert pages[planned.program.name] == f"http://{told['RLHF_PROMETHEUS_LISTEN']}/metrics"
        assert told["RLHF_TELEMETRY"] == "prometheus,otlp"
        assert told["OTEL_EXPORTER_OTLP_HEADERS"] == "api-key=secret"
    assert not any("secret" in str(dict(planned.program.environment)) for planned in plan.foundations)
    plain = mesh_plan.build(root, options(), {}, ())
    assert plain.endpoints["metrics"] == {}
    assert not any("RLHF_PROMETHEUS_LISTEN" in planned.program.environment for planned in plain.services)


def test_the_supervisor_gets_the_settings_of_whoever_starts_it(root: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses with passwords too: it hands them on to the services."""
    given: dict[str, Any] = {}
    monkeypatch.setattr("services.cli.commands.lifecycle.subprocess.Popen", lambda *_, **options: given.update(options))
    monkeypatch.setenv("RLHF_POSTGRES_URL", "postgresql://u:p@elsewhere/d")
    lifecycle.start_supervisor(root)
    assert given["env"]["RLHF_POSTGRES_URL"] == "postgresql://u:p@elsewhere/d"
    assert given["env"]["RLHF_HOME"] == str(root.root)


def test_second_plan_of_a_home_has_the_same_addresses_and_passwords(root: Home) -> None:
    first, second = (mesh_plan.build(root, options(), {}, ()).endpoints for _ in range(2))
    assert first == second


def test_each_embedded_part_gives_way_to_a_setting(root: Home) -> None:
    given = options(
        RLHF_POSTGRES_URL="postgresql://p", RLHF_NATS_URL="nats://n", RLHF_RAY_ADDRESS="ray:1",
        RLHF_ARTIFACTS_URL="s3://b", RLHF_GATEWAY_HTTP_LISTEN="0.0.0.0:80", RLHF_TRAINER_SLOTS="3",
    )  # fmt: skip
    plan = mesh_plan.build(root, given, {}, ())
    assert plan.foundations == []
    told = plan.services[0].program.environment
    assert told["RLHF_POSTGRES_URL"] == "postgresql://p"
    assert told["RLHF_NATS_URL"] == "nats://n"
    assert told["RLHF_RAY_ADDRESS"] == "ray:1"
    assert told["RLHF_ARTIFACTS_URL"] == "s3://b"
    assert told["RLHF_GATEWAY_HTTP_LISTEN"] == "0.0.0.0:80"
    assert told["RLHF_TRAINER_SLOTS"] == "3"
    assert "RLHF_TRAINER_SLOT_MEMORY_BYTES" not in told, "nothing is known of another Ray's machines"
    assert plan.endpoints["http"] == "http://127.0.0.1:80"
    assert plan.services[0].needs == ()
    assert not (root.postgres.exists() or root.nats.exists() or root.ray.exists())


def test_a_slots_memory_is_told_unless_somebody_has_said_it(root: Home) -> None:
    told = mesh_plan.build(root, options(RLHF_TRAINER_SLOTS="2"), {}, ()).services[0].program.environment
    assert int(told["RLHF_TRAINER_SLOT_MEMORY_BYTES"]) * 2 > 1 << 30
    said = {"RLHF_TRAINER_SLOT_MEMORY_BYTES": "5"}
    assert mesh_plan.build(root, options(), said, ()).services[0].program.environment.items() >= said.items()


def test_every_wrong_setting_is_told_at_once() -> None:
    with pytest.raises(InvalidArgument) as caught:
        options(RLHF_RAY_ADDRESS="nowhere", RLHF_TRAINER_SLOTS="-1")
    assert {violation.field for violation in caught.value.violations} == {"RLHF_RAY_ADDRESS", "RLHF_TRAINER_SLOTS"}


@pytest.mark.parametrize("text", ["", "{", json.dumps({"phase": "ready"}), json.dumps({"phase": "unheard of"})])
def test_state_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.json"
    assert state.read(path) is None
    path.write_text(text)
    assert state.read(path) is None


def test_state_comes_back_as_written_and_knows_whether_its_writer_lives(tmp_path: Path) -> None:
    me = procfs.identify(os.getpid())
    assert me is not None
    written = MeshState(me, Phase.READY, 1.5)
    state.write(tmp_path / "state.json", written)
    assert state.read(tmp_path / "state.json") == written
    assert written.alive()
    assert not MeshState(procfs.ProcessId(me.pid, me.start_ticks + 1), Phase.READY).alive()
