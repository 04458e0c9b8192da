"""Bias correction of a model that was read from a quantised TFLite file, on a few pictures without labels.

A file that was trained with its rounding has learnt to live with it: without it, every layer's mean output moves a
little, and 58 layers add up. The file itself, run in LiteRT, says what the means should be. (Bias correction as in
Nagel et al. 2019, https://arxiv.org/abs/1906.04721, the other way round: there from float to quantised.)
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ...deploy.packages import quiet
from ...errors import WeightsError
from ...factory import create_model, transforms
from ...layers import evaluating
from ...pictures import images
from ...pictures.inputs import load_batch
from ..foreign import Foreign
from .features import FUSED_ACTIVATIONS, Layer
from .file import TYPES, Tensor as FileTensor
from .matching import Network, read_network
from .network import to_foreign

if TYPE_CHECKING:
    from ai_edge_litert.interpreter import Interpreter

PICTURES = 64  # of 224 pixels; more change the result by less than they take
NEWTON_STEPS = 4  # of a piecewise linear function: the last ones change nothing


def calibrated(
    path: str | os.PathLike[str], pictures: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
) -> Foreign:
    """The model in a quantised TFLite file, with each layer's mean output per channel on some pictures as the file's.

    Layer by layer in the order of execution, each on what the corrected ones before it give. Of a correction, the
    share is taken that its spread over the pictures supports, mean^2 / (mean^2 + standard error^2): a few pictures
    correct little, and do no harm.

    Args:
        path: A quantised TFLite file.
        pictures: Files and folders; at most `PICTURES` are used, from all along the list.

    Raises:
        ValueError: There are fewer than 2 pictures, or the file is not quantised.
        WeightsError: The file is damaged, no MobileNetV3, or nothing that LiteRT can run.
        ImportError: LiteRT or the schema package is not installed.
    """
    path = Path(path)
    network = read_network(path)
    foreign = to_foreign(path, network)
    if not any(layer.stored.quantised for layer in network.layers.values()):
        raise ValueError(f"{path} is not quantised: its import is exact, and there is nothing to calibrate")
    if foreign.options["in_chans"] != 3:
        raise ValueError(f"{path} takes pictures of {foreign.options['in_chans']} channels: files are read as RGB")
    model = create_model(foreign.arch, pretrained_cfg_overlay=foreign.config, **foreign.options)
    model.load_state_dict(foreign.state_dict)
    files = list(images.find(pictures))
    _, height, width = foreign.config["input_size"]
    count = min(PICTURES, max(8, PICTURES * 224**2 // (height * width)))
    if len(files) < 2:
        raise ValueError(f"calibration needs at least 2 pictures, found {len(files)} in {pictures}")
    transform = transforms(model)
    batch = load_batch(images.spread(files, count), transform)
    _correct(model, network, batch, _file_means(path, network, batch))
    note = f"{foreign.note}, biases corrected on {len(batch)} pictures"
    return foreign._replace(state_dict=model.state_dict(), note=note)


def _file_means(path: Path, network: Network, batch: Tensor) -> dict[str, Tensor]:
    """What each of the file's layers gives for each picture, as means over the pixels: (N, C) by our names."""
    means: dict[str, list[np.ndarray]] = {name: [] for name in network.layers}
    with quiet():
        interpreter = _interpreter(path)
        for picture in _inputs(network, batch):
            try:
                interpreter.set_tensor(network.graph.input, picture)
                interpreter.invoke()
                for name, layer in network.layers.items():
                    stored = interpreter.get_tensor(layer.output)
                    mean = stored.reshape(-1, stored.shape[-1]).mean(0, dtype=np.float64)
                    means[name].append(_real(mean, network.graph.tensors[layer.output]))
            except (RuntimeError, ValueError, TypeError) as error:
                raise WeightsError(f"{path}: LiteRT cannot run it: {str(error).splitlines()[0][:200]}") from error
    return {name: torch.from_numpy(np.stack(rows)).float() for name, rows in means.items()}


def _real(numbers: np.ndarray, tensor: FileTensor) -> np.ndarray:
    """The real values of numbers as a tensor of the file has them."""
    return (numbers - tensor.zero_point) * tensor.scale if tensor.quantised else numbers


