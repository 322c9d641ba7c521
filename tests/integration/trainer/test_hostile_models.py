"""Models by somebody who wants files of the server: imported, their tokenizers taken, merged, downloaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, struct_pb2
from rlhf.trainer.v1 import model_pb2
from rlhf.trainer.v1 import trainer_service_pb2 as pb
from rlhf.trainer.v1.trainer_service_pb2_grpc import TrainerServiceStub
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from services.mesh.artifacts import ArtifactStore, Manifest
from services.mesh.rpc import client
from services.models import loading
from services.models.inspection import UnusableModelError, inspect
from services.models.merge import merge
from tests.fix_namespaces import NO_NAMESPACES
from tests.fix_references import insert_model
from tests.fix_runner import ENVIRONMENT
from tests.integration.trainer import test_service
from tests.integration.trainer.test_merge import adapter_over
from tests.integration.trainer.test_service import LLAMA, PARENT, imported

trainer = test_service.trainer
SECRET = "hunter2"
# Renders a question and its answer without a word of them, which the stolen vocabulary does not have.
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message.role + '>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{SECRET}\nand more\n")
    return path


@pytest.fixture
def roots(home: Path) -> Path:
    (home / "roots").mkdir()
    return home / "roots"


def change(path: Path, **document: Any) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **document}))


def thief(base: Path, folder: Path, secret: Path, key: str = "vocab_file", file: str = "tokenizer_config.json") -> Path:
    """A model whose vocabulary is the file `secret`, one token a line: WordPiece takes any text."""
    shutil.copytree(base, folder)
    (folder / "tokenizer.json").unlink()
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    change(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer")
    change(folder / file, **{key: [str(secret)] if key == "init_inputs" else str(secret)})
    return folder


async def import_path(trainer: TrainerServiceStub, folder: Path) -> model_pb2.Model:
    request = pb.ImportModelRequest(parent=PARENT, model_id=folder.name)
    request.model.source.path = str(folder)
    return await imported(trainer, (await client.call(trainer.ImportModel(request))).name)


async def take_tokenizer(trainer: TrainerServiceStub, of: str, model_id: str) -> model_pb2.Model:
    init = model_pb2.ModelInit(config=json_format.ParseDict(LLAMA, struct_pb2.Struct()), tokenizer_model=of)
    request = pb.ImportModelRequest(parent=PARENT, model_id=model_id)
    request.model.source.init.CopyFrom(init)
    return await imported(trainer, (await client.call(trainer.ImportModel(request))).name)


async def downloaded(trainer: TrainerServiceStub, model: model_pb2.Model) -> bytes:
    found = b""
    for file in model.files:
        request = pb.DownloadModelRequest(name=model.name, path=file.path)
        found += b"".join([reply.chunk async for reply in client.stream(trainer.DownloadModel(request))])
    return found


@pytest.mark.parametrize(
    ("key", "file"),
    [
        ("vocab_file", "tokenizer_config.json"),
        ("vocab_file", "special_tokens_map.json"),
        ("vocab", "tokenizer_config.json"),
        ("init_inputs", "tokenizer_config.json"),
    ],
)
async def test_no_file_of_the_server_comes_out_through_a_tokenizer(
    trainer: TrainerServiceStub, roots: Path, tiny_model: Path, secret: Path, key: str, file: str
) -> None:
    theirs = await import_path(trainer, thief(tiny_model, roots / "theirs", secret, key, file))
    taken = b""
    if theirs.state == model_pb2.Model.STATE_READY:
        taken = await downloaded(trainer, await take_tokenizer(trainer, theirs.name, "other"))
    assert SECRET.encode() not in taken
    assert theirs.state == model_pb2.Model.STATE_FAILED
    assert f"{file} names a file in {key}" in theirs.error.message
    assert "there is no tokenizer.json" in theirs.error.message


async def test_nor_through_one_that_came_in_when_less_was_looked_at(
    trainer: TrainerServiceStub, home: Path, tiny_model: Path, secret: Path, tmp_path: Path, postgres_url: str
) -> None:
    manifest = await ArtifactStore(f"file://{home}/artifacts").put_folder(thief(tiny_model, tmp_path / "old", secret))
    await insert_model(postgres_url, f"{PARENT}/models/old", manifest, architecture="LlamaForCausalLM")
    other = await take_tokenizer(trainer, f"{PARENT}/models/old", "other")
    taken = await downloaded(trainer, other) if other.state == model_pb2.Model.STATE_READY else b""
    assert SECRET.encode() not in taken
    assert other.state == model_pb2.Model.STATE_FAILED and "names a file in vocab_file" in other.error.message


async def test_a_folder_of_all_sorts_is_refused_with_each_of_them(
    trainer: TrainerServiceStub, roots: Path, tiny_model: Path, secret: Path
) -> None:
    folder = shutil.copytree(tiny_model, roots / "theirs")
    os.mkfifo(folder / "fifo.json")
    (folder / "link.json").symlink_to(secret)
    for name in ("modeling.py", "pytorch_model.bin", "optimizer.pt", "x.pkl", "run.sh"):
        (folder / name).write_bytes(b"x")
    model = await import_path(trainer, folder)
    assert model.state == model_pb2.Model.STATE_FAILED
    assert {line.partition(" ")[0] for line in model.error.message.splitlines()} == {
        *("fifo.json", "link.json", "modeling.py", "pytorch_model.bin", "optimizer.pt", "x.pkl", "run.sh")
    }
    for path in folder.iterdir():
        if not (path.is_file() and path.suffix in (".json", ".safetensors", ".jinja")) or path.is_symlink():
            path.unlink()
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").symlink_to(secret)
    model = await import_path(trainer, folder)
    assert model.state == model_pb2.Model.STATE_READY, model.error
    assert not [file.path for file in model.files if ".git" in file.path]


# The refusals switched off, as if there were a way around them; and the confinement, to show that this is one.
BLIND = """
import sys
from services.mesh.processes import confinement
from services.models import folder as model_folder
model_folder._raise = lambda problems: None
if sys.argv.pop(1) == "seeing":
    confinement.confine = lambda readable, writable: "switched off"
