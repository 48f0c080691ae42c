"""Benches for detectors that are not ours: captions, labels, masks, and one table of figures."""

from sharpjax.bench.drawings import DrawingsBench, Row, drawings

__all__ = ["DrawingsBench", "Row", "drawings"]
