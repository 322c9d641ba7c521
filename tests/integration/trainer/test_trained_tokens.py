"""Which tokens carry a loss: exactly the assistant's, under real chat templates; and what the loss of SFT then is."""
# ruff: noqa: N806  (axes stand in names)

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from services.mesh.runs.spool import SpoolWriter  # noqa: E402
from services.models.char_tokenizer import character_tokenizer  # noqa: E402
from services.trainer.verifier.generate import Answerer  # noqa: E402
from services.trainer.verifier.held_out_loss import read  # noqa: E402
from services.trainer.verl.trainers.pair_rows import PairRows, collate, encode  # noqa: E402
from tests.unit.trainer.test_algorithms import plan  # noqa: E402

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKERS = ("<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
PRINTABLE = "".join(map(chr, range(32, 127))) + "\n"
SYSTEM, SUM, DOUBLE = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1+1?"},
    {"role": "user", "content": "Twice that?"},
)
# By template, what ends an assistant's turn.
ENDS = {"chatml": "<|im_end|>\n", "qwen2_5": "<|im_end|>\n", "llama3": "<|eot_id|>"}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.fixture(params=ENDS)
def template(request: pytest.FixtureRequest) -> str:
    return request.param


def tokenizer_of(template: str) -> Any:
    """One token a character, and one for each of the template's markers."""
    tokenizer = character_tokenizer(PRINTABLE, 4096)
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKERS)})
    tokenizer.bos_token = "<|begin_of_text|>"
    found = CHATML if template == "chatml" else (files("trl") / "chat_templates" / f"{template}.jinja").read_text()
    tokenizer.chat_template = found
    return tokenizer


def trained(tokenizer: Any, tokens: list[int], mask: list[int]) -> list[str]:
    """The texts that are trained, each without a gap."""
    runs: list[list[int]] = []
    before = 0
    for token, kept in zip(tokens, mask, strict=True):
        if kept and not before:
            runs.append([])
        if kept:
            runs[-1].append(token)
        before = kept
    return [tokenizer.decode(run) for run in runs]


def conversation_rows(tokenizer: Any, path: Path, conversations: list[list[dict[str, str]]]) -> Any:
    from services.trainer.verl.trainers.datasets import ConversationRows

    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    return ConversationRows(path, tokenizer, 4096, lambda *_: None)


def test_a_conversation_trains_every_turn_of_the_assistant(template: str, tmp_path: Path) -> None:
    tokenizer, end = tokenizer_of(template), ENDS[template]
    messages = [SYSTEM, SUM, assistant("2"), DOUBLE, assistant("4, of course")]
    row = conversation_rows(tokenizer, tmp_path / "rows.jsonl", [messages])[0]
    texts = trained(tokenizer, row["input_ids"].tolist(), row["loss_mask"].tolist())
    assert texts == [f"2{end}", f"4, of course{end}"]


@pytest.mark.parametrize("beginning", [[SYSTEM, SUM], [SUM], [SYSTEM, SUM, assistant("2"), DOUBLE]])
def test_of_a_pair_the_answers_are_trained_and_not_the_prompt(
    template: str, beginning: list[dict[str, str]], tmp_path: Path
) -> None:
    tokenizer, end = tokenizer_of(template), ENDS[template]
    row = {"prompt": beginning, "chosen": [assistant("two")], "rejected": [assistant("three"), SUM, assistant("4")]}
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row) + "\n")
    [chosen, rejected] = PairRows(path, tokenizer, 4096, lambda *_: None)[0]["sides"]
    assert trained(tokenizer, *(part.tolist() for part in chosen)) == [f"two{end}"]
    assert trained(tokenizer, *(part.tolist() for part in rejected)) == [f"three{end}", f"4{end}"]
    # What is not trained is all that the conversation has besides, in its place.
    whole = tokenizer.apply_chat_template(beginning + row["chosen"], tokenize=True, return_dict=False)
    assert chosen[0].tolist() == whole


