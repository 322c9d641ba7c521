"""Models that do not load are refused in our words: the file and the key, what was found and the remedy."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from services.models import loading  # noqa: E402
from services.models.inspection import UnusableModelError, inspect  # noqa: E402
from services.models.refusals import quoted  # noqa: E402
from services.models.weights_fit import Settings, check_before  # noqa: E402

Change = Callable[[Path], object]
FIRST = "model.layers.0.self_attn.q_proj.weight"
# Of transformers and Hugging Face; none of it holds here, and a stranger's path is nobody's business.
NOT_OURS = re.compile(r"https?://|hf\.co|pip install|trust_remote_code|report above|ignore_mismatched|AutoModel|/tmp/")


def keys(file: str = "config.json", **changes: Any) -> Change:
    """Keys of a JSON file; ... takes one out."""

    def change(folder: Path) -> None:
        path = folder / file
        document = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in document.items() if value is not ...}))

    return change


def tensors(work: Callable[[dict[str, Any]], object]) -> Change:
    def change(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        work(found)
        save_file(found, folder / "model.safetensors", {"format": "pt"})

    return change


def text(file: str, content: str) -> Change:
    return lambda folder: (folder / file).write_text(content)


def cut(size: int) -> Change:
    return lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:size])


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def scores(outputs: int | None, **changes: Any) -> Change:
    """A reward model's configuration; with the tensor of so many outputs."""
    made = keys(architectures=["LlamaForSequenceClassification"], **changes)
    return made if outputs is None else both(made, tensors(lambda found: found.update(_score(outputs))))


def _score(outputs: int) -> dict[str, Any]:
    return {"score.weight": torch.zeros(outputs, 64)}


