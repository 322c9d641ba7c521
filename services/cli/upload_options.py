"""`--map`, `--skip-invalid` and `--split` of an upload: text from the command line → fields of the contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from services.mesh.errors import InvalidArgument, Violation

if TYPE_CHECKING:
    from rlhf.dataset.v1.dataset_pb2 import Upload


MapOption = Annotated[
    list[str] | None, typer.Option("--map", help="Keys of the file to read as others: question=prompt,gold=answer.")
]
SkipOption = Annotated[
    str, typer.Option(metavar="ROWS|SHARE%", help="Leave out wrong rows, at most so many: 20, or 5%.")
]
SplitOption = Annotated[
    str, typer.Option(metavar="NAME=SHARE", help="Hold rows out for the dataset `…-NAME`: validation=0.05.")
]
SeedOption = Annotated[int, typer.Option(help="Another number holds out other rows.")]


def read(maps: Sequence[str], skip_invalid: str, split: str, seed: int) -> Upload:
    """An Upload with these fields alone. Raises InvalidArgument with everything that cannot be read."""
    from rlhf.dataset.v1.dataset_pb2 import Upload

    violations: list[Violation] = []
    found = Upload(field_mapping=_mapping(maps, violations))
    _tolerance(skip_invalid, found, violations)
    _split(split, seed, found, violations)
    if violations:
        raise InvalidArgument(violations)
    return found


def map_flag(mapping: Mapping[str, str]) -> str:
    """The flag that gives this mapping, as a shell takes it."""
    import shlex

    return f"--map {shlex.quote(','.join(f'{key}={name}' for key, name in sorted(mapping.items(), key=_place)))}"


def _place(pair: tuple[str, str]) -> tuple[int, str]:
    order = ("messages", "prompt", "completion", "answer", "chosen", "rejected")
    return (order.index(pair[1]) if pair[1] in order else len(order), pair[1])


def _mapping(texts: Sequence[str], violations: list[Violation]) -> dict[str, str]:
    mapping: dict[str, str] = {}
    for pair in (pair for text in texts for pair in text.split(",")):
        key, equals, name = (part.strip() for part in pair.partition("="))
        if not (key and equals and name):
            message = f"must be KEY=NAME, the file's key first: question=prompt (got {pair[:60]!r})"
            violations.append(Violation("--map", message))
        elif key in mapping:
            violations.append(Violation("--map", f"{key!r} is given twice; keep one"))
        else:
            mapping[key] = name
    return mapping


def _tolerance(text: str, upload: Upload, violations: list[Violation]) -> None:
    if not text:
        return
    number = text.removesuffix("%").strip()
    try:
        if text.endswith("%"):
            upload.max_invalid_row_share = float(number) / 100
            wrong = not 0 < upload.max_invalid_row_share < 1
        else:
            upload.max_invalid_row_count = int(number)
            wrong = upload.max_invalid_row_count <= 0
    except ValueError:
        wrong = True
    if wrong:
        message = f"must be a number of rows, such as 20, or a share of them below 100%, such as 5% (got {text[:60]!r})"
        violations.append(Violation("--skip-invalid", message))


def _split(text: str, seed: int, upload: Upload, violations: list[Violation]) -> None:
    if not text:
        if seed:
            violations.append(Violation("--split-seed", "chooses the rows of --split, which is not given"))
        return
    name, equals, share = (part.strip() for part in text.partition("="))
    try:
        is_share = share.endswith("%")
        upload.split.share = float(share.removesuffix("%")) / (100 if is_share else 1)
    except ValueError:
        equals = ""
    if not (name and equals):
        message = f"must be NAME=SHARE, such as validation=0.05 (got {text[:60]!r})"
        violations.append(Violation("--split", message))
        return
    upload.split.name, upload.split.seed = name, seed
