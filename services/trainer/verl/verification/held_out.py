"""Held-out rows as tokens with the mask that training has, for the side process, which knows nothing of verl."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import msgspec

from services.mesh.runs.spool import Problem, SpoolWriter
from services.trainer.training.launch_plan import LaunchPlan
from services.trainer.verifier.held_out_loss import Row, Side, write
from services.trainer.verl.trainers.datasets import NoRowsError

Format = Literal["messages", "preference"]
# Makes of a file what is trained on; the second argument is told what is left out (`RunContext.report_left_out`).
MakeRows = Callable[[Path, Callable[..., None]], Any]


def conversation(item: dict[str, Any]) -> Row:
    """An item of ConversationRows."""
    return (Side(item["input_ids"].tolist(), item["loss_mask"].tolist()),)


def pair(item: dict[str, Any]) -> Row:
    """An item of PairRows."""
    return tuple(Side(tokens.tolist(), mask.tolist()) for tokens, mask in item["sides"])


def write_held_out(
    plan: LaunchPlan, spool: SpoolWriter, wanted: Format, make_rows: MakeRows, make_row: Callable[[Any], Row]
) -> None:
    """Write the first rows of the validation file beside the run, where they are of the format that is `wanted`.

    Rows that no loss can be taken of are reported; they don't keep the run from training.
    """
    if plan.validation is None or plan.validation_path is None:
        return
    with Path(plan.validation_path).open("rb") as file:
        lines = list(islice(file, plan.validation.rows))
    if not lines or _format(lines[0]) != wanted:
        return
    try:
        problem = _write(plan, lines, make_rows, make_row)
    except OSError as error:
        message = f"no checkpoint has a held-out loss, since its rows could not be written: {error}"
        remedy = "training goes on; look whether the disk is full or failing"
        problem = Problem(severity="error", reason="VALIDATION_SKIPPED", key="loss", message=message, remedy=remedy)
    if problem is not None:
        spool.append(problem)


def _write(plan: LaunchPlan, lines: list[bytes], make_rows: MakeRows, make_row: Callable[[Any], Row]) -> Problem | None:
    """What is left out, if anything. Raises OSError."""
    head = Path(plan.work_dir) / "held_out.jsonl"
    head.write_bytes(b"".join(lines))
    reasons: list[str] = []

    def leave_out(count: int, _: int, refused: str = "") -> None:
        why = f"refused by the chat template: {refused}" if refused else f"longer than {plan.max_tokens} tokens"
        reasons.extend([why] * count)

    found: list[Row] = []
    try:
        items = make_rows(head, leave_out)
        for index in range(len(items)):
            try:
                found.append(make_row(items[index]))
            except Exception as error:
                # Whatever a chat template raises.
                leave_out(1, len(lines), f"{type(error).__name__}: {error}")
    except NoRowsError:
        # Told row by row.
        pass
    except Exception as error:
        reasons = [f"not readable: {type(error).__name__}: {error}"] * len(lines)
    write(Path(plan.work_dir), found)
    return _left_out(reasons, len(lines)) if reasons else None


def _left_out(reasons: list[str], rows: int) -> Problem:
    first = reasons[0] if len(reasons[0]) <= 300 else reasons[0][:300] + " …"
    message = f"the held-out loss leaves out {len(reasons)} of {rows} validation rows, the first because it is {first}"
    remedy = "training goes on; mend the rows, or raise max_length where they are too long"
    return Problem(severity="warning", reason="VALIDATION_ROWS_LEFT_OUT", key="loss", message=message, remedy=remedy)


def _format(line: bytes) -> Format | None:
    row = msgspec.json.decode(line)
    return "preference" if "chosen" in row else "messages" if "messages" in row else None
