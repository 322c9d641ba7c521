"""Validation of chat JSONL beside what others read the same file with. Prints only.

    python tests/bench/bench_validation.py [--megabytes 400] [--row-bytes 1800] [--rounds 5] [--only ours duckdb …]

What each does with the file, all in one run and in turns:

    ours         as the service does it: a confined process of its own (its start included) finds what is wrong with
                 each row (JSON, UTF-8, keys twice, spelling, roles and their order, empty texts, NUL, depth, sizes),
                 encodes it canonically, gathers statistics and counts duplicates; this process takes the chunks of
                 4 MiB and names each by its SHA-256
    duckdb       typed columns, ignore_errors=false: types, role known, content not empty, id and source there
    duckdb_write the same and every row written as JSON lines again, with SHA-256 over the file
    pyarrow      explicit schema, its threads: types and nulls
    polars       schema, its threads, eager: types, and nulls of the columns
    datasets     load_dataset("json") with features and an empty cache: types; it writes Arrow files
    orjson       each line parsed, then role and content looked at
    bare_msgspec blocks of lines decoded into typed structs that are thrown away: the limit of what ours is built on

None but ours looks for keys twice, the order of roles, NUL or depth, keeps findings, or gathers statistics. "CPU" is
user and system time of every process that takes part; ratios are of times in the same round: above 1 means that ours
took less. A peer that is not installed (`pip install -e '.[bench]'`) is left out.
"""  # fmt: skip

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib
import itertools
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from services.dataset.datasets.chunks import Content
from services.dataset.reading.rows import Message
from services.dataset.uploads import sandbox
from services.dataset.uploads.options import UploadOptions
from services.dataset.uploads.sandbox import Outcome, Reading

ROLES = {"system", "user", "assistant", "tool"}
MIB = 1 << 20
OPTIONS = UploadOptions()


