"""Keys by other names, rows that may be wrong, rows held out, and names that a failed upload does not keep."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rlhf.dataset.v1 import dataset_pb2
from rlhf.dataset.v1 import dataset_service_pb2 as pb

from services.mesh.errors import AlreadyExists, InvalidArgument
from services.mesh.rpc.client import call
from tests.integration.dataset.caller import Caller, State, lines, prompt_rows

Upload = dataset_pb2.Upload


async def test_keys_of_the_file_are_read_by_other_names(caller: Caller) -> None:
    """The refusal says which mapping would fit, and it does."""
    rows = [{"id": i, "user_question": f"{i}+1?", "gold": str(i + 1)} for i in range(30)]
    dataset = await caller.dataset()
    refused = await caller.upload(dataset.name, lines(rows))
    suggested = dict(refused.report.suggested_field_mapping)
    assert refused.error.reason == "INVALID_ROWS"
    assert suggested == {"user_question": "prompt", "gold": "answer"}
    taken = await caller.upload(dataset.name, lines(rows), options=Upload(field_mapping=suggested))
    assert taken.state == State.STATE_SUCCEEDED, taken
    assert dict(taken.field_mapping) == suggested
    assert dict(taken.report.row_count_by_metadata_key) == {"id": 30}
    first = json.loads((await caller.download(taken.dataset_version)).splitlines()[0])
    assert first == {"prompt": [{"role": "user", "content": "0+1?"}], "answer": "1", "metadata": {"id": 0}}
    typo = await caller.upload(dataset.name, lines(rows), options=Upload(field_mapping={"user_qestion": "prompt"}))
    assert (typo.error.reason, "'user_qestion'" in typo.error.message) == ("UNUSED_MAPPING", True)


async def test_wrong_rows_are_left_out_within_bounds_and_kept_to_be_seen(caller: Caller) -> None:
    good = [line + b"\n" for line in lines(prompt_rows(57)).splitlines()]
    bad = [
        b'{"prompt": "a", "answer": "b",}\n',
        b'{"prompt": "\xff", "answer": "b"}\n',
        b'{"prompt": "", "answer": "4"}\n',
    ]
    data = b"".join([*good[:10], bad[0], *good[10:20], bad[1], *good[20:], bad[2]])
    dataset = await caller.dataset()
    for options in (Upload(max_invalid_row_count=2), Upload(max_invalid_row_share=0.04)):
        refused = await caller.upload(dataset.name, data, options=options)
        assert refused.error.reason == "INVALID_ROWS"
        assert "3 of 60 rows are not valid, 2 may be" in refused.error.message
    for options in (Upload(max_invalid_row_count=3), Upload(max_invalid_row_share=0.05)):
        taken = await caller.upload(dataset.name, data, options=options)
        assert taken.state == State.STATE_SUCCEEDED, taken
        assert (taken.report.row_count, taken.report.invalid_row_count) == (60, 3)
        assert (await caller.version(taken.dataset_version)).row_count == 57
    found: list[dataset_pb2.SkippedRow] = []
    token = ""
    while True:
        request = pb.ListSkippedRowsRequest(parent=taken.name, page_size=2, page_token=token)
        page = await call(caller.stub.ListSkippedRows(request))
        found += page.skipped_rows
        token = page.next_page_token
        if not token:
            break
    assert [(row.row, row.line, row.content, row.raw_content) for row in found] == [
        (11, 11, bad[0].decode().rstrip(), b""),
        (22, 22, "", bad[1].rstrip()),
        (60, 60, bad[2].decode().rstrip(), b""),
    ]
    assert [row.findings[0].reason for row in found] == ["INVALID_JSON", "INVALID_UTF8", "EMPTY"]
    none_left = await caller.upload(dataset.name, b"{}\n", options=Upload(max_invalid_row_count=5))
    assert none_left.error.reason == "INVALID_ROWS"


async def test_rows_are_held_out_for_a_dataset_of_their_own(caller: Caller) -> None:
    """The same in every file: a row that was held out once never comes to the other side."""
    rows = [{**row, "metadata": {"number": i}} for i, row in enumerate(prompt_rows(400))]
    dataset = await caller.dataset()
    options = Upload(split=dataset_pb2.Split(name="validation", share=0.1))
    first = await caller.upload(dataset.name, lines(rows), options=options)
    assert first.state == State.STATE_SUCCEEDED, first
    assert first.split_dataset_version == f"{dataset.name}-validation/versions/1"
    again = [{**row, "metadata": {"number": -1}} for row in reversed(rows)]
    second = await caller.upload(dataset.name, lines([*again, *prompt_rows(500)]), options=options)

    async def prompts(version: str) -> set[str]:
        return {json.dumps(json.loads(line)["prompt"]) for line in (await caller.download(version)).splitlines()}

    kept = await prompts(first.dataset_version), await prompts(second.dataset_version)
    held_out = await prompts(first.split_dataset_version), await prompts(second.split_dataset_version)
    assert 15 < len(held_out[0]) < 80
    assert len(kept[0]) + len(held_out[0]) == 400
    assert first.report.split_row_count == len(held_out[0])
    assert kept[0] < kept[1]
    assert held_out[0] <= held_out[1]
    assert not kept[1] & held_out[1]
    other = await call(caller.stub.GetDataset(pb.GetDatasetRequest(name=f"{dataset.name}-validation")))
    assert (other.format, dict(other.labels)["split"]) == ("prompt", "validation")
    few = await caller.upload(
        dataset.name, lines(rows[:3]), options=Upload(split=dataset_pb2.Split(name="v", share=1e-9))
    )
    assert few.error.reason == "EMPTY_SPLIT"


async def test_every_violation_of_the_options_is_told_at_once(caller: Caller) -> None:
    dataset = await caller.dataset()
    options = Upload(
        field_mapping={"a": "prompt", "b": "prompt", "": "answer", "c": "c"},
        max_invalid_row_count=-1,
        max_invalid_row_share=1.0,
        split=dataset_pb2.Split(name="No Name", share=0.7),
    )
    with pytest.raises(InvalidArgument) as refused:
        await caller.announce(dataset.name, b"x", options=options)
    assert sorted(violation.field for violation in refused.value.violations) == [
        "upload.field_mapping",
        "upload.field_mapping",
        "upload.field_mapping.c",
        "upload.max_invalid_row_count",
        "upload.max_invalid_row_share",
        "upload.max_invalid_row_share",
        "upload.split.name",
        "upload.split.share",
    ]
    with pytest.raises(InvalidArgument, match="no key of format prompt"):
        await caller.announce(dataset.name, b"x", options=Upload(field_mapping={"a": "promt"}))


async def test_duplicates_and_what_is_not_trained_are_counted(caller: Caller) -> None:
    rows: list[dict[str, Any]] = [*prompt_rows(20), *prompt_rows(5), {"prompt": "a", "answer": "b", "source": "s"}]
    upload = await caller.upload((await caller.dataset()).name, lines(rows))
    assert (upload.report.duplicate_row_count, upload.report.duplicate_row_count_exact) == (5, True)
    assert dict(upload.report.row_count_by_metadata_key) == {"source": 1}


async def test_a_name_to_which_only_failures_came_is_free(caller: Caller) -> None:
    dataset = await caller.dataset()
    id_ = dataset.name.rpartition("/")[2]
    request = pb.CreateDatasetRequest(
        parent="projects/default", dataset=dataset_pb2.Dataset(format="messages"), dataset_id=id_
    )
    with pytest.raises(AlreadyExists):  # empty, and perhaps about to be used
        await call(caller.stub.CreateDataset(request))
    await caller.upload(dataset.name, b"{}\n")
    waiting = await caller.announce(dataset.name, lines(prompt_rows(3)))
    with pytest.raises(AlreadyExists):
        await call(caller.stub.CreateDataset(request))
    await call(caller.stub.DeleteUpload(pb.DeleteUploadRequest(name=waiting.name)))
    made = await call(caller.stub.CreateDataset(request))
    assert (made.name, made.format) == (dataset.name, "messages")
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert (await caller.upload(made.name, lines([chat]))).state == State.STATE_SUCCEEDED
    with pytest.raises(AlreadyExists):
        await call(caller.stub.CreateDataset(request))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
async def test_utf16_is_told_with_the_remedy(caller: Caller, encoding: str) -> None:
    data = lines(prompt_rows(3)).decode().encode(encoding)
    upload = await caller.upload((await caller.dataset()).name, data)
    assert upload.error.reason == "NOT_UTF8"
    assert "iconv -f UTF-16" in upload.error.message
