"""Models and tokenizers as a hub has them, tiny: their real configuration classes, tokenizers of the kinds that they
come with, trained on Python's manual, and the chat templates of the field. A model is made in the process of
the test, in less than a second.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

VOCABULARY = 420
CONTEXT = 160
# Of the manual; some hundred thousand characters.
TOPICS = 25

Pieces = Literal["bytes", "metaspace", "unigram"]
Dtype = Literal["bf16", "fp16", "fp32"]


@dataclass(frozen=True)
class Template:
    """`end` ends the assistant's turn, for the model; `after` is what the template adds to that. `roles`: whether a
    system message has a place of its own."""

    jinja: str
    markers: tuple[str, ...]
    end: str
    after: str = ""
    roles: bool = True


# Written from what the models' cards say of the form, no more of it than conversations of text need.
_CHATML_TURN = "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
_CHATML_OPENING = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_ALTERNATE = (
    "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
)
_NO_SYSTEM = (
    "{% if messages and messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
)
TEMPLATES: dict[str, Template] = {
    "chatml": Template(
        "{% for message in messages %}" + _CHATML_TURN + "{% endfor %}" + _CHATML_OPENING,
        ("<|im_start|>", "<|im_end|>"),
        "<|im_end|>",
        "\n",
    ),
    "llama3": Template(
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
    ),
    "gemma": Template(
        "{{ bos_token }}" + _NO_SYSTEM + "{% for message in messages %}" + _ALTERNATE + "{% set role = 'model' if "
        "message.role == 'assistant' else message.role %}"
        "{{ '<start_of_turn>' + role + '\n' + message.content | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        ("<start_of_turn>", "<end_of_turn>"),
        "<end_of_turn>",
        "\n",
        roles=False,
    ),
    "mistral": Template(
        "{{ bos_token }}"
        + _NO_SYSTEM
        + "{% for message in messages %}"
        + _ALTERNATE
        + "{% if message.role == 'user' %}"
        "{{ '[INST] ' + message.content + ' [/INST]' }}{% else %}{{ ' ' + message.content | trim + eos_token }}"
        "{% endif %}{% endfor %}",
        ("[INST]", "[/INST]"),
        "",
        roles=False,
    ),
    # Thoughts of turns before the last question are left out; the last answer always has a place for them.
    "qwen3": Template(
        "{% set ns = namespace(last=-1) %}"
        "{% for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
        "{% endfor %}"
        "{% for message in messages %}{% if message.role != 'assistant' %}" + _CHATML_TURN + "{% else %}"
        "{% set thought = message.reasoning_content if message.reasoning_content is string else '' %}"
        "{% set said = message.content %}"
        "{% if '</think>' in said %}{% set thought = said.split('</think>')[0].split('<think>')[-1] %}"
        "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        "{{ '<|im_start|>assistant\n' }}"
        "{% if loop.index0 > ns.last %}{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{% endif %}"
        "{{ said.lstrip('\n') + '<|im_end|>\n' }}{% endif %}{% endfor %}" + _CHATML_OPENING,
        ("<|im_start|>", "<|im_end|>", "<think>", "</think>"),
        "<|im_end|>",
        "\n",
    ),
}


@dataclass(frozen=True)
class TokenizerKind:
    """`kind` of the pieces. `bos`: whether a text begins with one, added by the tokenizer itself. `end`: the end of the
    turn is the end of the sequence, as chat models have it, or not, as base models have it. `pad`: a token of its own,
    the end of the sequence, or none."""

    pieces: Pieces
    bos: bool
    ends_turn: bool
    pad: Literal["own", "eos", "none"]


TOKENIZERS: dict[str, TokenizerKind] = {
    # As Qwen's, Llama 3's, GPT-2's or SmolLM's, Llama 2's or Mistral's, Gemma's.
    "bytes": TokenizerKind("bytes", bos=False, ends_turn=True, pad="own"),
    "bytes_bos": TokenizerKind("bytes", bos=True, ends_turn=False, pad="own"),
    "bytes_pad_eos": TokenizerKind("bytes", bos=False, ends_turn=True, pad="eos"),
    "metaspace": TokenizerKind("metaspace", bos=True, ends_turn=False, pad="none"),
    "unigram": TokenizerKind("unigram", bos=True, ends_turn=False, pad="own"),
}


def make_tokenizer(kind: str, template: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    what, form = TOKENIZERS[kind], TEMPLATES[template]
    end = form.end if what.ends_turn and form.end else "</s>"
    special = {"eos_token": end}
    if what.bos:
        special["bos_token"] = "<s>"
    if what.pad != "none":
        special["pad_token"] = end if what.pad == "eos" else "<pad>"
    if what.pieces != "bytes":
        special["unk_token"] = "<unk>"
    fast = PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(what, [*special.values(), *form.markers]),
        **special,
        additional_special_tokens=[name for name in form.markers if "think" not in name],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = form.jinja
    return fast


def _tokenizer(what: TokenizerKind, markers: list[str]) -> Any:
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_str(_pieces(what.pieces))
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in dict.fromkeys(markers)])
    if what.bos:
        tokenizer.post_processor = _begins("<s>", tokenizer.token_to_id("<s>"))
    return tokenizer


@lru_cache
def _pieces(kind: Pieces) -> str:
    """A trained tokenizer as JSON."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    special = ["<s>"] if kind == "bytes" else ["<unk>", "<s>", "</s>"]
    shown: dict[str, Any] = {"vocab_size": VOCABULARY, "special_tokens": special, "show_progress": False}
    if kind == "bytes":
        tokenizer: Any = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        shown["initial_alphabet"] = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer: Any = trainers.BpeTrainer(**shown)
    elif kind == "metaspace":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        fallback = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(fallback)
        trainer = trainers.BpeTrainer(**shown)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        fallback = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence(fallback)
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **shown)
    tokenizer.train_from_iterator(_lines(), trainer)
    return tokenizer.to_str() if kind == "bytes" else _with_bytes(tokenizer)


