"""Writing to a call that the other side may end at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc._cython import cygrpc

log = logging.getLogger(__name__)

# What a failed batch of operations raises; not in the stubs.
_BATCH_FAILED: Any = cygrpc.InternalError  # pyright: ignore[reportAttributeAccessIssue]
_ENDED = (_BATCH_FAILED, asyncio.InvalidStateError, grpc.aio.AioRpcError)


async def send(call: Any, message: bytes) -> bool:
    """Write one message, in bytes, to a streaming call, as fast as it is taken. False when the call has ended.

    `call.write` is not used: when the service ends the call while a message is on its way, it replaces the status that
    the service sent by INTERNAL "Internal error from Core" (grpcio 1.85, aio/_call.py, `_write`). So this does what
    `write` does and leaves the status alone. Serializers of the call are not applied.
    """
    try:
        await call.wait_for_connection()
        if call.done():
            return False
        await call._cython_call.send_serialized_message(message)
    except _ENDED:
        return False
    return True


async def finish(call: Any) -> None:
    """Say that no more will be written; nothing when the call has ended."""
    with contextlib.suppress(*_ENDED):
        await call.done_writing()


async def send_all(call: Any, messages: AsyncIterable[Message] | Iterable[Message]) -> None:
    """Write every message, then say that no more will come; stops when the call has ended.

    What a call does with an iterator of its own, without the flaw that `send` tells of. An error of the iterator
    cancels the call.
    """
    try:
        async for message in _each(messages):
            if not await send(call, message.SerializeToString()):
                return
        await finish(call)
    except Exception:
        log.exception("the messages of a call gave out")
        call.cancel()


async def _each(messages: AsyncIterable[Message] | Iterable[Message]) -> AsyncIterator[Message]:
    if isinstance(messages, AsyncIterable):
        async for message in messages:
            yield message
    else:
        for message in messages:
            yield message
