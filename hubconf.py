"""torch.hub entries: torch.hub.load('org/mnv3:v0.5.0', 'mobilenetv3_small', pretrained=True, trust_repo=True).

Every model takes `pretrained` (True for the default checkpoint, a tag such as 'ra_in1k', or False), and the arguments
of mnv3.MobileNetV3: num_classes, in_chans, width, drop_rate ... `transforms` gives the preprocessing of a model.
"""

import re as _re
import sys as _sys
from importlib.util import find_spec as _find_spec
from pathlib import Path as _Path

dependencies = ["torch", "torchvision", "timm", "huggingface_hub", "safetensors"]


def _check_loaded() -> None:
    """Raise ImportError if another mnv3 is loaded: Python has one of a name, and would go on with that one's code."""
    if "mnv3" not in _sys.modules:
        return
    loaded, wanted = _Path(_sys.modules["mnv3"].__file__).resolve().parent, _Path(__file__).resolve().parent / "mnv3"
    code = [{path.relative_to(root): path.read_bytes() for path in root.rglob("*.py")} for root in (loaded, wanted)]
    if code[0] != code[1]:
        version = _re.search(r'__version__ = "(.+)"', code[1][_Path("version.py")].decode())[1]
        raise ImportError(
            f"mnv3 {_sys.modules['mnv3'].__version__} from {loaded} is loaded already, and {wanted} has other code "
            f"(mnv3 {version}): load that one in a Python process of its own"
        )


_check_loaded()
# torch.hub reports what is missing of these, but reads this file first.
if all(_find_spec(_name) for _name in dependencies):
    from mnv3 import transforms
    from mnv3.timm_models import (
        mnv3_large,
        mnv3_large as mobilenetv3_large,
        mnv3_large_075,
        mnv3_large_075_tf,
        mnv3_large_cifar,
        mnv3_large_minimal,
        mnv3_large_minimal_tf,
        mnv3_large_tf,
        mnv3_small,
        mnv3_small as mobilenetv3_small,
        mnv3_small_050,
        mnv3_small_075,
        mnv3_small_075_tf,
        mnv3_small_cifar,
        mnv3_small_minimal,
        mnv3_small_minimal_tf,
        mnv3_small_tf,
    )
