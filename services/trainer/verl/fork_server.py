"""The fork server of trainings on CPU: `python -m services.trainer.verl.fork_server SOCKET`.

It imports what verl and its workers import of others. Neither Ray nor verl: Ray's library reads the ids of its job
once, when it is imported, and verl its platform; of five seconds of imports theirs are half a second.
"""

from __future__ import annotations

import sys
from pathlib import Path

from services.mesh.processes.fork_server import server
from services.trainer.verl import environment

# What a run imports besides Ray and verl, each with all that it imports itself.
MODULES = (
    *("torch", "torch.distributed.fsdp", "torch.distributed.tensor", "torch.distributed.device_mesh"),
    *("torchdata.stateful_dataloader", "tensordict", "numpy", "pandas", "pyarrow.parquet", "datasets", "dill", "sympy"),
    *("transformers", "transformers.generation", "transformers.models.auto.modeling_auto"),
    *("transformers.models.llama.modeling_llama", "transformers.models.qwen2.modeling_qwen2", "accelerate", "peft"),
    *("hydra", "omegaconf", "pydantic", "msgspec", "jsonschema", "jinja2", "google.protobuf"),
    *("aiohttp.web", "fastapi", "uvicorn", "uvloop", "httpx", "requests", "zmq", "zmq.asyncio"),
    *("rich", "psutil", "nvtx", "codetiming", "opentelemetry.sdk.trace"),
)


def main(socket: Path) -> None:
    # Some of it reads its settings when it is imported.
    environment.apply(environment.variables("cpu"))
    server.main(socket, MODULES)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
