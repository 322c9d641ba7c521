"""HTTP/JSON ↔ protobuf as google.api.http says, read off the descriptors: a new RPC needs no code here.

A route takes each field of the request from one place: those of the path template from the path, those that `body`
names from the JSON body (`*`: all the others), and the rest from the query. Source: google/api/http.proto.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

from google.api import annotations_pb2, field_behavior_pb2, http_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

# Packed into google.protobuf.Any by our errors: json_format can print only types that have been imported.
from google.rpc import error_details_pb2 as _details  # noqa: F401

from services.gateway.transcoding.path_templates import PathTemplate
from services.mesh.errors import InvalidArgument, Violation
from services.mesh.rpc import protojson, protojson_printing
from services.mesh.rpc.protojson_scalars import read_scalar, shown

# The stubs type extensions of other packages as plain fields.
_HTTP: Any = annotations_pb2.http
_BEHAVIOR: Any = field_behavior_pb2.field_behavior
_FIELD_MASK = "google.protobuf.FieldMask"
_JSON_IN_QUERY = ("google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue")
_NEVER_UPDATED = {field_behavior_pb2.OUTPUT_ONLY, field_behavior_pb2.IDENTIFIER, field_behavior_pb2.IMMUTABLE}

Query = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Route:
    """One HTTP binding of one method."""

    # Upper case; `*` means any.
    http_method: str
    template: PathTemplate
    # "" none, "*" the whole request, otherwise the field that the body fills.
    body: str
    # "" the whole answer, otherwise the field that is sent.
    response_body: str
    method: MethodDescriptor

    @property
    def rpc_path(self) -> str:
        return f"/{self.method.containing_service.full_name}/{self.method.name}"

    def request(self, captured: Mapping[str, str], query: Query = (), body: bytes = b"") -> Message:
        """The request message. Raises InvalidArgument with everything that is wrong with path, query and body."""
        message = message_factory.GetMessageClass(self.method.input_type)()
        tree = self._tree(body)
        violations = protojson.fill(message, tree)
        violations += self._fill_query(message, query)
        violations += fill_path(message, captured)
        if violations:
            raise InvalidArgument(violations)
        self._derive_mask(message, tree)
        return message

    def answer(self, reply: Message) -> bytes:
        """JSON of the reply, or of the one field that `response_body` names."""
        return to_json(reply, self.response_body)

    def _tree(self, body: bytes) -> dict[str, Any]:
        if not body:
            return {}
        if not self.body:
            raise InvalidArgument([Violation("body", f"{self.method.name} takes no body")], "UNEXPECTED_BODY")
        tree = protojson.loads(body)
        if self.body != "*":
            return {self.body: tree}
        if not isinstance(tree, dict):
            raise InvalidArgument.of("body", f"must be a JSON object (got {shown(tree)})")
        return tree

    def _fill_query(self, message: Message, query: Query) -> list[Violation]:
        if self.body == "*":
            return [Violation(name, "cannot stand in the query: it belongs in the body") for name, _ in query]
        elsewhere = {variable.field_path: "in the path" for variable in self.template.variables}
        if self.body:
            elsewhere[self.body] = "in the body"
        return fill_query(message, query, elsewhere)

    def _derive_mask(self, message: Message, tree: Mapping[str, Any]) -> None:
        """A PATCH without a mask changes the fields that stand in its body, as in gRPC-gateway."""
        if self.http_method != "PATCH" or self.body in ("", "*"):
            return
        masks = [f for f in message.DESCRIPTOR.fields if f.message_type and f.message_type.full_name == _FIELD_MASK]
        if len(masks) != 1 or masks[0].is_repeated:
            return
        mask, resource = getattr(message, masks[0].name), message.DESCRIPTOR.fields_by_name[self.body].message_type
        if not mask.paths and resource is not None and isinstance(tree.get(self.body), dict):
            mask.paths.extend(_present(tree[self.body], resource, ""))


def to_json(message: Message, field: str = "") -> bytes:
    """Proto3 JSON with zero values printed, so that a reader need not know the defaults; `field` picks one field."""
    tree = protojson_printing.tree(message)
    return protojson_printing.dumps(tree.get(message.DESCRIPTOR.fields_by_name[field].json_name) if field else tree)


def routes(service: ServiceDescriptor) -> Iterator[Route]:
    """Every binding of every method. Raises ValueError for an annotation that cannot be served."""
    for method in service.methods:
        options = method.GetOptions()
        if not options.HasExtension(_HTTP):
            continue
        rule = options.Extensions[_HTTP]
        if any(binding.additional_bindings for binding in rule.additional_bindings):
            raise ValueError(f"{method.full_name}: additional_bindings nest one level deep")
        for binding in (rule, *rule.additional_bindings):
            yield _route(method, binding)


def file_downloads(methods: Iterable[MethodDescriptor]) -> Iterator[tuple[MethodDescriptor, str]]:
    """RPCs `DownloadX` of one file of a resource, and their path templates: that of `GetX`, and `:download`."""
    for method in methods:
        get = method.containing_service.methods_by_name.get(method.name.replace("Download", "Get", 1))
        by_path = {"name", "path", "offset_bytes"} <= set(method.input_type.fields_by_name)
        if get is not None and get is not method and method.server_streaming and by_path:
            yield method, f"{get.GetOptions().Extensions[_HTTP].get}:download"


def _route(method: MethodDescriptor, rule: http_pb2.HttpRule) -> Route:
    pattern = rule.WhichOneof("pattern")
    if pattern is None:
        raise ValueError(f"{method.full_name}: a google.api.http rule without a pattern")
    verb, path = (rule.custom.kind, rule.custom.path) if pattern == "custom" else (pattern, getattr(rule, pattern))
    template = PathTemplate.parse(path)
    for variable in template.variables:
        leaf = resolve(method.input_type, variable.field_path)
        if not leaf or leaf[-1].is_repeated or leaf[-1].message_type is not None:
            raise ValueError(f"{method.full_name}: {variable.field_path} is not a single scalar field")
    if rule.body and pattern == "get":
        raise ValueError(f"{method.full_name}: GET has no body")
    if rule.body not in ("", "*") and rule.body not in method.input_type.fields_by_name:
        raise ValueError(f"{method.full_name}: no field {rule.body} for the body")
    if rule.response_body and rule.response_body not in method.output_type.fields_by_name:
        raise ValueError(f"{method.full_name}: no field {rule.response_body} for the answer")
    return Route(verb.upper(), template, rule.body, rule.response_body, method)


def parse_query(raw: str) -> list[tuple[str, str]]:
    """Names and values in order. Raises InvalidArgument for bytes that are not UTF-8."""
    pairs: list[tuple[str, str]] = []
    for part in raw.split("&"):
        if part:
            name, _, value = part.partition("=")
            try:
                pairs.append((unquote_plus(name, errors="strict"), unquote_plus(value, errors="strict")))
            except UnicodeDecodeError:
                raise InvalidArgument.of(shown(name), "is not UTF-8 in the query") from None
    return pairs


def resolve(descriptor: Any, dotted: str) -> list[FieldDescriptor]:
    """The fields along `a.b.c`, in snake or camel case; empty when there is no such field."""
    chain: list[FieldDescriptor] = []
    for part in dotted.split("."):
        field = protojson.fields_by_any_name(descriptor).get(part) if descriptor is not None else None
        if field is None or (chain and chain[-1].is_repeated):
            return []
        chain.append(field)
        descriptor = field.message_type
    return chain


def fill_path(message: Message, captured: Mapping[str, str]) -> list[Violation]:
    """Set fields from the path. One that the body holds too must say the same there."""
    violations: list[Violation] = []
    for path, text in captured.items():
        *parents, leaf = chain = resolve(message.DESCRIPTOR, path)
        if clash := _clash(message, chain):
            violations += clash
            continue
        owner = _descend(message, parents)
        before = getattr(owner, leaf.name)
        try:
            value = read_scalar(leaf, text, as_text=True)
        except ValueError as error:
            violations.append(Violation(path, str(error)))
            continue
        if before not in (leaf.default_value, value):
            violations.append(Violation(path, f"is {shown(text)} in the path and {shown(before)} in the body"))
        setattr(owner, leaf.name, value)
    return violations


def fill_query(message: Message, query: Query, elsewhere: Mapping[str, str]) -> list[Violation]:
    """Set fields from the query. `elsewhere` tells of fields that may not stand there where they belong."""
    violations: list[Violation] = []
    values: dict[tuple[str, ...], list[str]] = {}
    chains: dict[tuple[str, ...], list[FieldDescriptor]] = {}
    for name, text in query:
        chain = resolve(message.DESCRIPTOR, name)
        key = tuple(field.name for field in chain)
        dotted = ".".join(key)
        place = next((where for path, where in elsewhere.items() if f"{dotted}.".startswith(f"{path}.")), "")
        if not chain:
            violations.append(Violation(name, _unknown(message.DESCRIPTOR, elsewhere)))
        elif place:
            violations.append(Violation(dotted, f"cannot stand in the query: it is {place}"))
        else:
            chains[key] = chain
            values.setdefault(key, []).append(text)
    for key, chain in chains.items():
        violations += _set_texts(message, chain, values[key], ".".join(key))
    return violations


def _unknown(descriptor: Any, elsewhere: Mapping[str, str]) -> str:
    known = [field.name for field in descriptor.fields if field.name not in elsewhere]
    return "unknown query parameter; " + (f"one of {', '.join(known)}" if known else "there are none")


def _set_texts(message: Message, chain: list[FieldDescriptor], texts: list[str], path: str) -> list[Violation]:
    *parents, leaf = chain
    kind = leaf.message_type
    if kind is not None and (leaf.is_repeated or not protojson.is_well_known(kind)):
        return [Violation(path, "is not one value: it cannot stand in the query")]
    if len(texts) > 1 and not leaf.is_repeated:
        return [Violation(path, f"is given {len(texts)} times")]
    if clash := _clash(message, chain):
        return clash
    owner = _descend(message, parents)
    violations: list[Violation] = []
    for index, text in enumerate(texts):
        place = f"{path}[{index}]" if leaf.is_repeated else path
        try:
            _set_text(owner, leaf, text, place)
        except InvalidArgument as error:
            violations += error.violations
        except ValueError as error:
            violations.append(Violation(place, str(error)))
    return violations


def _set_text(owner: Message, leaf: FieldDescriptor, text: str, path: str) -> None:
    if leaf.message_type is None:
        if leaf.is_repeated:
            getattr(owner, leaf.name).append(read_scalar(leaf, text, as_text=True))
        else:
            setattr(owner, leaf.name, read_scalar(leaf, text, as_text=True))
        return
    inner, value = getattr(owner, leaf.name), text
    inner.SetInParent()
    wrapped = leaf.message_type.fields_by_name.get("value")
    if leaf.message_type.full_name in _JSON_IN_QUERY:
        value = protojson.loads(text.encode(), path)
    elif wrapped is not None and wrapped.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        value = read_scalar(wrapped, text, as_text=True)
    if violations := protojson.fill_any(inner, value, path):
        raise InvalidArgument(violations)


def _clash(message: Message, chain: Iterable[FieldDescriptor]) -> list[Violation]:
    """What another member of a oneof along the way says against setting this one."""
    path = ""
    for field in chain:
        if clash := protojson.oneof_clash(message, field, path):
            return clash
        message, path = getattr(message, field.name), f"{path}.{field.name}" if path else field.name
    return []


def _descend(message: Message, parents: Iterable[FieldDescriptor]) -> Message:
    for parent in parents:
        message = getattr(message, parent.name)
        message.SetInParent()
    return message


def _present(tree: Mapping[str, Any], descriptor: Any, prefix: str) -> Iterator[str]:
    """Paths of the fields in a JSON object that an update can change. Lists, maps and well-known types count whole.

    An etag is a condition of the update and not its content (AIP-154).
    """
    for key, value in tree.items():
        field = protojson.fields_by_any_name(descriptor)[key]
        behaviours = set(field.GetOptions().Extensions[_BEHAVIOR])
        if behaviours & _NEVER_UPDATED or field.name == "etag":
            continue
        kind = field.message_type
        whole = kind is None or field.is_repeated or protojson.is_well_known(kind)
        if not whole and isinstance(value, dict) and value:
            yield from _present(value, kind, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name
