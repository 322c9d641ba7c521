"""What a training state says of itself, so that a resume proves that it has taken everything up.

verl restores what it finds and only warns of what it does not. Here each training worker writes beside its state what
its optimizer, its schedule, its weights and its random numbers were, and compares after loading.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from services.models import adapter_sums
from services.models.probe import PROBE_FILE, Probe, probe_tokens, shown

# Sums in another order than they were first taken in.
RELATIVE_TOLERANCE = 1e-6
SAMPLER_FILE = "sampler.json"


def watch_engine(module: Any) -> None:
    """Make verl's FSDP engine write its fingerprint and its probe with each state, and check the first on loading."""
    save, load = module.FSDPEngine.save_checkpoint, module.FSDPEngine.load_checkpoint

    def save_and_write(engine: Any, local_path: str, *args: Any, **kwargs: Any) -> None:
        save(engine, local_path, *args, **kwargs)
        folder = Path(local_path)
        _file(folder).write_text(json.dumps(of_engine(engine), indent=1))
        # Of a critic nothing is exported.
        if not isinstance(engine, module.FSDPEngineWithValueHead):
            _write_probe(engine, folder / PROBE_FILE)

    def load_and_check(engine: Any, local_path: str, *args: Any, **kwargs: Any) -> None:
        load(engine, local_path, *args, **kwargs)
        saved = _file(Path(local_path))
        # States of earlier releases have none.
        if saved.exists():
            check(json.loads(saved.read_text()), of_engine(engine))

    module.FSDPEngine.save_checkpoint, module.FSDPEngine.load_checkpoint = save_and_write, load_and_check


def of_engine(engine: Any) -> dict[str, Any]:
    """Of this worker's own shard; JSON values only, so that what was written compares with what is there."""
    found: dict[str, Any] = {"rng": _rng(), "weights": _sums(engine.module.parameters())}
    if engine.optimizer is not None:
        found["optimizer"] = _optimizer(engine.optimizer)
    if getattr(engine, "lr_scheduler", None) is not None:
        state = engine.lr_scheduler.state_dict()
        found["scheduler"] = {key: state[key] for key in ("last_epoch", "_last_lr") if key in state}
    return found


def check(saved: dict[str, Any], loaded: dict[str, Any]) -> None:
    """Raises ValueError that names what differs."""
    different = [
        f"{name} (saved {_shown(saved.get(name))}, resumed {_shown(loaded.get(name))})"
        for name in sorted(saved.keys() | loaded.keys())
        if not _same(saved.get(name), loaded.get(name))
    ]
    if different:
        raise ValueError(f"the training state was not taken up as it was saved: {'; '.join(different)}")


def write_position(folder: Path, step: int, loader: Any) -> None:
    """Beside a training state: where the StatefulDataLoader stood that its rows come from."""
    position = {"step": step, "rows": len(loader.dataset), "batches": loader.state_dict()["_num_yielded"]}
    (folder / SAMPLER_FILE).write_text(json.dumps(position))


def check_position(folder: Path, step: int, loader: Any) -> None:
    """Raises ValueError where `loader`, which has been given a state and no row has been asked of, stands elsewhere.

    At the end of a pass it stands at its end or, a new one, at the beginning of the next.
    """
    path = folder / SAMPLER_FILE
    if not path.exists():
        return
    saved = json.loads(path.read_text())
    # Asked for its state it would begin the pass, before it is told which one it is.
    given = (loader.next_iter_state or {}).get("_num_yielded", 0)
    found = {"step": step, "rows": len(loader.dataset), "batches": given % len(loader)}
    check({**saved, "batches": saved["batches"] % len(loader)}, found)


def _optimizer(optimizer: Any) -> dict[str, Any]:
    states = [optimizer.state[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    return {
        "groups": [[float(group["lr"]), *map(float, group["betas"])] for group in optimizer.param_groups],
        "updates": sorted({float(state["step"]) for state in states if "step" in state}),
        "moments": [_sums(state[name] for state in states if name in state) for name in ("exp_avg", "exp_avg_sq")],
    }


def _sums(tensors: Iterable[torch.Tensor]) -> list[float]:
    """Number of elements, their sum and the sum of their absolutes, of this worker's shards."""
    count, total, absolute = 0, 0.0, 0.0
    with torch.no_grad():
        for tensor in tensors:
            local: Any = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[attr-defined]
            count += local.numel()
            total += local.double().sum().item()
            absolute += local.double().abs().sum().item()
    return [float(count), total, absolute]


def _rng() -> dict[str, str]:
    numpy_state: Any = np.random.get_state(legacy=True)
    states = {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": repr([np.asarray(part).tolist() for part in numpy_state[1:]]).encode(),
        "python": repr(random.getstate()).encode(),
    }
    return {name: hashlib.sha256(state).hexdigest()[:16] for name, state in states.items()}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float | int) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=RELATIVE_TOLERANCE, abs_tol=1e-12) or (one != one and other != other)
    return one == other


def _shown(value: Any) -> str:
    return json.dumps(value)[:120]


def _file(folder: Path) -> Path:
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    return folder / f"fingerprint_rank_{rank}.json"


def _write_probe(engine: Any, path: Path) -> None:
    """What the weights that are being trained answer to the probe; every worker takes part, the first one writes."""
    config = engine.module.config
    dtype = getattr(engine, "_autocast_dtype", torch.float32)
    tokens = probe_tokens(config.vocab_size, getattr(config, "max_position_embeddings", None))
    if engine.ulysses_sequence_parallel_size > 1:
        # One row of a few tokens is not to be cut up.
        return
    training = engine.module.training
    with engine.eval_mode(), torch.no_grad():
        _reshard(engine.module)
        adapter = adapter_sums.of_model(engine.module)
        device = next(engine.module.parameters()).device.type
        computing = nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype=dtype)
        with computing:
            input_ids = torch.tensor([tokens], device=device)
            output = engine.module(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), use_cache=False)
    engine.module.train(training)
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        found = Probe(dtype=str(dtype).removeprefix("torch."), logprobs=shown(output.logits), adapter=adapter)
        path.write_bytes(msgspec.json.encode(found))


def _reshard(module: Any) -> None:
    """Give up what a pass has gathered: in what it computes in, which may be shorter than what is trained."""
    for part in module.modules():
        if hasattr(part, "reshard"):
            part.reshard()
