"""Rows by other names, rows left out, rows held out: what always holds, and files as people have them."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.dataset.formats import formats
from services.dataset.reading.field_mapping import targets
from services.dataset.reading.findings import UnreadableFile
from services.dataset.reading.limits import Limits
from services.dataset.reading.mapping_suggestion import suggest
from services.dataset.uploads.options import Split, UploadOptions
from services.dataset.uploads.skipped_rows import MAX_ROWS, SkippedRow
from tests.unit.dataset.fix_files import Checked, assistant, check, check_rows, compress, encode, jsonl, user
from tests.unit.dataset.fix_rows import any_rows, valid_rows

import msgspec  # isort: skip

FORMATS = st.sampled_from(["messages", "preference", "prompt"])
HI = [user("hi"), assistant("yo")]


def checked(
    content: bytes, format_name: str, options: UploadOptions, name: str = "x.jsonl"
) -> tuple[Checked, Checked, list[SkippedRow]]:
    """What is kept, what is held out (as content alone), what is left out."""
    held_out: list[bytes] = []
    skipped: list[SkippedRow] = []
    with tempfile.TemporaryDirectory() as folder:
        kept = check(
            Path(folder),
            content,
            name,
            format_name,
            options=options,
            held_out_sink=lambda chunk: held_out.append(bytes(chunk)),
            skipped_sink=lambda row: skipped.append(msgspec.json.decode(row, type=SkippedRow)),
            block_bytes=500,
        )
    return kept, Checked(kept.report, held_out), skipped


def trained(content: bytes) -> list[str]:
    rows = [json.loads(line) for line in content.splitlines()]
    return [json.dumps({key: value for key, value in row.items() if key != "metadata"}) for row in rows]


def rows_of(name: str, kind: Any) -> Any:
    return st.tuples(st.just(name), st.lists(kind(name), min_size=1, max_size=12))


@settings(max_examples=60)
@given(FORMATS.flatmap(lambda name: rows_of(name, valid_rows)), st.floats(0.01, 0.5), st.integers(-3, 3))
def test_a_split_gives_every_row_to_one_side_by_what_it_holds(
    case: tuple[str, list[Any]], share: float, seed: int
) -> None:
    name, rows = case
    options = UploadOptions(split=Split("validation", share, seed))
    kept, held_out, _ = checked(jsonl(rows), name, options)
    whole = check_in_folder(jsonl(rows), name)
    assert sorted([*kept.content.splitlines(), *held_out.content.splitlines()]) == sorted(whole.content.splitlines())
    assert kept.report.held_out_rows == len(held_out.content.splitlines())
    assert kept.report.duplicates == whole.report.duplicates
    assert not set(trained(kept.content)) & set(trained(held_out.content))
    # In another order, with other metadata.
    other = [{**row, "metadata": {"number": index}} for index, row in enumerate(reversed(rows))]
    again, again_out, _ = checked(jsonl(other), name, options)
    assert set(trained(again.content)) == set(trained(kept.content))
    assert set(trained(again_out.content)) == set(trained(held_out.content))


def check_in_folder(content: bytes, format_name: str) -> Checked:
    with tempfile.TemporaryDirectory() as folder:
        return check(Path(folder), content, format_name=format_name, block_bytes=500)


def test_a_split_takes_about_its_share_and_another_seed_takes_others() -> None:
    rows = jsonl([{"prompt": str(number), "answer": "a"} for number in range(4000)])
    taken = [
        set(checked(rows, "prompt", UploadOptions(split=Split("v", 0.1, seed)))[1].content.splitlines())
        for seed in (0, 1)
    ]
    assert all(300 < len(each) < 500 for each in taken)
    assert len(taken[0] & taken[1]) < 100


@settings(max_examples=100)
@given(FORMATS.flatmap(lambda name: rows_of(name, any_rows)), st.integers(0, 5))
def test_rows_are_kept_or_left_out(case: tuple[str, list[Any]], blank: int) -> None:
    """All of them, each once, and what is left out is there as it was."""
    name, rows = case
    lines = [json.dumps(row).encode() for row in rows]
    kept, _, skipped = checked(b"\n".join([*lines, *[b""] * blank]), name, UploadOptions(max_invalid_rows=99))
    plain = check_in_folder(b"\n".join(lines), name)
    assert kept.content == plain.content
    assert kept.report.valid_rows + len(skipped) == len(rows)
    assert [row.content for row in skipped] == [lines[row.row - 1].decode() for row in skipped]
    assert all(row.findings and row.line == row.row for row in skipped)
    assert checked(b"\n".join(lines), name, UploadOptions())[2] == []


@settings(max_examples=100)
@given(
    FORMATS.flatmap(lambda name: rows_of(name, valid_rows)),
    st.sampled_from(["jsonl", "json"]),
    st.sampled_from([{"frage": "prompt"}, {"ja": "chosen", "nein": "rejected"}, {"q u": "question", "gold": "answer"},
                     {"dialog": "messages"}, {"prompt": "completion", "completion": "prompt"}, {"extra": "input"}]),
)  # fmt: skip
def test_a_mapping_gives_what_the_renamed_file_gives(
    case: tuple[str, list[Any]], container: str, mapping: dict[str, str]
) -> None:
    name, rows = case
    back: dict[Any, Any] = {target: key for key, target in mapping.items()}
    renamed = [{back.get(key, key): value for key, value in row.items()} for row in rows]
    expected = check_in_folder(jsonl(rows), name)
    content = encode(container, renamed * 3)
    try:
        found, _, _ = checked(content, name, UploadOptions(mapping), f"x.{container}")
    except UnreadableFile as error:
        assert error.reason == "UNUSED_MAPPING"
        assert not all(any(key in row for row in renamed) for key in mapping)
        return
    assert found.content == expected.content * 3
    assert found.report.kept_keys == {key: times * 3 for key, times in expected.report.kept_keys.items()}


VALUES: dict[str, Any] = {
    "messages": HI,
    "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}],
    "reward_model": {"style": "rule", "ground_truth": "1"},
    "rejected": "no",
}


@pytest.mark.parametrize("name", formats.names())
def test_an_optional_key_that_is_read_as_another_gives_what_the_renamed_file_gives(tmp_path: Path, name: str) -> None:
    """Of each spelling, as each key that the format knows."""
    for spelling in formats.get(name).spellings:
        row = {key: VALUES.get(key, "yes") for key in spelling.keys}
        if spelling.name == "implicit_prompt":
            row = {"chosen": HI, "rejected": [HI[0], assistant("no")]}
        optional = {each.encode_name for each in msgspec.structs.fields(spelling.source) if not each.required}
        for key, target in itertools.product(sorted(optional), targets(formats.get(name))):
            # Where the row has not the target, only the last has the key.
            renamed = [*[row] * 3, row if target in row else {**row, target: "x"}]
            rows = [{key if each == target else each: value for each, value in one.items()} for one in renamed]
            found = check(tmp_path, jsonl(rows), format_name=name, options=UploadOptions({key: target}))
            expected = check_rows(tmp_path, renamed, name)
            assert found.content == expected.content, (spelling.name, key, target)
            assert found.report.kept_keys == expected.report.kept_keys


@pytest.mark.parametrize("container", ["csv", "parquet"])
def test_columns_are_read_by_other_names(tmp_path: Path, container: str) -> None:
    """A cell of JSON is read as that of the name which it gets."""
    rows = [{"chat": json.dumps(HI) if container == "csv" else HI, "n": "1"}] * 3
    found = check(tmp_path, encode(container, rows), f"x.{container}", options=UploadOptions({"chat": "messages"}))
    assert found.rows == [{"messages": HI, "metadata": {"n": "1"}}] * 3


def test_a_key_in_the_way_of_a_renamed_one_is_told(tmp_path: Path) -> None:
    rows = [{"q": "a", "answer": "b"}] * 20 + [{"q": "a", "prompt": "c", "answer": "b"}]
    found = check(tmp_path, jsonl(rows), format_name="prompt", options=UploadOptions({"q": "prompt"}))
    assert found.found == [(21, "q", "conflict")]


@pytest.mark.parametrize(
    ("format_name", "row", "expected"),
    [
        ("messages", {"id": 1, "question_text": "a", "gold": "b"}, {"question_text": "prompt", "gold": "completion"}),
        ("messages", {"src": "a", "tgt": "b"}, {"src": "prompt", "tgt": "completion"}),
        ("messages", {"dialog": HI, "id": 3}, {"dialog": "messages"}),
        ("prompt", {"user_question": "a", "final_answer": 4}, {"user_question": "prompt", "final_answer": "answer"}),
        ("preference", {"prompt": "a", "response_chosen": "b", "response_rejected": "c"},
         {"response_chosen": "chosen", "response_rejected": "rejected"}),
        ("messages", {"text": "a"}, {}),
        ("messages", {"a": 1, "b": 2}, {}),
        ("messages", {"a=b": "x", "c,d": "y"}, {}),
    ],
)  # fmt: skip
def test_a_mapping_is_suggested_that_works(
    tmp_path: Path, format_name: str, row: Any, expected: dict[str, str]
) -> None:
    assert suggest(formats.get(format_name), [row]) == expected
    refused = check_rows(tmp_path, [row] * 5, format_name).report
    assert refused.suggested_mapping == expected
    if expected:
        assert check(tmp_path, jsonl([row] * 5), format_name=format_name, options=UploadOptions(expected)).report.ok


GOOD = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}'
DIRTY = {
    "trailing comma": (GOOD[:-1] + b",}", "invalid_json"),
    "key twice": (GOOD[:-1] + b', "id": 1, "id": 2}', "duplicate_key"),
    "NaN": (GOOD[:-1] + b', "score": NaN}', "invalid_number"),
    "single quotes": (GOOD.replace(b'"', b"'"), "invalid_json"),
    "cut off": (GOOD[:40], "invalid_json"),
    "two on a line": (GOOD + GOOD, "invalid_json"),
    "null list": (b'{"messages": null}', "unknown_spelling"),
    "null content": (GOOD.replace(b'"yo"', b"null"), "missing"),
    "bare text": (b"hello", "invalid_json"),
    "huge": (GOOD.replace(b"yo", b"y" * 3000), "row_too_long"),
    "latin-1": (GOOD.replace(b"yo", b"\xe9"), "invalid_utf8"),
}


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_a_dirty_file_loses_its_dirt_and_nothing_else(tmp_path: Path, name: str) -> None:
    """With a byte order mark, line ends of Windows, blank lines, and another layout in the middle."""
    other = b'{"instruction": "hi", "input": null, "output": "yo", "id": null}'
    lines = [GOOD, b"", other, *[line for dirt, _ in DIRTY.values() for line in (dirt, GOOD)], b"  "]
    content = compress(name.removeprefix("x.jsonl"), b"\xef\xbb\xbf" + b"\r\n".join(lines))
    skipped: list[SkippedRow] = []
    found = check(
        tmp_path,
        content,
        name,
        limits=Limits(row_bytes=2000),
        options=UploadOptions(max_invalid_share=0.9),
        skipped_sink=lambda row: skipped.append(msgspec.json.decode(row, type=SkippedRow)),
    )
    assert found.rows == [{"messages": HI}] * (2 + len(DIRTY))
    assert [row.findings[0]["reason"].lower() for row in skipped] == [reason for _, reason in DIRTY.values()]
    assert [row.line for row in skipped] == list(range(4, 4 + 2 * len(DIRTY), 2))
    by_name = dict(zip(DIRTY, skipped, strict=True))
    assert by_name["trailing comma"].content == DIRTY["trailing comma"][0].decode() + "\r"
    assert by_name["huge"].content is None
    assert by_name["latin-1"].is_base64
    assert found.report.duplicates == len(found.rows) - 1


def test_what_is_left_out_is_kept_within_bounds(tmp_path: Path) -> None:
    skipped: list[bytes] = []
    options = UploadOptions(max_invalid_rows=10**6)
    check(tmp_path, b"{}\n" * (MAX_ROWS + 50), options=options, skipped_sink=skipped.append)
    assert len(skipped) == MAX_ROWS
    skipped.clear()
    check(tmp_path, b'{"a": "' + b"x" * (3 << 20) + b'"}\n', options=options, skipped_sink=skipped.append)
    row = msgspec.json.decode(skipped[0], type=SkippedRow)
    assert (row.is_cut, len(row.content or "")) == (True, 1 << 20)


def test_a_bound_is_a_number_or_a_share() -> None:
    assert [UploadOptions(max_invalid_rows=3).tolerated(rows) for rows in (1, 100)] == [3, 3]
    assert [UploadOptions(max_invalid_share=0.05).tolerated(rows) for rows in (19, 20, 100)] == [0, 1, 5]
    assert UploadOptions().tolerated(100) == 0


@pytest.mark.parametrize(
    ("format_name", "row", "spelling"),
    [
        ("messages", {"question": "hi", "answer": "yo"}, "question+answer"),
        ("messages", {"query": "hi", "response": "yo"}, "query+response"),
        ("messages", {"input": "hi", "output": "yo"}, "input+output"),
        ("messages", {"problem": "hi", "solution": "yo"}, "problem+solution"),
        ("messages", {"prompt": "hi", "response": "yo"}, "prompt_response"),
        ("messages", {"instruction": "hi", "context": "", "response": "yo"}, "dolly"),
        ("prompt", {"query": "hi", "response": "yo"}, "query+response"),
        ("prompt", {"input": "hi", "output": "yo"}, "input+output"),
        ("prompt", {"instruction": "hi", "input": "", "output": "yo"}, "instruction+output"),
        ("prompt", {"instruction": "hi", "context": None, "response": "yo"}, "instruction+response"),
    ],
)
def test_common_names_of_a_request_and_its_answer(tmp_path: Path, format_name: str, row: Any, spelling: str) -> None:
    found = check_rows(tmp_path, [row, row], format_name)
    expected = {"messages": HI} if format_name == "messages" else {"prompt": [HI[0]], "answer": "yo"}
    assert (found.found, found.rows, found.report.spellings) == ([], [expected] * 2, {spelling: 2})


def test_dolly_s_context_and_orca_s_system_prompt(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Sum up.", "context": "Long.", "response": "S.", "category": "c"},
        {"system_prompt": "Be brief.", "question": "hi", "response": "yo"},
    ]
    found = check_rows(tmp_path, rows, "messages")
    assert found.rows == [
        {"messages": [user("Sum up.\nLong."), assistant("S.")], "metadata": {"category": "c"}},
        {"messages": [{"role": "system", "content": "Be brief."}, *HI]},
    ]
