"""Silence for what verl and its libraries say about themselves, so that a job's log is what happened.

Of some 70 lines that a run of three steps printed none was about the run: engines that are not installed, settings,
bars of progress, deprecations of libraries' calls to each other. What matters of it comes as metrics, warnings and
errors. What libraries read from the environment once stands in verl/environment.py.
"""

from __future__ import annotations

import builtins
import logging
import pprint
import sys
import warnings
from collections.abc import Callable
from typing import Any

# Packages whose `print` says nothing of a run; what goes wrong they raise.
PRINTING = ("verl", "transfer_queue")
# Loggers that warn of what libraries do among themselves.
LOGGERS = ("torch.fx._symbolic_trace", "ray._private.worker", "transformers")
_print, _pprint = builtins.print, pprint.pprint


def silence() -> None:
    """Silence this process; may be called again."""
    warnings.simplefilter("ignore")
    # verl's own loggers have a level of their own, INFO, whatever its setting says.
    logging.disable(logging.INFO)
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    builtins.print, pprint.pprint = _of_others(_print), _of_others(_pprint)


def _of_others(printing: Callable[..., None]) -> Callable[..., None]:
    """Prints unless it is called by one of PRINTING."""

    def printed(*values: Any, **how: Any) -> None:
        caller = sys._getframe(1).f_globals.get("__name__", "").partition(".")[0]
        if caller not in PRINTING:
            printing(*values, **how)

    return printed
