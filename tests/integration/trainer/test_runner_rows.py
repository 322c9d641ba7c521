"""What is trained of a conversation, and what is sampled from a model: checked on a real model and tokenizer."""
# ruff: noqa: N806  (axes stand in names)

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from services.models.initialise import initialise  # noqa: E402
from services.models.inspection import UnusableModelError, inspect  # noqa: E402
from services.models.sampling import Request, check, distribution, sample  # noqa: E402
from services.trainer.verifier.generate import Answerer  # noqa: E402
from tests.fix_runner import SPEC  # noqa: E402

PROMPTS = [(4, 7, 8, 9, 5), (4, 9, 5), (4, 16, 15, 14, 13, 12, 11, 5)]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Answerer:
    return Answerer(tiny_model)


def test_only_the_assistants_tokens_are_trained(tiny_model: Path, tmp_path: Path, model: Answerer) -> None:
    from services.trainer.verl.trainers.datasets import ConversationRows, NoRowsError

    turns = [("system", "9"), ("user", "21"), ("assistant", "12"), ("user", "3"), ("assistant", "4")]
    short = {"messages": [{"role": role, "content": text} for role, text in turns]}
    long = {"messages": [{"role": "user", "content": "1" * 40}, {"role": "assistant", "content": "1"}]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(long) + "\n" + json.dumps(short) + "\n")
    left_out: list[tuple[int, int]] = []
    rows = ConversationRows(path, model.tokenizer, 32, lambda *count: left_out.append(count))

    assert (len(rows), left_out) == (1, [(1, 2)])
    row = rows[0]
    tokens = model.tokenizer.convert_ids_to_tokens(row["input_ids"].tolist())
    trained = [token for token, mask in zip(tokens, row["loss_mask"].tolist(), strict=True) if mask]
    assert " ".join(tokens) == "<system> 9 <user> 2 1 <assistant> 1 2 <end> <user> 3 <assistant> 4 <end>"
    assert trained == ["1", "2", "<end>", "4", "<end>"]

    path.write_text(json.dumps(long) + "\n")
    with pytest.raises(NoRowsError, match="all 1 rows are longer than 32 tokens"):
        ConversationRows(path, model.tokenizer, 32, lambda *_: None)


def test_an_answer_does_not_depend_on_what_else_is_in_the_batch(model: Answerer) -> None:
    requests = [Request(prompt, 6, temperature=0) for prompt in PROMPTS]
    together = sample(model.model, requests, model.end_tokens, model.pad_token)
    alone = [sample(model.model, [request], model.end_tokens, model.pad_token)[0] for request in requests]
    assert [one.tokens for one in together] == [one.tokens for one in alone]


def test_log_probabilities_are_the_models(model: Answerer) -> None:
    """As one forward pass over prompt and answer has them, at the temperature of sampling."""
    generator = torch.Generator().manual_seed(0)
    # A prompt that is asked for twice is read once, and answered twice.
    requests = [Request(prompt, 6, temperature=0.7) for prompt in [*PROMPTS, *reversed(PROMPTS)]]
    for request, answer in zip(
        requests, sample(model.model, requests, model.end_tokens, model.pad_token, generator), strict=True
    ):
        assert 1 <= len(answer.tokens) <= 6 and len(answer.tokens) == len(answer.logprobs)
        with torch.no_grad():
            logits = model.model(torch.tensor([[*request.prompt, *answer.tokens]])).logits[0] / 0.7
        expected = logits.log_softmax(-1)[len(request.prompt) - 1 : -1]
        expected = expected.gather(1, torch.tensor(answer.tokens)[:, None]).squeeze(1)
        assert torch.allclose(torch.tensor(answer.logprobs), expected, atol=1e-5)