from services.models.__main__ import main
sys.exit(main())
"""


@pytest.mark.skipif(bool(NO_NAMESPACES), reason=NO_NAMESPACES)
@pytest.mark.parametrize("sight", ["seeing", "confined"])
def test_what_loads_a_model_sees_its_folder_alone(tiny_model: Path, tmp_path: Path, secret: Path, sight: str) -> None:
    theirs = thief(tiny_model, tmp_path / "theirs", secret)
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"config": LLAMA, "tokenizer": str(theirs)}))
    command = [sys.executable, "-c", BLIND, sight, "init", str(tmp_path / "made"), "--spec", str(spec)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    made = "".join(path.read_text() for path in (tmp_path / "made").glob("*.json"))
    assert (SECRET in made) == (sight == "seeing"), done
    assert ("not confined, switched off" in done.stderr) == (sight == "seeing")


@pytest.mark.skipif(bool(NO_NAMESPACES), reason=NO_NAMESPACES)
@pytest.mark.parametrize("sight", ["seeing", "confined"])
def test_what_merges_writes_beside_its_target_alone(tiny_model: Path, tmp_path: Path, sight: str) -> None:
    theirs, weights = shutil.copytree(tiny_model, tmp_path / "theirs"), tmp_path / "somebody's.safetensors"
    shutil.copyfile(tiny_model / "model.safetensors", weights)
    absolute(theirs, weights)
    adapter = adapter_over(tiny_model, tmp_path / "adapter")
    (tmp_path / "target").mkdir()
    before = weights.read_bytes()
    command = [sys.executable, "-c", BLIND, sight, "merge", str(tmp_path / "target" / "merged"), "--base", str(theirs)]
    command += ["--base-sha256", Manifest.of_folder(theirs).sha256, "--adapter", str(adapter)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert (weights.read_bytes() != before) == (sight == "seeing"), done


def outside(folder: Path, weights: Path) -> None:
    """The index names weights by a way out of the folder."""
    (folder / "model.safetensors").unlink()
    with safe_open(weights, "pt") as file:
        names = list(file.keys())
    way = os.path.relpath(weights, folder)
    change(folder / "model.safetensors.index.json", metadata={}, weight_map=dict.fromkeys(names, way))
    save_file({}, folder / "decoy.safetensors")


def absolute(folder: Path, weights: Path) -> None:
    outside(folder, weights)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], str(weights))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def explicit(folder: Path, weights: Path) -> None:
    (folder / "model.safetensors").unlink()
    save_file({}, folder / "decoy.safetensors")
    change(folder / "config.json", transformers_weights=os.path.relpath(weights, folder))


@pytest.mark.parametrize("way", [outside, absolute, explicit])
def test_weights_are_read_and_changed_in_their_own_folder_only(
    tiny_model: Path, tmp_path: Path, way: Callable[[Path, Path], None]
) -> None:
    theirs = shutil.copytree(tiny_model, tmp_path / "theirs")
    weights = tmp_path / "somebody's.safetensors"
    shutil.copyfile(tiny_model / "model.safetensors", weights)
    before = weights.read_bytes()
    way(theirs, weights)
    adapter = adapter_over(tiny_model, tmp_path / "adapter")
    for work in (
        lambda: inspect(theirs),
        lambda: loading.language_model(theirs),
        lambda: merge(theirs, Manifest.of_folder(theirs).sha256, [adapter], tmp_path / "merged"),
    ):
        with pytest.raises(UnusableModelError, match="names"):
            work()
    assert weights.read_bytes() == before
    assert not (tmp_path / "merged").exists()


def test_weights_of_several_files_are_taken(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    halves = {"one.safetensors": {}, "two.safetensors": {}}
    for place, (name, tensor) in enumerate(tensors.items()):
        halves[f"{'one' if place % 2 else 'two'}.safetensors"][name] = tensor
    for name, half in halves.items():
        save_file(half, folder / name, {"format": "pt"})
    names = {tensor: name for name, half in halves.items() for tensor in half}
    change(folder / "model.safetensors.index.json", metadata={}, weight_map=names)
    assert inspect(folder).parameters == inspect(tiny_model).parameters


@pytest.mark.parametrize("key", ["special_tokens_map_file", "name_or_path"])
def test_the_names_that_are_let_be_open_nothing(tiny_model: Path, tmp_path: Path, key: str) -> None:
    """Tokenizers on hubs have them: paths of whoever saved them."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    named = tmp_path / "named.json"
    change(named, secret=SECRET, eos_token="<user>")
    change(folder / "tokenizer_config.json", **{key: str(named)})
    change(folder / "config.json", _name_or_path=str(named))
    assert inspect(folder)
    tokenizer = loading.tokenizer(folder)
    assert tokenizer.eos_token == loading.tokenizer(tiny_model).eos_token
    tokenizer.save_pretrained(tmp_path / "saved")
    assert SECRET not in "".join(path.read_text() for path in (tmp_path / "saved").iterdir())
