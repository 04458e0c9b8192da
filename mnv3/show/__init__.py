"""See what a network does: every function returns a matplotlib figure and writes it as PNG or SVG.

mnv3.show.arch("mnv3_small", path="table.svg")
mnv3.show.why("cat.jpg", mnv3.create_model("mnv3_large", pretrained=True), class_="tabby")
"""

from .comparison import compare
from .feature_maps import features
from .gradcam import why
from .network import arch
from .run_report import report
from .training import run

__all__ = ["arch", "compare", "features", "report", "run", "why"]
