"""Changes to modules of verl and TransferQueue, made right after each is first imported.

A module that a process never needs is never imported for the sake of a hook. Each hook says what it changes and why;
they touch private names, so verl and TransferQueue are pinned exactly.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

Hook = Callable[[Any], None]
# The name under which verl's configuration chooses our rollout engine.
ROLLOUT = "transformers"


def install(table: dict[str, Hook]) -> None:
    """Run each hook on its module: now where it is already imported, else as soon as it is."""
    pending = {}
    for name, hook in table.items():
        if name in sys.modules:
            hook(sys.modules[name])
        else:
            pending[name] = hook
    if pending:
        sys.meta_path.insert(0, _Finder(pending))


class _Loader(importlib.abc.Loader):
    def __init__(self, inner: importlib.abc.Loader, hook: Hook) -> None:
        self._inner = inner
        self._hook = hook

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._inner.exec_module(module)
        self._hook(module)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, pending: dict[str, Hook]) -> None:
        self._pending = pending

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        hook = self._pending.pop(fullname, None)
        if hook is None:
            return None
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        spec.loader = _Loader(spec.loader, hook)
        return spec


def cpu_engines(module: Any) -> None:
    """verl's own FSDP engines, registered for device "cpu" too; pinned memory needs a GPU."""
    from verl.workers.engine.base import EngineRegistry

    register = EngineRegistry.register
    register("language_model", ["fsdp", "fsdp2"], device="cpu")(module.FSDPEngineWithLMHead)
    register("value_model", ["fsdp", "fsdp2"], device="cpu")(module.FSDPEngineWithValueHead)
    policy = module.CPUOffloadPolicy
    module.CPUOffloadPolicy = lambda pin_memory=False: policy(pin_memory=False)


def cpu_process_group(module: Any) -> None:
    """verl asks torch for "cpu:gloo,cpu:gloo", which is refused for naming a device twice."""
    original = module.initialize_global_process_group_ray

    def from_ray(timeout_second: int | None = None, backend: str | None = None) -> Any:
        return original(timeout_second=timeout_second, backend=backend or "cpu:gloo")

    def plain(timeout_second: int = 36000) -> tuple[int, ...]:
        module.initialize_global_process_group_ray(timeout_second)
        return tuple(int(os.environ[key]) for key in ("LOCAL_RANK", "RANK", "WORLD_SIZE"))

    module.initialize_global_process_group_ray = from_ray
    module.initialize_global_process_group = plain
    # NUMA affinity is found out through NVML.
    module.set_numa_affinity = lambda: None


def cpu_replica(module: Any) -> None:
    """Our rollout engine among verl's."""

    def load() -> Any:
        from services.trainer.verl.rollout import TransformersReplica

        return TransformersReplica

    module.RolloutReplicaRegistry.register(ROLLOUT, load)


def cpu_adapter(module: Any) -> None:
    """The half of our rollout engine that lives in the training worker."""
    module._ROLLOUT_REGISTRY[ROLLOUT, "async"] = "services.trainer.verl.rollout.TransformersAdapter"


def queue_controller(module: Any) -> None:
    """TransferQueue's controller is a named actor in one fixed namespace, so two jobs of one Ray cluster would share a
    queue and delete each other's rows. Put it into the namespace of the job; and see `queue_storage`.
    """
    module.ray = _Changed(module.ray, "get_actor", _in_job_namespace)
    module.TransferQueueController = _Changed(
        module.TransferQueueController, "options", lambda options: {**_in_job_namespace(options), "num_cpus": 0}
    )


def queue_storage(module: Any) -> None:
    """The queue's actors want a CPU each, outside the slots of their job: two jobs that have taken their slots could
    then wait for each other's CPUs for ever. They do nothing while others compute, so let them want none.
    """
    module.SimpleStorageUnit = _Changed(module.SimpleStorageUnit, "options", lambda options: {**options, "num_cpus": 0})


def _in_job_namespace(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "namespace"}


class _Changed:
    """Everything of `inner`, except that the keyword arguments of `method` go through `change` first."""

    def __init__(self, inner: Any, method: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._inner = inner
        self._method = method
        self._change = change

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name != self._method:
            return found
        return lambda *args, **kwargs: found(*args, **self._change(kwargs))


# For every platform, and for CPU besides.
COMMON: dict[str, Hook] = {
    "transfer_queue.interface": queue_controller,
    "transfer_queue.storage.bootstrap.simple_storage_bootstrap": queue_storage,
}
CPU: dict[str, Hook] = {
    "verl.workers.engine.fsdp.transformer_impl": cpu_engines,
    "verl.utils.distributed": cpu_process_group,
    "verl.workers.rollout.replica": cpu_replica,
    "verl.workers.rollout.base": cpu_adapter,
}
