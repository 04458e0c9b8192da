"""Run an exported file in the place of a model: in `mnv3.predict`, `mnv3.evaluate`, `mnv3 predict --checkpoint`."""

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import WeightsError, choices
from .formats import FORMATS, METADATA, beside, digests

Run = Callable[[Tensor], Tensor]  # a batch of the file's own type and size to its outputs


class Exported(nn.Module):
    """An exported file as a model: preprocessed pictures (B, C, H, W) to logits (B, num_classes).

    `metadata` is what `mnv3 export` wrote into the file, `pretrained_cfg` the part of it that `mnv3.transforms` needs.
    A batch is cut up as the file needs it, and numbers from 0 to 255 become the bytes that a file with the
    normalisation in it takes.
    """

    def __init__(self, metadata: dict[str, Any], run: Run) -> None:
        super().__init__()
        self.metadata = metadata
        self.__dict__["run"] = run  # some are modules; as a part of this one, their modes would be changed
        self.num_classes, self.in_chans = metadata["num_classes"], metadata["input_size"][0]
        self.pretrained_cfg = {
            key: metadata[key]
            for key in ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode", "label_names")
        } | {"num_classes": self.num_classes, "input_size": tuple(metadata["input_size"])}
        if metadata["normalize"]:  # then these turn a picture into numbers from 0 to 255
            self.pretrained_cfg |= {"mean": (0.0,) * self.in_chans, "std": (1 / 255,) * self.in_chans}
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # tells callers: float32, on the CPU

    def _apply(self, fn: Callable, recurse: bool = True) -> "Exported":
        return self  # .to(), .half() and the like: its runtime stays on the CPU, and takes what it takes

    def forward(self, x: Tensor) -> Tensor:
        meta = self.metadata
        size = tuple(meta["input_size"]) if "size" not in meta["dynamic"] else (self.in_chans, *x.shape[2:])
        if x.dim() != 4 or tuple(x.shape[1:]) != size:
            raise ValueError(f"this file takes pictures of (B, {', '.join(map(str, size))}), got {tuple(x.shape)}")
        x = (x.round() if meta["normalize"] else x).to(getattr(torch, meta["input_type"]))
        step = len(x) if "batch" in meta["dynamic"] else meta["batch"]
        outputs = []
        for part in x.split(step) if len(x) else ():
            full = torch.cat((part, part[:1].expand(step - len(part), *part.shape[1:]))) if len(part) < step else part
            outputs.append(self.run(full.contiguous())[: len(part)])
        y = torch.cat(outputs) if outputs else x.new_empty(0, self.num_classes, dtype=torch.float32)
        return y.clamp(min=torch.finfo(y.dtype).tiny).log() if meta["softmax"] else y


def load(file: str | os.PathLike, *, threads: int | None = None) -> Exported:
    """Open an exported file in its runtime.

    Args:
        file: What `mnv3 export` or `mnv3 quantize` wrote.
        threads: How many its runtime may use; by default as many as PyTorch. The formats pt2 and torchscript always
            use as many as PyTorch.

    Raises:
        ValueError: No such file, or an ending that is none of ours.
        WeightsError: It is damaged, or was not written by mnv3.
        ImportError: Its runtime is not installed.
    """
    file = Path(file)
    if not file.exists():
        raise ValueError(f"{file}: no such file")
    name = format_of(file)
    if name is None:
        raise ValueError(f"{file}: no exported file. {choices(file.suffix, [f.suffix for f in FORMATS.values()])}")
    if name == "coreml":
        raise ValueError(f"{file}: only a Mac or an iPhone runs Core ML's files")
    with quiet():
        require(name)
    metadata = None
    if not FORMATS[name].own_metadata:
        metadata = _metadata(file, None)
        _check_whole(file, metadata)
    try:
        with quiet():
            run, text = OPENERS[name](file, threads or torch.get_num_threads())
    except WeightsError:
        raise
    except Exception as error:  # every runtime has its own
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise WeightsError(f"{file}: {name} cannot open it: damaged, or of another version? {reason[:300]}") from error
    try:
        return Exported(metadata or _metadata(file, text), run)
    except (KeyError, TypeError, IndexError) as error:
        raise WeightsError(f"{file}: what it says of itself is not whole ({error}): not written by mnv3?") from None


def _check_whole(file: Path, metadata: dict[str, Any]) -> None:
    """Raise WeightsError unless a file is what was written: some runtimes take the process down with a damaged one."""
    expected = metadata.get("files")
    try:
        found = digests(file)
    except FileNotFoundError as error:
        raise WeightsError(f"{file}: its {Path(error.filename).name} is missing") from None
    if found != expected:
        what = [suffix for suffix in found if found[suffix] != (expected or {}).get(suffix)]
        raise WeightsError(
            f"{file}: the {' and '.join(what)} is not the one that was written: damaged? Export it again"
        )


def format_of(file: Path) -> str | None:
    """The format that a file's ending means."""
    return next((name for name, entry in FORMATS.items() if entry.suffix == file.suffix.lower()), None)


