"""Commands over a WebSocket: `{"id": 1, "cancel": {}}` calls the custom method `:cancel` of the watched resource.

Every unary RPC whose HTTP path is that of the stream with another verb, by POST, is a command; none is named here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import grpc
from google.protobuf import message_factory

from services.gateway.http import problems
from services.gateway.http.request import DEFAULT_TIMEOUT_SECONDS, Incoming
from services.gateway.transcoding.transcoder import Route, routes
from services.gateway.upstreams import Upstream
from services.mesh.errors import InvalidArgument, NotFound, PlatformError, ResourceExhausted
from services.mesh.rpc import protojson

MAX_PENDING = 8
# So many at once, and so many a second for long.
BURST = 20
PER_SECOND = 10.0
# How long the answers of commands may take when the stream has ended.
FINISH_SECONDS = 5.0
_MAX_ID_CHARACTERS = 128


class Command:
    """One unary RPC."""

    def __init__(self, route: Route, upstream: Upstream) -> None:
        reply: Any = message_factory.GetMessageClass(route.method.output_type)
        self._route = route
        self._upstream = upstream
        self._invoke: Any = upstream.channel.unary_unary(
            route.rpc_path, request_serializer=_serialize, response_deserializer=reply.FromString
        )

    async def run(self, incoming: Incoming, captured: Mapping[str, str], fields: Mapping[str, Any]) -> Any:
        """The answer as JSON. Raises the service's error."""
        request = self._route.request(captured, (), json.dumps(fields).encode())
        try:
            reply = await self._invoke(request, timeout=DEFAULT_TIMEOUT_SECONDS, metadata=incoming.metadata())
        except grpc.aio.AioRpcError as error:
            raise self._upstream.error(error) from None
        return json.loads(self._route.answer(reply))


def commands_of(stream: Route, upstream: Upstream) -> Mapping[str, Command]:
    """By verb."""
    return {route.template.verb: Command(route, upstream) for route in command_routes(stream)}


def command_routes(stream: Route) -> Iterator[Route]:
    """What a WebSocket of this stream takes besides."""
    for route in routes(stream.method.containing_service):
        streams = route.method.client_streaming or route.method.server_streaming
        same_resource = (route.template.segments, route.template.variables) == (
            stream.template.segments,
            stream.template.variables,
        )
        if route.http_method == "POST" and route.template.verb and same_resource and not streams:
            yield route


class CommandReader:
    """Takes what one client sends, and answers each with its id, in the order in which they are done."""

    def __init__(
        self,
        commands: Mapping[str, Command],
        incoming: Incoming,
        captured: Mapping[str, str],
        answer: Callable[[str], Awaitable[None]],
    ) -> None:
        self._commands = commands
        self._incoming = incoming
        self._captured = captured
        self._answer = answer
        self._pending: set[asyncio.Task[None]] = set()
        self._allowance = float(BURST)
        self._counted_at = asyncio.get_running_loop().time()

    async def take(self, text: str) -> None:
        """Start what `text` asks for, or answer what is wrong with it."""
        id_: Any = None
        try:
            tree = protojson.loads(text.encode(errors="replace"), "message")
            id_ = _id(tree)
            self._count()
            command, fields = self._parse(tree)
            if len(self._pending) >= MAX_PENDING:
                raise ResourceExhausted("TOO_MANY_COMMANDS", f"{MAX_PENDING} commands wait for their answers already")
        except PlatformError as error:
            await self._say(id_, error)
            return
        task = asyncio.create_task(self._run(id_, command, fields))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def finish(self) -> None:
        """Wait a little for the answers that are due."""
        if self._pending:
            await asyncio.wait(self._pending, timeout=FINISH_SECONDS)

    def stop(self) -> None:
        for task in self._pending:
            task.cancel()

    async def _run(self, id_: Any, command: Command, fields: Mapping[str, Any]) -> None:
        try:
            result = await command.run(self._incoming, self._captured, fields)
        except PlatformError as error:
            await self._say(id_, error)
        else:
            await self._answer(json.dumps({"id": id_, "result": result}, ensure_ascii=False))

    async def _say(self, id_: Any, error: PlatformError) -> None:
        answer = {"id": id_, "error": problems.document(error, self._incoming.request_id)}
        await self._answer(problems.to_json(answer).decode())

    def _count(self) -> None:
        now = asyncio.get_running_loop().time()
        self._allowance = min(BURST, self._allowance + (now - self._counted_at) * PER_SECOND)
        self._counted_at = now
        if self._allowance < 1:
            raise ResourceExhausted("TOO_MANY_COMMANDS", f"send at most {PER_SECOND:g} commands a second")
        self._allowance -= 1

    def _parse(self, tree: Mapping[str, Any]) -> tuple[Command, Mapping[str, Any]]:
        verbs = [key for key in tree if key != "id"]
        known = ", ".join(sorted(self._commands)) or "none"
        if len(verbs) != 1:
            raise InvalidArgument.of("message", f"must hold an id and one command; there are: {known}")
        command, fields = self._commands.get(verbs[0]), tree[verbs[0]]
        if command is None:
            raise NotFound("COMMAND_UNKNOWN", f"there is no command {verbs[0][:60]!r}; there are: {known}")
        if not isinstance(fields, dict):
            raise InvalidArgument.of(verbs[0], "must be a JSON object with the fields of the request, such as {}")
        return command, fields


def _id(tree: Any) -> int | str:
    if not isinstance(tree, dict):
        raise InvalidArgument.of("message", 'must be a JSON object, such as {"id": 1, "cancel": {}}')
    found = tree.get("id")
    if isinstance(found, bool) or not isinstance(found, int | str) or len(str(found)) > _MAX_ID_CHARACTERS:
        raise _bad_id()
    try:
        str(found).encode()
    except UnicodeEncodeError:  # half of a pair of surrogates: JSON can say it, an answer cannot
        raise _bad_id() from None
    return found


def _bad_id() -> InvalidArgument:
    return InvalidArgument.of("id", f"must be a whole number or a string of at most {_MAX_ID_CHARACTERS} characters")


def _serialize(message: Any) -> bytes:
    return message.SerializeToString()
