"""What pt2 and TorchScript files may hold, so that opening one runs nothing but a network.

Both are programs: PyTorch would unpickle objects of any kind out of a .pt2, evaluate text in it, and call any operator
that either names, some of which read and write files. So they are looked through before PyTorch gets them, and what a
MobileNetV3 does not need is refused.
"""

import io
import json
import pickletools
import re
import sys
from collections.abc import Callable
from typing import Any

import torch

from ..errors import WeightsError
from .writers import METADATA


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Operators of PyTorch, in whatever form: each computes a tensor, or a size, from others and from nothing else.
ATEN = _words(
    """
    _convolution conv2d linear pad constant_pad_nd
    relu relu6 hardtanh clamp clamp_min hardswish hardsigmoid sigmoid silu mish gelu elu leaky_relu prelu tanh softplus
    mean amax max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d
    add sub rsub mul div neg floor_divide remainder softmax _softmax
    flatten view reshape squeeze unsqueeze permute transpose cat contiguous clone alias detach dropout
    to _to_copy size sym_size Int _assert_tensor_metadata _assert_scalar sym_constrain_range_for_size
    """
)
QUANTIZED = _words("quantize_per_tensor dequantize_per_tensor quantize_per_channel dequantize_per_channel")  # 8 bits
OF_SIZES = _words("add sub mul floordiv mod neg eq ne lt le gt ge getitem")  # Python's own, on numbers
TORCHSCRIPT = {f"aten::{name}" for name in ATEN} | _words("prim::Constant prim::ListConstruct prim::NumToTensor")

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # which torch.fx writes into Python code
NUMBERED = re.compile(r"(weight|tensor)_\d+")
VERSION = re.compile(r"[A-Za-z0-9.+<=-]+")
SIZE_WORD = re.compile(r"s\d+|Symbol|Integer|Add|Mul|FloorDiv|Mod|Max|Min|True|False|positive|nonnegative|integer")
# what the values of a graph may be; operators, graphs and objects are not among them
KINDS = _words(
    """
    as_tensor as_tensors as_none as_bool as_bools as_int as_ints as_float as_floats as_string as_scalar_type
    as_memory_format as_layout as_device as_sym_int as_sym_ints as_sym_bool as_sym_float as_expr as_name
    """
)
PICKLED_TENSORS = re.compile(r"data/(weights|constants|sample_inputs)/model\.pt")  # the first two of older PyTorch
PT2_RECORD = re.compile(
    rf"{PICKLED_TENSORS.pattern}|data/weights/(weight_\d+|model_weights_config\.json)"
    rf"|data/constants/(tensor_\d+|model_constants_config\.json)|models/model\.json|extra/{METADATA}"
    r"|archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
)
OF_THE_ARCHIVE = ("byteorder", ".data/version", ".data/serialization_id")  # which its writer adds by itself
SCRIPT_RECORD = re.compile(
    rf"(data|constants|attributes)(\.pkl|/\d+)|code/__torch__/[\w/]+\.py(\.debug_pkl)?|extra/{METADATA}"
    r"|version|byteorder|\.data/(version|serialization_id)"
)
SCRIPT_PICKLED = re.compile(
    r"torch\._utils\._rebuild_tensor_v2|torch\.\w+Storage|torch\.jit\._pickle\.\w+|collections\.OrderedDict"
    r"|__torch__\.mnv3\.[\w.]+"
)


class Refused(WeightsError):
    """A file holds what no exported network needs; the message says what, not in which file."""


def safe_pt2(content: bytes) -> tuple[io.BytesIO, str]:
    """An archive of torch.export without what could run, for `torch.export.load`, and its metadata.

    Raises:
        Refused: It needs such things.
    """
    from torch.export.pt2_archive._package import PT2ArchiveReader, PT2ArchiveWriter

    records = _records(PT2ArchiveReader(io.BytesIO(content)).archive_file, PT2_RECORD)
    for name, record in records.items():
        if PICKLED_TENSORS.fullmatch(name):
            _check_pickled_tensors(name, record)
        elif name.endswith("_config.json"):
            _check(json.loads(record))
    program = _plain_program(json.loads(records.get("models/model.json", b"{}")))
    records |= {"models/model.json": json.dumps(program).encode(), "data/sample_inputs/model.pt": b""}
    safe = io.BytesIO()
    with PT2ArchiveWriter(safe) as writer:
        for name, record in records.items():
            if name not in OF_THE_ARCHIVE:
                writer.write_bytes(name, record)
    safe.seek(0)
    return safe, records.get(f"extra/{METADATA}", b"").decode()


def safe_torchscript(content: bytes, *, trusted: bool = False) -> tuple[Callable[[torch.Tensor], torch.Tensor], str]:
    """What a file of TorchScript computes, and its metadata.

    Args:
        content: The file.
        trusted: Let it be any program.

    Raises:
        Refused: It is no plain graph of operators that only compute.
    """
    if trusted:
        return torch.jit.load(io.BytesIO(content), map_location="cpu").forward, ""
    records = _records(torch._C.PyTorchFileReader(io.BytesIO(content)), SCRIPT_RECORD)
    for name, record in records.items():
        if name.endswith("pkl"):
            _check_globals(name, record)
        elif name.endswith(".py"):
            for word in ("__setstate__", "classes", "hook"):
                if word.encode() in record:
                    raise Refused(f"its code has {word!r}, which may run when it is loaded")
    module = torch.jit.load(io.BytesIO(content), map_location="cpu")
    for node in module.inlined_graph.nodes():
        if node.kind() not in TORCHSCRIPT:
            raise _no_operator(node.kind())
    return module.forward, records.get(f"extra/{METADATA}", b"").decode()


