"""Write the lock files `deploy/requirements/{cpu,gpu}.txt`: `make lock`, after a change of a pin.

Each names every package of an environment at one version, with the SHA-256 of each of its files on PyPI.
deploy/install.sh installs those files and no others.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
REQUIREMENTS = ROOT / "deploy" / "requirements"
HEADER = "# Made by `make lock` from pyproject.toml; not by hand.\n"
# The CPU build of torch is not on PyPI, and needs none of these: deploy/install.sh installs it by itself.
NOT_FOR_CPU = re.compile(r"(torch|triton|(nvidia|cuda)-[a-z0-9-]+)==")


def main() -> None:
    REQUIREMENTS.mkdir(exist_ok=True)
    cpu = entries(resolve("cpu", "--universal"))
    kept = [entry for entry in cpu if not NOT_FOR_CPU.match(entry)]
    (REQUIREMENTS / "cpu.txt").write_text(HEADER + "".join(kept))
    # vLLM and NVIDIA's packages have no files for other platforms.
    gpu = entries(resolve("gpu", "--python-platform", "x86_64-manylinux_2_28"))
    (REQUIREMENTS / "gpu.txt").write_text(HEADER + "".join(gpu))


def resolve(extra: str, *flags: str) -> str:
    """The requirements of an extra with those of `dev`, hashes included."""
    uv = Path(sys.executable).with_name("uv")
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "requirements.txt"
        subprocess.run(  # noqa: S603 - a tool of this environment
            [
                *(str(uv), "pip", "compile", "pyproject.toml", "--extra", extra, "--extra", "dev"),
                *("--python-version", "3.11", "--generate-hashes", "--no-annotate", "--no-header", "--no-config"),
                *("--no-emit-index-url", "--no-emit-find-links", "--quiet", "--output-file", str(found), *flags),
            ],
            cwd=ROOT,
            check=True,
        )
        return found.read_text()


def entries(requirements: str) -> list[str]:
    """One text a package: its line, and those of its hashes."""
    return re.findall(r"^\S.*\n(?:^[ \t].*\n)*", requirements, re.MULTILINE)


if __name__ == "__main__":
    main()
