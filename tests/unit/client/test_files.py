"""Files on their way, hostile ones too."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from services.client.files import (
    CHUNK_BYTES,
    Partial,
    Progress,
    Source,
    check_file,
    ignore,
    is_there,
    json_lines,
    make_room,
    place_in,
)
from services.mesh.errors import AlreadyExists, DataLoss, InvalidArgument

CONTENT = bytes(range(256)) * 8192  # 2 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def test_a_source_of_a_file_and_of_bytes_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(CONTENT)
    told: list[Progress] = []
    of_file = Source.open(tmp_path / "a.jsonl", "", told.append)
    of_bytes = Source.open(iter([CONTENT[:7], b"", CONTENT[7:]]), "b.jsonl", ignore)
    assert (of_file.file_name, of_bytes.file_name) == ("a.jsonl", "b.jsonl")
    for source in (of_file, of_bytes):
        assert (source.size_bytes, source.sha256) == (len(CONTENT), SHA256)
        assert source.read(0) == CONTENT[:CHUNK_BYTES]
        assert source.read(len(CONTENT) - 5) == CONTENT[-5:]
        source.close()
    assert [each.done for each in told] == [0, CHUNK_BYTES, 2 * CHUNK_BYTES]


def test_a_file_that_becomes_shorter_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(CONTENT)
    source = Source.open(tmp_path / "a.jsonl", "", ignore)
    (tmp_path / "a.jsonl").write_bytes(b"short")
    with pytest.raises(DataLoss):
        source.read(CHUNK_BYTES)
    source.close()


def test_nothing_to_send_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for path in (tmp_path, tmp_path / "absent", tmp_path / "empty"):
        with pytest.raises(InvalidArgument):
            check_file(path)
    with pytest.raises(InvalidArgument):
        Source.open([], "a.jsonl", ignore)
    with pytest.raises(InvalidArgument, match="file_name"):
        Source.open([b"x"], "", ignore)


def test_rows_become_lines() -> None:
    assert b"".join(json_lines([{"a": "é"}, {"b": [1]}])) == '{"a": "é"}\n{"b": [1]}\n'.encode()
    with pytest.raises(ValueError):
        list(json_lines([{"a": float("nan")}]))


def test_a_partial_file_is_gone_on_with_and_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path, target = tmp_path / "part" / "x", tmp_path / "deep" / "x"
    begun = Partial(path, len(CONTENT))
    begun.append(0, CONTENT[:1000])
    begun.close()
    partial = Partial(path, len(CONTENT))
    assert partial.offset == 1000
    for offset, chunk in ((999, b"x"), (1001, b"x"), (1000, CONTENT)):
        with pytest.raises(DataLoss):
            partial.append(offset, chunk)
    with pytest.raises(DataLoss, match="1000 bytes"):
        partial.finish(target, SHA256)
    assert not target.exists() and path.exists()
    partial = Partial(path, len(CONTENT))
    partial.append(1000, CONTENT[1000:])
    partial.finish(target, SHA256)
    assert target.read_bytes() == CONTENT and not path.exists()


def test_wrong_bytes_never_get_the_name(tmp_path: Path) -> None:
    partial = Partial(tmp_path / "part", 3)
    partial.append(0, b"abc")
    with pytest.raises(DataLoss, match="SHA-256"):
        partial.finish(tmp_path / "x", SHA256)
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_of_a_longer_file_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"too long")
    partial = Partial(tmp_path / "part", 3)
    assert partial.offset == 0
    partial.close()


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "", ".", "a//b", "a\\b", "link/x", "link/deep/x"])
def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "folder"
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(InvalidArgument):
        place_in(folder, path)


def test_files_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert place_in(tmp_path, "x") == path
    assert not is_there(path, 3, SHA256, False)
    path.write_bytes(CONTENT)
    assert is_there(path, len(CONTENT), SHA256, False)
    with pytest.raises(AlreadyExists):
        is_there(path, 3, SHA256, False)
    assert not is_there(path, 3, SHA256, True)
    with pytest.raises(AlreadyExists):
        make_room(path, False)
    make_room(path, True)
    with pytest.raises(InvalidArgument):
        make_room(tmp_path, True)
