"""`python -m mnv3.timm SCRIPT ARGS`: a script, such as timm's train.py, with our models in timm's registry.

Processes that the script starts by multiprocessing know the models too, whatever the start method.
"""

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from . import public as public  # registers the models

# Where a spawned process, which imports this module as `__mp_main__` with our sys.argv, finds the script.
SCRIPT = "MNV3_TIMM_SCRIPT"


def _run(script: Path, name: str) -> dict[str, Any]:
    """Run a script as the module of this name, `__main__` or `__mp_main__`, and return what it defines.

    The module keeps the import specification of this file, which is how multiprocessing finds it in a new process.
    """
    module = ModuleType(name)
    module.__file__, module.__spec__ = str(script), __spec__
    sys.modules[name] = module
    exec(compile(script.read_bytes(), script, "exec"), vars(module))
    return vars(module)


def main(arguments: list[str]) -> None:
    """Run `arguments[0]` with the rest as its arguments, as `python` does."""
    if not arguments or not Path(arguments[0]).is_file():
        problem = f"{arguments[0]}: no such file" if arguments else "a script is missing"
        sys.exit(f"{problem}. Usage: python -m mnv3.timm SCRIPT [ARGS], train.py of timm's for instance")
    script = Path(arguments[0]).absolute()
    sys.argv[:] = arguments
    sys.path.insert(0, str(script.resolve().parent))
    os.environ[SCRIPT] = str(script)
    _run(script, "__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
elif __name__ == "__mp_main__":
    globals().update(_run(Path(os.environ[SCRIPT]), __name__))
