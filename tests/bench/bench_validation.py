"""Throughput of validating chat JSONL, beside what others read the same file with. Not a test; run by hand:

    python tests/bench/bench_validation.py [--megabytes 400] [--row-bytes 1800] [--repeats 3]

Ours checks every row, encodes it canonically, hashes it, cuts chunks and gathers statistics. The peers do less: they
parse, and check that each message has a role and a content. A peer that is not installed is left out. Every number is
from one run on one machine: read the ratios.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from services.dataset.validation import validate

ROLES = {"system", "user", "assistant", "tool"}


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


def ours(path: Path) -> int:
    report = validate(path, "chat.jsonl", "messages", lambda content: None)
    if not report.ok:
        raise AssertionError(report.findings[:3])
    return report.rows


def stdlib_json(path: Path) -> int:
    return _by_line(path, json.loads)


def orjson(path: Path) -> int:
    return _by_line(path, importlib.import_module("orjson").loads)


def _by_line(path: Path, loads: Callable[[bytes], Any]) -> int:
    rows = 0
    with path.open("rb", buffering=1 << 20) as file:
        for line in file:
            rows += 1
            for message in loads(line)["messages"]:
                if message["role"] not in ROLES or not isinstance(message["content"], str):
                    raise AssertionError(rows)
    return rows


def pyarrow(path: Path) -> int:
    pa, reader = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.json")
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema([("messages", pa.list_(message)), ("id", pa.int64()), ("source", pa.string())])
    batches = reader.open_json(
        path, reader.ReadOptions(block_size=8 << 20, use_threads=False), reader.ParseOptions(explicit_schema=schema)
    )
    rows = 0
    for batch in batches:
        rows += batch.num_rows
        values = batch.column("messages").values
        if values.field("role").null_count or values.field("content").null_count:
            raise AssertionError(rows)
    return rows


def duckdb(path: Path) -> int:
    connection = importlib.import_module("duckdb").connect()
    connection.execute("set threads = 1")
    columns = "{messages: 'STRUCT(role VARCHAR, content VARCHAR)[]', id: 'BIGINT', source: 'VARCHAR'}"
    bad = "len(list_filter(messages, lambda m: m.role is null or m.content is null)) > 0"
    query = f"select count(*), count(*) filter ({bad}) from read_json(?, format='newline_delimited', columns={columns})"
    rows, wrong = connection.execute(query, [str(path)]).fetchone()
    if wrong:
        raise AssertionError(wrong)
    return rows


def measure(run: Callable[[Path], int], path: Path, repeats: int) -> tuple[float, int]:
    """(best MB of input per second of processor time, rows)."""
    best, rows = 0.0, 0
    for _ in range(repeats):
        start = time.process_time()
        rows = run(path)
        best = max(best, path.stat().st_size / 1e6 / (time.process_time() - start))
    return best, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--row-bytes", type=int, default=1800)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chat.jsonl"
        generate(path, options.megabytes, options.row_bytes)
        reference = 0.0
        for run in (ours, duckdb, pyarrow, orjson, stdlib_json):
            try:
                speed, rows = measure(run, path, options.repeats)
            except ModuleNotFoundError:
                print(f"{run.__name__:12} not installed")
                continue
            reference = reference or speed
            size = path.stat().st_size / rows
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"{run.__name__:12} {speed:6.0f} MB per CPU second  {speed / reference:5.2f} of ours  "
                  f"{rows} rows of {size:.0f} bytes  peak so far {memory:.0f} MiB", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
