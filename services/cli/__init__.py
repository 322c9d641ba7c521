"""The `rlhf` command: a client of the gateway, and the supervisor behind `rlhf up`."""
