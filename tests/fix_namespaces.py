"""Whether this machine makes namespaces, without which nothing is confined."""

from __future__ import annotations

import subprocess
import sys

# Why it makes none; "" where it does.
NO_NAMESPACES = subprocess.run(
    [sys.executable, "-m", "services.mesh.processes.confinement"], capture_output=True, text=True, timeout=60
).stdout
