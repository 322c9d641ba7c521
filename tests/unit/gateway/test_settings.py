"""Settings of the gateway from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.gateway.settings import GatewaySettings
from services.mesh.errors import InvalidArgument
from services.mesh.settings import Environment


def read(**values: str) -> GatewaySettings:
    return GatewaySettings.read(Environment({"RLHF_HOME": "/home"} | values))


def test_defaults_need_no_database_and_listen_on_loopback() -> None:
    settings = read()
    assert settings.http_listen == settings.mesh.listen == "127.0.0.1:0"
    assert settings.mesh.token_file == Path("/home/token")
    assert (dict(settings.targets), settings.allowed_hosts) == ({}, ())
    assert settings.tls_root_certificates_file is None


def test_targets_are_those_that_are_set() -> None:
    assert dict(read(RLHF_TRAINER_TARGET="t:1").targets) == {"trainer": "t:1"}
    both = read(RLHF_TRAINER_TARGET="t:1", RLHF_DATASET_TARGET="d:2")
    assert dict(both.targets) == {"dataset": "d:2", "trainer": "t:1"}


def test_origins_are_none_unless_set_and_exact() -> None:
    assert read().cors_origins == ()
    set_ = read(RLHF_GATEWAY_CORS_ORIGINS="https://A.example:8443, http://[::1]:5173")
    assert set_.cors_origins == ("https://a.example:8443", "http://[::1]:5173")


def test_hosts_may_be_parted_by_comma_or_space() -> None:
    assert read(RLHF_GATEWAY_ALLOWED_HOSTS="A.example, b  c,").allowed_hosts == ("a.example", "b", "c")


def test_everything_wrong_is_told_at_once() -> None:
    with pytest.raises(InvalidArgument) as refused:
        read(RLHF_TRAINER_TARGET="t", RLHF_GATEWAY_HTTP_LISTEN="x", RLHF_GATEWAY_MAX_CONCURRENT_REQUESTS="0")
    names = {violation.field for violation in refused.value.violations}
    assert names == {"RLHF_TRAINER_TARGET", "RLHF_GATEWAY_HTTP_LISTEN", "RLHF_GATEWAY_MAX_CONCURRENT_REQUESTS"}
