"""`rlhf reward test`: what a reward makes of given completions, before a job is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import assignments, output
from services.cli.output import Column, DocumentOption
from services.cli.session import run
from services.mesh.errors import InvalidArgument, Violation

if TYPE_CHECKING:
    from rlhf.type.v1.scoring_pb2 import ScoringSample, ScoringVerdict

# Loading a model takes most of it.
TIMEOUT_SECONDS = 300.0
_SHOWN_CHARACTERS = 40
_FIELDS = ("prompt", "completion", "answer", "metadata")


def register(app: typer.Typer) -> None:
    app.command("test")(test_reward)


def test_reward(
    context: typer.Context,
    reward: Annotated[str, typer.Argument(help="Such as numeric; `rlhf reward list`.")],
    completion: Annotated[list[str] | None, typer.Option(help="A text to judge; may be given several times.")] = None,
    answer: Annotated[str | None, typer.Option(help="The reference that each completion is compared with.")] = None,
    prompt: Annotated[str, typer.Option(help="What was asked.")] = "",
    file: Annotated[
        Path | None,
        typer.Option(help="JSON lines with completion, and answer, prompt (a text or messages) and metadata."),
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="A parameter: key=value.")] = None,
    set_file: Annotated[Path | None, typer.Option(help="Parameters from a JSON or TOML file.")] = None,
    output_format: DocumentOption = "table",
) -> None:
    """Score completions as a training would. Exits with 1 where one of them can't be judged.

    Examples:

    - `rlhf reward test numeric --completion "so 42." --answer 42`
    - `rlhf reward test regex --set 'pattern=<a>(?P<answer>.*)</a>' --file rows.jsonl -o json`
    """
    rows = [_row(text, answer, prompt) for text in completion or []]
    rows += _read(file) if file is not None else []
    if not rows:
        raise InvalidArgument.of("--completion", "give at least one completion, or rows with --file")
    params = assignments.parameters(settings or [], set_file)
    samples = [_sample(row) for row in rows]
    found = run(context, lambda client: client.with_timeout(TIMEOUT_SECONDS).rewards.test(reward, samples, params))
    if output_format == "json":
        output.write_json(output.as_json(found))
    else:
        _show(samples, found.verdicts)
        output.hint(f"{len(samples)} in {found.elapsed_seconds:.3g} s")
    if any(verdict.HasField("error") for verdict in found.verdicts):
        raise typer.Exit(1)


def _row(completion: str, answer: str | None, prompt: str) -> dict[str, Any]:
    return {"completion": completion, "answer": answer, "prompt": prompt}


def _read(path: Path) -> list[dict[str, Any]]:
    """Raises InvalidArgument with every line that is wrong."""
    rows: list[dict[str, Any]] = []
    wrong: list[Violation] = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument.of("--file", f"cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            problem = _problem(row)
        except ValueError as error:
            row, problem = {}, f"is not JSON: {error}"
        if problem:
            wrong.append(Violation(f"--file, line {number}", problem))
        rows.append(row)
    if wrong:
        raise InvalidArgument(wrong)
    return rows


def _problem(row: Any) -> str:
    if not isinstance(row, dict) or not isinstance(row.get("completion"), str):
        return "must be an object with a completion"
    if unknown := sorted(set(row) - set(_FIELDS)):
        return f"has {', '.join(unknown)}; known are {', '.join(_FIELDS)}"
    if not isinstance(row.get("answer"), str | None):
        return "must have a text, or nothing, as its answer"
    if not isinstance(row.get("metadata"), dict | None):
        return "must have an object as its metadata"
    prompt = row.get("prompt") or []
    turns = isinstance(prompt, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in prompt
    )
    return "" if turns or isinstance(prompt, str) else "must have a text or messages as its prompt"


def _sample(row: dict[str, Any]) -> ScoringSample:
    from rlhf.type.v1.chat_turn_pb2 import ChatTurn
    from rlhf.type.v1.scoring_pb2 import ScoringSample

    from services.mesh.rpc.wellknown import to_struct

    prompt = row.get("prompt") or []
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return ScoringSample(
        prompt=[ChatTurn(role=turn["role"], content=turn["content"]) for turn in turns],
        completion=row["completion"],
        answer=row.get("answer"),
        metadata=to_struct(row.get("metadata") or {}),
    )


def _show(samples: list[ScoringSample], verdicts: Any) -> None:
    """A column a part; what can't be judged says why under the table."""
    parts = next((sorted(verdict.parts) for verdict in verdicts if not verdict.HasField("error")), [])
    columns = [Column("SAMPLE", lambda item: str(item[0]), right=True)]
    columns.append(Column("COMPLETION", lambda item: _short(item[1].completion)))
    columns.append(Column("SCORE", lambda item: _number(item[2], item[2].score), right=True))
    columns += [_part_column(part) for part in parts]
    rows = list(zip(range(len(samples)), samples, verdicts, strict=True))
    output.show(output.table(columns, rows))
    for index, _, verdict in rows:
        if verdict.HasField("error"):
            output.say(f"sample {index}: {verdict.error.message}")


def _part_column(part: str) -> Column:
    return Column(part, lambda item: _number(item[2], item[2].parts.get(part, 0.0)), right=True)


def _number(verdict: ScoringVerdict, value: float) -> str:
    return "-" if verdict.HasField("error") else f"{value:.6g}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[: _SHOWN_CHARACTERS - 1]}…"
