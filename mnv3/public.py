"""The public names of the package. To import it registers the models with timm."""

from . import deploy, show, timm_models
from .arch import Arch, Bneck
from .catalog import CATALOG, Checkpoint
from .deploy import fuse
from .errors import PublishError, TrainingStopped, WeightsError
from .factory import class_names, create_model, load_checkpoint, transforms
from .files.conversion import convert_state_dict
from .files.saving import save
from .hub import publish
from .layers import set_bn_eps
from .model import MobileNetV3
from .pictures import data, images
from .pictures.evaluate import evaluate
from .pictures.predict import predict
from .train import recipe
from .train.finetune import finetune

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
    "data",
    "deploy",
    "evaluate",
    "finetune",
    "fuse",
    "images",
    "load_checkpoint",
    "predict",
    "publish",
    "recipe",
    "save",
    "set_bn_eps",
    "show",
    "timm_models",
    "transforms",
]
