"""What a ``config.json`` may say, before anything is built from it.

The constructors check what values mean; here is what holds for all of them: known keys, values of
the annotated types, and sizes that cannot take hours or all memory.
"""

import inspect
import types
import typing
from pathlib import Path
from typing import Any

LEARNED_VARIANCES = ("learned", "learned_range")  # variance_type of a scheduler
_MAX_INT = 2**20
_MAX_LENGTH = 32
_MAX_LABELS = 2**16  # of a classifier: each is a column of one layer
_TENSORS_PER_LAYER = 16  # a residual block of an encoder and one of a decoder; a layer of CLIP


def checked_settings(
    config: dict[str, Any], module_class: type, path: Path, *, ignored: frozenset[str]
) -> dict[str, Any]:
    """The constructor's arguments from ``config.json``; lists become tuples.

    Args:
        config: what the file holds.
        module_class: takes the keys as keyword arguments, annotated with their types.
        path: of the file, for errors.
        ignored: keys that never change the mathematics of this class.

    Raises:
        ValueError: a key that the constructor does not know and that is not off (null, false,
            empty), or a value that is not of the type that it says.
    """
    constructor: Any = module_class.__init__  # type: ignore[misc]  # of the class, as it stands
    hints = typing.get_type_hints(constructor)
    allowed = inspect.signature(constructor).parameters.keys() - {"self", "rngs"}
    settings = {
        key: tuples(value)
        for key, value in config.items()
        if key not in ignored and (key in allowed or not _is_off(value))
    }
    if "quantization_config" in settings:
        raise ValueError(
            f"{path}: quantized weights are not read (quantization_config is "
            f"{config['quantization_config']!r:.80}); take the model's full-precision weights"
        )
    unknown = sorted(settings.keys() - allowed)
    if unknown:
        raise ValueError(
            f"{path}: unknown configuration key {unknown[0]!r}; it may change the mathematics, "
            f"so it is not ignored (known keys: {', '.join(sorted(allowed))})"
        )
    for key, value in settings.items():
        hint = hints.get(key, Any)
        if value is None and not _has_type(None, hint) and _has_type(False, hint):
            settings[key] = value = False  # what PyTorch's networks take it for
        if not _has_type(value, hint):
            wanted = inspect.formatannotation(hints[key])
            raise ValueError(
                f"{path}: {key} must be {wanted} (tuple: a list), got {config[key]!r:.80}"
            )
    return settings


def _is_off(value: Any) -> bool:
    """Whether a key with this value stands for something that is not used."""
    return value is None or value is False or value in ("", [], {})


def tuples(value: Any) -> Any:
    """``value`` with tuples for its lists: hashable, as static attributes of modules must be."""
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value


def check(condition: bool, message: str) -> None:
    """``ValueError(message)`` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def _has_type(value: Any, hint: Any) -> bool:
    """Whether a JSON value fits an annotation made of int, float, bool, str, None, tuple, ``|``."""
    arguments = typing.get_args(hint)
    if hint is Any:
        return True
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return any(_has_type(value, h) for h in arguments)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(_has_type(v, arguments[0]) for v in value)
        return len(value) == len(arguments) and all(map(_has_type, value, arguments))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint in (None, type(None)):
        return value is None
    if not isinstance(hint, type):  # an annotation that is left to the constructor
        return True
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def check_channels(unet: dict[str, Any], scheduler: dict[str, Any], where: Path | str) -> None:
    """Refuse a network whose output is neither the noise nor that and a learned variance.

    Args:
        unet: its configuration.
        scheduler: the content of ``scheduler_config.json``.
        where: that file, for errors.
    """
    inputs, outputs = unet["in_channels"], unet["out_channels"]
    variance = scheduler.get("variance_type")
    if outputs != inputs and not (outputs == 2 * inputs and variance in LEARNED_VARIANCES):
        raise ValueError(
            f"{where}: unet maps {inputs} (in_channels) to {outputs} channels (out_channels). It "
            "must give as many as it takes, or twice as many where variance_type is "
            f"{' or '.join(map(repr, LEARNED_VARIANCES))}, got {variance!r:.80}"
        )


def without_variance(output: Any, channels: int) -> Any:
    """The prediction in a network's output ``(batch, channels or twice as many, ...)``.

    After it comes what the network says of the variance of a step (Nichol & Dhariwal 2021,
    arXiv:2102.09672), which neither scores nor DDIM need.
    """
    check(
        output.shape[1] in (channels, 2 * channels),
        f"the network gives {output.shape[1]} channels for {channels}; it must give as many, or "
        "twice as many, of which the second half is a learned variance",
    )
    return output[:, :channels]


def check_size(settings: dict[str, Any], path: Path, *, num_tensors: int) -> None:
    """Refuse a configuration that the weights cannot fill, before time is spent on building it.

    Args:
        settings: as :func:`checked_settings` returns them.
        path: of the file, for errors.
        num_tensors: in the weights.

    Raises:
        ValueError: a number or a list that no such network has, or more layers than tensors.
    """
    levels = settings.get("down_block_types")
    levels = len(levels) if isinstance(levels, tuple) else 1
    for key, value in settings.items():
        numbers, lists = [], [value]
        while lists:
            item = lists.pop()
            if isinstance(item, tuple):
                most = _MAX_LABELS if key == "labels" else _MAX_LENGTH
                if len(item) > most:
                    raise ValueError(f"{path}: {key} has {len(item)} entries, over {most}")
                lists += item
            elif isinstance(item, int) and not isinstance(item, bool):
                numbers.append(item)
        if any(abs(number) > _MAX_INT for number in numbers):
            raise ValueError(f"{path}: {key} is too large, over {_MAX_INT}")
        if any(number < 0 for number in numbers):
            raise ValueError(f"{path}: {key}={value} must not be negative")
        layers = sum(numbers) if isinstance(value, tuple) else sum(numbers) * levels
        if "layers" in key and layers * _TENSORS_PER_LAYER > num_tensors:
            raise ValueError(
                f"{path}: {key}={value} asks for more layers than the {num_tensors} tensors of the "
                "weights can fill"
            )
