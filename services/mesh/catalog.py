"""The services of the mesh: the one table that names them.

A service `x` is the package `services.x` (a gRPC server, and a worker in `services.x.worker`), has its contract in
`proto/rlhf/x/v1/x_service.proto`, keeps its tables in the schema `x`, and is reached at `RLHF_X_TARGET`. Gateway,
supervisor, backup, collector and settings are made from this table.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.descriptor import ServiceDescriptor

SERVICES = ("dataset", "trainer")


def descriptors(service: str) -> Sequence[ServiceDescriptor]:
    """The gRPC services of a service's contract."""
    module = importlib.import_module(f"rlhf.{service}.v1.{service}_service_pb2")
    return list(module.DESCRIPTOR.services_by_name.values())


def stub(descriptor: ServiceDescriptor) -> type:
    """The class of the stub that grpcio generated for it."""
    package, _, file = descriptor.file.name.removesuffix(".proto").rpartition("/")
    module = importlib.import_module(f"{package.replace('/', '.')}.{file}_pb2_grpc")
    return getattr(module, f"{descriptor.name}Stub")
