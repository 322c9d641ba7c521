"""Datasets: a name, a format, labels; everything else hangs below."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from services.dataset.entities import Dataset
from services.dataset.formats import formats
from services.dataset.store import datasets, uploads, uses
from services.dataset.uploads.staging import SWEEP_TOPIC
from services.mesh import names
from services.mesh.artifacts import references
from services.mesh.db.postgres import Connection, Database
from services.mesh.errors import Aborted, FailedPrecondition, InvalidArgument, Violation
from services.mesh.jobs.store import job_topic
from services.mesh.rpc.idempotency import RequestKey, claim, find_previous
from services.mesh.rpc.labels import check_labels
from services.mesh.rpc.pagination import Page, PageRequest
from services.mesh.validation.partial import find_or_report

MAX_DISPLAY_NAME_CHARACTERS = 200
# Fields of a dataset that its owner can change.
CHANGEABLE = ("display_name", "labels")
# Jobs named in the refusal to delete what they use.
_SHOWN_JOBS = 5


@dataclass(frozen=True)
class NewDataset:
    """What a caller asks for. The server makes an id when `id` is empty."""

    parent: str
    id: str
    display_name: str
    format: str
    labels: Mapping[str, str]

    def check(self) -> list[Violation]:
        """Everything that is wrong with it."""
        found = [*names.check_new_id(self.id, "dataset_id"), *_check_display_name(self.display_name)]
        if names.match(names.PROJECT, self.parent) is None:
            found.append(Violation("parent", f"must be of the form {names.PROJECT} (got {self.parent[:120]!r})"))
        try:
            formats.get(self.format, "dataset.format")
        except InvalidArgument as error:
            found += error.violations
        return [*found, *check_labels(self.labels, "dataset.labels")]


@dataclass(frozen=True)
class DatasetChange:
    """What an update sends. `paths` names the fields to take over; empty: those that can change and are set."""

    name: str
    display_name: str
    format: str
    labels: Mapping[str, str]
    etag: str
    paths: Sequence[str]

    def fields(self) -> set[str]:
        if "*" in self.paths:
            return set(CHANGEABLE)
        return set(self.paths) or {field for field in CHANGEABLE if getattr(self, field)}

    def check(self) -> list[Violation]:
        known = ", ".join(CHANGEABLE)
        found = [
            Violation("update_mask", f"{path[:80]!r} cannot be changed; one of {known}, or * alone")
            for path in self.paths
            if path not in CHANGEABLE and self.paths != ["*"]
        ]
        if "display_name" in self.fields():
            found += _check_display_name(self.display_name)
        if "labels" in self.fields():
            found += check_labels(self.labels, "dataset.labels")
        return found

    def check_format(self, dataset: Dataset) -> list[Violation]:
        if self.format in ("", dataset.format):
            return []
        return [Violation("dataset.format", f"is {dataset.format} and cannot be changed")]

    def applied(self, dataset: Dataset) -> Dataset:
        """The dataset as it is to become."""
        changes = {field: getattr(self, field) for field in self.fields()}
        return replace(dataset, **changes)


class Datasets:
    """Use cases."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, new: NewDataset, key: RequestKey, *, validate_only: bool) -> Dataset:
        """An empty dataset, in place of one of the same name to which only uploads came that failed. Raises
        InvalidArgument, AlreadyExists. With `validate_only` nothing stays of it."""
        violations = [*new.check(), *names.check_request_id(key.id)]
        if violations:
            raise InvalidArgument(violations)
        uid = names.uuid7()
        name = names.child(new.parent, "datasets", new.id or str(uid))
        async with self._database.transaction() as connection:
            if made := await find_previous(connection, key):
                return await datasets.get(connection, made)
            await self._free_name(connection, name)
            known = await claim(connection, key, name)
            if known is not None:
                return await datasets.get(connection, known)
            dataset = await datasets.insert(
                connection, uid, name, display_name=new.display_name, format=new.format, labels=new.labels
            )
            if validate_only:
                await connection.rollback()
            return dataset

    async def _free_name(self, connection: Connection, name: str) -> None:
        """Delete a dataset of this name that holds nothing but uploads that failed."""
        if await uploads.all_failed(connection, name):
            await datasets.lock_jobs(connection, name)
            dataset = await datasets.lock(connection, name)
            # A file may have been announced meanwhile.
            if not dataset.version_count and await uploads.all_failed(connection, name):
                await datasets.delete(connection, dataset)

    async def get(self, name: str) -> Dataset:
        """Raises NotFound."""
        names.parse(names.DATASET, name)
        async with self._database.transaction() as connection:
            return await datasets.get(connection, name)

    async def list_(self, parent: str, page: PageRequest) -> Page[Dataset]:
        """Newest first."""
        names.parse(names.PROJECT, parent, "parent")
        async with self._database.transaction() as connection:
            found = await datasets.list_(connection, parent, page)
        return page.page(found, lambda dataset: (str(dataset.uid),))

    async def update(self, change: DatasetChange) -> Dataset:
        """Raises InvalidArgument, NotFound, Aborted when the etag is not the current one."""
        violations = change.check()
        if names.match(names.DATASET, change.name) is None:
            raise InvalidArgument([Violation("dataset.name", f"must be of the form {names.DATASET}"), *violations])
        async with self._database.transaction() as connection:
            if violations:
                # What is found out next is told with it; alone, a name of nothing is NOT_FOUND.
                there = await find_or_report(datasets.get(connection, change.name), "dataset.name", violations)
                raise InvalidArgument([*violations, *(change.check_format(there) if there else [])])
            dataset = await datasets.lock(connection, change.name)
            _check_etag(dataset, change.etag)
            if wrong := change.check_format(dataset):
                raise InvalidArgument(wrong)
            wanted = change.applied(dataset)
            if wanted == dataset:
                return dataset
            return await datasets.update(connection, dataset.uid, wanted.display_name, wanted.labels)

    async def delete(self, name: str, etag: str) -> None:
        """Delete it with all its versions and uploads; a worker that reads one of them gives up.

        A worker removes their blobs from the artifact store, but for those that something else needs, and what arrived
        of uploads. Raises NotFound, Aborted when the etag is not the current one, FailedPrecondition while jobs use one
        of its versions.
        """
        names.parse(names.DATASET, name)
        async with self._database.transaction() as connection:
            await datasets.lock_jobs(connection, name)
            await references.lock(connection, exclusive=True)
            dataset = await datasets.lock(connection, name)
            _check_etag(dataset, etag)
            await _check_unused(connection, name)
            for job in await datasets.delete(connection, dataset):
                await self._database.notify(connection, job_topic(job))
            await references.drop_below(connection, name)
            await self._database.notify(connection, SWEEP_TOPIC)


