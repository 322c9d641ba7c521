"""A log line is one JSON object, whatever is logged."""

from __future__ import annotations

import json
import logging
import sys

from services.mesh.telemetry import JsonFormatter


def line(**changes: object) -> dict[str, object]:
    record = logging.LogRecord("a.logger", logging.INFO, "file", 1, "step %d\nnext", (3,), None)
    record.__dict__.update(changes)
    text = JsonFormatter("trainer").format(record)
    assert "\n" not in text
    return json.loads(text)


def test_a_line_holds_the_message_and_its_extras() -> None:
    found = line(job="projects/p/trainingJobs/j", path=object())
    assert found["message"] == "step 3\nnext"
    assert (found["level"], found["process"], found["logger"]) == ("INFO", "trainer", "a.logger")
    assert found["job"] == "projects/p/trainingJobs/j"
    assert "object" in str(found["path"])
    assert "args" not in found


def test_a_line_holds_the_traceback() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        found = line(exc_info=sys.exc_info())
    assert str(found["exception"]).endswith("ValueError: no")
