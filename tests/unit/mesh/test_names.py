"""Resource names: what is made is read back, and nothing else is."""

from __future__ import annotations

import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mesh import names
from services.mesh.errors import InvalidArgument

slugs = st.from_regex(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
ids = slugs | st.uuids().map(str) | st.integers(1, 10**18 - 1).map(str) | st.just("latest")


@given(ids, ids)
def test_a_name_is_read_back(project: str, job: str) -> None:
    name = names.child(f"projects/{project}", "trainingJobs", job)
    assert names.parse(names.TRAINING_JOB, name) == {"project": project, "training_job": job}
    assert names.project_of(name) == project


@given(st.text())
def test_any_other_text_is_refused_or_is_a_name(name: str) -> None:
    found = names.match(names.DATASET, name)
    if found is not None:
        assert name == f"projects/{found['project']}/datasets/{found['dataset']}"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "projects/p",
        "projects/p/datasets",
        "projects/p/datasets/",
        "projects/p/datasets/d/",
        "/projects/p/datasets/d",
        "projects/P/datasets/d",
        "projects/p/datasets/..",
        "projects/p/datasets/d\n",
        "projects/p/datasets/d-",
        "projects/p/datasets/-d",
        "projects/p/datasets/0",
        "projects/p/datasets/d*",
        "projects/p/models/d",
        "projects/p/datasets/" + "d" * 64,
        "projects/p/datasets/ᴅ",
    ],
)
def test_what_is_no_dataset_name_is_refused_on_its_field(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        names.parse(names.DATASET, name, "dataset.name")
    assert caught.value.violations[0].field == "dataset.name"
    assert names.DATASET in caught.value.violations[0].description


@given(slugs)
def test_a_slug_may_be_chosen(slug: str) -> None:
    assert names.check_new_id(slug, "dataset_id") == []


@pytest.mark.parametrize("value", ["A", "1a", "a_b", "-a", "a-", "a" * 64, "a\n", "é", "1", "projects/p"])
def test_an_id_that_is_no_slug_may_not(value: str) -> None:
    (violation,) = names.check_new_id(value, "dataset_id")
    assert violation.field == "dataset_id"


def test_no_id_lets_the_server_choose() -> None:
    assert names.check_new_id("", "dataset_id") == []
    assert names.check_request_id("") == []


@given(st.uuids())
def test_a_request_id_is_a_uuid_in_either_case(value: uuid.UUID) -> None:
    assert names.check_request_id(str(value)) == names.check_request_id(str(value).upper()) == []
    assert names.check_request_id(str(value)[:-1])


def test_uuid7_is_one_and_sorts_by_time() -> None:
    made = []
    for _ in range(5):
        made.append(names.uuid7())
        time.sleep(0.002)
    assert {(one.version, one.variant) for one in made} == {(7, uuid.RFC_4122)}
    assert made == sorted(made)
    assert abs((made[0].int >> 80) / 1000 - time.time()) < 5
    assert len({names.uuid7() for _ in range(10_000)}) == 10_000
