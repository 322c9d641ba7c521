"""What a manifest may say: files that lie in one folder, and nothing that leads out of it."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.mesh.artifacts import ArtifactFile, Manifest, check_relative_path, check_sha256
from services.mesh.errors import InvalidArgument, NotFound, PlatformError

HASH = hashlib.sha256(b"").hexdigest()
parts = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0"), min_size=1, max_size=9).filter(
    lambda part: part not in (".", "..")
)
paths = st.lists(parts, min_size=1, max_size=4).map("/".join)
hostile = st.lists(
    st.sampled_from(["..", ".", "", "a", "~", "\0", "a\\..\\b", "C:", "%2e%2e", "\u2025", "..\n"]), max_size=5
).map("/".join)


def encoded(*files: tuple[str, str]) -> bytes:
    return json.dumps({"files": [{"path": p, "size_bytes": 0, "sha256": s} for p, s in files]}).encode()


@given(paths)
def test_a_plain_path_is_taken(path: str) -> None:
    assert str(check_relative_path(path)) == path


@given(hostile | st.text())
def test_a_path_never_leads_out(path: str) -> None:
    try:
        taken = check_relative_path(path)
    except InvalidArgument:
        return
    joined = os.path.normpath(f"/store/{taken}")
    assert joined.startswith("/store/")
    assert PurePosixPath(joined) == PurePosixPath("/store") / path


@pytest.mark.parametrize(
    "path",
    ["", ".", "..", "/etc/passwd", "../x", "a/../../x", "a/..", "./a", "a//b", "a/", "a\0b", "a\\b", "\udcff", "//a"],
)
def test_these_are_refused(path: str) -> None:
    with pytest.raises(InvalidArgument):
        check_relative_path(path)
    if path != "\udcff":
        with pytest.raises(InvalidArgument):
            Manifest.decode(encoded((path, HASH)))


@pytest.mark.parametrize("sha256", ["", "../../../etc/passwd", HASH.upper(), HASH[:-1], HASH + "\n", "g" * 64])
def test_a_hash_is_a_hash(sha256: str) -> None:
    with pytest.raises(InvalidArgument):
        check_sha256(sha256)
    with pytest.raises(InvalidArgument):
        Manifest.decode(encoded(("a", sha256)))


@pytest.mark.parametrize("pair", [("a", "a"), ("a", "a/b"), ("a/b/c", "a"), ("a/b", "a/b/c/d")])
def test_two_files_in_one_place_are_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(InvalidArgument, match="one place"):
        Manifest.decode(encoded((pair[0], HASH), (pair[1], HASH)))


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"\xff", b'{"files": [{}]}', b'{"files": [{"path": 1}]}', b'{"files": 3}', b"[" * 9999]
)
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        Manifest.decode(data)


@given(st.binary())
def test_any_bytes_are_a_manifest_or_refused(data: bytes) -> None:
    try:
        Manifest.decode(data)
    except PlatformError as error:
        assert isinstance(error, InvalidArgument)


@given(st.dictionaries(st.text(st.characters(codec="ascii", categories=["L"]), min_size=1), st.integers(0, 2**53)))
def test_what_is_written_is_read_back(sizes: dict[str, int]) -> None:
    manifest = Manifest(tuple(ArtifactFile(path, size, HASH) for path, size in sizes.items()))
    assert Manifest.decode(manifest.encode()) == manifest
    assert manifest.size_bytes == sum(sizes.values())


def test_a_folder_is_read_in_order_of_path(tmp_path: Path) -> None:
    for path in ("b/c", "b.x", "a", "b/a/z"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    (tmp_path / "empty").mkdir()
    manifest = Manifest.of_folder(tmp_path)
    assert [file.path for file in manifest.files] == ["a", "b.x", "b/a/z", "b/c"]
    assert manifest.file("b/c").size_bytes == 3
    with pytest.raises(NotFound, match=r"b\.x"):
        manifest.file("missing")


@pytest.mark.parametrize("target", ["inside", "/etc/passwd", "..", "nowhere"])
def test_a_link_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "inside").write_text("x")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(InvalidArgument, match="link"):
        Manifest.of_folder(tmp_path)


def test_a_device_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket may be 107 bytes long
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
        with pytest.raises(InvalidArgument, match="device"):
            Manifest.of_folder(tmp_path)


def test_a_folder_that_is_not_there_is_no_empty_artifact(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Manifest.of_folder(tmp_path / "none")
