"""Reserving the slots of a run in Ray, and waiting for them where others hold them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from services.mesh.runs.process import Control, StopRequestedError
from services.trainer.training.launch_plan import Device
from services.trainer.verl.heartbeat import Repeated

# Ray waits in whole seconds.
POLL_SECONDS = 1


class TooFewSlotsError(Exception):
    """The cluster has fewer slots than the run wants, so waiting would never end."""


def reserve(slots: int, device: Device, control: Control, on_wait: Callable[[], None]) -> list[PlacementGroup]:
    """A placement group of `slots` bundles on one node. `on_wait` is called when they are not free at once,
    and now and then until they are.

    Raises TooFewSlotsError where no node will ever have them, StopRequestedError when the run is stopped meanwhile.
    """
    largest = max((node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if largest < slots:
        raise TooFewSlotsError(f"the run wants {slots} slots, and the largest machine of the cluster has {largest:g}")
    # On a GPU verl puts the engine's servers beside the trainer, and each process wants a CPU to be scheduled.
    bundle: dict[str, float] = {"GPU": 1, "CPU": 3 if device == "cuda" else 1}
    group = placement_group([bundle.copy() for _ in range(slots)], strategy="STRICT_PACK")
    told = Repeated(on_wait)
    while not group.wait(timeout_seconds=POLL_SECONDS):
        told()
        if control.stop_requested():
            remove_placement_group(group)
            raise StopRequestedError
    return [group]


def hand_to_verl(groups: list[PlacementGroup]) -> None:
    """Make verl's resource pools use the reserved slots, whose being taken its own check would count against it."""
    from verl.single_controller.ray.base import RayResourcePool, ResourcePoolManager

    def reserved(pool: Any, *_args: object, **_kwargs: object) -> list[PlacementGroup]:
        pool.pgs = groups
        return groups

    RayResourcePool.get_placement_groups = reserved  # type: ignore[method-assign]
    ResourcePoolManager._check_resource_available = lambda self: None  # type: ignore[method-assign]
