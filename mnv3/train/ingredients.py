"""What a recipe names, made: the model, its average, its teacher, mixup; and warnings of what is hardly meant."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from ..catalog import checkpoints, find, split_name
from ..factory import create_model, load_checkpoint
from ..folding import fuse
from ..layers import BN_EPS, set_bn_eps
from ..model import MobileNetV3
from .batches import Batches
from .recipe import Recipe

if TYPE_CHECKING:
    from timm.data import Mixup
    from timm.utils import ModelEmaV3

logger = logging.getLogger(__name__)
NORMS = (nn.modules.batchnorm._BatchNorm,)


def model(recipe: Recipe, classes: list[str]) -> nn.Module:
    """The model to train.

    Args:
        recipe: Says its architecture and its first weights.
        classes: Names of the classes that its classifier is to tell apart.

    Returns:
        A model whose `pretrained_cfg` has the preprocessing that it is trained with.

    Raises:
        ValueError: There is no such model, or its weights are for other pictures.
        WeightsError: Its weights cannot be had or do not fit.
    """
    split_name(recipe.model)
    options: dict[str, Any] = {"num_classes": len(classes)}
    options |= {"drop_rate": recipe.drop_rate, "drop_path_rate": recipe.drop_path}
    plain = {"use_se": True, "use_hs": True, "se_order": "act-se"}
    options |= {key: getattr(recipe, key) for key, value in plain.items() if getattr(recipe, key) != value}
    if recipe.checkpoint:
        network = _checkpoint(recipe, options)
    else:
        network = create_model(recipe.model, pretrained=recipe.pretrained, **options)
    for module in network.modules():
        if isinstance(module, NORMS):
            module.momentum = recipe.bn_momentum
    set_bn_eps(network, _bn_eps(recipe))
    network.pretrained_cfg = network.default_cfg = _config(recipe, classes, network.pretrained_cfg)
    return network


def _config(recipe: Recipe, classes: list[str], before: dict[str, Any]) -> dict[str, Any]:
    """The `pretrained_cfg` of a model that is trained by a recipe, from that of the weights that it starts from."""
    cfg = dict(before)
    cfg |= {"input_size": (3, recipe.size, recipe.size), "num_classes": len(classes), "label_names": classes}
    cfg |= {"interpolation": "bilinear", "crop_pct": 1.0, "pool_size": None}
    cfg |= {name: getattr(recipe, name) for name in ("mean", "std") if getattr(recipe, name)}
    for key in ("test_input_size", "test_crop_pct", "tag", "hf_hub_id", "url", "file", "source", "label_descriptions"):
        cfg.pop(key, None)
    return cfg


def _bn_eps(recipe: Recipe) -> float:
    """The eps of batch norm in training: the recipe's, or that of the weights that it starts from."""
    if recipe.bn_eps:
        return recipe.bn_eps
    arch, tag = split_name(recipe.model)
    published = checkpoints(arch) and (recipe.pretrained or recipe.checkpoint)
    return find(arch, tag).bn_eps if published else BN_EPS


def _checkpoint(recipe: Recipe, options: dict[str, Any]) -> nn.Module:
    """A model from a weights folder or file, with a new classifier where it has another number of classes."""
    path = Path(recipe.checkpoint)
    if not path.exists():
        raise ValueError(f"checkpoint: no file or folder {path}")
    classes = options.pop("num_classes")
    own = {"num_classes": 0} if path.is_dir() else {}  # of a file: as many as it has
    source = load_checkpoint(path, model=recipe.model, **options | own)
    _check_classifier(source, f"checkpoint: {path}")
    source.reset_classifier(classes)
    return source


def _check_classifier(network: nn.Module, what: str) -> None:
    """Raise ValueError unless a model makes a vector of logits of an RGB picture."""
    if (count := getattr(network, "in_chans", 3)) != 3:
        raise ValueError(f"{what} is for pictures of {count} channels; those of a training are RGB, 3 channels")
    if not getattr(network, "pooled", True):
        raise ValueError(
            f"{what} has global_pool='' and makes maps: a training needs a model that pools, as with 'avg'"
        )


