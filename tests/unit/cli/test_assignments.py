from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli import assignments
from services.mesh.errors import InvalidArgument


def test_values_are_json_where_they_can_be_and_text_else() -> None:
    given = ["learning_rate=1e-4", "lora=null", "reward.name=numeric", 'x=["a", 1]', "on=true", 's="3"', "e=", "eq=a=b"]
    assert assignments.parameters(given) == {
        "learning_rate": 1e-4,
        "lora": None,
        "reward": {"name": "numeric"},
        "x": ["a", 1],
        "on": True,
        "s": "3",
        "e": "",
        "eq": "a=b",
    }


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "[NaN]"])
def test_what_json_does_not_know_stays_text(text: str) -> None:
    assert assignments.value(text) == text


def test_dots_nest_and_later_ones_win() -> None:
    assert assignments.parameters(["a.b.c=1", "a.b.d=2", "a.b.c=3"]) == {"a": {"b": {"c": 3, "d": 2}}}


def test_everything_that_cannot_be_read_is_told_at_once() -> None:
    with pytest.raises(InvalidArgument) as caught:
        assignments.parameters(["novalue", "=3", "a..b=1", "lora=null", "lora.rank=8", "fine=1"])
    assert [violation.field for violation in caught.value.violations] == ["--set", "--set", "--set", "--set lora.rank"]


@pytest.mark.parametrize(
    ("name", "text"), [("p.json", '{"steps": 3, "lora": {"rank": 4}}'), ("p.toml", "steps = 3\n[lora]\nrank = 4\n")]
)
def test_a_file_gives_parameters_and_set_wins(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    assert assignments.parameters(["lora.rank=8"], file) == {"steps": 3, "lora": {"rank": 8}}


@pytest.mark.parametrize("text", ["[1]", "{", "\ufeff nonsense"])
def test_a_file_without_an_object_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "p.json"
    file.write_text(text)
    with pytest.raises(InvalidArgument, match=r"p\.json"):
        assignments.parameters([], file)
    with pytest.raises(InvalidArgument, match=r"absent\.json"):
        assignments.parameters([], tmp_path / "absent.json")


@given(st.dictionaries(st.from_regex(r"[a-z]{1,6}", fullmatch=True), st.integers() | st.booleans() | st.none()))
def test_json_scalars_survive(values: dict[str, object]) -> None:
    import json

    assert assignments.parameters([f"{key}={json.dumps(value)}" for key, value in values.items()]) == values


def test_labels() -> None:
    assert assignments.labels(["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}
    with pytest.raises(InvalidArgument):
        assignments.labels(["novalue"])
