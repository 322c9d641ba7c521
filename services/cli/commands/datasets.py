"""`rlhf dataset`: files become versions of checked rows."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli import assignments, completions, dataset_views, exit_codes, output, upload_options, uploading
from services.cli.confirming import YesOption, confirm
from services.cli.output import DocumentOption, FormatOption
from services.cli.session import collect, run
from services.client import references
from services.mesh.errors import AlreadyExists, InvalidArgument, NotFound, PlatformError

if TYPE_CHECKING:
    from rlhf.dataset.v1.dataset_pb2 import Dataset, DatasetVersion, SkippedRow, Upload
    from rlhf.dataset.v1.dataset_service_pb2 import Row

    from services.client import AsyncClient

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
    map_: upload_options.MapOption = None,
    skip_invalid: upload_options.SkipOption = "",
    split: upload_options.SplitOption = "",
    split_seed: upload_options.SeedOption = 0,
    output_format: DocumentOption = "table",
) -> None:
    """Upload a file: every row is checked, and the rows become the dataset's next version.

    An upload that broke off goes on where it stopped when the same command is given again. Rows that are wrong are
    listed with line, field and reason, three of each reason; nothing of the file is taken then, and the exit code is 1,
    unless `--skip-invalid` lets some be: `rlhf dataset skipped` shows those.

    Examples:

    - `rlhf dataset upload train.jsonl --name digits --format messages`
    - `rlhf dataset upload questions.csv.gz --name digits-held-out --format prompt --label split=test`
    - `rlhf dataset upload qa.jsonl --name qa --format messages --map body=prompt,gold=completion --skip-invalid 1%`
    - `rlhf dataset upload chat.jsonl --name chat --format messages --split validation=0.05`
    """
    labels = assignments.labels(label or [])
    options = upload_options.read(map_ or [], skip_invalid, split, split_seed)
    _check_file(file)

    async def command(client: AsyncClient) -> Upload:
        dataset, is_new = await ensure(client, references.dataset(client.project, name, "--name"), row_format, labels)
        return await _upload(client, dataset, file, options, is_new)

    done = run(context, command)
    dataset_views.show_upload(done, output_format)
    if done.state != done.STATE_SUCCEEDED:
        raise typer.Exit(exit_codes.FAILED)


@app.command("list")
def list_datasets(context: typer.Context, limit: LimitOption = 50, output_format: FormatOption = "table") -> None:
    """Datasets, newest first.

    Example: `rlhf dataset list -o json`
    """
    found = run(context, lambda client: collect(client.datasets.list(limit=limit)))
    output.show_list(found, dataset_views.DATASETS, output_format, "no datasets; make one with `rlhf dataset upload`")


@app.command()
def show(context: typer.Context, dataset: DatasetArgument, output_format: FormatOption = "table") -> None:
    """A dataset and its versions, or with `digits:3` one version and its statistics.

    Example: `rlhf dataset show digits:3`
    """

    async def command(client: AsyncClient) -> tuple[Dataset, list[DatasetVersion]]:
        name = references.dataset(client.project, dataset)
        return await client.datasets.get(name), await collect(client.dataset_versions.list(name))

    if ":" in dataset or "/versions/" in dataset:
        version = run(context, lambda client: client.dataset_versions.get(_version(client, dataset)))
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

    async def command(client: AsyncClient) -> list[Row]:
        return await collect(client.dataset_versions.rows(_version(client, dataset), first=first, limit=limit))

    found = run(context, command)
    dataset_views.show_rows(found, output_format)


@app.command()
def skipped(
    context: typer.Context,
    dataset: DatasetArgument,
    upload: Annotated[
        str, typer.Option(help="The end of an upload's name; by default the newest that left some out.")
    ] = "",
    limit: LimitOption = 20,
    output_format: DocumentOption = "table",
) -> None:
    """Rows that an upload left out, with why. With `-o json` one a line.

    Examples:

    - `rlhf dataset skipped digits`
    - `rlhf dataset skipped digits --limit 0 -o json > left-out.jsonl`
    """

    async def command(client: AsyncClient) -> list[SkippedRow]:
        name = references.dataset(client.project, dataset)
        if upload:
            return await collect(client.uploads.skipped_rows(f"{name}/uploads/{upload}", limit=limit))
        async for each in client.uploads.list(name):
            if each.state == each.STATE_SUCCEEDED and each.report.invalid_row_count:
                return await collect(client.uploads.skipped_rows(each.name, limit=limit))
        return []

    dataset_views.show_skipped(run(context, command), output_format)


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

    async def command(client: AsyncClient) -> Path:
        version = await client.dataset_versions.get(_version(client, dataset))
        target = to or Path(references.short(version.name).replace(":", "-") + ".jsonl")
        with downloading.shown() as on_progress:
            await client.dataset_versions.download(version.name, target, overwrite=force, on_progress=on_progress)
        return target

    output.say(f"wrote {run(context, command)}")


@app.command()
def delete(
    context: typer.Context,
    dataset: DatasetArgument,
    yes: YesOption = False,
) -> None:
    """Delete a dataset, its versions and its uploads.

    Example: `rlhf dataset delete digits --yes`
    """
    confirm(f"Delete {dataset} and all of its versions?", yes)
    run(context, lambda client: client.datasets.delete(references.dataset(client.project, dataset)))
    output.say(f"deleted {dataset}")


@app.command()
def formats(context: typer.Context, output_format: DocumentOption = "table") -> None:
    """What a row can be, and the spellings of other tools that are understood.

    Example: `rlhf dataset formats`
    """
    found = run(context, lambda client: client.datasets.formats())
    output.show_list(found, dataset_views.FORMATS, output_format, "no formats")


async def ensure(client: AsyncClient, name: str, row_format: str, labels: dict[str, str]) -> tuple[Dataset, bool]:
    """The dataset, and whether it was made here, since it was not there or holds nothing but uploads that failed.
    Raises InvalidArgument on a format that is missing or another one."""
    try:
        found = await client.datasets.get(name)
    except NotFound:
        if not row_format:
            known = ", ".join(each.entry.id for each in await client.datasets.formats())
            message = f"{references.short(name)} is new: say what its rows are, one of {known}"
            raise InvalidArgument.of("--format", message) from None
        return await client.datasets.create(name, row_format, labels=labels), True
    if row_format and not found.latest_version:
        # Made anew where all that came to it failed.
        with contextlib.suppress(AlreadyExists):
            return await client.datasets.create(name, row_format, labels=labels), True
    if row_format not in ("", found.format):
        message = f"{references.short(name)} holds rows of format {found.format!r}; choose another --name for these"
        raise InvalidArgument.of("--format", message)
    return found, False


async def _upload(client: AsyncClient, dataset: Dataset, file: Path, options: Upload, is_new: bool) -> Upload:
    """Nothing stays of a new dataset whose file is not taken."""
    try:
        done = await uploading.upload(client, dataset.name, file, options)
    except InvalidArgument:
        if is_new:
            await _remove_empty(client, dataset)
        raise
    if is_new and done.state == done.STATE_FAILED:
        await _remove_empty(client, dataset)
    return done


async def _remove_empty(client: AsyncClient, dataset: Dataset) -> None:
    """Take back a dataset that was made for a file which was not taken, so that its name is free; not where somebody
    else has begun to use it."""
    uploads = await collect(client.uploads.list(dataset.name, limit=2))
    if len(uploads) < 2 and all(upload.state == upload.STATE_FAILED for upload in uploads):
        with contextlib.suppress(PlatformError):
            await client.datasets.delete(dataset.name, etag=dataset.etag)


def _version(client: AsyncClient, text: str) -> str:
    return references.dataset_version(client.project, text)


def _check_file(path: Path) -> None:
    """Before the mesh is asked for anything. Raises InvalidArgument where there is nothing to upload."""
    from services.client.files import check_file

    check_file(path)
