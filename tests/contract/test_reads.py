"""What the audit log leaves out is what changes nothing, and the other way round."""

from __future__ import annotations

from google.api import annotations_pb2
from rlhf.dataset.v1 import dataset_service_pb2
from rlhf.trainer.v1 import trainer_service_pb2

from services.mesh.rpc.instrumentation import READS

# Bytes over HTTP take a route of their own, and so have no annotation.
_BYTES = {"DownloadDataset", "DownloadCheckpoint", "DownloadModel", "WriteUpload"}


def test_an_rpc_is_named_as_a_read_when_it_is_one() -> None:
    files = (dataset_service_pb2, trainer_service_pb2)
    methods = [m for file in files for s in file.DESCRIPTOR.services_by_name.values() for m in s.methods]
    annotated = {
        method.name: method.GetOptions().Extensions[annotations_pb2.http].WhichOneof("pattern")
        for method in methods
        if method.GetOptions().HasExtension(annotations_pb2.http)
    }
    assert len(annotated) > 20
    assert {name for name, verb in annotated.items() if (verb == "get") != name.startswith(READS)} == set()
    assert {method.name for method in methods} - annotated.keys() <= _BYTES
    assert not "WriteUpload".startswith(READS)
