"""A user's own reward: what it is worth, and that neither a mistake nor an attack gets further than an error."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from services import rewards
from services.mesh.errors import InvalidArgument
from services.rewards import RewardContext, RewardError, RewardSample, Score
from services.rewards.sandbox import host
from services.rewards.spec import DEFAULT_REWARD_SITE, CustomCode, RewardSite

PROMPT = [{"role": "user", "content": "6 · 7?"}]
SAMPLES = [RewardSample(PROMPT, text, "42", {"row": row}) for row, text in enumerate(("42", "41", "no idea"))]
ROOT = Path(__file__).parents[3]


def isolates() -> bool:
    try:
        host.RewardSandbox(host.SandboxSettings("def score(samples): return []", True, 1 << 30, 10)).close()
    except RewardError as error:
        return error.reason != "REWARD_NOT_ISOLATED"
    return True


isolated = pytest.mark.skipif(not isolates(), reason="this machine makes no namespaces for us")


def score(source: str, mode: CustomCode = "allow", **params: Any) -> list[Score]:
    given = {"source": source, "timeout_seconds": 10, **params}
    with rewards.opened("custom", given, RewardContext(RewardSite(custom_code=mode))) as judge:
        return judge.score(SAMPLES)


def failure(source: str, mode: CustomCode = "allow", **params: Any) -> RewardError:
    with pytest.raises(RewardError) as caught:
        score(source, mode, **params)
    return caught.value


def each(body: str) -> str:
    """Code that does `body` for each `sample`, which leaves a `worth`."""
    lines = "".join(f"        {line}\n" for line in body.splitlines())
    head = "def score(samples):\n    found = []\n    for sample in samples:\n"
    return f"{head}{lines}        found.append(worth)\n    return found\n"


@isolated
def test_numbers_and_parts() -> None:
    assert [one.score for one in score(each("worth = len(sample['completion'])"))] == [2, 2, 7]
    source = each("worth = {'score': 0.5, 'parts': {'right': sample['completion'] == sample['answer']}}")
    assert "finite number" in str(failure(source)), "True is no number"
    body = "right = float(sample['completion'] == sample['answer'])\n"
    source = each(body + "worth = {'score': right, 'parts': {'row': sample['metadata']['row']}}")
    assert score(source) == [Score(1, {"row": 0}), Score(0, {"row": 1}), Score(0, {"row": 2})]


@isolated
def test_it_sees_the_prompt_and_what_is_installed() -> None:
    source = (
        "import numpy as np, re\n"
        "def score(samples): return np.array([len(s['prompt'][0]['content']) / 2 for s in samples])"
    )
    assert [one.score for one in score(source)] == [3] * 3


@isolated
def test_it_lives_from_batch_to_batch() -> None:
    source = "calls = 0\ndef score(samples):\n    global calls\n    calls += 1\n    return [calls] * len(samples)"
    params = {"source": source}
    with rewards.opened("custom", params, RewardContext(RewardSite(custom_code="allow"))) as judge:
        assert [judge.score(SAMPLES)[0].score for _ in range(3)] == [1, 2, 3]


WRONG = [
    (each("worth = 1 / (len(sample['completion']) - 7)"), 2, "ZeroDivisionError: division by zero (line 4)"),
    (each("worth = float('nan') if sample['completion'] == '41' else 0"), 1, "nan"),
    (each("worth = 1e308 * 10 if sample['completion'] == '41' else 0"), 1, "inf"),
    (each("worth = 'good'"), 0, "good"),
    (each("worth = None"), 0, "None"),
    (each("worth = {'score': 1, 'part': 2}"), 0, "a dict has score and parts"),
    (each("worth = {'parts': {}}"), 0, "finite number"),
    (each("worth = {'score': 1, 'parts': {str(sample['metadata']['row']): 1}}"), 1, "parts"),
    (each("worth = {'score': 1, 'parts': {sample['completion']: 1}}"), 2, "a part 'no idea'"),
    (each("worth = {'score': 1, 'parts': {str(i): i for i in range(100)}}"), 0, "32 are the most"),
    (each("worth = 10 ** 400"), 0, "finite number"),
    (each("worth = 1e300 if sample['completion'] == '41' else 0"), 1, "3.4e+38 at most"),
    (each("worth = {'score': 0, 'parts': {'size': -1e39}}"), 0, "3.4e+38 at most"),
    (each("worth = object()"), 0, "neither a number nor a dict"),
    ("def score(samples): return [1]", None, "returned 1 scores for 3 samples"),
    ("def score(samples): return 1", None, "returned a int for 3 samples"),
    ("def score(samples): pass", None, "returned a NoneType"),
    ("def score(): return []", 0, "TypeError"),
    ("def judge(samples): return []", None, "no function score"),
    ("def score(samples:", None, "SyntaxError"),
    ("import no_such_module", None, "ModuleNotFoundError: No module named 'no_such_module' (line 1)"),
    ("raise SystemExit", None, "SystemExit"),
    ("import os\ndef score(samples): os._exit(3)", 0, "died (exit status 3)"),
]


@isolated
@pytest.mark.parametrize(("source", "index", "says"), WRONG, ids=[says for _, _, says in WRONG])
def test_a_mistake_is_an_error_that_names_the_sample(source: str, index: int | None, says: str) -> None:
    error = failure(source)
    assert (error.index, says in str(error)) == (index, True), str(error)
    if index is not None:
        assert f"sample {index} ({SAMPLES[index].completion!r})" in str(error)


@isolated
def test_a_hang_is_an_error_that_names_the_sample() -> None:
    source = each("while sample['completion'] == '41': pass\nworth = 0")
    error = failure(source, timeout_seconds=1)
    assert error.index == 1 and "did not answer within 1 s" in str(error)


@isolated
def test_what_hangs_before_it_is_asked_has_no_longer_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_START_SECONDS", 20)
    error = failure("while True: pass", timeout_seconds=1)
    assert (error.reason, "does not come to an end within 1 s" in str(error)) == ("REWARD_FAILED", True), error


@isolated
def test_a_run_that_is_to_stop_does_not_wait_for_it() -> None:
    class Stop(Exception):
        pass

    def check() -> None:
        raise Stop

    params = {"source": each("while True: pass"), "timeout_seconds": 600}
    site = RewardSite(custom_code="allow")
    with pytest.raises(Stop), rewards.opened("custom", params, RewardContext(site, check=check)) as judge:
        judge.score(SAMPLES)


def attack(body: str) -> str:
    head = "import os, socket, sys, subprocess, threading, ctypes\nLIBC = ctypes.CDLL(None)\ndef score(samples):\n"
    return f"{head}    {body}\n    return [1] * len(samples)"


ATTACKS = [
    ("a file of ours", "open({token!r}).read()", "No such file"),
    ("a password file", "open('/etc/shadow').read()", "No such file"),
    ("this process's environment", "open('/proc/self/environ').read()", "No such file"),
    ("a write beside the interpreter", "open(sys.prefix + '/x', 'w')", "Read-only file system"),
    ("a write to the root", "open('/x', 'w')", "Read-only file system"),
    ("a connection", "socket.create_connection(('127.0.0.1', {port}), 2)", "not permitted"),
    ("a unix socket", "socket.socket(socket.AF_UNIX)", "not permitted"),
    ("a name", "socket.getaddrinfo('localhost', 80)", "rror"),
    ("a process", "os.fork()", "not permitted"),
    ("a command", "subprocess.run(['/bin/true'])", "rror"),
    ("a thread", "threading.Thread(target=print).start()", "can't start new thread"),
    ("a fork bomb", "[os.fork() for _ in range(100)]", "not permitted"),
    ("memory", "bytearray(4 << 30)", "MemoryError"),
    ("memory, bit by bit", "x = []; [x.append('a' * (1 << 20)) for _ in range(4096)]", "MemoryError"),
    ("a disk", "open('/tmp/x', 'w').write('a' * (80 << 20))", "File too large"),
    ("root", "os.setuid(0)", "not permitted"),
    ("a mount", "assert ctypes.CDLL(None, use_errno=True).umount(b'/tmp') == 0, 'kept'", "kept"),
    ("the other processes", "os.kill(2, 9)", "No such process"),
    ("memory of files", "[os.write(os.memfd_create('x'), bytes(48 << 20)) for _ in range(50)]", "not permitted"),
    ("memory of System V", "assert LIBC.shmget(0, 1 << 30, 0o1600) >= 0, 'kept'", "kept"),
    ("messages of System V", "assert LIBC.msgget(0, 0o1600) >= 0, 'kept'", "kept"),
    ("semaphores of System V", "assert LIBC.semget(0, 250, 0o1600) >= 0, 'kept'", "kept"),
    ("memory of POSIX", "from multiprocessing import shared_memory as s; s.SharedMemory('x', True, 1 << 30)", "rror"),
    ("memory that is shared", "import mmap; mmap.mmap(-1, 48 << 20)", "not permitted"),
    ("memory of a device", "import mmap; mmap.mmap(os.open('/dev/zero', os.O_RDWR), 48 << 20)", "No such file"),
    ("memory of names", "import tempfile; [tempfile.mkdtemp() for _ in range(1 << 20)]", "No space left"),
    ("io_uring", "assert ctypes.CDLL(None).syscall(425, 8, bytes(120)) >= 0, 'kept'", "kept"),
    ("namespaces", "assert ctypes.CDLL(None).unshare(0x10000000) == 0, 'kept'", "kept"),
]


@isolated
@pytest.mark.parametrize(("body", "says"), [one[1:] for one in ATTACKS], ids=[one[0] for one in ATTACKS])
def test_an_attack_is_an_error(body: str, says: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o644)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        error = failure(attack(body.replace("{token!r}", repr(str(token))).replace("{port}", str(port))))
    assert says in str(error), str(error)
    assert "secret" not in str(error)


@isolated
@pytest.mark.parametrize("frame", ['{{"pid": {pid}}}', '{{"kind": "isolation", "error": "none here"}}'])
def test_it_can_not_speak_for_the_cage(frame: str) -> None:
    """Neither have another process killed in the place of its own, nor be run again without isolation."""
    with subprocess.Popen(["sleep", "60"]) as other:
        source = (
            f"import os, struct\nforged = {frame.format(pid=other.pid)!r}.encode()\n"
            "for pipe in range(3, 20):\n"
            "    try: os.write(pipe, struct.pack('>I', len(forged)) + forged)\n"
            "    except OSError: pass\n"
            "def score(samples):\n    return [1] * len(samples)\n"
        )
        error = failure(source, "allow-unisolated")
        assert error.reason == "REWARD_FAILED" and "does not run" in str(error)
        assert other.poll() is None
        other.kill()


@isolated
def test_threads_that_ask_at_a_time_each_get_their_own_answers() -> None:
    """As verl's reward workers do."""
    params = {"source": each("worth = int(sample['completion'])"), "timeout_seconds": 60}
    site = RewardSite(custom_code="allow")
    with rewards.opened("custom", params, RewardContext(site)) as judge, ThreadPoolExecutor(8) as threads:
        asked = [[RewardSample(PROMPT, str(number), None)] for number in range(200)]
        assert [one.score for [one] in threads.map(judge.score, asked)] == list(range(200))


