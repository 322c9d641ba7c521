"""Model folders from the command line, for services that must not import torch: one JSON object on standard output.

    python -m services.trainer.weights init FOLDER --spec spec.json --seed 0
    python -m services.trainer.weights inspect FOLDER
    python -m services.trainer.weights fetch FOLDER --source organisation/name@revision
    python -m services.trainer.weights side ATTEMPT_FOLDER
    python -m services.trainer.weights trial < trial.json

`init`, `inspect` and `fetch` print the model's facts; a refusal prints {"error": "…"} and exits with 2.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.command == "trial":
        from services.trainer.weights import trial

        return trial.main()
    if arguments.command == "side":
        from services.trainer.weights import side

        return side.main(arguments.folder)
    from services.trainer.weights.inspection import UnusableModelError, inspect

    try:
        if arguments.command == "init":
            from services.trainer.weights.initialise import initialise

            initialise(msgspec.json.decode(arguments.spec.read_bytes()), arguments.seed, arguments.folder)
        elif arguments.command == "fetch":
            from services.trainer.weights.hub import fetch

            fetch(arguments.source, arguments.folder)
        answer, status = msgspec.to_builtins(inspect(arguments.folder)), 0
    except (UnusableModelError, ValueError) as error:
        answer, status = {"error": str(error)}, 2
    sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="services.trainer.weights")
    commands = parser.add_subparsers(dest="command", required=True)
    init = commands.add_parser("init", help="make a model from scratch")
    init.add_argument("--spec", type=Path, required=True, help='JSON: {"config": {…}, "tokenizer": …}')
    init.add_argument("--seed", type=int, default=0)
    commands.add_parser("trial", help="score the samples on standard input (trial.py)")
    fetch = commands.add_parser("fetch", help="get a model from a hub")
    fetch.add_argument("--source", required=True, help="organisation/name or organisation/name@revision")
    for command in (
        init,
        fetch,
        commands.add_parser("inspect", help="check a model folder and describe it"),
        commands.add_parser("side", help="follow a training run's requests on standard input"),
    ):
        command.add_argument("folder", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
