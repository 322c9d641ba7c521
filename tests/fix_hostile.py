"""Messages that have the shape their descriptor wants and hold what a hostile or confused caller puts into it."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Iterator
from typing import Any

from google.api import resource_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import DecodeError, Message

Numbers = random.Random

PROJECT = "projects/default"
# By resource type: names of what a test has made, so that calls get past the door.
REAL = {
    "rlhf.dev/Dataset": f"{PROJECT}/datasets/d",
    "rlhf.dev/DatasetVersion": f"{PROJECT}/datasets/d/versions/1",
    "rlhf.dev/Upload": f"{PROJECT}/datasets/d/uploads/01a20afa-2c35-705e-b846-069c0b8ec42c",
    "rlhf.dev/Model": f"{PROJECT}/models/base",
    "rlhf.dev/TrainingJob": f"{PROJECT}/trainingJobs/j",
    "rlhf.dev/Checkpoint": f"{PROJECT}/trainingJobs/j/checkpoints/step-1",
}
# Names of the right kind or not, in form or not.
NAMES = (
    PROJECT,
    *REAL.values(),
    "projects/default/datasets/d/versions/latest",
    "projects/default/datasets/../../etc",
    "projects/default/datasets/d/versions/99999999999999999999999999",
    "projects/default/datasets/d/versions/-1",
    "projects//datasets/d",
    "projects/default/datasets/",
    "projects/-",
    "/etc/passwd",
    "hf:../../x",
)
TEXTS = (
    "",
    " ",
    "a",
    "1",
    "-1",
    "\0",
    "a\0b",
    "../../../../etc/passwd",
    "..\\..\\x",
    "%2e%2e%2f",
    "'; DROP TABLE jobs; --",
    "%s%n{0}${HOME}`id`",
    "\u202egnp.exe",
    "\ufeff\u200b\U0010ffff",
    "é" * 300,
    "x" * 70_000,
    "[" * 5000,
    "(a+)+$",
    "\r\nX-Injected: 1",
    "NaN",
    "1e999",
)
_INTEGERS = (0, 1, -1, 2, 7, 1000, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 2**64 - 1)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-320, 1.7e308, float("nan"), float("inf"), float("-inf"))
_BYTES = (b"", b"\0", b"\xff\xfe\xed\xa0\x80", b"{" * 4096, b"x" * 100_000)
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_DEEPEST = 5


def methods() -> Iterator[MethodDescriptor]:
    """Every method of every service of the contract."""
    from rlhf.dataset.v1 import dataset_service_pb2
    from rlhf.trainer.v1 import trainer_service_pb2

    for file in (dataset_service_pb2, trainer_service_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            yield from service.methods


def message_of(descriptor: Descriptor, numbers: Numbers, depth: int = 0) -> Message:
    """A random message; some fields stay unset."""
    message = message_factory.GetMessageClass(descriptor)()
    if descriptor.full_name == "google.protobuf.Struct":
        message.update(_structure(numbers, depth))  # type: ignore[attr-defined]
        return message
    for field in descriptor.fields:
        if numbers.random() < 0.75:
            _fill(message, field, numbers, depth)
    return message


def _fill(message: Message, field: FieldDescriptor, numbers: Numbers, depth: int) -> None:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        for _ in range(numbers.randrange(4)):
            key = _value(kind.fields_by_name["key"], numbers)
            if kind.fields_by_name["value"].message_type is None:
                getattr(message, field.name)[key] = _value(kind.fields_by_name["value"], numbers)
    elif kind is not None:
        if depth < _DEEPEST:
            values = [
                message_of(kind, numbers, depth + 1) for _ in range(numbers.randrange(3) if field.is_repeated else 1)
            ]
            # A value that is nested deeper than protobuf reads can't be put in by copying, which writes and reads it.
            with contextlib.suppress(DecodeError):
                if field.is_repeated:
                    getattr(message, field.name).extend(values)
                else:
                    getattr(message, field.name).CopyFrom(values[0])
    elif field.is_repeated:
        getattr(message, field.name).extend(_value(field, numbers) for _ in range(numbers.choice((0, 1, 3, 200))))
    else:
        setattr(message, field.name, _value(field, numbers))


def _value(field: FieldDescriptor, numbers: Numbers) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            return numbers.choice((*_BYTES, numbers.randbytes(64)))
        return _text(field, numbers)
    if field.cpp_type in _RANGES:
        if numbers.random() < 0.4:
            return numbers.randrange(3)
        lowest, highest = _RANGES[field.cpp_type]
        return numbers.choice([number for number in _INTEGERS if lowest <= number <= highest])
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return numbers.random() < 0.5
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return numbers.choice((0, 1, 2, 99, -1, 2**31 - 1))
    if field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT:
        return struct.unpack("f", struct.pack("f", numbers.choice(_FLOATS[:4] + _FLOATS[6:])))[0]
    return numbers.choice(_FLOATS)


def _text(field: FieldDescriptor, numbers: Numbers) -> str:
    extension: Any = resource_pb2.resource_reference
    reference: Any = field.GetOptions().Extensions[extension]
    if reference.type and numbers.random() < 0.6:
        return REAL[reference.type]
    if reference.child_type and numbers.random() < 0.6:
        return REAL[reference.child_type].rsplit("/", 2)[0]
    if field.name in ("page_token", "etag", "request_id", "order_by") and numbers.random() < 0.6:
        return ""
    return numbers.choice(NAMES if numbers.random() < 0.4 else TEXTS)


# What the parameters of algorithms and models are called: a known key gets further than an unknown one.
_KEYS = ("batch_size", "max_length", "steps", "epochs", "learning_rate", "lora", "rank", "validation", "rows", "reward")
_KEYS += ("name", "save_every_steps", "seed", "hidden_size", "vocab_size", "model_type", "alphabet", "kind", "auto_map")


def _structure(numbers: Numbers, depth: int) -> dict[str, Any]:
    return {numbers.choice(_KEYS + TEXTS[:8]): _json(numbers, depth) for _ in range(numbers.randrange(8))}


def _json(numbers: Numbers, depth: int) -> Any:
    if depth < _DEEPEST and numbers.random() < 0.3:
        return _structure(numbers, depth + 1)
    if numbers.random() < 0.03:
        deep: Any = 1
        for _ in range(90):  # protobuf itself refuses more than a hundred levels
            deep = [deep]
        return deep
    return numbers.choice((None, True, *_FLOATS, 2.0**53, -7.0, *TEXTS, [], [1, "a", None], {}))
