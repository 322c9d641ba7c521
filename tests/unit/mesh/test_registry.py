"""A folder is a registry: it imports itself, refuses duplicates, and tells what there is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.mesh.errors import InvalidArgument
from services.mesh.registry import Registry, summary


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package whose two modules register `b` and `a`."""
    name = "registry_under_test"
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").write_text(
        "from services.mesh.registry import Registry\nthings = Registry('thing', __name__)\n"
    )
    for entry in "ba":
        text = f"from {name} import things\n@things.register('{entry}')\nclass Entry:\n  'Does {entry}.\\n\\nMore.'\n"
        (package / f"file_{entry}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


def registry_of(package: str) -> Registry[type]:
    return __import__(package).things


def test_the_folder_imports_itself_when_first_asked(folder: str) -> None:
    things = registry_of(folder)
    assert f"{folder}.file_a" not in sys.modules
    assert things.names() == ["a", "b"]
    assert [summary(entry) for _, entry in things.items()] == ["Does a.", "Does b."]
    assert things.get("b") is dict(things.items())["b"]


def test_an_unknown_name_lists_the_known(folder: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        registry_of(folder).get("c" * 1000, "job.thing")
    (violation,) = caught.value.violations
    assert violation.field == "job.thing"
    assert violation.description.endswith("one of a, b")
    assert len(violation.description) < 200


def test_a_name_is_given_once(folder: str) -> None:
    things = registry_of(folder)
    things.names()
    with pytest.raises(ValueError, match="registered twice"):
        things.register("a")(type)


def test_an_entry_has_a_docstring() -> None:
    with pytest.raises(ValueError, match="no docstring"):
        summary(type("Bare", (), {}))
