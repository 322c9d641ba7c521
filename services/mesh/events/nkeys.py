"""Keys of NATS: a client signs what the server asks it to, and shows the seed to nobody.

As NATS documents its NKeys: Ed25519, in base32 with a prefix for the kind and a checksum. The package of that name
would bring a second library of cryptography for this.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.mesh import identity
from services.mesh.errors import Unauthenticated

_SEED, _USER = 18 << 3, 20 << 3
_SEED_OF_A_USER = bytes((_SEED | _USER >> 5, (_USER & 31) << 3))
_SEED_BYTES = 32


class UserKey:
    """Of a user; `public` is what the server knows of it."""

    def __init__(self, seed: bytes) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = _encode(bytes((_USER,)) + self._private.public_key().public_bytes_raw())

    @classmethod
    def read(cls, path: Path) -> UserKey:
        """From a file with its seed, `SU…`. Raises Unauthenticated where there is none."""
        try:
            decoded = _decode(identity.read_token(path))
        except ValueError:
            decoded = b""
        if decoded[:2] != _SEED_OF_A_USER or len(decoded) != 2 + _SEED_BYTES:
            raise Unauthenticated("NO_SEED", f"{path} has no seed of a user of NATS", path=path)
        return cls(decoded[2:])

    def sign(self, nonce: str) -> bytes:
        return base64.b64encode(self._private.sign(nonce.encode()))


def ensure_seed(path: Path) -> UserKey:
    """The key in `path`; made at random, for the owner alone, when the file is not there."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(_encode(_SEED_OF_A_USER + secrets.token_bytes(_SEED_BYTES)) + "\n")
        fresh.replace(path)
    return UserKey.read(path)


def _encode(raw: bytes) -> str:
    return base64.b32encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")).decode().rstrip("=")


def _decode(text: str) -> bytes:
    """Raises ValueError."""
    decoded = base64.b32decode(text + "=" * (-len(text) % 8))
    if binascii.crc_hqx(decoded[:-2], 0).to_bytes(2, "little") != decoded[-2:]:
        raise ValueError("wrong checksum")
    return decoded[:-2]
