"""The annotations of our own contract, and the field masks of its updates."""

from __future__ import annotations

from typing import Any

import pytest
from rlhf.dataset.v1 import dataset_service_pb2
from rlhf.trainer.v1 import trainer_service_pb2
from rlhf.type.v1 import job_state_pb2

from services.gateway.transcoding import transcoder
from services.gateway.transcoding.path_templates import Router
from services.gateway.transcoding.transcoder import Route
from tests.fix_http_descriptors import compile_service, send, violations

DATASETS = dataset_service_pb2.DESCRIPTOR.services_by_name["DatasetService"]


TRAINER = trainer_service_pb2.DESCRIPTOR.services_by_name["TrainerService"]


DATASET = "/v1/projects/p/datasets/d"


@pytest.mark.parametrize(
    ("target", "body", "paths"),
    [
        (DATASET, {"displayName": "x"}, ["display_name"]),
        (DATASET, {"displayName": "", "labels": {"a": "b"}}, ["display_name", "labels"]),
        (DATASET, {"labels": None}, ["labels"]),
        (DATASET, {}, []),
        (f"{DATASET}?updateMask=labels", {"displayName": "x"}, ["labels"]),
        (f"{DATASET}?update_mask=display_name", {"displayName": "x", "labels": {}}, ["display_name"]),
        # What a caller reads and sends back: what the server alone sets, and the etag, are not changed.
        (
            DATASET,
            {"name": "projects/p/datasets/d", "displayName": "x", "createTime": "2026-01-31T10:00:00Z", "etag": "e"},
            ["display_name"],
        ),
    ],
)
def test_update_mask_comes_from_query_or_from_the_fields_in_the_body(target: str, body: Any, paths: list[str]) -> None:
    message = send(DATASETS, "PATCH", target, body)[1]
    assert isinstance(message, dataset_service_pb2.UpdateDatasetRequest)
    assert list(message.update_mask.paths) == paths
    assert message.dataset.name == "projects/p/datasets/d"
    assert message.dataset.etag == body.get("etag", "")


def test_update_refuses_another_name_in_the_body() -> None:
    assert violations(DATASETS, "PATCH", DATASET, {"name": "projects/p/datasets/e"}).keys() == {"dataset.name"}


def test_nested_mask_goes_down_messages_and_stops_at_maps() -> None:
    service = compile_service(
        "nested.v1",
        """
        service S { rpc Update(R) returns (M) { option (google.api.http) = { patch: "/v1/m" body: "m" }; } }
        message R { M m = 1; google.protobuf.FieldMask mask = 2; }
        message M { string a = 1; M inner = 2; map<string, string> labels = 3; google.protobuf.Struct tree = 4;
          repeated M many = 5; string made = 6 [(google.api.field_behavior) = OUTPUT_ONLY]; }
        """,
    )
    body = {"inner": {"a": "x", "inner": {}, "made": "y"}, "labels": {"k": "v"}, "tree": {"x": 1}, "many": [{"a": "x"}]}
    message: Any = send(service, "PATCH", "/v1/m", body)[1]
    assert list(message.mask.paths) == ["inner.a", "inner.inner", "labels", "tree", "many"]


@pytest.mark.parametrize("service", [DATASETS, TRAINER], ids=lambda service: service.name)
def test_every_annotation_of_the_contract_can_be_served(service: Any) -> None:
    router: Router[Route] = Router()
    for route in transcoder.routes(service):
        router.add(route.http_method, route.template, route)
        path = route.template.text
        for variable in route.template.variables:
            inner = path[path.index("{") + 1 : path.index("}")].partition("=")[2]
            path = path.replace(f"{{{variable.field_path}={inner}}}", inner.replace("*", "x"))
        found = router.find(route.http_method, path)
        assert found.value is route


def test_states_of_a_job_list_go_by_name_or_number() -> None:
    message = send(TRAINER, "GET", "/v1/projects/p/trainingJobs?states=JOB_STATE_RUNNING&states=7&pageSize=5")[1]
    assert isinstance(message, trainer_service_pb2.ListTrainingJobsRequest)
    assert list(message.states) == [job_state_pb2.JOB_STATE_RUNNING, job_state_pb2.JOB_STATE_FAILED]
    assert (message.parent, message.page_size) == ("projects/p", 5)


def test_optional_number_in_the_query_is_present_when_it_is_zero() -> None:
    message = send(TRAINER, "GET", "/v1/projects/p/trainingJobs/j/samples?step=0")[1]
    assert isinstance(message, trainer_service_pb2.ListSamplesRequest)
    assert message.HasField("step")
    assert not send(TRAINER, "GET", "/v1/projects/p/trainingJobs/j/samples")[1].HasField("step")
