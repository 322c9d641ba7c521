"""Generate the Python code of the contract: `python proto/generate.py [folder]` (default `proto/gen`).

The output is checked in and never edited; tests/contract proves that it is fresh.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTO = Path(__file__).parent


def generate(target: Path) -> None:
    """Write `rlhf/**/*_pb2*.py*` under `target` in place of what is there.

    Raises RuntimeError when protoc fails; then the old code still stands.
    """
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".generating") as fresh:
        _run_protoc(Path(fresh))
        shutil.rmtree(target / "rlhf", ignore_errors=True)
        (Path(fresh) / "rlhf").rename(target / "rlhf")


def _run_protoc(target: Path) -> None:
    # protoc looks for its plugins on PATH; ours are installed beside this interpreter, activated or not.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
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
