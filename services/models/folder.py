"""Checks of a model folder's files, and of the files it names, before any is loaded. Without torch, for services too.

transformers opens whatever path a configuration gives it, and writes what it read there beside the next model: so no
configuration names a file, and an index names only files of its own folder, which are hashed with it.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja", ".md")
_PAPERS = re.compile(r"(LICEN[CS]E|NOTICE|README|COPYING)[\w.-]*")
# Formats that run code when they are read.
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".npy", ".npz", ".joblib")

_TOKENIZER_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")
# What transformers reads when it loads a model, its tokenizer or, where there is one, its processor.
_CONFIGS = (
    *(CONFIG, "generation_config.json", "processor_config.json", "preprocessor_config.json"),
    *("video_preprocessor_config.json", "chat_template.json"),
)
_FILE_KEY = re.compile(r".*_(file|files|path|paths|spm)|gguf")
# Which names a file of whoever saved it, as many tokenizers on hubs do: nothing opens it.
_UNREAD_KEY = re.compile(r"special_tokens_map_file|.*name_or_path")
# Arguments of tokenizer classes that may be a path; the vocabulary of a fast tokenizer is in its tokenizer.json.
_TOKENIZER_ARGUMENTS = ("vocab", "merges", "init_inputs", "tokenizer_object")
# Other files that stand for the one that is looked at.
_VERSIONED = ("transformers_weights", "configuration_files", "fast_tokenizer_files")
# Texts and tokens, whatever their names are.
_TEXTS = ("chat_template", "added_tokens_decoder", "response_schema")
_LARGEST_JSON_BYTES = 64 << 20
_MOST_ENTRIES, _MOST_TOLD, _SHOWN_CHARACTERS = 10_000, 30, 120

_KINDS = {
    stat.S_IFLNK: "is a link; copy the file itself",
    stat.S_IFIFO: "is a fifo, which has no bytes of its own; remove it",
    stat.S_IFSOCK: "is a socket; remove it",
    stat.S_IFBLK: "is a device; remove it",
    stat.S_IFCHR: "is a device; remove it",
}


class UnusableModelError(Exception):
    """The folder is not a model we take; the text says why and what would be right."""


def check_new(folder: Path) -> None:
    """Check a model that comes in: every file is one that a model is made of. Raises UnusableModelError with everything
    that is wrong."""
    _raise(_wrong_files(folder) + _missing(folder) + _wrong_names(folder))


def check_stored(folder: Path) -> None:
    """Check one that is about to be loaded, wherever it comes from; raises the same."""
    kinds = [text for path, mode in entries(folder, hidden=True) if (text := _wrong_kind(path, mode))]
    _raise(kinds + _wrong_names(folder))


def check_settings(settings: dict[str, Any]) -> None:
    """Check a model's configuration that is not in a file; raises the same."""
    _raise([f"config {text}" for text in _of_config(settings, False)])


def may_belong(path: str) -> bool:
    """By its name."""
    name = PurePosixPath(path).name
    return name.endswith(SUFFIXES) or _PAPERS.fullmatch(name) is not None


def entries(folder: Path, *, hidden: bool = False) -> Iterator[tuple[str, int]]:
    """Everything under `folder` but folders: its path from there, and its mode; what is `hidden` belongs to a tool
    (`.git`, `.cache`). Raises UnusableModelError where there is no end of it."""
    count, waiting = 0, [folder]
    while waiting:
        for entry in sorted(os.scandir(waiting.pop()), key=lambda entry: entry.name):
            if entry.name.startswith(".") and not hidden:
                continue
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                waiting.append(Path(entry.path))
                continue
            count += 1
            if count > _MOST_ENTRIES:
                raise UnusableModelError(f"it has more than {_MOST_ENTRIES:,} files; a model has a few hundred at most")
            yield Path(entry.path).relative_to(folder).as_posix(), mode


def shards(folder: Path) -> list[str]:
    """Names of the files that hold the weights: the one, or those of the index. Raises UnusableModelError."""
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    try:
        document = _read(folder / INDEX)
    except OSError as error:
        raise UnusableModelError(
            f"there is neither {WEIGHTS} nor {INDEX}; rename the file of weights so, or copy the index"
        ) from error
    except ValueError as error:
        raise UnusableModelError(f"{INDEX}: {error}") from error
    named = document.get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise UnusableModelError(f"{INDEX} has no weight_map of tensors to names of files")
    _raise([text for name in sorted(set(named.values())) if (text := _wrong_shard(folder, name))])
    return sorted(set(named.values()))


def shown(name: str) -> str:
    """A stranger's file name or value, fit to be stored and read."""
    plain = name if name.isprintable() else ascii(name)[1:-1]
    return plain[:_SHOWN_CHARACTERS]


