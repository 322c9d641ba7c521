"""The contract of an endpoint that gives scores. Pure.

POST {"samples": [{"prompt": [{"role", "content"}], "completion", "answer", "metadata"}]}, answer null where there is
none; 200 with {"scores": [{"score": number, "parts": {name: number}}]}, one a sample, in order. A bare number is a
score without parts; every sample has the same parts. "cost", a number beside the scores, counts against cost_cap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.rewards import RewardSample, Score, is_score
from services.rewards.judges.cost_ledger import Spent
from services.rewards.judges.http_client import UnusableReply
from services.rewards.judges.payload import plain
from services.scoring import regex

_PART = regex.compile_pattern("[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", False)
_MOST_PARTS = 32


def request(samples: Sequence[RewardSample]) -> dict[str, Any]:
    return {"samples": [plain(sample) for sample in samples]}


def cost(reply: Any) -> Spent:
    """What the endpoint says that the request has cost; 0 where it does not say."""
    said = reply.get("cost") if isinstance(reply, dict) else None
    return Spent(cost=float(said)) if is_score(said) and said >= 0 else Spent()


def read(reply: Any, count: int, first: int) -> list[Score]:
    """Raises UnusableReply for anything but `count` numbers, or objects with one."""
    scores = reply.get("scores") if isinstance(reply, dict) else None
    if not isinstance(scores, list) or len(scores) != count:
        given = f"{len(scores)} scores" if isinstance(scores, list) else "no list named scores"
        raise UnusableReply(f"{given} for {count} samples")
    return [_read_score(one, first + index) for index, one in enumerate(scores)]


def wrong_parts(parts: Mapping[str, Any]) -> str:
    """What makes series of no such parts; empty where nothing does."""
    if len(parts) > _MOST_PARTS:
        return f"{len(parts)} parts, and {_MOST_PARTS} are the most"
    wrong = next((name for name in parts if not _PART.fullmatch(name.encode("utf-8", "replace"))), None)
    return "" if wrong is None else f"a part {wrong[:80]!r}; letters, digits, _ . and - make a name, 64 at most"


def _read_score(given: Any, index: int) -> Score:
    one = given if isinstance(given, dict) else {"score": given}
    parts = one.get("parts") or {}
    numbers = [one.get("score"), *(parts.values() if isinstance(parts, dict) else [None])]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        raise UnusableReply(f"sample {index} has something else than numbers: {str(given)[:100]}")
    if wrong := wrong_parts(parts):
        raise UnusableReply(f"sample {index} has {wrong}")
    try:
        return Score(float(one["score"]), {name: float(value) for name, value in parts.items()})
    except (ValueError, OverflowError) as error:
        raise UnusableReply(f"sample {index}: {error}") from None