def teacher(recipe: Recipe, student: nn.Module) -> nn.Module | None:
    """The recipe's teacher, by timm's name or ours, or from a weights folder; it takes the student's pictures.

    A teacher of ours has its batch norms folded, as it learns nothing: that is faster.

    Raises:
        ValueError: It has other classes, or takes other pictures.
        WeightsError: Its weights cannot be had or do not fit.
    """
    if recipe.teacher is None:
        return None
    import timm

    if Path(recipe.teacher).is_dir():
        network = load_checkpoint(recipe.teacher)
    else:
        network = timm.create_model(recipe.teacher, pretrained=True)
    _check_classifier(network, f"teacher: {recipe.teacher}")
    if network.num_classes != student.num_classes:
        counts = f"{network.num_classes} classes, the pictures {student.num_classes}"
        raise ValueError(f"teacher: {recipe.teacher} has {counts}")
    network.eval()
    if isinstance(network, MobileNetV3):
        network = fuse(network)
    network = Renormalized(network, student.pretrained_cfg).to(next(student.parameters()).device)
    return network.eval().requires_grad_(False)


def distance(logits: torch.Tensor, answer: torch.Tensor, temperature: float) -> torch.Tensor:
    """Kullback-Leibler divergence of a student from its teacher's answer (Hinton et al. 2015).

    Args:
        logits: The student's (B, classes).
        answer: The teacher's (B, classes).
        temperature: What both are divided by; the gradient keeps its size.
    """
    student, teacher = (F.log_softmax(x / temperature, 1) for x in (logits, answer))
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature * temperature


class Renormalized(nn.Module):
    """A model that takes pictures in another normalisation than its own.

    Args:
        inner: The model.
        given: `mean` and `std` of the pictures.
    """

    def __init__(self, inner: nn.Module, given: dict[str, Any]) -> None:
        super().__init__()
        self.inner = inner
        (mean, std), (own_mean, own_std) = (
            [torch.tensor(cfg[key]).view(3, 1, 1) for key in ("mean", "std")] for cfg in (given, inner.pretrained_cfg)
        )
        self.register_buffer("scale", std / own_std)
        self.register_buffer("shift", (mean - own_mean) / own_std)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x * self.scale + self.shift)


def ema(recipe: Recipe, raw: nn.Module) -> "ModelEmaV3 | None":
    """timm's average of parameters and buffers, if the recipe wants one; its decay rises as 1 - (updates)^(-2/3)."""
    from timm.utils import ModelEmaV3

    return ModelEmaV3(raw, decay=recipe.ema, use_warmup=True) if recipe.ema else None


def mixup(recipe: Recipe, num_classes: int) -> "Mixup | None":
    """timm's mixup and cutmix of a batch, if the recipe wants one of them.

    Raises:
        ValueError: Its batches have an odd number of pictures.
    """
    from timm.data import Mixup

    if not (recipe.mixup or recipe.cutmix):
        return None
    if recipe.batch_size % 2:
        raise ValueError(f"batch_size: {recipe.batch_size} is odd, and mixup joins pictures in pairs")
    smoothing = recipe.label_smoothing
    return Mixup(recipe.mixup, recipe.cutmix, prob=recipe.mix_prob, label_smoothing=smoothing, num_classes=num_classes)


def train_mode(raw: nn.Module, *, freeze_bn: bool) -> None:
    """Put a model into training mode; with `freeze_bn`, its batch norms keep their statistics."""
    raw.train()
    if freeze_bn:
        for module in raw.modules():
            if isinstance(module, NORMS):
                module.eval()


def warn(recipe: Recipe, raw: nn.Module, batches: Batches) -> None:
    """Log what a recipe may say but hardly means."""
    pictures, updates = len(batches.pictures), recipe.epochs * batches.updates
    batch = batches.order(0).shape[-1]
    if raw.stride >= min(recipe.sizes or (recipe.size,)):
        advice = "more pixels (size), or a model with less stride (mnv3_small_cifar, mnv3_large_cifar)"
        logger.warning("%d px leave a 1x1 map at total stride %d: take %s", recipe.size, raw.stride, advice)
    if recipe.optimizer in ("sgd", "momentum", "nesterov") and recipe.lr > 0.1 and recipe.batch_size <= 64:
        logger.warning("lr %g is high for batches of %d", recipe.lr, recipe.batch_size)
    if batch < recipe.share:
        logger.warning("%d pictures are too few for batches of %d: a batch has %d", pictures, recipe.share, batch)
    if recipe.ema and updates < 100:
        logger.warning("%d updates are few for an average of the weights: consider ema 0", updates)
