"""A reward as a plan names it, and what it may use where it scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

# Whether code of a user's may judge: not, in isolation, or where there is none to be had too.
CustomCode = Literal["refuse", "allow", "allow-unisolated"]


@dataclass(frozen=True)
class RewardSpec:
    """A reward by its registered name, with all its parameters."""

    name: str
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RewardSite:
    """What rewards may use where they score, by the settings of the trainer. It holds no secret, only where they lie.

    `outbound_allow` are the hosts (`host`, `host:port`, a network such as 10.0.0.0/8, or `loopback`) that may be
    called. `models` is where each reward model lies, by its reference. `ledger` is the file that counts what
    judges have cost.
    """

    secrets_folder: str = ""
    outbound_allow: tuple[str, ...] = ()
    custom_code: CustomCode = "refuse"
    models: dict[str, str] = field(default_factory=dict)
    ledger: str = ""


# Nobody is called, and no code of a user's runs.
DEFAULT_REWARD_SITE = RewardSite()
