"""A Ray of two nodes, one slot each: a job trains on whichever has room. Both nodes are on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.mesh.runs.spool import End, Metrics
from services.trainer.runs.records import Checkpoint
from tests.fix_runner import AttemptMaker, PrivateRay, join_ray, start_ray

# Two runs that are not forked: one server of imports forks for one node only.
pytestmark = [pytest.mark.slow, pytest.mark.long]
PARAMS = {
    "learning_rate": 1e-3,
    "prompts_per_step": 4,
    "samples_per_prompt": 4,
    "max_prompt_length": 16,
    "max_response_length": 8,
    # Which the untrained model gets now and then.
    "reward": {"name": "regex", "params": {"pattern": "[12]", "mode": "search"}},
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[PrivateRay]]:
    head = start_ray(cpus=2, gpus=1)
    try:
        second = join_ray(head, cpus=2, gpus=1)
        try:
            yield [head, second]
        finally:
            second.stop()
    finally:
        head.stop()


def trainers(node: PrivateRay) -> list[str]:
    return [title for title in node.job_titles() if "WorkerDict" in title]


def servers(node: PrivateRay) -> list[str]:
    return [title for title in node.job_titles() if "TransformersServer" in title]


def test_a_job_trains_on_the_node_that_has_room(nodes: list[PrivateRay], tmp_path: Path, tiny_model: Path) -> None:
    attempts = AttemptMaker(tmp_path, tiny_model, nodes[0].address)
    try:
        holder = attempts("holder", "grpo", steps=100_000, **PARAMS)
        holder.start()
        holder.wait_for(lambda record: isinstance(record, Metrics) and record.step == 1)
        [full] = [node for node in nodes if trainers(node)]
        [free] = [node for node in nodes if node is not full]

        guest = attempts("guest", "grpo", steps=4, **PARAMS)
        process = guest.start()
        guest.wait_for(lambda record: isinstance(record, Metrics) and record.step == 1)
        # What answers is beside what is trained, and the first job keeps its node for itself.
        assert [len(found) for node in (free, full) for found in (trainers(node), servers(node))] == [1, 1, 1, 1]
        assert process.wait(timeout=400) == 0, (guest.folder / "output.log").read_text()[-3000:]
        records = guest.records()
        assert isinstance(records[-1], End) and (records[-1].outcome, records[-1].step) == ("succeeded", 4)
        [saved] = [one for one in records if isinstance(one, Checkpoint) and one.state == "ready"]
        assert (Path(saved.path) / "model.safetensors").exists()

        # Slots of one job are on one node.
        wide = attempts("wide", "sft", slots=2, steps=1, batch_size=2, max_length=32)
        [*_, end] = wide.run()
        assert isinstance(end, End) and (end.outcome, end.reason) == ("failed", "TOO_FEW_SLOTS"), end
        assert "the largest machine of the cluster has 1" in end.message
    finally:
        for one in attempts.started:
            one.kill()
            one.wait()
