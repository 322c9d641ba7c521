"""Write services/trainer/algorithms/verl_settings.json from the installed verl:

python -m services.trainer.verl.dump_settings
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from services.trainer.algorithms.overrides import CHOICES, OPEN, SETTINGS_FILE

TYPES = {bool: "boolean", int: "integer", float: "number"}


def listing() -> dict[str, Any]:
    """Types and defaults of all that is open. Raises KeyError for a name that verl no longer has, or a type of none."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        found = {name: _of(compose(name), sections) for name, sections in OPEN.items()}
    return {"verl": version("verl"), "settings": found}


def render() -> str:
    return json.dumps(listing(), indent=1) + "\n"


def _of(config: DictConfig, sections: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    names = [f"{section}.{leaf}" for section, leaves in sections.items() for leaf in leaves]
    return {name: _entry(config, name) for name in names}


def _entry(config: DictConfig, name: str) -> dict[str, Any]:
    default = OmegaConf.select(config, name, throw_on_missing=True, default=KeyError)
    if default is KeyError:
        raise KeyError(f"verl has no setting {name}")
    choices = CHOICES.get(name.rpartition(".")[2])
    if choices is not None:
        return {"choices": list(choices), "default": default}
    return {"type": TYPES[type(default)], "default": default}


if __name__ == "__main__":
    SETTINGS_FILE.write_text(render(), "utf-8")
