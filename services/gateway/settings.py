"""What the gateway has to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.mesh import catalog
from services.mesh.settings import Environment, MeshSettings, TelemetrySettings, default_home


@dataclass(frozen=True)
class GatewaySettings:
    """`mesh.listen` is the address for gRPC."""

    mesh: MeshSettings
    http_listen: str
    # `unix:/path` for gRPC, where the clients of this home call; empty for none.
    local_listen: str
    # `host:port` or `unix:/path` by service; one without a target has no routes.
    targets: Mapping[str, str]
    # Names besides loopback and the listening host that a Host header may hold; `*` is every name.
    allowed_hosts: tuple[str, ...]
    # Origins whose pages may call from a browser: `https://app.example`.
    cors_origins: tuple[str, ...]
    # Besides streams, which have a limit of their own.
    max_concurrent_requests: int
    max_streams: int
    # A reader of a stream that takes no byte for so long is cut off.
    slow_reader_seconds: float
    # One line of the log for each request.
    access_log: bool
    # Set when the services behind speak TLS.
    tls_root_certificates_file: Path | None

    @classmethod
    def read(cls, environment: Environment) -> GatewaySettings:
        """Raises InvalidArgument with everything that is wrong with the environment."""
        roots = environment.text("RLHF_TLS_ROOT_CERTIFICATES", "")
        settings = cls(
            mesh=_mesh(environment),
            http_listen=environment.address("RLHF_GATEWAY_HTTP_LISTEN", "127.0.0.1:0"),
            local_listen=environment.endpoint("RLHF_GATEWAY_LOCAL_LISTEN", ""),
            targets={
                service: target
                for service in catalog.SERVICES
                if (target := environment.endpoint(f"RLHF_{service.upper()}_TARGET", ""))
            },
            allowed_hosts=tuple(environment.text("RLHF_GATEWAY_ALLOWED_HOSTS", "").replace(",", " ").lower().split()),
            cors_origins=environment.origins("RLHF_GATEWAY_CORS_ORIGINS"),
            max_concurrent_requests=environment.integer("RLHF_GATEWAY_MAX_CONCURRENT_REQUESTS", 512, 1, 100_000),
            max_streams=environment.integer("RLHF_GATEWAY_MAX_STREAMS", 1000, 1, 100_000),
            slow_reader_seconds=environment.number("RLHF_GATEWAY_SLOW_READER_SECONDS", 30, 0.1, 3600),
            access_log=environment.flag("RLHF_GATEWAY_ACCESS_LOG", True),
            tls_root_certificates_file=Path(roots) if roots else None,
        )
        environment.done()
        return settings


def _mesh(environment: Environment) -> MeshSettings:
    """The gateway keeps no state: neither a database nor a message server is asked for."""
    home = default_home(environment)
    ready = environment.text("RLHF_READY_FILE", "")
    certificate, key = environment.text("RLHF_TLS_CERTIFICATE", ""), environment.text("RLHF_TLS_KEY", "")
    return MeshSettings(
        home=home,
        postgres_url="",
        nats_url="",
        artifacts_url="",
        token_file=environment.path("RLHF_TOKEN_FILE", home / "token"),
        listen=environment.address("RLHF_GATEWAY_GRPC_LISTEN", "127.0.0.1:0"),
        ready_file=Path(ready) if ready else None,
        tls_certificate_file=Path(certificate) if certificate else None,
        tls_key_file=Path(key) if key else None,
        telemetry=TelemetrySettings.read(environment),
    )
