"""The certificate of an embedded Ray: when it is made, who may read it, and what Ray is told of it."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509

from services.supervisor.embedded import ray_tls


def test_it_is_made_once_for_its_owner_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "tls.pem"
    ray_tls.ensure(path)
    made = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    ray_tls.ensure(path)
    assert path.read_bytes() == made
    ray_tls.ensure(other := tmp_path / "other.pem")
    assert other.read_bytes() != made


def test_it_names_what_clients_connect_to_and_lasts(tmp_path: Path) -> None:
    ray_tls.ensure(path := tmp_path / "tls.pem")
    found = x509.load_pem_x509_certificate(path.read_bytes())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    now = datetime.datetime.now(datetime.UTC)
    assert found.not_valid_before_utc < now
    assert found.not_valid_after_utc > now + datetime.timedelta(days=9 * 365)


@pytest.mark.parametrize("broken", [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_broken_one_is_made_anew(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "tls.pem"
    path.write_bytes(broken)
    ray_tls.ensure(path)
    x509.load_pem_x509_certificate(path.read_bytes())


def test_one_that_ends_within_a_year_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tls.pem"
    monkeypatch.setattr(ray_tls, "_LIFE", datetime.timedelta(days=300))
    ray_tls.ensure(path)
    soon = path.read_bytes()
    monkeypatch.undo()
    ray_tls.ensure(path)
    assert path.read_bytes() != soon


def test_servers_and_clients_are_told_the_same_file(tmp_path: Path) -> None:
    told = ray_tls.environment(tmp_path / "tls.pem")
    assert told.pop("RAY_USE_TLS") == "1"
    assert set(told) == {"RAY_TLS_CA_CERT", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY"}
    assert set(told.values()) == {str(tmp_path / "tls.pem")}
