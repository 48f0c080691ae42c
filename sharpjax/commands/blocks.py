"""Blocks of options: a dataclass whose fields are options of every command that takes it."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

_Command = Callable[..., None]


def with_blocks(command: _Command) -> _Command:
    """A command that takes dataclasses, as one that takes their fields, for Typer.

    Its help is its docstring, in whole paragraphs.

    The dataclasses are made, and check themselves, before the command is called.
    """
    parameters: list[inspect.Parameter] = []
    blocks: dict[str, tuple[Any, list[str]]] = {}
    kinds = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        if not dataclasses.is_dataclass(kinds[name]):
            parameters.append(parameter.replace(annotation=kinds[name]))
            continue
        hints = get_type_hints(kinds[name], include_extras=True)
        fields = dataclasses.fields(kinds[name])
        blocks[name] = kinds[name], [field.name for field in fields]
        parameters += [
            inspect.Parameter(
                field.name, parameter.kind, default=field.default, annotation=hints[field.name]
            )
            for field in fields
        ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        made = {
            name: kind(**{field: given.pop(field) for field in fields})
            for name, (kind, fields) in blocks.items()
        }
        command(**given, **made)

    run.__doc__ = _in_paragraphs(command.__doc__)
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _in_paragraphs(text: str | None) -> str:
    """A docstring as help: each paragraph one line, which the terminal breaks."""
    paragraphs = inspect.cleandoc(text or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
