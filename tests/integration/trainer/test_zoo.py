"""Tokenizers, chat templates and models as a hub has them: what is trained of a conversation, where an answer ends, and
that each is taken or refused with the reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from services.models.chat_template import render, rendered_roles  # noqa: E402
from services.models.inspection import UnusableModelError, inspect  # noqa: E402
from services.models.loading import language_model  # noqa: E402
from services.trainer.verifier.generate import end_tokens  # noqa: E402
from services.trainer.verl.trainers.datasets import ConversationRows, NoRowsError, PromptRows  # noqa: E402
from services.trainer.verl.trainers.pair_rows import encode  # noqa: E402
from tests.fix_zoo import ARCHITECTURES, TEMPLATES, TOKENIZERS, Shape, make_tokenizer  # noqa: E402

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "Which one?"}
FIRST = {"role": "assistant", "content": "有 is the answer 2 é"}
AGAIN = {"role": "user", "content": "And then?"}
SECOND = {"role": "assistant", "content": "42, of course"}
CONVERSATIONS = {
    "one-turn": [ASKED, FIRST],
    "two-turns": [ASKED, FIRST, AGAIN, SECOND],
    "system": [SYSTEM, ASKED, FIRST, AGAIN, SECOND],
}
# Qwen3's has a place for a thought in the last turn alone; Mistral's puts a space before an answer.
BEFORE = {"qwen3": "<think>\n\n</think>\n\n", "mistral": " "}


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_exactly_what_the_assistant_says_is_trained(
    kind: str, template: str, conversation: str, tmp_path: Path
) -> None:
    """With the token that ends its turn, whether or not that is the padding too."""
    tokenizer, messages = make_tokenizer(kind, template), CONVERSATIONS[conversation]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n")
    row = ConversationRows(path, tokenizer, 4096, no_report)[0]
    tokens, mask = row["input_ids"].tolist(), row["loss_mask"].tolist()
    assert tokens == render(tokenizer, messages)
    answers = [message for message in messages if message["role"] == "assistant"]
    assert trained(tokenizer, tokens, mask) == [
        squeezed(expected(template, tokenizer, answer["content"], answer is answers[-1])) for answer in answers
    ]
    # Asked as in use, with everything before the last answer, the model sees what it saw in training.
    opening = render(tokenizer, messages[:-1], opening=True)
    first = len(mask) - mask[::-1].index(1) - sum(mask[len(opening) :])
    assert tokens[:first] == opening
    # And so it is with pairs, of which nothing but the completion is trained.
    both, last = encode(tokenizer, messages[:-1], messages[-1:])
    assert both == tokens and last == [0] * len(opening) + mask[len(opening) :]


def expected(template: str, tokenizer: Any, said: str, last: bool) -> str:
    form = TEMPLATES[template]
    before = BEFORE.get(template, "") if last or template == "mistral" else ""
    return f"{before}{said}{form.end or tokenizer.eos_token}{form.after}"


def trained(tokenizer: Any, tokens: list[int], mask: list[int]) -> list[str]:
    runs: list[list[int]] = []
    for place, (token, kept) in enumerate(zip(tokens, mask, strict=True)):
        if kept and not (place and mask[place - 1]):
            runs.append([])
        if kept:
            runs[-1].append(token)
    return [squeezed(tokenizer.decode(run)) for run in runs]


def squeezed(text: str) -> str:
    """Pieces with a space before them, as SentencePiece makes them, add one at each beginning of a text."""
    return text.replace(" ", "")


def no_report(*_: object) -> None:
    pass


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_an_answer_ends_with_the_turn(kind: str, template: str) -> None:
    """Also of a base model, whose end of sequence is another token than the template's end of a turn."""
    tokenizer = make_tokenizer(kind, template)

    class Model:
        generation_config = None

    ends = end_tokens(Model, tokenizer)
    assert ends == {
        tokenizer.eos_token_id,
        tokenizer.convert_tokens_to_ids(TEMPLATES[template].end or tokenizer.eos_token),
    }


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_system_message_reaches_every_model(template: str) -> None:
    """Where the template has no place for one, at the beginning of the first question."""
    tokenizer = make_tokenizer("bytes", template)
    found = rendered_roles(tokenizer, [SYSTEM, ASKED])
    if TEMPLATES[template].roles:
        assert found == [SYSTEM, ASKED]
    else:
        assert found == [{"role": "user", "content": "Be brief.\n\nWhich one?"}]
    assert "Be brief." in tokenizer.decode(render(tokenizer, [SYSTEM, ASKED], opening=True))


def test_rows_that_a_template_refuses_are_left_out_and_said(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("bytes", "gemma")
    path = tmp_path / "rows.jsonl"
    rows = [[ASKED, AGAIN, FIRST], [ASKED, FIRST], [ASKED, {**FIRST, "content": "long " * 50}]]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in rows))
    said: list[tuple[Any, ...]] = []
    kept = ConversationRows(path, tokenizer, 60, lambda *what: said.append(what))
    assert len(kept) == 1
    assert said == [(1, 3), (1, 3, "Conversation roles must alternate user/assistant")]

    path.write_text(json.dumps({"prompt": [ASKED, AGAIN]}) + "\n")
    with pytest.raises(NoRowsError, match=r"chat template refuses 1 \(Conversation roles must alternate"):
        PromptRows(path, tokenizer, 60, no_report)


