"""The rules of the house that no linter knows: sizes, who reads the environment, what a process may import."""

from __future__ import annotations

import ast
import importlib
import importlib.abc
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.dataset.formats import formats
from services.mesh.registry import Registry, summary
from services.mesh.validation import params
from services.rewards import rewards
from services.trainer.algorithms import algorithms

ROOT = Path(__file__).parents[2]
MODULES = sorted(path for path in (ROOT / "services").rglob("*.py") if "node_modules" not in path.parts)
FUNCTION_LINES = 40
FILE_LINES = 300
# What runs inside Ray, whose workers get their rank and their devices by environment, as verl does; and who gives a
# process the environment that another has asked for.
READ_ENVIRONMENT = ("services/mesh/settings.py", "services/trainer/verl/", "services/mesh/processes/fork_server/")
# Each process by the module that wires it.
PROCESSES = (
    "services.dataset.app", "services.dataset.worker", "services.trainer.app", "services.trainer.worker",
    "services.gateway.app", "services.cli.__main__",
)  # fmt: skip
HEAVY = ("torch", "verl", "vllm", "transformers", "tensordict", "peft", "numpy", "pandas", "datasets")
REGISTRIES = (
    ("services.dataset.formats", "formats"),
    ("services.trainer.algorithms", "algorithms"),
    ("services.rewards", "rewards"),
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_a_file_fits_a_sitting() -> None:
    long = {name_of(path): len(path.read_text().splitlines()) for path in MODULES}
    assert not {name: lines for name, lines in long.items() if lines > FILE_LINES}


def test_a_function_fits_a_screen() -> None:
    lengths = {
        f"{name_of(path)}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in MODULES
        for node in functions(path)
    }
    assert not {name: lines for name, lines in lengths.items() if lines > FUNCTION_LINES}


def test_a_servicer_method_only_translates() -> None:
    """Wire, use case, wire: at most ten lines of body."""
    lengths = {
        f"{name_of(path)} {node.name}": (node.end_lineno or 0) - node.body[0].lineno + 1
        for path in MODULES
        if path.name == "servicer.py"
        for node in functions(path)
        if node.name[0].isupper()
    }
    assert len(lengths) > 20
    assert not {name: lines for name, lines in lengths.items() if lines > 10}


def test_functions_have_full_types() -> None:
    """Except those inside a function, whose types are those of what they are handed to."""
    bare = []
    for path in MODULES:
        tree = ast.parse(path.read_text())
        holders = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]
        for node in (one for holder in holders for one in holder.body):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            untyped = [one.arg for one in arguments if one.annotation is None and one.arg not in ("self", "cls")]
            if untyped or node.returns is None:
                bare.append(f"{name_of(path)}:{node.lineno} {node.name} {untyped}")
    assert not bare


def reads_environment(tree: ast.AST) -> bool:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "getenvb"):
            return True
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            names = {alias.name for alias in node.names}
            if names & {"environ", "environb", "getenv", "getenvb"}:
                return True
    return False


def test_the_environment_is_read_in_one_place() -> None:
    readers = [name_of(path) for path in MODULES if reads_environment(ast.parse(path.read_text()))]
    assert "services/mesh/settings.py" in readers
    assert not [reader for reader in readers if not reader.startswith(READ_ENVIRONMENT)]


def test_import_rules() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("module", PROCESSES)
def test_a_process_starts_light(module: str) -> None:
    """No torch and nothing like it, and less than two seconds of CPU, of which a busy machine takes nothing away."""
    program = (
        f"import json, resource, sys; import {module};"
        "used = resource.getrusage(resource.RUSAGE_SELF);"
        f"print(json.dumps([used.ru_utime + used.ru_stime, [name for name in {HEAVY} if name in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, heavy = json.loads(done.stdout)
    assert heavy == []
    assert seconds < 2


BLOCKED = """
import importlib, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(f"{name} is blocked")

blocked = set(sys.argv[3:])
sys.meta_path.insert(0, Block())
registry = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])
print(" ".join(registry.names()))
"""


@pytest.mark.parametrize(("package", "name"), REGISTRIES, ids=[name for _, name in REGISTRIES])
def test_a_registry_fills_without_what_its_entries_need_to_run(package: str, name: str) -> None:
    """What the house forbids its entries: heavy libraries, and the wire and the store."""
    blocked = ["torch", "verl", "vllm", "transformers", "ray", "tensordict", "peft", "grpc", "psycopg", "nats", "rlhf"]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, package, name, *blocked], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == getattr(importlib.import_module(package), name).names()


@pytest.mark.parametrize("registry", [formats, algorithms, rewards], ids=lambda registry: registry.kind)
def test_an_entry_tells_what_it_is(registry: Registry[type]) -> None:
    for name, entry in registry.items():
        assert summary(entry), name
        if hasattr(entry, "Params"):
            described = params.schema(entry.Params).get("properties", {})
            assert all("description" in field or "$ref" in str(field) for field in described.values()), name


def test_a_folder_of_entries_has_one_file_each() -> None:
    for registry in (formats, algorithms, rewards):
        files = [entry.__module__ for _, entry in registry.items()]
        assert len(files) == len(set(files)), f"two {registry.kind}s in one file"
