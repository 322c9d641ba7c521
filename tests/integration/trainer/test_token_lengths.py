"""Lengths that are told before a job starts are those that training finds, whatever the tokenizer does."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from services.models import loading  # noqa: E402
from services.trainer.entities import BaseModel, DatasetVersion  # noqa: E402
from services.trainer.training.token_lengths import Asking, Kind, MeasuringError, Request, TokenLengths  # noqa: E402
from services.trainer.verifier import token_lengths as lengths  # noqa: E402
from tests.fix_runner import ENVIRONMENT, PrivateRay  # noqa: E402

MOST = 12


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def row(kind: str, size: int) -> dict[str, Any]:
    question, answer = [turn("user", "1" * size)], [turn("assistant", "2" * (size // 2))]
    if kind == "messages":
        return {"messages": question + answer}
    if kind == "prompt":
        return {"prompt": question, "answer": str(size)}
    return {"prompt": question, "chosen": answer, "rejected": [turn("assistant", "3" * size)]}


def written(path: Path, kind: str, sizes: list[int]) -> Path:
    path.write_text("".join(json.dumps(row(kind, size)) + "\n" for size in sizes))
    return path


def kept_by_training(kind: str, path: Path, tokenizer: Any, said: list[Any] | None = None) -> int:
    """How many rows verl's datasets keep; what they say of the others is added to `said`."""
    from services.trainer.verl.trainers.datasets import ConversationRows, PromptRows
    from services.trainer.verl.trainers.pair_rows import PairRows

    rows = {"messages": ConversationRows, "prompt": PromptRows, "preference": PairRows}[kind]
    return len(rows(path, tokenizer, MOST, lambda *what: said.append(what) if said is not None else None))


@pytest.mark.parametrize("kind", ["messages", "prompt", "preference"])
def test_rows_are_counted_as_training_counts_them(kind: Kind, tiny_model: Path, tmp_path: Path) -> None:
    # So many that some have exactly the length at which others are left out, for each kind.
    path = written(tmp_path / "rows.jsonl", kind, list(range(1, 151)))
    found = lengths.measure(Request(str(tiny_model), str(path), kind))
    kept = sum(tokens <= MOST for tokens in found.tokens)
    assert (found.read, found.whole, found.refused) == (150, True, 0)
    assert 0 < kept == kept_by_training(kind, path, loading.tokenizer(tiny_model)) < 150
    assert sorted(found.answers) == (sorted(map(str, range(1, 151))) if kind == "prompt" else [])


