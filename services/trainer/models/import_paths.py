"""Folders of the server that models may be imported from."""

from __future__ import annotations

import difflib
import shlex
from pathlib import Path

from services.mesh.errors import Violation

_SETTING = "RLHF_MODEL_ROOTS"
_MOST_SHOWN = 5
# The message repeats it, and the head of an answer has little room.
_LONGEST = 1_000


def check(path: str, roots: tuple[Path, ...]) -> list[Violation]:
    """That it is a folder under one of `roots`, links followed. What is there elsewhere is not told."""
    found = _problem(path, roots)
    return [Violation("path", found)] if found else []


def _problem(path: str, roots: tuple[Path, ...]) -> str:
    if len(path) > _LONGEST:
        return f"must have at most {_LONGEST:,} characters"
    given = Path(path)
    if not given.is_absolute():
        hint = f"; of a hub it is hf:{path}" if path.count("/") == 1 else ""
        return f"must be the absolute path of a folder on the server{hint}"
    try:
        resolved = given.resolve()
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, a circle of links
        resolved = None
    root = next((root for root in map(Path.resolve, roots) if resolved and resolved.is_relative_to(root)), None)
    if resolved is None or root is None:
        return _outside(given, roots)
    if resolved.is_dir():
        return ""
    return "is a file; a folder holds config.json and weights" if resolved.exists() else _missing(resolved, root)


def _outside(given: Path, roots: tuple[Path, ...]) -> str:
    if not roots:
        return f"models are imported from no folder of this server; {_remedy(given, roots)}"
    shown = ":".join(map(str, roots))
    return (
        f"is not in a folder that models may be imported from ({_SETTING} is {shown}; a link counts where it leads): "
        f"copy it to {roots[0]}/{given.name}, or {_remedy(given, roots)}"
    )


def _remedy(given: Path, roots: tuple[Path, ...]) -> str:
    # Never all of the machine.
    folder = given.parent if given.parent != given.parent.parent else given
    wanted = shlex.quote(":".join(map(str, (*roots, folder))))
    return f"add its folder: `rlhf down && {_SETTING}={wanted} rlhf up`"


def _missing(resolved: Path, root: Path) -> str:
    """With what is there under a similar name, else with what there is."""
    inside = (folder for folder in resolved.parents if folder.is_relative_to(root) and folder.is_dir())
    if (parent := next(inside, None)) is None:
        return f"no such folder, and {root} does not exist: make it, and copy the model's folder there"
    names = sorted(each.name for each in parent.iterdir() if each.is_dir())
    near = difflib.get_close_matches(resolved.name, names, n=_MOST_SHOWN) if parent == resolved.parent else []
    if near:
        return f"no such folder; did you mean {' or '.join(near)}?"
    there = ", ".join(names[:_MOST_SHOWN]) + (", …" if len(names) > _MOST_SHOWN else "") if names else "no folder"
    return f"no such folder; in {parent} there is {there}"