@isolated
def test_it_sees_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLHF_POSTGRES_URL", "postgresql://hunter2")
    seen = "{dict(os.environ)} {os.listdir('/')} {os.listdir('/tmp')} {os.getuid()}"
    source = f'import os\ndef score(samples): raise ValueError(f"{seen}")'
    told = str(failure(source))
    assert "hunter2" not in told and "RLHF" not in told
    for folder in ("home", "var", "proc", "sys", "run", "mnt"):
        assert f"'{folder}'" not in told
    found = re.search(r"\] (\[[^]]*\]) ([0-9]+) \(line 2\)", told)
    assert found is not None, told
    # Of the machine's /tmp only what the interpreter lies in.
    assert set(ast.literal_eval(found[1])) <= {
        part for path in (sys.prefix, sys.base_prefix) for part in path.split("/")
    }
    if os.geteuid() == 0:
        assert int(found[2]) >= 61_184, told


@isolated
def test_nothing_is_left_behind() -> None:
    """Closed while it computes; and when whoever started it is killed without a word."""
    judge = rewards.open_judge("custom", {"source": each("worth = 0")}, RewardContext(RewardSite(custom_code="allow")))
    inner = judge._judge._cage._inner  # type: ignore[attr-defined]
    assert Path(f"/proc/{inner}").exists()
    judge.close()
    assert not Path(f"/proc/{inner}").exists()
    program = (
        "import sys\nfrom services import rewards\nfrom services.trainer.training.launch_plan import RewardSite\n"
        "params = {'source': 'import time\\nfor _ in range(2): pass\\ndef score(samples):\\n while True: pass'}\n"
        "judge = rewards.open_judge('custom', params, rewards.RewardContext(RewardSite(custom_code='allow')))\n"
        "print(judge._judge._cage._inner, flush=True)\n"
        "judge.score([rewards.RewardSample('', '', None)])\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    inner = int(child.stdout.readline())
    child.kill()
    child.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{inner}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{inner}").exists()


@isolated
def test_without_privileges_it_is_isolated_just_so() -> None:
    """As a plain user: namespaces under a namespace of users."""
    source = 'import os\ndef score(samples): return [os.getpid() + os.path.exists("/proc")]'
    program = (
        "from services import rewards\nfrom services.trainer.training.launch_plan import RewardSite\n"
        f"params = {{'source': {source!r}}}\n"
        "with rewards.opened('custom', params, rewards.RewardContext(RewardSite(custom_code='allow'))) as judge:\n"
        "    print(judge.score([rewards.RewardSample('', '', None)])[0].score)\n"
    )
    command = ["unshare", "--user", "--map-user=1000", "--map-group=1000", sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if "unshare" in done.stderr.partition("\n")[0]:
        pytest.skip("this machine makes no namespace of users")
    assert done.stdout.strip() == "1.0", done.stderr


INHERITED = ["umask 077", "umask 777; ulimit -n 40; ulimit -v 1500000; unset HOME PATH LANG"]


@isolated
@pytest.mark.parametrize("inherited", INHERITED)
@pytest.mark.parametrize("user", ["", "unshare --user --map-user=1000 --map-group=1000"], ids=["", "unprivileged"])
def test_what_its_parent_has_set_changes_nothing(inherited: str, user: str) -> None:
    """`rlhf up` closes to others whatever its processes make (umask 077)."""
    source = (
        "import os, sys, tempfile, numpy\nfrom pathlib import Path\n"
        "null = [open(f'/dev/{name}', 'rb').read(0) for name in ('null', 'urandom')]\n"
        "(Path.home() / 'cache').write_text('x')\n"
        "with tempfile.TemporaryFile() as file: file.write(b'x')\n"
        "def score(samples): return [7]"
    )
    program = (
        "from services import rewards\nfrom services.trainer.training.launch_plan import RewardSite\n"
        f"params = {{'source': {source!r}}}\n"
        "with rewards.opened('custom', params, rewards.RewardContext(RewardSite(custom_code='allow'))) as judge:\n"
        "    print(judge.score([rewards.RewardSample('', '', None)])[0].score)\n"
    )
    words = [f'{inherited} 2>/dev/null; exec /usr/bin/env PYTHONPATH="$2" $3 "$0" -c "$1"']
    command = ["/bin/sh", "-c", *words, sys.executable, program, str(ROOT), user]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if "unshare" in done.stderr.partition("\n")[0]:
        pytest.skip("this machine makes no namespace of users")
    assert done.stdout.strip() == "7.0", done.stderr


@isolated
def test_what_it_wrote_to_stderr_is_in_the_error_of_its_death() -> None:
    """Its end, however much it was, and whoever wrote it: the code, the interpreter or a library."""
    said = "import os, sys\ndef die():\n    print('x' * 300_000, 'the reason', file=sys.stderr)\n    os._exit(3)\n"
    for source in (f"{said}die()", f"{said}def score(samples): die()"):
        told = str(failure(source))
        assert "exit status 3; stderr: xxx" in told and told.count("the reason") == 1 and len(told) < 3_000, told


@isolated
def test_more_on_stderr_than_a_pipe_holds_stops_nobody() -> None:
    head = "import sys\nprint('x' * 300_000, file=sys.stderr)\n"
    assert [one.score for one in score(head + each("print('x' * 300_000, file=sys.stderr)\nworth = 1"))] == [1] * 3


@isolated
@pytest.mark.skipif(os.geteuid() != 0, reason="its user is ours where we are not root")
def test_an_interpreter_that_is_closed_to_its_user_is_told_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setattr(host, "_SYSTEM", (*host._SYSTEM, str(closed)))
    error = failure(each("worth = 1"))
    assert error.reason == "REWARD_NOT_ISOLATED" and f"chmod -R o+rX {closed}" in str(error), error


def no_isolation(*_: object) -> Any:
    raise RewardError("no namespaces", reason="REWARD_NOT_ISOLATED", remedy="as it stands")


def test_where_it_can_not_be_isolated_it_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[bool] = []
    real = host.RewardSandbox

    def only_bare(settings: host.SandboxSettings, *rest: Any) -> host.RewardSandbox:
        started.append(settings.isolated)
        return no_isolation() if settings.isolated else real(settings, *rest)

    monkeypatch.setattr(host, "RewardSandbox", only_bare)
    assert failure(each("worth = 1")).reason == "REWARD_NOT_ISOLATED"
    assert started == [True]
    assert [one.score for one in score(each("worth = 1"), "allow-unisolated")] == [1, 1, 1]
    assert started == [True, True, False]
    for body in ("os.fork()", "socket.socket()", "os.chroot('/')", "os.setgroups([1])"):
        assert "not permitted" in str(failure(attack(body), "allow-unisolated")), body


def test_it_is_off_until_a_setting_allows_it() -> None:
    with pytest.raises(InvalidArgument, match="RLHF_TRAINER_CUSTOM_CODE=allow") as caught:
        rewards.parse("custom", {"source": "x"}, DEFAULT_REWARD_SITE)
    assert [violation.field for violation in caught.value.violations] == ["reward.params.source"]
    assert failure("x", "refuse").reason == "REWARD_NOT_ALLOWED"
    rewards.parse("custom", {"source": "x"}, RewardSite(custom_code="allow"))


def test_a_plan_names_the_code_by_its_hash() -> None:
    source = "def score(samples): return [0 for _ in samples]"
    digest = hashlib.sha256(source.encode()).hexdigest()
    complete = rewards.complete("custom", {"source": source})
    assert complete["source_sha256"] == digest
    with pytest.raises(InvalidArgument, match="source_sha256"):
        rewards.parse("custom", {**complete, "source": source + " "})
    with pytest.raises(InvalidArgument, match=r"source: .*at most 65536"):
        rewards.parse("custom", {"source": "#" * 65_537})
