"""Jobs of any kind: get, list, cancel, delete, wait for, and what they report."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.empty_pb2 import Empty
from rlhf.type.v1.job_state_pb2 import JobState
from rlhf.type.v1.log_line_pb2 import LogLine
from rlhf.type.v1.metric_point_pb2 import MetricPoint
from rlhf.type.v1.sample_pb2 import Sample

from services.client import references
from services.client._sync.resource import Resource

ENDED = (JobState.JOB_STATE_SUCCEEDED, JobState.JOB_STATE_FAILED, JobState.JOB_STATE_CANCELLED)
Job = TypeVar("Job")
Event = TypeVar("Event")


@dataclass(frozen=True)
class JobMessages:
    """The RPCs and messages of one kind of job: those of a noun such as `TrainingJob`, in a module of requests."""

    noun: str
    # Of names, in the words of services.mesh.names.
    pattern: str
    requests: Any
    job: type[Any]

    def request(self, rpc: str) -> Any:
        return getattr(self.requests, f"{rpc}Request")

    def response(self, rpc: str) -> Any:
        return getattr(self.requests, f"{rpc}Response")


class Jobs(Resource, Generic[Job, Event]):
    kind: JobMessages

    def get(self, name: str) -> Job:
        """Raises NotFound."""
        return self._of_one("Get", name)

    def list(self, *, states: Sequence[JobState.ValueType] = (), limit: int = 0) -> Iterator[Job]:
        """Newest first, those in one of `states` (empty takes every state); 0 takes all."""
        rpc = f"List{self.kind.noun}s"
        request = self.kind.request(rpc)(parent=self._project, states=states)
        reply = self.kind.response(rpc)
        (field,) = (field.name for field in reply.DESCRIPTOR.fields if field.message_type is not None)
        return self._calls.pages(rpc, request, reply, lambda page: getattr(page, field), limit)

    def cancel(self, name: str) -> Job:
        """Ends at its next step. Raises NotFound, FailedPrecondition where it has ended."""
        return self._of_one("Cancel", name)

    def delete(self, name: str, *, force: bool = False) -> None:
        """With all that it made and reported. Raises NotFound, FailedPrecondition before it has ended, and unless
        forced while something uses what it made."""
        rpc = f"Delete{self.kind.noun}"
        self._calls.call(rpc, self.kind.request(rpc)(name=self._full(name), force=force), Empty)

    def wait(self, name: str, *, timeout_seconds: float | None = None) -> Job:
        """The job once it has ended, however it did. Raises DeadlineExceeded after `timeout_seconds`."""
        job: Any = self.get(name)
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while job.state not in ENDED:
            left = None if deadline is None else deadline - time.monotonic()
            for _ in self.events(job.name, after_sequence=job.sequence, timeout_seconds=left):
                pass
            job = self.get(job.name)
        return job

    def events(
        self, name: str, *, after_sequence: int = 0, follow: bool = True, timeout_seconds: float | None = None
    ) -> Generator[Event, None]:
        """What happened after `after_sequence` (a `last_sequence`, or the `sequence` of a job), until the job has
        ended; without `follow` what did until now. Goes on after a broken connection: nothing is missed or comes
        twice. Raises DeadlineExceeded after `timeout_seconds`."""
        full, cursor, rpc = self._full(name), after_sequence, "StreamJobEvents"
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds

        def request() -> Any:
            return self.kind.request(rpc)(name=full, after_sequence=cursor, stored_only=not follow)

        with closing(self._calls.resume(rpc, request, self.kind.response(rpc), deadline)) as replies:
            for reply in replies:
                cursor = max(cursor, reply.last_sequence)
                if reply.WhichOneof("event"):
                    yield reply

    def metrics(
        self, name: str, metrics: Sequence[str] = (), *, after_ordinal: int = 0, follow: bool = True
    ) -> Generator[MetricPoint, None]:
        """Points after `after_ordinal` of these metrics (`reward/*` is a prefix; none means all), until the job has
        ended; without `follow` those until now. Goes on after a broken connection: nothing is missed or comes twice."""
        full, cursor, rpc = self._full(name), after_ordinal, "StreamMetrics"

        def request() -> Any:
            wanted = {"metrics": metrics, "stored_only": not follow}
            return self.kind.request(rpc)(name=full, after_ordinal=cursor, **wanted)

        with closing(self._calls.resume(rpc, request, self.kind.response(rpc))) as replies:
            for reply in replies:
                cursor = max(cursor, reply.last_ordinal)
                for point in reply.points:
                    yield point

    def logs(self, name: str, *, after_ordinal: int = 0, follow: bool = True) -> Generator[LogLine, None]:
        """Lines after `after_ordinal` that the job's processes printed, until it has ended; without `follow` those
        until now. Goes on after a broken connection: nothing is missed or comes twice."""
        full, cursor, rpc = self._full(name), after_ordinal, "StreamLogs"

        def request() -> Any:
            return self.kind.request(rpc)(name=full, after_ordinal=cursor, stored_only=not follow)

        with closing(self._calls.resume(rpc, request, self.kind.response(rpc))) as replies:
            for reply in replies:
                cursor = max(cursor, reply.last_ordinal)
                for line in reply.lines:
                    yield line

    def samples(self, name: str, *, step: int | None = None, split: str = "", limit: int = 0) -> Iterator[Sample]:
        """What the model answered. `split` is `validation`, `rollout` or empty for both; 0 takes all."""
        request = self.kind.request("ListSamples")(parent=self._full(name), step=step, split=split)
        reply = self.kind.response("ListSamples")
        return self._calls.pages("ListSamples", request, reply, lambda page: page.samples, limit)

    def _of_one(self, verb: str, name: str) -> Job:
        rpc = f"{verb}{self.kind.noun}"
        return self._calls.call(rpc, self.kind.request(rpc)(name=self._full(name)), self.kind.job)

    def _full(self, name: str) -> str:
        return references.resource(self._project, self.kind.pattern, name, "name")
