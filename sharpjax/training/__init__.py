"""Training: one resumable loop, and the tasks it learns."""

from sharpjax.training.captioned_unet import CaptionedUNet
from sharpjax.training.class_denoising import ClassDenoising, Data
from sharpjax.training.loop import Settings, Task, averaged, kept_steps, train
from sharpjax.training.reconstruction import Reconstruction
from sharpjax.training.vocabulary import train_tokenizer

__all__ = [
    "CaptionedUNet",
    "ClassDenoising",
    "Data",
    "Reconstruction",
    "Settings",
    "Task",
    "averaged",
    "kept_steps",
    "train",
    "train_tokenizer",
]
