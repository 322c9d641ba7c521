"""`rlhf demo` against services in memory: what it uploads, trains, measures and says."""

from __future__ import annotations

import asyncio
import json
import signal

from rlhf.type.v1 import job_state_pb2

from tests.integration.cli.fake_mesh import FakeMesh


async def test_a_short_demo_takes_the_whole_path(fake_mesh: FakeMesh) -> None:
    done = await fake_mesh.rlhf("demo", "--short", "--seed", "3", "--compare")
    lines = [line.split("  ")[0] for line in done.out.splitlines()]
    assert {"untrained", "after SFT", "after GRPO", "more SFT instead"} <= set(lines)
    assert "50/100  0.500  0.404 to 0.596" in done.out
    assert "a gain is not asked for" in done.err
    assert "all of it took" in done.err
    jobs = [found.job for found in fake_mesh.trainer.running.values()]
    assert [job.algorithm for job in jobs] == ["sft", "grpo", "sft"]
    assert jobs[1].base_model == f"{jobs[0].name}/checkpoints/step-20"
    assert all(job.params["seed"] == 3 for job in jobs)
    formats = [dataset.format for dataset in fake_mesh.datasets.datasets.values()]
    assert formats == ["messages", "prompt", "prompt"]
    held_out = next(rows for name, rows in fake_mesh.datasets.rows.items() if "held-out" in name)
    first = json.loads(held_out.splitlines()[0])
    assert first["prompt"][0]["content"] in done.out


async def test_a_demo_runs_again_on_the_same_home(fake_mesh: FakeMesh) -> None:
    await fake_mesh.rlhf("demo", "--short")
    await fake_mesh.rlhf("demo", "--short")
    assert len(fake_mesh.datasets.datasets) == 6
    assert len(fake_mesh.trainer.models) == 2


async def test_a_gain_within_the_intervals_is_a_failure(fake_mesh: FakeMesh) -> None:
    fake_mesh.trainer.scores["grpo"] = (0.5, 0.52)
    done = await fake_mesh.rlhf("demo", check=1)
    assert "not beyond the intervals" in done.err
    assert "+0.020; the 95% intervals overlap" in done.out


async def test_a_gain_beyond_the_intervals_is_a_success(fake_mesh: FakeMesh) -> None:
    done = await fake_mesh.rlhf("demo")
    assert "+0.250; the 95% intervals do not overlap" in done.out
    assert "750/1000  0.750  0.722 to 0.776" in done.out


async def test_a_job_that_fails_ends_the_demo(fake_mesh: FakeMesh) -> None:
    fake_mesh.trainer.fail_at = 2
    done = await fake_mesh.rlhf("demo", "--short", check=1)
    assert "out of memory" in done.err
    assert done.out == ""


async def test_ctrl_c_cancels_the_job_that_trains(fake_mesh: FakeMesh) -> None:
    fake_mesh.trainer.step_seconds = 0.5
    process = await fake_mesh.begin("demo", "--short")
    assert process.stderr is not None
    async with asyncio.timeout(60):
        while b"-sft training" not in await process.stderr.readline():
            pass
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 130
    assert b"the job is cancelled" in err
    (found,) = fake_mesh.trainer.running.values()
    assert found.job.state in (job_state_pb2.JOB_STATE_CANCELLING, job_state_pb2.JOB_STATE_CANCELLED)


async def test_another_mesh_is_never_brought_up(fake_mesh: FakeMesh) -> None:
    await fake_mesh.stop()
    done = await fake_mesh.rlhf("--server", f"127.0.0.1:{fake_mesh.port}", "demo", "--short", check=3)
    assert "nothing answers" in done.err
