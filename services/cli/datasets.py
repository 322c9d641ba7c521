"""`rlhf dataset`: files become versions of checked rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli import assignments, completions, dataset_views, exits, output, references, uploading
from services.cli.output import DocumentOption, FormatOption
from services.cli.session import Session, collect, run
from services.mesh.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from rlhf.dataset.v1.dataset_pb2 import Dataset, DatasetVersion, Format, Upload
    from rlhf.dataset.v1.dataset_service_pb2 import Row

app = typer.Typer(help="Datasets: files become versions of checked rows.", no_args_is_help=True)

DatasetArgument = Annotated[
    str, typer.Argument(metavar="DATASET", help="Its name, such as `digits`.", autocompletion=completions.datasets)
]
VersionArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATASET[:VERSION]", help="`digits` (newest) or `digits:3`.", autocompletion=completions.datasets
    ),
]
LimitOption = Annotated[int, typer.Option(help="At most so many; 0 shows all.", min=0)]


@app.command()
def upload(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help=".jsonl, .json, .csv or .parquet; plain, .gz or .zst.")],
    name: Annotated[str, typer.Option(help="The dataset; made when it is not there.")],
    row_format: Annotated[
        str, typer.Option("--format", help="What a row is; see `rlhf dataset formats`. Needed for a new dataset.")
    ] = "",
    label: Annotated[list[str] | None, typer.Option(help="key=value for a new dataset; may be given again.")] = None,
    output_format: DocumentOption = "table",
) -> None:
    """Upload a file: every row is checked, and the rows become the dataset's next version.

    An upload that broke off goes on where it stopped when the same command is given again. Rows that are wrong are
    listed with line, field and reason; nothing of the file is taken then, and the exit code is 1.

    Examples:

    - `rlhf dataset upload train.jsonl --name digits --format messages`
    - `rlhf dataset upload questions.csv.gz --name digits-held-out --format prompt --label split=test`
    """
    labels = assignments.labels(label or [])
    uploading.check_file(file)

    async def command(session: Session) -> Upload:
        dataset = await ensure(session, references.dataset(session.project, name, "--name"), row_format, labels)
        return await uploading.upload(session, dataset.name, file)

    done = run(context, command)
    dataset_views.show_upload(done, output_format)
    if done.state != done.STATE_SUCCEEDED:
        raise typer.Exit(exits.FAILED)


@app.command("list")
def list_datasets(context: typer.Context, limit: LimitOption = 50, output_format: FormatOption = "table") -> None:
    """Datasets, newest first.

    Example: `rlhf dataset list -o json`
    """
    found = run(context, lambda session: _list(session, limit))
    output.show_list(found, dataset_views.DATASETS, output_format, "no datasets; make one with `rlhf dataset upload`")


@app.command()
def show(context: typer.Context, dataset: DatasetArgument, output_format: FormatOption = "table") -> None:
    """A dataset and its versions, or with `digits:3` one version and its statistics.

    Example: `rlhf dataset show digits:3`
    """

    async def command(session: Session) -> tuple[Dataset, list[DatasetVersion]]:
        name = references.dataset(session.project, dataset)
        return await _get(session, name), await _versions(session, name)

    if ":" in dataset or "/versions/" in dataset:
        version = run(context, lambda session: get_version(session, dataset))
        output.show_one(version, dataset_views.version_facts(version), output_format)
        return
    found, versions = run(context, command)
    output.show_one(found, dataset_views.dataset_facts(found), output_format)
    if output_format == "table" and versions:
        output.show()
        output.show_list(versions, dataset_views.VERSIONS, output_format, "")


@app.command()
def rows(
    context: typer.Context,
    dataset: VersionArgument,
    limit: Annotated[int, typer.Option(help="At most so many; 0 shows all.", min=0)] = 10,
    first: Annotated[int, typer.Option("--from", help="Start at this row, counted from 0.", min=0)] = 0,
    output_format: DocumentOption = "table",
) -> None:
    """Rows as training reads them. With `-o json` one row a line.

    Example: `rlhf dataset rows digits:3 --from 100 --limit 5`
    """
    found = run(context, lambda session: _rows(session, dataset, first, limit))
    dataset_views.show_rows(found, output_format)


@app.command()
def download(
    context: typer.Context,
    dataset: VersionArgument,
    to: Annotated[Path | None, typer.Option(help="The file; by default DATASET-VERSION.jsonl here.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file where it exists.")] = False,
) -> None:
    """Fetch the rows of a version as JSON lines; a download that broke off goes on.

    Example: `rlhf dataset download digits:3 --to digits.jsonl`
    """
    from services.cli import downloading

    async def command(session: Session) -> Path:
        version = await get_version(session, dataset)
        target = to or Path(references.short(version.name).replace(":", "-") + ".jsonl")
        await downloading.dataset_version(session, version, target, force)
        return target

    output.say(f"wrote {run(context, command)}")


@app.command()
def delete(
    context: typer.Context,
    dataset: DatasetArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a dataset, its versions and its uploads.

    Example: `rlhf dataset delete digits --yes`
    """
    if not yes:
        typer.confirm(f"Delete {dataset} and all of its versions?", abort=True, err=True)
    run(context, lambda session: _delete(session, references.dataset(session.project, dataset)))
    output.say(f"deleted {dataset}")


