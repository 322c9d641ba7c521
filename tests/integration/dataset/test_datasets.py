"""The five standard methods: checks, idempotency, etags, pages, and what a delete takes along."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from google.protobuf import field_mask_pb2
from rlhf.dataset.v1 import dataset_pb2
from rlhf.dataset.v1 import dataset_service_pb2 as pb

from services.mesh.errors import Aborted, AlreadyExists, InvalidArgument, NotFound
from services.mesh.rpc.client import call
from tests.integration.dataset.caller import Caller, eventually, lines, prompt_rows


def create(
    id_: str = "", request_id: str = "", parent: str = "projects/default", **fields: Any
) -> pb.CreateDatasetRequest:
    fields.setdefault("format", "prompt")
    dataset = dataset_pb2.Dataset(**fields)
    return pb.CreateDatasetRequest(parent=parent, dataset=dataset, dataset_id=id_, request_id=request_id)


def update(dataset: dataset_pb2.Dataset, *paths: str) -> pb.UpdateDatasetRequest:
    return pb.UpdateDatasetRequest(dataset=dataset, update_mask=field_mask_pb2.FieldMask(paths=paths))


async def listed(caller: Caller, parent: str, page_size: int = 0) -> list[str]:
    names, token = [], ""
    while True:
        request = pb.ListDatasetsRequest(parent=parent, page_size=page_size, page_token=token)
        page = await call(caller.stub.ListDatasets(request))
        assert not page_size or len(page.datasets) <= page_size
        names += [dataset.name for dataset in page.datasets]
        token = page.next_page_token
        if not token:
            return names


async def test_created_is_read_back(caller: Caller) -> None:
    made = await call(caller.stub.CreateDataset(create("sums", display_name="Sums", labels={"team": "red"})))
    assert made.name == "projects/default/datasets/sums"
    assert (made.display_name, made.format, dict(made.labels)) == ("Sums", "prompt", {"team": "red"})
    assert made.etag and made.create_time.seconds and not made.latest_version
    assert await call(caller.stub.GetDataset(pb.GetDatasetRequest(name=made.name))) == made
    with pytest.raises(AlreadyExists):
        await call(caller.stub.CreateDataset(create("sums")))


async def test_server_makes_an_id(caller: Caller) -> None:
    made = await call(caller.stub.CreateDataset(create()))
    assert uuid.UUID(made.name.rpartition("/")[2]).version == 7
    assert await call(caller.stub.GetDataset(pb.GetDatasetRequest(name=made.name))) == made


async def test_every_violation_is_told_at_once(caller: Caller) -> None:
    request = create(
        "Bad_Id",
        request_id="no uuid",
        parent="projects/",
        format="poems",
        display_name="x\0",
        labels={"UPPER": "x", "ok": "v" * 300},
    )
    with pytest.raises(InvalidArgument) as refused:
        await call(caller.stub.CreateDataset(request))
    fields = {violation.field.partition("[")[0] for violation in refused.value.violations}
    assert fields == {
        "dataset_id",
        "request_id",
        "parent",
        "dataset.format",
        "dataset.display_name",
        "dataset.labels",
    }
    assert len(refused.value.violations) == 7
    assert "messages, preference, prompt" in str(refused.value)


@pytest.mark.parametrize("id_", ["", "named-by-the-caller"])
async def test_request_sent_again_gives_the_same_answer(caller: Caller, id_: str) -> None:
    request = create(id_, request_id=str(uuid.uuid4()))
    answers = await asyncio.gather(*(call(caller.stub.CreateDataset(request)) for _ in range(5)))
    assert all(answer == answers[0] for answer in answers)
    other = create(id_, request_id=request.request_id, display_name="other")
    with pytest.raises(AlreadyExists) as refused:
        await call(caller.stub.CreateDataset(other))
    assert refused.value.reason == "REQUEST_ID_REUSED"
    await call(caller.stub.DeleteDataset(pb.DeleteDatasetRequest(name=answers[0].name)))
    again = await call(caller.stub.CreateDataset(request))
    assert again.etag != answers[0].etag


async def test_validate_only_checks_and_makes_nothing(caller: Caller) -> None:
    request = create("only-checked")
    request.validate_only = True
    answer = await call(caller.stub.CreateDataset(request))
    assert (answer.name, answer.etag) == ("projects/default/datasets/only-checked", "")
    with pytest.raises(NotFound):
        await call(caller.stub.GetDataset(pb.GetDatasetRequest(name=answer.name)))
    await call(caller.stub.CreateDataset(create("only-checked")))
    with pytest.raises(AlreadyExists):
        await call(caller.stub.CreateDataset(request))


async def test_lists_newest_first_page_by_page(caller: Caller) -> None:
    parent = "projects/lists"
    assert await listed(caller, parent) == []
    made = [(await call(caller.stub.CreateDataset(create(f"n{i}", parent=parent)))).name for i in range(7)]
    assert sorted(await listed(caller, parent, 3)) == sorted(made)
    assert await listed(caller, parent, 3) == await listed(caller, parent)
    token = (await call(caller.stub.ListDatasets(pb.ListDatasetsRequest(parent=parent, page_size=3)))).next_page_token
    for request in (
        pb.ListDatasetsRequest(parent="projects/other", page_token=token),
        pb.ListDatasetsRequest(parent=parent, page_token="!"),
        pb.ListDatasetsRequest(parent=parent, page_size=-1),
        pb.ListDatasetsRequest(parent="projects/a/b"),
    ):
        with pytest.raises(InvalidArgument):
            await call(caller.stub.ListDatasets(request))


async def test_update_takes_what_the_mask_names(caller: Caller) -> None:
    made = await caller.dataset(display_name="old", labels={"a": "1"})
    sent = dataset_pb2.Dataset(name=made.name, display_name="new", labels={"b": "2"})
    changed = await call(caller.stub.UpdateDataset(update(sent, "display_name")))
    assert (changed.display_name, dict(changed.labels)) == ("new", {"a": "1"})
    assert changed.etag != made.etag
    assert changed.update_time.ToNanoseconds() > made.update_time.ToNanoseconds()
    changed = await call(caller.stub.UpdateDataset(update(dataset_pb2.Dataset(name=made.name), "labels")))
    assert (changed.display_name, dict(changed.labels)) == ("new", {})
    changed = await call(caller.stub.UpdateDataset(update(sent)))
    assert (changed.display_name, dict(changed.labels)) == ("new", {"b": "2"})
    # Without a mask only what is set is taken over, with * everything.
    bare = dataset_pb2.Dataset(name=made.name, display_name="bare")
    assert (await call(caller.stub.UpdateDataset(update(bare)))).labels == {"b": "2"}
    assert (await call(caller.stub.UpdateDataset(update(bare, "*")))).labels == {}


async def test_update_that_changes_nothing_keeps_the_etag(caller: Caller) -> None:
    made = await caller.dataset(display_name="same")
    assert await call(caller.stub.UpdateDataset(update(made, "display_name"))) == made


@pytest.mark.parametrize("path", ["name", "format", "latest_version", "labels.a", "nothing", ""])
async def test_update_of_what_cannot_change_is_refused(caller: Caller, path: str) -> None:
    made = await caller.dataset()
    with pytest.raises(InvalidArgument, match="update_mask"):
        await call(caller.stub.UpdateDataset(update(made, path)))


async def test_format_cannot_change(caller: Caller) -> None:
    made = await caller.dataset()
    made.format = "messages"
    with pytest.raises(InvalidArgument, match=r"dataset\.format"):
        await call(caller.stub.UpdateDataset(update(made)))


async def test_an_update_is_told_all_that_is_wrong_with_it(caller: Caller) -> None:
    made = await caller.dataset()
    wrong = dataset_pb2.Dataset(name=made.name, format="messages", display_name="x" * 201, labels={"Not A Key": ""})
    with pytest.raises(InvalidArgument) as caught:
        await call(caller.stub.UpdateDataset(update(wrong, "display_name", "labels", "size")))
    fields = {violation.field.partition("[")[0].partition(".Not")[0] for violation in caught.value.violations}
    assert fields == {"update_mask", "dataset.display_name", "dataset.labels", "dataset.format"}
    wrong.name = "projects/default/datasets/none"
    with pytest.raises(InvalidArgument, match=r"dataset\.name: .*none") as caught:
        await call(caller.stub.UpdateDataset(update(wrong, "display_name")))
    assert "dataset.display_name" in {violation.field for violation in caught.value.violations}


async def test_slower_of_two_is_refused_by_its_etag(caller: Caller) -> None:
    made = await caller.dataset()
    answers = await asyncio.gather(
        *(
            call(
                caller.stub.UpdateDataset(
                    update(dataset_pb2.Dataset(name=made.name, etag=made.etag, display_name=f"n{i}"))
                )
            )
            for i in range(5)
        ),
        return_exceptions=True,
    )
    won = [answer for answer in answers if isinstance(answer, dataset_pb2.Dataset)]
    assert len(won) == 1
    assert sum(isinstance(answer, Aborted) and answer.reason == "ETAG_MISMATCH" for answer in answers) == 4
    with pytest.raises(Aborted):
        await call(caller.stub.DeleteDataset(pb.DeleteDatasetRequest(name=made.name, etag=made.etag)))
    await call(caller.stub.DeleteDataset(pb.DeleteDatasetRequest(name=made.name, etag=won[0].etag)))


async def test_a_new_version_changes_the_etag(caller: Caller) -> None:
    made = await caller.dataset()
    await caller.upload(made.name, lines(prompt_rows(1)))
    after = await call(caller.stub.GetDataset(pb.GetDatasetRequest(name=made.name)))
    assert after.etag != made.etag


async def test_delete_takes_versions_uploads_and_files_along(caller: Caller) -> None:
    version = await caller.filled(prompt_rows(5))
    name = version.name.rpartition("/versions/")[0]
    open_upload = await caller.announce(name, b"x" * 100)
    await caller.write(open_upload.name, b"x" * 50)
    staged = caller.home / "uploads" / f"{open_upload.name.rpartition('/')[2]}.part"
    assert staged.exists()
    await call(caller.stub.DeleteDataset(pb.DeleteDatasetRequest(name=name)))
    for attempt in (
        caller.stub.GetDataset(pb.GetDatasetRequest(name=name)),
        caller.stub.GetDatasetVersion(pb.GetDatasetVersionRequest(name=version.name)),
        caller.stub.GetUpload(pb.GetUploadRequest(name=open_upload.name)),
        caller.stub.ListUploads(pb.ListUploadsRequest(parent=name)),
        caller.stub.ListDatasetVersions(pb.ListDatasetVersionsRequest(parent=name)),
        caller.stub.DeleteDataset(pb.DeleteDatasetRequest(name=name)),
    ):
        with pytest.raises(NotFound):
            await call(attempt)
    await eventually(lambda: not staged.exists())


async def test_deleted_name_can_be_used_again(caller: Caller) -> None:
    """Its versions count from 1 again, and their events do not collide with the earlier ones."""
    for _ in range(2):
        await call(caller.stub.CreateDataset(create("phoenix")))
        upload = await caller.upload("projects/default/datasets/phoenix", lines(prompt_rows(2)))
        assert upload.dataset_version == "projects/default/datasets/phoenix/versions/1"
        await call(caller.stub.DeleteDataset(pb.DeleteDatasetRequest(name="projects/default/datasets/phoenix")))