def test_an_answer_ends_at_the_end_token_or_the_limit(model: Answerer) -> None:
    everything = frozenset(range(model.model.config.vocab_size))
    [ended] = sample(model.model, [Request(PROMPTS[0], 6)], everything, model.pad_token)
    [cut] = sample(model.model, [Request(PROMPTS[0], 6)], frozenset(), model.pad_token)
    assert (len(ended.tokens), ended.ended) == (1, True)
    assert (len(cut.tokens), cut.ended) == (6, False)


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k", "expected"),
    [
        (1.0, 1.0, 0, [0.5, 0.3, 0.2]),
        (0.0, 1.0, 0, [1, 0, 0]),
        (1.0, 1.0, 2, [0.625, 0.375, 0]),
        (1.0, 0.6, 0, [0.625, 0.375, 0]),
        (1.0, 0.4, 0, [1, 0, 0]),
        (1.0, 0.5, 2, [1, 0, 0]),
        (0.5, 1.0, 0, [0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38]),
    ],
)
def test_the_distribution_that_is_drawn_from(
    temperature: float, top_p: float, top_k: int, expected: list[float]
) -> None:
    logits_B_V = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]]).log()
    settings: list[Any] = [torch.tensor([value, value]) for value in (temperature, top_p, top_k)]
    found = distribution(logits_B_V, *settings).exp()
    assert torch.allclose(found, torch.tensor([expected, expected[::-1]], dtype=torch.float32), atol=1e-6)


def test_rows_of_a_batch_may_be_drawn_differently() -> None:
    logits_B_V = torch.tensor([[0.5, 0.3, 0.2]]).log().repeat(2, 1)
    found = distribution(logits_B_V, torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), torch.tensor([0, 2])).exp()
    assert torch.allclose(found, torch.tensor([[1, 0, 0], [0.625, 0.375, 0]]), atol=1e-6)


@pytest.mark.parametrize(
    "request_",
    [Request((), 1), Request((4,), 0), Request((4,), 40), Request((4,), 1, temperature=-1), Request((4,), 1, top_p=0)],
)
def test_what_can_not_be_answered_is_refused(request_: Request) -> None:
    with pytest.raises(ValueError):
        check(request_, context_length=32)


def test_the_seed_decides_the_weights(tiny_model: Path, tmp_path: Path) -> None:
    hashes = []
    for name, seed in (("same", 0), ("other", 1)):
        initialise(SPEC, seed, tmp_path / name)
        hashes.append(inspect(tmp_path / name).manifest_sha256)
    assert hashes[0] == inspect(tiny_model).manifest_sha256 != hashes[1]


def test_a_made_model_is_described(tiny_model: Path) -> None:
    facts = inspect(tiny_model)
    assert (facts.architecture, facts.context_length, facts.vocabulary_size) == ("LlamaForCausalLM", 32, 17)
    assert facts.dtype == "float32" and facts.has_chat_template


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda folder: (folder / "pytorch_model.bin").write_bytes(b""), "convert it to safetensors"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no .safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "no chat template"),
        (lambda folder: (folder / "link").symlink_to("/etc/passwd"), "is a link"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100),
            "model.safetensors is cut short or damaged",
        ),
        (lambda folder: _replace(folder / "config.json", "ForCausalLM", "ForSequenceClassification"), "score.weight"),
        (lambda folder: _classifier(folder, outputs=2), "has 2 outputs; a reward model has one"),
    ],
)
def test_a_folder_that_is_no_usable_model_is_refused(tiny_model: Path, tmp_path: Path, change: Any, text: str) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in tiny_model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    change(folder)
    with pytest.raises(UnusableModelError, match=text):
        inspect(folder)


def _classifier(folder: Path, outputs: int) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(folder, num_labels=outputs)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)


def _replace(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def test_the_command_refuses_in_json(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text('{"config": {"model_type": "llama"}, "tokenizer": {"kind": "characters", "alphabet": "00"}}')
    command = [sys.executable, "-m", "services.models", "init", str(tmp_path / "m"), "--spec", str(spec)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, json.loads(done.stdout)) == (2, {"error": "the alphabet repeats '0'"})
