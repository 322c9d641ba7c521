"""What to tell a user whose run has failed: the first cause across Ray's processes, and a remedy where one is known."""

from __future__ import annotations

import errno
import re
import traceback
from dataclasses import dataclass

from services.rewards import RewardError

TRACEBACK_CHARACTERS = 20_000


@dataclass(frozen=True)
class Failure:
    """`reason` is a stable UPPER_SNAKE_CASE word; `remedy` is empty where none is known."""

    reason: str
    message: str
    remedy: str
    traceback: str


class RayUnreachableError(Exception):
    """Ray did not take us in, for whatever reason it gives."""


class ActorLostError(Exception):
    """A process of the run has gone, or is stopped."""


class NodeLostError(Exception):
    """Ray's process on the run's machine has gone, or is stopped."""


@dataclass(frozen=True)
class Known:
    """A failure by its exception's type name and text."""

    reason: str
    type_name: str
    text: str
    remedy: str


_START_RAY = "start Ray, or see its log if it runs"
_FREE_DISK = "free space on the disk of the home, or save less often; then start the job again"
_TRY_REWARD = "give the sample to `rlhf reward test`, mend the reward, and start the job again from its last checkpoint"
# First match wins.
CATALOGUE = (
    Known("TOO_FEW_SLOTS", "TooFewSlotsError", "", "lower the job's slots, or add a machine that has as many"),
    Known("NO_TRAINABLE_ROWS", "NoRowsError", "", "raise max_length or max_prompt_length, or shorten the rows"),
    Known(
        "TOO_FEW_ROWS",
        "TooFewRowsError",
        "",
        "lower batch_size or prompts_per_step, or raise max_length or max_prompt_length",
    ),
    Known(
        "REWARDS_UNIFORM",
        "UniformRewardsError",
        "",
        "look at the samples: where all are right, the last checkpoint has learnt it; where all are wrong, fine-tune "
        "first. Else raise samples_per_prompt or max_generation_batches",
    ),
    Known("OUT_OF_MEMORY", "OutOfMemoryError|OutOfMemory|MemoryError", "", "lower micro_batch_size, or use lora"),
    Known("OUT_OF_MEMORY", ".*", r"out of memory|can't allocate memory", "lower micro_batch_size, or use lora"),
    Known("DISK_FULL", ".*", r"No space left on device", _FREE_DISK),
    # What torch.save says where the file cannot grow; the number of the error is lost on the way.
    Known("DISK_FULL", "RuntimeError", r"inline_container.*unexpected pos|PytorchStreamWriter failed", _FREE_DISK),
    Known("RAY_UNREACHABLE", "RayUnreachableError", "", _START_RAY),
    Known("RAY_UNREACHABLE", ".*", r"[Cc]ould not (find|connect).*(Ray|GCS)|ray start", _START_RAY),
    # It has been started again under the run, which belongs to the one before.
    Known("RAY_UNREACHABLE", ".*", r"WrongClusterID|Failed to get node info|GCS.*(unavailable|restarted)", _START_RAY),
    Known(
        "WORKER_DIED",
        "ActorLostError|ActorDiedError|RayActorError|WorkerCrashedError|ActorUnavailableError|OwnerDiedError",
        "",
        "a process that was killed has often run out of memory: lower micro_batch_size, or use lora",
    ),
    Known(
        "ROLLOUT_ENGINE_MISSING",
        "ImportError",
        r"\bvllm\b",
        "install vllm beside verl, or set rollout_engine=transformers, which is slower",
    ),
    Known(
        "ATTENTION_MISSING",
        "ImportError",
        r"flash.?attn|[Ff]lash.?[Aa]ttention",
        "install flash-attn, or set attention=sdpa",
    ),
    Known(
        "NODE_DIED",
        "NodeLostError|NodeDiedError|RaySystemError",
        "",
        "start the job again: it resumes from its last checkpoint",
    ),
    Known(
        "CHAT_TEMPLATE_UNUSABLE",
        "AssertionError|ValueError",
        r"apply_chat_template|input_ids mismatch|chat template",
        "give the model a template that renders the beginning of a conversation as it does in the whole, or keep the"
        " rows to one answer each",
    ),
    Known("RESUME_FAILED", "ValueError", "training state", "start the job again from its model"),
)


def explain(error: BaseException) -> Failure:
    """The first causal exception behind `error`, named and with its traceback."""
    cause = first_cause(error)
    name, text = type(cause).__name__, str(cause).strip()
    if isinstance(cause, RewardError):
        return Failure(cause.reason, str(cause)[:2000], cause.remedy or _TRY_REWARD, _tail_of(error))
    known = next((entry for entry in CATALOGUE if _matches(entry, cause, text)), None)
    return Failure(
        reason=known.reason if known else "TRAINING_FAILED",
        message=f"{name}: {_gist(text)}"[:2000],
        remedy=known.remedy if known else "",
        traceback=_tail_of(error),
    )


def _gist(text: str) -> str:
    """The first line; of a worker that died, what Ray says of how, too."""
    if not text:
        return "(no text)"
    detail = re.search(r"Worker exit detail: (.*)", text)
    return text.splitlines()[0] + (f" {detail[1].strip()}" if detail else "")


def first_cause(error: BaseException) -> BaseException:
    """Through Ray's wrappers, and Python's `from`, down to what was raised first."""
    seen: set[int] = set()
    while id(error) not in seen and not isinstance(error, RewardError):
        seen.add(id(error))
        cause = getattr(error, "cause", None)
        if not isinstance(cause, BaseException):
            cause = error.__cause__
        if not isinstance(cause, BaseException):
            break
        error = cause
    return error


def _matches(entry: Known, cause: BaseException, text: str) -> bool:
    if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
        return entry.reason == "DISK_FULL"
    names = [kind.__name__ for kind in type(cause).__mro__]
    return any(re.fullmatch(entry.type_name, name) for name in names) and bool(re.search(entry.text, text))


def _tail_of(error: BaseException) -> str:
    # RayTaskError's text is the remote traceback.
    return "".join(traceback.format_exception(error))[-TRACEBACK_CHARACTERS:]
