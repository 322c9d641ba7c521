"""The command answers at once because it imports nothing heavy before a command needs it."""

from __future__ import annotations

import subprocess
import sys

HEAVY = (
    "torch",
    "verl",
    "ray",
    "transformers",
    "pyarrow",
    "grpc",
    "psycopg",
    "nats",
    "pydantic",
    "google.protobuf",
    "rich",
)


def test_the_command_line_imports_nothing_heavy() -> None:
    code = f"import sys, services.cli.__main__; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
