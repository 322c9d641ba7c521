"""verl in the process of a test, on a machine without a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def verl_on_cpu() -> Iterator[None]:
    """Our platform is verl's, whoever has imported verl first and with whatever environment."""
    pytest.importorskip("verl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERL_PLATFORM", "cpu")
        from services.trainer.verl.patches import cpu_platform

        cpu_platform.complete_torch_cpu()
        cpu_platform.register()
        yield
