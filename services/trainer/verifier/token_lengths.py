"""Tokens of rows through a model's own tokenizer and chat template, as training counts them: one JSON answer.

The tokenizer is transformers' own, so that a length is exactly what training finds. torch is kept out where it is not
imported yet: transformers then takes a third of the time to import, and tokenizes the same.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from services.mesh.processes.confinement import confine_or_say
from services.models import chat_template
from services.trainer.training.token_lengths import Kind, Lengths, Refusal, Request
from services.trainer.verifier.prompts import question_of

# Rendered and tokenized between two looks at the clock.
_BATCH = 64
_CPU_SECONDS = 15
# Beyond what the process has when it begins: forked from one with torch that is much already.
_MEMORY_BYTES = 2 * 2**30
# Of the rows' answers, for a look whether the reward fits them.
MOST_ANSWERS = 256
_ANSWER_CHARACTERS = 4000
_REFUSAL_CHARACTERS = 300


def main() -> int:
    limit()
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    confine_or_say([Path(request.tokenizer), Path(request.rows)], [])
    try:
        answer: Lengths | Refusal = measure(request)
    except Exception as error:
        # A stranger's tokenizer raises every kind; the text is what helps.
        text = f"{type(error).__name__}: {error}"[:_REFUSAL_CHARACTERS]
        answer = Refusal(f"the model's tokenizer cannot be used: {text}")
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    return 0


def limit() -> None:
    """CPU time and memory; what goes beyond is killed, or meets a MemoryError."""
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    status = Path("/proc/self/status").read_text("ascii", "replace")
    data = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (data + _MEMORY_BYTES, data + _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def measure(request: Request) -> Lengths:
    """Raises what transformers raises for a tokenizer that does not load."""
    if "torch" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment]
    from services.models import loading

    tokenizer = loading.tokenizer(Path(request.tokenizer))
    lines = [line for line in Path(request.rows).read_bytes().split(b"\n") if line]
    lines = lines[: request.first] if request.first else lines
    tokens: list[int] = []
    answers: list[str] = []
    refused, refusal, silenced, read = 0, "", 0, 0
    writes_thoughts = bool(chat_template.reasoning_key(tokenizer))
    end = time.monotonic() + request.seconds
    for batch in _batches(len(lines)):
        if read and time.monotonic() > end:
            break
        rows = [msgspec.json.decode(lines[index]) for index in batch]
        for row in rows[: MOST_ANSWERS - len(answers)]:
            if isinstance(answer := row.get("answer"), str):
                answers.append(answer[:_ANSWER_CHARACTERS])
        for found in _lengths(tokenizer, request.kind, rows, end):
            if isinstance(found, int):
                tokens.append(found)
            else:
                refused, refusal = refused + 1, refusal or found[:_REFUSAL_CHARACTERS]
        silenced += 0 if writes_thoughts else sum(_has_thoughts(request.kind, row) for row in rows)
        read += len(batch)
    return Lengths(tokens, refused, refusal, silenced, answers, whole=read == len(lines))


def _has_thoughts(kind: Kind, row: dict[str, Any]) -> bool:
    """Whether a turn that may be trained has thoughts beside its content."""
    trained = {"messages": ("messages",), "preference": ("chosen", "rejected")}.get(kind, ())
    return any("reasoning_content" in message for key in trained for message in row[key])


def _batches(count: int) -> Iterator[list[int]]:
    """Every index below `count` once, in an order of which each beginning is spread evenly."""
    stride = max(1, round(count * 0.618))
    while math.gcd(stride, count) > 1:
        stride += 1
    for start in range(0, count, _BATCH):
        yield [place * stride % count for place in range(start, min(start + _BATCH, count))]


def _lengths(tokenizer: Any, kind: Kind, rows: list[dict[str, Any]], end: float) -> list[int | str]:
    """Tokens of each row, or why it cannot be trained."""
    found = _rendered(tokenizer, kind, rows)
    return [_refusal(tokenizer, kind, row, end) or one for row, one in zip(rows, found, strict=True)]


def _refusal(tokenizer: Any, kind: Kind, row: dict[str, Any], end: float) -> str:
    """Why training would not find the turns to be trained; "" where it would, and after the `end`: each turn of a long
    conversation is rendered."""
    if kind not in ("messages", "preference") or time.monotonic() > end:
        return ""
    first = len(row["prompt"]) if kind == "preference" else 0
    try:
        for messages in _conversations(kind, row):
            chat_template.check_turns(tokenizer, messages, chat_template.trained_turns(messages, first))
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


def _rendered(tokenizer: Any, kind: Kind, rows: list[dict[str, Any]]) -> list[int | str]:
    """Tokens of each row, or why it cannot be rendered."""
    try:
        conversations = [_conversations(kind, row) for row in rows]
        flat = [one for each in conversations for one in each]
        counts = iter(_counts(tokenizer, kind, flat))
        return [max(next(counts) for _ in each) for each in conversations]
    except Exception as error:
        # A template that refuses one row refuses its batch.
        if len(rows) == 1:
            return [str(error) or type(error).__name__]
        return [_rendered(tokenizer, kind, [row])[0] for row in rows]


def _counts(tokenizer: Any, kind: Kind, conversations: list[Any]) -> list[int]:
    opening = kind in ("prompt", "question")
    return [len(tokens) for tokens in chat_template.render_all(tokenizer, conversations, opening)]


def _conversations(kind: Kind, row: dict[str, Any]) -> list[Any]:
    """What training renders of a row (verl/trainers/datasets.py, verl/trainers/pair_rows.py, prompts.py)."""
    if kind == "preference":
        return [row["prompt"] + row["chosen"], row["prompt"] + row["rejected"]]
    if kind == "question":
        return [list(question_of(0, row).messages)]
    return [row[kind]]
