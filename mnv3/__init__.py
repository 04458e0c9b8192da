"""mnv3: the MobileNetV3 family for torch.hub, timm and the Hugging Face Hub.

`import mnv3` registers the models with timm and does nothing else: no network, no seeds, no thread or backend settings.
"""

__version__ = "0.2.0"

from . import publish, show, timm_models
from .arch import Arch, Bneck
from .catalog import CATALOG, Checkpoint
from .convert import convert_state_dict
from .deploy import fuse
from .errors import PublishError, TrainingStopped, WeightsError
from .evaluate import evaluate
from .factory import class_names, create_model, load_checkpoint, transforms
from .files import save
from .finetune import finetune
from .layers import set_bn_eps
from .model import MobileNetV3
from .predict import predict

__all__ = [
    "CATALOG",
    "Arch",
    "Bneck",
    "Checkpoint",
    "MobileNetV3",
    "PublishError",
    "TrainingStopped",
    "WeightsError",
    "class_names",
    "convert_state_dict",
    "create_model",
    "evaluate",
    "finetune",
    "fuse",
    "load_checkpoint",
    "predict",
    "publish",
    "save",
    "set_bn_eps",
    "show",
    "timm_models",
    "transforms",
]
