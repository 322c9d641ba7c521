"""The runner, with answers by verl's own agent loop in the place of our batches, as with vLLM: one call an answer to
the same transformers server, scored by verl's reward workers. `python agent_loop_run.py FOLDER`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from services.trainer.verl import environment, runner
from services.trainer.verl.patches import hooks


def by_agent_loop(_plan: object) -> bool:
    return False


def main() -> int:
    # The names are bound when these modules are imported, which is not before verl has its settings.
    environment.apply(environment.variables("cpu"))
    hooks.install_common()
    from services.trainer.verl import configuration
    from services.trainer.verl.trainers import rl

    configuration.answers_in_batches = rl.answers_in_batches = by_agent_loop
    return runner.main(Path(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
