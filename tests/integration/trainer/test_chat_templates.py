"""Chat templates of people who mean harm: the model is refused, and no slot is held."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(template)
    command = [sys.executable, "-c", ASK, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert says in done.stdout, done.stdout + done.stderr
