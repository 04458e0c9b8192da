"""Bias correction of a model that was read from a quantised TFLite file, on a few pictures without labels.

A file that was trained with its rounding has learnt to live with it: without it, every layer's mean output moves a
little, and 58 layers add up. The file itself, run in LiteRT, says what the means should be. (Bias correction as in
Nagel et al. 2019, https://arxiv.org/abs/1906.04721, the other way round: there from float to quantised.)
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...deploy.packages import quiet
from ...errors import WeightsError
from ...factory import create_model, transforms
from ...layers import evaluating
from ...pictures import images
from ..foreign import Foreign
from .file import TYPES
from .network import Found, find, foreign_of

PICTURES = 64  # of 224 pixels; more change the result by less than they take
NEWTON_STEPS = 4  # of a piecewise linear function: the last ones change nothing


def calibrated(path: str | os.PathLike, pictures: str | os.PathLike | Sequence[str | os.PathLike]) -> Foreign:
    """The model in a quantised TFLite file, with each layer's mean output per channel on some pictures as the file's.

    Layer by layer in the order of execution, each on what the corrected ones before it give. Of a correction, the
    share is taken that its spread over the pictures supports, mean^2 / (mean^2 + standard error^2): a few pictures
    correct little, and do no harm.

    Args:
        path: A quantised TFLite file.
        pictures: Files and folders; at most `PICTURES` are used, from all along the list.

    Raises:
        ValueError: There are fewer than 2 pictures, or the file is not quantised.
        WeightsError: As for `reading.read`, or LiteRT cannot run the file.
        ImportError: LiteRT is not installed.
    """
    path = Path(path)
    found = find(path)
    foreign = foreign_of(path, found)
    if not any(layer.stored.quantised for layer in found.layers.values()):
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
    batch = torch.stack([transform(images.load(file)) for file in images.spread(files, count)])
    _correct(model, found, batch, _means(path, found, batch))
    note = f"{foreign.note}, biases corrected on {len(batch)} pictures"
    return foreign._replace(state_dict=model.state_dict(), note=note)


def _means(path: Path, found: Found, batch: Tensor) -> dict[str, Tensor]:
    """What the file's layers give for each picture, (N, channels), by our names: means over the pixels."""
    means: dict[str, list[np.ndarray]] = {name: [] for name in found.layers}
    with quiet():
        run = _interpreter(path)
        for picture in _inputs(found, batch):
            try:
                run.set_tensor(found.graph.input, picture)
                run.invoke()
                for name, layer in found.layers.items():
                    tensor, stored = found.graph.tensors[layer.output], run.get_tensor(layer.output)
                    mean = stored.reshape(-1, stored.shape[-1]).mean(0, dtype=np.float64)
                    if tensor.quantised:
                        zero = 0 if tensor.zero_point is None else tensor.zero_point
                        mean = (mean - zero) * tensor.scale
                    means[name].append(mean)
            except (RuntimeError, ValueError, TypeError) as error:
                raise WeightsError(f"{path}: LiteRT cannot run it: {str(error).splitlines()[0][:200]}") from error
    return {name: torch.from_numpy(np.stack(rows)).float() for name, rows in means.items()}


def _interpreter(path: Path) -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError:
        raise ImportError("--calibrate runs the file in LiteRT: pip install 'mnv3[convert]'") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the memory that it takes to keep every layer's output
        try:
            run = Interpreter(
                str(path),
                num_threads=torch.get_num_threads(),
                experimental_preserve_all_tensors=True,
                # XNNPACK, the default delegate, does not write the tensors between its operators
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            )
            run.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise WeightsError(f"{path}: LiteRT cannot open it: {str(error).splitlines()[0][:200]}") from error
    return run


def _inputs(found: Found, batch: Tensor) -> Iterator[np.ndarray]:
    """Normalised pictures (N, C, H, W) one by one as the file takes them."""
    entry = found.graph.tensors[found.graph.input]
    gain, shift = found.input.affine
    order = np.argsort(found.layers["stem"].sources[0].axes)
    for picture in batch.permute(0, 2, 3, 1).double().numpy():
        real = ((picture - shift) / gain)[None].transpose(order)
        if entry.quantised:
            scale = 1 if entry.scale is None else entry.scale
            zero = 0 if entry.zero_point is None else entry.zero_point
            limits = np.iinfo(TYPES[entry.type])
            real = np.clip(np.round(real / scale + zero), limits.min, limits.max)
        yield real.astype(TYPES[entry.type])


def _correct(model: nn.Module, found: Found, batch: Tensor, means: dict[str, Tensor]) -> None:
    """One pass over the batch, in which each layer is corrected right after it has been computed."""
    modules = dict(model.named_modules())
    hooks = []
    for name, layer in found.layers.items():
        module = modules.get(f"{name}.norm", modules[name])
        low, high = found.graph.tensors[layer.output].range or (-np.inf, np.inf)
        low, high = max(low, {1: 0, 2: -1, 3: 0}.get(layer.fused, low)), min(high, {2: 1, 3: 6}.get(layer.fused, high))
        gain, shift = (torch.as_tensor(v, dtype=torch.float32) for v in layer.affine)

        def hook(
            module: nn.Module, _: Any, out: Tensor, name=name, low=low, high=high, gain=gain, shift=shift
        ) -> Tensor:
            # (N, channels, pixels), as the file's operator gives them before its activation and range cut them off
            values = out.flatten(2) if out.dim() > 2 else out[..., None]
            column = (1, -1, 1)
            values = (values - shift.view(column if shift.dim() else ())) / gain.view(column if gain.dim() else ())
            step = _shift(values, means[name], low, high) * gain
            module.bias.add_(step)
            return out + step.view(1, -1, *[1] * (out.dim() - 2))

        hooks.append(module.register_forward_hook(hook))
    try:
        with evaluating(model):
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()


def _shift(values: Tensor, means: Tensor, low: float, high: float) -> Tensor:
    """What to add per channel to (N, C, pixels) so that, cut off at `low` and `high`, their means become (N, C)."""

    def cut(step: Tensor) -> tuple[Tensor, Tensor]:
        """Means (N, C), and the share (C,) that is not cut off, picture by picture to save memory."""
        rows, inside = [], torch.zeros(values.shape[1])
        for one in values:
            one = one + step[:, None]
            rows.append(one.clamp(low, high).mean(1))
            inside += ((one > low) & (one < high)).float().mean(1)
        return torch.stack(rows), inside / len(values)

    step = best = torch.zeros(values.shape[1])
    current, inside = cut(step)
    errors = means - current
    least = errors.mean(0).abs()
    for _ in range(NEWTON_STEPS):
        step = step + (means - current).mean(0) / inside.clamp(min=0.05)
        current, inside = cut(step)
        missing = (means - current).mean(0).abs()
        best, least = torch.where(missing < least, step, best), torch.minimum(missing, least)
    mean, spread = errors.mean(0).square(), errors.var(0) / len(errors)
    return best * mean / (mean + spread).clamp(min=1e-30)
