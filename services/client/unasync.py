"""Writes `_sync` from `_async`: the client is written once. Run as `python -m services.client.unasync`; a contract test
proves that what is checked in is what this makes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# In this order; on the text, docstrings included.
_CHANGES = (
    (r"services\.client\.aio\b", "services.client.sync"),
    (r"services\.client\._async\b", "services.client._sync"),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\basync (?=def|for|with)", ""),
    (r"\bawait ", ""),
    (r"\b__aenter__\b", "__enter__"),
    (r"\b__aexit__\b", "__exit__"),
    (r"\baclosing\b", "closing"),
    (r"\b`async with`", "`with`"),
)


def made() -> dict[str, str]:
    """Every file of `_sync` by its name."""
    return {path.name: _formatted(path.read_text(), path.name) for path in sorted((HERE / "_async").glob("*.py"))}


def _formatted(source: str, name: str) -> str:
    if name == "__init__.py":
        return '"""Generated from `services.client._async` by `services.client.unasync`: never edited."""\n'
    for pattern, replacement in _CHANGES:
        source = re.sub(pattern, replacement, source)
    source = source.replace("import asyncio\n", "")
    for words in (["check", "--select", "I", "--fix", "--quiet"], ["format", "--quiet"]):
        command = [str(Path(sys.executable).with_name("ruff")), *words, "--stdin-filename", str(HERE / name), "-"]
        source = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout  # noqa: S603
    return source


def main() -> None:
    folder = HERE / "_sync"
    folder.mkdir(exist_ok=True)
    files = made()
    for path in folder.glob("*.py"):
        if path.name not in files:
            path.unlink()
    for name, text in files.items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main()
