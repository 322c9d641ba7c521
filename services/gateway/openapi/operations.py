"""One operation for each HTTP binding of each RPC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.gateway.openapi import errors, parameters
from services.gateway.openapi.comments import in_words
from services.gateway.openapi.scalars import Schema
from services.gateway.openapi.schemas import Schemas, Use, is_required
from services.gateway.streams.websocket_commands import command_routes
from services.gateway.transcoding.path_templates import PathTemplate
from services.gateway.transcoding.transcoder import Route

# A browser cannot send headers where it opens a WebSocket or follows a link.
WITH_TICKET = [{"bearer": []}, {"ticket": []}]
_STREAM = """
Three ways to read it, on this one path:

- `Accept: text/event-stream`: server-sent events. `data` is one message; `id` is its cursor, where the stream has one,
  and `Last-Event-ID` goes on after it. `event: end` is a regular end, `event: error` holds problem details. Who comes
  back for more than there is gets 204.
- anything else: one message on each line (`application/x-ndjson`). The last line is `{"error": …}` with problem details
  when the stream breaks off.
- `Upgrade: websocket`: one message in each text frame; closed with 1000 at a regular end, else with a code and a
  reason.

A message without content is a heartbeat. A reader that is too slow is cut off with a reason."""
_COMMANDS = """
Over the WebSocket commands go the other way: {}. Each is answered with `{{"id": 1, "result": …}}` or
`{{"id": 1, "error": <problem details>}}`."""
_EVENTS = "`id: <cursor>`, `data: <one message>` and an empty line for each message."


class Operations:
    """`comments` and `wildcards` are of the whole contract: full name → text, collection → name of its parameter."""

    def __init__(self, schemas: Schemas, comments: Mapping[str, str], wildcards: Mapping[str, str]) -> None:
        self.schemas = schemas
        self._comments = comments
        self._wildcards = wildcards

    def path(self, template: PathTemplate) -> tuple[str, list[Schema]]:
        return parameters.path_of(template, self._wildcards)

    def head(self, method: Any, operation_id: str = "") -> Schema:
        """What every operation of a method begins with."""
        text = self._comments.get(method.full_name, "")
        return {
            "operationId": operation_id or method.name,
            "tags": [method.containing_service.name],
            "summary": in_words(method.name),
            "description": text or f"{in_words(method.name)}.",
        }

    def of(self, route: Route, index: int) -> tuple[str, str, Schema]:
        """Path, HTTP method in lower case, and operation; `index` counts the bindings of the method."""
        path, in_path = self.path(route.template)
        made = self.head(route.method, route.method.name + (f"_{index}" if index else ""))
        made["parameters"] = [*in_path, *self._query(route)]
        if route.body:
            made["requestBody"] = self._body(route)
        if route.method.server_streaming:
            self._add_stream(made, route)
        else:
            self._add_answer(made, route)
        made["responses"] |= errors.references(_statuses(route.http_method, bool(in_path)))
        return path, route.http_method.lower(), made

    def _query(self, route: Route) -> list[Schema]:
        if route.body == "*":
            return []
        elsewhere = {variable.field_path for variable in route.template.variables} | {route.body}
        return parameters.query_parameters(self.schemas, route.method.input_type, elsewhere)

    def _body(self, route: Route) -> Schema:
        request: Any = route.method.input_type
        in_path = {variable.field_path for variable in route.template.variables}
        if route.body == "*":
            schema, text, required = self.schemas.message(request, Use.REQUEST, in_path), "", False
        else:
            field = request.fields_by_name[route.body]
            use = Use.PATCH if route.http_method == "PATCH" else Use.INPUT
            schema = (
                self.schemas.value(field, use)
                if use is Use.INPUT or field.message_type is None
                else self.schemas.message(field.message_type, use)
            )
            text, required = self._comments.get(field.full_name, ""), is_required(field)
        body: Schema = {"content": {"application/json": {"schema": schema}}, "required": required}
        return {"description": text, **body} if text else body

    def _add_answer(self, made: Schema, route: Route) -> None:
        reply: Any = route.method.output_type
        names = ["X-Request-Id"]
        made["parameters"] += parameters.common("RequestTimeout")
        if route.http_method == "GET":
            made["parameters"] += parameters.common("IfNoneMatch")
            names.append("ETag")
        if route.response_body:
            schema = self.schemas.value(reply.fields_by_name[route.response_body], Use.ANSWER)
        else:
            schema = self.schemas.message(reply, Use.ANSWER)
        answer = {"description": "Done.", "content": {"application/json": {"schema": schema}}}
        made["responses"] = {"200": {**answer, "headers": errors.header_references(*names)}}
        if route.http_method == "GET":
            made["responses"]["304"] = not_modified()

    def _add_stream(self, made: Schema, route: Route) -> None:
        message = self.schemas.message(route.method.output_type, Use.ANSWER)
        made["description"] += f"\n{_STREAM}"
        if verbs := [f'`{{"id": 1, "{each.template.verb}": {{}}}}`' for each in command_routes(route)]:
            made["description"] += "\n" + _COMMANDS.format(", ".join(verbs))
        if any(field.name.startswith("after_") for field in route.method.input_type.fields):
            made["parameters"] += parameters.common("LastEventId")
        made["security"] = WITH_TICKET
        made["responses"] = {
            "101": {"description": "The WebSocket is open."},
            "200": {
                "description": "Messages as they come, until the stream ends.",
                "headers": errors.header_references("X-Request-Id"),
                "content": {
                    "application/x-ndjson": {"schema": message},
                    "text/event-stream": {"schema": {"type": "string", "description": _EVENTS}},
                },
            },
            "204": {"description": "Over already; sent to server-sent events that come back."},
        }


def not_modified() -> Schema:
    return {
        "description": "Nothing has changed since the answer with the `ETag` in `If-None-Match`.",
        "headers": errors.header_references("X-Request-Id", "ETag"),
    }


def _statuses(http_method: str, has_resource: bool) -> list[int]:
    more = ([404] if has_resource else []) + ([409] if http_method != "GET" else [])
    return [*errors.ANYWHERE, *more]
