"""Training: one resumable loop, and the tasks it learns."""

from sharpjax.training.caption_denoising import CaptionDenoising, CaptionedUNet
from sharpjax.training.class_denoising import ClassDenoising, Data
from sharpjax.training.classification import Classification
from sharpjax.training.loop import Settings, Task, averaged, kept_steps, train
from sharpjax.training.reconstruction import Reconstruction
from sharpjax.training.vocabulary import train_tokenizer

__all__ = [
    "CaptionDenoising",
    "CaptionedUNet",
    "ClassDenoising",
    "Classification",
    "Data",
    "Reconstruction",
    "Settings",
    "Task",
    "averaged",
    "kept_steps",
    "train",
    "train_tokenizer",
]
