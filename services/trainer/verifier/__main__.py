"""`python -m services.trainer.verifier`: what loads models for the trainer, in processes of its own.

    python -m services.trainer.verifier checkpoints ATTEMPT_FOLDER
    python -m services.trainer.verifier reward < trial.json
    python -m services.trainer.verifier tokens < request.json

`checkpoints` follows a training run's requests on standard input (process.py); `reward` scores the samples on standard
input (reward_trial.py); `tokens` counts the tokens of rows (token_lengths.py).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="services.trainer.verifier")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("checkpoints", help="follow a training run's requests on standard input").add_argument(
        "folder", type=Path
    )
    commands.add_parser("reward", help="score the samples on standard input")
    commands.add_parser("tokens", help="count the tokens of rows")
    arguments = parser.parse_args()
    # Each loads only what it needs.
    if arguments.command == "reward":
        from services.trainer.verifier import reward_trial

        return reward_trial.main()
    if arguments.command == "tokens":
        from services.trainer.verifier import token_lengths

        return token_lengths.main()
    from services.trainer.verifier import process

    return process.main(arguments.folder)


if __name__ == "__main__":
    sys.exit(main())
