"""Comments of .proto files by the full name of what they stand above. Source: google/protobuf/descriptor.proto."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from google.protobuf import descriptor_pb2

# Numbers of the repeated fields of FileDescriptorProto, DescriptorProto, … that a location's path goes through.
_CHILDREN: Mapping[str, Mapping[int, str]] = {
    "FileDescriptorProto": {4: "message_type", 5: "enum_type", 6: "service"},
    "DescriptorProto": {2: "field", 3: "nested_type", 4: "enum_type"},
    "EnumDescriptorProto": {2: "value"},
    "ServiceDescriptorProto": {2: "method"},
}


def read_comments(files: Iterable[descriptor_pb2.FileDescriptorProto]) -> dict[str, str]:
    """Paragraphs with an empty line between them. The files must hold their source info."""
    return {name: text for file in files for name, text in _of_file(file)}


def _of_file(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[str, str]]:
    for location in file.source_code_info.location:
        text = location.leading_comments or location.trailing_comments
        name = _name(file, location.path) if text else ""
        if name:
            yield name, _joined(text)


def _name(file: descriptor_pb2.FileDescriptorProto, path: Sequence[int]) -> str:
    """Empty for what has no name of its own, such as an option."""
    node: Any = file
    names = [file.package]
    for field, index in zip(path[::2], path[1::2], strict=False):
        child = _CHILDREN.get(node.DESCRIPTOR.name, {}).get(field)
        if child is None:
            return ""
        node = getattr(node, child)[index]
        names.append(node.name)
    return ".".join(names) if len(path) % 2 == 0 and len(names) > 1 else ""


def _joined(text: str) -> str:
    """Lines were broken for the width of the file: they are joined again."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return "\n\n".join(" ".join(line.strip() for line in paragraph.splitlines()) for paragraph in paragraphs)


def in_words(name: str) -> str:
    """`ListTrainingJobs` → `List training jobs`."""
    return re.sub(r"(?<!^)(?=[A-Z])", " ", name).capitalize()
