"""What a backup speaks for: a home that holds all of its mesh's data."""

from __future__ import annotations

from collections.abc import Mapping

from services.mesh.errors import FailedPrecondition
from services.mesh.settings import member_environment
from services.supervisor import settings

_ELSEWHERE = {
    "RLHF_POSTGRES_URL": "the database is yours: save it, and the artifact store at the same moment, by its own means",
    "RLHF_ARTIFACTS_URL": "the artifact store is yours: save it, and the database at the same moment, by its own means",
    "RLHF_TRAINER_JOBS_FOLDER": "the files of trainings lie outside of the home: save them by other means",
    "RLHF_DATASET_UPLOADS_FOLDER": "the files of uploads lie outside of the home: save them by other means",
}


def check(running: Mapping[str, str] | None = None) -> None:
    """Raises FailedPrecondition where a setting, of the mesh that runs or else of this shell, puts data elsewhere."""
    given = settings.of_mesh(member_environment()) if running is None else running
    for name, text in _ELSEWHERE.items():
        if given.get(name):
            raise FailedPrecondition("DATA_ELSEWHERE", f"{name} is set: {text}", setting=name)
