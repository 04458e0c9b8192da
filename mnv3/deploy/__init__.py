"""Getting a model ready for where it runs."""

from .export import Report, export
from .formats import FORMATS
from .fuse import fuse
from .optimize import Choice, Optimized, optimize
from .quantize import QuantizeReport, quantize
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
