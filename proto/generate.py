"""Generate the Python code of the contract and its OpenAPI document: `python proto/generate.py [folder]` (default
`proto/gen`).

The output is checked in and never edited; tests/contract proves that it is fresh.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc

from services.gateway.openapi.document import document

PROTO = Path(__file__).parent
_DESCRIPTORS = "descriptors.binpb"
# What people import beside the messages: the client under the name of the contract's package.
_CLIENT = '''"""The Python client: `Client`, and `AsyncClient` for asyncio. docs/api.md shows both."""

from services.client import AsyncClient, Client, Endpoint, Progress, json_lines

__all__ = ["AsyncClient", "Client", "Endpoint", "Progress", "json_lines"]
'''


def generate(target: Path) -> None:
    """Write `rlhf/**/*_pb2*.py*`, `rlhf/client` and `rlhf/openapi.json` under `target` in place of what is there.

    Raises RuntimeError when protoc fails; then the old code still stands.
    """
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".generating") as fresh:
        _run_protoc(Path(fresh))
        _write_document(Path(fresh))
        _write_client(Path(fresh))
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
        "--include_imports",
        "--include_source_info",
        f"--descriptor_set_out={target / _DESCRIPTORS}",
        *sources,
    ]
    if protoc.main(arguments):
        raise RuntimeError("protoc failed; its errors are above")
    for path in target.rglob("*_pb2_grpc.py*"):
        # protoc writes a _grpc file for every proto; keep the ones that hold a service.
        if "Stub" not in path.read_text():
            path.unlink()
    # The stubs count for type checkers outside of this repository, too.
    (target / "rlhf" / "py.typed").touch()


def _write_document(target: Path) -> None:
    descriptors = descriptor_pb2.FileDescriptorSet.FromString((target / _DESCRIPTORS).read_bytes())
    (target / "rlhf" / "openapi.json").write_bytes(document(descriptors))


def _write_client(target: Path) -> None:
    (target / "rlhf" / "client").mkdir()
    (target / "rlhf" / "client" / "__init__.py").write_text(_CLIENT)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTO / "gen")
