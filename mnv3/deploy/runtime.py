"""Run an exported file in the place of a model: in `mnv3.predict`, `mnv3.evaluate`, `mnv3 predict --checkpoint`."""

import io
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import WeightsError, choices
from . import programs, seal
from .formats import FORMATS
from .metadata import check_metadata
from .packages import quiet, require
from .seal import ExportedFile, format_of
from .writers import METADATA

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
        self.marker = nn.Parameter(torch.empty(0), requires_grad=False)  # tells callers: float32, on the CPU

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


def load(file: str | os.PathLike[str], *, threads: int | None = None) -> Exported:
    """Open an exported file in its runtime. Any number of threads may call what it returns.

    Nothing in it is run but operators that compute: a pt2 or TorchScript file with others is refused.

    Args:
        file: What `mnv3 export` or `mnv3 quantize` wrote.
        threads: How many its runtime may use; by default as many as PyTorch. The formats pt2 and torchscript always
            use as many as PyTorch.

    Raises:
        ValueError: No such file, or an ending that is none of ours.
        WeightsError: It is not to the bit what mnv3 wrote, or holds what no exported network needs.
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
    if not file.is_file():
        raise ValueError(f"{file}: not a file")
    with quiet():
        require(name)
    exported = seal.read(file)
    metadata = exported.text and check_metadata(file, name, exported.text)  # first, where it can be
    try:
        with quiet():
            run, text = OPENERS[name](exported, threads or torch.get_num_threads())
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from None
    except Exception as error:  # every runtime has its own
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise WeightsError(f"{file}: {name} cannot open it: of another version? {reason[:300]}") from error
    return Exported(metadata or check_metadata(file, name, text), run)


class Pool:
    """Objects of which each serves one thread at a time: as many as are in use at once, made when none is free."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make, self._free = make, deque([make()])  # what cannot be made fails here

    @contextmanager
    def one(self) -> Iterator[Any]:
        try:
            free = self._free.pop()
        except IndexError:
            free = self._make()
        try:
            yield free
        finally:
            self._free.append(free)


def _open_pt2(exported: ExportedFile, threads: int) -> tuple[Run, str]:
    from torch.ao.quantization.fx import _decomposed  # noqa: F401  it registers the operators of 8-bit files

    archive, text = (io.BytesIO(exported.content), "") if exported.trusted else programs.safe_pt2(exported.content)
    module = torch.export.load(archive).module()
    return lambda x: module(x), text  # no module, whose modes are not to be set


def _open_torchscript(exported: ExportedFile, threads: int) -> tuple[Run, str]:
    return programs.safe_torchscript(exported.content, trusted=exported.trusted)


def _open_onnx(exported: ExportedFile, threads: int) -> tuple[Run, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # where weights outside the file would be looked for, which could be anyone's
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", f"{os.devnull}/none")
    session = onnxruntime.InferenceSession(exported.content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.numpy()})[0])

    return run, session.get_modelmeta().custom_metadata_map.get(METADATA, "")


def _open_openvino(exported: ExportedFile, threads: int) -> tuple[Run, str]:
    import openvino

    core = openvino.Core()
    model = core.read_model(exported.content, exported.parts[".bin"])
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    requests = Pool(core.compile_model(model, "CPU", options).create_infer_request)

    def run(x: Tensor) -> Tensor:
        with requests.one() as request:  # it holds what goes in and what comes out
            request.set_input_tensor(openvino.Tensor(x.numpy(), shared_memory=True))
            request.infer()
            return torch.from_numpy(request.get_output_tensor().data.copy())

    return run, model.get_rt_info(METADATA).value if model.has_rt_info(METADATA) else ""


_executorch_lock = threading.Lock()  # one pool of threads for all programs of the process, which opening one replaces


def _open_executorch(exported: ExportedFile, threads: int) -> tuple[Run, None]:
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    with _executorch_lock:
        _unsafe_reset_threadpool(threads)
        program = Runtime.get().load_program(exported.content)
        method = program.load_method("forward")

    def run(x: Tensor, program: Any = program) -> Tensor:  # the method needs the program to be alive
        with _executorch_lock:
            return method.execute([x])[0].clone()

    return run, None


def _open_tflite(exported: ExportedFile, threads: int) -> tuple[Run, None]:
    from ai_edge_litert.interpreter import Interpreter

    def make() -> Interpreter:
        interpreter = Interpreter(model_content=exported.content, num_threads=threads)
        interpreter.allocate_tensors()
        return interpreter

    interpreters = Pool(make)
    with interpreters.one() as one:
        entry, result = one.get_input_details()[0]["index"], one.get_output_details()[0]["index"]

    def run(x: Tensor) -> Tensor:
        with interpreters.one() as interpreter:  # it holds what goes in and what comes out
            interpreter.set_tensor(entry, x.permute(0, 2, 3, 1).contiguous().numpy())
            interpreter.invoke()
            return torch.from_numpy(interpreter.get_tensor(result))  # a copy

    return run, None


def _open_ncnn(exported: ExportedFile, threads: int) -> tuple[Run, None]:
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_bf16_storage = False
    if net.load_param(str(exported.file)) or net.load_model(str(exported.file.with_suffix(".bin"))):
        raise WeightsError("ncnn cannot read it: of another version?")

    def run(x: Tensor) -> Tensor:
        with net.create_extractor() as extractor:
            extractor.input("in0", ncnn.Mat(x[0].numpy()).clone())  # a Mat does not own its numbers
            return torch.from_numpy(extractor.extract("out0")[1].numpy().copy())[None]

    return run, None


OPENERS: dict[str, Callable[[ExportedFile, int], tuple[Run, str | None]]] = {
    "pt2": _open_pt2,
    "torchscript": _open_torchscript,
    "onnx": _open_onnx,
    "openvino": _open_openvino,
    "executorch": _open_executorch,
    "tflite": _open_tflite,
    "ncnn": _open_ncnn,
}
