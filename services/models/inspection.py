"""Whether a folder is a model we can train, and what it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.mesh.artifacts import Manifest
from services.models import chat_template, loading, weights_fit
from services.models.folder import CONFIG, TOKENIZER, UnusableModelError, check_new, shown
from services.models.kinds import is_reward_model
from services.models.model_types import no_model_class, unknown_type
from services.models.refusals import config_problems, config_refusal, quoted
from services.models.template_limits import probing
from services.models.tensor_files import stored_tensors

TOKENIZER_CONFIG = "tokenizer_config.json"
# Where transformers looks for it, in this order.
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
# What Git LFS leaves in a file's place.
_POINTER = b"version https://git-lfs"
_LARGE = (".safetensors", ".json", ".model")
# Templates bring a system message of their own, some with a page about tools.
_MOST_PROBE_TOKENS = 32_768
# No tokenizer is asked about more: what it takes for a text is many times the text, and it may end the process.
_MOST_PROBE_CHARACTERS = 32 * _MOST_PROBE_TOKENS

_TOO_MUCH = (
    "the chat template ({}) makes {} of a question and its answer of one letter each; write one that renders the"
    " messages and little else"
)


@dataclass(frozen=True)
class ModelFacts:
    """`context_length` in tokens; `parameters` counts tied weights once; `dtype` as stored, `float32` for example."""

    architecture: str
    parameters: int
    context_length: int | None
    vocabulary_size: int
    dtype: str
    has_chat_template: bool
    size_bytes: int
    manifest_sha256: str


def inspect(folder: Path) -> ModelFacts:
    """Load the model with no code of its own and describe it. Raises UnusableModelError."""
    _check_files(folder)
    model, tokenizer = _load(folder), _load_tokenizer(folder)
    _check_tokenizer(folder, tokenizer, model.get_input_embeddings().weight.shape[0])
    manifest = Manifest.of_folder(folder)
    return ModelFacts(
        architecture=(model.config.architectures or [type(model).__name__])[0],
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        context_length=getattr(model.config, "max_position_embeddings", None),
        vocabulary_size=model.config.vocab_size,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        has_chat_template=True,
        size_bytes=manifest.size_bytes,
        manifest_sha256=manifest.sha256,
    )


def _check_tokenizer(folder: Path, tokenizer: Any, tokens: int) -> None:
    """Check that it renders a conversation in numbers below `tokens`, the rows of the model's embeddings."""
    if tokenizer.chat_template is None:
        raise UnusableModelError("the tokenizer has no chat template; put a chat_template.jinja into the folder")
    if tokenizer.eos_token_id is None:
        raise UnusableModelError("the tokenizer has no end-of-sequence token; set eos_token in tokenizer_config.json")
    if not tokenizer.is_fast:
        raise UnusableModelError(
            "the tokenizer has no fast form, which says where in a text each token stands; save it as tokenizer.json"
        )
    text, number = max(tokenizer.get_vocab().items(), key=lambda token: token[1])
    if number >= tokens:
        raise UnusableModelError(
            f"the tokenizer has a token {number} ({shown(text)!r}), and the model embeddings for {tokens} ({CONFIG}'s"
            f" vocab_size); remove the token from {TOKENIZER} and {TOKENIZER_CONFIG}, or resize the model's embeddings"
        )
    _check_template(folder, tokenizer)


def _check_template(folder: Path, tokenizer: Any) -> None:
    asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    file = next((name for name in _TEMPLATES if (folder / name).is_file()), f"chat_template in {TOKENIZER_CONFIG}")
    try:
        with probing():
            if (size := len(chat_template.text(tokenizer, asked))) > _MOST_PROBE_CHARACTERS:
                raise UnusableModelError(_TOO_MUCH.format(file, f"{size} characters"))
            tokens, mask = chat_template.trained_tokens(tokenizer, asked, [1])
    except (chat_template.TemplateRefusesError, ValueError) as error:
        line = getattr(error.__cause__, "lineno", None)
        where = f", line {line}" if line else ""
        raise UnusableModelError(
            f"the chat template ({file}{where}) does not render a question and its answer; correct it{quoted(error)}"
        ) from error
    if len(tokens) > _MOST_PROBE_TOKENS:
        raise UnusableModelError(_TOO_MUCH.format(file, f"{len(tokens)} tokens"))
    if not any(mask):
        message = f"the chat template ({file}) leaves out the answer of a question and its answer"
        raise UnusableModelError(f"{message}; render each message's content")


def _check_files(folder: Path) -> None:
    check_new(folder)
    for path in folder.glob("*"):
        if path.suffix in _LARGE and path.is_file() and _is_pointer(path):
            raise UnusableModelError(f"{shown(path.name)} is a pointer of Git LFS; fetch the file itself: git lfs pull")
    config = document(folder, CONFIG)
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise UnusableModelError(
            f"its weights are quantised ({method}) and can't be trained; import the model that they were made from"
        )
    if problems := config_problems(config):
        raise UnusableModelError("\n".join(problems))
    if why := unknown_type(config.get("model_type")) or no_model_class(config):
        own = "; code of the model's own (auto_map) is never run" if "auto_map" in config else ""
        raise UnusableModelError(f"{CONFIG}: {why}{own}")


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def _load(folder: Path) -> Any:
    """The model, once its tensors fit its configuration; nothing large is allocated for one that they do not."""
    config, stored = document(folder, CONFIG), stored_tensors(folder)
    try:
        skeleton = loading.skeleton(folder)
    except Exception as error:
        # transformers and its validators raise every kind here.
        raise UnusableModelError(config_refusal(error, config)) from error
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    settings = weights_fit.Settings(skeleton.config, config)
    weights_fit.check_before(skeleton, shapes, settings)
    try:
        model, difference = loading.with_differences(folder)
    except Exception as error:
        message = (
            f"its weights do not load as {settings.architecture}; copy all files of the model again{quoted(error)}"
        )
        raise UnusableModelError(message) from error
    weights_fit.check_after(difference, shapes, settings, len(model.state_dict()))
    if is_reward_model(config.get("architectures")) and model.config.num_labels != 1:
        message = f"it has {model.config.num_labels} outputs; a reward model has one: num_labels 1 in {CONFIG}"
        raise UnusableModelError(message)
    return model


def _load_tokenizer(folder: Path) -> Any:
    settings = document(folder, TOKENIZER_CONFIG)
    try:
        document(folder, TOKENIZER)
        return loading.tokenizer(folder)
    except UnusableModelError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise UnusableModelError(
                f"{TOKENIZER_CONFIG}'s auto_map names code of the tokenizer's own, which is never run; remove it, and"
                f" set tokenizer_class to PreTrainedTokenizerFast, which reads {TOKENIZER}"
            ) from error
        # Broken parts of tokenizer.json are refused by position only.
        named = f" (tokenizer_class {shown(str(settings['tokenizer_class']))})" if "tokenizer_class" in settings else ""
        raise UnusableModelError(
            f"{TOKENIZER} makes no tokenizer{named}; save it again with save_pretrained{quoted(error)}"
        ) from error


def document(folder: Path, name: str) -> dict[str, Any]:
    """A file's JSON object; empty where there is no such file. Raises UnusableModelError."""
    try:
        found = json.loads((folder / name).read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise UnusableModelError(f"{name} is not JSON; copy it again{quoted(error)}") from error
    if not isinstance(found, dict):
        raise UnusableModelError(f"{name} is not a JSON object; copy it again")
    return found
