"""See what a network does: every function returns a matplotlib figure and writes it as PNG or SVG.

mnv3.show.arch("mnv3_small", path="table.svg")
mnv3.show.why("cat.jpg", mnv3.create_model("mnv3_large", pretrained=True), class_="tabby")
"""

from .arch import arch
from .compare import compare
from .features import features
from .report import report
from .run import run
from .why import why

__all__ = ["arch", "compare", "features", "report", "run", "why"]
