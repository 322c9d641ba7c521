"""Stands in for the agent of Ray's dashboard, which a raylet starts and ends with: it waits for the raylet's end."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # The raylet holds the other end of this pipe, for its agents to see it die.
    sys.stdin.buffer.read()
