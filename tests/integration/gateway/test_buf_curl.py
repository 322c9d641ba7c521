"""The gateway's gRPC port as tools see it that know nothing of us: `buf curl` over server reflection."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from services.gateway.app import Gateway

ROOT = Path(__file__).parents[3]
TOKEN = "the-token-of-the-test"
DATASETS, TRAINER = "rlhf.dataset.v1.DatasetService", "rlhf.trainer.v1.TrainerService"
METADATA = (("authorization", f"Bearer {TOKEN}"),)


class Buf:
    """`buf curl` against one gateway."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __call__(self, path: str, *words: str, token: str = TOKEN, reflect: bool = True) -> tuple[int, str, str]:
        header = ("-H", f"authorization: Bearer {token}") if token else ()
        header += ("--reflect-header", "*") if token and reflect else ()
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("buf")), "curl", "--http2-prior-knowledge", "--protocol", "grpc",
            *header, *words, f"http://127.0.0.1:{self._port}{path}",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 30)
        return process.returncode or 0, out.decode(), err.decode()


@pytest.fixture
def buf(gateway: Gateway) -> Buf:
    return Buf(gateway.port)


@pytest.mark.parametrize("protocol", ["grpc-v1", "grpc-v1alpha"])
async def test_services_and_methods_are_listed(buf: Buf, protocol: str) -> None:
    code, out, err = await buf("", "--list-services", "--reflect-protocol", protocol)
    assert code == 0, err
    assert {DATASETS, TRAINER, "grpc.health.v1.Health"} <= set(out.split())
    code, out, err = await buf("", "--list-methods", "--reflect-protocol", protocol)
    assert code == 0, err
    assert {f"{DATASETS}/WriteUpload", f"{TRAINER}/StreamJobEvents"} <= set(out.split())


async def test_a_unary_call(buf: Buf) -> None:
    code, out, err = await buf(f"/{DATASETS}/GetDataset", "-d", '{"name": "projects/p/datasets/d"}')
    assert code == 0, err
    assert json.loads(out) == {"name": "projects/p/datasets/d", "format": "messages"}


async def test_a_server_stream(buf: Buf) -> None:
    code, out, err = await buf(f"/{DATASETS}/StreamUploadEvents", "-d", '{"name": "u"}')
    assert code == 0, err
    decoder, found, rest = json.JSONDecoder(), [], out.strip()
    while rest:
        value, end = decoder.raw_decode(rest)
        found.append(value)
        rest = rest[end:].lstrip()
    assert [each["upload"].get("receivedBytes", "0") for each in found] == ["0", "1", "2"]


async def test_a_client_stream(buf: Buf, seen: Any) -> None:
    messages = '{"name": "u", "chunk": "YWI="} {"chunk": "Y2Q="}'
    code, out, err = await buf(f"/{DATASETS}/WriteUpload", "-d", messages)
    assert code == 0, err
    assert bytes(seen.uploaded) == b"abcd"
    assert json.loads(out)["receivedBytes"] == "4"


async def test_an_error_with_its_details(buf: Buf) -> None:
    code, _, err = await buf(f"/{DATASETS}/GetDataset", "-d", '{"name": "projects/p/datasets/invalid"}')
    assert code != 0
    found = json.loads(err)
    assert found["code"] == "invalid_argument"
    values = {each["type"]: base64.b64decode(each["value"] + "==") for each in found["details"]}
    assert error_details_pb2.ErrorInfo.FromString(values["google.rpc.ErrorInfo"]).reason == "INVALID_FIELDS"
    violations = error_details_pb2.BadRequest.FromString(values["google.rpc.BadRequest"]).field_violations
    assert [violation.field for violation in violations] == ["field_0", "field_1", "field_2"]


@pytest.mark.parametrize("token", ["", "wrong"])
async def test_without_the_token_not_even_reflection_answers(buf: Buf, seen: Any, token: str) -> None:
    for path, words in (("", ("--list-services",)), (f"/{DATASETS}/GetDataset", ("-d", "{}", "--schema", str(ROOT)))):
        code, out, err = await buf(path, *words, token=token, reflect=not path)
        assert (code != 0, out) == (True, ""), err
        assert "unauthenticated" in err or "not authenticated" in err, err
    assert not seen.requests


async def test_health_of_every_service_is_told_here(channel: grpc.aio.Channel) -> None:
    health: Any = health_pb2_grpc.HealthStub(channel)
    for service in ("", DATASETS, TRAINER):
        request = health_pb2.HealthCheckRequest(service=service)
        async with asyncio.timeout(5):
            async for reply in health.Watch(request):
                if reply.status == health_pb2.HealthCheckResponse.SERVING:
                    break
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await health.Check(health_pb2.HealthCheckRequest(service="no.such.Service"))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_gives_every_file_that_a_generated_client_needs(channel: grpc.aio.Channel) -> None:
    """What grpcurl asks for: the file of a symbol, with those that it imports."""
    method = channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    requests = [
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
        for symbol in (TRAINER, "rlhf.dataset.v1.Dataset", "no.such.Symbol")
    ]
    call = method(iter(requests), metadata=METADATA)
    replies = [reply async for reply in call]
    assert [reply.WhichOneof("message_response") for reply in replies] == [
        "file_descriptor_response", "file_descriptor_response", "error_response",
    ]  # fmt: skip
