"""`rlhf backup` and `rlhf restore`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli import display, exit_codes, output
from services.cli.session import options_of
from services.supervisor.embedded.home import Home

if TYPE_CHECKING:
    from services.cli.backup.saving import Saved

FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of the backup.")]


def register(app: typer.Typer) -> None:
    app.command("backup")(backup)
    app.command("restore")(restore)


def backup(context: typer.Context, folder: FolderArgument, output_format: output.DocumentOption = "table") -> None:
    """Save the data of this home in a folder: datasets, models, checkpoints, jobs, the token and the secrets.

    The mesh may be up, and everything goes on meanwhile, or down. The same folder may be given again: only what is new
    is copied, and what was saved before stays whole until the new backup is. The folder holds the token and the
    secrets: nobody else may read it, and whoever can read it has them.

    - `rlhf backup /backups/rlhf`
    """
    from services.cli.backup import saving

    saved = saving.save(Home(options_of(context).home.resolve()), folder.resolve(), output.say)
    if output_format == "json":
        output.write_json(_document(saved))
    else:
        sizes = f"{display.size(saved.backup.size_bytes)}, {display.size(saved.copied_bytes)} of it new"
        output.say(f"saved {saved.backup.file_count} files ({sizes}) in {saved.folder}", "bold green")
    if saved.corrupt:
        names = ", ".join(saved.corrupt[:5])
        output.say(
            f"the artifact store has lost the bytes of {len(saved.corrupt)} blobs, not saved: {names}", style="red"
        )
        raise typer.Exit(exit_codes.FAILED)


def restore(
    context: typer.Context,
    folder: FolderArgument,
    home: Annotated[Path | None, typer.Option(help="An empty folder; by default RLHF_HOME, else ~/.rlhf.")] = None,
) -> None:
    """Make a home of a backup. Then `rlhf up` has everything as it was; jobs that ran go on from their checkpoints.

    Every file is checked before anything is put in its place. On a failure the home is empty, as it was.

    - `rlhf restore /backups/rlhf`
    - `rlhf restore /backups/rlhf --home /data/rlhf`
    """
    from services.cli.backup import restoring

    target = Home((home or options_of(context).home).resolve())
    found = restoring.restore(folder.resolve(), target, output.say)
    size = display.size(found.size_bytes)
    output.say(f"restored {found.file_count} files ({size}) of {found.time} to {target.root}", style="bold green")
    output.hint(f"`{'' if home is None else f'RLHF_HOME={target.root} '}rlhf up` starts the mesh")


def _document(saved: Saved) -> dict[str, object]:
    return {
        "folder": str(saved.folder),
        "time": saved.backup.time,
        "version": saved.backup.version,
        "files": saved.backup.file_count,
        "sizeBytes": str(saved.backup.size_bytes),
        "copiedBytes": str(saved.copied_bytes),
        "corrupt": saved.corrupt,
    }