def _no_operator(name: object) -> Refused:
    return Refused(f"it calls {str(name)[:100]!r}, which is none of the operators that mnv3 exports")


def _records(reader: Any, allowed: re.Pattern) -> dict[str, bytes]:
    """Everything in an archive, as PyTorch itself reads it."""
    names = list(reader.get_all_records())
    if len({name.lower() for name in names}) != len(names):
        raise Refused("its archive has two entries of one name")
    for name in names:
        if not allowed.fullmatch(name):
            raise Refused(f"its archive has {name[:100]!r}, which mnv3 does not write")
    records = {name: reader.get_record(name) for name in names}
    if records.get("byteorder", b"little").decode() != sys.byteorder:
        raise Refused("its numbers are in the other byte order")
    return records


def _check_pickled_tensors(name: str, record: bytes) -> None:
    if not record:
        return
    try:
        torch.load(io.BytesIO(record), weights_only=True, map_location="cpu")
    except Exception:  # torch.export would go on to unpickle everything, and run what that says
        raise Refused(f"its {name} is a pickle of more than tensors, which could run any code") from None


def _check_globals(name: str, record: bytes) -> None:
    """Raise Refused where a pickle of TorchScript, which is read by PyTorch's own reader, names other classes."""
    try:
        used = [str(value) for code, value, _ in pickletools.genops(record) if "GLOBAL" in code.name]
    except ValueError as error:
        raise Refused(f"its {name} is no pickle ({error})") from None
    for value in used:
        if not SCRIPT_PICKLED.fullmatch(value.replace(" ", ".")):
            raise Refused(f"its {name} names {value[:100]!r}, which is no tensor")


def _plain_program(program: dict[str, Any]) -> dict[str, Any]:
    """A program with nothing in it that torch.export evaluates or looks up, but the operators allowed above."""
    module = program["graph_module"]
    root = next(entry for entry in module["module_call_graph"] if entry["fqn"] == "")
    module |= {"module_call_graph": [root], "metadata": {}, "treespec_namedtuple_fields": {}}
    for node in module["graph"]["nodes"]:
        node["metadata"] = {}  # stack traces
    program["guards_code"] = []
    _check(program)
    return program


def _check(value: Any, slot: str = "") -> None:
    """Raise Refused for any text that is not what is expected in its place."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not NAME.fullmatch(key) or (key.startswith("as_") and key not in KINDS):
                raise Refused(f"its graph has {key[:100]!r}, which mnv3 does not write")
            if key == "use_pickle" and inner is not False:
                raise Refused("its weights are pickles, which could run any code")
            _check(inner, key)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, slot)
    elif isinstance(value, str) and not SLOTS.get(slot, NAME.fullmatch)(value):
        raise _no_operator(value) if slot == "target" else Refused(f"its graph has {value[:100]!r} as {slot}")


def _is_operator(target: str) -> bool:
    head, _, rest = target.partition(".")
    if head == "_operator":
        return rest in OF_SIZES
    names = target.split(".")
    if len(names) != 5 or names[:2] != ["torch", "ops"] or not NAME.fullmatch(names[4]):
        return False
    return names[3] in {"aten": ATEN, "quantized_decomposed": QUANTIZED}.get(names[2], ())


def _is_size(text: str) -> bool:
    """An expression of sizes, such as Add(Symbol('s53', integer=True), Integer(1)), which is evaluated as Python."""
    rest = re.sub(f"'{VARIABLE.pattern}'", "", text)  # names in quotes do nothing
    words = VARIABLE.findall(rest)
    plain = not re.search(r"[^A-Za-z0-9_(),= *+-]|\*\*", rest)  # ** could take forever
    return plain and len(text) < 10_000 and all(map(SIZE_WORD.fullmatch, words))


def _is_tree(text: str) -> bool:
    """A description of nested arguments, of Python's own containers alone."""

    def plain(node: Any) -> bool:
        return (
            node["type"] in (None, "builtins.tuple", "builtins.list", "builtins.dict")
            and node["context"] in (None, "null", "[]")
            and all(map(plain, node["children_spec"]))
        )

    _, tree = json.loads(text)
    return plain(tree)


SLOTS: dict[str, Callable[[str], Any]] = {
    "target": _is_operator,
    "name": VARIABLE.fullmatch,
    "as_name": VARIABLE.fullmatch,
    "forward_arg_names": VARIABLE.fullmatch,
    "expr_str": _is_size,
    "in_spec": _is_tree,
    "out_spec": _is_tree,
    "path_name": NUMBERED.fullmatch,
    "torch_version": VERSION.fullmatch,
    "fqn": lambda text: not text,
}
