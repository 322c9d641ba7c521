"""What each algorithm learns of the task of tests/fix_learning.py: `python -m tests.bench.bench_learning [names]`.

For each of `--seeds` a base model of its own is fine-tuned, and every algorithm starts from it; `sft` starts from the
untrained model. Prints the curves as CSV: algorithm, seed, step, and the share of right answers among those drawn in
the step (`sft`: among 200 drawn from the weights saved at it); then, behind #, a line for each algorithm: the mean of
the last three steps, the shares drawn from the weights before and after, and the seconds of a run. The ceiling is 1.
Asserts nothing.

`--svg FILE` draws the curves; `--curves FILE…` takes what earlier calls have printed in place of running anything.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.bench.curves import draw
from tests.bench.models import make_model
from tests.fix_learning import LEVEL, PARAMS, Learning, Learnt
from tests.fix_runner import AttemptMaker, start_ray

NAMES = ["sft", *PARAMS]
HEADER = "algorithm,seed,step,right"
# Between two points of the curve of `sft`.
SAVE_EVERY_STEPS = 20


def lines(names: list[str], seeds: list[int], learning: Learning) -> Iterator[str]:
    """Run everything, an algorithm at a time."""
    yield HEADER
    if names != ["sft"]:
        for seed in seeds:
            learning.base(seed)
    for name in names:
        started = time.monotonic()
        runs = [_run(name, seed, learning) for seed in seeds]
        seconds = (time.monotonic() - started) / len(seeds)
        for run in runs:
            for step, right in _points(run):
                yield f"{name},{run.seed},{step},{right:.4f}"
        levels = [run.level if run.rewards else run.after for run in runs]
        yield f"# {name}: {_list(levels)}; saved weights {_list(run.before for run in runs)} to " + (
            f"{_list(run.after for run in runs)}; {seconds:.0f} s a run"
        )


def _run(name: str, seed: int, learning: Learning) -> Learnt:
    if name == "sft":
        return learning.fine_tuned(seed, save_every_steps=SAVE_EVERY_STEPS)
    return learning.reinforced(name, seed)


def _points(run: Learnt) -> list[tuple[int, float]]:
    return list(enumerate(run.rewards, start=1)) or sorted(run.held_out.items())


def _list(shares: Iterable[float]) -> str:
    return ", ".join(f"{share:.3f}" for share in shares)


def curves(printed: Iterable[str]) -> dict[str, list[list[tuple[int, float]]]]:
    """The points of what was printed, by algorithm and seed."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for line in printed:
        if not line.strip() or line.startswith((HEADER, "#")):
            continue
        name, seed, step, right = line.split(",")
        found.setdefault(name, {}).setdefault(seed, []).append((int(step), float(right)))
    return {name: list(found[name].values()) for name in NAMES if name in found}


def measured(names: list[str], seeds: list[int]) -> list[str]:
    printed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        ray = start_ray(cpus=2, gpus=2)
        maker = AttemptMaker(root, make_model("tiny", root), ray.address, fork_server=ray.fork_server)
        try:
            for line in lines(names, seeds, Learning(maker)):
                print(line, flush=True)
                printed.append(line)
        finally:
            for process in maker.started:
                process.kill()
                process.wait()
            ray.stop()
    return printed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--curves", type=Path, nargs="+")
    options = parser.parse_args()
    if options.curves:
        printed = [line for path in options.curves for line in path.read_text().splitlines()]
    else:
        printed = measured(options.names, options.seeds)
    if options.svg:
        options.svg.write_text(draw(curves(printed), LEVEL))


if __name__ == "__main__":
    main()
