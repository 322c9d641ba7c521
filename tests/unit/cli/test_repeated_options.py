"""An option of one value that is given twice is an error, wherever it stands; no mesh is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli.__main__ import app


@pytest.fixture(autouse=True)
def no_mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["train", "sft", "--model", "m", "--dataset", "a", "--dataset", "b"], "--dataset"),
        (["train", "sft", "--model=m", "--dataset=a", "--model=m"], "--model"),
        (["--project", "a", "--project", "b", "dataset", "list"], "--project"),
        (["job", "list", "--limit", "3", "--limit=4"], "--limit"),
        (["dataset", "list", "-o", "json", "--output", "name"], "--output"),
    ],
)
def test_one_value_given_twice_is_refused(arguments: list[str], name: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert f"{name} is given 2 times" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "sft", "--model", "m", "--dataset", "a", "--set", "x=1", "--set", "y=2", "--label", "a=b"],
        ["dataset", "delete", "d", "--yes", "--yes"],
    ],
)
def test_what_may_be_repeated_may(arguments: list[str]) -> None:
    """The command goes on to ask a mesh, which is not there."""
    result = CliRunner().invoke(app, arguments)
    assert "times" not in result.output
    assert result.exit_code != 2
