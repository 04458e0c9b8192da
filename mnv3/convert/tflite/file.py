"""What a TFLite flatbuffer holds, as plain values: one graph's operators and tensors.

The `tflite` package has the schema and checks nothing: here every length is held against the file's before it is
used, so that a damaged file costs no more time and memory than a whole one of its size.
Schema: https://github.com/tensorflow/tensorflow/blob/master/tensorflow/compiler/mlir/lite/schema/schema.fbs
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from ...errors import WeightsError

if TYPE_CHECKING:
    import tflite

MAX_BYTES = 1 << 29
MAX_OPERATORS = 2000  # MobileNetV3-Large has 220 or fewer
TYPES = {"FLOAT32": "f4", "FLOAT16": "f2", "INT8": "i1", "UINT8": "u1", "INT16": "i2", "INT32": "i4", "INT64": "i8"}
OPTIONS = (  # of the operators that a MobileNetV3 consists of
    *("Padding", "StrideH", "StrideW", "DilationHFactor", "DilationWFactor", "FusedActivationFunction"),
    *("FilterHeight", "FilterWidth"),
)


@dataclass(eq=False)
class Tensor:
    """A tensor: real values are (stored - zero_point) * scale, per tensor or along `axis`."""

    name: str
    shape: tuple[int, ...]
    type: str  # of the schema: FLOAT32, UINT8 ...
    stored: np.ndarray | None  # a constant's; None for what is computed
    scale: np.ndarray | None
    zero_point: np.ndarray
    axis: int
    sparse: bool

    @property
    def quantised(self) -> bool:
        return self.type in ("INT8", "UINT8", "INT16", "INT32", "INT64")

    @property
    def range(self) -> tuple[float, float] | None:
        """The least and the largest real value that it can hold, if it is quantised per tensor."""
        if not self.quantised or self.scale is None or self.scale.size != 1 or self.zero_point.size != 1:
            return None
        limits, zero = np.iinfo(TYPES[self.type]), self.zero_point[0]
        return float((limits.min - zero) * self.scale[0]), float((limits.max - zero) * self.scale[0])

    def values(self, *, plain: bool = False) -> np.ndarray:
        """A constant's real values; with `plain` the numbers as they are (axes, paddings).

        In float32, where a product with one of 8 or 16 bits is rounded once, and float64 for biases of 32.

        Raises:
            WeightsError: Its scales are missing or do not fit.
        """
        if self.stored is None:
            raise WeightsError(f"tensor {self.name!r} should be a constant, but has no data in the file")
        kind = np.float64 if self.type in ("INT32", "INT64") else np.float32
        if plain or not self.quantised:
            return self.stored.astype(kind, copy=False)
        if self.scale is None:
            raise WeightsError(f"tensor {self.name!r} is {self.type}, but the file has no scale for it")
        scale, zero = self.scale.astype(kind), self.zero_point.astype(kind)
        if scale.size > 1 or zero.size > 1:
            along = [1] * len(self.shape)
            if not 0 <= self.axis < len(self.shape) or not {scale.size, zero.size} <= {1, self.shape[self.axis]}:
                raise WeightsError(f"tensor {self.name!r} of {self.shape} has {scale.size} scales for axis {self.axis}")
            along[self.axis] = -1
            scale, zero = scale.reshape(along), zero.reshape(along)
        return (self.stored.astype(kind) - zero) * scale


@dataclass(eq=False)
class Operator:
    """One operator: its name in the schema, the indices of its tensors (-1 where an optional one is left out)."""

    kind: str
    inputs: list[int]
    outputs: list[int]
    options: dict[str, int]
    position: int

    def __str__(self) -> str:
        return f"operator {self.position} ({self.kind})"


@dataclass(eq=False)
class Graph:
    """A file's one graph: tensors by index, operators in the order of execution."""

    tensors: dict[int, Tensor] = field(default_factory=dict)  # those that operators use
    operators: list[Operator] = field(default_factory=list)
    input: int = -1
    output: int = -1