def _begins(token: str, number: int) -> Any:
    from tokenizers import processors

    return processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, number)]
    )


def _with_bytes(tokenizer: Any) -> str:
    """Characters that are no piece fall back on the bytes that they are made of; the trainers know no such pieces."""
    document = json.loads(tokenizer.to_str())
    model = document["model"]
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    if model["type"] == "BPE":
        model["vocab"] |= {piece: len(model["vocab"]) + at for at, piece in enumerate(pieces)}
    else:
        least = min(score for _, score in model["vocab"])
        model["vocab"] += [[piece, least - 10] for piece in pieces]
    model["byte_fallback"] = True
    return json.dumps(document)


def _lines() -> list[str]:
    """Python's own manual, which does not change with what is written here: another text would make other models, and
    other runs, of the same cells."""
    from pydoc_data.topics import topics

    return [line for name in sorted(topics)[:TOPICS] for line in topics[name].splitlines()]


@dataclass(frozen=True)
class Architecture:
    """Settings of its configuration class besides those that all have; `names` are its own for some of these."""

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    # The embedding has more rows than the tokenizer has tokens.
    spare: int = 0


_SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    # Wider than usual, so that random weights say different things, and an adapter over them can learn.
    "initializer_range": 0.1,
}
_GPT2 = {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "num_key_value_heads": "",
}
_CODE = {
    # The order and the names of some hubs, by which verl would build another class.
    "AutoModel": "people/theirs--modeling_phi3.Phi3ForCausalLM",
    "AutoModelForCausalLM": "people/theirs--modeling_phi3.Phi3ForCausalLM",
    "AutoModelForSequenceClassification": "people/theirs--modeling_phi3.Phi3ForSequenceClassification",
}
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama"),
    "qwen2": Architecture("qwen2", spare=13),
    "qwen3": Architecture("qwen3", {"head_dim": 24}),
    "gemma": Architecture("gemma", {"head_dim": 24, "num_key_value_heads": 1}),
    "gemma2": Architecture("gemma2", {"head_dim": 24, "query_pre_attn_scalar": 24, "sliding_window": 16}),
    "gemma3": Architecture("gemma3_text", {"head_dim": 24, "query_pre_attn_scalar": 24, "sliding_window": 16}),
    "mistral": Architecture("mistral", {"sliding_window": 16}),
    # On hubs it still names the code that it came with, before transformers had it.
    "phi3": Architecture("phi3", {"auto_map": {"AutoConfig": "configuration_phi3.Phi3Config", **_CODE}}),
    "olmo2": Architecture("olmo2", spare=7),
    "gpt2": Architecture("gpt2", names=_GPT2),
    "gpt_neox": Architecture("gpt_neox", names={"num_key_value_heads": ""}, spare=3),
}


@dataclass(frozen=True)
class Shape:
    """What one model of the zoo is."""

    architecture: str
    dtype: Dtype
    tied: bool
    sharded: bool
    tokenizer: str
    template: str

    def make(self, folder: Path, seed: int = 0) -> Path:
        """A model as its makers store it, with random weights."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

        what = ARCHITECTURES[self.architecture]
        tokenizer = make_tokenizer(self.tokenizer, self.template)
        settings: dict[str, Any] = {
            what.names.get(name, name): value for name, value in (_SHAPE | what.settings).items()
        }
        settings.pop("", None)
        tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        size = len(tokenizer) + what.spare
        config = AutoConfig.for_model(
            what.model_type, **settings, **tokens, vocab_size=size, tie_word_embeddings=self.tied
        )
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(config)
        model.generation_config = GenerationConfig(**tokens)
        shard = "60KB" if self.sharded else "50GB"
        model.to(TORCH[self.dtype]()).save_pretrained(folder, max_shard_size=shard)
        tokenizer.save_pretrained(folder)
        return folder


def _dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


TORCH: dict[Dtype, Any] = {
    "bf16": partial(_dtype, "bfloat16"),
    "fp16": partial(_dtype, "float16"),
    "fp32": partial(_dtype, "float32"),
}
