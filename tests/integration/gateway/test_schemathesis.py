"""Whatever the document allows, and much that it does not, sent to a gateway before the real services: every answer is
one that the document tells of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from services.supervisor import embedded
from tests.integration.gateway.fix_real import RealGateway, real_gateway

DOCUMENT = Path(__file__).parents[3] / "proto" / "gen" / "rlhf" / "openapi.json"
# Not those that ask whether a request was rightly taken or refused: what a service refuses goes beyond any schema, such
# as the name of what is not there, and what it takes is wider, such as null for what is absent. Nor the one for tokens,
# which are test_guard's.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
    allow_header_conformance,
]
SUCCEEDED: set[str] = set()
schema = schemathesis.openapi.from_path(DOCUMENT)


@pytest.fixture(scope="module")
def real(
    postgres_server: embedded.Postgres, nats_server: embedded.Nats, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RealGateway]:
    with real_gateway(tmp_path_factory.mktemp("real") / "home", postgres_server, nats_server) as made:
        yield made


# Each has an id, by which pytest-xdist tells tests apart; `schema.parametrize()` gives all of them the same.
@pytest.mark.parametrize("operation", [found.ok() for found in schema.get_all_operations()], ids=lambda one: one.label)
def test_answers_are_as_documented(operation: Any, real: RealGateway) -> None:
    # What the document shows as examples, then what it allows.
    for strategy in operation.get_strategies_from_examples():
        _answers(strategy, 1, real)
    _answers(operation.as_strategy(), 10, real)


def _answers(strategy: Any, count: int, real: RealGateway) -> None:
    @given(case=strategy)
    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        phases=[Phase.generate],
    )
    def answer(case: Any) -> None:
        _call(case, real)

    answer()


def _call(case: Any, real: RealGateway) -> None:
    operation_id = case.operation.definition.raw["operationId"]
    ids = real.ids | real.instead.get(operation_id, {})
    for name, value in (case.path_parameters or {}).items():
        # About every other request is about something that is there.
        if len(str(value)) % 2 and name in ids:
            case.path_parameters[name] = ids[name]
    if "X-Request-Timeout" in (case.headers or {}) and _is_number(case.headers["X-Request-Timeout"]):
        case.headers["X-Request-Timeout"] = "15"
    response = case.call_and_validate(
        base_url=real.base_url,
        headers={"authorization": f"Bearer {real.token}"},
        checks=CHECKS,
        timeout=20,
    )
    if response.status_code < 300:
        SUCCEEDED.add(operation_id)


def test_most_operations_have_succeeded_too() -> None:
    """The others need a checkpoint, the path of a file, or a model that no job starts from."""
    if not SUCCEEDED:
        pytest.skip("asks about the tests before it")
    paths = json.loads(DOCUMENT.read_bytes())["paths"]
    every = {operation["operationId"] for path in paths.values() for operation in path.values()}
    assert every - SUCCEEDED == {
        "GetCheckpoint",
        "DownloadCheckpoint",
        "DownloadModel",
        "DeleteModel",
        "DeleteCheckpoint",
        "ResolveModel",
    }


def _is_number(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False