def _interpreter(path: Path) -> "Interpreter":
    """LiteRT with the file in it, ready to run, that keeps every layer's output."""
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError:
        raise ImportError("--calibrate runs the file in LiteRT: pip install 'mnv3[convert]'") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the memory that it takes to keep every layer's output
        try:
            interpreter = Interpreter(
                str(path),
                num_threads=torch.get_num_threads(),
                experimental_preserve_all_tensors=True,
                # XNNPACK, the default delegate, does not write the tensors between its operators
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            )
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise WeightsError(f"{path}: LiteRT cannot open it: {str(error).splitlines()[0][:200]}") from error
    return interpreter


def _inputs(network: Network, batch: Tensor) -> Iterator[np.ndarray]:
    """Normalised pictures (N, C, H, W) one by one as the file takes them."""
    entry = network.graph.tensors[network.graph.input]
    gain, shift = network.input.affine
    order = np.argsort(network.layers["stem"].sources[0].axes)
    for picture in batch.permute(0, 2, 3, 1).double().numpy():
        real = ((picture - shift) / gain)[None].transpose(order)
        if entry.quantised:
            scale = 1 if entry.scale is None else entry.scale
            limits = np.iinfo(TYPES[entry.type])
            real = np.clip(np.round(real / scale + entry.zero_point), limits.min, limits.max)
        yield real.astype(TYPES[entry.type])


def _correct(model: nn.Module, network: Network, batch: Tensor, file_means: dict[str, Tensor]) -> None:
    """One pass over the batch (N, C, H, W), in which each layer is corrected right after it has been computed."""
    modules = dict(model.named_modules())
    hooks = []
    for name, layer in network.layers.items():
        hook = _correction(layer, file_means[name], *_limits(layer, network.graph.tensors[layer.output]))
        hooks.append(modules.get(f"{name}.norm", modules[name]).register_forward_hook(hook))
    try:
        with evaluating(model):
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()


def _limits(layer: Layer, output: FileTensor) -> tuple[float, float]:
    """The least and the largest real value that the file's layer gives."""
    low, high = FUSED_ACTIVATIONS[layer.fused](np.array(output.range or (-np.inf, np.inf)))
    return float(low), float(high)


def _correction(layer: Layer, file_means: Tensor, low: float, high: float) -> Callable[..., Tensor]:
    """A forward hook that moves the bias of its module so that its means become the file's, (N, C)."""
    gain, shift = (torch.as_tensor(numbers, dtype=torch.float32) for numbers in layer.affine)  # scalars or (C,)

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        # (N, pixels, C), as the file's operator gives them before its activation and range cut them off
        values = out.flatten(2).mT if out.dim() > 2 else out[:, None]
        values = ((values - shift) / gain).mT
        step = _bias_step(values, file_means, low, high) * gain
        module.bias.add_(step)
        return out + step.view(1, -1, *[1] * (out.dim() - 2))

    return hook


def _bias_step(values: Tensor, wanted: Tensor, low: float, high: float) -> Tensor:
    """What to add per channel so that means, cut off at `low` and `high`, become the wanted ones as far as they can.

    Args:
        values: (N, C, pixels).
        wanted: Means per picture, (N, C).

    Returns:
        The step, (C,).
    """
    step = best = torch.zeros(values.shape[1])
    means, inside = _clamped_means(values, step, low, high)
    errors = wanted - means
    least = errors.mean(0).abs()
    for _ in range(NEWTON_STEPS):
        step = step + (wanted - means).mean(0) / inside.clamp(min=0.05)
        means, inside = _clamped_means(values, step, low, high)
        missing = (wanted - means).mean(0).abs()
        best, least = torch.where(missing < least, step, best), torch.minimum(missing, least)
    mean, spread = errors.mean(0).square(), errors.var(0) / len(errors)
    return best * mean / (mean + spread).clamp(min=1e-30)


def _clamped_means(values: Tensor, step: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Means (N, C) of values + step, cut off; and the share (C,) that is not. Picture by picture, to save memory."""
    means, inside = [], torch.zeros(values.shape[1])
    for picture in values:
        moved = picture + step[:, None]
        means.append(moved.clamp(low, high).mean(1))
        inside += ((moved > low) & (moved < high)).float().mean(1)
    return torch.stack(means), inside / len(values)