def test_what_time_leaves_is_a_sample_that_is_spread_evenly(tiny_model: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", "prompt", list(range(1, 1001)))
    # Time for none would be no look at all: one batch is read whatever the clock says.
    found = lengths.measure(Request(str(tiny_model), str(path), "prompt", seconds=0.0))
    assert (found.read, found.whole) == (64, False)
    # A token a digit and two around them: their mean is near that of all.
    assert abs(sum(found.tokens) / 64 - 502.5) < 50


class Rows:
    """A dataset service with one version."""

    def __init__(self, content: bytes) -> None:
        self.content, self.asked = content, 0

    async def part(self, name: str, offset: int, size: int) -> bytes:
        self.asked += 1
        return self.content[offset : offset + size]


class Files:
    """A store with the files of one model."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def files(self, model: BaseModel, paths: tuple[str, ...]) -> dict[str, bytes]:
        return {path: (self._folder / path).read_bytes() for path in paths if (self._folder / path).exists()}


def version(content: bytes) -> DatasetVersion:
    return DatasetVersion("projects/p/datasets/d/versions/1", "prompt", 20, len(content), 20, "0" * 64)


BASE = BaseModel("projects/p/models/m", "0" * 64, 1000, 32)


@pytest.fixture
def changed_model(tiny_model: Path, tmp_path: Path) -> Callable[[str], Path]:
    """The tiny model with another chat template."""

    def change(template: str) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
        (folder / "chat_template.jinja").write_text(template)
        return folder

    return change


THINKING = "{% for message in messages %}{{ message.reasoning_content or '' }}{{ message.content }}{% endfor %}"


@pytest.mark.parametrize("kind", ["messages", "preference"])
def test_rows_whose_thoughts_are_not_trained_are_counted(
    kind: Kind, tiny_model: Path, tmp_path: Path, changed_model: Callable[[str], Path]
) -> None:
    """By the template: where it writes thoughts there are none to tell of."""
    thought = turn("assistant", "4") | {"reasoning_content": "22"}
    asked, plain = [turn("user", "22")], turn("assistant", "4")
    rows: list[dict[str, Any]] = [{"messages": [*asked, thought]}, {"messages": [*asked, plain]}]
    if kind == "preference":
        rows = [{"prompt": asked, "chosen": [plain], "rejected": [thought]}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert lengths.measure(Request(str(tiny_model), str(path), kind)).silenced == 1
    assert lengths.measure(Request(str(changed_model(THINKING)), str(path), kind)).silenced == 0


@pytest.mark.parametrize("kind", ["messages", "preference"])
def test_rows_whose_turns_are_not_found_are_refused_by_both(
    kind: Kind, tmp_path: Path, changed_model: Callable[[str], Path]
) -> None:
    """One of a template that writes something else than the answer once others follow, one that ends in a TypeError."""
    model = changed_model(
        "{% for message in messages %}{% if '77' in message.content %}{{ 1 + message.content }}{% endif %}"
        "{{ '0' if '55' in message.content and not loop.last else message.content }}{{ eos_token }}{% endfor %}"
    )
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for said in ("2", "55", "77"):
            asked, rest = [turn("user", "1")], [turn("assistant", said), turn("user", "1"), turn("assistant", "2")]
            pair = {"prompt": asked, "chosen": [turn("assistant", "3")], "rejected": rest}
            file.write(json.dumps({"messages": asked + rest} if kind == "messages" else pair) + "\n")
    found = lengths.measure(Request(str(model), str(path), kind))
    assert (len(found.tokens), found.refused) == (1, 2)
    said = []
    assert kept_by_training(kind, path, loading.tokenizer(model), said) == 1
    why = "the chat template renders the beginning of a conversation otherwise than the whole"
    assert said == [(2, 3, why)]
    path.write_bytes(path.read_bytes().splitlines()[2])
    assert lengths.measure(Request(str(model), str(path), kind)).refusal.startswith("TypeError: ")


async def test_a_process_of_its_own_measures_once_for_the_same_contents(
    tiny_model: Path, tmp_path: Path, changed_model: Callable[[str], Path]
) -> None:
    content = written(tmp_path / "rows.jsonl", "prompt", list(range(1, 21))).read_bytes()
    rows = Rows(content)
    measuring = TokenLengths(Asking(sys.executable, ENVIRONMENT), rows, tmp_path / "scratch")
    for _ in range(2):
        found = await measuring.measure(Files(tiny_model), BASE, version(content), "prompt", 0, 60)
        assert sorted(found.tokens) == [size + 2 for size in range(1, 21)]
    assert rows.asked == 1
    assert list((tmp_path / "scratch").iterdir()) == [], "nothing stays of the rows"
    # What a template refuses is told with its words, and costs no other row.
    odd = "{% if '11111' in messages[0]['content'] %}{{ raise_exception('too many ones') }}{% endif %}1"
    other = BaseModel("projects/p/models/odd", "1" * 64, 1000, 32)
    found = await measuring.measure(Files(changed_model(odd)), other, version(content), "prompt", 0, 60)
    assert (len(found.tokens), found.refused) == (4, 16)
    assert "too many ones" in found.refusal


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for a in range(9999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}1", "longer than 4 s"),
        ("{% set x = namespace(t='1') %}{% for a in range(40) %}{% set x.t = x.t ~ x.t %}{% endfor %}1", "memory"),
    ],
)
async def test_a_template_that_never_ends_or_fills_memory_is_stopped(
    template: str, said: str, tmp_path: Path, changed_model: Callable[[str], Path]
) -> None:
    content = written(tmp_path / "rows.jsonl", "prompt", [1]).read_bytes()
    asking = Asking(sys.executable, ENVIRONMENT, timeout_seconds=4 if "longer" in said else 60)
    measuring = TokenLengths(asking, Rows(content), tmp_path / "scratch")
    try:
        found = await measuring.measure(Files(changed_model(template)), BASE, version(content), "prompt", 0, 90)
    except MeasuringError as error:
        assert said in str(error)
    else:
        assert said == "memory" and (found.refused, "MemoryError" in found.refusal) == (1, True)


async def test_a_fork_server_measures_the_same(private_ray: PrivateRay, tiny_model: Path, tmp_path: Path) -> None:
    content = written(tmp_path / "rows.jsonl", "prompt", list(range(1, 21))).read_bytes()
    assert private_ray.fork_server is not None
    # What would start a process anew is no program.
    asking = Asking("/nonexistent", ENVIRONMENT, private_ray.fork_server)
    measuring = TokenLengths(asking, Rows(content), tmp_path / "scratch")
    found = await measuring.measure(Files(tiny_model), BASE, version(content), "prompt", 0, 60)
    assert sorted(found.tokens) == [size + 2 for size in range(1, 21)]


async def test_of_much_more_than_is_read_windows_are_taken_from_everywhere(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.trainer.training import token_lengths

    # Each row says where it stands, by its length.
    sizes = [1 + index // 100 for index in range(3000)]
    content = written(tmp_path / "rows.jsonl", "prompt", sizes).read_bytes()
    monkeypatch.setattr(token_lengths, "WHOLE_BYTES", len(content) // 4)
    measuring = TokenLengths(Asking(sys.executable, ENVIRONMENT), Rows(content), tmp_path / "scratch")
    found = await measuring.measure(Files(tiny_model), BASE, version(content), "prompt", 0, 60)
    assert not found.whole and 400 < found.read < 1000
    assert {tokens - 2 for tokens in found.tokens} >= set(range(1, 31)), "every part of it is there"
