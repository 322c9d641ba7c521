"""Where the mesh is and what opens it: from arguments, else the environment, else the home of a mesh that is up."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from services.mesh import identity
from services.mesh.errors import Unavailable
from services.mesh.settings import Environment, default_home


@dataclass(frozen=True)
class Endpoint:
    """`address` is the `host:port` of the gateway's gRPC port; `certificates` makes it TLS."""

    address: str
    token: str = field(repr=False)
    certificates: Path | None = None


@dataclass(frozen=True)
class Where:
    """What a caller said about the mesh; what is empty is looked for each time that a connection is made, since a mesh
    that was started again has new ports."""

    server: str = ""
    token: str = field(default="", repr=False)
    token_file: Path | None = None
    certificates: Path | None = None
    # Empty takes RLHF_HOME, else ~/.rlhf.
    home: Path | None = None

    def find(self, environment: Environment | None = None) -> Endpoint:
        """Raises Unavailable where no mesh runs in the home and no server is named, Unauthenticated without a token."""
        known = environment or Environment()
        home = self.home or default_home(known)
        address = self.server or known.address("RLHF_SERVER", "")
        known.done()
        roots = self.certificates or known.text("RLHF_SERVER_CERTIFICATES", "")
        address = address or _address_of(home)
        return Endpoint(address, self._token(known, home), Path(roots) if roots else None)

    def _token(self, known: Environment, home: Path) -> str:
        if self.token or self.token_file:
            return self.token or identity.read_token(self.token_file or home)
        return known.text("RLHF_TOKEN", "") or identity.read_token(known.path("RLHF_TOKEN_FILE", home / "token"))


def _address_of(home: Path) -> str:
    try:
        return str(json.loads((home / "run" / "endpoints.json").read_text())["grpc"])
    except (OSError, ValueError, KeyError, TypeError):
        raise Unavailable("MESH_NOT_UP", f"the mesh is not up (home {home}): run `rlhf up`") from None