@app.command()
def formats(context: typer.Context, output_format: DocumentOption = "table") -> None:
    """What a row can be, and the spellings of other tools that are understood.

    Example: `rlhf dataset formats`
    """
    output.show_list(run(context, _formats), dataset_views.FORMATS, output_format, "no formats")


async def ensure(session: Session, name: str, row_format: str, labels: dict[str, str]) -> Dataset:
    """The dataset, made when it is not there. Raises InvalidArgument on a format that is missing or another one."""
    try:
        found = await _get(session, name)
    except NotFound:
        return await _create(session, name, row_format, labels)
    if row_format not in ("", found.format):
        message = f"{references.short(name)} holds rows of format {found.format!r}; choose another --name for these"
        raise InvalidArgument.of("--format", message)
    return found


async def get_version(session: Session, text: str) -> DatasetVersion:
    """The version that `digits` or `digits:3` means. Raises NotFound."""
    from rlhf.dataset.v1.dataset_service_pb2 import GetDatasetVersionRequest

    from services.mesh.client import call

    name = references.dataset_version(session.project, text)
    return await call(session.datasets.GetDatasetVersion(GetDatasetVersionRequest(name=name)))


async def _create(session: Session, name: str, row_format: str, labels: dict[str, str]) -> Dataset:
    import uuid

    from rlhf.dataset.v1.dataset_pb2 import Dataset
    from rlhf.dataset.v1.dataset_service_pb2 import CreateDatasetRequest

    from services.mesh.client import call

    if not row_format:
        known = ", ".join(item.format_id for item in await _formats(session))
        raise InvalidArgument.of("--format", f"{references.short(name)} is new: say what its rows are, one of {known}")
    request = CreateDatasetRequest(
        parent=name.rpartition("/datasets/")[0],
        dataset=Dataset(format=row_format, labels=labels),
        dataset_id=references.short(name),
        request_id=str(uuid.uuid4()),
    )
    return await call(session.datasets.CreateDataset(request))


async def _get(session: Session, name: str) -> Dataset:
    from rlhf.dataset.v1.dataset_service_pb2 import GetDatasetRequest

    from services.mesh.client import call

    return await call(session.datasets.GetDataset(GetDatasetRequest(name=name)))


async def _list(session: Session, limit: int) -> list[Dataset]:
    from rlhf.dataset.v1.dataset_service_pb2 import ListDatasetsRequest

    from services.mesh.client import call

    def page(size: int, token: str):
        request = ListDatasetsRequest(parent=session.project, page_size=size, page_token=token)
        return call(session.datasets.ListDatasets(request))

    return await collect(page, lambda answer: answer.datasets, limit)


async def _versions(session: Session, dataset: str) -> list[DatasetVersion]:
    from rlhf.dataset.v1.dataset_service_pb2 import ListDatasetVersionsRequest

    from services.mesh.client import call

    def page(size: int, token: str):
        request = ListDatasetVersionsRequest(parent=dataset, page_size=size, page_token=token)
        return call(session.datasets.ListDatasetVersions(request))

    return await collect(page, lambda answer: answer.dataset_versions)


async def _rows(session: Session, text: str, first: int, limit: int) -> list[Row]:
    from rlhf.dataset.v1.dataset_service_pb2 import ListRowsRequest

    from services.mesh.client import call

    parent = references.dataset_version(session.project, text)

    def page(size: int, token: str):
        request = ListRowsRequest(parent=parent, page_size=size, page_token=token, first_row_index=first)
        return call(session.datasets.ListRows(request))

    return await collect(page, lambda answer: answer.rows, limit)


async def _delete(session: Session, name: str) -> None:
    from rlhf.dataset.v1.dataset_service_pb2 import DeleteDatasetRequest

    from services.mesh.client import call

    await call(session.datasets.DeleteDataset(DeleteDatasetRequest(name=name)))


async def _formats(session: Session) -> list[Format]:
    from rlhf.dataset.v1.dataset_service_pb2 import ListFormatsRequest

    from services.mesh.client import call

    return list((await call(session.datasets.ListFormats(ListFormatsRequest()))).formats)
