"""Checkpoints of TF-Slim's MobileNetV3, as Google published them: NAME.index and NAME.data-00000-of-00001.

Slim's graph has 0.16667 for a sixth in its squeeze-and-excites, which moves logits by some 5e-6 of the largest one;
here as in Keras and timm it is a sixth.
Source: https://github.com/tensorflow/models/tree/master/research/slim/nets/mobilenet
"""

from pathlib import Path

from ..errors import WeightsError
from ..files.layouts import listed
from .foreign import Foreign
from .tensorbundle import Bundle
from .tensorflow import foreign, our_key

SCOPE = "MobilenetV3/"
AVERAGE = "/ExponentialMovingAverage"


def read(path: Path, *, use_ema: bool | None = None) -> Foreign:
    """A MobileNetV3 of TF-Slim, of any depth multiplier, with its 1001 classes ('background' first).

    Args:
        path: NAME.index, with the files of data beside it.
        use_ema: Which weights: True for the averages over the training or an error, False for the last ones, None for
            the averages if there are any.

    Raises:
        WeightsError: The checkpoint is damaged, or of another network.
        ImportError: google-crc32c is missing.
    """
    path = Path(path)
    bundle = Bundle(path)
    last = {key: name for name in bundle.entries if (key := _our_key(name))}
    averages = {key: name for name in bundle.entries if (key := _our_key(name, AVERAGE))}
    if not last | averages:
        raise WeightsError(f"{path}: no checkpoint of Slim's MobileNetV3: it holds {listed(sorted(bundle.entries))}")
    if use_ema and not averages:
        raise WeightsError(f"{path}: use_ema=True, but no variable has an average at {AVERAGE}")
    averages = averages if use_ema is not False else {}
    names = last | averages  # what has no average, as statistics may not, as it is
    arrays = bundle.read(names.values())
    try:
        by_key = {key: arrays[name] for key, name in names.items()}
        return foreign(by_key, source=f"TF-Slim's {'averaged ' if averages else ''}weights")
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None


def _our_key(name: str, ending: str = "") -> str | None:
    """Our key of a variable with this ending; None for the optimizer's and those of other networks."""
    ours = name.startswith(SCOPE) and name.endswith(ending)
    return our_key(name.removeprefix(SCOPE).removesuffix(ending)) if ours else None
