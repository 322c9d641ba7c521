"""`python -m services.models` for a worker, which must not import torch itself."""

from __future__ import annotations

import asyncio
import errno
import json
from typing import Any

from services.mesh.errors import FailedPrecondition
from services.mesh.jobs.worker import Retry

_TIMEOUT_SECONDS = 6 * 3600.0


class WeightsProcess:
    """`python` is the interpreter, `environment` all that the process sees."""

    def __init__(self, python: str, environment: dict[str, str]) -> None:
        self._python = python
        self._environment = environment

    async def ask(self, *arguments: str) -> dict[str, Any]:
        """The facts of the model that it made or looked at. It is killed when nobody waits for it any more.

        Raises FailedPrecondition with its refusal, OSError where the disk is full, Retry when it dies.
        """
        process = await asyncio.create_subprocess_exec(
            self._python,
            "-m",
            "services.models",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env=self._environment,
        )
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                output, _ = await process.communicate()
        except TimeoutError:
            message = f"not done after {_TIMEOUT_SECONDS / 3600:.0f} hours"
            raise FailedPrecondition("IMPORT_TIMED_OUT", message) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        try:
            answer = json.loads(output)
        except ValueError:
            raise Retry(f"the importing process died with exit code {process.returncode}", 1) from None
        if answer.get("no_room"):
            raise OSError(errno.ENOSPC, answer["error"])
        if "error" in answer:
            raise FailedPrecondition("UNUSABLE_MODEL", answer["error"])
        return answer
