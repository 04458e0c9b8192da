"""Getting a model ready for where it runs."""

from ..folding import fuse
from .exporter import Report, export
from .fastest import Choice, Optimized, optimize
from .formats import FORMATS
from .int8.quantizer import QuantizeReport, quantize
from .runtime import Exported, load

__all__ = [
    "FORMATS",
    "Choice",
    "Exported",
    "Optimized",
    "QuantizeReport",
    "Report",
    "export",
    "fuse",
    "load",
    "optimize",
    "quantize",
]
