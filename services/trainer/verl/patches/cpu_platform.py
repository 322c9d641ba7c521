"""A verl platform for machines without an accelerator: torch on CPU, gloo, and Ray's logical GPUs as slots."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry


def complete_torch_cpu() -> None:
    """Give torch.cpu the members that verl calls on every device module: memory figures are 0, caches are nothing."""
    members: dict[str, Any] = {
        "empty_cache": lambda: None,
        "memory_allocated": lambda *_: 0,
        "memory_reserved": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "max_memory_reserved": lambda *_: 0,
        "reset_peak_memory_stats": lambda *_: None,
        "mem_get_info": lambda *_: (0, 0),
        "ipc_collect": lambda: None,
        "get_device_name": lambda *_: "CPU",
        "set_rng_state": torch.set_rng_state,
        "get_rng_state": lambda *_: torch.get_rng_state(),
    }
    for name, member in members.items():
        if not hasattr(torch.cpu, name):
            setattr(torch.cpu, name, member)


class CpuPlatform(PlatformBase):
    """Chosen by VERL_PLATFORM=cpu, never detected: a machine with GPUs must not fall back silently."""

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "generic"

    @property
    def device_module(self) -> Any:
        return torch.cpu

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return False

    def current_device(self) -> str:  # type: ignore[override]
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "VERL_CPU_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:  # type: ignore[override]
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def ray_resource_name(self) -> str:
        # verl counts "GPU" and "NPU" only, so slots are logical GPUs of Ray.
        return "GPU"

    def ray_resource_options(self, num_gpus: float) -> dict[str, float]:
        return {"num_gpus": num_gpus}

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None


def register() -> None:
    PlatformRegistry.register(platform="cpu")(CpuPlatform)
