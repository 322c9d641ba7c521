"""How the command line ends where something of the machine's is in the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.cli import __main__, exit_codes


def test_a_file_that_is_in_the_way_is_named_without_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(__main__, "app", lambda **_: (tmp_path / "file" / "folder").mkdir())
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == exit_codes.FAILED
    assert capsys.readouterr().err == f"error: {tmp_path}/file/folder: Not a directory\n"


def test_a_fault_of_ours_keeps_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise OSError("no file has to do with it")

    monkeypatch.setattr(__main__, "app", fail)
    with pytest.raises(OSError, match="no file"):
        __main__.main()