CASES: dict[str, tuple[Change, str]] = {
    "unknown model_type": (
        keys(model_type="lama9"),
        r"config\.json: transformers \S+ knows no model_type 'lama9'; did you mean llama or .*\?",
    ),
    "no near type": (keys(model_type="xyzzy"), r"config\.json: .* 'xyzzy'; import a model of a type that it has"),
    "no model_type": (keys(model_type=...), r"config\.json: there is no model_type, .*; write the one .*"),
    "code of its own": (
        keys(model_type="xyzzy", auto_map={"AutoModelForCausalLM": "m.M"}),
        r"config\.json: .*; code of the model's own \(auto_map\) is never run",
    ),
    "a type that writes nothing": (
        keys(model_type="vit", architectures=["ViTForImageClassification"]),
        r"config\.json: transformers has no model of model_type 'vit' that writes text; import one that does",
    ),
    "a type that scores nothing": (
        keys(model_type="cohere2_moe", architectures=["Cohere2MoeForSequenceClassification"]),
        r"config\.json: .* 'cohere2_moe' that scores text \(a reward model\); import one that does",
    ),
    "architectures of another type": (
        keys(architectures="LlamaForCausalLM"),
        r"config\.json's architectures is 'LlamaForCausalLM'; it must be a list of names, .*",
    ),
    "a missing size": (
        keys(hidden_size=...),
        r"model\.embed_tokens\.weight is 17 × 64 in the weights and 17 × 4096 by config\.json \(hidden_size 4096 by"
        r" default, missing\), \d+ more tensors likewise; write the sizes that the weights were trained with",
    ),
    "all sizes missing": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'),
        r"model\.embed_tokens\.weight is .*\(vocab_size 32000 by default, missing or hidden_size 4096 by default.*",
    ),
    "missing layers' number": (
        keys(num_hidden_layers=...),
        r"config\.json's num_hidden_layers is missing, 32 by default, and the weights have 2 layers; write the .*",
    ),
    "missing heads' number": (
        keys(num_attention_heads=..., num_key_value_heads=...),
        r"model\.layers\.0\.self_attn\.k_proj\.weight is 64 × 64 .* and 1024 × 64 by .*\(num_attention_heads 32 .*",
    ),
    "a size that is text": (
        keys(hidden_size="64"),
        r"config\.json's hidden_size is '64'; it must be a whole number of at least 1",
    ),
    "a size of null": (keys(vocab_size=None), r"config\.json's vocab_size is null; it must be a whole number .*"),
    "a size of nothing": (keys(num_hidden_layers=0), r"config\.json's num_hidden_layers is 0; it must be .*"),
    "sizes against each other": (
        keys(num_attention_heads=3),
        r"config\.json's sizes do not fit each other; correct them \[.*not a multiple of the number of attention.*\]",
    ),
    "a setting of another type": (
        keys(rope_parameters="x"),
        r"config\.json's rope_parameters is 'x', which transformers does not take; write the value .* \[.*\]",
    ),
    "an unknown activation": (
        keys(hidden_act="blub"),
        r"config\.json's hidden_act is 'blub', which transformers does not have; write the name .*",
    ),
    "an unknown kind of positions": (
        keys(rope_parameters={"rope_type": "blub", "rope_theta": 1e4}),
        r"config\.json's rope_parameters\.rope_type is 'blub', which transformers does not have; .*",
    ),
    "an unknown dtype": (
        keys(dtype="float99"),
        r"config\.json's dtype is 'float99'; it must be one of float32, bfloat16, float16",
    ),
    "attention chosen by who saved it": (
        keys(_attn_implementation="flash_attention_2"),
        r"config\.json's _attn_implementation is 'flash_attention_2'; remove that setting, .*",
    ),
    "padding outside the vocabulary": (
        keys(pad_token_id=1000),
        r"config\.json's pad_token_id is 1000, and vocab_size 17; it must be the number of a token",
    ),
    "what a configuration is not made of": (
        keys(text_config="x"),
        r"transformers makes no model of config\.json; compare it with that of the model it came from \[.*\]",
    ),
    "another width": (
        keys(hidden_size=1_000_000, intermediate_size=4_000_000),
        r"model\.embed_tokens\.weight is 17 × 64 .* 17 × 1000000 by config\.json \(hidden_size 1000000\), .*",
    ),
    "a wider inside": (
        keys(intermediate_size=100),
        r"model\.layers\.0\.mlp\.down_proj\.weight is 64 × 128 .* 64 × 100 by config\.json \(intermediate_size 100\).*",
    ),
    "another vocabulary": (
        keys(vocab_size=50),
        r"model\.embed_tokens\.weight is 17 × 64 .* 50 × 64 by config\.json \(vocab_size 50\); write .*",
    ),
    "more layers": (
        keys(num_hidden_layers=3),
        r"config\.json's num_hidden_layers is 3, and the weights have 2 layers; .* or copy the rest of the weights",
    ),
    "fewer layers": (
        keys(num_hidden_layers=1),
        r"config\.json's num_hidden_layers is 1, and the weights have 2 layers, .*; write 2, or save .*",
    ),
    "a missing tensor": (
        tensors(lambda found: found.pop(FIRST)),
        rf"the weights lack 1 of the \d+ tensors that config\.json asks for \(LlamaForCausalLM\): {FIRST}; copy all .*",
    ),
    "tensors of other names": (
        tensors(lambda found: [found.update({f"x.{name}": found.pop(name)}) for name in list(found)]),
        r"the weights lack \d+ of the \d+ tensors .*: .* and \d+ more; copy all files of the model, or correct .*",
    ),
    "a tensor of another shape": (
        tensors(lambda found: found.update({FIRST: torch.zeros(3, 5)})),
        rf"{FIRST} is 3 × 5 in the weights and 64 × 64 by config\.json \(hidden_size 64\); write .*",
    ),
    "an empty file of tensors": (cut(0), r"model\.safetensors is cut short or damaged, .*; copy it again \[.*\]"),
    "a header cut short": (cut(40), r"model\.safetensors is cut short or damaged, .*; copy it again \[.*\]"),
    "tensors cut short": (cut(50_000), r"model\.safetensors is cut short .*; copy it again \[it is cut short in .*\]"),
    "bytes after the tensors": (
        lambda folder: (folder / "model.safetensors").open("ab").write(b"x"),
        r"its weights do not load as LlamaForCausalLM; copy all files of the model again \[.*\]",
    ),
    "tensors left in Git LFS": (
        text("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        r"model\.safetensors is a pointer of Git LFS; fetch the file itself: git lfs pull",
    ),
    "tensors under another name": (
        lambda folder: (folder / "model.safetensors").rename(folder / "weights.safetensors"),
        r"there is neither model\.safetensors nor model\.safetensors\.index\.json; rename the file .*",
    ),
    "no tokenizer.json": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        r"there is no tokenizer\.json, .*; load the tokenizer with transformers and save it with save_pretrained",
    ),
    "a tokenizer.json of nothing": (text("tokenizer.json", "{}"), r"tokenizer\.json makes no tokenizer .*; save it .*"),
    "a tokenizer.json cut short": (text("tokenizer.json", "{"), r"tokenizer\.json is not JSON; copy it again \[.*\]"),
    "a tokenizer of an unknown kind": (
        keys("tokenizer.json", model={"type": "Blub"}),
        r"tokenizer\.json makes no tokenizer \(tokenizer_class \w+\); save it again with save_pretrained \[.*\]",
    ),
    "a tokenizer of code of its own": (
        keys("tokenizer_config.json", auto_map={"AutoTokenizer": ["t.T", None]}, tokenizer_class="T"),
        r"tokenizer_config\.json's auto_map names code of the tokenizer's own, .*; remove it, and set .*",
    ),
    "a token beyond the embeddings": (
        keys("tokenizer_config.json", eos_token="<blub>"),
        r"the tokenizer has a token 17 \('<blub>'\), .* for 17 \(config\.json's vocab_size\); remove the token .*",
    ),
    "a template cut short": (
        text("chat_template.jinja", "{% for message in messages %}\n{{ message.content }"),
        r"the chat template \(chat_template\.jinja, line 2\) does not render .*; correct it \[unexpected '}'\]",
    ),
    "a template in the tokenizer's settings": (
        both(
            lambda folder: (folder / "chat_template.jinja").unlink(),
            keys("tokenizer_config.json", chat_template="{{ messages | blub }}"),
        ),
        r"the chat template \(chat_template in tokenizer_config\.json, line 1\) does not render .*\[No filter.*\]",
    ),
    "a template that says too much": (
        text("chat_template.jinja", "{{ raise_exception('no ' * 3000) }}"),
        r"the chat template \(chat_template\.jinja\) does not render a question and its answer; correct it \[no .*…\]",
    ),
    "a template without the answer": (
        text("chat_template.jinja", "hello"),
        r"the chat template \(chat_template\.jinja\) leaves out the answer .*; render each message's content",
    ),
    "a reward model without its head": (
        scores(None, num_labels=1),
        r"the weights lack 1 of the \d+ tensors .*\(LlamaForSequenceClassification\): score\.weight; .*",
    ),
    "a reward model of several outputs": (
        scores(3, num_labels=3),
        r"it has 3 outputs; a reward model has one: num_labels 1 in config\.json",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_model_that_does_not_load_is_refused_in_our_words(case: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    change, words = CASES[case]
    change(folder)
    with pytest.raises(UnusableModelError) as caught:
        inspect(folder)
    said = str(caught.value)
    assert re.fullmatch(words, said), said
    assert len(said) < 450 and not NOT_OURS.search(said) and str(tmp_path) not in said


def test_nothing_is_allocated_for_sizes_that_do_not_fit(tiny_model: Path, tmp_path: Path) -> None:
    """Before the weights are opened: of 128 GB, which would end the process."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    keys(intermediate_size=1_000_000_000)(folder)
    model = loading.skeleton(folder)
    settings = Settings(model.config, json.loads((folder / "config.json").read_text()))
    stored = {name: tuple(tensor.shape) for name, tensor in load_file(folder / "model.safetensors").items()}
    with pytest.raises(UnusableModelError, match=r"64 × 1000000000 by config\.json \(intermediate_size 1000000000\)"):
        check_before(model, stored, settings)


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        ("cannot read /home/me/x y.json\nand more", " [cannot read … y.json]"),
        ("It is wrong. Please pip install it. See https://hf.co/x", " [It is wrong.]"),
        ("Pass trust_remote_code=True", ""),
        ("", ""),
        (KeyError("vocab"), " [there is no 'vocab']"),
        ("a\x1b[31mb", r" [a\x1b[31mb]"),
        ("x" * 500, f" [{'x' * 199}…]"),
        ("hidden/size 1/2", " [hidden/size 1/2]"),
    ],
)
def test_of_a_librarys_text_what_helps_is_kept(raw: str | BaseException, kept: str) -> None:
    assert quoted(raw) == kept


def test_tensors_that_no_layer_needs_are_let_be(tiny_model: Path, tmp_path: Path) -> None:
    """Buffers of older versions, heads of other tasks; and a file that names the base model nowhere."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    tensors(lambda found: found.update({"model.layers.0.rotary_emb.inv_freq": torch.zeros(16)}))(folder)
    assert inspect(folder).parameters == inspect(tiny_model).parameters
    tensors(lambda found: [found.update({name.removeprefix("model."): found.pop(name)}) for name in list(found)])(
        folder
    )
    assert inspect(folder).parameters == inspect(tiny_model).parameters
