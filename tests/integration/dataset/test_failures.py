"""What dies is taken up again: the service, the worker, the reader, a full disk; and nothing is left lying about."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pyarrow as pa
import pyarrow.parquet
import pytest
from rlhf.dataset.v1 import dataset_service_pb2 as pb

from services.mesh.errors import NotFound, PlatformError, ResourceExhausted
from services.mesh.processes import procfs
from services.mesh.rpc.client import call
from services.supervisor import embedded
from tests.integration.dataset.caller import Caller, State, canonical, eventually, lines, names_in, prompt_rows
from tests.integration.dataset.conftest import calling, process, serving

DATA = lines(prompt_rows(20_000, padding=50))


@contextlib.asynccontextmanager
async def service_process(own: dict[str, str], port: int) -> AsyncIterator[tuple[subprocess.Popen[bytes], Caller]]:
    values = {**own, "RLHF_DATASET_LISTEN": f"127.0.0.1:{port}"}
    with process("services.dataset", values, "service") as child:
        async with calling(f"127.0.0.1:{port}", values) as caller:
            yield child, caller


def readers(worker: int) -> list[int]:
    """Processes that a worker has started to parse a file."""
    found = []
    for pid in procfs.pids():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if b"services.dataset.uploads.sandbox_main" in words and int(stat[1]) == worker:
                found.append(pid)
    return found


async def caught_reader(worker: int) -> int:
    """The reader of the worker, stopped as soon as its limits are set."""
    await eventually(lambda: readers(worker))
    pid = readers(worker)[0]
    await eventually(lambda: resource.prlimit(pid, resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY)
    os.kill(pid, signal.SIGSTOP)
    return pid


async def committed(caller: Caller, data: bytes = DATA) -> str:
    upload = await caller.announce((await caller.dataset()).name, data)
    await caller.write(upload.name, data)
    return (await caller.commit(upload.name)).name


async def test_killed_service_loses_no_byte(own: dict[str, str]) -> None:
    port = embedded.free_port()
    async with service_process(own, port) as (child, caller):
        upload = await caller.announce((await caller.dataset()).name, DATA)

        async def half() -> AsyncIterator[pb.WriteUploadRequest]:
            yield pb.WriteUploadRequest(name=upload.name, chunk=DATA[:1_000_000])
            await asyncio.sleep(60)

        writing = caller.stub.WriteUpload(half())
        staged = caller.home / "uploads" / f"{upload.name.rpartition('/')[2]}.part"
        await eventually(lambda: staged.exists() and staged.stat().st_size == 1_000_000)
        child.kill()
        with pytest.raises(PlatformError):
            await call(writing)
        child.wait()
    async with service_process(own, port) as (child, caller):
        assert (await caller.get_upload(upload.name)).received_bytes == 1_000_000
        done = await caller.write(upload.name, DATA, 1_000_000)
        assert done.received_bytes == len(DATA)
        await caller.commit(upload.name)
        with process("services.dataset.worker", own, "worker"):
            ended = await caller.ended(upload.name)
    assert ended.state == State.STATE_SUCCEEDED, ended


async def test_killed_worker_is_replaced_and_its_reader_dies_with_it(own: dict[str, str]) -> None:
    async with serving(own) as caller:
        with process("services.dataset.worker", own, "first") as worker:
            name = await committed(caller)
            reader = await caught_reader(worker.pid)
            worker.kill()
            worker.wait()
        await eventually(lambda: procfs.identify(reader) is None)
        assert (await caller.get_upload(name)).state == State.STATE_VALIDATING
        with process("services.dataset.worker", own, "second"):
            ended = await caller.ended(name)
            await eventually(lambda: not names_in(caller.home / "uploads"))
        assert ended.state == State.STATE_SUCCEEDED, ended
        assert ended.dataset_version.endswith("/versions/1")
        assert await caller.download(ended.dataset_version) == canonical(prompt_rows(20_000, padding=50))
    with psycopg.connect(own["RLHF_POSTGRES_URL"]) as connection:
        attempts = connection.execute("SELECT number, end_reason FROM dataset.job_attempts ORDER BY number").fetchall()
    assert attempts == [(1, "its worker was lost"), (2, "")]


async def test_stopped_worker_hands_over_at_once(own: dict[str, str]) -> None:
    async with serving({**own, "RLHF_DATASET_LEASE_SECONDS": "60"}) as caller:
        with process("services.dataset.worker", own, "first") as worker:
            name = await committed(caller)
            reader = await caught_reader(worker.pid)
            worker.terminate()
            assert worker.wait(10) == 0
        assert procfs.identify(reader) is None
        with process("services.dataset.worker", own, "second"):
            ended = await caller.ended(name)
        assert ended.state == State.STATE_SUCCEEDED, ended


async def test_reader_that_crashes_is_tried_again_and_given_up(own: dict[str, str]) -> None:
    async with serving(own) as caller:
        with process("services.dataset.worker", own, "worker") as worker:
            name = await committed(caller)
            os.kill(await caught_reader(worker.pid), signal.SIGKILL)
            ended = await caller.ended(name)
            assert ended.state == State.STATE_SUCCEEDED, "one crash is forgiven"

            name = await committed(caller)
            for _ in range(3):
                pid = await caught_reader(worker.pid)
                os.kill(pid, signal.SIGSEGV)
                os.kill(pid, signal.SIGCONT)
                await eventually(lambda pid=pid: procfs.identify(pid) is None)
            ended = await caller.ended(name)
            assert ended.state == State.STATE_FAILED
            assert ended.error.reason == "READER_DIED"
            assert ended.error.message == "the process that read it died (SIGSEGV); given up after 3 attempts"
            # The worker lives and works.
            upload = await caller.upload((await caller.dataset()).name, lines(prompt_rows(3)))
            assert upload.state == State.STATE_SUCCEEDED
            assert worker.poll() is None


async def test_file_that_wants_too_much_memory_is_refused(own: dict[str, str]) -> None:
    """One row of 300 MB: allocated in one piece, before any limit on rows can be looked at."""
    table = pa.table({"prompt": ["a" * (300 << 20)], "answer": ["b"]})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd", use_dictionary=False)
    del table
    values = {**own, "RLHF_DATASET_READER_MEMORY_BYTES": str(1 << 29)}
    async with serving(values) as caller:
        with process("services.dataset.worker", values, "worker"):
            upload = await caller.upload((await caller.dataset()).name, buffer.getvalue(), "rows.parquet")
    assert upload.state == State.STATE_FAILED
    assert upload.error.reason == "FILE_TOO_COMPLEX"


async def test_file_that_wants_too_much_time_is_refused(own: dict[str, str]) -> None:
    values = {**own, "RLHF_DATASET_READER_CPU_SECONDS": "1"}
    slow = b"".join(b'{"prompt": "p", "answer": "a", "k%d": 1}\n' % i for i in range(300_000))
    async with serving(values) as caller:
        with process("services.dataset.worker", values, "worker"):
            upload = await caller.upload((await caller.dataset()).name, slow)
    assert upload.state == State.STATE_FAILED
    assert upload.error.reason == "READER_DIED"
    assert "1 s of CPU time; given up after 1 attempts" in upload.error.message


async def test_full_disk_keeps_what_came(own: dict[str, str]) -> None:
    port, data = embedded.free_port(), DATA * 6
    async with service_process(own, port) as (child, caller):
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (1_500_000, resource.RLIM_INFINITY))
        upload = await caller.announce((await caller.dataset()).name, data)
        # Several times: the status has to arrive although the client is still sending then.
        for start in (0, *[1_500_000] * 5):
            with pytest.raises(ResourceExhausted) as refused:
                await caller.write(upload.name, data, start, 1 << 20)
            assert refused.value.reason == "DISK_FULL"
            assert refused.value.metadata == {"received_bytes": "1500000"}
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert (await caller.write(upload.name, data, 1_500_000)).received_bytes == len(data)


async def test_abandoned_upload_expires_and_strays_are_removed(own: dict[str, str]) -> None:
    values = {**own, "RLHF_DATASET_UPLOAD_EXPIRY_SECONDS": "1"}
    async with serving(values) as caller:
        dataset = await caller.dataset()
        upload = await caller.announce(dataset.name, DATA)
        await caller.write(upload.name, DATA[:1000])
        uploads = caller.home / "uploads"
        (uploads / "01a20a66-5ae7-76ce-a83f-1bdea17de364.scratch").mkdir()
        (uploads / "01a20a66-5ae7-76ce-a83f-1bdea17de364.part").touch()
        (uploads / "note.txt").touch()
        kept = await committed(caller)
        with process("services.dataset.worker", values, "worker"):
            assert (await caller.ended(kept)).state == State.STATE_SUCCEEDED, "what is committed does not expire"
            await eventually(lambda: names_in(uploads) == ["note.txt"])
        with pytest.raises(NotFound):
            await caller.get_upload(upload.name)
        assert (await caller.announce(dataset.name, DATA)).received_bytes == 0


async def test_deleting_the_dataset_stops_the_reader(own: dict[str, str]) -> None:
    async with serving(own) as caller:
        with process("services.dataset.worker", own, "worker") as worker:
            name = await committed(caller)
            reader = await caught_reader(worker.pid)
            await call(caller.stub.DeleteDataset(pb.DeleteDatasetRequest(name=name.rpartition("/uploads/")[0])))
            await eventually(lambda: procfs.identify(reader) is None)
            await eventually(lambda: not names_in(caller.home / "uploads"))
            upload = await caller.upload((await caller.dataset()).name, lines(prompt_rows(3)))
            assert upload.state == State.STATE_SUCCEEDED


async def test_lost_staging_file_is_told(own: dict[str, str]) -> None:
    async with serving(own) as caller:
        name = await committed(caller)
        (caller.home / "uploads" / f"{name.rpartition('/')[2]}.part").unlink()
        with process("services.dataset.worker", own, "worker"):
            assert (await caller.ended(name)).error.reason == "FILE_LOST"


def test_neither_service_nor_worker_imports_torch() -> None:
    heavy = "{'torch', 'verl', 'ray', 'pyarrow'}"
    code = f"import sys, services.dataset.app, services.dataset.worker; print({heavy} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


def test_service_is_ready_after_little_work(own: dict[str, str]) -> None:
    """Under two seconds, of CPU time: the clock says more about what else the machine does."""
    with process("services.dataset", own, "service") as child:
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        user_ticks, system_ticks = int(fields[11]), int(fields[12])
    assert (user_ticks + system_ticks) / os.sysconf("SC_CLK_TCK") < 2
