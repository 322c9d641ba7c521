"""Words for what transformers raises over a model's files: the file, the key, what was found and the remedy.

Its own text follows in brackets where it helps: the first line alone, without paths, addresses and advice that does not
hold here (to install something, to run the model's own code).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from services.models.folder import CONFIG, shown

_MOST_QUOTED = 200
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_PATH = re.compile(r"(?<![\w.])/(?:[\w.@+-]+/)*[\w.@+-]+")
_ADVICE = re.compile(r"https?://|hf\.co|pip3? install|trust_remote_code|ignore_mismatched_sizes|please", re.IGNORECASE)
_FIELD = re.compile(r"Validation error for field '(\w+)':")

# How transformers and the models that it knows call the sizes of layers. The first are never null.
_REQUIRED_SIZES = ("hidden_size", "vocab_size", "num_hidden_layers", "n_embd", "n_layer")
_SIZES = (
    *_REQUIRED_SIZES,
    *("intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "n_head", "n_inner"),
    *("max_position_embeddings", "n_positions"),
)
_ATTENTION = "_attn_implementation"
DTYPES = ("float32", "bfloat16", "float16")


def quoted(error: BaseException | str) -> str:
    """The first line of a library's text as ` [text]`, cut; empty where nothing of it is of use here."""
    lines = str(error).strip().splitlines()
    kept: list[str] = []
    for sentence in _SENTENCE.split(lines[0] if lines else ""):
        if _ADVICE.search(sentence):
            break
        kept.append(sentence)
    text = _PATH.sub("…", " ".join(kept)).strip()
    if isinstance(error, KeyError):
        text = f"there is no {text}"
    plain = text if text.isprintable() else ascii(text)[1:-1]
    cut = plain if len(plain) <= _MOST_QUOTED else plain[: _MOST_QUOTED - 1] + "…"
    return f" [{cut}]" if cut else ""


def config_problems(document: Mapping[str, Any], where: str = CONFIG) -> list[str]:
    """Violations in a configuration's own keys, seen before transformers is asked."""
    return [f"{where}'s {text}" for text in [*_wrong_sizes(document), *_wrong_settings(document)]]


def _wrong_sizes(document: Mapping[str, Any]) -> Iterator[str]:
    for key in _SIZES:
        value = document.get(key, 1)
        # A list gives each layer its own.
        whole = isinstance(value, list) or (type(value) is int and value >= 1)
        if not whole and (value is not None or key in _REQUIRED_SIZES):
            yield f"{key} is {_value(value)}; it must be a whole number of at least 1"
    pad, size = document.get("pad_token_id"), document.get("vocab_size")
    if type(pad) is int and type(size) is int and pad >= size:
        yield f"pad_token_id is {pad}, and vocab_size {size}; it must be the number of a token"


def _wrong_settings(document: Mapping[str, Any]) -> Iterator[str]:
    for key in ("dtype", "torch_dtype"):
        value = document.get(key)
        if value is not None and str(value).removeprefix("torch.") not in DTYPES:
            yield f"{key} is {_value(value)}; it must be one of {', '.join(DTYPES)}"
    names = document.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        yield f"architectures is {_value(names)}; it must be a list of names, LlamaForCausalLM for example"
    attention = document.get(_ATTENTION)
    if attention not in (None, "eager", "sdpa"):
        yield f"{_ATTENTION} is {_value(attention)}; remove that setting, whoever loads the model chooses"


def config_refusal(error: BaseException, document: Mapping[str, Any], where: str = CONFIG) -> str:
    """Words for an error of transformers on making a configuration, or a model of one."""
    first, _, second = str(error).partition("\n")
    if field := _FIELD.match(first):
        key = field[1]
        return (
            f"{where}'s {key} is {_value(document.get(key))}, which transformers does not take; write the value of the"
            f" model that it came from{quoted(second)}"
        )
    if first.startswith("Class validation error"):
        return f"{where}'s sizes do not fit each other; correct them{quoted(second)}"
    if isinstance(error, KeyError) and (key := _key_with(document, error.args[0])):
        return (
            f"{where}'s {key} is {_value(error.args[0])}, which transformers does not have; write the name that the"
            " model was trained with"
        )
    return f"transformers makes no model of {where}; compare it with that of the model it came from{quoted(error)}"


def _key_with(document: Mapping[str, Any], wanted: Any) -> str:
    return next((key for key, value in _entries(document) if value == wanted), "")


def _entries(document: Mapping[str, Any], under: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _entries(value, f"{under}{key}.")
        else:
            yield f"{under}{key}", value


def _value(value: Any) -> str:
    return "null" if value is None else shown(repr(value))
