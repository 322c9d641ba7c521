"""The settings that `rlhf up` is called with: which are wrong, which do nothing, which the mesh does not run with."""

from __future__ import annotations

import difflib
import functools
import importlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from services.mesh import catalog
from services.mesh.errors import InvalidArgument, Violation
from services.mesh.settings import SECRETS, Environment
from services.supervisor.embedded.home import Home
from services.supervisor.leftovers import MARK

# Read by clients, of whatever mesh.
_CLIENTS = frozenset(
    {"RLHF_SERVER", "RLHF_SERVER_CERTIFICATES", "RLHF_TOKEN", "RLHF_TOKEN_FILE", "RLHF_PROJECT", "RLHF_HOME"}
)
# What `rlhf up` tells each process, whatever it was told itself.
_OURS = frozenset(
    {
        MARK,
        *(f"RLHF_{name}_{side}" for name in ("DATASET", "TRAINER") for side in ("LISTEN", "TARGET")),
        *("RLHF_GATEWAY_LOCAL_LISTEN", "RLHF_TRAINER_DEVICE", "RLHF_READY_FILE"),
        *("RLHF_FORK_SERVER", "RLHF_RUN_SECRET", "RLHF_RUN_RENDEZVOUS"),
    }
)
# In the place of what an embedded default gives.
_EMBEDDED = {
    "RLHF_POSTGRES_URL": "postgresql://embedded",
    "RLHF_NATS_URL": "nats://embedded",
    "RLHF_RAY_ADDRESS": "embedded:1",
    "RLHF_DATASET_TARGET": "embedded:1",
}
_HIDDEN = "(not shown)"


@dataclass(frozen=True)
class Difference:
    """Of one setting, as it can be shown: empty where it is not set."""

    name: str
    running: str
    asked: str


@dataclass(frozen=True)
class Given:
    """`settings` by name, no empty ones; `known` are all that a mesh reads; `notes` on what changes nothing."""

    settings: Mapping[str, str]
    known: Collection[str] = ()
    notes: tuple[str, ...] = ()

    def differences(self, running: Mapping[str, str] | None) -> list[Difference]:
        """From the settings of the mesh that runs; none where those are not known."""
        if running is None:
            return []
        names = sorted(name for name in {*self.settings, *running} if name in self.known or name.startswith("OTEL_"))
        return [
            Difference(name, _shown(name, running.get(name, "")), _shown(name, self.settings.get(name, "")))
            for name in names
            if self.settings.get(name, "") != running.get(name, "")
        ]


def of_mesh(values: Mapping[str, str]) -> dict[str, str]:
    """Those of `values` that a mesh is started with and that nobody else reads."""
    given = {name: value.strip() for name, value in values.items() if name.startswith(("RLHF_", "OTEL_"))}
    return {name: value for name, value in given.items() if value and name not in _CLIENTS | _OURS}


def check(values: Mapping[str, str]) -> Given:
    """Raises InvalidArgument with every value that a process of the mesh would refuse."""
    from services.supervisor.mesh_plan import Options

    environment = _Recorded({**_EMBEDDED, **{name: value for name, value in values.items() if value.strip()}})
    wrong = _refused(lambda: Options.read(Environment(environment)))
    # What the services are told of these is made of what was given.
    translated = set(environment.asked)
    for read in _service_readers():
        found = _refused(functools.partial(read, environment))
        wrong = {name: each for name, each in found.items() if name not in translated} | wrong
    if wrong:
        raise InvalidArgument([wrong[name] for name in sorted(wrong)], "INVALID_SETTINGS")
    return Given(of_mesh(values), environment.asked, tuple(_notes(values, environment.asked)))


def _refused(read: Callable[[], object]) -> dict[str, Violation]:
    try:
        read()
    except InvalidArgument as error:
        return {violation.field: violation for violation in error.violations}
    return {}


def running(home: Home) -> dict[str, str] | None:
    """What the mesh of `home` was started with; None where that is not known."""
    try:
        found = json.loads(home.endpoints.read_text()).get("settings")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, dict) else None


class _Recorded(Mapping[str, str]):
    """Remembers what it was asked for: what the settings are is known to their readers alone."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _service_readers() -> Iterator[Callable[[Mapping[str, str]], object]]:
    """By name, as the services are started: the command line is not built on them."""
    for name in catalog.SERVICES:
        read = importlib.import_module(f"services.{name}.settings").Settings.from_env
        yield read
        yield functools.partial(read, worker=True)
    gateway = importlib.import_module("services.gateway.settings").GatewaySettings
    yield lambda values: gateway.read(Environment(values))


def _notes(values: Mapping[str, str], known: set[str]) -> Iterator[str]:
    known = {*known, *_CLIENTS}
    for name in sorted(name for name, value in values.items() if name.startswith("RLHF_") and value.strip()):
        if name in _OURS - {MARK}:
            yield f"{name} changes nothing here: `rlhf up` sets it itself"
        elif name not in known | _OURS:
            near = difflib.get_close_matches(name, known - _OURS, n=2, cutoff=0.8)
            hint = f"did you mean {' or '.join(near)}?" if near else "docs/operations.md lists them all"
            yield f"{name} is no setting and changes nothing; {hint}"


def _shown(name: str, value: str) -> str:
    return _HIDDEN if value and name in SECRETS else value