def test_a_pair_is_masked_as_a_conversation_is(template: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(template)
    row = conversation_rows(tokenizer, tmp_path / "rows.jsonl", [[SYSTEM, SUM, assistant("2")]])[0]
    assert encode(tokenizer, [SYSTEM, SUM], [assistant("2")]) == (row["input_ids"].tolist(), row["loss_mask"].tolist())


def test_a_template_that_adds_to_the_last_turn_trains_what_it_adds() -> None:
    """Qwen3 puts an empty thought before the answer; a model is to write what stands between prompt and end."""
    tokenizer = tokenizer_of("qwen3")
    tokens, mask = encode(tokenizer, [SUM], [assistant("2")])
    assert trained(tokenizer, tokens, mask) == ["<think>\n\n</think>\n\n2<|im_end|>\n"]
    tokens, mask = encode(tokenizer, [SUM], [assistant("2"), DOUBLE, assistant("4")])
    # Of the turns before the last question the template has left the thought out.
    assert trained(tokenizer, tokens, mask) == ["2<|im_end|>\n", "<think>\n\n</think>\n\n4<|im_end|>\n"]


@pytest.mark.parametrize("said", ["four\n", " four \n\n", "", "\n", "<think>2 and 2</think>\n\nfour\n"])
def test_white_space_around_an_earlier_answer_is_trained_as_it_is_rendered(said: str) -> None:
    """Data sets keep it; and an answer may be empty."""
    tokens, mask = encode(tokenizer_of("qwen3"), [SUM], [assistant(said), DOUBLE, assistant("4")])
    shown = said.removeprefix("<think>2 and 2</think>\n\n")
    assert trained(tokenizer_of("qwen3"), tokens, mask) == [
        f"{shown}<|im_end|>\n", "<think>\n\n</think>\n\n4<|im_end|>\n"
    ]  # fmt: skip


def test_a_turn_of_weight_0_is_read_and_not_trained(template: str, tmp_path: Path) -> None:
    tokenizer, end = tokenizer_of(template), ENDS[template]
    unwanted: Any = {**assistant("2"), "weight": 0}
    row = conversation_rows(tokenizer, tmp_path / "rows.jsonl", [[SUM, unwanted, DOUBLE, assistant("4")]])[0]
    assert trained(tokenizer, row["input_ids"].tolist(), row["loss_mask"].tolist()) == [f"4{end}"]
    trained_whole = conversation_rows(
        tokenizer, tmp_path / "all.jsonl", [[SUM, assistant("2"), DOUBLE, assistant("4")]]
    )
    assert row["input_ids"].tolist() == trained_whole[0]["input_ids"].tolist()
    tokens, mask = encode(tokenizer, [SUM], [unwanted, DOUBLE, assistant("4")])
    assert trained(tokenizer, tokens, mask) == [f"4{end}"]


def test_thoughts_are_trained_where_the_template_writes_them(tmp_path: Path) -> None:
    """Qwen3's leaves out those before the last question. gpt-oss's has another name for them."""
    tokenizer = tokenizer_of("qwen3")
    thought: Any = {**assistant("4"), "reasoning_content": "2 and 2"}
    earlier: Any = {**assistant("2"), "reasoning_content": "1 and 1"}
    row = conversation_rows(tokenizer, tmp_path / "rows.jsonl", [[SUM, earlier, DOUBLE, thought]])[0]
    texts = trained(tokenizer, row["input_ids"].tolist(), row["loss_mask"].tolist())
    assert texts == ["2<|im_end|>\n", "<think>\n2 and 2\n</think>\n\n4<|im_end|>\n"]
    tokens, mask = encode(tokenizer, [SUM], [thought])
    assert trained(tokenizer, tokens, mask) == ["<think>\n2 and 2\n</think>\n\n4<|im_end|>\n"]
    tokenizer.chat_template = tokenizer.chat_template.replace("reasoning_content", "thinking")
    tokens, mask = encode(tokenizer, [SUM], [thought])
    assert trained(tokenizer, tokens, mask) == ["<think>\n2 and 2\n</think>\n\n4<|im_end|>\n"]


def test_thoughts_that_no_template_writes_are_told(tmp_path: Path) -> None:
    from services.trainer.verl.trainers.datasets import ConversationRows

    told: list[str] = []
    path = tmp_path / "rows.jsonl"
    rows = [[SUM, {**assistant("2"), "reasoning_content": "1 and 1"}], [SUM, assistant("2")]]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in rows))
    pair = {"prompt": [SUM], "chosen": rows[0][1:], "rejected": [assistant("3")]}
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps(pair) + "\n")
    for template in ("chatml", "qwen3"):
        tokenizer = tokenizer_of(template)
        ConversationRows(path, tokenizer, 4096, lambda *_: None, lambda message, _: told.append(message))
        PairRows(pairs, tokenizer, 4096, lambda *_: None, lambda message, _: told.append(message))
    assert [message.partition(" rows")[0] for message in told] == ["1 of 2", "1 of 1"]


