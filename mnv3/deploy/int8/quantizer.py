"""Static 8-bit integers: calibrated on pictures, measured against the float model, and refused where they lose much."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import ExportError, choices
from ...factory import transforms
from ...files.saving import unwrapped
from ...layers import evaluating
from ...pictures import images
from ...pictures.data import Pictures
from ...pictures.evaluate import evaluate as measure
from .. import int8
from ..exporter import (
    affordable,
    check_model,
    check_new,
    deployable,
    describe,
    format_named,
    picture_size,
    weight_bytes,
)
from ..packages import quiet, require
from ..runtime import load
from ..seal import seal
from ..writers import attach
from ..writing import exporter_errors, new_export, size_of

logger = logging.getLogger(__name__)
COUNT = 400  # pictures to calibrate on, if there are so many and memory holds them
FEW = 100
BATCH = 32
MIN_AGREEMENT = 80.0  # per cent, where nothing else tells a collapse


@dataclass(frozen=True)
class QuantizeReport:
    """What was written, and what it costs in accuracy."""

    file: Path
    format: str
    bytes: int  # of all its files
    float_bytes: int  # of the model's weights in float32
    calibrated: int  # pictures
    agreement: float  # per cent of the calibration pictures whose most likely class is the float model's
    top1: float | None  # per cent on the pictures to evaluate on, if any
    float_top1: float | None
    float_layers: tuple[str, ...]  # those of the model that compute in float32

    @property
    def drop(self) -> float | None:
        """Points of top-1 lost."""
        return None if self.top1 is None else self.float_top1 - self.top1

    def __str__(self) -> str:
        floats = f"; in float: {', '.join(self.float_layers)}" if self.float_layers else "; no layer in float"
        text = (
            f"{self.file}: {self.bytes / 1e6:.2f} MB, {100 * self.bytes / self.float_bytes:.0f} % of float32; top-1 "
            f"agrees with float32 on {self.agreement:.1f} % of {self.calibrated} calibration pictures"
        )
        top1 = "" if self.top1 is None else f"; top-1 {self.top1:.2f} % (float32 {self.float_top1:.2f} %)"
        return f"{text}{top1}{floats}"


def quantize(
    model: nn.Module,
    file: str | os.PathLike[str],
    *,
    to: str,
    calibrate: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    evaluate: Pictures | None = None,
    size: int | None = None,
    max_drop: float = 1.0,
    force: bool = False,
) -> QuantizeReport:
    """Write `model` with 8-bit weights and activations. The file appears only if its accuracy is near the model's.

    Args:
        model: A model of this package; it stays as it is.
        file: Where; its ending is the format's.
        to: One of `int8.WRITERS`.
        calibrate: Files or folders of pictures like those that it will see; up to 400 of them, spread over all, give
            the ranges of the activations. They are preprocessed as the model's pictures always are.
        evaluate: Pictures with classes to measure on (see `mnv3.data.load`), others than those.
        size: Side of the pictures, in pixels; by default that of the weights.
        max_drop: How many points of top-1 may be lost on `evaluate`.
        force: Write it whatever it loses, and replace what is there.

    Raises:
        ValueError: The format has no 8-bit form here, or there are no pictures.
        DataError: The pictures to evaluate on have other classes than the model.
        ImportError: The format's packages are missing.
        FileExistsError: `file` exists, and `force` is False.
        ExportError: It failed, or loses more than it may.
        OSError: The file cannot be written; where there is no space left, the message says so.
    """
    file, model = Path(file), unwrapped(model)
    if to not in int8.WRITERS:
        raise ValueError(f"no 8-bit {to!r}. {choices(to, int8.WRITERS)}")
    check_model(model, to, format_named(to), file)
    check_new(file, exist_ok=force)
    with quiet():
        require(to, int8=True)
    size = picture_size(model, size)
    batches = list(calibration_batches(model, calibrate, size))
    count = sum(map(len, batches))
    dynamic = ("batch",) if to in ("onnx", "openvino") else ()
    metadata = describe(model, to=to, size=size, dynamic=dynamic, int8=True, calibrated=count)
    float_top1 = measure(model, evaluate).top1 if evaluate else None
    with new_export(file, room=weight_bytes(model) // 4) as draft:
        with quiet(), exporter_errors(to):
            floats = int8.WRITERS[to](deployable(model), draft, batches)
            floats_in_file = int8.CHECKS[to](draft)
            if len(floats) != len(floats_in_file):  # a tool may leave others: by the file's own names
                floats = floats_in_file
            attach(draft, metadata | {"float_layers": floats})
            seal(draft)
        with quiet():
            exported = load(draft)
        report = QuantizeReport(
            file=file,
            format=to,
            bytes=size_of(draft.parent),
            float_bytes=weight_bytes(model),
            calibrated=count,
            agreement=_agreement(model, exported, batches),
            top1=measure(exported, evaluate).top1 if evaluate else None,
            float_top1=float_top1,
            float_layers=tuple(floats),
        )
        if problem := _problem(report, max_drop):
            if not force:
                raise ExportError(f"{problem}: nothing was written (--force does)")
            logger.warning("%s", problem)
    return report


def _problem(report: QuantizeReport, max_drop: float) -> str | None:
    if report.drop is None:
        if report.agreement < MIN_AGREEMENT:
            return f"8-bit {report.format} agrees with float32 on {report.agreement:.1f} % of the calibration pictures"
        logger.warning("no pictures to evaluate on: what it costs in accuracy is not known")
    elif not report.drop <= max_drop:
        top1 = f"has a top-1 of {report.top1:.2f} %, float32 {report.float_top1:.2f} %"
        return f"8-bit {report.format} {top1}, and may lose {max_drop:g} points"
    return None


def calibration_batches(
    model: nn.Module, paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], size: int
) -> Iterable[Tensor]:
    """Batches (B, C, size, size) of preprocessed pictures to calibrate on; what cannot be read is left out, and said.

    Raises:
        ValueError: There is none.
    """
    files = list(images.find(paths))
    transform, read = transforms(model, input_size=(model.in_chans, size, size)), []
    for path in images.spread(files, affordable(COUNT, size)):
        try:
            read.append(transform(images.load(path)))
        except images.PictureError as error:
            logger.warning("left out: %s", error)
    if not read:
        raise ValueError(f"no pictures to calibrate on in {paths}")
    if len(read) < FEW:
        logger.warning("%d pictures are few to calibrate on: %d or more tell the ranges better", len(read), FEW)
    elif len({path.parent for path in files}) == 1:
        logger.warning("all pictures to calibrate on are of one folder, %s: of one class?", files[0].parent)
    return torch.stack(read).split(BATCH)


def _agreement(model: nn.Module, exported: nn.Module, batches: list[Tensor]) -> float:
    """On how many per cent of the pictures a model and an exported file give the same class."""
    parameter, same = next(model.parameters()), []
    for x in batches:
        with evaluating(model):
            expected = model(x.to(parameter)).argmax(1).cpu()
        with torch.inference_mode():
            same.append(exported(x).argmax(1) == expected)
    return 100 * torch.cat(same).float().mean().item()
