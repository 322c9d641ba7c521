"""Path templates of google.api.http, and a router that finds the template a request path fits.

    Template = "/" Segments [ ":" Verb ] ;  Segments = Segment { "/" Segment } ;
    Segment  = "*" | "**" | LITERAL | "{" FieldPath [ "=" Segments ] "}" ;

`*` is one segment that is not empty, `**` any number of them and only at the end. A `:` in the last segment of a
request path starts the verb, as clients percent-encode it inside values. Source: google/api/http.proto.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import unquote

T = TypeVar("T")

_PIECE = re.compile(r"/(?:\{(?P<field>[a-zA-Z_]\w*(?:\.[a-zA-Z_]\w*)*)(?:=(?P<inner>[^{}]+))?\}|(?P<plain>[^/{}:]+))")
_ESCAPED_SLASH = re.compile(r"(%2[fF])")
_BAD_ESCAPE = re.compile(r"%(?![0-9a-fA-F]{2})")


class Wildcard(enum.Enum):
    ONE = "*"
    REST = "**"


@dataclass(frozen=True)
class Variable:
    """A field filled from the segments `start` to `end` of a path; `end` is None when it takes all the rest."""

    field_path: str
    start: int
    end: int | None
    # One `*` and nothing else: `%2F` inside it is a slash. In a longer one it stays as it is.
    single: bool


@dataclass(frozen=True)
class PathTemplate:
    text: str
    # Literals are percent-decoded.
    segments: tuple[str | Wildcard, ...]
    verb: str
    variables: tuple[Variable, ...]

    @classmethod
    def parse(cls, text: str) -> PathTemplate:
        """Raises ValueError when `text` is not a template. `/` alone, which the grammar lacks, is the root."""
        if text == "/":
            return cls(text, ("",), "", ())
        path, verb = _split_verb(text)
        segments: list[str | Wildcard] = []
        variables: list[Variable] = []
        position = 0
        while position < len(path):
            piece = _PIECE.match(path, position)
            if piece is None:
                raise ValueError(f"{text!r} is not a path template at {path[position:]!r}")
            inner = [_segment(part, text) for part in (piece["plain"] or piece["inner"] or "*").split("/")]
            if field := piece["field"]:
                end = None if inner[-1] is Wildcard.REST else len(segments) + len(inner)
                variables.append(Variable(field, len(segments), end, inner == [Wildcard.ONE]))
            segments += inner
            position = piece.end()
        if not segments or Wildcard.REST in segments[:-1]:
            raise ValueError(f"{text!r}: `**` must be the last segment")
        if len({variable.field_path for variable in variables}) < len(variables):
            raise ValueError(f"{text!r} binds a field twice")
        return cls(text, tuple(segments), verb, tuple(variables))

    def capture(self, segments: Sequence[str]) -> dict[str, str]:
        """The decoded text of each variable. Raises ValueError where it is not percent-encoded UTF-8."""
        captured: dict[str, str] = {}
        for variable in self.variables:
            raw = "/".join(segments[variable.start : variable.end])
            captured[variable.field_path] = decode(raw) if variable.single else _decode_all_but_slash(raw)
        return captured


def decode(raw: str) -> str:
    """Percent-decode. Raises ValueError for a broken escape or bytes that are not UTF-8."""
    if "%" not in raw:
        return raw
    if bad := _BAD_ESCAPE.search(raw):
        raise ValueError(f"broken escape at {raw[bad.start() : bad.start() + 3]!r}")
    return unquote(raw, errors="strict")


def _decode_all_but_slash(raw: str) -> str:
    if "%" not in raw:
        return raw
    return "".join(part if _ESCAPED_SLASH.fullmatch(part) else decode(part) for part in _ESCAPED_SLASH.split(raw))


def _split_verb(text: str) -> tuple[str, str]:
    """`/v1/{name=a/*}:cancel` → (`/v1/{name=a/*}`, `cancel`)."""
    tail = max(text.rfind("}"), text.rfind("/"))
    colon = text.rfind(":")
    return (text[:colon], text[colon + 1 :]) if colon > tail else (text, "")


def _segment(part: str, text: str) -> str | Wildcard:
    if part in ("*", "**"):
        return Wildcard(part)
    if not part or "*" in part:
        raise ValueError(f"{text!r} has a bad segment {part!r}")
    return decode(part)


@dataclass(frozen=True)
class Found(Generic[T]):
    value: T
    template: PathTemplate
    # Of the request path, as they were sent, without the verb.
    segments: tuple[str, ...]

    def capture(self) -> dict[str, str]:
        return self.template.capture(self.segments)


class NoRoute(LookupError):
    """No template fits the path (`allowed` is empty), or none for this HTTP method (`allowed` has the others)."""

    def __init__(self, allowed: frozenset[str]) -> None:
        super().__init__(", ".join(sorted(allowed)))
        self.allowed = allowed


class _Node(Generic[T]):
    """One segment of the tree. Targets are keyed by verb, then by HTTP method."""

    __slots__ = ("any", "literals", "rest", "targets")

    def __init__(self) -> None:
        self.literals: dict[str, _Node[T]] = {}
        self.any: _Node[T] | None = None
        self.targets: dict[str, dict[str, tuple[PathTemplate, T]]] = {}
        self.rest: dict[str, dict[str, tuple[PathTemplate, T]]] = {}


class Router(Generic[T]):
    """Templates in a tree by segment. Where several fit, at the first difference a literal goes before `*`, `*` before
    `**`; the order of `add` does not matter."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def add(self, http_method: str, template: PathTemplate, value: T) -> None:
        """`http_method` `*` takes every method. Raises ValueError when the same place is taken."""
        node = self._root
        for segment in template.segments:
            if segment is Wildcard.REST:
                break
            if segment is Wildcard.ONE:
                node.any = node.any or _Node()
                node = node.any
            elif isinstance(segment, str):
                node = node.literals.setdefault(segment, _Node())
        by_verb = node.rest if template.segments[-1] is Wildcard.REST else node.targets
        by_method = by_verb.setdefault(template.verb, {})
        if http_method in by_method:
            raise ValueError(f"{http_method} {template.text} is as {by_method[http_method][0].text}")
        by_method[http_method] = (template, value)

    def find(self, http_method: str, path: str) -> Found[T]:
        """`path` as it was sent, without the query. Raises NoRoute; a path that is badly encoded fits nothing."""
        segments, verb = _split_path(path)
        allowed: set[str] = set()
        for by_method in self._fitting(self._root, segments, 0, verb):
            target = by_method.get(http_method) or by_method.get("*")
            if target is not None:
                return Found(target[1], target[0], segments)
            allowed.update(by_method)
        raise NoRoute(frozenset(allowed))

    def _fitting(
        self, node: _Node[T], segments: tuple[str, ...], depth: int, verb: str
    ) -> Iterator[dict[str, tuple[PathTemplate, T]]]:
        if depth == len(segments):
            if verb in node.targets:
                yield node.targets[verb]
        else:
            segment = segments[depth]
            try:
                literal = node.literals.get(decode(segment))
            except ValueError:
                literal = None
            if literal is not None:
                yield from self._fitting(literal, segments, depth + 1, verb)
            if node.any is not None and segment:
                yield from self._fitting(node.any, segments, depth + 1, verb)
        if verb in node.rest:
            yield node.rest[verb]


def _split_path(path: str) -> tuple[tuple[str, ...], str]:
    if not path.startswith("/"):
        raise NoRoute(frozenset())
    *head, last = path[1:].split("/")
    last, colon, verb = last.rpartition(":") if ":" in last else (last, "", "")
    if colon and not verb:
        raise NoRoute(frozenset())
    try:
        return (*head, last), decode(verb)
    except ValueError:
        raise NoRoute(frozenset()) from None
