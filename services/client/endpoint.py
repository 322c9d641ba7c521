"""Where the mesh is and what opens it: from arguments, else the environment, else the home of a mesh that is up.

Within a home the way is a socket in a folder that is closed to others: what a mesh that was killed leaves behind leads
to nobody, where a port would lead to whoever has taken it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from services.mesh import addresses, identity
from services.mesh.errors import FailedPrecondition, Unavailable
from services.mesh.processes import procfs
from services.mesh.settings import Environment, default_home


@dataclass(frozen=True)
class Endpoint:
    """`address` is where the gateway speaks gRPC, `host:port` or `unix:/path`; `certificates` makes it TLS."""

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
        """Raises Unavailable where no mesh runs in the home and no server is named, Unauthenticated without a token,
        FailedPrecondition for a socket that others could have taken.
        """
        known = environment or Environment()
        home = self.home or default_home(known)
        address = self.server or known.endpoint("RLHF_SERVER", "")
        known.done()
        roots = self.certificates or known.text("RLHF_SERVER_CERTIFICATES", "")
        if address:
            addresses.check_target(address)
        else:
            address = _address_of(home)
        is_tls = roots and not address.startswith(addresses.PREFIX)
        return Endpoint(address, self._token(known, home), Path(roots) if is_tls else None)

    def _token(self, known: Environment, home: Path) -> str:
        if self.token or self.token_file:
            return self.token or identity.read_token(self.token_file or home)
        return known.text("RLHF_TOKEN", "") or identity.read_token(known.path("RLHF_TOKEN_FILE", home / "token"))


def _address_of(home: Path) -> str:
    """Of the gateway's socket, once it is known that the mesh which tells it lives and that the socket is its own."""
    told = home / "run" / "endpoints.json"
    try:
        endpoints, owner = json.loads(told.read_text()), told.stat().st_uid
        address, supervisor = str(endpoints["socket"]), int(endpoints["pid"])
    except KeyError:
        message = f"the mesh was started by another version (home {home}): run `rlhf down` and `rlhf up`"
        raise Unavailable("MESH_NOT_UP", message) from None
    except (OSError, ValueError, TypeError):
        raise Unavailable("MESH_NOT_UP", f"the mesh is not up (home {home}): run `rlhf up`") from None
    if procfs.identify(supervisor) is None:
        message = f"the mesh is not running any more (home {home}), its supervisor was killed: run `rlhf up`"
        raise Unavailable("MESH_NOT_UP", message)
    try:
        addresses.check_target(address, (owner,))
    except FailedPrecondition as error:
        message = f"the mesh cannot be reached (home {home}): {error.message}; run `rlhf down` and `rlhf up`"
        raise Unavailable("MESH_NOT_UP", message) from None
    return address
