"""Judges by embeddings, on networks that PyTorch has written."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sharpjax.mitigation.judging import EmbeddingJudge, load_clip, load_sscd
from sharpjax.runs.references import read_references


@pytest.fixture(scope="module")
def sscd_file(tmp_path_factory):
    """A network for 288 x 288 images: nine means of each channel."""
    path = tmp_path_factory.mktemp("sscd") / "sscd.torchscript.pt"
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(3), torch.nn.Flatten())
    torch.jit.script(network).save(str(path))
    return path


def pictures(count, size=40):
    rng = np.random.default_rng(0)
    blocks = rng.uniform(-1, 1, (count, 3, 4, 4))
    return blocks.repeat(size // 4, axis=2).repeat(size // 4, axis=3)


def write_references(folder, images, prompts):
    lines = ["prompt,file"]
    for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        levels = np.round((image + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(levels).save(folder / f"{i}.png")
        lines.append(f"{prompt},{i}.png")
    (folder / "references.csv").write_text("\n".join(lines) + "\n")
    return folder / "references.csv"


def test_embeddings_of_torchscript(sscd_file, tmp_path):
    images = pictures(3)
    table = write_references(tmp_path, images, ["a", "b", "b"])
    found = EmbeddingJudge(read_references(table), load_sscd(sscd_file), None, threshold=0.99)(
        np.concatenate([images[:1], images[:1], images[1:3]]), ["a", "c", "b", "b"]
    )
    np.testing.assert_allclose(found.own[0], 1, atol=1e-4)
    assert np.isnan(found.own[1])
    assert found.copied.all()
    # under another prompt the same image is another's copy; one's own second image is one's own
    assert found.turned.tolist() == [False, True, False, False]
    np.testing.assert_allclose(found.own[2:], 1, atol=1e-4)
    assert found.nearest[1] == "a"
    assert np.isnan(found.fidelity).all()


def test_the_embedding_is_of_the_normalised_image(sscd_file):
    grey = np.zeros((1, 3, 50, 70))
    embedded = load_sscd(sscd_file)(grey)
    level = 128 / 255  # of a byte: half of 255 is rounded up
    expected = (level - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(embedded[0].reshape(3, 9).mean(axis=1), expected, rtol=1e-4)


@pytest.fixture(scope="module")
def clip_directory(stable_diffusion_directory, tmp_path_factory):
    """A small CLIP with random weights and its processor, as transformers writes them."""
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        CLIPTokenizer,
    )

    tokenizer = CLIPTokenizer.from_pretrained(stable_diffusion_directory, subfolder="tokenizer")
    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2}  # fmt: skip
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config=part | {"vocab_size": len(tokenizer), "max_position_embeddings": 77},
            vision_config=part | {"image_size": 16, "patch_size": 8},
            projection_dim=8,
        )
    )
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    size = {"height": 16, "width": 16}
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)
    CLIPProcessor(processor, tokenizer).save_pretrained(folder)
    return folder


def test_clip_reads_safetensors_and_no_pickle(clip_directory, tmp_path):
    scores = load_clip(clip_directory)(pictures(2), ["a cat", "a dog"])
    assert scores.shape == (2,)
    assert np.all(np.abs(scores) <= 1)
    folder = shutil.copytree(clip_directory, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"no CLIP model with safetensors at .*pickled \(a pickle"):
        load_clip(folder)


def test_training_images_are_turned_and_scaled(tmp_path):
    """As detection reads them: a photo on its side, a scan of 16 bits."""
    exif = Image.Exif()
    exif[274] = 6
    photo = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(np.full((8, 8), 127 * 257, np.uint16)).save(tmp_path / "b.png")
    (tmp_path / "r.csv").write_text("prompt,file\na,a.png\nb,b.png\n")
    (first, second), _ = read_references(tmp_path / "r.csv")
    expected = np.rot90(photo, -1).transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(first, expected, atol=1e-6)
    np.testing.assert_allclose(second, np.full((3, 8, 8), 127 / 127.5 - 1), atol=1e-6)


def test_files_that_are_not_there(sscd_file, tmp_path):
    with pytest.raises(FileNotFoundError, match="no SSCD file"):
        load_sscd(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match="is not a TorchScript file"):
        load_sscd(tmp_path / "text.pt")
    with pytest.raises(FileNotFoundError, match="no file of prompts"):
        read_references(tmp_path / "none.csv")
    for text, message in (
        ("prompt\na\n", "line 2: 'file' is missing; name an image beside every prompt"),
        ("prompt,file\na,text.pt\nb,\n", "line 3: 'file' is missing"),
        ("file\ntext.pt\n", "has no column prompt, caption or text"),
        ("prompt,file\n", "holds no prompt"),
        ("prompt,file\na,text.pt\n", "text.pt cannot be read as an image"),
    ):
        (tmp_path / "r.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_references(tmp_path / "r.csv")
    (tmp_path / "r.csv").write_text("prompt,file\na,none.png\n")
    with pytest.raises(FileNotFoundError, match="which is missing"):
        read_references(tmp_path / "r.csv")
