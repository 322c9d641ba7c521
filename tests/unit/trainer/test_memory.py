"""What a job takes of memory at least, and what is said where a slot has less."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.mesh.errors import InvalidArgument
from services.models.shape import ModelShape, shape_of
from services.supervisor.embedded.memory import machine_bytes
from services.trainer.entities import BaseModel, DatasetVersion, NewTrainingJob
from services.trainer.training import checks
from services.trainer.training.launch_plan import CriticFacts
from tests.unit.trainer import test_critic_model as critic_tests
from tests.unit.trainer.test_algorithms import check
from tests.unit.trainer.test_critic_model import BASE, PARENT

GB = 10**9
BILLION: dict[str, Any] = {"model_parameters": GB}
# 100 tokens of a median row.
SHAPE: dict[str, Any] = {
    "shape": ModelShape(layers=10, hidden=1000, inner=3000, vocabulary=50_000), "median_characters": 800,
}  # fmt: skip


def fits(name: str, params: dict[str, Any], memory: float, **facts: Any) -> bool:
    return "slots" not in check(name, params, memory_bytes=int(memory), **{**BILLION, **facts})


def least(name: str, params: dict[str, Any], **facts: Any) -> int:
    """The fewest megabytes of a slot that the job is not refused with."""
    low, high = 0, 1 << 20
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(name, params, middle * 10**6, **facts) else (middle + 1, high)
    return low


@pytest.mark.parametrize(
    ("name", "params", "facts", "gigabytes"),
    [
        ("sft", {}, {}, 16),
        ("sft", {}, {"slots": 2}, 8),
        ("sft", {"lora": {}}, {}, 4),
        # The rollout on transformers, in fp32; on CUDA in bf16, and vLLM's goes while the policy learns.
        ("grpo", {}, {}, 20),
        ("grpo", {}, {"slots": 2}, 12),
        ("grpo", {"rollout_engine": "transformers"}, {"device": "cuda"}, 18),
        ("grpo", {}, {"device": "cuda"}, 16),
        ("grpo", {"kl_coefficient": 0.1}, {}, 24),
        ("grpo", {"kl_coefficient": 0.1, "offload": "all"}, {"device": "cuda"}, 16),
        ("ppo", {}, {}, 36),
        ("ppo", {}, {"critic": CriticFacts(None, 2 * GB)}, 48),
        ("ppo", {"offload": "optimizer"}, {"device": "cuda"}, 20),
        ("dpo", {}, {}, 16),
    ],
)
def test_weights_and_copies(name: str, params: dict[str, Any], facts: dict[str, Any], gigabytes: int) -> None:
    assert least(name, params, **facts) == gigabytes * 1000


def test_passes_count_by_their_rows_and_the_length_of_the_data() -> None:
    # 32 of 64 rows of 100 tokens: 4 bytes · 3200 · 10 · (4000 + 6000), and twice 4 · 3200 · 50,000.
    rows = {"micro_batch_size": 64, "batch_size": 64}
    layers, logits = 1280, 1280
    assert least("sft", rows, **SHAPE) == 16_000, "less than what the update takes beside the moments"
    small = {**SHAPE, "model_parameters": 10**8}
    assert least("sft", rows, **small) == 1200 + layers + logits
    assert least("sft", {**rows, "gradient_checkpointing": True}, **small) == 1200 + layers // 10 + logits
    assert least("sft", {**rows, "precision": "bf16"}, **small) == 1200 + (layers + logits) // 2
    assert least("sft", {"batch_size": 64, "micro_batch_size": 2}, **small) == 1600
    assert least("sft", {**rows, "lora": {}}, **small) == 400 + layers // 10 + logits
    fused = {"verl_overrides": {"model.use_fused_kernels": True}}
    assert least("sft", {**rows, **fused}, **small) == 1200 + layers
    # Nothing is known of the rows that stay where most are too long, or of data without statistics.
    assert least("sft", {**rows, "max_length": 99}, **small) == 1600
    assert least("sft", rows, **{**small, "median_characters": None}) == 1600


def test_a_reward_model_has_no_logits() -> None:
    small = {**SHAPE, "model_parameters": 10**8}
    pairs = {"micro_batch_size": 64, "batch_size": 64}
    assert least("dpo", pairs, **small) - least("reward_model", pairs, **small) == 1280


def test_what_is_said_names_what_takes_it_and_what_helps() -> None:
    small = {**SHAPE, "model_parameters": 10**8, "memory_bytes": 10**9}
    said = check("sft", {"micro_batch_size": 64, "batch_size": 64}, **small)["slots"]
    assert said.startswith("a slot has 0.9 GiB, and the job takes at least 3.5 (1.1 weights and moments, 1.2 what the")
    helps = said.partition("What helps: ")[2].split(", ")
    assert set(helps) == {"micro_batch_size", "gradient_checkpointing", "lora", "more slots", "a smaller model"}
    said = check("ppo", {}, **BILLION, memory_bytes=GB, device="cuda")["slots"]
    assert "11.2 the critic's weights and moments" in said and "3.7 the reference" in said
    assert {"kl_coefficient", "offload"} < set(said.partition("What helps: ")[2].split(", "))
    assert check("ppo", {}, **BILLION) == {}, "nobody knows what a slot has"


def test_the_shape_stands_in_the_configuration() -> None:
    llama = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 17}
    assert shape_of({"config.json": json.dumps(llama).encode()}) == ModelShape(2, 64, 128, 17)
    gpt2 = {"n_layer": 2, "n_embd": 64, "n_inner": None, "vocab_size": 17}
    assert shape_of({"config.json": json.dumps(gpt2).encode()}) == ModelShape(2, 64, 256, 17)
    sparse = {**llama, "num_local_experts": 8}
    assert shape_of({"config.json": json.dumps(sparse).encode()}) == ModelShape(2, 64, 0, 17)
    assert shape_of({"config.json": json.dumps({"text_config": llama}).encode()}) == ModelShape(2, 64, 128, 17)
    for text in (b"{}", b"[]", b"{", json.dumps({**llama, "hidden_size": "many"}).encode()):
        assert shape_of({"config.json": text}) is None
    assert shape_of({}) is None


def test_a_containers_limit_is_what_there_is(tmp_path: Any) -> None:
    def write(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    whole = machine_bytes(tmp_path)
    assert whole > 1 << 20
    write("proc/self/cgroup", "0::/a/b\n")
    write("sys/fs/cgroup/a/b/memory.max", "max\n")
    assert machine_bytes(tmp_path) == whole
    # Of the group above.
    write("sys/fs/cgroup/a/memory.max", "4096\n")
    assert machine_bytes(tmp_path) == 4096
    write("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/c\n")
    write("sys/fs/cgroup/memory/c/memory.limit_in_bytes", "8192\n")
    assert machine_bytes(tmp_path) == 8192


async def test_a_job_that_surely_does_not_fit_is_refused_when_it_is_created() -> None:
    class LookUp(critic_tests.LookUp):
        async def base_model(self, reference: str) -> BaseModel:
            return BaseModel(reference, "0" * 64, GB, 2048)

        async def dataset_version(self, name: str) -> DatasetVersion:
            return DatasetVersion(name, "messages", 1000, 10**6, None, median_characters=800)

        async def files(self, model: BaseModel, paths: tuple[str, ...]) -> dict[str, bytes]:
            sizes = {"num_hidden_layers": 10, "hidden_size": 1000, "intermediate_size": 3000, "vocab_size": 50_000}
            return {"config.json": json.dumps(sizes).encode()}

    async def checked(memory_bytes: int | None, **params: Any) -> None:
        new = NewTrainingJob(PARENT, "", "sft", BASE, f"{PARENT}/datasets/d/versions/1", "", params, "", 0, 0)
        await checks.check(new, checks.Capacity("cpu", 1, memory_bytes=memory_bytes), LookUp())

    with pytest.raises(InvalidArgument) as refused:
        await checked(15 * GB)
    [violation] = refused.value.violations
    assert (
        violation.field == "training_job.placement.resources.gpu_count" and "What helps: lora" in violation.description
    )
    with pytest.raises(InvalidArgument, match="what the layers keep"):
        await checked(17 * GB, batch_size=1000, micro_batch_size=1000)
    await checked(17 * GB)
    await checked(None, batch_size=1000, micro_batch_size=1000)
