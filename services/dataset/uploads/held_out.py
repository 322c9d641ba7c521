"""The dataset that gets the rows which a split holds out."""

from __future__ import annotations

from services.dataset.entities import Dataset
from services.dataset.store import datasets
from services.dataset.uploads.options import Split
from services.dataset.uploads.options_checks import split_dataset
from services.mesh import names
from services.mesh.db.postgres import Connection
from services.mesh.errors import AlreadyExists, NotFound


async def find(connection: Connection, dataset: Dataset, split: Split) -> Dataset | None:
    """None while it is not there."""
    try:
        return await datasets.get(connection, split_dataset(dataset.name, split))
    except NotFound:
        return None


async def ensure(connection: Connection, dataset: Dataset, split: Split) -> Dataset | None:
    """The dataset, made where it is not there, with a label that says what it is; None where somebody has made one of
    another format meanwhile."""
    found = await find(connection, dataset, split)
    if found is None:
        labels = {"split": split.name, "split-of": dataset.name.rpartition("/")[2]}
        name = split_dataset(dataset.name, split)
        try:
            found = await datasets.insert(
                connection, names.uuid7(), name, display_name="", format=dataset.format, labels=labels
            )
        except AlreadyExists:
            return None
    return found if found.format == dataset.format else None
