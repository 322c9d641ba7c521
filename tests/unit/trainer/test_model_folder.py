"""What a model folder may hold and name: looked at before anything of it is loaded."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from services.models.folder import UnusableModelError, check_new, check_stored, shards
from services.trainer.models.folder_copy import copy_folder

INDEX = "model.safetensors.index.json"


# Of a model whose type transformers has by now, as Phi-3's; its code is left out, and nothing asks for it.
CODE = {"auto_map": {"AutoConfig": "modeling.Theirs", "AutoModelForCausalLM": "org/model--modeling.Theirs"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With what a hub's models have besides weights, leftovers of whoever saved them among it."""
    folder = tmp_path / "roots" / "model"
    folder.mkdir(parents=True)
    write(folder / "config.json", model_type="llama", _name_or_path="/data/me/run-7", use_mem_eff_path=True, **CODE)
    write(folder / "generation_config.json", eos_token_id=2, _from_model_config=True)
    write(folder / "tokenizer.json", model={"vocab": {"/etc/passwd": 0}, "merges": []})
    write(
        folder / "tokenizer_config.json",
        name_or_path="org/model",
        tokenizer_file=None,
        vocab_file=None,
        init_inputs=[],
        special_tokens_map_file="/home/me/.cache/huggingface/special_tokens_map.json",
        eos_token="</s>",
        auto_map={"AutoTokenizer": ["org/model--tokenization.Theirs", None]},
        added_tokens_decoder={"0": {"content": "/path_file", "special": True}},
        chat_template=[{"name": "default", "template": "{{ '/etc/passwd' }}"}],
    )
    write(folder / "special_tokens_map.json", eos_token={"content": "/etc/passwd"}, additional_special_tokens=["/x"])
    write(folder / "added_tokens.json", vocab_file=7)
    for name in ("README.md", "LICENSE", "LICENSE-MODEL", "NOTICE.txt", "merges.txt", "tokenizer.model", "a.jinja"):
        (folder / name).write_text("x")
    (folder / "model.safetensors").write_bytes(b"x")
    return folder


def write(path: Path, **document: Any) -> None:
    path.write_text(json.dumps(document))


def change(path: Path, **document: Any) -> None:
    write(path, **(json.loads(path.read_text()) if path.exists() else {}), **document)


def problems(folder: Path) -> list[str]:
    with pytest.raises(UnusableModelError) as caught:
        check_new(folder)
    return str(caught.value).splitlines()


def test_what_models_of_hubs_have_is_taken(folder: Path, tmp_path: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".git" / "config").symlink_to("/etc/passwd")
    check_new(folder)
    copy_folder(folder, (tmp_path / "roots",), tmp_path / "copy")
    check_new(tmp_path / "copy")
    check_stored(tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {
        path.name for path in folder.iterdir() if path.name != ".git"
    }


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_file", "/etc/passwd"),
        ("vocab_file", "vocab.txt"),
        ("merges_file", "../../x"),
        ("tokenizer_file", "/other/tokenizer.json"),
        ("gguf_file", "x.gguf"),
        ("source_spm", "/x"),
        ("emoji_file", "/x"),
        ("vocab", "/etc/passwd"),
        ("vocab", {"a": 0}),
        ("merges", "/x"),
        ("init_inputs", ["/etc/passwd"]),
        ("fast_tokenizer_files", ["tokenizer.4.0.0.json"]),
        ("mecab_kwargs", {"mecab_dictionary_path": "/x"}),
    ],
)
def test_no_tokenizer_names_a_file(folder: Path, file: str, key: str, value: object) -> None:
    path = folder / file
    document = {name: kept for name, kept in json.loads(path.read_text()).items() if name != key}
    write(path, **document, **{key: value})
    for check in (check_new, check_stored):
        with pytest.raises(UnusableModelError, match=rf"^{file} names a file in .*; remove that setting$"):
            check(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("transformers_weights", "other.safetensors"),
        ("configuration_files", ["config.1.0.0.json"]),
        ("index_path", "/x"),
        ("text_config", {"transformers_weights": "../x"}),
        ("layers", [{"passages_path": "a/../../x"}]),
        ("some_file", "~/x"),
    ],
)
def test_no_configuration_names_a_file(folder: Path, key: str, value: object) -> None:
    change(folder / "config.json", **{key: value})
    for check in (check_new, check_stored):
        with pytest.raises(UnusableModelError, match=r"^config.json names a file in"):
            check(folder)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x.safetensors", "sub/x.safetensors", "", "..", "x.bin", "none.safetensors", "a\0b", 7]
)
def test_an_index_names_files_of_its_folder(folder: Path, name: object) -> None:
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    write(folder / INDEX, metadata={}, weight_map={"a": "one.safetensors", "b": name})
    for check in (check_new, check_stored, shards):
        with pytest.raises(UnusableModelError, match=INDEX):
            check(folder)
    write(folder / INDEX, metadata={}, weight_map={"a": "one.safetensors"})
    check_new(folder)
    assert shards(folder) == ["one.safetensors"]
    (folder / "two.safetensors").symlink_to("one.safetensors")
    write(folder / INDEX, metadata={}, weight_map={"a": "two.safetensors"})
    with pytest.raises(UnusableModelError, match="no file of the folder"):
        shards(folder)


