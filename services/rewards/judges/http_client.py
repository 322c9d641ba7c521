"""Calling a judge over HTTP: again where it is away, at a pace, within a time, and never beyond the list of what may be
called."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx
import msgspec

from services.mesh.outbound import Allowance, OutboundRefused, client
from services.rewards import RewardContext, RewardError
from services.rewards.judges.cost_ledger import Bill, Spent

T = TypeVar("T")
R = TypeVar("R")

LARGEST_REPLY_BYTES = 4 << 20
# Its time will come: too many requests, or something on the way that is not well.
_AWAY = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
# The key is what it does not like.
_SILENT = frozenset({401, 403, 407})
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 60.0
_LONGEST_RETRY_AFTER_SECONDS = 300.0
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class CallSettings:
    """`retries` are made before the judge counts as away; from then on it is waited for as long as it takes."""

    url: str
    key: str
    retries: int
    timeout_seconds: float
    concurrency: int
    requests_per_minute: float | None


class _Away(Exception):
    """The judge gave no answer; `pause` is when it wants to be asked again, None where it did not say."""

    def __init__(self, why: str, pause: float | None = None) -> None:
        super().__init__(why)
        self.pause = pause


class UnusableReply(Exception):
    """It answered, and not as it should."""


class Caller:
    """Posts JSON and gives back JSON."""

    def __init__(self, settings: CallSettings, surroundings: RewardContext) -> None:
        self._settings = settings
        self._surroundings = surroundings
        allowance = Allowance(surroundings.site.outbound_allow)
        self._client = client(allowance, settings.timeout_seconds, settings.concurrency)
        self._pool = ThreadPoolExecutor(settings.concurrency, "judge")
        # Of each batch that is under way, what wakes its threads when nobody wants their answers any more.
        self._stops: set[threading.Event] = set()
        self._thread = threading.local()
        # Why it is waited for, by the thread that waits.
        self._waiting: dict[int, str] = {}
        self._pace_lock = threading.Lock()
        self._next_at = 0.0

    def map(self, ask: Callable[[int, T], R], items: Sequence[T]) -> list[R]:
        """`ask(index, item)` for all, so many at a time, in order; meanwhile says what is waited for, and stops when
        asked to. Raises the first RewardError, and what the surroundings raise."""
        stop = threading.Event()
        self._stops.add(stop)

        def run(index: int, item: T) -> R:
            self._thread.stop = stop
            return ask(index, item)

        futures = [self._pool.submit(run, index, item) for index, item in enumerate(items)]
        try:
            pending: set[Future[R]] = set(futures)
            while pending:
                done, pending = wait(pending, _POLL_SECONDS, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                self._surroundings.check()
                if why := next(iter(list(self._waiting.values())), ""):
                    self._surroundings.wait(why, _POLL_SECONDS)
        except BaseException:
            for future in futures:
                future.cancel()
            stop.set()
            raise
        finally:
            self._stops.discard(stop)
        return [future.result() for future in futures]

    def post(self, body: Any, read: Callable[[Any], R], index: int | None, bill: Bill) -> R:
        """What `read` makes of the reply. Raises RewardError, about the sample `index`, where the judge refuses, or
        where `read` finds each of several replies unusable."""
        content = msgspec.json.encode(body)
        unusable = failures = 0
        try:
            while True:
                try:
                    return self._paid(content, read, bill)
                except _Away as away:
                    failures += 1
                    if failures > self._settings.retries:
                        self._waiting[threading.get_ident()] = str(away)
                    self._sleep(_pause(failures) if away.pause is None else away.pause)
                except UnusableReply as error:
                    unusable += 1
                    if unusable > self._settings.retries:
                        message = f"the judge gave {unusable} replies that can't be used, the last: {error}"
                        remedy = "make the rubric ask for the form that is wanted, or take a judge that keeps to it"
                        raise RewardError(message, index, "REWARD_REPLY_UNUSABLE", remedy) from None
        finally:
            self._waiting.pop(threading.get_ident(), None)

    def _paid(self, content: bytes, read: Callable[[Any], R], bill: Bill) -> R:
        """One request. A reply that can't be used is paid for too."""
        bill.ledger.reserve(bill.most.cost)
        spent = Spent()
        try:
            reply = self._once(content)
            spent = bill.count(reply)
            return read(reply)
        finally:
            bill.ledger.settle(bill.most.cost, spent)

    def _once(self, content: bytes) -> Any:
        """One request. Raises _Away, UnusableReply, RewardError."""
        self._pace()
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if self._settings.key:
            headers["authorization"] = f"Bearer {self._settings.key}"
        give_up = time.monotonic() + self._settings.timeout_seconds
        try:
            with self._client.stream("POST", self._settings.url, content=content, headers=headers) as response:
                data = self._read(response, give_up)
        except OutboundRefused as error:
            raise RewardError(str(error), reason="REWARD_REFUSED") from None
        except httpx.TimeoutException:
            raise _Away(f"the judge did not answer within {self._settings.timeout_seconds:g} s") from None
        except httpx.TransportError as error:
            # Of a connection that there is, an error may quote what came over it.
            why = str(error) if isinstance(error, httpx.ConnectError) else ""
            raise _Away(f"the judge can't be reached: {why or type(error).__name__}") from None
        return self._judged(response, data)

    def _read(self, response: httpx.Response, give_up: float) -> bytes:
        """The body. httpx's own limit is for each part of it, and a judge may send it byte by byte."""
        data = b""
        for part in response.iter_bytes():
            data += part
            if len(data) > LARGEST_REPLY_BYTES:
                raise UnusableReply(f"more than {LARGEST_REPLY_BYTES} bytes")
            if time.monotonic() > give_up:
                raise httpx.ReadTimeout("the whole took too long")
        return data

    def _judged(self, response: httpx.Response, data: bytes) -> Any:
        """The reply as JSON. What else an address answers is not told: it may be none of a judge, and its answer
        nothing for whoever named it."""
        status = response.status_code
        if status in _AWAY:
            raise _Away(f"the judge answers with status {status}", _retry_after(response))
        if status != 200:
            words = f"the judge answers with status {status}"
            if 300 <= status < 400:
                words += ", and redirects are not followed"
            remedy = "put another secret into its file" if status in _SILENT else "see the judge's url and settings"
            raise RewardError(words, reason="REWARD_REFUSED", remedy=remedy)
        try:
            return msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise UnusableReply(f"{len(data)} bytes that are no JSON") from None

    def _pace(self) -> None:
        """Wait for this request's turn."""
        if self._settings.requests_per_minute is None:
            return
        with self._pace_lock:
            at = max(self._next_at, time.monotonic())
            self._next_at = at + 60 / self._settings.requests_per_minute
        self._sleep(at - time.monotonic())

    def _sleep(self, seconds: float) -> None:
        if seconds > 0 and self._thread.stop.wait(seconds):
            raise RewardError("the run has stopped waiting", reason="REWARD_UNAVAILABLE")

    def close(self) -> None:
        for stop in list(self._stops):
            stop.set()
        # What is under way ends by its own time limit; nobody waits for it.
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()


def _pause(failures: int) -> float:
    """Exponential, more or less by half at random: many workers that lost one judge do not come back together."""
    pause = min(_FIRST_PAUSE_SECONDS * 2 ** min(failures - 1, 10), _LONGEST_PAUSE_SECONDS)
    return pause * random.uniform(0.5, 1.5)  # noqa: S311 - not a secret


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds, as a number or a date (RFC 9110, 10.2.3); None where it says neither."""
    text = response.headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        seconds = float(text) if text.isascii() and text.isdecimal() else _until(text)
    except (ValueError, TypeError):
        return None
    return min(max(0.0, seconds), _LONGEST_RETRY_AFTER_SECONDS)


def _until(date: str) -> float:
    return (parsedate_to_datetime(date) - datetime.now(UTC)).total_seconds()
