"""What PyTorch's networks have in common here: they remember their configuration."""

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

from flax import nnx

from sharpjax.checkpoints.configuration import tuples


class Network(nnx.Module):
    """A module whose constructor takes the keys of a `config.json`, and that knows them.

    Attributes:
        FIXED_CONFIG: keys with the only value that the port has.
        IGNORED_CONFIG: keys that never change the mathematics.
    """

    FIXED_CONFIG: ClassVar[dict[str, Any]] = {}
    IGNORED_CONFIG: ClassVar[frozenset[str]] = frozenset()

    def _remember(self, given: dict[str, Any]) -> dict[str, Any]:
        """Keep the constructor's arguments, of all that is `given`; lists become tuples."""
        keys = inspect.signature(type(self).__init__).parameters.keys() - {"self", "rngs"}
        # a tuple, because static attributes must be hashable for modules to be jit arguments
        self.settings = nnx.static(tuple((k, tuples(v)) for k, v in given.items() if k in keys))
        return self.config

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments: the configuration that PyTorch's libraries read."""
        return dict(self.settings)


def check_choices(*choices: tuple[str, Any, Sequence[Any] | dict[str, Any]]) -> None:
    """`ValueError` unless each `(key, value, allowed)` has an allowed value."""
    for key, value, allowed in choices:
        if value not in list(allowed):  # a list, for what JSON holds may not be hashable
            told = ", ".join(map(str, allowed))
            raise ValueError(f"{key} must be one of {told}, got {value!r}")
