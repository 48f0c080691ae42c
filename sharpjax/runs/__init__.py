"""What is computed into a directory, resumed by the same call: a module for each command."""

from sharpjax.runs.detect import detect
from sharpjax.runs.images import detect_images
from sharpjax.runs.mitigate import MitigationSettings, jobs, mitigate
from sharpjax.runs.sample import generate
from sharpjax.runs.spectrum import spectrum
from sharpjax.runs.until_sure import until_sure

__all__ = [
    "MitigationSettings",
    "detect",
    "detect_images",
    "generate",
    "jobs",
    "mitigate",
    "spectrum",
    "until_sure",
]
