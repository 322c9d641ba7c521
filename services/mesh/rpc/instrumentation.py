"""What every server notes of every call: its span, its figures, and in the audit log who did what to which resource."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, TypeAlias

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.message import Message

from services.mesh import identity
from services.mesh.rpc.interceptors import Wrapping, resource_of
from services.mesh.telemetry import logs, metrics, tracing

access = logging.getLogger("access")

# Probes and reflection: asked all the time, and change nothing.
_UNOBSERVED = "/grpc."
# How RPCs that change nothing are named.
READS = ("Get", "List", "Resolve", "Stream", "Watch", "Download")
# Whom the gateway calls for; without it a service would see the gateway alone.
FORWARDED_FOR = "x-forwarded-for"
_REFUSALS = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED"})
# Not the caller's doing, and so what a span is marked for.
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}
_OTHER = "_OTHER"
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Observed(Wrapping):
    """The outermost interceptor: sees what every other one made of the call.

    `carries_out` says whether calls are carried out here, and so told to the audit log, or passed on to who does it;
    `access_log` whether each call is a line of the access log.
    """

    def __init__(self, *, carries_out: bool = True, access_log: bool = False) -> None:
        self.carries_out = carries_out
        self.access_log = access_log

    def _one(self, inner: Any, method: str) -> Any:
        if method.startswith(_UNOBSERVED):
            return super()._one(inner, method)

        async def one(request: Any, context: _Context) -> Any:
            with _Call(method, context, self, many=hasattr(request, "__aiter__")) as call:
                call.answer = await inner(call.taking(request), context)
                call.sent_bytes += _size(call.answer)
                return call.answer

        return one

    def _many(self, inner: Any, method: str) -> Any:
        if method.startswith(_UNOBSERVED):
            return super()._many(inner, method)

        async def many(request: Any, context: _Context) -> AsyncIterator[Any]:
            with _Call(method, context, self, many=True) as call:
                replies = inner(call.taking(request), context)
                if inspect.isawaitable(replies):
                    await replies
                    return
                async with contextlib.aclosing(replies):
                    async for reply in replies:
                        call.sent_bytes += _size(reply)
                        yield reply

        return many


class _Call:
    """One call. gRPC runs each in a task of its own, so its span is current until that task ends."""

    def __init__(self, method: str, context: _Context, observed: Observed, *, many: bool) -> None:
        self._method = _known(method[1:])
        self._verb = method.rpartition("/")[2][:100]
        self._context = context
        self._observed = observed
        self._many = many
        self._received_bytes = self.sent_bytes = 0
        self._resource = ""
        self.answer: Any = None

    def __enter__(self) -> _Call:
        self._metadata = self._context.invocation_metadata() or ()
        # Now: once a call is gone, asking for its peer reads freed memory (grpcio 1.85), and a stream that was left by
        # its client may be closed after that.
        self._peer = self._context.peer()
        parent = tracing.of_metadata(self._metadata)
        attributes = {"rpc.system.name": "grpc", "rpc.method": self._method}
        self._span = tracing.start(self._method, tracing.SpanKind.SERVER, parent, attributes)
        tracing.enter(self._span)
        if self._many:
            metrics.instruments().open_streams.add(1, {"rpc.method": self._method})
        self._started = time.perf_counter()
        return self

    def taking(self, request: Any) -> Any:
        """The same request; notes what it is about."""
        if hasattr(request, "__aiter__"):
            return self._noting(request)
        self._resource = resource_of(request)
        self._received_bytes = _size(request)
        return request

    async def _noting(self, requests: Any) -> AsyncIterator[Any]:
        async for request in requests:
            self._resource = self._resource or resource_of(request)
            self._received_bytes += _size(request)
            yield request

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        seconds = time.perf_counter() - self._started
        code = self._code(error)
        figures = metrics.instruments()
        if self._many:
            figures.open_streams.add(-1, {"rpc.method": self._method})
        outcome = {"rpc.system.name": "grpc", "rpc.method": self._method, "rpc.response.status_code": code}
        figures.rpc_duration.record(seconds, outcome)
        self._span.set_attribute("rpc.response.status_code", code)
        self._span.set_attribute("rlhf.resource", self._resource)
        if code in _FAULTS:
            tracing.fail(self._span, code)
        self._span.end()
        if code in _REFUSALS or (self._observed.carries_out and not self._verb.startswith(READS)):
            self._audit(code)
        if self._observed.access_log:
            self._log(code, seconds)

    def _code(self, error: BaseException | None) -> str:
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            left = self._context.time_remaining()
            return "DEADLINE_EXCEEDED" if left is not None and left <= 0 else "CANCELLED"
        if error is not None and not isinstance(error, grpc.aio.AbortError):
            return "UNKNOWN"
        code: Any = self._context.code()
        return _CODES.get(code, "UNKNOWN") if isinstance(code, int) else code.name if code is not None else "OK"

    def _audit(self, code: str) -> None:
        # What was made is known by the name it got.
        made = getattr(self.answer, "name", "") if isinstance(self.answer, Message) else ""
        resource = made or self._resource
        logs.audit(_principal(), self._verb, resource, code, method=self._method, **self._origin())

    def _log(self, code: str, seconds: float) -> None:
        fields = {
            "method": "gRPC",
            "route": self._method,
            "status": code,
            "duration_ms": round(seconds * 1000, 2),
            "received_bytes": self._received_bytes,
            "sent_bytes": self.sent_bytes,
            "principal": _principal(),
            **self._origin(),
        }
        access.info("gRPC %s %s", self._method, code, extra=fields)

    def _origin(self) -> dict[str, str]:
        return {
            "client": (self._observed.carries_out and self._sent(FORWARDED_FOR)) or self._peer,
            "request_id": self._sent("x-request-id"),
        }

    def _sent(self, key: str) -> str:
        return str(next((value for name, value in self._metadata if name == key), ""))[:128]


def _principal() -> str:
    found = identity.current()
    return found.name if found else ""


def _size(message: Any) -> int:
    """Of what is passed on as it is; a message that is parsed is not worth packing again."""
    return len(message) if isinstance(message, bytes) else 0


@functools.lru_cache(1024)
def _known(method: str) -> str:
    """`package.Service/Method` where it is one of a contract; callers invent others, which would be figures each."""
    try:
        descriptor_pool.Default().FindMethodByName(method.replace("/", "."))
    except KeyError:
        return _OTHER
    return method
