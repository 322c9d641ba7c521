"""Models from scratch for the benchmarks, by size. Their weights are random, which changes no time and no memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from services.cli.demo.settings import FULL
from tests.fix_runner import ENVIRONMENT, SPEC

DIGITS = {"kind": "characters", "alphabet": "0123456789"}


def _llama(hidden: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    }


MODELS: dict[str, dict[str, Any]] = {
    "tiny": SPEC,
    # The demonstration's.
    "0.4m": {"config": FULL.config, "tokenizer": DIGITS},
    "1m": {"config": _llama(192, 576, 2, 4), "tokenizer": DIGITS},
    "10m": {"config": _llama(384, 1024, 6, 6), "tokenizer": DIGITS},
    # The shape of SmolLM2-135M: 30 layers of 576, 49,152 tokens.
    "135m": {
        "config": {**_llama(576, 1536, 30, 9), "num_key_value_heads": 3, "max_position_embeddings": 2048},
        # One token a character: digits, then as many others as make 49,152 tokens with the seven special ones.
        "tokenizer": {
            "kind": "characters",
            "alphabet": "0123456789" + "".join(map(chr, range(0x10000, 0x10000 + 49_135))),
        },
    },
}


def make_model(name: str, folder: Path) -> Path:
    """The model's folder, in `folder`."""
    spec = folder / f"{name}.json"
    spec.write_text(json.dumps(MODELS[name]))
    target = folder / name
    command = [sys.executable, "-m", "services.models", "init", str(target), "--spec", str(spec)]
    subprocess.run(command, check=True, env=ENVIRONMENT, capture_output=True)
    return target
