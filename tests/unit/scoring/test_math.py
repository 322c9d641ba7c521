"""Mathematical equality, and that no expression can stall, crash or confuse the caller."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from services.scoring import math, math_process


@pytest.mark.parametrize(
    ("candidate", "reference"),
    [
        (r"The answer is \boxed{\frac{1}{2}}", "0.5"),
        ("$1+x^2$", "x^2+1"),
        ("$x+x$", "2x"),
        (r"$\{2,1\}$", r"\{1,2\}"),
        ("it is 72.", "72"),
        (r"\boxed{(1,2)}", "$(1,2)$"),
    ],
)
def test_equal(candidate: str, reference: str) -> None:
    assert math.verify(candidate, math.delimited(reference), 5) == math.Verdict(correct=True, parsed=True)


def test_not_equal_and_not_parsed() -> None:
    assert math.verify("$x+1$", "$x$", 5) == math.Verdict(correct=False, parsed=True)
    assert math.verify("no idea", "$5$", 5) == math.Verdict(correct=False, parsed=False)
    # Two boxes are a set: naming every candidate does not pay.
    assert not math.verify(r"\boxed{41}\boxed{42}", "42", 5).correct


def test_a_comparison_that_never_ends_is_cut_and_the_next_one_works() -> None:
    started = time.monotonic()
    assert math.verify("$9^{9^{9^{9}}}$", "5", 0.3) == math.Verdict(correct=False, parsed=False, cut=True)
    assert math.verify("$5$", "5", 5).correct
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    "text", ["\x00", "\ud800 5 \udfff", "$" + "(" * 5_000, r"\boxed{" * 2_000, "1" * 100_000, "\n" * 10_000, "{}$$\\"]
)
def test_any_text_gets_a_verdict(text: str) -> None:
    assert not math.verify(text, "5" * 3, 5).correct


def test_threads_get_their_own_answers() -> None:
    wrong: list[int] = []

    def ask(number: int) -> None:
        if (
            not math.verify(f"${number}$", f"{number}", 5).correct
            or math.verify(f"${number}$", f"{number + 1}", 5).correct
        ):
            wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def _worker(supervisor: int) -> int:
    """The supervisor's child, which it forks right after it has said that it is ready."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children")
    deadline = time.monotonic() + 10
    while not (found := children.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return int(found[0])


def _own(comparer: math._MathProcess) -> subprocess.Popen[bytes]:
    assert comparer.verify("$5$", "5", 5).correct
    assert comparer._process is not None
    return comparer._process


def test_an_idle_worker_that_is_killed_costs_no_verdict() -> None:
    comparer = math._MathProcess()
    worker = _worker(_own(comparer).pid)
    os.kill(worker, signal.SIGKILL)
    assert [comparer.verify(f"${n}$", "5", 5).correct for n in (4, 5, 6)] == [False, True, False]


def test_a_process_that_is_killed_is_started_again() -> None:
    comparer = math._MathProcess()
    first = _own(comparer)
    worker = _worker(first.pid)
    first.kill()
    first.wait()
    os.kill(worker, signal.SIGKILL)
    assert comparer.verify("$5$", "5", 5).cut
    assert comparer.verify("$5$", "5", 5).correct


def test_nothing_is_left_when_the_caller_dies() -> None:
    """Closing the pipe, which is all that a killed caller does, ends supervisor and worker."""
    process = math._start()
    worker = _worker(process.pid)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=10) == 0
    assert not Path(f"/proc/{worker}").exists()


def test_the_process_sees_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_SECRET_OF_THIS_TEST", "hush")
    process = math._start()
    assert b"hush" not in Path(f"/proc/{process.pid}/environ").read_bytes()
    process.communicate()


def test_the_comparison_itself() -> None:
    """In this process, where the other tests see only its replies."""
    assert math_process.compare("$x+1$", "$1+x$") == (True, True)
    assert math_process.compare("$x+1$", "$x$") == (False, True)
    assert math_process._compare_safely("none", "$x$") == (False, False)
