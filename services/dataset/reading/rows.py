"""Canonical rows: the one form in which every training row is stored, hashed, listed and trained on.

The encoding is deterministic, so equal content has equal hashes: JSON without spaces, UTF-8, fields in the order
declared here, the keys of `metadata` sorted, what is absent left out.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
Metadata: TypeAlias = dict[str, Any]


class Message(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """One turn. Also what the fast path decodes: a message with any other key is left to the explaining path.

    `reasoning_content`, what an assistant thought before it answered, and `name` are for the model's chat template;
    `weight` 0 keeps an assistant's turn out of the loss.
    """

    role: Role
    content: str
    reasoning_content: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    weight: Literal[0] | UnsetType = UNSET


class MessagesRow(msgspec.Struct, gc=False):
    """A conversation to imitate; its last message is the assistant's."""

    messages: list[Message]
    metadata: Metadata | UnsetType = UNSET


class PreferenceRow(msgspec.Struct, gc=False):
    """A prompt with a better and a worse continuation."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    metadata: Metadata | UnsetType = UNSET


class PromptRow(msgspec.Struct, gc=False):
    """A prompt to answer, and the answer a reward checks against (None: a reward that needs one cannot score it)."""

    prompt: list[Message]
    answer: str | None = None
    metadata: Metadata | UnsetType = UNSET


Row: TypeAlias = MessagesRow | PreferenceRow | PromptRow

# "deterministic" sorts the keys of dicts and leaves the declared order of structs alone.
encode = msgspec.json.Encoder(order="deterministic").encode
