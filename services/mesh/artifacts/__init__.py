"""The artifact store, and who needs what lies in it: blobs by hash, references to them, the collector."""

from services.mesh.artifacts.store import (
    CHUNK_BYTES,
    ArtifactFile,
    ArtifactStore,
    Manifest,
    check_relative_path,
    check_sha256,
    hash_file,
)

__all__ = [
    "CHUNK_BYTES",
    "ArtifactFile",
    "ArtifactStore",
    "Manifest",
    "check_relative_path",
    "check_sha256",
    "hash_file",
]
