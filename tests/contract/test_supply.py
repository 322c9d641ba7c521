"""What is installed is what was locked, and what was locked is what pyproject.toml asks for."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

ROOT = Path(__file__).parents[2]
# Not on PyPI for a CPU; installed by itself.
UNLOCKED = {"torch"}
# Of every virtual environment, and we ourselves.
NOT_OURS = {"pip", "rlhf-mesh"}


def locked(extra: str) -> dict[NormalizedName, str]:
    """Version by name, of the packages for this platform."""
    found: dict[NormalizedName, str] = {}
    for line in (ROOT / "deploy" / "requirements" / f"{extra}.txt").read_text().splitlines():
        if line[:1].isalnum():
            requirement = Requirement(line.rstrip(" \\"))
            if requirement.marker is None or requirement.marker.evaluate():
                [pin] = requirement.specifier
                assert pin.operator == "==", line
                found[canonicalize_name(requirement.name)] = pin.version
    return found


def asked_for(extra: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [Requirement(text) for text in (*project["dependencies"], *extras[extra], *extras["dev"])]


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_every_pin_is_locked_at_a_version_that_it_allows(extra: str) -> None:
    """Else: `make lock`."""
    found = locked(extra)
    for requirement in asked_for(extra):
        name = canonicalize_name(requirement.name)
        if not (extra == "cpu" and name in UNLOCKED):
            assert requirement.specifier.contains(found[name], prereleases=True), requirement


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_every_locked_package_has_hashes(extra: str) -> None:
    text = (ROOT / "deploy" / "requirements" / f"{extra}.txt").read_text()
    entries = re.findall(r"^[a-zA-Z0-9].*\n(?:^ .*\n)*", text, re.MULTILINE)
    assert len(entries) > 200
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    assert "://" not in text


def test_what_is_installed_is_what_was_locked() -> None:
    """Else: `sh deploy/install.sh .venv`. Packages that somebody added for their own use are theirs."""
    installed = {canonicalize_name(each.name): each.version for each in metadata.distributions()}
    found = locked("gpu" if "vllm" in installed else "cpu")
    assert {name: installed.get(name) for name in found} == found


def test_the_list_of_what_is_in_it_is_of_the_same_versions() -> None:
    """Else: `make sbom`."""
    listed = json.loads((ROOT / "deploy" / "sbom.cdx.json").read_text())["components"]
    versions = {canonicalize_name(each["name"]): each["version"] for each in listed}
    found = locked("cpu")
    assert {name: versions.get(name) for name in found} == found
    assert versions.keys() - found.keys() <= UNLOCKED | NOT_OURS
