"""What code computes here: versions by package, and the commit where it is known."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

DISTRIBUTION = "rlhf-mesh"
# What may change a number that training comes to.
PACKAGES = (DISTRIBUTION, "verl", "torch", "transformers", "ray", "peft", "tensordict", "vllm")
_GIT_SECONDS = 10


@functools.cache
def software() -> Mapping[str, str]:
    """Version by package of this interpreter; `commit` of the code, with `+changes` where files differ from it."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if commit := _installed_commit() or _checked_out_commit():
        found["commit"] = commit
    return found


def sha256(params: Mapping[str, Any]) -> str:
    """Of parameters as JSON with sorted keys."""
    text = json.dumps(params, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _installed_commit() -> str:
    """What an installer wrote down that took the code out of a repository (PEP 610)."""
    try:
        text = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
        return json.loads(text or "{}").get("vcs_info", {}).get("commit_id", "")
    except (metadata.PackageNotFoundError, ValueError):
        return ""


def _checked_out_commit() -> str:
    """Of the repository that this file lies in, where it does."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_GIT_SECONDS)  # noqa: S603
    return done.stdout.strip()
