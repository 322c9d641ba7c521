"""What both kinds of client send with each call, and TLS."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from rlhf.dataset.v1 import dataset_pb2
from rlhf.dataset.v1.dataset_service_pb2_grpc import DatasetServiceServicer, add_DatasetServiceServicer_to_server

from services.client import AsyncClient, Client
from services.mesh.errors import PlatformError, Unauthenticated
from services.mesh.rpc.server import Server
from tests.fix_embedded import held_in_a_thread
from tests.fix_member import mesh_settings

TRACE = 0x0AF7651916CD43DD8448EB211C80319C


class Servicer(DatasetServiceServicer):
    def __init__(self) -> None:
        self.metadata: list[dict[str, Any]] = []

    async def GetDataset(self, request: Any, context: Any) -> dataset_pb2.Dataset:
        self.metadata.append(dict(context.invocation_metadata()))
        return dataset_pb2.Dataset(name=request.name)


@dataclass
class Secure:
    """A server that speaks TLS under a certificate of our own making."""

    home: Path
    certificate: Path
    address: str = ""
    servicer: Servicer = field(default_factory=Servicer)


@pytest.fixture
def secure(home: Path) -> Iterator[Secure]:
    certificate, key = home / "certificate.pem", home / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    made = Secure(home, certificate)

    @contextlib.asynccontextmanager
    async def serving() -> AsyncIterator[Secure]:
        server = Server("dataset", mesh_settings(home, tls_certificate_file=certificate, tls_key_file=key))
        server.serve("rlhf.dataset.v1.DatasetService", lambda s: add_DatasetServiceServicer_to_server(made.servicer, s))
        await server.start()
        made.address = f"localhost:{server.port}"
        try:
            yield made
        finally:
            await server.stop()

    with held_in_a_thread(serving) as running:
        yield running


def test_tls_with_a_private_authority(secure: Secure) -> None:
    async def asynchronous() -> None:
        async with AsyncClient(secure.address, home=secure.home, certificates=secure.certificate) as client:
            assert (await client.datasets.get("d")).name == "projects/default/datasets/d"

    with Client(secure.address, home=secure.home, certificates=secure.certificate) as client:
        assert client.datasets.get("d").name == "projects/default/datasets/d"
        asyncio.run(asynchronous())
    assert len(secure.servicer.metadata) == 2
    with Client(secure.address, home=secure.home, timeout_seconds=1) as plain, pytest.raises(PlatformError):
        plain.datasets.get("d")
    with Client(secure.address, "wrong", certificates=secure.certificate) as stranger, pytest.raises(Unauthenticated):
        stranger.datasets.get("d")
    assert len(secure.servicer.metadata) == 2


def test_the_trace_of_the_caller_goes_along(secure: Secure) -> None:
    span = NonRecordingSpan(SpanContext(TRACE, 0xB7AD6B7169203331, is_remote=True, trace_flags=TraceFlags(1)))
    with Client(secure.address, home=secure.home, certificates=secure.certificate) as client:
        client.datasets.get("d")
        with trace.use_span(span):
            client.datasets.get("d")
    without, within = secure.servicer.metadata
    assert "traceparent" not in without
    assert within["traceparent"].startswith(f"00-{TRACE:032x}-")
