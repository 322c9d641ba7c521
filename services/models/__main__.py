"""Model folders from the command line, for services that must not import torch: one JSON object on standard output.

    python -m services.models init FOLDER --spec spec.json --seed 0
    python -m services.models inspect FOLDER
    python -m services.models fetch FOLDER --source organisation/name@revision
    python -m services.models merge FOLDER --base B --base-sha256 S --adapter A …

`init`, `inspect` and `merge` print the model's facts, `fetch` nothing but {}; a refusal prints {"error": "…"} and exits
with 2. These three confine themselves to the folders that they are given, before they read a stranger's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from services.mesh.errors import NO_ROOM
from services.mesh.processes.confinement import confine_or_say
from services.models import template_limits

if TYPE_CHECKING:
    from services.models.inspection import ModelFacts


def main() -> int:
    arguments = _parser().parse_args()
    from services.models.folder import UnusableModelError

    try:
        if arguments.command == "fetch":
            from services.models.hub import fetch

            fetch(arguments.source, arguments.folder)
            answer, status = {}, 0
        else:
            _confine(arguments)
            answer, status = msgspec.to_builtins(_model(arguments)), 0
    except (UnusableModelError, ValueError) as error:
        answer, status = {"error": str(error)}, 2
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        answer, status = {"error": f"there is no room left for the weights: {error}", "no_room": True}, 2
    sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
    return status


def _confine(arguments: argparse.Namespace) -> None:
    """Keep what the command reads, and what it writes to."""
    folder: Path = arguments.folder
    if arguments.command == "merge":
        readable, writable = [arguments.base, *arguments.adapter], [folder.parent]
    elif arguments.command == "init":
        tokenizer = msgspec.json.decode(arguments.spec.read_bytes()).get("tokenizer")
        readable, writable = [arguments.spec, *([Path(tokenizer)] if isinstance(tokenizer, str) else [])], [folder]
        folder.mkdir(parents=True, exist_ok=True)
    else:
        readable, writable = [folder], []
    template_limits.foresee()
    confine_or_say(readable, writable)


def _model(arguments: argparse.Namespace) -> ModelFacts:
    """The facts of the model in the folder, once it is there."""
    from services.models.inspection import inspect

    if arguments.command == "merge":
        from services.models.merge import merge

        return merge(arguments.base, arguments.base_sha256, arguments.adapter, arguments.folder)
    if arguments.command == "init":
        from services.models.initialise import initialise

        initialise(msgspec.json.decode(arguments.spec.read_bytes()), arguments.seed, arguments.folder)
    return inspect(arguments.folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="services.models")
    commands = parser.add_subparsers(dest="command", required=True)
    init = commands.add_parser("init", help="make a model from scratch")
    init.add_argument("--spec", type=Path, required=True, help='JSON: {"config": {…}, "tokenizer": …}')
    init.add_argument("--seed", type=int, default=0)
    fetch = commands.add_parser("fetch", help="get a model from a hub")
    fetch.add_argument("--source", required=True, help="organisation/name or organisation/name@revision")
    merge = commands.add_parser("merge", help="make a model of a base and the adapters over it")
    merge.add_argument("--base", type=Path, required=True)
    merge.add_argument("--base-sha256", required=True, help="of the manifest of the weights that were trained over")
    merge.add_argument("--adapter", type=Path, action="append", required=True, help="again for one over the last")
    for command in (
        init,
        fetch,
        merge,
        commands.add_parser("inspect", help="check a model folder and describe it"),
    ):
        command.add_argument("folder", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
