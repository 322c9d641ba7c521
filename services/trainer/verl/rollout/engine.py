"""A rollout engine for verl on transformers: for machines without a GPU, and for GPUs without vLLM.

The server is a Ray actor with the model; the adapter lives in the training worker and pushes new weights to it through
Ray's object store. The server speaks verl's protocol (`generate`, one prompt a call) and takes whole batches besides
(`generate_all`), which is what our own trainer uses.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

from services.models import sampling
from services.models.loading import attention
from services.trainer.verifier.generate import end_tokens, pad_token


def server_name(replica_rank: int) -> str:
    """The actor's name; it is unique because every run has a Ray namespace of its own."""
    return f"rollout_server_{replica_rank}"


@dataclass(frozen=True)
class _Waiting:
    request: sampling.Request
    answer: asyncio.Future[sampling.Completion]


class TransformersServer:
    """Answers requests in batches of what is waiting, at most `max_num_seqs` together, between two sets of weights."""

    def __init__(self, config: Any, model_config: Any, replica_rank: int) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self._config = omega_conf_to_dataclass(config)
        model = omega_conf_to_dataclass(model_config)
        dtype = torch.float32 if self._config.dtype == "float32" else torch.bfloat16
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            model.local_path,
            dtype=dtype,
            attn_implementation=attention(Path(model.local_path)),
            trust_remote_code=False,
        ).eval()
        # A run on CPUs sees no GPU; one on GPUs gives the server that of its training worker (`launch_servers`).
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model.to(self._device)
        self._end_tokens = end_tokens(self._model, model.tokenizer)
        self._pad_token = pad_token(model.tokenizer)
        self._context_length = getattr(self._model.config, "max_position_embeddings", None)
        self._generator = torch.Generator(self._device).manual_seed(self._config.seed + replica_rank)
        self._step: int | None = None
        self._waiting: list[_Waiting] = []
        self._answering: asyncio.Task[None] | None = None
        self._model_in_use = asyncio.Lock()

    async def ready(self) -> bool:
        return True

    async def generate_all(
        self, requests: Sequence[sampling.Request], seed: int | None = None
    ) -> list[sampling.Completion]:
        """Answer all `requests`, in order; with `seed` from random numbers that begin there, where nobody else asks
        meanwhile. Raises ValueError for one that can't be answered."""
        for request in requests:
            sampling.check(request, self._context_length)
        if seed is not None:
            self._generator.manual_seed(seed)
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(request, loop.create_future()) for request in requests]
        self._waiting.extend(waiting)
        if self._answering is None or self._answering.done():
            self._answering = loop.create_task(self._answer_waiting())
        return list(await asyncio.gather(*(one.answer for one in waiting)))

    async def generate(
        self, prompt_ids: list[int], sampling_params: dict[str, Any], request_id: str | None = None, **_: object
    ) -> TokenOutput:
        """verl's call for one prompt."""
        room = self._config.prompt_length + self._config.response_length - len(prompt_ids)
        request = sampling.Request(
            prompt=tuple(prompt_ids),
            max_new_tokens=min(sampling_params.get("max_tokens", self._config.response_length), room),
            temperature=sampling_params.get("temperature", 1.0),
            top_p=sampling_params.get("top_p", 1.0),
            top_k=max(0, sampling_params.get("top_k", -1)),
        )
        [completion] = await self.generate_all([request])
        return TokenOutput(
            token_ids=completion.tokens,
            log_probs=completion.logprobs if sampling_params.get("logprobs") else None,
            stop_reason="completed" if completion.ended else "length",
            extra_fields={"global_steps": self._step},
        )

    async def _answer_waiting(self) -> None:
        # Requests that arrive in the same turn of the loop go together.
        await asyncio.sleep(0)
        while self._waiting:
            batch = self._waiting[: self._config.max_num_seqs]
            del self._waiting[: len(batch)]
            try:
                async with self._model_in_use:
                    completions = await asyncio.to_thread(self._sample, [one.request for one in batch])
            except Exception as error:
                # Every caller of the batch learns of it; none is left waiting.
                for one in batch:
                    if not one.answer.done():
                        one.answer.set_exception(error)
                continue
            for one, completion in zip(batch, completions, strict=True):
                if not one.answer.done():
                    one.answer.set_result(completion)

    def _sample(self, requests: list[sampling.Request]) -> list[sampling.Completion]:
        return sampling.sample(self._model, requests, self._end_tokens, self._pad_token, self._generator)

    async def load_weights(self, weights: dict[str, torch.Tensor], step: int | None) -> None:
        """Take over `weights`. Raises ValueError when they are not those of this model."""
        async with self._model_in_use:
            missing, unexpected = self._model.load_state_dict(weights, strict=False)
        tied = set(getattr(self._model, "_tied_weights_keys", None) or ())
        missing = [name for name in missing if name not in tied]
        if missing or unexpected:
            raise ValueError(f"the weights don't fit the model: missing {missing[:3]}, unexpected {unexpected[:3]}")
        self._step = step

    async def _nothing(self, *_: object, **__: object) -> None:
        """On CPU there is no memory to give back and no profiler to start."""

    wake_up = sleep = abort_all_requests = resume_generation = clear_kv_cache = _nothing
    release_kv_cache = resume_kv_cache = start_profile = stop_profile = set_global_steps = _nothing


def _place(_worker: object) -> tuple[str, str]:
    """Ray's name of the node, and the GPU that this process trains on ("" where there is none)."""
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    # Workers of one node may all see all of its GPUs; verl sets the device of each.
    gpu = gpus[torch.cuda.current_device()] if torch.cuda.is_available() else ""
    return ray.get_runtime_context().get_node_id(), gpu


class TransformersReplica(RolloutReplica):
    """One server a replica, on the node of its training worker."""

    async def launch_servers(self) -> None:
        worker: Any = self.workers[0]
        node, gpu = await worker.__ray_call__.remote(_place)
        actor: Any = ray.remote(TransformersServer)
        server = actor.options(
            name=server_name(self.replica_rank),
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False),
            max_concurrency=self.max_concurrency,
            # It shares its worker's GPU, which Ray has given away; without the second Ray would hide every GPU from it.
            runtime_env={"env_vars": {"CUDA_VISIBLE_DEVICES": gpu, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}},
        ).remote(self.config, self.model_config, self.replica_rank)
        await server.ready.remote()
        self.servers = [server]
        self._server_handle = server
        self._server_address = server_name(self.replica_rank)


class TransformersAdapter(BaseRollout):
    """Pushes the trained weights to the replica's server. Adapters come merged (`model.lora.merge`)."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1, **_: object) -> None:
        super().__init__(config, model_config, device_mesh)
        self._replica_rank = int(os.environ["RANK"]) if replica_rank == -1 else replica_rank
        self.sleep_level = 2

    async def resume(self, tags: list[str]) -> None:
        pass

    async def release(self) -> None:
        pass

    async def update_weights(
        self,
        weights: Iterator[tuple[str, torch.Tensor]],
        wire_format: str = "named_tensors",
        global_steps: int | None = None,
        peft_config: object = None,
        **_: object,
    ) -> None:
        if peft_config is not None or wire_format != "named_tensors":
            raise ValueError("this engine takes whole, merged weights")
        # A copy: the trainer's tensors change while Ray still serialises.
        state = {name: tensor.detach().to("cpu").clone() for name, tensor in weights}
        server: Any = ray.get_actor(server_name(self._replica_rank))
        await server.load_weights.remote(state, global_steps)
