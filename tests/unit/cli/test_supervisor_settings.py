"""What `rlhf up` says of the settings that it is called with."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from services.mesh.errors import InvalidArgument
from services.supervisor import settings
from services.supervisor.embedded import Home
from services.supervisor.settings import Difference

OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"


def wrong(**values: str) -> dict[str, str]:
    with pytest.raises(InvalidArgument) as caught:
        settings.check(values)
    return {violation.field: violation.description for violation in caught.value.violations}


def test_what_any_process_would_refuse_is_told_at_once() -> None:
    found = wrong(
        RLHF_TRAINER_SLOTS="many",
        RLHF_TRAINER_LEASE_SECONDS="15s",
        RLHF_TRAINER_CUSTOM_CODE="alow",
        RLHF_GATEWAY_ACCESS_LOG="maybe",
        RLHF_DATASET_MAX_UPLOAD_BYTES="1G",
        RLHF_KEEP_REQUESTS_DAYS="1",
        RLHF_TELEMETRY="jaeger",
        RLHF_TLS_KEY="key.pem",
    )
    assert {name: text.partition(" (got")[0] for name, text in found.items()} == {
        "RLHF_TRAINER_SLOTS": "must be a number from 0 to 100000",
        "RLHF_TRAINER_LEASE_SECONDS": "must be a number from 1 to 3600",
        "RLHF_TRAINER_CUSTOM_CODE": "must be one of refuse, allow, allow-unisolated",
        "RLHF_GATEWAY_ACCESS_LOG": "must be 0 or 1",
        "RLHF_DATASET_MAX_UPLOAD_BYTES": "must be a number from 1 to 1125899906842624",
        "RLHF_KEEP_REQUESTS_DAYS": "must be a number from 7 to 36500",
        "RLHF_TELEMETRY": "knows otlp, prometheus",
        "RLHF_TLS_CERTIFICATE": "must be set, since RLHF_TLS_KEY is",
    }


def test_what_up_alone_takes_is_not_refused_for_a_service_that_gets_something_else() -> None:
    assert settings.check({"RLHF_TRAINER_SLOTS": "0"}).settings == {"RLHF_TRAINER_SLOTS": "0"}
    assert settings.check({"RLHF_TRAINER_SLOTS": " ", "PATH": "/bin"}).settings == {}
    assert settings.check({"RLHF_TLS_CERTIFICATE": "home"}).settings == {"RLHF_TLS_CERTIFICATE": "home"}


def test_a_name_that_is_no_setting_is_told_with_the_nearest() -> None:
    notes = settings.check(
        {
            "RLHF_TRAINER_SLOT": "4",
            "RLHF_MODEL_ROOT": "/data",
            "RLHF_SOMETHING_ELSE": "1",
            "RLHF_TRAINER_DEVICE": "cuda",
            "RLHF_SERVER": "there:1",
            "RLHF_MODEL_ROOTS": "/data",
            "RLHF_SUPERVISED_HOME": "/root/.rlhf",
        }
    ).notes
    assert notes == (
        "RLHF_MODEL_ROOT is no setting and changes nothing; did you mean RLHF_MODEL_ROOTS?",
        "RLHF_SOMETHING_ELSE is no setting and changes nothing; docs/operations.md lists them all",
        "RLHF_TRAINER_DEVICE changes nothing here: `rlhf up` sets it itself",
        "RLHF_TRAINER_SLOT is no setting and changes nothing; did you mean RLHF_TRAINER_SLOTS?",
    )


def test_every_setting_of_the_documents_is_known_and_every_known_one_is_documented() -> None:
    documented = set(re.findall(r"RLHF_[A-Z_]+[A-Z]", OPERATIONS.read_text()))
    known = set(settings.check({}).known)
    internal = {"RLHF_READY_FILE", "RLHF_FORK_SERVER"}
    assert documented - known == {"RLHF_DEAD_EVENTS"}, "a stream of NATS"
    assert known - documented - internal == set()


def test_differences_name_what_runs_and_what_was_asked_for_and_hide_passwords() -> None:
    given = settings.check(
        {
            "RLHF_TRAINER_SLOTS": "4",
            "RLHF_MODEL_ROOTS": "/data",
            "RLHF_POSTGRES_URL": "postgresql://u:hunter2@h/d",
            "RLHF_SERVER": "there:1",
            "RLHF_UNKNOWN": "1",
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://here",
        }
    )
    running = {"RLHF_TRAINER_SLOTS": "2", "RLHF_MODEL_ROOTS": "/data", "RLHF_TRAINER_CONCURRENCY": "3"}
    assert given.differences(running) == [
        Difference("OTEL_EXPORTER_OTLP_ENDPOINT", "", "http://here"),
        Difference("RLHF_POSTGRES_URL", "", "(not shown)"),
        Difference("RLHF_TRAINER_CONCURRENCY", "3", ""),
        Difference("RLHF_TRAINER_SLOTS", "2", "4"),
    ]
    assert given.differences(None) == []
    assert "hunter2" not in repr(given.differences(running))


def test_what_runs_is_read_from_the_endpoints(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert settings.running(home) is None
    home.make()
    home.endpoints.write_text(json.dumps({"http": "…"}))
    assert settings.running(home) is None, "of a version that did not tell"
    home.endpoints.write_text(json.dumps({"settings": {"RLHF_TRAINER_SLOTS": "2"}}))
    assert settings.running(home) == {"RLHF_TRAINER_SLOTS": "2"}
