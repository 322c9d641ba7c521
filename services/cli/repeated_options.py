"""An option that takes one value, given twice: an error. Click by itself believes the last one in silence."""

from __future__ import annotations

from collections import Counter
from typing import Any

from typer.core import TyperGroup


class CheckedGroup(TyperGroup):
    """Refuses such options before and behind its commands, and behind those of its groups."""

    def make_parser(self, ctx: Any) -> Any:
        return _checked(super().make_parser(ctx), ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None and not isinstance(command, CheckedGroup):
            _refuse(command)
        return command


def _refuse(command: Any) -> None:
    """Make `command` and all below it refuse such options."""
    if getattr(command, "_refuses_repeats", False):
        return
    command._refuses_repeats = True
    make_parser = command.make_parser
    command.make_parser = lambda context: _checked(make_parser(context), context)
    for inner in getattr(command, "commands", {}).values():
        _refuse(inner)


def _checked(parser: Any, context: Any) -> Any:
    parse = parser.parse_args

    def parse_args(args: list[str]) -> Any:
        values, rest, order = parse(args=args)
        if not context.resilient_parsing:
            _check(context, order)
        return values, rest, order

    parser.parse_args = parse_args
    return parser


def _check(context: Any, order: list[Any]) -> None:
    counts = Counter(id(param) for param in order)
    for param in {id(param): param for param in order}.values():
        takes_one = param.param_type_name == "option" and not (param.multiple or param.count or param.is_flag)
        if takes_one and counts[id(param)] > 1:
            name = max(param.opts, key=len)
            context.fail(f"{name} is given {counts[id(param)]} times and takes one value; keep one of them")
