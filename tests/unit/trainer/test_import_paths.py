"""What is said of a folder that a model cannot be imported from."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.trainer.models import import_paths


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("models/llama-tiny", "models/qwen-tiny", "more"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "models" / "notes.txt").write_text("")
    return tmp_path / "models", tmp_path / "more"


def said(path: object, *roots: Path) -> str:
    [violation] = import_paths.check(str(path), roots)
    assert violation.field == "path"
    return violation.description


def test_a_folder_under_a_root_is_taken(roots: tuple[Path, Path]) -> None:
    assert import_paths.check(str(roots[0] / "llama-tiny"), roots) == []
    assert import_paths.check(str(roots[1] / ".." / "models" / "llama-tiny"), roots) == []


def test_outside_the_roots_the_setting_its_value_and_both_ways_out_are_told(roots: tuple[Path, Path]) -> None:
    found = said("/data/base", *roots)
    both = f"{roots[0]}:{roots[1]}"
    assert f"RLHF_MODEL_ROOTS is {both}" in found
    assert f"copy it to {roots[0]}/base, or" in found
    assert f"`rlhf down && RLHF_MODEL_ROOTS={both}:/data rlhf up`" in found
    assert "RLHF_MODEL_ROOTS=/data rlhf up" in said("/data/base")
    assert "RLHF_MODEL_ROOTS=/data rlhf up" in said("/data"), "not all of the machine"


def test_what_is_there_outside_the_roots_is_not_told(roots: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (roots[0] / "link").symlink_to(tmp_path / "secret")
    there, away = said(tmp_path / "secret", *roots), said(tmp_path / "absent", *roots)
    assert there.replace("secret", "absent") == away
    assert "a link counts where it leads" in said(roots[0] / "link", *roots)
    assert "RLHF_MODEL_ROOTS" in said("/a\0b", *roots)
    assert "RLHF_MODEL_ROOTS" in said("/" + "x" * 300, *roots)
    assert said("/" + "x" * 5000, *roots) == "must have at most 1,000 characters"
    assert f"'{roots[0]}:{roots[1]}:/my data'" in said("/my data/base", *roots)


def test_a_folder_that_is_not_there_is_named_with_the_nearest(roots: tuple[Path, Path], tmp_path: Path) -> None:
    assert said(roots[0] / "lama-tiny", *roots) == "no such folder; did you mean llama-tiny?"
    assert said(roots[0] / "zzz", *roots) == f"no such folder; in {roots[0]} there is llama-tiny, qwen-tiny"
    assert said(roots[1] / "a" / "b", *roots) == f"no such folder; in {roots[1]} there is no folder"
    assert said(tmp_path / "new" / "a", tmp_path / "new").startswith(
        f"no such folder, and {tmp_path}/new does not exist"
    )
    assert said(roots[0] / "notes.txt", *roots).startswith("is a file")


def test_a_relative_path_may_be_meant_as_a_name_of_a_hub(roots: tuple[Path, Path]) -> None:
    assert said("Qwen/Qwen2.5-0.5B", *roots).endswith("of a hub it is hf:Qwen/Qwen2.5-0.5B")
    assert said("base", *roots) == "must be the absolute path of a folder on the server"
