"""What verl loads in every process of a job (VERL_USE_EXTERNAL_MODULES): the CPU platform and our hooks.

verl imports this while it is being imported itself, so only its platform registry is touched here; the rest waits for
the modules that it changes.
"""

from __future__ import annotations

import os

from services.trainer.verl.patches import hooks
from services.trainer.verl.patches.import_hooks import install

install(hooks.COMMON)
install(hooks.ENGINES)
if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
    from services.trainer.verl.patches import cpu_platform

    cpu_platform.complete_torch_cpu()
    cpu_platform.register()
    install(hooks.CPU)
