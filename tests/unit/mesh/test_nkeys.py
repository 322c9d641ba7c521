"""Keys of NATS in the form that its own tools have."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from services.mesh.errors import Unauthenticated
from services.mesh.events import nkeys
from services.mesh.events.bus import client_of, signing

# From the documentation of NATS, "NKeys".
SEED = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
PUBLIC = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"


def test_a_key_of_the_documentation(tmp_path: Path) -> None:
    (tmp_path / "seed").write_text(SEED + "\n")
    key = nkeys.UserKey.read(tmp_path / "seed")
    assert key.public == PUBLIC
    raw = base64.b32decode(PUBLIC + "=" * (-len(PUBLIC) % 8))[1:-2]
    Ed25519PublicKey.from_public_bytes(raw).verify(base64.b64decode(key.sign("nonce")), b"nonce")


def test_a_seed_is_made_once_and_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "nats" / "seed"
    first = nkeys.ensure_seed(path)
    assert nkeys.ensure_seed(path).public == first.public != nkeys.ensure_seed(tmp_path / "other").public
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().startswith("SU")


@pytest.mark.parametrize("text", ["x", "SUA", PUBLIC, SEED[:-1] + "X", SEED[:20], "é"])
def test_what_is_no_seed_is_told_without_its_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "seed").write_text(text)
    with pytest.raises(Unauthenticated, match="no seed of a user of NATS") as caught:
        nkeys.UserKey.read(tmp_path / "seed")
    assert caught.value.message == f"{tmp_path}/seed has no seed of a user of NATS"


def test_other_addresses_are_taken_as_they_are() -> None:
    for url in ("nats://u:p@h:1", "nats://h", "tls://h:2,nats://i:3"):
        client, address = client_of(url)
        assert (address, signing(client)) == (url, {})


@pytest.mark.parametrize("text", [None, "", "x"])
def test_a_certificate_that_is_none_is_told(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "certificate"
    if text is not None:
        path.write_text(text)
    with pytest.raises(Unauthenticated, match=f"{path} has no certificate of NATS"):
        client_of(f"nats://h:1?certificate={path}")
