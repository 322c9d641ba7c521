"""Fetching a model from a Hugging Face hub: what a model needs and nothing that could run code when it is read."""

from __future__ import annotations

import shutil
from pathlib import Path

from services.models.folder import UnusableModelError

# No pickles, no Python: `inspection` would refuse them, and they are often the larger half of a repository.
WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


def fetch(source: str, folder: Path) -> None:
    """Write the files of `organisation/name` or `organisation/name@revision` to `folder`.

    The hub is HF_ENDPOINT's, by default huggingface.co; a private model needs HF_TOKEN. A broken connection is gone on
    with by huggingface_hub itself. Raises UnusableModelError with its words where the hub has no such model or says no.
    """
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = source.partition("@")
    try:
        snapshot_download(name, revision=revision or None, local_dir=folder, allow_patterns=list(WANTED))
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError, OSError, ValueError) as error:
        raise UnusableModelError(f"the hub did not give {source}: {error}") from error
    # Its own notes on the download, which belong to no model.
    shutil.rmtree(folder / ".cache", ignore_errors=True)
