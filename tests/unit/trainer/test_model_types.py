"""A model type that transformers does not have is refused at import, with the ones that may be meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from services.models.initialise import initialise
from services.models.inspection import UnusableModelError, inspect


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "lama"}, "knows no model_type 'lama'; did you mean llama"),
        ({"model_type": "Qwen_2"}, "did you mean qwen2"),
        ({"model_type": "xyzzy"}, "knows no model_type 'xyzzy'; import a model of a type that it has$"),
        (
            {"model_type": "xyzzy", "auto_map": {"AutoConfig": "x.Y"}},
            r"code of the model's own \(auto_map\) is never run$",
        ),
        ({"model_type": 7}, "^config.json: model_type is 7; it must be a name"),
        ({}, "^config.json: there is no model_type"),
    ],
)
def test_an_unknown_type_names_the_near_ones(config: dict[str, object], said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UnusableModelError, match=said):
        inspect(tmp_path)


def test_so_does_one_for_a_model_from_scratch(tmp_path: Path) -> None:
    spec = {"config": {"model_type": "lama"}, "tokenizer": {"kind": "characters", "alphabet": "01"}}
    with pytest.raises(ValueError, match="did you mean llama"):
        initialise(spec, 0, tmp_path / "model")
