"""What the short names of a request mean, and those that mean nothing: told with all else that is wrong with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from services.mesh.errors import InvalidArgument, NotFound, PlatformError, Violation


class Meant:
    """Collects, by field of the training job, the names of nothing. They are sent as they were written, to be checked
    only: the mesh tells the rest."""

    def __init__(self) -> None:
        self.wrong: dict[str, PlatformError] = {}

    @contextlib.contextmanager
    def field(self, name: str) -> Iterator[None]:
        """A block that finds out what a name means; where that is nothing, the error is kept."""
        try:
            yield
        except (InvalidArgument, NotFound) as error:
            self.wrong[name] = error

    def error(self, told: InvalidArgument | None) -> PlatformError:
        """What to raise, `told` being what the mesh says of the request. A name alone that means nothing keeps its own
        error."""
        fields = {f"training_job.{name}" for name in self.wrong}
        others = [one for one in told.violations if one.field not in fields] if told is not None else []
        if not self.wrong and told is not None:
            return told
        if not others and len(self.wrong) == 1:
            return next(iter(self.wrong.values()))
        return InvalidArgument([*(_violation(name, error) for name, error in self.wrong.items()), *others])


def _violation(name: str, error: PlatformError) -> Violation:
    described = error.violations[0].description if isinstance(error, InvalidArgument) else error.message
    return Violation(f"training_job.{name}", described)
