"""Printing against google.protobuf.json_format: the messages of the contract, and one with every kind of field."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf import any_pb2, json_format, message_factory, struct_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from rlhf.dataset.v1 import dataset_pb2, dataset_service_pb2
from rlhf.trainer.v1 import trainer_service_pb2

from services.mesh.rpc import protojson_printing
from services.mesh.rpc.protojson import is_map
from tests.fix_http_descriptors import compile_service

SCALARS = "double float int32 int64 uint32 uint64 sint32 sint64 fixed32 fixed64 sfixed32 sfixed64 bool string bytes"
WELL_KNOWN = """
    Timestamp Duration FieldMask Struct Value ListValue Any NullValue DoubleValue FloatValue Int64Value UInt64Value
    Int32Value UInt32Value BoolValue StringValue BytesValue
"""
KINDS = [*SCALARS.split(), *(f"google.protobuf.{name}" for name in WELL_KNOWN.split()), "Color", "Every"]
KEYS = [kind for kind in SCALARS.split() if kind not in ("double", "float", "bytes")]


def source() -> str:
    fields = [f"{kind} one_{n} = {n + 1};" for n, kind in enumerate(KINDS)]
    fields += [f"optional {kind} maybe_{n} = {n + 101};" for n, kind in enumerate(KINDS)]
    fields += [f"repeated {kind} many_{n} = {n + 201};" for n, kind in enumerate(KINDS)]
    fields += [f"map<string, {kind}> map_{n} = {n + 301};" for n, kind in enumerate(KINDS)]
    fields += [f"map<{key}, string> by_{n} = {n + 401};" for n, key in enumerate(KEYS)]
    fields += [f"oneof either {{ {' '.join(f'{kind} either_{n} = {n + 501};' for n, kind in enumerate(KINDS))} }}"]
    colors = "enum Color { option allow_alias = true; RED = 0; ROSE = 0; BLUE = -7; }"
    return f"{colors} message Every {{ {' '.join(fields)} }} service S {{ rpc Get(Every) returns (Every); }}"


def types() -> Iterator[Any]:
    """What the services take and answer."""
    for contract in (dataset_service_pb2, trainer_service_pb2):
        for service in contract.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield method.input_type
                yield method.output_type


EVERY = compile_service("printing", source()).methods_by_name["Get"].input_type
SMALL = {
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_ENUM: st.integers(-8, 8),
    FieldDescriptor.CPPTYPE_STRING: st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
}


def fill(draw: Callable[[Any], Any], message: Any, depth: int = 0) -> None:
    """Set some fields to something."""
    if isinstance(message, any_pb2.Any):
        message.Pack(draw(st.sampled_from([dataset_pb2.Dataset(name="d"), struct_pb2.Value(bool_value=True)])))
        return
    fields = [f for f in message.DESCRIPTOR.fields if depth < 3 or f.message_type is None]
    for field in draw(st.lists(st.sampled_from(fields), max_size=6, unique_by=id)) if fields else []:
        set_one(draw, message, field, depth)


def set_one(draw: Callable[[Any], Any], message: Any, field: Any, depth: int) -> None:
    target = getattr(message, field.name)
    if is_map(field):
        key, value = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
        for one in draw(st.lists(scalars(key), max_size=2)):
            if value.message_type is None:
                target[one] = draw(scalars(value))
            else:
                fill(draw, target[one], depth + 1)
    elif field.message_type is not None:
        for one in [target.add() for _ in range(draw(st.integers(0, 2)))] if field.is_repeated else [target]:
            if not field.is_repeated:
                one.SetInParent()
            fill(draw, one, depth + 1)
    elif field.is_repeated:
        target.extend(draw(st.lists(scalars(field), max_size=3)))
    else:
        setattr(message, field.name, draw(scalars(field)))


def scalars(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    return st.binary(max_size=4) if field.type == FieldDescriptor.TYPE_BYTES else SMALL[field.cpp_type]


@st.composite
def messages(draw: Any, descriptors: st.SearchStrategy[Any]) -> Message:
    message = message_factory.GetMessageClass(draw(descriptors))()
    fill(draw, message)
    return message


def expected(message: Message) -> Any:
    return json_format.MessageToDict(message, always_print_fields_with_no_presence=True)


@given(messages(st.one_of(st.just(EVERY), st.sampled_from(list(types())))))
def test_prints_as_json_format(message: Message) -> None:
    try:
        wanted = expected(message)
    except (json_format.Error, ValueError):
        with pytest.raises((json_format.Error, ValueError)):
            protojson_printing.tree(message)
        return
    found = protojson_printing.tree(message)
    assert found == wanted
    assert json.loads(protojson_printing.dumps(found)) == json.loads(json.dumps(wanted))


@pytest.mark.parametrize("descriptor", [EVERY, *types()], ids=lambda descriptor: descriptor.name)
def test_prints_zero_values_as_json_format(descriptor: Any) -> None:
    message = message_factory.GetMessageClass(descriptor)()
    assert protojson_printing.tree(message) == expected(message)
    assert message.ByteSize() == 0  # nothing was set by looking


def test_one_of_every_kind_is_printed() -> None:
    """Values that differ from zero, so that a kind which is not printed shows."""
    message: Any = message_factory.GetMessageClass(EVERY)()
    zeros: dict[Any, Any] = {FieldDescriptor.CPPTYPE_STRING: "é", FieldDescriptor.CPPTYPE_BOOL: True}
    for field in EVERY.fields:
        if field.message_type is None and not field.is_repeated:
            value = b"\xff" if field.type == FieldDescriptor.TYPE_BYTES else zeros.get(field.cpp_type, 1)
            setattr(message, field.name, value)
    found = protojson_printing.tree(message)
    assert found == expected(message)
    assert found["one3"] == "1" and found["one0"] == 1.0 and found["one13"] == "é" and found["one14"] == "/w=="


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_json_cannot_hold_is_an_error(number: float) -> None:
    with pytest.raises(ValueError, match="number_value"):
        protojson_printing.tree(struct_pb2.Value(number_value=number))


def test_whole_numbers_of_a_struct_are_printed_whole() -> None:
    values = {
        "steps": 8,
        "rate": 1e-5,
        "sizes": [1, 2.5],
        "lora": {"rank": 16, "far": 1e300},
        "text": "8.0",
        "on": True,
    }
    made = json_format.ParseDict(values, struct_pb2.Struct())
    text = protojson_printing.dumps(protojson_printing.tree(made)).decode()
    printed = json.loads(text)
    assert printed == values
    # Equal numbers may differ in their spelling.
    assert [repr(number) for number in (printed["steps"], *printed["sizes"], printed["lora"]["rank"])] == [
        *("8", "1", "2.5", "16")
    ]
    assert json_format.ParseDict(printed, struct_pb2.Struct()) == made
