"""A mesh at work whose parts are killed at random: `python tests/bench/soak.py [--minutes 5] [--seed 0] [--pause 12]`.

Three things go on at once in a home of its own, as a user would do them: files are uploaded, small jobs of SFT, GRPO
and PPO are trained and watched. Meanwhile a process chosen at random, by the seed, is killed with SIGKILL or stopped
with SIGSTOP every few seconds: services, workers, gateway, PostgreSQL, NATS, Ray, a training, one of a training's
actors, the supervisor (then `rlhf up` is called again). A training, Ray and an actor, killed and stopped, are hit in
every soak. What fails for that is done again, as a user would. After the time all is left alone until every job has
ended.

Then it is looked whether what was accepted is there, once, and nothing else. Prints a table of what was done and every
invariant that does not hold; exit code 1 when there is one.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import csv
import io
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

sys.path.insert(0, str(Path(__file__).parents[2]))

from services.mesh.processes import procfs
from services.mesh.runs import processes
from services.supervisor import leftovers, state
from services.supervisor.embedded import Home
from tests.fix_live import LiveMesh, live_home

_ROLLOUT = {
    "prompts_per_step": 8,
    "max_prompt_length": 16,
    "max_response_length": 6,
    "learning_rate": 1e-3,
    # Which an untrained model meets now and then: of a job that learns nothing would be said so in the end.
    "reward__name": "regex",
    "reward__params__pattern": "1",
    "reward__params__mode": "search",
    "steps": 24,
    "save_every_steps": 6,
}
_SFT = {"batch_size": 16, "max_length": 32, "learning_rate": 1e-2, "steps": 80, "save_every_steps": 20}
# By algorithm: its dataset, a metric of every step, and parameters.
JOBS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sft": ("examples", "train/loss", _SFT),
    "grpo": ("prompts", "reward/mean", {**_ROLLOUT, "samples_per_prompt": 4}),
    "ppo": ("prompts", "reward/mean", _ROLLOUT),
}
SERVICES = ("dataset", "dataset.worker", "trainer", "trainer.worker", "gateway", "nats", "postgres")
# How often each is chosen: what costs a whole attempt of a training is rarer.
VICTIMS = (*SERVICES, *SERVICES, "stop", "stop", "run", "ray", "actor", "stop actor", "supervisor")
# In every soak, whatever the seed chooses.
ALWAYS = ("run", "ray", "actor", "stop actor")
OUTCOMES = ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED")


@dataclass
class Soak:
    mesh: LiveMesh
    seed: int
    pause_seconds: float
    over: threading.Event = field(default_factory=threading.Event)
    uploads: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    jobs: list[str] = field(default_factory=list)
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    broken: list[str] = field(default_factory=list)

    def again(self, what: str, do: Callable[[], Any], tries: int = 40) -> Any:
        """Do it until it succeeds; what fails is counted."""
        last: Exception | None = None
        for _ in range(tries):
            try:
                return do()
            except (AssertionError, ValueError, KeyError) as error:
                self.counts[f"{what} repeated"] += 1
                last = error
                time.sleep(1)
        self.broken.append(f"{what} did not succeed after {tries} tries: {last}")
        return None

    def upload(self) -> None:
        numbers = random.Random(f"{self.seed} upload")
        folder = self.mesh.home / "soak"
        folder.mkdir()
        while not self.over.is_set():
            name = f"u{len(self.uploads)}"
            texts = [str(numbers.random()) for _ in range(2000)]
            rows = [{"prompt": [{"role": "user", "content": text}], "answer": "a"} for text in texts]
            path = folder / f"{name}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            words = ("dataset", "upload", str(path), "--name", name, "--format", "prompt")
            if self.again("upload", lambda words=words: self.mesh.rlhf(*words)) is not None:
                self.uploads[name] = rows
            self.over.wait(2)

    def train(self) -> None:
        while not self.over.is_set():
            job = f"{list(JOBS)[len(self.jobs) % len(JOBS)]}-{len(self.jobs)}"
            self.again("train", lambda job=job: self._create(job))
            self.jobs.append(job)
            self.again("watch", lambda job=job: self._watch(job), tries=200)

    def _create(self, job: str) -> None:
        algorithm = job.partition("-")[0]
        dataset, _, params = JOBS[algorithm]
        data = ("--model", "tiny", "--dataset", dataset, "--validation", "held-out", "--name", job)
        settings = {**params, "epochs": 100, "validation__max_new_tokens": 6}
        words = [f"--set={key.replace('__', '.')}={json.dumps(value)}" for key, value in settings.items()]
        done = self.mesh.rlhf("train", algorithm, *data, *words, check=False)
        # Accepted, though the answer was lost on its way.
        if done.returncode and "exists already" not in done.stdout + done.stderr:
            raise AssertionError(done.stderr)

    def _watch(self, job: str) -> None:
        self.mesh.rlhf("job", "watch", job, check=False, timeout=900)
        assert "endTime" in self.mesh.job(job)

    def kill(self) -> None:
        numbers = random.Random(f"{self.seed} kill")
        due = numbers.sample(ALWAYS, len(ALWAYS))
        while not self.over.wait(numbers.uniform(0.5, 1.5) * self.pause_seconds):
            # One that is due every other time, until there is one of its kind to be hit.
            victim = due[0] if due and numbers.random() < 0.5 else numbers.choice(VICTIMS)
            with contextlib.suppress(ProcessLookupError, KeyError, ValueError, OSError, AssertionError):
                self._hit(victim, numbers)
                self.counts[f"{victim} hit"] += 1
                due = [each for each in due if each != victim]
        self.expect(not due, f"nothing was hit of {due}: the soak was too short")

    def _hit(self, victim: str, numbers: random.Random) -> None:
        if victim == "supervisor":
            known = state.read(Home(self.mesh.home).state)
            assert known is not None
            os.kill(known.supervisor.pid, signal.SIGKILL)
            time.sleep(numbers.uniform(0, 3))
            self.again("up", lambda: self.mesh.rlhf("up"))
        elif victim == "run":
            runs = [json.loads(path.read_text())["pid"] for path in self._runs()]
            os.kill(numbers.choice([pid for pid in runs if procfs.identify(pid)] or [0x7FFFFFFF]), signal.SIGKILL)
        elif victim.endswith("actor"):
            actors = [each.id.pid for path in self._runs() for each in processes.read(path.parent)]
            os.kill(numbers.choice(actors or [0x7FFFFFFF]), signal.SIGSTOP if "stop" in victim else signal.SIGKILL)
        else:
            name = numbers.choice(SERVICES[:-1]) if victim == "stop" else victim
            os.kill(self._pids()[name], signal.SIGSTOP if victim == "stop" else signal.SIGKILL)

    def _runs(self) -> Iterator[Path]:
        return self.mesh.home.glob("trainer/jobs/*/attempts/*/runner.json")

    def _pids(self) -> dict[str, int]:
        known = state.read(Home(self.mesh.home).state)
        return {each.name: each.id.pid for each in known.processes if each.id} if known else {}

    def check(self) -> None:
        """Everything that was accepted is there, once, and nothing else."""
        for name, rows in self.uploads.items():
            target = self.mesh.home / "soak" / f"{name}.back"
            words = ("dataset", "download", name, "--to", str(target), "--force")
            self.again("download", lambda words=words: self.mesh.rlhf(*words))
            back = [json.loads(line) for line in target.read_text().splitlines()]
            self.expect(back == rows, f"the rows of {name} came back changed: {len(back)} of {len(rows)}")
            versions = self.mesh.json("dataset", "show", name)
            self.expect(json.dumps(versions).count("/versions/2") == 0, f"{name} was stored twice")
        for job in self.jobs:
            self._check_job(job)
        listed = [each["name"].rpartition("/")[2] for each in self.mesh.json("job", "list", "--limit", "0")]
        self.expect(sorted(listed) == sorted(self.jobs), f"jobs listed {sorted(listed)}, created {sorted(self.jobs)}")
        self._check_events()

    def _check_job(self, job: str) -> None:
        found = self.mesh.job(job)
        self.counts[found["state"].removeprefix("JOB_STATE_").lower()] += 1
        self.counts["attempts"] += len(found["attempts"])
        self.expect(found["state"] in OUTCOMES, f"{job} is {found['state']}")
        if found["state"] == "JOB_STATE_FAILED":
            self.expect("tried 4 times" in found["error"]["message"], f"{job}: {found['error']['message']}")
            return
        _, metric, params = JOBS[job.partition("-")[0]]
        text = self.mesh.rlhf("job", "metrics", job, "--metric", metric, "-o", "csv").stdout
        steps = [int(row["step"]) for row in csv.DictReader(io.StringIO(text))]
        self.expect(steps == list(range(1, params["steps"] + 1)), f"{job} has the steps {steps}")
        last = self.mesh.json("checkpoint", "list", job)[0]
        wanted = (str(params["steps"]), "STATE_READY")
        self.expect((last["step"], last["state"]) == wanted, f"{job} ends with {last}")

    def _check_events(self) -> None:
        url = json.loads(Home(self.mesh.home).endpoints.read_text())["postgres_url"]
        # A job and its checkpoints share one sequence.
        gaps = (
            "SELECT split_part(resource, '/checkpoints/', 1) AS job FROM {0}.events"
            " WHERE resource LIKE '%/trainingJobs/%' GROUP BY job"
            " HAVING count(*) <> max(sequence) OR count(*) <> count(DISTINCT sequence)"
        )
        with psycopg.connect(url, autocommit=True) as connection:
            for schema in ("dataset", "trainer"):
                deadline = time.monotonic() + 60
                waiting = f"SELECT count(*) FROM {schema}.events WHERE publish_time IS NULL"
                while (left := _one(connection, waiting)) and time.monotonic() < deadline:
                    time.sleep(0.5)
                self.expect(left == 0, f"{left} events of {schema} were never published")
                found = connection.execute(gaps.format(schema).encode()).fetchall()
                self.expect(found == [], f"events of {found} have gaps or come twice")

    def check_nothing_left(self) -> None:
        home = Home(self.mesh.home)
        self.mesh.rlhf("down")
        left = [each.pid for each in procfs.with_variable(leftovers.MARK, str(home.root))]
        left += procfs.in_folder(home.postgres / "data")
        self.expect(left == [], f"processes are left: {left}")
        files = [path for path in (home.temporary, home.ray_temporary) if path.exists()]
        files += [path for path in (home.root / "uploads").rglob("*") if path.is_file() and path.suffix != ".lock"]
        files += list(home.root.rglob("*.partial"))
        files += [path for path in (home.root / "artifacts").rglob("*") if path.is_file() and "writing" in str(path)]
        self.expect(files == [], f"files are left: {files}")

    def expect(self, holds: bool, otherwise: str) -> None:
        self.counts["checks"] += 1
        if not holds:
            self.broken.append(otherwise)


def _one(connection: psycopg.Connection[Any], query: str) -> int:
    row = connection.execute(query.encode()).fetchone()
    return row[0] if row else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause", type=float, default=12, help="seconds between two kills, on average")
    options = parser.parse_args()
    settings = {"RLHF_SUPERVISOR_PATIENCE_SECONDS": "20"}
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, live_home(Path(folder), **settings) as mesh:
        soak = Soak(mesh, options.seed, options.pause)
        threads = [threading.Thread(target=each) for each in (soak.upload, soak.train, soak.kill)]
        for thread in threads:
            thread.start()
        time.sleep(options.minutes * 60)
        soak.over.set()
        for thread in threads:
            thread.join()
        soak.again("up", lambda: mesh.rlhf("up"))
        soak.check()
        soak.check_nothing_left()
    for what, count in sorted(soak.counts.items()):
        print(f"{what:<24}{count:>6}")
    print(f"{len(soak.uploads)} uploads, {len(soak.jobs)} jobs, seed {options.seed}, {options.minutes:g} minutes")
    print("\n".join(soak.broken) or "every invariant holds")
    return 1 if soak.broken else 0


if __name__ == "__main__":
    sys.exit(main())
