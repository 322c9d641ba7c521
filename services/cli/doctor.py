"""`rlhf doctor`: what is wrong with this machine, and how to mend it."""

from __future__ import annotations

import dataclasses

import typer

from services.cli import exits, output
from services.cli.session import options_of

_MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red")}


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(context: typer.Context, format: output.DocumentOption = "table") -> None:
    """Check this machine. Exit code 1 when something has to be mended before the mesh can run."""
    from services.cli import machine
    from services.mesh.embedded.home import Home
    from services.mesh.settings import member_environment

    findings: list[machine.Finding] = []
    for finding in machine.examine(Home(options_of(context).home.resolve()), member_environment()):
        findings.append(finding)
        if format == "table":
            _show(finding.check, finding.level, finding.message, finding.remedy)
    failed = any(finding.level == "fail" for finding in findings)
    if format == "json":
        output.write_json({"ok": not failed, "findings": [dataclasses.asdict(finding) for finding in findings]})
    if failed:
        raise typer.Exit(exits.FAILED)


def _show(check: str, level: str, message: str, remedy: str) -> None:
    mark, style = _MARKS[level]
    output.data().print(f"{mark} {check:<14} {message}", style=style if level != "ok" else None)
    if remedy:
        output.data().print(f"  {'':<14} → {remedy}")
