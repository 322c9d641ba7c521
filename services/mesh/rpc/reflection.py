"""Server reflection in both of its packages: newer tools ask v1 first, older ones know v1alpha alone.

The messages of the two are the same on the wire, and grpcio-reflection has those of v1alpha only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

V1 = "grpc.reflection.v1.ServerReflection"


def enable(server: grpc.aio.Server, services: Iterable[str]) -> None:
    """Let `server` tell of `services`, full proto names whose files are imported."""
    servicer: Any = reflection.aio.ReflectionServicer((*services, reflection.SERVICE_NAME))
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    methods = {"ServerReflectionInfo": handler}
    for name in (V1, reflection.SERVICE_NAME):
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, methods),))
