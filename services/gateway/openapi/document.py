"""The whole document. Source: https://spec.openapis.org/oas/v3.1.1."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from google.api import resource_pb2
from google.protobuf import descriptor_pb2, descriptor_pool

from services.gateway.openapi import errors, parameters, static_operations
from services.gateway.openapi.comments import read_comments
from services.gateway.openapi.examples import EXAMPLES
from services.gateway.openapi.operations import Operations
from services.gateway.openapi.scalars import Schema
from services.gateway.openapi.schemas import Schemas
from services.gateway.transcoding.transcoder import routes

# Those that OpenAPI has a word for.
_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_RESOURCE: Any = resource_pb2.resource
_DESCRIPTION = """Datasets, models and training jobs over HTTP, made from the gRPC contract.

A field is read under its name here and under its name in the contract (`pageSize`, `page_size`). 64-bit integers are
sent as text, and taken as text or as numbers. What is unknown, of the wrong type or out of range is refused with every
violation at once. `HEAD` is answered wherever `GET` is."""
_BEARER = {"type": "http", "scheme": "bearer", "description": "The token of the mesh: `rlhf token`."}
_TICKET = {"type": "apiKey", "in": "query", "name": "ticket", "description": "From `POST /v1/tickets`."}


def document(files: descriptor_pb2.FileDescriptorSet) -> bytes:
    """OpenAPI 3.1 as JSON. `files` hold every import and their source info, imports first."""
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    services = [
        pool.FindServiceByName(f"{file.package}.{service.name}") for file in files.file for service in file.service
    ]
    comments = read_comments(files.file)
    schemas = Schemas(comments, EXAMPLES)
    operations = Operations(schemas, comments, parameters.wildcard_names(list(_patterns(pool, files))))
    paths = _paths(operations, services)
    tags: list[Schema] = [{"name": each.name, "description": comments.get(each.full_name, "")} for each in services]
    own: dict[str, Schema] = {**static_operations.SCHEMAS, "Problem": errors.PROBLEM, "Violation": errors.VIOLATION}
    made = {
        "openapi": "3.1.1",
        "info": {
            "title": "rlhf-mesh",
            "version": "v1",
            "description": _DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "The gateway that sent this document."}],
        "security": [{"bearer": []}],
        "tags": [*tags, *static_operations.TAGS],
        "paths": paths,
        "components": {
            "schemas": dict(sorted((schemas.all() | own).items())),
            "parameters": dict(parameters.COMMON),
            "headers": errors.headers(),
            "responses": errors.components(),
            "securitySchemes": {"bearer": _BEARER, "ticket": _TICKET},
        },
    }
    return json.dumps(made, ensure_ascii=False, indent=1).encode() + b"\n"


def _paths(operations: Operations, services: Sequence[Any]) -> dict[str, Schema]:
    paths: dict[str, Schema] = {}
    made = [
        operations.of(route, index)
        for service in services
        for method in service.methods
        for index, route in enumerate(each for each in routes(service) if each.method == method)
        if route.http_method.lower() in _METHODS
    ]
    methods = {method.name: method for service in services for method in service.methods}
    for path, http_method, operation in [*made, *static_operations.by_hand(operations, methods)]:
        at = paths.setdefault(path, {})
        if http_method in at:
            raise ValueError(f"{http_method} {path} is there twice")
        at[http_method] = operation
    return dict(sorted(paths.items()))


def _patterns(pool: descriptor_pool.DescriptorPool, files: descriptor_pb2.FileDescriptorSet) -> Iterator[str]:
    for file in files.file:
        for message in file.message_type:
            descriptor: Any = pool.FindMessageTypeByName(f"{file.package}.{message.name}")
            yield from descriptor.GetOptions().Extensions[_RESOURCE].pattern