def _wrong_shard(folder: Path, name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name or not name.endswith(".safetensors"):
        return f"{INDEX} names {shown(name)!r}; it names .safetensors files of its own folder, without a path"
    if (folder / name).is_symlink() or not (folder / name).is_file():
        return f"{INDEX} names {shown(name)}, which is no file of the folder; copy it there"
    return ""


def _wrong_files(folder: Path) -> list[str]:
    return [text for path, mode in entries(folder) if (text := _wrong_kind(path, mode) or _wrong_name(path))]


def _wrong_kind(path: str, mode: int) -> str:
    if stat.S_ISREG(mode):
        return ""
    return f"{shown(path)} {_KINDS.get(stat.S_IFMT(mode), 'is no plain file; remove it')}"


def _wrong_name(path: str) -> str:
    suffix = PurePosixPath(path).suffix
    if may_belong(path):
        return ""
    if suffix in PICKLED:
        return f"{shown(path)} can run code when it is read; convert it to safetensors, or remove it"
    if suffix == ".py":
        return f"{shown(path)} is code of the model's own, which is never run; remove it"
    return f"{shown(path)} is none of a model's files ({', '.join(SUFFIXES)}); remove it"


def _missing(folder: Path) -> list[str]:
    found = []
    if not (folder / CONFIG).is_file():
        found.append(f"there is no {CONFIG} in {folder.name}; is it a Hugging Face model folder?")
    if not any(folder.glob("*.safetensors")):
        found.append("there is no .safetensors file in the folder")
    if not (folder / TOKENIZER).is_file():
        found.append(
            f"there is no {TOKENIZER}, the tokenizer's fast form, which says where in a text each token stands; load"
            " the tokenizer with transformers and save it with save_pretrained"
        )
    if (folder / "adapter_config.json").is_file():
        found.append("adapter_config.json makes it an adapter over other weights; merge it, or remove that file")
    return found


def _wrong_names(folder: Path) -> list[str]:
    """Names of files in the configurations and in the index."""
    found = []
    for name in (*_CONFIGS, *_TOKENIZER_CONFIGS):
        path = folder / name
        if not path.is_symlink() and path.is_file():
            try:
                document = _read(path)
            except ValueError as error:
                found.append(f"{name}: {error}")
            else:
                found += [f"{name} {text}" for text in _of_config(document, name in _TOKENIZER_CONFIGS)]
    if (folder / INDEX).exists() or (folder / INDEX).is_symlink():
        try:
            shards(folder)
        except UnusableModelError as error:
            found += str(error).splitlines()
    return found


def _of_config(document: dict[str, Any], tokenizer: bool) -> list[str]:
    found = []
    for key, value in _settings(document):
        if key in _VERSIONED or (tokenizer and (key in _TOKENIZER_ARGUMENTS or _names_file(key))):
            wrong = bool(value)
        else:
            wrong = _names_file(key) and any(map(_leads_out, _strings(value)))
        if wrong:
            found.append(f"names a file in {shown(key)} ({shown(str(value))}), which could be any; remove that setting")
    return found


def _names_file(key: str) -> bool:
    return _FILE_KEY.fullmatch(key) is not None and _UNREAD_KEY.fullmatch(key) is None


def _settings(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key with its value, also those inside others."""
    waiting: list[Any] = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            kept = {key: inner for key, inner in value.items() if key not in _TEXTS}
            yield from kept.items()
            waiting += kept.values()
        elif isinstance(value, list):
            waiting += value


def _strings(value: Any) -> list[str]:
    values = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, str)]


def _leads_out(value: str) -> bool:
    return value.startswith(("/", "~", "\\", "file:")) or ".." in re.split(r"[/\\]", value)


def _read(path: Path) -> dict[str, Any]:
    """Raises ValueError for what is no JSON object of bearable size, OSError where it can't be read."""
    # Not to wait for a fifo that was put into its place.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode) or state.st_size > _LARGEST_JSON_BYTES:
            raise ValueError(f"is no file of at most {_LARGEST_JSON_BYTES >> 20} MiB")
        data = file.read(_LARGEST_JSON_BYTES)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON; copy it again [{error or 'it is nested too deeply'}]") from error
    if not isinstance(document, dict):
        raise ValueError("is not a JSON object; copy it again")
    return document


def _raise(problems: list[str]) -> None:
    if not problems:
        return
    told = list(dict.fromkeys(problems))
    if len(told) > _MOST_TOLD:
        told[_MOST_TOLD:] = [f"and {len(told) - _MOST_TOLD:,} more"]
    raise UnusableModelError("\n".join(told))
