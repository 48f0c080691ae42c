"""What runs show: one description of each, for the terminal, the CSV files and the page."""

from sharpjax.report.detection import Detection
from sharpjax.report.finish import finish_calibration, finish_detection, finish_mitigation
from sharpjax.report.page import write_page

__all__ = ["Detection", "finish_calibration", "finish_detection", "finish_mitigation", "write_page"]