def require(name: str, *, write: bool = False, int8: bool = False) -> None:
    """Raise ImportError with the command that helps unless what runs a format, or writes it, can be imported."""
    entry = FORMATS[name]
    for module in entry.runtime + (entry.writers if write or int8 else ()) + (entry.int8_writers if int8 else ()):
        try:
            importlib.import_module(module)
        except ImportError as error:
            extra = FORMATS[name].extra
            raise ImportError(f"{name} needs {module} ({error}): pip install 'mnv3[{extra}]'") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what libraries in C++ and their helpers print off the terminal, and what they report from going home.

    OpenVINO's converter and NNCF tell a statistics service of every use, but not where CI=true.
    """
    ci = os.environ.get("CI")
    streams = (sys.stdout, sys.stderr)
    with tempfile.TemporaryFile() as sink:
        for stream in streams:
            stream.flush()
        saved = [os.dup(number) for number in (1, 2)]
        try:
            for number in (1, 2):
                os.dup2(sink.fileno(), number)
            os.environ["CI"] = "true"
            yield
        finally:
            for stream in streams:
                stream.flush()
            for number, before in zip((1, 2), saved, strict=True):
                os.dup2(before, number)
                os.close(before)
            os.environ.pop("CI", None)
            os.environ.update({"CI": ci} if ci is not None else {})


def _metadata(file: Path, text: str | None) -> dict[str, Any]:
    try:
        metadata = json.loads(text if text is not None else beside(file).read_text(encoding="utf-8"))
        if metadata["format"] not in FORMATS:
            raise KeyError("format")
    except FileNotFoundError:
        raise WeightsError(f"{file}: its {beside(file).name} is missing, which says what it takes and gives") from None
    except (ValueError, KeyError, TypeError):
        what = "it" if text is not None else f"its {beside(file).name}"
        raise WeightsError(f"{file}: {what} does not say what it takes and gives: not written by mnv3?") from None
    return metadata


def _open_pt2(file: Path, threads: int) -> tuple[Run, str]:
    from torch.ao.quantization.fx import _decomposed  # noqa: F401  it registers the operators of 8-bit files

    extra = {METADATA: ""}
    module = torch.export.load(file, extra_files=extra).module()
    return lambda x: module(x), extra[METADATA]  # no module, whose modes are not to be set


def _open_torchscript(file: Path, threads: int) -> tuple[Run, str]:
    extra = {METADATA: ""}
    module = torch.jit.load(file, map_location="cpu", _extra_files=extra)
    text = extra[METADATA]
    return lambda x: module(x), text.decode() if isinstance(text, bytes) else text


def _open_onnx(file: Path, threads: int) -> tuple[Run, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.numpy()})[0])

    return run, session.get_modelmeta().custom_metadata_map.get(METADATA, "")


def _open_openvino(file: Path, threads: int) -> tuple[Run, str]:
    import openvino

    if not file.with_suffix(".bin").is_file():
        raise WeightsError(f"{file}: its {file.with_suffix('.bin').name} is missing")
    core = openvino.Core()
    model = core.read_model(file)
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    request = core.compile_model(model, "CPU", options).create_infer_request()

    def run(x: Tensor) -> Tensor:
        request.set_input_tensor(openvino.Tensor(x.numpy(), shared_memory=True))
        request.infer()
        return torch.from_numpy(request.get_output_tensor().data.copy())

    return run, model.get_rt_info(METADATA).value if model.has_rt_info(METADATA) else ""


def _open_executorch(file: Path, threads: int) -> tuple[Run, None]:
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    _unsafe_reset_threadpool(threads)  # one pool for all programs of the process
    program = Runtime.get().load_program(file)
    method = program.load_method("forward")

    def run(x: Tensor, program: Any = program) -> Tensor:  # the method needs the program to be alive
        return method.execute([x])[0].clone()

    return run, None


def _open_tflite(file: Path, threads: int) -> tuple[Run, None]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file), num_threads=threads)
    interpreter.allocate_tensors()
    entry, result = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run(x: Tensor) -> Tensor:
        interpreter.set_tensor(entry, x.permute(0, 2, 3, 1).contiguous().numpy())
        interpreter.invoke()
        return torch.from_numpy(interpreter.get_tensor(result))

    return run, None


def _open_ncnn(file: Path, threads: int) -> tuple[Run, None]:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_bf16_storage = False
    if net.load_param(str(file)) or net.load_model(str(file.with_suffix(".bin"))):
        raise WeightsError(f"{file}: ncnn cannot read it: of another version?")

    def run(x: Tensor) -> Tensor:
        with net.create_extractor() as extractor:
            extractor.input("in0", ncnn.Mat(x[0].numpy()).clone())  # a Mat does not own its numbers
            return torch.from_numpy(extractor.extract("out0")[1].numpy().copy())[None]

    return run, None


OPENERS: dict[str, Callable[[Path, int], tuple[Run, str | None]]] = {
    "pt2": _open_pt2,
    "torchscript": _open_torchscript,
    "onnx": _open_onnx,
    "openvino": _open_openvino,
    "executorch": _open_executorch,
    "tflite": _open_tflite,
    "ncnn": _open_ncnn,
}
