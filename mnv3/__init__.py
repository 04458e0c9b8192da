"""mnv3: the MobileNetV3 family for torch.hub, timm and the Hugging Face Hub.

`import mnv3` registers the models with timm and does nothing else: no network, no seeds, no thread or backend settings.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__


def _runs_the_command() -> bool:
    """Whether this process is `mnv3 ...` or `python -m mnv3 ...`, whose help and tables need neither torch nor timm."""
    program = sys.argv[0] if sys.argv else ""
    return PurePath(program).stem == "mnv3" or (program == "-m" and "mnv3" in sys.orig_argv)


if TYPE_CHECKING or not _runs_the_command():
    from .public import *  # noqa: F403
    from .public import __all__ as __all__
else:

    def __getattr__(name: str) -> Any:
        """A public name on first use; files of the package are left to the import that asks for them."""
        if find_spec(f"{__name__}.{name}"):
            raise AttributeError(name)
        return getattr(import_module(f"{__name__}.public"), name)