def test_all_that_is_wrong_is_told_at_once(folder: Path) -> None:
    os.mkfifo(folder / "a.json")
    (folder / "sub").mkdir()
    (folder / "sub" / "b.json").symlink_to("/etc/passwd")
    (folder / "c").symlink_to("sub")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "d.txt"))
    for name in ("e.py", "f.bin", "g.pt", "h.pkl", "i.so", "j", "odd\nname\x1b.sh"):
        (folder / name).write_bytes(b"")
    os.close(os.open(os.fsencode(folder) + b"/\xff.json", os.O_CREAT | os.O_WRONLY))
    (folder / "tokenizer.json").unlink()
    write(folder / "adapter_config.json", peft_type="LORA")
    change(folder / "config.json", transformers_weights="/x")
    told = problems(folder)
    for name, why in (
        *(("a.json", "fifo"), ("sub/b.json", "link"), ("c", "link"), ("d.txt", "socket"), ("e.py", "code")),
        *(("f.bin", "safetensors"), ("g.pt", "safetensors"), ("h.pkl", "safetensors"), ("i.so", "none of a model's")),
        *(("j", "none of a model's"), ("odd\\nname\\x1b.sh", "none of a model's"), ("there is no tokenizer.json", "")),
        *(("adapter_config.json", "merge"), ("config.json names", "/x")),
    ):
        assert [line for line in told if line.startswith(name) and why in line], (name, told)
    assert not [line for line in told if "\udcff" in line]


def test_what_is_stored_may_have_what_was_once_taken_but_no_way_out(folder: Path) -> None:
    (folder / "modeling.py").write_text("")
    (folder / "tokenizer.json").unlink()
    check_stored(folder)
    (folder / ".hidden").symlink_to("/etc/passwd")
    with pytest.raises(UnusableModelError, match=r"^\.hidden is a link"):
        check_stored(folder)


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000, '{"a":' * 900 + "1" + "}" * 900])
def test_a_configuration_of_any_shape_is_looked_at(folder: Path, text: str) -> None:
    (folder / "tokenizer_config.json").write_text(text)
    try:
        check_new(folder)
    except UnusableModelError as error:
        assert str(error).startswith("tokenizer_config.json: is ")


def test_a_folder_without_end_is_refused(folder: Path) -> None:
    for number in range(10_001):
        (folder / f"{number}.json").touch()
    assert "more than 10,000 files" in problems(folder)[0]


def test_a_copy_follows_nothing_that_was_changed_meanwhile(folder: Path, tmp_path: Path) -> None:
    """Put there between the look at the folder and its copying."""
    (folder / "x.json").symlink_to("/etc/passwd")
    with pytest.raises(UnusableModelError, match=r"x\.json cannot be read"):
        copy_folder(folder, (tmp_path / "roots",), tmp_path / "copy")
    (folder / "x.json").unlink()
    os.mkfifo(folder / "x.json")
    with pytest.raises(UnusableModelError, match=r"x\.json is no plain file"):
        copy_folder(folder, (tmp_path / "roots",), tmp_path / "second")
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnusableModelError, match="no longer lies in"):
        copy_folder(folder, (tmp_path / "roots",), tmp_path / "third")