async def note_use(connection: Connection, job: str, resources: Iterable[str], *, sequence: int, ended: bool) -> None:
    """A job changed; of the `resources` that it reads only dataset versions matter. Noting it again does nothing."""
    found = [names.match(names.DATASET_VERSION, resource) for resource in resources]
    used = {f"projects/{ids['project']}/datasets/{ids['dataset']}" for ids in found if ids is not None}
    await uses.put(connection, job, sorted(used), sequence=sequence, ended=ended)


async def _check_unused(connection: Connection, name: str) -> None:
    # Held in this database, or told of by the event of a service that has another one.
    held, told = await references.users(connection, name), await uses.running(connection, name, _SHOWN_JOBS + 1)
    if jobs := sorted({*held, *told}):
        shown = ", ".join(jobs[:_SHOWN_JOBS]) + (", …" if len(jobs) > _SHOWN_JOBS else "")
        message = f"{name} is used by jobs that have not ended: {shown}"
        raise FailedPrecondition("DATASET_IN_USE", message, name=name, training_jobs=shown)


def _check_etag(dataset: Dataset, etag: str) -> None:
    if etag and etag != dataset.etag:
        message = f"{dataset.name} has changed since it was read; read it again"
        raise Aborted("ETAG_MISMATCH", message, name=dataset.name, etag=dataset.etag)


def _check_display_name(value: str) -> list[Violation]:
    if len(value) <= MAX_DISPLAY_NAME_CHARACTERS and value.isprintable():
        return []
    description = f"must be at most {MAX_DISPLAY_NAME_CHARACTERS} printable characters"
    return [Violation("dataset.display_name", description)]
