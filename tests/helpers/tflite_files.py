"""TFLite files of a model of ours as TensorFlow's converter and others write them, by the schema alone; and LiteRT."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import randomize

import mnv3
from mnv3.arch import Arch, Bneck

schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="needs pip install 'mnv3[convert]'")
pytest.importorskip("tflite", reason="needs pip install 'mnv3[convert]'")

TYPES = {"float32": 0, "float16": 1, "int32": 2, "uint8": 3, "int8": 9}
SAME, VALID = 0, 1
RELU, RELU6 = 1, 3
SIZE = 64
TINY = Arch(
    stem=16,
    rows=(
        Bneck(3, 16, 16, True, "RE", 1),
        Bneck(3, 64, 24, False, "RE", 2),
        Bneck(5, 72, 24, True, "HS", 1),
        Bneck(5, 96, 40, False, "HS", 2),
    ),
    last=96,
    head=64,
)


def tiny(pad_type="same", table=TINY, **kwargs):
    """A model of four blocks, one of each kind."""
    kwargs = {"num_classes": 7} | kwargs
    return randomize(mnv3.create_model("mnv3_small", arch=table, pad_type=pad_type, **kwargs))


def pictures(size=SIZE, count=3, channels=3):
    """A batch (N, C, H, W) from -1 to 1."""
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def logits(model, x):
    """A model's logits as an array."""
    with torch.no_grad():
        return model(x).numpy()


def built(foreign):
    """The model that a reader has found in a file."""
    model = mnv3.create_model(foreign.arch, pretrained_cfg_overlay=foreign.config, **foreign.options)
    model.load_state_dict(foreign.state_dict)
    return model.eval()


def write(path, content):
    """A file with these bytes."""
    path.write_bytes(content)
    return path


class Writer:
    """A graph of one input, operator by operator; tensors are their numbers."""

    def __init__(self, shape, kind="float32", scale=None, zero=None):
        self.model, self.graph = schema.ModelT(), schema.SubGraphT()
        self.model.version, self.model.subgraphs, self.model.operatorCodes = 3, [self.graph], []
        self.model.buffers = [schema.BufferT()]
        self.graph.tensors, self.graph.operators, self.graph.outputs = [], [], []
        self.graph.inputs = [self.tensor(shape, kind, scale=scale, zero=zero)]

    def tensor(self, shape, kind="float32", *, data=None, scale=None, zero=None, axis=0):
        tensor = schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer = list(shape), TYPES[kind], 0
        tensor.name = str(len(self.graph.tensors)).encode()
        if scale is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = np.atleast_1d(scale).astype(np.float32)
            tensor.quantization.zeroPoint = np.broadcast_to(zero or 0, np.shape(tensor.quantization.scale)).astype(int)
            tensor.quantization.quantizedDimension = axis
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            tensor.buffer = len(self.model.buffers)
            self.model.buffers.append(buffer)
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def constant(self, values, kind="float32"):
        values = np.asarray(values, kind)
        return self.tensor(values.shape, kind, data=values)

    def shape(self, index):
        return tuple(self.graph.tensors[index].shape)

    def op(self, kind, inputs, shape, **options):
        """Add an operator and return its output; options as 'name_of_options__field', or plain for the usual one."""
        number = getattr(schema.BuiltinOperator, kind)
        codes = [code.builtinCode for code in self.model.operatorCodes]
        if number not in codes:
            code = schema.OperatorCodeT()
            code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 1
            if kind == "DEQUANTIZE":
                code.version = 3
            self.model.operatorCodes.append(code)
            codes.append(number)
        op = schema.OperatorT()
        op.opcodeIndex, op.inputs = codes.index(number), list(inputs)
        if name := OPTIONS.get(kind):
            op.builtinOptionsType = getattr(schema.BuiltinOptions, name)
            op.builtinOptions = getattr(schema, f"{name}T")()
            for key, value in options.items():
                assert hasattr(op.builtinOptions, key), key
                setattr(op.builtinOptions, key, value)
        op.outputs = [self.tensor(shape)]
        self.graph.operators.append(op)
        return op.outputs[0]

    def bytes(self, output):
        self.graph.outputs = [output]
        return pack(self.model)


OPTIONS = {
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "MEAN": "ReducerOptions",
    "SUM": "ReducerOptions",
    "ADD": "AddOptions",
    "SUB": "SubOptions",
    "MUL": "MulOptions",
    "SOFTMAX": "SoftmaxOptions",
}


def pack(model):
    """The bytes of an object of the schema."""
    import flatbuffers

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def unpack(content):
    """The object of the schema in a file's bytes."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))


def edited(content, *edits):
    """A file's bytes after each `edit(model, graph)` has changed the objects of the schema."""
    model = unpack(content)
    for edit in edits:
        edit(model, model.subgraphs[0])
    return pack(model)


def operators(model, graph, kind):
    """A graph's operators of a kind, in the order of execution."""
    number = getattr(schema.BuiltinOperator, kind)
    return [op for op in graph.operators if model.operatorCodes[op.opcodeIndex].builtinCode == number]