# Every other setting differs from one to the next.
SHAPES = {
    name: Shape(
        name,
        dtype=("bf16", "fp16", "fp32")[place % 3],
        tied=place % 2 == 0,
        sharded=place % 4 < 2,
        tokenizer=list(TOKENIZERS)[place % len(TOKENIZERS)],
        template=list(TEMPLATES)[place % len(TEMPLATES)],
    )
    for place, name in enumerate(ARCHITECTURES)
}


@pytest.mark.parametrize("architecture", SHAPES)
def test_a_model_of_every_architecture_is_imported(architecture: str, tmp_path: Path) -> None:
    shape = SHAPES[architecture]
    folder = shape.make(tmp_path / "model")
    assert (folder / "model.safetensors.index.json").exists() == shape.sharded
    facts = inspect(folder)
    assert facts.context_length == 160
    assert facts.dtype == {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[shape.dtype]
    assert facts.vocabulary_size >= len(make_tokenizer(shape.tokenizer, shape.template))


def test_gemma_2_is_not_asked_without_the_cap_on_its_attention(tmp_path: Path) -> None:
    """PyTorch's own attention leaves it out without a word."""
    folder = replace(SHAPES["gemma2"], dtype="fp32").make(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    # So low a cap that it is felt.
    (folder / "config.json").write_text(json.dumps({**config, "attn_logit_softcapping": 0.05}))
    from transformers import AutoModelForCausalLM

    right = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    wrong = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
    tokens = torch.arange(5, 30)[None]
    with torch.no_grad():
        found, *others = (model(tokens).logits for model in (language_model(folder), right, wrong))
    assert torch.equal(found, others[0])
    assert (found - others[1]).abs().max() > 1e-2


def change(path: Path, **changes: Any) -> None:
    """Keys of a JSON file; None takes one out."""
    document = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


def test_what_cannot_be_trained_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = SHAPES["llama"].make(tmp_path / "model")
    config, template = folder / "config.json", folder / "chat_template.jinja"

    change(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(UnusableModelError, match=r"no end-of-sequence token; set eos_token"):
        inspect(folder)
    change(folder / "tokenizer_config.json", eos_token="<|im_end|>")
    assert inspect(folder)

    good = template.read_text()
    template.write_text("{{ raise_exception('only tools speak here') }}")
    with pytest.raises(UnusableModelError, match=r"does not render .*\[only tools speak here\]"):
        inspect(folder)
    template.write_text(good)

    change(config, quantization_config={"quant_method": "fp8"})
    with pytest.raises(UnusableModelError, match=r"quantised \(fp8\).*import the model that they were made from"):
        inspect(folder)


@pytest.mark.parametrize("architecture", SHAPES)
def test_every_architecture_makes_a_critic(architecture: str, tmp_path: Path) -> None:
    """One value a token, on the model's own weights; transformers has no such class for two of them."""
    from transformers import AutoConfig

    from services.trainer.verl.patches.value_head import load

    folder = SHAPES[architecture].make(tmp_path / "model")
    config = AutoConfig.from_pretrained(folder)
    config.num_labels, config.classifier_dropout, config._attn_implementation = 1, 0.0, "eager"
    critic: Any = load(str(folder), torch.float32, config, False)
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        assert critic(tokens).logits.shape == (1, 9, 1)
        hidden = critic.base_model(tokens)[0]
        expected = language_model(folder, "float32").base_model(tokens)[0]
    assert torch.allclose(hidden, expected, atol=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "llama"])
def test_verl_takes_models_whose_heads_have_keys_of_their_own(
    architecture: str, tmp_path: Path, verl_on_cpu: None
) -> None:
    from services.trainer.verl.patches import hooks

    hooks.install(hooks.ENGINES)
    from verl.models.transformers.monkey_patch import apply_monkey_patch

    model = language_model(SHAPES[architecture].make(tmp_path / "model"))
    before = model.config.to_dict()
    apply_monkey_patch(model=model, use_remove_padding=False, ulysses_sp_size=1)
    assert model.config.to_dict() == before


def test_a_critics_dropout_is_a_number(verl_on_cpu: None) -> None:
    """verl gives every critic's configuration the dropout "0"; GPT-NeoX's refuses it."""
    from transformers import GPTNeoXConfig

    from services.trainer.verl.patches.models import numbers

    config = GPTNeoXConfig()
    with pytest.raises(Exception, match="hidden_dropout"):
        config.hidden_dropout = "0"  # type: ignore[assignment]
    with numbers(GPTNeoXConfig):
        config.hidden_dropout = "0"  # type: ignore[assignment]
    assert config.hidden_dropout == 0
    with pytest.raises(Exception, match="hidden_dropout"):
        config.hidden_dropout = "0"  # type: ignore[assignment]


def test_verl_loads_gpt_2_with_its_output_layer(verl_on_cpu: None) -> None:
    from services.trainer.verl.patches import hooks

    hooks.install(hooks.ENGINES)
    from transformers import AutoModelForCausalLM, GPT2Config
    from verl.utils.model import get_hf_auto_model_class

    assert get_hf_auto_model_class(GPT2Config(architectures=["GPT2LMHeadModel"])) is AutoModelForCausalLM
