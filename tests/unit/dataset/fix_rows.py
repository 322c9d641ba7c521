"""Rows as hypothesis makes them: valid ones of every spelling, and what happens when a few keys go wrong."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.unit.dataset.fix_files import assistant, system, user

Row = dict[str, Any]

# No lone surrogates and no NUL: such rows are refused, and so are texts of white space.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12).filter(
    lambda text: not text.isspace()
)
SCALARS = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    SCALARS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ROLES = {"user": "human", "assistant": "gpt", "system": "system"}


@st.composite
def conversations(draw: st.DrawFn) -> list[Row]:
    turns = [[user(draw(TEXT)), assistant(draw(TEXT))] for _ in range(draw(st.integers(1, 3)))]
    if draw(st.booleans()):
        turns[-1][1]["reasoning_content"] = draw(TEXT)
    start = [system(draw(TEXT))] if draw(st.booleans()) else []
    return [*start, *(message for turn in turns for message in turn)]


def _sharegpt(messages: list[Row]) -> list[Row]:
    return [{"from": ROLES[message["role"]], "value": message["content"]} for message in messages]


MESSAGES = st.one_of(
    st.fixed_dictionaries({"messages": conversations()}),
    st.fixed_dictionaries({"conversations": conversations().map(_sharegpt)}),
    st.fixed_dictionaries({"instruction": TEXT, "output": TEXT}, optional={"input": TEXT, "system": TEXT}),
    st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT}),
    conversations().map(lambda turns: {"prompt": turns[:-1], "completion": turns[-1:]}),
)
_PAIRS = st.fixed_dictionaries({"chosen": TEXT, "rejected": TEXT}).filter(lambda row: row["chosen"] != row["rejected"])


@st.composite
def _preferences(draw: st.DrawFn) -> Row:
    pair = draw(_PAIRS)
    start = draw(conversations())[:-1]
    form = draw(st.sampled_from(["text", "lists", "implicit", "alpaca"]))
    if form in ("text", "alpaca"):
        return {"prompt" if form == "text" else "instruction": draw(TEXT), **pair}
    sides = {key: [assistant(text)] for key, text in pair.items()}
    if form == "lists":
        return {"prompt": start, **sides}
    return {key: [*start, *side] for key, side in sides.items()}


@st.composite
def _prompts(draw: st.DrawFn) -> Row:
    prompt: Any = draw(TEXT | conversations().map(lambda turns: turns[:-1]))
    answer = draw(TEXT | st.integers(-1000, 1000) | st.floats(-1000, 1000))
    key = draw(st.sampled_from(["answer", "solution", "ground_truth", "target", "verl", "none"]))
    if key == "verl":
        return {"prompt": prompt, "reward_model": {"style": "rule", "ground_truth": answer}}
    name = draw(st.sampled_from(["prompt", "question", "problem"]))
    return {name: prompt} if key == "none" else {name: prompt, key: answer}


VALID = {"messages": MESSAGES, "preference": _preferences(), "prompt": _prompts()}
EXTRAS = st.dictionaries(st.sampled_from(["id", "source", "a b", "tags"]), VALUES, max_size=3)
KEYS = ["messages", "conversations", "prompt", "completion", "chosen", "rejected", "answer", "instruction", "output",
        "system", "metadata", "reward_model", "question", "role", "content", "tool_calls", "name", "weight",
        "reasoning_content", "images", "label", "tools"]  # fmt: skip


@st.composite
def valid_rows(draw: st.DrawFn, format_name: str) -> Row:
    return {**draw(VALID[format_name]), **draw(EXTRAS)}


@st.composite
def any_rows(draw: st.DrawFn, format_name: str) -> Row:
    """A valid row, or one with keys taken away, added, or of another type, at the top or in a message."""
    row = draw(valid_rows(format_name))
    for _ in range(draw(st.integers(0, 2))):
        inner = [item for value in row.values() if isinstance(value, list) for item in value if isinstance(item, dict)]
        place = draw(st.sampled_from([row, *inner]))
        if place and draw(st.booleans()):
            del place[draw(st.sampled_from(sorted(place)))]
        else:
            place[draw(st.sampled_from(KEYS))] = draw(VALUES | TEXT | conversations())
    return row