def test_of_held_out_rows_no_thoughts_are_told(tmp_path: Path) -> None:
    """They are not trained, and would be told as if they were."""
    from services.trainer.verl.trainers.pairs import PairTrainer
    from services.trainer.verl.trainers.sft import SftTrainer

    told: list[str] = []
    thought = {**assistant("2"), "reasoning_content": "1 and 1"}
    for kind, name, row in (
        (SftTrainer, "sft", {"messages": [SUM, thought]}),
        (PairTrainer, "dpo", {"prompt": [SUM], "chosen": [thought], "rejected": [assistant("3")]}),
    ):
        rows = tmp_path / f"{name}.jsonl"
        rows.write_text(json.dumps(row) + "\n")
        trainer: Any = kind.__new__(kind)
        trainer._context = SimpleNamespace(
            plan=plan(name, {}, work_dir=str(tmp_path), validation_path=str(rows)),
            spool=SpoolWriter(tmp_path / "spool"),
            warn=lambda message, _: told.append(message),
        )
        trainer.model_config = SimpleNamespace(tokenizer=tokenizer_of("chatml"))
        trainer.write_held_out()
        assert len(read(tmp_path)) == 1 and told == []


def test_names_reach_the_template() -> None:
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = CHATML.replace(
        "message['role'] +", "message['role'] + ' ' + message.get('name', '') +", 1
    )
    tokens, _ = encode(tokenizer, [{**SUM, "name": "Ann"}], [assistant("2")])
    assert "user Ann" in tokenizer.decode(tokens)


def test_pairs_with_a_side_that_is_too_long_are_left_out_whole(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("llama3")
    short, long = [assistant("2")], [assistant("2" * 100)]
    rows = [
        {"prompt": [SUM], "chosen": short, "rejected": long},
        {"prompt": [SUM], "chosen": long, "rejected": short},
        {"prompt": [SUM], "chosen": short, "rejected": [assistant("3")]},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    left_out: list[tuple[int, int]] = []
    pairs = PairRows(path, tokenizer, 100, lambda *count: left_out.append(count))
    assert (len(pairs), left_out) == (1, [(2, 3)])
    batch = collate([pairs[0], pairs[0]])
    assert [len(row) for row in batch["input_ids"].unbind()] == [len(side[0]) for side in pairs[0]["sides"]] * 2
    assert batch["reference_logp"].tolist() == [0.0] * 4


def test_the_loss_of_sft_and_its_gradient_are_those_of_transformers(tiny_model: Path, tmp_path: Path) -> None:
    """verl's loss of what its engine would hand it, and the loss that a transformers model computes of labels."""
    from verl.workers.utils.losses import sft_loss

    loaded = Answerer(tiny_model)
    model: Any = loaded.model.requires_grad_(True)
    user = {"role": "user", "content": "321"}
    conversations = [[user, assistant("123")], [user, assistant("12"), user, assistant("3")]]
    data = conversation_rows(loaded.tokenizer, tmp_path / "rows.jsonl", conversations)
    rows = [data[index] for index in range(2)]
    tokens_T = torch.cat([row["input_ids"] for row in rows])
    mask_T = torch.cat([row["loss_mask"] for row in rows])
    offsets = torch.tensor([0, *torch.tensor([len(row["input_ids"]) for row in rows]).cumsum(0).tolist()])
    logits_T_V = torch.cat([model(row["input_ids"][None]).logits[0] for row in rows])
    # As the engine has it: at each place the log-probability of the token that comes next.
    logp_T = logits_T_V.log_softmax(-1).gather(1, tokens_T.roll(-1)[:, None]).squeeze(1)
    jagged = torch.nested.nested_tensor_from_jagged
    count = int(mask_T.sum())
    batch: Any = {"loss_mask": jagged(mask_T, offsets), "dp_size": 1, "batch_num_tokens": count}
    ours, _ = sft_loss(None, {"log_probs": jagged(logp_T, offsets)}, batch)  # type: ignore[arg-type]
    ours_gradient = torch.autograd.grad(ours, list(model.parameters()))

    theirs = torch.zeros(())
    for row in rows:
        labels = row["input_ids"].masked_fill(row["loss_mask"] == 0, -100)
        theirs = theirs + model(row["input_ids"][None], labels=labels[None], num_items_in_batch=count).loss
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    for one, other in zip(ours_gradient, torch.autograd.grad(theirs, list(model.parameters())), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
