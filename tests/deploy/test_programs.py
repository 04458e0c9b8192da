"""A pt2, TorchScript or ONNX file that would do more than compute is refused before it does."""

import contextlib
import io
import json
import os
import pickle

import pytest
import torch
from exports import exported, net

from mnv3.deploy import load
from mnv3.deploy.seal import seal
from mnv3.errors import WeightsError

WEIGHTS = "data/weights/model_weights_config.json"


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def metadata():
    return json.dumps(load(exported("torchscript")[0]).metadata)


# --- pt2


@pytest.fixture(scope="module")
def records():
    """What an export has in its archive."""
    from torch.export.pt2_archive._package import PT2ArchiveReader

    reader = PT2ArchiveReader(str(exported("pt2")[0]))
    return {name: reader.read_bytes(name) for name in reader.get_file_names() if not name.startswith((".data", "byte"))}


def pt2(records, file):
    from torch.export.pt2_archive._package import PT2ArchiveWriter

    with PT2ArchiveWriter(str(file)) as writer:
        for name, content in records.items():
            writer.write_bytes(name, content)
    seal(file)
    return file


def pickled(path):
    buffer = io.BytesIO()
    torch.save({"x": Evil(path)}, buffer)
    return buffer.getvalue()


def test_the_archive_itself_is_good(records, tmp_path):
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(load(pt2(records, tmp_path / "a.pt2"))(x), net()(x).detach(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["data/weights/model.pt", "data/constants/model.pt", "data/sample_inputs/model.pt"])
def test_pickles(records, tmp_path, name, fails):
    made = tmp_path / "made"
    file = pt2(records | {name: pickled(made)}, tmp_path / "a.pt2")
    with pytest.raises(WeightsError, match=rf"a.pt2: its {name} is a pickle of more than tensors"):
        load(file)
    (tmp_path / "a.png").write_bytes(b"")
    assert "pickle of more than tensors" in fails("predict", tmp_path / "a.png", "--checkpoint", file)
    assert not made.exists()
    with contextlib.suppress(Exception):
        torch.export.load(file)
    assert made.is_dir(), "PyTorch does run it"


def test_pickled_tensors_are_no_pickles_of_code(records, tmp_path):
    """As PyTorch before 2.10 stored them."""
    older, buffer = dict(records), io.BytesIO()
    state = torch.export.load(pt2(records, tmp_path / "a.pt2")).state_dict
    torch.save(dict(state), buffer)
    for name in [name for name in older if name.startswith("data/weights/")]:
        del older[name]
    x = torch.randn(1, 3, 32, 32)
    logits = load(pt2(older | {"data/weights/model.pt": buffer.getvalue()}, tmp_path / "b.pt2"))(x)
    torch.testing.assert_close(logits, net()(x).detach(), rtol=0, atol=1e-4)


def test_weights_that_say_that_they_are_pickles(records, tmp_path):
    config = json.loads(records[WEIGHTS])
    first = next(iter(config["config"].values()))
    made = tmp_path / "made"
    for change in ({"use_pickle": True}, {"path_name": "opaque_obj_0"}, {"path_name": "../weight_0"}):
        changed = json.dumps({"config": config["config"] | {"classifier.weight": first | change}}).encode()
        path = change.get("path_name", first["path_name"])
        more = {WEIGHTS: changed, f"data/weights/{path}": pickled(made)}
        with pytest.raises(WeightsError, match=r"a.pt2: its (weights are pickles|graph has|archive has)"):
            load(pt2(records | more, tmp_path / "a.pt2"))
    opaque = {"config": {"x": first | {"path_name": "opaque_obj_0"}}}
    more = {
        "data/constants/model_constants_config.json": json.dumps(opaque).encode(),
        "data/constants/opaque_obj_0": pickle.dumps(Evil(made)),
    }
    with pytest.raises(WeightsError, match="archive has 'data/constants/opaque_obj_0', which mnv3 does not write"):
        load(pt2(records | more, tmp_path / "a.pt2"))
    assert not made.exists()


@pytest.mark.parametrize("name", ["data/aotinductor/a/a.so", "models/other.json", "data/constants/custom_obj_0", "x"])
def test_other_entries(records, tmp_path, name):
    with pytest.raises(WeightsError, match=f"a.pt2: its archive has '{name}', which mnv3 does not write"):
        load(pt2(records | {name: b"{}"}, tmp_path / "a.pt2"))


def changed(records, change):
    program = json.loads(records["models/model.json"])
    change(program)
    return records | {"models/model.json": json.dumps(program).encode()}


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.save.default",
        "torch.ops.aten.as_strided.default",
        "torch.ops.aten.relu.default.__class__",
        "torch.ops.higher_order.print",
        "torch.hub.load",
        "torch.load",
        "_operator.attrgetter",
        "_operator.call",
        "math.sqrt",
        "#extension:op",
        "open",
        "",
    ],
)
def test_operators_of_pt2(records, tmp_path, target):
    def change(program):
        program["graph_module"]["graph"]["nodes"][1]["target"] = target

    with pytest.raises(WeightsError, match=r"a.pt2: it calls '.*', which is none of the operators that mnv3 exports"):
        load(pt2(changed(records, change), tmp_path / "a.pt2"))


