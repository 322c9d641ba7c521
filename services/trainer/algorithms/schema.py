"""JSON Schema of an algorithm's parameters, with the settings of verl that a job may change among them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from services.mesh.validation import params
from services.trainer.algorithms import Algorithm, algorithms
from services.trainer.algorithms.overrides import open_settings
from services.trainer.training.launch_plan import Device, PlanInputs

OVERRIDES = "verl_overrides"
_NOWHERE = dict.fromkeys(("job", "job_uid", "ray_address", "ray_namespace", "model_path", "train_path", "work_dir"), "")
# So many that one pass over them is a step of any algorithm's defaults.
_ROWS = 65_536


@cache
def schema(name: str) -> dict[str, Any]:
    """Of the algorithm called `name`. `verl_overrides` has a property for each open setting, by its dotted name; other
    keys may stand there too, for a name may also be written as objects in each other. Not to be changed."""
    entry = algorithms.get(name)
    made = params.schema(entry.Params)
    options = made["properties"][OVERRIDES]["anyOf"]
    open_ = next(option for option in options if option.get("type") == "object")
    open_["properties"] = _settings(entry)
    return made


def _settings(entry: type[Algorithm]) -> dict[str, dict[str, Any]]:
    on_cpu, on_cuda = _planned(entry, "cpu"), _planned(entry, "cuda")
    return {
        name: _property(setting, on_cpu.get(name, setting["default"]), on_cuda.get(name, setting["default"]))
        for name, setting in open_settings(entry.Params).items()
    }


def _planned(entry: type[Algorithm], device: Device) -> Mapping[str, Any]:
    """What the algorithm itself sets of verl in a job that sets nothing: that, not verl's, is then the default."""
    inputs = PlanInputs(
        **_NOWHERE,
        attempt=1,
        device=device,
        slots=1,
        train_rows=_ROWS,
        validation_path=None,
        validation_rows=0,
        resume_from=None,
    )
    return entry.plan(entry.Params(), inputs).verl


def _property(setting: Mapping[str, Any], on_cpu: Any, on_cuda: Any) -> dict[str, Any]:
    made = _kind(setting)
    if on_cpu == on_cuda:
        return {**made, "default": on_cpu}
    return {**made, "description": f"{_json(on_cpu)} on a CPU, {_json(on_cuda)} on CUDA where it is left out"}


def _kind(setting: Mapping[str, Any]) -> dict[str, Any]:
    if "choices" not in setting:
        return {"type": setting["type"]}
    words = {"type": "string", "enum": [choice for choice in setting["choices"] if choice is not None]}
    return {"anyOf": [words, {"type": "null"}]} if None in setting["choices"] else words


def _json(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
