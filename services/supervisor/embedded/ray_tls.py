"""The certificate by which the processes of one Ray know each other: whoever lacks its key is no server and no client.

Ray asks each side for a certificate (RAY_USE_TLS) before anything else goes over a connection. Ours is its own
authority, so that the only one that passes is this one; Ray finds authority, certificate and key in one file.
The embedded NATS has another of the same making, which its clients look for.
"""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.supervisor.embedded.home import write_private

_LIFE = datetime.timedelta(days=3650)
# Made anew at a start of Ray when there is less left, as a Ray may run for months.
_LEAST_LEFT = datetime.timedelta(days=365)
# A clock that was set back must not make it one of the future.
_EARLIER = datetime.timedelta(days=1)


def environment(path: Path) -> dict[str, str]:
    """Environment variables of Ray's TLS, for its servers and its clients."""
    parts = ("RAY_TLS_CA_CERT", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY")
    return {"RAY_USE_TLS": "1", **dict.fromkeys(parts, str(path))}


def credentials(path: Path) -> grpc.ChannelCredentials:
    """Channel credentials of a client of such a Ray. Raises OSError when it has never been started."""
    found = path.read_bytes()
    return grpc.ssl_channel_credentials(root_certificates=found, private_key=found, certificate_chain=found)


def ensure(path: Path) -> None:
    """Make key and certificate in `path` unless they are there and good for another year."""
    now = datetime.datetime.now(datetime.UTC)
    if not path.exists() or _end(path) < now + _LEAST_LEFT:
        write_private(path, _made(now))


def _end(path: Path) -> datetime.datetime:
    """Until when it can be used: a time past for what is no certificate."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except ValueError:
        return datetime.datetime.min.replace(tzinfo=datetime.UTC)


def _made(now: datetime.datetime) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "rlhf-mesh")])
    # What clients connect to, and so what they look for in it.
    hosts = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + _LIFE)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return (secret + certificate.public_bytes(serialization.Encoding.PEM)).decode()