def read_graph(path: Path) -> Graph:
    """The graph of a file with one input and one output.

    Raises:
        WeightsError: The file is no TFLite file, damaged, or has what no picture classifier has.
        ImportError: The schema package is missing.
    """
    try:
        import tflite
    except ImportError:
        raise ImportError("reading TFLite files needs tflite: pip install 'mnv3[convert]'") from None
    if path.stat().st_size > MAX_BYTES:
        raise WeightsError(f"{path}: {path.stat().st_size} bytes; no MobileNetV3 has more than {MAX_BYTES}")
    content = path.read_bytes()
    if content[4:8] != b"TFL3":
        raise WeightsError(f"{path}: not a TFLite file: it has no TFL3 at byte 4")
    try:
        with np.errstate(all="ignore"):  # of scales that are not numbers, which are refused
            return _Reader(tflite, content).graph()
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except Exception as error:  # whatever a wrong offset leads to: struct.error, IndexError, UnicodeDecodeError ...
        raise WeightsError(f"{path}: a TFLite file that is damaged or cut off, {len(content)} bytes") from error


class _Reader:
    def __init__(self, schema: ModuleType, content: bytes) -> None:
        self.schema, self.content = schema, content
        self.model = schema.Model.GetRootAs(content, 0)
        # how many more bytes constants may have: many tensors may share a buffer, but not any number
        self.bytes_left = 2 * len(content) + 4096
        self.type_names = _names(schema.TensorType)
        self.operator_names = _names(schema.BuiltinOperator)
        self.option_names = _names(schema.BuiltinOptions)

    def graph(self) -> Graph:
        graphs = self.model.SubgraphsLength()
        if graphs != 1:
            raise WeightsError(f"the file has {graphs} graphs, a picture classifier has 1")
        source, graph = self.model.Subgraphs(0), Graph()
        ends = {"input": source.InputsLength(), "output": source.OutputsLength()}
        if list(ends.values()) != [1, 1]:
            raise WeightsError(f"the graph has {ends['input']} inputs and {ends['output']} outputs, not 1 and 1")
        graph.input, graph.output = source.Inputs(0), source.Outputs(0)
        count = source.OperatorsLength()
        if not 0 < count <= MAX_OPERATORS:
            raise WeightsError(f"the graph has {count} operators; no MobileNetV3 has more than {MAX_OPERATORS}")
        graph.operators = [self._operator(source.Operators(i), i) for i in range(count)]
        read = {i for op in graph.operators for i in op.inputs} - {-1}
        for index in sorted(read | {i for op in graph.operators for i in op.outputs} | {graph.input, graph.output}):
            if not 0 <= index < source.TensorsLength():
                raise WeightsError(f"the graph has no tensor {index}: damaged")
            graph.tensors[index] = self._tensor(source.Tensors(index), index)
        return graph

    def _operator(self, source: "tflite.Operator", position: int) -> Operator:
        code = self.model.OperatorCodes(source.OpcodeIndex())
        kind = self.operator_names.get(_number(code), "unknown")
        if kind == "CUSTOM":
            kind = f"CUSTOM {(code.CustomCode() or b'').decode(errors='replace')[:40]}"
        if source.InputsLength() > 16 or source.OutputsLength() != 1:
            ends = f"{source.InputsLength()} inputs and {source.OutputsLength()} outputs"
            raise WeightsError(f"operator {position} ({kind}) has {ends}: not MobileNetV3's")
        inputs = [source.Inputs(i) for i in range(source.InputsLength())]
        options = {}
        if table := source.BuiltinOptions():
            view = getattr(self.schema, self.option_names[source.BuiltinOptionsType()])()
            view.Init(table.Bytes, table.Pos)
            options = {name: getattr(view, name)() for name in OPTIONS if hasattr(view, name)}
        return Operator(kind, inputs, [source.Outputs(0)], options, position)

    def _tensor(self, source: "tflite.Tensor", index: int) -> Tensor:
        name = (source.Name() or b"").decode(errors="replace")[:80] or str(index)
        if source.ShapeLength() > 8:
            raise WeightsError(f"tensor {name!r} has {source.ShapeLength()} dimensions")
        shape = tuple(source.Shape(i) for i in range(source.ShapeLength()))
        kind = self.type_names.get(source.Type(), "unknown")
        scale, zero_point, axis = self._quantisation(source, name, shape)
        stored = self._stored(source, name, shape, kind)
        return Tensor(name, shape, kind, stored, scale, zero_point, axis, source.Sparsity() is not None)

    def _quantisation(
        self, source: "tflite.Tensor", name: str, shape: tuple[int, ...]
    ) -> tuple[np.ndarray | None, np.ndarray, int]:
        """Scales, zero points and the axis along which they are."""
        scale, zero_point = None, np.zeros(1)
        quantisation = source.Quantization()
        if not quantisation:
            return scale, zero_point, 0
        for length in (quantisation.ScaleLength(), quantisation.ZeroPointLength()):
            if length > max((1, *shape)):
                raise WeightsError(f"tensor {name!r} of {shape} has {length} scales")
        if quantisation.ScaleLength():
            scale = quantisation.ScaleAsNumpy().astype(np.float64)
            if not (np.isfinite(scale).all() and (scale > 0).all()):
                raise WeightsError(f"tensor {name!r} has scales that are not above 0")
        if quantisation.ZeroPointLength():
            zero_point = quantisation.ZeroPointAsNumpy().astype(np.float64)
        return scale, zero_point, quantisation.QuantizedDimension()

    def _stored(self, source: "tflite.Tensor", name: str, shape: tuple[int, ...], kind: str) -> np.ndarray | None:
        if not 0 <= source.Buffer() < self.model.BuffersLength():
            raise WeightsError(f"tensor {name!r} has buffer {source.Buffer()}, which is not in the file")
        buffer = self.model.Buffers(source.Buffer())
        if buffer.Offset() > 1:  # of models of more than 2 GB: after the flatbuffer
            start, length = buffer.Offset(), buffer.Size()
            if start + length > len(self.content):
                raise WeightsError(f"tensor {name!r} is stored outside of the file")
            data = np.frombuffer(self.content, np.uint8, length, start)
        elif buffer.DataLength():
            data = buffer.DataAsNumpy()
        else:
            return None
        if kind not in TYPES:
            raise WeightsError(f"tensor {name!r} is stored as {kind}; mnv3 reads {', '.join(TYPES)}")
        if min(shape, default=1) < 1 or data.size != (expected := math.prod(shape) * np.dtype(TYPES[kind]).itemsize):
            raise WeightsError(f"tensor {name!r} of {shape} {kind} has {data.size} bytes: damaged")
        self.bytes_left -= expected
        if self.bytes_left < 0:
            raise WeightsError("the constants take several times the bytes of the file: damaged")
        values = data.view(np.dtype(TYPES[kind]).newbyteorder("<")).reshape(shape)
        if kind.startswith("FLOAT") and not np.isfinite(values).all():
            raise WeightsError(f"tensor {name!r} has values that are not finite")
        return values


def _number(code: "tflite.OperatorCode") -> int:
    """An operator's number: in the larger of two fields, as 127 and more do not fit into the one that old files have.

    The package's own accessor looks for small numbers in the old field alone, which new writers leave empty.
    """
    from flatbuffers.number_types import Int32Flags

    table = code._tab
    offset = table.Offset(10)
    return max(table.Get(Int32Flags, offset + table.Pos) if offset else 0, code.DeprecatedBuiltinCode())


def _names(enum: type) -> dict[int, str]:
    """Number to name, in one of the schema's enumerations."""
    return {value: name for name, value in vars(enum).items() if isinstance(value, int)}
