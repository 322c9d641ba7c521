"""Settings: frozen, read once from the environment, passed as arguments. The only reader of os.environ."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.mesh.addresses import is_address, is_socket
from services.mesh.errors import InvalidArgument, Violation
from services.mesh.outbound import Allowance

DAY_SECONDS = 24 * 3600.0
_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
# What health calls the broker of events, which services go on without.
NATS = "nats"
# What it calls room on the disk: NOT_SERVING says that it is nearly full.
DISK = "disk"


class Environment:
    """Typed look-ups that gather every violation, so that a wrong set-up is told in one go.

    `done()` raises InvalidArgument with all of them.
    """

    def __init__(self, values: Mapping[str, str] | None = None) -> None:
        self._values = dict(os.environ) if values is None else copy.copy(values)
        self._violations: list[Violation] = []

    def text(self, name: str, default: str | None = None) -> str:
        value = self._values.get(name, "").strip()
        if value:
            return value
        if default is None:
            self._violations.append(Violation(name, "must be set"))
            return ""
        return default

    def integer(self, name: str, default: int, minimum: int, maximum: int) -> int:
        return int(self._number(name, default, minimum, maximum, int))

    def number(self, name: str, default: float, minimum: float, maximum: float) -> float:
        return self._number(name, default, minimum, maximum, float)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.text(name, "1" if default else "0").lower()
        if value not in ("0", "1", "true", "false"):
            self._violations.append(Violation(name, f"must be 0 or 1 (got {value!r})"))
        return value in ("1", "true")

    def path(self, name: str, default: Path) -> Path:
        return Path(self.text(name, str(default))).expanduser().absolute()

    def paths(self, name: str) -> tuple[Path, ...]:
        """Folders separated by `:`."""
        return tuple(Path(part).expanduser().absolute() for part in self.text(name, "").split(":") if part)

    def address(self, name: str, default: str | None = None) -> str:
        """`host:port`; port 0 lets the system choose."""
        value = self.text(name, default)
        if value and not is_address(value):
            self._violations.append(Violation(name, f"must be host:port (got {value!r})"))
        return value

    def endpoint(self, name: str, default: str | None = None) -> str:
        """An address, or `unix:/path` of a socket; see services/mesh/addresses.py."""
        value = self.text(name, default)
        if value and not (is_address(value) or is_socket(value)):
            self._violations.append(Violation(name, f"must be host:port, or unix:/path, not too long (got {value!r})"))
        return value

    def origins(self, name: str) -> tuple[str, ...]:
        """`https://app.example:8443` and the like, separated by commas, exact: neither `*` nor a path."""
        values = tuple(self.text(name, "").replace(",", " ").lower().split())
        if wrong := [value for value in values if not _ORIGIN.fullmatch(value)]:
            self._violations.append(Violation(name, f"must be origins such as https://app.example (got {wrong[0]!r})"))
        return values

    def words(self, name: str, allowed: Collection[str]) -> frozenset[str]:
        """Some of `allowed`, separated by commas."""
        words = frozenset(self.text(name, "").replace(",", " ").lower().split())
        if unknown := sorted(words - set(allowed)):
            self._violations.append(Violation(name, f"knows {', '.join(allowed)} (got {', '.join(unknown)!r})"))
        return words

    def hosts(self, name: str, default: str) -> tuple[str, ...]:
        """What may be called beyond the mesh, separated by commas; see services/mesh/outbound.py. `none` is nothing."""
        words = tuple(self.text(name, default).replace(",", " ").lower().split())
        words = () if words == ("none",) else words
        try:
            Allowance(words)
        except ValueError as error:
            self._violations.append(Violation(name, str(error)))
        return words

    def one_of(self, name: str, default: str, allowed: Collection[str]) -> str:
        value = self.text(name, default).lower()
        if value not in allowed:
            self._violations.append(Violation(name, f"must be one of {', '.join(allowed)} (got {value!r})"))
            return default
        return value

    def both(self, first: str, second: str) -> tuple[str, str]:
        """Two that are of use only together: both empty or both set."""
        values = self.text(first, ""), self.text(second, "")
        if values[0] and not values[1]:
            self._violations.append(Violation(second, f"must be set, since {first} is"))
        if values[1] and not values[0]:
            self._violations.append(Violation(first, f"must be set, since {second} is"))
        return values

    def done(self) -> None:
        if self._violations:
            raise InvalidArgument(self._violations, "INVALID_SETTINGS")

    def _number(
        self, name: str, default: float, minimum: float, maximum: float, kind: type[int] | type[float]
    ) -> float:
        value = self.text(name, str(default))
        try:
            number = kind(value)
        except ValueError:
            number = minimum - 1
        if not minimum <= number <= maximum:
            self._violations.append(Violation(name, f"must be a number from {minimum} to {maximum} (got {value!r})"))
            return default
        return number


# What holds passwords: no business of a process that trains or reads a stranger's file.
SECRETS = (
    "RLHF_POSTGRES_URL",
    "RLHF_NATS_URL",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "OTEL_EXPORTER_OTLP_METRICS_HEADERS",
)


def child_environment(**changes: str) -> dict[str, str]:
    """The environment for a process that this one starts: its own without secrets, with `changes`."""
    return {key: value for key, value in os.environ.items() if key not in SECRETS} | changes


def member_environment(**changes: str) -> dict[str, str]:
    """The environment for a process of the mesh itself: all of its own, secrets included, with `changes`."""
    return {**os.environ, **changes}


def default_home(environment: Environment) -> Path:
    """`RLHF_HOME`, by default `~/.rlhf`."""
    return environment.path("RLHF_HOME", Path("~/.rlhf"))


@dataclass(frozen=True)
class TelemetrySettings:
    """Where traces and figures go; by default nowhere.

    Of OTLP only whether: where to and how is said by OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT, …),
    which its library reads by itself.
    """

    otlp: bool = False
    # Share of the traces that begin here and are recorded; what comes with a trace follows that one's choice.
    trace_ratio: float = 1.0
    # Address of the page that Prometheus scrapes; empty for none.
    prometheus_listen: str = ""

    @classmethod
    def read(cls, environment: Environment) -> TelemetrySettings:
        exporters = environment.words("RLHF_TELEMETRY", ("otlp", "prometheus"))
        listen = environment.address("RLHF_PROMETHEUS_LISTEN", "127.0.0.1:0")
        return cls(
            otlp="otlp" in exporters,
            trace_ratio=environment.number("RLHF_TRACE_RATIO", 1.0, 0.0, 1.0),
            prometheus_listen=listen if "prometheus" in exporters else "",
        )


@dataclass(frozen=True)
class KeepSettings:
    """How long what nobody asks for any more is kept."""

    # The answers to requests with a request_id: so long a client may send one again.
    requests_seconds: float = 30 * DAY_SECONDS
    # Longer than an event can be delivered again: a week from the stream, another one from the dead letters.
    consumed_events_seconds: float = 30 * DAY_SECONDS
    # Files of the artifact store that nobody has written to.
    unfinished_seconds: float = DAY_SECONDS

    @classmethod
    def read(cls, environment: Environment) -> KeepSettings:
        return cls(
            requests_seconds=DAY_SECONDS * environment.number("RLHF_KEEP_REQUESTS_DAYS", 30, 7, 36_500),
            consumed_events_seconds=DAY_SECONDS * environment.number("RLHF_KEEP_CONSUMED_EVENTS_DAYS", 30, 15, 36_500),
            unfinished_seconds=DAY_SECONDS * environment.number("RLHF_KEEP_UNFINISHED_DAYS", 1, 1, 36_500),
        )


@dataclass(frozen=True)
class MeshSettings:
    """What every process of the mesh has to know."""

    home: Path
    # These two may hold passwords. A worker leaves what it has to tell in the database, and needs no NATS.
    postgres_url: str = field(repr=False)
    nats_url: str = field(repr=False)
    artifacts_url: str
    token_file: Path
    # `host:port` or `unix:/path` to serve on; empty for a worker.
    listen: str
    # Touched once the process has started, and every second from then on; for a supervisor that waits for a worker.
    ready_file: Path | None
    # TLS on ports when both are set, plain text otherwise, as on a socket always.
    tls_certificate_file: Path | None
    tls_key_file: Path | None
    telemetry: TelemetrySettings = TelemetrySettings()
    keep: KeepSettings = KeepSettings()
    # One file a secret, named as it is referred to.
    secrets_folder: Path = Path()
    # What may be called beyond the mesh; see services/mesh/outbound.py.
    outbound_allow: tuple[str, ...] = ()
    # With fewer free bytes a disk counts as nearly full.
    disk_low_bytes: int = 2 << 30

    @property
    def artifacts_folder(self) -> Path | None:
        """Where the artifact store lies on this machine; None where it is elsewhere."""
        import fsspec  # 80 ms, for services only

        filesystem, root = fsspec.url_to_fs(self.artifacts_url)
        return Path(root) if "file" in filesystem.protocol else None

    @classmethod
    def read(cls, environment: Environment, service: str, *, worker: bool = False) -> MeshSettings:
        home = default_home(environment)
        prefix = f"RLHF_{service.upper()}"
        ready = environment.text("RLHF_READY_FILE", "")
        certificate, key = environment.both("RLHF_TLS_CERTIFICATE", "RLHF_TLS_KEY")
        return cls(
            home=home,
            postgres_url=environment.text("RLHF_POSTGRES_URL"),
            nats_url="" if worker else environment.text("RLHF_NATS_URL"),
            artifacts_url=environment.text("RLHF_ARTIFACTS_URL", f"file://{home}/artifacts"),
            token_file=environment.path("RLHF_TOKEN_FILE", home / "token"),
            listen="" if worker else environment.endpoint(f"{prefix}_LISTEN", "127.0.0.1:0"),
            ready_file=Path(ready) if ready else None,
            secrets_folder=environment.path("RLHF_SECRETS_FOLDER", home / "secrets"),
            outbound_allow=environment.hosts("RLHF_OUTBOUND_ALLOW", "none"),
            tls_certificate_file=Path(certificate) if certificate else None,
            tls_key_file=Path(key) if key else None,
            telemetry=TelemetrySettings.read(environment),
            keep=KeepSettings.read(environment),
            disk_low_bytes=environment.integer("RLHF_DISK_LOW_BYTES", 2 << 30, 0, 1 << 60),
        )
