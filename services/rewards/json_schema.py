"""Answers that have to be JSON of a given shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from services.mesh.validation.params import STRICT_FIELDS
from services.rewards import RewardSample, Rule, Score, rewards
from services.scoring import json_schema


def _is_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema itself. Raises ValueError, which becomes a violation of this field."""
    json_schema.Schema(schema)
    return schema


@dataclass(frozen=True)
class JsonSchemaParams:
    schema: Annotated[
        dict[str, Any],
        AfterValidator(_is_schema),
        Field(description="JSON Schema, draft 2020-12; references stay within it, patterns are RE2"),
    ]
    look_in: Annotated[
        json_schema.Where,
        Field(description="where the document stands: the whole text, its last ``` block, last line, after a marker"),
    ] = "whole"
    marker: Annotated[
        str, Field(min_length=1, max_length=200, description="the text before the document, for after_marker")
    ] = "Answer:"
    parsed_score: Annotated[
        float, Field(ge=0, le=1, description="what a JSON document is worth that the schema does not allow")
    ] = 0.0
    __pydantic_config__ = STRICT_FIELDS


@rewards.register("json_schema")
class JsonSchema(Rule):
    """1 where the completion, or a part of it, is JSON that a schema allows, else 0.

    score = valid, or `parsed_score` where the text is JSON and the schema does not hold. Parts: `valid`; `parsed`;
    `located`, 1 where the completion has the place that `look_in` names; `cut`, 1 where validation took more steps than
    any honest document does, which scores as not valid.

    Validated by jsonschema (https://json-schema.org/draft/2020-12). A document over 64 KiB or 32 levels is none. Form
    alone is easily learned empty: require the properties that matter, and add a reward for what they say (`weighted`).
    """

    Params = JsonSchemaParams

    @staticmethod
    def score(samples: Sequence[RewardSample], params: JsonSchemaParams) -> list[Score]:
        schema = json_schema.Schema(params.schema)
        return [_score(sample, params, schema) for sample in samples]


def _score(sample: RewardSample, params: JsonSchemaParams, schema: json_schema.Schema) -> Score:
    text = json_schema.locate(sample.completion, params.look_in, params.marker)
    verdict = schema.judge(text) if text is not None else json_schema.Verdict(parsed=False, valid=False)
    score = 1.0 if verdict.valid else params.parsed_score if verdict.parsed else 0.0
    parts = {
        "valid": float(verdict.valid),
        "parsed": float(verdict.parsed),
        "located": float(text is not None),
        "cut": float(verdict.cut),
    }
    return Score(score, parts)
