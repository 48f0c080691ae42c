"""Networks of published checkpoints as shapes: PyTorch's names and shapes, the published counts.

The configurations are those of `config.json` in the repositories named; no weights are made.
"""

import importlib
import math

import diffusers
import pytest
import torch
import transformers
from flax import nnx

from sharpjax.checkpoints.component import MODEL_CLASSES, TRANSFORMERS, _OneKey

CLIP_L = {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072,
          "projection_dim": 768, "num_hidden_layers": 12, "num_attention_heads": 12}  # fmt: skip
# OpenCLIP's ViT-bigG/14
CLIP_G = {"vocab_size": 49408, "hidden_size": 1280, "intermediate_size": 5120,
          "projection_dim": 1280, "num_hidden_layers": 32, "num_attention_heads": 20,
          "hidden_act": "gelu"}  # fmt: skip
XL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD3 = {"sample_size": 128, "num_layers": 24, "num_attention_heads": 24, "attention_head_dim": 64,
       "in_channels": 16, "out_channels": 16, "patch_size": 2, "joint_attention_dim": 4096,
       "caption_projection_dim": 1536, "pooled_projection_dim": 2048,
       "pos_embed_max_size": 192}  # fmt: skip
VAE = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
T5_XXL = {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24,
          "num_heads": 64, "feed_forward_proj": "gated-gelu"}  # fmt: skip
# repository and part -> class, configuration, and the number of trained parameters
PUBLISHED = {
    "stable-diffusion-xl-base-1.0/unet": ("UNet2DConditionModel", XL, 2_567_463_684),
    "stable-diffusion-xl-base-1.0/text_encoder": ("CLIPTextModel", CLIP_L, 123_060_480),
    "stable-diffusion-xl-base-1.0/text_encoder_2": (
        "CLIPTextModelWithProjection", CLIP_G, 694_659_840,
    ),
    "stable-diffusion-xl-base-1.0/vae": (
        "AutoencoderKL", VAE | {"sample_size": 1024, "scaling_factor": 0.13025}, 83_653_863,
    ),
    "stable-diffusion-3-medium/transformer": ("SD3Transformer2DModel", SD3, 2_028_328_000),
    "stable-diffusion-3-medium/text_encoder": (
        "CLIPTextModelWithProjection", CLIP_L, 123_650_304,
    ),
    "stable-diffusion-3-medium/text_encoder_3": ("T5EncoderModel", T5_XXL, 4_762_310_656),
    "stable-diffusion-3-medium/vae": (
        "AutoencoderKL",
        VAE | {"sample_size": 1024, "latent_channels": 16, "use_quant_conv": False,
               "use_post_quant_conv": False, "scaling_factor": 1.5305, "shift_factor": 0.0609},
        83_819_683,
    ),
    "stable-diffusion-3.5-medium/transformer": (
        "SD3Transformer2DModel",
        SD3 | {"qk_norm": "rms_norm", "pos_embed_max_size": 384,
               "dual_attention_layers": tuple(range(13))},
        2_243_171_520,
    ),
    "stable-diffusion-3.5-large/transformer": (
        "SD3Transformer2DModel",
        SD3 | {"qk_norm": "rms_norm", "num_layers": 38, "num_attention_heads": 38,
               "caption_projection_dim": 2432},
        8_056_627_520,
    ),
    "DiT-XL-2-256/transformer": (
        "DiTTransformer2DModel",
        {"sample_size": 32, "in_channels": 4, "out_channels": 8, "num_layers": 28,
         "num_attention_heads": 16, "attention_head_dim": 72, "num_embeds_ada_norm": 1000},
        749_826_464,
    ),
    "DiT-XL-2-256/vae": ("AutoencoderKL", VAE | {"sample_size": 256}, 83_653_863),
}  # fmt: skip


def our_shapes(name, config):
    """By PyTorch's names: a kernel's axes are turned, the last part of a name is another one."""
    network = getattr(importlib.import_module(MODEL_CLASSES[name]), name)
    state = nnx.state(nnx.eval_shape(lambda: network(**config, rngs=_OneKey())), nnx.Param)
    found = {}
    for (*path, leaf), variable in nnx.to_flat_state(state):
        shape = variable.shape
        if leaf == "kernel":
            shape = shape[::-1] if len(shape) == 2 else (shape[3], shape[2], *shape[:2])
        name = {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(leaf, leaf)
        found[".".join(map(str, [*path, name]))] = shape
    return found


def their_shapes(name, config):
    """Of what is stored, and the number of trained ones."""
    with torch.device("meta"):
        if name == "T5EncoderModel":
            module = transformers.T5EncoderModel(transformers.T5Config(**config))
        elif name in TRANSFORMERS:
            module = getattr(transformers, name)(transformers.CLIPTextConfig(**config))
        else:
            module = getattr(diffusers, name)(**config)
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    shapes.pop("encoder.embed_tokens.weight", None)  # T5's one table under its other name
    if name == "CLIPTextModel":  # transformers 5 writes it without
        shapes = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in shapes.items()}
    return shapes, sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.fast_cases("stable-diffusion-3-medium/text_encoder_3", "DiT-XL-2-256/transformer")
@pytest.mark.parametrize("part", PUBLISHED)
def test_shapes_and_counts(part):
    name, config, count = PUBLISHED[part]
    shapes, total = their_shapes(name, config)
    assert our_shapes(name, config) == shapes
    assert total == count


def test_the_count_of_the_paper():
    """DiT-XL/2 has 675 M: diffusers keeps the embeddings of time and class in each block.

    The count that the paper's code prints has the table of places too.
    """
    name, config, count = PUBLISHED["DiT-XL-2-256/transformer"]
    first = "transformer_blocks.0.norm1.emb."
    shapes = our_shapes(name, config).items()
    embeddings = sum(math.prod(shape) for key, shape in shapes if key.startswith(first))
    places = (32 // 2) ** 2 * 1152
    assert count - 27 * embeddings + places == 675_129_632


@pytest.mark.parametrize(("name", "billions"), [("medium", 2.5), ("large", 8.1)])
def test_the_counts_of_the_model_cards(name, billions):
    """Of Stable Diffusion 3.5 only these are published; the fixed table of places is counted."""
    _, config, count = PUBLISHED[f"stable-diffusion-3.5-{name}/transformer"]
    places = config["pos_embed_max_size"] ** 2 * config["caption_projection_dim"]
    assert round((count + places) / 1e9, 1) == billions


def test_every_family_is_here():
    told = {name for name, _, _ in PUBLISHED.values()}
    assert told == MODEL_CLASSES.keys() - {
        "UNet2DModel", "ConceptClassifier", "CaptionMLP", "LinearCodec",  # no published pipeline's
    }  # fmt: skip
