from __future__ import annotations

import pytest

from services.cli import exit_codes, violations
from services.mesh import errors
from services.mesh.errors import InvalidArgument, PlatformError, Violation


@pytest.mark.parametrize(
    ("field", "flag"),
    [
        ("training_job.params.learning_rate", "--set learning_rate"),
        ("training_job.params.reward.params.marker", "--set reward.params.marker"),
        ("training_job.base_model", "--model"),
        ("training_job.dataset_version", "--dataset"),
        ("training_job.validation_dataset_version", "--validation"),
        ("training_job.placement.resources.gpu_count", "--gpus"),
        ("training_job.labels.x", "--label"),
        ("training_job_id", "--name"),
        ("model.source.path", "--source"),
        ("model.source.init.characters.alphabet", "--characters"),
        ("dataset.format", "--format"),
        ("page_token", "page_token"),
    ],
)
def test_a_field_is_told_by_the_flag_that_sets_it(field: str, flag: str) -> None:
    assert violations.flag(field) == flag


def test_every_violation_stands_on_its_own_line(capfd: pytest.CaptureFixture[str]) -> None:
    from services.cli import output

    output.messages.cache_clear()
    found = [
        Violation("training_job.params.a", "must be 1 [of] 2"),
        Violation("training_job.base_model", "is not there"),
    ]
    violations.show(InvalidArgument(found))
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "error: 2 things to change"
    assert [line.split() for line in lines[1:]] == [
        ["--set", "a", "must", "be", "1", "[of]", "2"],
        ["--model", "is", "not", "there"],
    ]


def test_a_message_is_shown_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    from services.cli import output

    output.messages.cache_clear()
    violations.show(errors.NotFound("X", "there is no [bold]thing[/bold]"))
    assert capfd.readouterr().err == "error: there is no [bold]thing[/bold]\n"


def test_every_error_has_an_exit_code_of_the_documented_ones() -> None:
    documented = {code for code, _ in exit_codes.MEANINGS}
    for kind in (*errors.BY_CODE.values(), PlatformError):
        assert exit_codes.code_of(kind("R", "m")) in documented - {exit_codes.OK}
    assert exit_codes.code_of(InvalidArgument.of("f", "d")) == exit_codes.USAGE
    assert exit_codes.code_of(errors.NotFound("R", "m")) == exit_codes.NOT_FOUND
    assert exit_codes.code_of(errors.Unavailable("R", "m")) == exit_codes.NOT_UP
    assert exit_codes.code_of(errors.FailedPrecondition("R", "m")) == exit_codes.REFUSED
    assert exit_codes.code_of(errors.DataLoss("R", "m")) == exit_codes.FAILED
