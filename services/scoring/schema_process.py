"""The process in which strangers' schemas are checked: `python -m services.scoring.schema_process CPU_SECONDS`.

Some keep a validator busy for minutes, inside one call that no event loop survives. The kernel ends this process when
it has used its CPU time, whatever it is at.

In: a JSON list of schemas. Out: of each in order, as soon as it is known, a line of JSON: what is wrong with it, or "".
"""

from __future__ import annotations

import json
import os
import resource
import sys

from services.scoring import json_schema

_MEMORY_BYTES = 1 << 30


def main(cpu_seconds: int) -> None:
    schemas = json.loads(sys.stdin.buffer.read())
    # Imports what checks: that is not the schemas' time.
    json_schema.Schema({})
    used = resource.getrusage(resource.RUSAGE_SELF)
    allowed = cpu_seconds + int(used.ru_utime + used.ru_stime) + 1
    for limit, value in (
        (resource.RLIMIT_CPU, allowed),
        (resource.RLIMIT_AS, _MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    for schema in schemas:
        try:
            json_schema.Schema(schema)
            fault = ""
        except json_schema.BadSchemaError as error:
            fault = str(error)
        os.write(1, json.dumps(fault).encode() + b"\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
