"""What verl prints of itself is kept out of a job's log, and nothing else is."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import logging, pprint, sys, types, warnings
from services.trainer.verl.patches.quiet import silence
silence()
silence()
verl = types.ModuleType("verl.trainer.x")
code = "from pprint import pprint\\nprint('verl prints')\\npprint('verl prints')\\nprint('and there', file=sys.stderr)"
exec("import sys\\n" + code, verl.__dict__)
logging.getLogger("verl.x").setLevel(logging.INFO)
logging.basicConfig(level=logging.INFO)
logging.getLogger("verl.x").info("verl logs")
warnings.warn("a library warns", DeprecationWarning)
print("a reward prints", end="!\\n")
print("and there", file=sys.stderr)
logging.getLogger("a.reward").warning("warns")
"""


def test_verl_is_silent_and_others_are_heard() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == "a reward prints!\n"
    assert done.stderr == "and there\nWARNING:a.reward:warns\n"
