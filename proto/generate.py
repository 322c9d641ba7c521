"""Generate the Python code of the contract: `python proto/generate.py [folder]` (default `proto/gen`).

The output is checked in and never edited; tests/contract proves that it is fresh.
"""

from __future__ import annotations

import shutil
import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTO = Path(__file__).parent


def generate(target: Path) -> None:
    """Write `rlhf/**/*_pb2*.py*` under `target`, which is emptied first. Raises RuntimeError when protoc fails."""
    shutil.rmtree(target / "rlhf", ignore_errors=True)
    target.mkdir(parents=True, exist_ok=True)
    sources = sorted(str(path.relative_to(PROTO)) for path in (PROTO / "rlhf").rglob("*.proto"))
    arguments = [
        "protoc",
        f"-I{PROTO}",
        f"-I{PROTO / 'vendor'}",
        f"-I{files('grpc_tools') / '_proto'}",
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_out=readable_stubs:{target}",
        f"--mypy_grpc_out=readable_stubs,only_async:{target}",
        *sources,
    ]
    if protoc.main(arguments):
        raise RuntimeError("protoc failed; its errors are above")
    for path in target.rglob("*_pb2_grpc.py*"):
        # protoc writes a _grpc file for every proto; keep the ones that hold a service.
        if "Stub" not in path.read_text():
            path.unlink()


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTO / "gen")
