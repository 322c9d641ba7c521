"""Rows of models as an import leaves them: with the reference to their files."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from services.mesh import names
from services.mesh.artifacts import Manifest
from services.trainer.training.input_references import hold_artifact


async def insert_model(postgres_url: str, name: str, manifest: Manifest, **columns: Any) -> None:
    """A READY model of these files."""
    row = {
        "uid": names.uuid7(),
        "name": name,
        "parent": name.rpartition("/models/")[0],
        "display_name": "",
        "source": Jsonb({"path": "/x"}),
        "labels": Jsonb({}),
        "state": "READY",
        "manifest_sha256": manifest.sha256,
        **columns,
    }
    async with await psycopg.AsyncConnection.connect(postgres_url) as connection:
        query = f"INSERT INTO trainer.models ({', '.join(row)}) VALUES ({', '.join(['%s'] * len(row))})"
        await connection.execute(query.encode(), list(row.values()))
        await hold_artifact(connection, name, manifest)
