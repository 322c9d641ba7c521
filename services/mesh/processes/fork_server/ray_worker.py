"""What Ray's raylet runs in the place of its own `setup_worker.py`, with the same arguments.

A worker whose runtime environment names a fork server (`client.VARIABLE`) is forked by it; the server must not have
imported Ray, whose library reads the ids of job and raylet once, when it is imported. Every other worker, and this one
too where no server answers, is started by Ray's own script.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from services.mesh.processes.fork_server.client import VARIABLE, Request, fork

_CONTEXT = "--serialized-runtime-env-context="
_LANGUAGE = "--language="


def main(arguments: Sequence[str]) -> None:
    request = forked(arguments, dict(os.environ))
    if request is not None:
        try:
            fork(request.environment[VARIABLE], request, [0, 1, 2])
        except OSError as error:
            print(f"{error}; the worker is started without it", file=sys.stderr, flush=True)
        else:
            return
    os.execv(sys.executable, [sys.executable, stock_script(), *arguments])  # noqa: S606  (what Ray itself would run)


def forked(arguments: Sequence[str], environment: dict[str, str]) -> Request | None:
    """The request for the worker that Ray wants; None for one that is not ours to fork."""
    rest: list[str] = []
    context: dict[str, object] = {}
    language = ""
    for argument in arguments:
        if argument.startswith(_CONTEXT):
            context = json.loads(argument.removeprefix(_CONTEXT) or "{}")
        elif argument.startswith(_LANGUAGE):
            language = argument.removeprefix(_LANGUAGE)
        else:
            rest.append(argument)
    variables = context.get("env_vars")
    if language != "PYTHON" or not isinstance(variables, dict) or VARIABLE not in variables:
        return None
    prepared = context.get("command_prefix") or context.get("override_worker_entrypoint")
    # Ray expands variables in values; nothing of ours has any.
    if prepared or context.get("py_executable") != sys.executable or any("$" in each for each in variables.values()):
        return None
    return Request(tuple(rest), {**environment, **variables}, str(Path.cwd()))


def stock_script() -> str:
    found = importlib.util.find_spec("ray")
    assert found is not None and found.submodule_search_locations
    return str(Path(found.submodule_search_locations[0]) / "_private" / "workers" / "setup_worker.py")


if __name__ == "__main__":
    main(sys.argv[1:])