def folded(unit):
    """Weight and bias of a ConvNormAct in evaluation, in float64."""
    norm, weight = unit.norm, unit.conv.weight.detach().double()
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().double()
    return weight * scale[:, None, None, None], (norm.bias - norm.running_mean * scale).detach().double()


class Tensorflow:
    """Writes a MobileNetV3 as TensorFlow does, in one of its ways.

    weights: 'float32'; 'float16', or 'uint8' (per tensor) and 'int8' (per channel), which a DEQUANTIZE makes float.
    act: 'op' (HARD_SWISH), or 'mul' (x * relu6(x + 3) * 1/6).
    se: 'average' (AVERAGE_POOL_2D, CONV_2D), 'mean' (MEAN, CONV_2D), 'fc' (MEAN, FULLY_CONNECTED, RESHAPE),
        'sum' (SUM, MUL), 'bias' (the 3 of the hard sigmoid in the bias, as LiteRT's), or 'after' (1/6 after the gate).
    pad: 'name' (SAME), or 'apart' (PAD, then VALID, as Keras).
    norm: 'folded', or 'apart' (MUL and ADD after the convolution).
    """

    def __init__(self, model, size, *, weights="float32", act="op", se="average", pad="name", norm="folded"):
        self.model, self.weights, self.act, self.se, self.pad, self.norm = model, weights, act, se, pad, norm
        self.file = Writer((1, size, size, model.in_chans))

    def bytes(self, *, softmax=False, rescale=False):
        file, model = self.file, self.model
        x = file.graph.inputs[0]
        if rescale:
            x = file.op("SUB", [x, file.constant(127.5)], file.shape(x))
            x = file.op("MUL", [x, file.constant(1 / 127.5)], file.shape(x))
        x = self.unit(x, model.stem, model.arch.act)
        for block, row in zip(model.blocks, model.arch.rows, strict=True):
            shortcut = x
            if not isinstance(block.expand, torch.nn.Identity):
                x = self.unit(x, block.expand, row.act)
            se_first = not isinstance(block.act, torch.nn.Identity)
            x = self.unit(x, block.depthwise, None if se_first else row.act)
            if row.se:
                x = self.squeeze_excite(x, block.se)
            if se_first:
                x = self.activation(x, row.act)
            x = self.unit(x, block.project, None)
            if block.has_shortcut:
                x = file.op("ADD", [x, shortcut], file.shape(x))
        x = self.unit(x, model.last, model.arch.act)
        x = self.activation(self.layer(self.pool(x), model.head), model.arch.act)
        x = self.layer(x, model.classifier)
        x = file.op("RESHAPE", [x, file.constant([1, model.num_classes], "int32")], (1, model.num_classes))
        if softmax:
            x = file.op("SOFTMAX", [x], file.shape(x), beta=1.0)
        return file.bytes(x)

    def weight(self, values, axis):
        """A weight in TFLite's order, stored as asked for."""
        file, values = self.file, np.asarray(values, np.float32)
        if self.weights == "float32":
            return file.constant(values)
        if self.weights == "float16":
            stored = file.constant(values, "float16")
        elif self.weights == "uint8":
            low, high = min(values.min(), 0), max(values.max(), 0)
            scale = (high - low) / 255
            zero = int(np.round(-low / scale))
            stored = np.clip(np.round(values / scale) + zero, 0, 255).astype(np.uint8)
            stored = file.tensor(values.shape, "uint8", data=stored, scale=scale, zero=zero)
        else:
            others = tuple(i for i in range(values.ndim) if i != axis)
            scale = np.abs(values).max(others) / 127
            along = scale.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
            stored = np.round(values / along).astype(np.int8)
            stored = file.tensor(values.shape, "int8", data=stored, scale=scale, axis=axis)
        return file.op("DEQUANTIZE", [stored], values.shape)

    def layer(self, x, conv, fused=0, offset=0.0):
        """A convolution or linear layer on a vector or, 1x1, on a map, with its own bias."""
        weight = conv.weight.detach().numpy().reshape(len(conv.weight), 1, 1, -1)
        bias = self.file.constant(conv.bias.detach().numpy() + offset)
        shape = (*self.file.shape(x)[:3], len(weight))
        options = {"strideH": 1, "strideW": 1, "padding": VALID, "fusedActivationFunction": fused}
        return self.file.op("CONV_2D", [x, self.weight(weight, 0), bias], shape, **options)

    def unit(self, x, unit, act):
        file, conv = self.file, unit.conv
        weight, bias = folded(unit)
        scale = 1.0
        if self.norm == "apart":
            scale = 1 + torch.arange(len(bias)) % 3
            weight = weight / scale[:, None, None, None]
        stride, kernel, groups = conv.stride[0], conv.kernel_size[0], conv.groups
        _, height, width, channels = file.shape(x)
        out = [-(-height // stride), -(-width // stride)]
        padding = SAME
        if self.pad == "apart" and stride > 1 and kernel > 1:
            half = kernel // 2
            before = [half - 1 + side % 2 if self.model.pad_type else half for side in (height, width)]
            pads = [[0, 0], *([b, half] for b in before), [0, 0]]
            shape = (1, height + sum(pads[1]), width + sum(pads[2]), channels)
            x = file.op("PAD", [x, file.constant(pads, "int32")], shape)
            padding = VALID
        options = {"strideH": stride, "strideW": stride, "padding": padding}
        kind, order, axis = ("CONV_2D", (0, 2, 3, 1), 0) if groups == 1 else ("DEPTHWISE_CONV_2D", (1, 2, 3, 0), 3)
        if groups > 1:
            options["depthMultiplier"] = 1
        fused = RELU if act == "RE" and self.norm == "folded" else 0
        bias_index = file.constant(bias if self.norm == "folded" else 0 * bias)
        weight = self.weight(weight.permute(order).numpy(), axis)
        x = file.op(kind, [x, weight, bias_index], (1, *out, len(bias)), fusedActivationFunction=fused, **options)
        if self.norm == "apart":
            x = file.op("MUL", [x, file.constant(scale.float())], file.shape(x))
            x = file.op("ADD", [x, file.constant(bias)], file.shape(x))
        return x if act is None or fused else self.activation(x, act)

    def activation(self, x, act):
        file, shape = self.file, self.file.shape(x)
        if act == "RE":
            return file.op("RELU", [x], shape)
        if self.act == "op":
            return file.op("HARD_SWISH", [x], shape)
        gate = file.op("ADD", [x, file.constant(3.0)], shape, fusedActivationFunction=RELU6)
        return file.op("MUL", [file.op("MUL", [x, gate], shape), file.constant(1 / 6)], shape)

    def pool(self, x):
        file, (_, height, width, channels) = self.file, self.file.shape(x)
        if self.se == "average":
            options = {"filterHeight": height, "filterWidth": width, "strideH": 1, "strideW": 1, "padding": VALID}
            return file.op("AVERAGE_POOL_2D", [x], (1, 1, 1, channels), **options)
        axes = file.constant([1, 2], "int32")
        if self.se == "sum":
            x = file.op("SUM", [x, axes], (1, 1, 1, channels), keepDims=True)
            return file.op("MUL", [x, file.constant(1 / (height * width))], (1, 1, 1, channels))
        if self.se == "fc":
            x = file.op("MEAN", [x, axes], (1, channels), keepDims=False)
            return file.op("RESHAPE", [x, file.constant([1, 1, 1, channels], "int32")], (1, 1, 1, channels))
        return file.op("MEAN", [x, axes], (1, 1, 1, channels), keepDims=True)

    def squeeze_excite(self, x, se):
        file = self.file
        gate = self.layer(self.pool(x), se.squeeze, RELU)
        shape = (1, 1, 1, se.excite.out_channels)
        if self.se == "fc":
            weight = self.weight(se.excite.weight.detach().flatten(1).numpy(), 0)
            gate = file.op(
                "RESHAPE", [gate, file.constant([1, file.shape(gate)[3]], "int32")], (1, file.shape(gate)[3])
            )
            bias = file.constant(se.excite.bias.detach().numpy())
            gate = file.op("FULLY_CONNECTED", [gate, weight, bias], (1, shape[3]))
            gate = file.op("RESHAPE", [gate, file.constant(shape, "int32")], shape)
        elif self.se == "bias":
            gate = self.layer(gate, se.excite, RELU6, 3.0)
        else:
            gate = self.layer(gate, se.excite)
        if self.se != "bias":
            gate = file.op("ADD", [gate, file.constant(3.0)], shape, fusedActivationFunction=RELU6)
        if self.se == "after":
            x = file.op("MUL", [x, gate], file.shape(x))
            return file.op("MUL", [x, file.constant(1 / 6)], file.shape(x))
        gate = file.op("MUL", [gate, file.constant(1 / 6)], shape)
        return file.op("MUL", [x, gate], file.shape(x))


def channels_last(x: torch.Tensor) -> np.ndarray:
    """A batch (N, C, H, W) as (N, H, W, C)."""
    return x.permute(0, 2, 3, 1).contiguous().numpy()


def run(content: bytes | Path, x: np.ndarray) -> np.ndarray:
    """What LiteRT makes of a batch in the file's own order of axes, picture by picture, in real numbers."""
    from ai_edge_litert.interpreter import Interpreter

    kwargs = {"model_content": content} if isinstance(content, bytes) else {"model_path": str(content)}
    interpreter = Interpreter(num_threads=1, **kwargs)
    interpreter.allocate_tensors()
    entry, result = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]
    rows = []
    for picture in x:
        interpreter.set_tensor(entry, picture[None])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(result["index"])[0].copy())
    scale, zero = result["quantization"]
    return (np.stack(rows).astype(float) - zero) * scale if scale else np.stack(rows)
