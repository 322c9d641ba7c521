"""Settings tell everything that is wrong in one go, and keep their secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.mesh.errors import InvalidArgument
from services.mesh.settings import Environment, MeshSettings

COMPLETE = {"RLHF_POSTGRES_URL": "postgresql://rlhf:hunter2@h/d", "RLHF_NATS_URL": "nats://rlhf:hunter2@h"}


def violations(environment: Environment) -> list[str]:
    with pytest.raises(InvalidArgument) as caught:
        environment.done()
    assert caught.value.reason == "INVALID_SETTINGS"
    return [violation.field for violation in caught.value.violations]


def test_every_violation_at_once() -> None:
    environment = Environment(
        {"A": "x", "B": "101", "C": "nan", "D": "maybe", "RLHF_TRAINER_LISTEN": "here", "RLHF_TLS_KEY": "k"}
    )
    environment.integer("A", 1, 0, 10)
    environment.integer("B", 1, 0, 100)
    environment.number("C", 1, 0, 100)
    environment.flag("D")
    MeshSettings.read(environment, "trainer")
    expected = {"A", "B", "C", "D", "RLHF_TRAINER_LISTEN", "RLHF_TLS_CERTIFICATE", "RLHF_POSTGRES_URL", "RLHF_NATS_URL"}
    assert set(violations(environment)) == expected


def test_defaults_lie_under_the_home() -> None:
    environment = Environment({**COMPLETE, "RLHF_HOME": "/srv/rlhf"})
    settings = MeshSettings.read(environment, "dataset")
    environment.done()
    assert settings.token_file == Path("/srv/rlhf/token")
    assert settings.artifacts_url == "file:///srv/rlhf/artifacts"
    assert settings.listen == "127.0.0.1:0"
    assert settings.outbound_allow == (), "nothing is called unless somebody lists it"
    worker = MeshSettings.read(environment, "dataset", worker=True)
    assert (worker.listen, worker.nats_url) == ("", "")


@pytest.mark.parametrize("value", ["8080", "host:", ":8080", "host:x", "host:65536", "host:-1", "host:٣"])
def test_an_address_is_host_and_port(value: str) -> None:
    environment = Environment({"A": value})
    environment.address("A")
    assert violations(environment) == ["A"]


@pytest.mark.parametrize("value", ["127.0.0.1:0", "host:65535", "[::1]:8080"])
def test_addresses(value: str) -> None:
    environment = Environment({"A": value})
    assert environment.address("A") == value
    environment.done()


@pytest.mark.parametrize("missing", ["RLHF_TLS_CERTIFICATE", "RLHF_TLS_KEY"])
def test_half_of_tls_is_no_plain_text(missing: str) -> None:
    values = {**COMPLETE, "RLHF_TLS_CERTIFICATE": "c", "RLHF_TLS_KEY": "k"}
    del values[missing]
    environment = Environment(values)
    MeshSettings.read(environment, "dataset")
    assert violations(environment) == [missing]


def test_no_password_in_what_is_printed() -> None:
    assert "hunter2" not in repr(MeshSettings.read(Environment(COMPLETE), "dataset"))


def test_the_values_are_read_once() -> None:
    values = {"A": "1"}
    environment = Environment(values)
    values["A"] = "2"
    assert environment.text("A") == "1"
    assert environment.paths("NONE") == ()
    assert environment.flag("NONE", True)