def generate(path: Path, megabytes: int, row_bytes: int) -> None:
    """Conversations of one or two exchanges with an id and a source, half of the length in the last answer."""
    source = random.Random(0)
    words = ["".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=source.randint(2, 10))) for _ in range(5000)]
    words += ["日本", "naïve", "\n", '"quoted"', "x²"]

    def text(characters: int) -> str:
        return " ".join(source.choices(words, k=max(characters // 7, 1)))

    written, numbers = 0, itertools.count()
    with path.open("wb") as file:
        while written < megabytes * 1_000_000:
            block = []
            for number in itertools.islice(numbers, 2000):
                messages = []
                for _ in range(source.choice((1, 1, 2))):
                    size = int(source.lognormvariate(0, 0.5) * row_bytes / 1.5 / 1.33)
                    messages.append({"role": "user", "content": text(size // 3)})
                    messages.append({"role": "assistant", "content": text(size)})
                row = {"messages": messages, "id": number, "source": "bench"}
                block.append(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            written += file.write(b"".join(block))


def ours(path: Path, scratch: Path) -> int:
    async def read() -> int:
        content, reading = Content(), Reading(path, "chat.jsonl", "messages", OPTIONS, scratch, 2048 * MIB, 3600)
        async for frame in sandbox.read(reading):
            if isinstance(frame, bytes):
                content.add(hashlib.sha256(frame).hexdigest(), frame)
            elif isinstance(frame, Outcome) and frame.report.get("invalid_row_count", 1):
                raise AssertionError(frame)
        return content.row_count

    return asyncio.run(read())


def _duckdb(path: Path) -> tuple[Any, str]:
    columns = "{messages: 'STRUCT(role VARCHAR, content VARCHAR)[]', id: 'BIGINT', source: 'VARCHAR'}"
    options = f"format='newline_delimited', ignore_errors=false, columns={columns}"
    return importlib.import_module("duckdb").connect(), f"read_json('{path}', {options})"


def duckdb(path: Path, scratch: Path) -> int:
    connection, table = _duckdb(path)
    roles = ", ".join(f"'{role}'" for role in sorted(ROLES))
    good = f"list_bool_and(list_transform(messages, lambda m: m.role in ({roles}) and length(m.content) > 0))"
    query = f"select count(*), count(*) filter ({good} and id is not null and source is not null) from {table}"
    rows, right = connection.execute(query).fetchone()
    if right < rows:
        raise AssertionError(rows - right)
    return rows


def duckdb_write(path: Path, scratch: Path) -> int:
    rows = duckdb(path, scratch)
    connection, table = _duckdb(path)
    out, again = scratch / "out.jsonl", "select messages, {id: id, source: source} as metadata"
    connection.execute(f"copy ({again} from {table}) to '{out}' (format json)")
    with out.open("rb") as file:
        hashlib.file_digest(file, "sha256")
    return rows


def pyarrow(path: Path, scratch: Path) -> int:
    pa, reader = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.json")
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema([("messages", pa.list_(message)), ("id", pa.int64()), ("source", pa.string())])
    options = reader.ReadOptions(block_size=8 * MIB, use_threads=True), reader.ParseOptions(explicit_schema=schema)
    rows = 0
    for batch in reader.open_json(path, *options):
        rows += batch.num_rows
        values = batch.column("messages").values
        if values.field("role").null_count or values.field("content").null_count:
            raise AssertionError(rows)
    return rows


def polars(path: Path, scratch: Path) -> int:
    pl = importlib.import_module("polars")
    message = pl.Struct({"role": pl.String, "content": pl.String})
    table = pl.read_ndjson(path, schema={"messages": pl.List(message), "id": pl.Int64, "source": pl.String})
    if any(column.null_count() for column in table):
        raise AssertionError
    return table.height


def datasets(path: Path, scratch: Path) -> int:
    os.environ["HF_HUB_OFFLINE"] = "1"
    lib = importlib.import_module("datasets")
    lib.disable_progress_bars()
    message = {"role": lib.Value("string"), "content": lib.Value("string")}
    features = lib.Features({"messages": lib.List(message), "id": lib.Value("int64"), "source": lib.Value("string")})
    files = {"data_files": str(path), "split": "train", "features": features, "cache_dir": str(scratch)}
    return lib.load_dataset("json", **files).num_rows


def orjson(path: Path, scratch: Path) -> int:
    loads, rows = importlib.import_module("orjson").loads, 0
    with path.open("rb", buffering=MIB) as file:
        for line in file:
            rows += 1
            for message in loads(line)["messages"]:
                if message["role"] not in ROLES or not isinstance(message["content"], str):
                    raise AssertionError(rows)
    return rows


class Typed(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    messages: list[Message]
    id: int
    source: str


def bare_msgspec(path: Path, scratch: Path) -> int:
    decode, rows, rest = msgspec.json.Decoder(Typed).decode_lines, 0, b""
    with path.open("rb") as file:
        while block := file.read(MIB // 4):
            end = block.rfind(b"\n") + 1
            rows += len(decode(rest + block[:end]))
            rest = block[end:]
    return rows


PEERS = (ours, duckdb, duckdb_write, pyarrow, polars, datasets, orjson, bare_msgspec)


def measure(run: Callable[[Path, Path], int], path: Path) -> tuple[float, float, int]:
    """(wall seconds, CPU seconds, rows)."""
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        start, before = time.monotonic(), os.times()
        rows = run(path, Path(scratch))
        wall, after = time.monotonic() - start, os.times()
    return wall, sum(after[:4]) - sum(before[:4]), rows


def tell(
    name: str, megabytes: float, mine: list[tuple[float, float, int]], its: list[tuple[float, float, int]]
) -> None:
    wall, cpu = (statistics.median(each[part] for each in its) for part in (0, 1))
    columns = [f"{name:13}{megabytes / wall:7.0f}{megabytes / cpu:14.0f}"]
    for part in (0, 1):
        ratios = [theirs[part] / our[part] for our, theirs in zip(mine, its, strict=True)]
        columns.append(f"{statistics.median(ratios):8.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print("".join(columns), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--row-bytes", type=int, default=1800)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[], help="ours is always measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = Path(folder) / "chat.jsonl"
        generate(path, options.megabytes, options.row_bytes)
        runs = [run for run in PEERS if run is ours or not options.only or run.__name__ in options.only]
        for run in tuple(runs):
            try:  # what is imported and read for the first time is not measured
                measure(run, path)
            except ModuleNotFoundError:
                print(f"{run.__name__} is not installed")
                runs.remove(run)
        seen = {run: [] for run in runs}
        for _ in range(options.rounds):
            for run in runs:
                seen[run].append(measure(run, path))
        rows = {measured[2] for each in seen.values() for measured in each}
        megabytes = path.stat().st_size / 1e6
        print(f"{megabytes:.0f} MB, {max(rows)} rows, {options.rounds} rounds, load {os.getloadavg()[0]:.1f}")
        print(f"{'':13}{'MB/s':>7}{'MB per CPU s':>14}   wall time / ours        CPU time / ours")
        for run in runs:
            tell(run.__name__, megabytes, seen[ours], seen[run])


if __name__ == "__main__":
    main()
