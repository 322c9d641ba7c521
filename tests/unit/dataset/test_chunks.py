from __future__ import annotations

import hashlib
import itertools

from hypothesis import given
from hypothesis import strategies as st

from services.dataset.datasets.chunks import Chunk, ChunkWriter, Content, raw_rows, rows, version_sha256
from services.dataset.reading.rows import Message, PromptRow, encode

ROWS = st.lists(st.binary(min_size=1, max_size=40).map(lambda row: row.replace(b"\n", b"x")), max_size=40)


def write(batches: list[list[bytes]], target: int) -> tuple[list[Chunk], list[bytes]]:
    sunk: list[bytes] = []
    writer = ChunkWriter(lambda content: sunk.append(bytes(content)), target)
    for batch in batches:
        writer.add(batch)
    writer.finish()
    named = Content()
    for content in sunk:
        named.add(hashlib.sha256(content).hexdigest(), content)
    assert (writer.rows, writer.size_bytes) == (sum(map(len, batches)), sum(map(len, sunk)))
    assert (named.row_count, named.size_bytes) == (writer.rows, writer.size_bytes)
    return named.chunks, sunk


@given(ROWS, st.integers(1, 100))
def test_chunks_hold_the_rows_in_order_and_whole(given_rows: list[bytes], target: int) -> None:
    chunks, contents = write([given_rows], target)
    assert [row for content in contents for row in raw_rows(content)] == given_rows
    for chunk, content in zip(chunks, contents, strict=True):
        assert (chunk.rows, chunk.size_bytes) == (len(raw_rows(content)), len(content))
        assert chunk.rows == 1 or chunk.size_bytes <= target
    for before, after in itertools.pairwise(chunks):
        assert (after.first_row, after.first_byte) == (
            before.first_row + before.rows,
            before.first_byte + before.size_bytes,
        )
    # Cut no earlier than needed: the next row would not have fitted.
    for before, after in itertools.pairwise(contents):
        assert len(before) + len(raw_rows(after)[0]) + 1 > target


@given(ROWS, st.integers(1, 100), st.data())
def test_chunks_do_not_depend_on_batches(given_rows: list[bytes], target: int, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(given_rows)), max_size=6)))
    batches = [given_rows[a:b] for a, b in zip([0, *cuts], [*cuts, len(given_rows)], strict=True)]
    assert write(batches, target) == write([given_rows], target)


def test_the_version_s_name_depends_on_format_rows_and_order() -> None:
    (a,), _ = write([[b"a"]], 9)
    (b,), _ = write([[b"b"]], 9)
    names = {
        version_sha256(kind, chunks) for kind in ("messages", "prompt") for chunks in ([a], [b], [a, b], [b, a], [])
    }
    assert len(names) == 10
    assert version_sha256("m", [a]) == hashlib.sha256(f"m\n{a.sha256}\n".encode()).hexdigest()


def test_rows_are_read_back() -> None:
    row = PromptRow([Message("user", "é\n")], "2", {"b": 1, "a": [None]})
    assert rows(encode(row) + b"\n" + encode(row) + b"\n", "prompt") == [row, row]
    assert raw_rows(b"") == []