def set_size(text):
    def change(program):
        values = program["graph_module"]["graph"]["tensor_values"]
        values["x"]["sizes"][0] = {"as_expr": {"expr_str": text, "hint": {"as_int": 2}}}

    return change


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').mkdir('made')",
        "().__class__.__base__.__subclasses__()",
        "Symbol('x').func",
        "exec('1')",
        "lambda: 1",
        "9**9**9",
        "[1 for x in y]",
        "Integer(1); 2",
        "Symbol('it''s')(\"\")",
        "Add" * 4000,
    ],
)
def test_text_that_pt2_evaluates(records, tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"a.pt2: its graph has .* as expr_str$"):
        load(pt2(changed(records, set_size(text)), tmp_path / "a.pt2"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt2"]


def test_the_first_of_these_does_run_in_pytorch(records, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(Exception):
        torch.export.load(pt2(changed(records, set_size("__import__('os').mkdir('made')")), tmp_path / "a.pt2"))
    assert (tmp_path / "made").is_dir()


def test_what_pt2_would_look_up_is_left_out_or_refused(records, tmp_path):
    def guards(program):
        program["guards_code"] = ["__import__('os').mkdir('made')"]
        program["graph_module"]["graph"]["nodes"][0]["metadata"] = {"source_fn_stack": "x,torch.hub.load"}

    x = torch.randn(1, 3, 32, 32)
    logits = load(pt2(changed(records, guards), tmp_path / "a.pt2"))(x)
    torch.testing.assert_close(logits, net()(x).detach(), rtol=0, atol=1e-4)

    def tree(program):
        spec = '[1, {"type": "collections.namedtuple", "context": "\\"os\\"", "children_spec": []}]'
        program["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = spec

    def graph(program):
        program["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"] = {"as_operator": "torch.load"}

    def name(program):
        program["graph_module"]["graph"]["nodes"][0]["outputs"][0]["as_tensor"]["name"] = "torch.load"

    for change, message in (
        (tree, "as in_spec"),
        (name, "'torch.load' as name"),
        (graph, "'as_operator', which mnv3 does not write"),
    ):
        with pytest.raises(WeightsError, match=rf"a.pt2: its graph has .*{message}"):
            load(pt2(changed(records, change), tmp_path / "a.pt2"))
    for content in (b"", b"[]", b"{}", b"[" * 100_000, b'{"graph_module": {"module_call_graph": []}}'):
        with pytest.raises(WeightsError, match=r"^.*a.pt2: .+$"):
            load(pt2(records | {"models/model.json": content}, tmp_path / "a.pt2"))


# --- TorchScript


def scripted(module, metadata, file):
    torch.jit.save(module, file, _extra_files={"mnv3": metadata})
    seal(file)
    return file


def as_ours(cls):
    """As a class of mnv3, which is what an export's is."""
    cls.__module__ = "mnv3.model"
    return cls


def test_operators_of_torchscript(metadata, tmp_path, fails):
    path = str(tmp_path / "made")

    @as_ours
    class Writes(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.path = path

        def forward(self, x):
            return x.mean() + torch.from_file(self.path, True, x.size(2))[0]

    frozen = torch.jit.freeze(torch.jit.script(Writes().eval()))
    file = scripted(frozen, metadata, tmp_path / "a.torchscript")
    with pytest.raises(WeightsError, match=r"a.torchscript: it calls 'aten::from_file', which is none of"):
        load(file)
    (tmp_path / "a.png").write_bytes(b"")
    assert "it calls 'aten::from_file'" in fails("predict", tmp_path / "a.png", "--checkpoint", file)
    assert not (tmp_path / "made").exists()
    torch.jit.load(file)(torch.zeros(1, 3, 32, 32))
    assert (tmp_path / "made").exists(), "PyTorch does run it"


def test_code_that_runs_when_it_is_loaded(metadata, tmp_path):
    path = str(tmp_path / "made")

    @as_ours
    class Loads(torch.nn.Module):
        path: str

        def __init__(self):
            super().__init__()
            self.path = path

        @torch.jit.export
        def __getstate__(self):
            return (self.path, self.training)

        @torch.jit.export
        def __setstate__(self, state: tuple[str, bool]):
            self.path = state[0]
            self.training = state[1]
            self.training = torch.from_file(state[0], True, 10).numel() > 0

        def forward(self, x):
            return torch.relu(x)

    file = scripted(torch.jit.script(Loads()), metadata, tmp_path / "a.torchscript")
    with pytest.raises(WeightsError, match=r"a.torchscript: its code has '__setstate__', which may run"):
        load(file)
    assert not (tmp_path / "made").exists()
    torch.jit.load(file)
    assert (tmp_path / "made").exists(), "PyTorch does run it"


def test_other_torchscript(metadata, tmp_path):
    @as_ours
    class Branches(torch.nn.Module):
        def forward(self, x):
            if x.size(0) > 1:
                return torch.relu(x)
            return x

    @as_ours
    class Hooked(torch.nn.Module):
        def forward(self, x):
            return torch.relu(x)

    class OfOthers(torch.nn.Module):
        def forward(self, x):
            return torch.relu(x)

    def hook(self, input: tuple[torch.Tensor], output: torch.Tensor):
        return output

    hooked = Hooked()
    hooked.register_forward_hook(hook)
    for module, message in (
        (torch.jit.freeze(torch.jit.script(Branches().eval())), "it calls '(prim::If|aten::gt)'"),
        (torch.jit.script(hooked), "its code has 'hook'"),
        (torch.jit.script(OfOthers()), "its data.pkl names '__torch__.test_programs.* OfOthers', which is no tensor"),
    ):
        file = scripted(module, metadata, tmp_path / "a.torchscript")
        with pytest.raises(WeightsError, match=f"a.torchscript: {message}"):
            load(file)


# --- ONNX


def test_weights_of_onnx_outside_the_file(tmp_path, monkeypatch):
    """A file of someone else's is not read, wherever the program was started."""
    source, _ = exported("onnx")
    import onnx

    (tmp_path / "secret").write_bytes(bytes(10_000_000))
    monkeypatch.chdir(tmp_path)
    for location in ("secret", "/etc/passwd", "../secret"):
        model = onnx.load(source)
        tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        size = str(len(tensor.raw_data))
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", size)):
            tensor.external_data.add(key=key, value=value)
        file = tmp_path / "b.onnx"
        file.write_bytes(model.SerializeToString())
        seal(file)
        with pytest.raises(WeightsError, match=r"b.onnx: onnx cannot open it: .*[Ee]xternal data path"):
            load(file)
