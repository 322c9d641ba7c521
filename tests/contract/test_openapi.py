"""The OpenAPI document: valid, complete, and true to the contract and the gateway. test_proto proves it fresh."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonschema
import openapi_schema_validator
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import MethodDescriptor
from openapi_spec_validator import OpenAPIV31SpecValidator
from rlhf.dataset.v1 import dataset_pb2, dataset_service_pb2
from rlhf.trainer.v1 import trainer_service_pb2, training_job_pb2
from rlhf.type.v1 import metric_point_pb2

from services.gateway.http.problems import HTTP_STATUS, problem
from services.gateway.openapi.examples import EXAMPLES
from services.gateway.transcoding.transcoder import routes
from services.mesh.errors import InvalidArgument, Violation
from services.mesh.rpc import protojson
from services.mesh.validation import params
from services.rewards import rewards
from services.trainer.algorithms import algorithms

DOCUMENT: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "proto" / "gen" / "rlhf" / "openapi.json").read_bytes()
)
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
SERVICES = [
    module.DESCRIPTOR.services_by_name[name]
    for module, name in ((dataset_service_pb2, "DatasetService"), (trainer_service_pb2, "TrainerService"))
]
METHODS: list[MethodDescriptor] = [method for service in SERVICES for method in service.methods]
# What each example is an example of.
MESSAGES: dict[str, type[Any]] = {
    "Dataset": dataset_pb2.Dataset,
    "DatasetInput": dataset_pb2.Dataset,
    "DatasetPatch": dataset_pb2.Dataset,
    "UploadInput": dataset_pb2.Upload,
    "TrainingJob": training_job_pb2.TrainingJob,
    "TrainingJobInput": training_job_pb2.TrainingJob,
    "ImportModelRequest": trainer_service_pb2.ImportModelRequest,
    "TestRewardRequest": trainer_service_pb2.TestRewardRequest,
    "MetricPoint": metric_point_pb2.MetricPoint,
}


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for http_method, operation in methods.items():
            yield path, http_method, operation


OPERATIONS: dict[str, dict[str, Any]] = {each["operationId"]: each for _, _, each in operations()}


def test_document_is_valid_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert not [error.message for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()]


def test_making_it_needs_no_generated_code() -> None:
    """Else code that is broken could not be made anew."""
    program = "import services.gateway.openapi.document, sys; print([name for name in sys.modules if name == 'rlhf'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_rpc_is_there_under_its_own_name() -> None:
    assert {method.name for method in METHODS} <= set(OPERATIONS)
    assert len(OPERATIONS) == len(list(operations()))
    others = set(OPERATIONS) - {method.name for method in METHODS}
    assert others == {"WriteUploadByPost", "CreateTicket", "CheckHealth", "CheckReadiness", "GetOpenApi"}


def test_paths_are_those_of_the_annotations() -> None:
    found = {
        (operation["operationId"], http_method, re.sub(r"\{\w+\}", "*", path))
        for path, http_method, operation in operations()
    }
    for service in SERVICES:
        for route in routes(service):
            plain = re.sub(r"\{[^}=]*=([^}]*)\}", r"\1", route.template.text)
            assert (route.method.name, route.http_method.lower(), plain) in found


def test_every_path_parameter_is_named_after_its_resource() -> None:
    for path, _, operation in operations():
        named = [each["name"] for each in operation.get("parameters", ()) if each.get("in") == "path"]
        assert named == re.findall(r"\{(\w+)\}", path)
        assert set(named) <= {"project", "dataset", "upload", "version", "model", "trainingJob", "checkpoint"}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_each_field_of_a_request_has_one_place(method: MethodDescriptor) -> None:
    """Path, query or body; of those of the path, by the message's own annotation."""
    operation = OPERATIONS[method.name]
    query = {each["name"] for each in operation.get("parameters", ()) if each.get("in") == "query"}
    names = {field.json_name for field in method.input_type.fields}
    if method.client_streaming or method.name.startswith("Download"):
        assert query <= names
        return
    (route,) = [route for service in SERVICES for route in routes(service) if route.method.name == method.name]
    in_path = {variable.field_path for variable in route.template.variables}
    rest = {field.json_name for field in method.input_type.fields if field.name not in {*in_path, route.body}}
    if route.body == "*":
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        assert set(resolved(schema)["properties"]) == rest
        assert not query
    else:
        assert query == rest
        assert ("requestBody" in operation) == bool(route.body)


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    return SCHEMAS[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def test_descriptions_are_the_comments_of_the_contract() -> None:
    create = OPERATIONS["CreateTrainingJob"]
    assert create["description"].startswith("Creates a training job in QUEUED and returns it")
    assert "Idempotent per `request_id`." in create["description"]
    (page_size,) = [each for each in OPERATIONS["ListDatasets"]["parameters"] if each.get("name") == "pageSize"]
    assert page_size["description"] == "Default 50, at most 1000."
    assert SCHEMAS["TrainingJob"]["description"] == "One run of one algorithm over one dataset version."
    assert SCHEMAS["Upload"]["properties"]["receivedBytes"]["description"].startswith("Bytes that are safe on disk")
    assert "- `STATE_RECEIVING`: Waiting for bytes." in SCHEMAS["UploadState"]["description"]
    assert all(tag["description"] for tag in DOCUMENT["tags"])


def test_field_behaviours() -> None:
    answer, taken = SCHEMAS["TrainingJob"], SCHEMAS["TrainingJobInput"]
    assert {"name", "state", "createTime", "stepCount"} <= {
        name for name, field in answer["properties"].items() if field.get("readOnly")
    }
    assert set(taken["required"]) == {"algorithm", "baseModel", "datasetVersion"}
    assert not {"name", "state", "createTime"} & set(taken["properties"])
    # What is printed always is required in an answer; a message that may be absent is not.
    assert {"state", "labels", "attempts", "stepCount"} <= set(answer["required"])
    assert not {"error", "startTime", "placement"} & set(answer["required"])
    assert "required" not in SCHEMAS["DatasetPatch"]
    assert "format" not in SCHEMAS["DatasetPatch"]["properties"]


def test_types_are_those_of_proto3_json() -> None:
    upload, taken = SCHEMAS["Upload"]["properties"], SCHEMAS["UploadInput"]["properties"]
    assert (upload["sizeBytes"]["type"], upload["sizeBytes"]["format"]) == ("string", "int64")
    assert [each["type"] for each in taken["sizeBytes"]["anyOf"]] == ["string", "integer"]
    assert upload["createTime"]["format"] == "date-time"
    assert upload["state"]["$ref"] == "#/components/schemas/UploadState"
    assert SCHEMAS["JobState"]["enum"][:2] == ["JOB_STATE_UNSPECIFIED", "JOB_STATE_QUEUED"]
    assert SCHEMAS["TrainingJob"]["properties"]["params"]["additionalProperties"] is True
    assert SCHEMAS["Dataset"]["properties"]["labels"]["additionalProperties"] == {"type": "string"}
    (states,) = [each for each in OPERATIONS["ListTrainingJobs"]["parameters"] if each.get("name") == "states"]
    assert (states["schema"]["type"], states["explode"]) == ("array", True)
    (mask,) = [each for each in OPERATIONS["UpdateDataset"]["parameters"] if each.get("name") == "updateMask"]
    assert mask["schema"]["type"] == "string"
    (request_id,) = [each for each in OPERATIONS["CreateDataset"]["parameters"] if each.get("name") == "requestId"]
    assert request_id["schema"]["format"] == "uuid"


@pytest.mark.parametrize("method", [each for each in METHODS if each.server_streaming], ids=lambda method: method.name)
def test_streams_tell_how_to_read_them(method: MethodDescriptor) -> None:
    operation = OPERATIONS[method.name]
    content = operation["responses"]["200"]["content"]
    assert operation["security"] == [{"bearer": []}, {"ticket": []}]
    if method.name.startswith("Download"):
        assert {"200", "206", "304", "416"} <= set(operation["responses"])
        return
    assert content["application/x-ndjson"]["schema"]["$ref"].endswith(f"/{method.output_type.name}")
    assert "text/event-stream" in content
    assert "101" in operation["responses"]
    assert "websocket" in operation["description"]
    references = [each.get("$ref", "") for each in operation["parameters"]]
    has_cursor = any(field.name.startswith("after_") for field in method.input_type.fields)
    assert ("#/components/parameters/LastEventId" in references) == has_cursor


def test_only_probes_and_this_document_are_open() -> None:
    assert DOCUMENT["security"] == [{"bearer": []}]
    opened = {operation_id for operation_id, each in OPERATIONS.items() if each.get("security") == []}
    assert opened == {"CheckHealth", "CheckReadiness", "GetOpenApi"}


def test_every_operation_tells_how_it_fails() -> None:
    for operation_id, operation in OPERATIONS.items():
        failures = {status: each for status, each in operation["responses"].items() if status >= "400"}
        assert {"400", "403", "500", "503"} <= set(failures), operation_id
        for status, each in failures.items():
            response = DOCUMENT["components"]["responses"].get(each.get("$ref", "").rpartition("/")[2], each)
            schema = response["content"]["application/problem+json"]["schema"]
            assert schema["$ref"] == "#/components/schemas/Problem", (operation_id, status)


def test_a_problem_is_as_its_schema_says() -> None:
    raised = InvalidArgument([Violation("dataset.format", "must be one of messages")])
    document = json.loads(bytes(problem(raised, "id").body))
    check(document, "Problem")
    assert set(document) == set(SCHEMAS["Problem"]["properties"])
    assert SCHEMAS["Problem"]["properties"]["code"]["enum"] == sorted(HTTP_STATUS)


def check(value: object, name: str) -> None:
    """`value` is as the schema says, with those it refers to."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}
    openapi_schema_validator.OAS31Validator(schema).validate(value)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_is_read_and_is_as_its_schema_says(name: str) -> None:
    value = EXAMPLES[name]
    assert SCHEMAS[name]["examples"] == [value]
    check(value, name)
    message = MESSAGES[name]()
    assert protojson.fill(message, value) == []
    assert set(json_format.MessageToDict(message)) <= set(value)


def test_the_example_of_a_job_has_params_that_its_algorithm_takes() -> None:
    job = EXAMPLES["TrainingJobInput"]
    schema = params.schema(algorithms.get(job["algorithm"]).Params)
    jsonschema.Draft202012Validator(schema).validate(job["params"])
    assert job["params"]["reward"]["name"] in rewards.names()


def test_an_empty_answer_is_as_its_schema_says() -> None:
    """A message with nothing in it prints what is required, and nothing else is."""
    for method in METHODS:
        if method.output_type.name in SCHEMAS:
            module: Any = import_module(method.output_type.file.name.removesuffix(".proto").replace("/", ".") + "_pb2")
            message = getattr(module, method.output_type.name)()
            printed = json_format.MessageToDict(message, always_print_fields_with_no_presence=True)
            check(printed, method.output_type.name)
            assert set(printed) == set(SCHEMAS[method.output_type.name].get("required", ()))
