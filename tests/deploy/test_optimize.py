"""The fastest form in this process: equal logits, a choice that can be kept, and what is refused."""

import pickle
import sys

import pytest
import torch
from conftest import needs, randomize
from exports import net
from PIL import Image
from torch import nn

import mnv3
from mnv3 import onednn
from mnv3.deploy import FORMATS, Choice, Optimized, fastest, optimize, runtime, timing
from mnv3.deploy.fastest import CANDIDATES


def seeded(name, **kwargs):
    return randomize(mnv3.create_model(name, **kwargs))


@pytest.fixture(scope="module")
def model():
    return net()


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-4 * max(1.0, b.abs().max().item()), rtol=0)


@pytest.mark.skipif(not onednn.available(), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mnv3_small_cifar", {}),
        ("mnv3_small_tf", {"se_order": "se-act", "in_chans": 1}),
        ("mnv3_large_minimal", {"in_chans": 1}),
    ],
)
def test_packed_for_onednn(name, options):
    model = seeded(name, num_classes=7, **options)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    packed = onednn.pack(model, torch.zeros(2, model.in_chans, 64, 64))
    with torch.inference_mode():
        for shape in ((2, 64, 64), (1, 64, 64), (3, 47, 33)):  # also those that it is not laid out for
            x = torch.randn(shape[0], model.in_chans, *shape[1:])
            close(packed(x), model(x))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in packed.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_not_packed():
    """Layers that the operator would compute otherwise: norms that are not folded, weights that are quantised."""
    for change in (
        lambda layer: setattr(layer, "norm", nn.GroupNorm(1, layer.conv.out_channels)),
        lambda layer: setattr(layer.conv, "__class__", type("Quantised", (nn.Conv2d,), {})),
    ):
        model = seeded("mnv3_small_cifar")
        change(model.blocks[3].expand)
        with pytest.raises(ValueError, match="in a layer of this model: oneDNN's convolution is plain"):
            onednn.pack(model, torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    "candidate",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("openvino", "tflite", "compile") else ())
        for name in CANDIDATES
    ],
)
def test_every_candidate(model, candidate):
    if candidate in FORMATS:
        needs(candidate)
    fast = optimize(model, batch=2, candidates=[candidate])
    assert fast.choice.candidate == candidate
    assert fast.choice.shape == (2, 3, 32, 32)
    assert list(fast.choice.milliseconds) == [candidate]
    for x in (torch.randn(2, 3, 32, 32), torch.randn(5, 3, 32, 32), torch.randn(1, 3, 40, 33)):
        with torch.inference_mode():
            close(fast(x), model(x))
    again = pickle.loads(pickle.dumps(fast.choice))
    assert again == fast.choice
    x = torch.randn(2, 3, 32, 32)
    close(optimize(model, choice=again)(x), fast(x))


def test_takes_the_fastest(model, monkeypatch):
    took = {"eager": 3.0, "fused": 1.0, "onednn": 2.0}
    monkeypatch.setattr(fastest, "interleaved", lambda runs, x: {name: [took[name]] for name in runs})
    choice = optimize(model, candidates=["eager", "fused", "onednn"]).choice
    assert choice == Choice("fused", (1, 3, 32, 32), torch.get_num_threads(), took)


def test_a_candidate_with_other_logits_is_left_out(model, monkeypatch):
    monkeypatch.setitem(CANDIDATES, "fused", lambda model, x: lambda x: model(x) + 0.01)
    monkeypatch.setitem(CANDIDATES, "onednn", lambda model, x: lambda x: model(x) * torch.nan)
    assert list(optimize(model, candidates=["eager", "fused", "onednn"]).choice.milliseconds) == ["eager"]


def test_runtimes_that_are_missing_are_left_out_unless_asked_for(model, monkeypatch):
    for name in ("onnxruntime", "openvino", "ai_edge_litert"):
        monkeypatch.setitem(sys.modules, name, None)
    assert set(optimize(model).choice.milliseconds) <= {"eager", "fused", "onednn"}
    with pytest.raises(ImportError, match=r"pip install 'mnv3\[deploy\]'"):
        optimize(model, candidates=["onnx"])


def test_stays_in_evaluation_and_is_a_model_to_predict_with(model, tmp_path):
    fast = optimize(model, candidates=["fused"])
    assert isinstance(fast, Optimized)
    assert not fast.train().training
    assert not any(module.training for module in fast.modules())
    picture = tmp_path / "a.png"
    Image.new("RGB", (40, 50), "red").save(picture)
    (ours,), (theirs,) = mnv3.predict(fast, [picture]), mnv3.predict(model, [picture])
    assert [entry["index"] for entry in ours.topk] == [entry["index"] for entry in theirs.topk]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.train(), "eval mode"),
        (lambda m: m.half(), "float32"),
        (lambda m: m.to("meta"), "on the CPU"),
    ],
)
def test_refused(change, message):
    with pytest.raises(ValueError, match=message):
        optimize(change(seeded("mnv3_small_cifar")))


def test_unknown_candidate(model):
    with pytest.raises(ValueError, match="candidates: 'onx' is unknown. Did you mean 'onnx'"):
        optimize(model, candidates=["onx"])


def test_times_of_calls_in_turn():
    order = []
    runs = {name: lambda x, name=name: order.append(name) for name in "ab"}
    times = timing.interleaved(runs, torch.zeros(1), rounds=2, seconds=0.0)
    assert {name: len(found) for name, found in times.items()} == {"a": 2, "b": 2}
    assert "".join(order) == "aabb" * 3  # each turn: one call that does not count, and one that does


def test_threads_of_exported_candidates(model, monkeypatch):
    needs("onnx")
    given = []
    opener = runtime.OPENERS["onnx"]
    monkeypatch.setitem(runtime.OPENERS, "onnx", lambda file, threads: given.append(threads) or opener(file, threads))
    optimize(model, candidates=["onnx"])
    assert set(given) == {torch.get_num_threads()}
