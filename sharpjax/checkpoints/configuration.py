"""What a `config.json` may say, before anything is built from it.

The constructors check what values mean; here is what holds for all of them: known keys, values of
the annotated types, and sizes that cannot take hours or all memory.
"""

import inspect
import types
import typing
from pathlib import Path
from typing import Any

import jax

LEARNED_VARIANCES = ("learned", "learned_range")  # variance_type of a scheduler
_MAX_INT = 2**20
_MAX_LENGTH = 32
_MAX_LABELS = 2**16  # of a classifier: each is a column of one layer
_TENSORS_PER_LAYER = 8  # a layer of T5; of others more

# keys of config.json that never change the mathematics: training, generation, labels, bookkeeping
UNUSED_BY_TEXT_ENCODERS = frozenset({
    # what CLIPTextConfig of transformers 5 has beside the constructor's keys, defaults included
    "_name_or_path", "architectures", "attention_dropout", "bos_token_id",
    "chunk_size_feed_forward", "dtype", "id2label", "initializer_factor", "initializer_range",
    "is_encoder_decoder", "label2id", "model_type", "output_attentions", "output_hidden_states",
    "pad_token_id", "problem_type", "return_dict", "transformers_version",
    # what older ones wrote; pruned_heads never had an effect on CLIP
    "_attn_implementation_autoset", "_commit_hash", "add_cross_attention", "bad_words_ids",
    "begin_suppress_tokens", "cross_attention_hidden_size", "decoder_start_token_id",
    "diversity_penalty", "do_sample", "dropout", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "finetuning_task",
    "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing", "is_decoder",
    "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups",
    "num_beams", "num_labels", "num_return_sequences", "output_scores", "prefix",
    "pruned_heads", "remove_invalid_values", "repetition_penalty", "return_dict_in_generate",
    "sep_token_id", "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss",
    "tie_encoder_decoder", "tie_word_embeddings", "tokenizer_class", "top_k", "top_p",
    "torch_dtype", "torchscript", "typical_p", "use_bfloat16", "use_cache",
})  # fmt: skip


def checked_settings(
    config: dict[str, Any], module_class: type, path: Path, *, ignored: frozenset[str]
) -> dict[str, Any]:
    """The constructor's annotated arguments from `config.json`; lists become tuples.

    Keys that are `ignored` never change the mathematics of this class; those in its `FIXED_CONFIG`
    must have the value that stands there.

    Raises:
        ValueError: a key that the constructor does not know and that is not off (null, false,
            empty), or a value that is not of the type that it says.
    """
    constructor: Any = module_class.__init__  # type: ignore[misc]  # of the class, as it stands
    hints = typing.get_type_hints(constructor)
    allowed = inspect.signature(constructor).parameters.keys() - {"self", "rngs"}
    fixed = getattr(module_class, "FIXED_CONFIG", {})
    for key in fixed.keys() & config.keys():
        if config[key] != fixed[key]:
            raise ValueError(f"{path}: {key} must be {fixed[key]!r}, got {config[key]!r:.80}")
    settings = {
        key: tuples(value)
        for key, value in config.items()
        if key not in ignored | fixed.keys() and (key in allowed or not _is_off(value))
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
    """`value` with tuples for its lists: hashable, as static attributes of modules must be."""
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value


def check(condition: bool, message: str) -> None:
    """`ValueError(message)` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def _has_type(value: Any, hint: Any) -> bool:
    """Whether a JSON value fits an annotation made of int, float, bool, str, None, tuple, `|`."""
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
    """Refuse a network whose output is neither the noise nor that and a learned variance."""
    inputs, outputs = unet["in_channels"], unet["out_channels"]
    variance = scheduler.get("variance_type")
    if outputs != inputs and not (outputs == 2 * inputs and variance in LEARNED_VARIANCES):
        raise ValueError(
            f"{where}: unet maps {inputs} (in_channels) to {outputs} channels (out_channels). It "
            "must give as many as it takes, or twice as many where variance_type is "
            f"{' or '.join(map(repr, LEARNED_VARIANCES))}, got {variance!r:.80}"
        )


def without_variance(output: Any, channels: int) -> Any:
    """The prediction in a network's output `(batch, channels or twice as many, ...)`.

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
    """Refuse `checked_settings` that the weights cannot fill, before time is spent on building.

    Raises:
        ValueError: a number or a list that no such network has, or more layers than tensors.
    """
    levels = settings.get("down_block_types")
    levels = len(levels) if isinstance(levels, tuple) else 1
    for key, value in settings.items():
        entries = jax.tree.leaves(value)
        most = _MAX_LABELS if key in ("labels", "words") else _MAX_LENGTH
        if len(entries) > most:
            raise ValueError(f"{path}: {key} has {len(entries)} entries, over {most}")
        numbers = [n for n in entries if isinstance(n, int) and not isinstance(n, bool)]
        if any(abs(number) > _MAX_INT for number in numbers):
            raise ValueError(f"{path}: {key} is too large, over {_MAX_INT}")
        if any(number < 0 for number in numbers):
            raise ValueError(f"{path}: {key}={value} must not be negative")
        layers = sum(numbers) if isinstance(value, tuple) else sum(numbers) * levels
        of_numbers = key == "dual_attention_layers"  # which, not how many
        if "layers" in key and not of_numbers and layers * _TENSORS_PER_LAYER > num_tensors:
            raise ValueError(
                f"{path}: {key}={value} asks for more layers than the {num_tensors} tensors of the "
                "weights can fill"
            )
