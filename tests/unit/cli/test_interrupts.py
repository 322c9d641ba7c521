from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.cli import downloading, uploading

SAID = "interrupted; the same command goes on where it stopped"


async def for_ever(*_: object, **__: object) -> None:
    await asyncio.Event().wait()


async def upload() -> None:
    client: Any = SimpleNamespace(uploads=SimpleNamespace(upload=for_ever))
    await uploading.upload(client, "projects/default/datasets/d", Path("rows.jsonl"))


async def download() -> None:
    with downloading.shown():
        await for_ever()


@pytest.mark.parametrize("transfer", [upload, download])
def test_a_transfer_that_is_interrupted_says_how_to_go_on(transfer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    async def interrupted() -> None:
        task = asyncio.create_task(transfer())
        await asyncio.sleep(0)
        # As asyncio.run does on Ctrl-C.
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(interrupted())
    assert SAID in capsys.readouterr().err
