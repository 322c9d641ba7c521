"""Chat templates of people who mean harm: the model is refused, and no slot is held."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from services.models.template_limits import PROBE_BYTES
from tests.fix_namespaces import NO_NAMESPACES
from tests.fix_runner import ENVIRONMENT

ROOT = Path(__file__).parents[3]
HONEST = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
ASK = """
import sys
from pathlib import Path
from services.models.folder import UnusableModelError
from services.models import inspection, template_limits
template_limits.RENDER_SECONDS = 1
try:
    inspection.inspect(Path(sys.argv[1]))
except UnusableModelError as error:
    print(error)
else:
    print("taken")
"""


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (HONEST, "taken"),
        (HONEST + LOOPS, "not done after 1 s of processor time"),
        ("{% if messages | length > 1 %}" + LOOPS + "{% endif %}" + HONEST, "not done after 1 s of processor time"),
        (HONEST + "{{ 'a' * 10 ** 9 }}", "MemoryError"),
        ("{% for a in range(50000) %}ab{% endfor %}" + HONEST, "tokens of a question and its answer"),
    ],
    ids=["honest", "loops", "loops later", "memory", "output"],
)
def test_a_template_is_taken_or_refused_in_bounded_time(
    template: str, says: str, tiny_model: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", ASK, str(with_template(tiny_model, template, tmp_path / "model"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert says in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif(bool(NO_NAMESPACES), reason=NO_NAMESPACES)
@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ 'a' * 3 * 10 ** 9 }}", "builds more than the memory"),
        (LOOPS.replace("{% endfor %}", "{{ 'a' * (b + 99999) }}{% endfor %}", 1), "builds more than the memory"),
        # Less than the limit, but not what a tokenizer would make of it.
        ("{{ 'a' * 10 ** 8 }}", "makes 100000012 characters of a question"),
    ],
    ids=["one operation", "loops", "one text"],
)
def test_an_import_refuses_a_template_that_fills_memory(
    template: str, says: str, honest_bytes: int, tiny_model: Path, tmp_path: Path
) -> None:
    """In the process that imports, which sees no /proc, and without having taken much more than for an honest one."""
    told, most_bytes = imported(with_template(tiny_model, HONEST + template, tmp_path / "model"))
    assert says in told["error"]
    # What was reserved before, and not used, is not counted.
    assert most_bytes < honest_bytes + 2 * PROBE_BYTES


@pytest.fixture(scope="module")
def honest_bytes(tiny_model: Path) -> int:
    told, most_bytes = imported(tiny_model)
    assert "error" not in told
    return most_bytes


def with_template(model: Path, template: str, folder: Path) -> Path:
    """A copy of `model` with another chat template."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(template)
    return folder


def imported(folder: Path) -> tuple[dict[str, Any], int]:
    """What the importing process says of a model, and the most memory that it had, in bytes."""
    command = [sys.executable, "-m", "services.models", "inspect", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert said, process.returncode
    return json.loads(said), used.ru_maxrss * 1024
