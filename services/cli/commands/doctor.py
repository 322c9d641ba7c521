"""`rlhf doctor`: what is wrong with this machine, and how to mend it."""

from __future__ import annotations

import dataclasses

import typer

from services.cli import exit_codes, output
from services.cli.session import options_of

_MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red")}


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(context: typer.Context, format: output.DocumentOption = "table") -> None:
    """Check this machine. Exit code 1 when something has to be mended before the mesh can run."""
    from services.cli import doctor_checks
    from services.mesh.settings import member_environment
    from services.supervisor.embedded.home import Home

    findings: list[doctor_checks.Finding] = []
    for finding in doctor_checks.examine(Home(options_of(context).home.resolve()), member_environment()):
        findings.append(finding)
        if format == "table":
            _show(finding.check, finding.level, finding.message, finding.remedy)
    failed = any(finding.level == "fail" for finding in findings)
    if format == "json":
        output.write_json({"ok": not failed, "findings": [dataclasses.asdict(finding) for finding in findings]})
    if failed:
        raise typer.Exit(exit_codes.FAILED)


def _show(check: str, level: str, message: str, remedy: str) -> None:
    mark, style = _MARKS[level]
    output.data().print(f"{mark} {check:<14} {message}", style=style if level != "ok" else None)
    if remedy:
        output.data().print(f"  {'':<14} → {remedy}")
