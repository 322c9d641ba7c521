from __future__ import annotations

import pytest

from services.client import references
from services.mesh.errors import InvalidArgument

P = "projects/default"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("digits", f"{P}/datasets/digits/versions/latest"),
        ("digits:3", f"{P}/datasets/digits/versions/3"),
        ("projects/other/datasets/digits", "projects/other/datasets/digits/versions/latest"),
        ("projects/other/datasets/digits/versions/2", "projects/other/datasets/digits/versions/2"),
    ],
)
def test_a_dataset_version_by_its_short_and_full_names(text: str, name: str) -> None:
    assert references.dataset_version(P, text) == name


@pytest.mark.parametrize(
    ("text", "job", "checkpoint"),
    [
        ("run", f"{P}/trainingJobs/run", None),
        ("run/step-100", f"{P}/trainingJobs/run", f"{P}/trainingJobs/run/checkpoints/step-100"),
        ("run/100", f"{P}/trainingJobs/run", f"{P}/trainingJobs/run/checkpoints/step-100"),
        ("projects/o/trainingJobs/j", "projects/o/trainingJobs/j", None),
        (f"{P}/trainingJobs/j/checkpoints/step-1", f"{P}/trainingJobs/j", f"{P}/trainingJobs/j/checkpoints/step-1"),
    ],
)
def test_a_checkpoint_by_its_short_and_full_names(text: str, job: str, checkpoint: str | None) -> None:
    assert references.checkpoint(P, text) == (job, checkpoint)


@pytest.mark.parametrize("text", ["", "Digits", "a b", "../x", "digits:", "digits:x y", "a/b/c"])
def test_what_is_no_name_is_refused_by_its_flag(text: str) -> None:
    if text == "digits:":
        assert references.dataset_version(P, text).endswith("/versions/latest")
        return
    with pytest.raises(InvalidArgument) as caught:
        references.dataset_version(P, text, "--dataset")
    assert caught.value.violations[0].field == "--dataset"


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (f"{P}/models/tiny", "tiny"),
        (f"{P}/datasets/digits/versions/3", "digits:3"),
        (f"{P}/trainingJobs/run/checkpoints/step-9", "run/step-9"),
        ("", ""),
    ],
)
def test_short_names(name: str, short: str) -> None:
    assert references.short(name) == short


@pytest.mark.parametrize("text", ["tiny", "run/step-9", "digits:3"])
def test_a_short_name_is_read_back(text: str) -> None:
    if ":" in text:
        name = references.dataset_version(P, text)
    else:
        name = references.checkpoint(P, text)[1] or references.model(P, text)
    assert references.short(name) == text
