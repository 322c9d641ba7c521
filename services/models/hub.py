"""Fetching a model from a Hugging Face hub: what a model needs and nothing that could run code when it is read."""

from __future__ import annotations

import shutil
from pathlib import Path

from services.mesh.errors import NO_ROOM
from services.models.folder import UnusableModelError
from services.models.refusals import quoted

# No pickles, no Python: `inspection` would refuse them, and they are often the larger half of a repository.
WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


def fetch(source: str, folder: Path) -> None:
    """Write the files of `organisation/name` or `organisation/name@revision` to `folder`.

    The hub is HF_ENDPOINT's, by default huggingface.co; a private model needs HF_TOKEN. A broken connection is gone on
    with by huggingface_hub itself. Raises UnusableModelError where the hub has no such model or says no.
    """
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = source.partition("@")
    try:
        snapshot_download(name, revision=revision or None, local_dir=folder, allow_patterns=list(WANTED))
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise
        raise UnusableModelError(_refusal(source, error)) from error
    # Its own notes on the download, which belong to no model.
    shutil.rmtree(folder / ".cache", ignore_errors=True)


def _refusal(source: str, error: Exception) -> str:
    from huggingface_hub import errors

    name, _, revision = source.partition("@")
    if isinstance(error, errors.GatedRepoError):
        return f"{name} is gated: accept its conditions on the hub, and set HF_TOKEN to a token of who did"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no model {name}, or it is private; correct the name, or set HF_TOKEN to who may read it"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub's {name} has no revision {revision}; name a branch, a tag or a commit of it"
    # Where it has looked for an earlier download in vain, the reason is what it raises from.
    reason = error.__cause__ or error
    if isinstance(reason, errors.HfHubHTTPError):
        return f"the hub did not give {source}; try again later{quoted(f'HTTP {reason.response.status_code}')}"
    return f"the hub did not give {source}; see that the trainer reaches HF_ENDPOINT{quoted(reason)}"
