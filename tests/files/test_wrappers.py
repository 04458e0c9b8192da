"""What trainers wrap a state dict in: the network inside is found under any name, and never one that nobody meant."""

import logging

import pytest
import torch

import mnv3
from mnv3 import WeightsError, convert_state_dict
from mnv3.files.wrappers import unwrap
from mnv3.model import MobileNetV3


@pytest.fixture(scope="module")
def other(timm_small):
    """Another copy: the average, the teacher."""
    return {key: value + 1 if value.is_floating_point() else value for key, value in timm_small.items()}


def prefixed(state_dict, *prefixes):
    return {"".join(prefixes) + key: value for key, value in state_dict.items()}


def compiled_by_block(state_dict):
    """As after `model.blocks[0] = torch.compile(model.blocks[0])`."""
    return {key.replace("blocks.0.", "blocks.0._orig_mod."): value for key, value in state_dict.items()}


WRAPPERS = {
    "plain": lambda sd: sd,
    "state_dict": lambda sd: {"state_dict": sd, "epoch": 3, "arch": "x"},
    "model": lambda sd: {"model": sd, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
    "model_ema": lambda sd: {"model": {}, "model_ema": sd},
    "ema": lambda sd: {"ema": sd},
    "torchvision ema": lambda sd: {"model_ema": prefixed(sd, "module.") | {"n_averaged": torch.tensor(5)}},
    "module": lambda sd: prefixed(sd, "module."),
    "compiled": lambda sd: prefixed(sd, "_orig_mod."),
    "compiled in parallel": lambda sd: prefixed(sd, "module.", "_orig_mod."),
    "parallel compiled": lambda sd: {"state_dict": prefixed(sd, "_orig_mod.", "module.")},
    "compiled block by block": compiled_by_block,
    "sharded": lambda sd: {key.replace("blocks.", "blocks._fsdp_wrapped_module."): v for key, v in sd.items()},
    "DeepSpeed": lambda sd: {"module": sd, "buffer_names": []},
    "lightning": lambda sd: {"state_dict": prefixed(sd, "model."), "pytorch-lightning_version": "2"},
    "lightning with a loss": lambda sd: {"state_dict": prefixed(sd, "model.") | {"criterion.weight": torch.ones(9)}},
    "another name": lambda sd: {"state_dict": prefixed(sd, "net.backbone.")},
    "another dictionary": lambda sd: {"weights of May": {"it": sd}},
    "nested": lambda sd: {"state_dict": {"model": prefixed(sd, "module.")}},
    "an epoch among the tensors": lambda sd: sd | {"epoch": 3},
    "average of numbers": lambda sd: {"model": sd, "ema": {"decay": 0.999, "updates": 12}},
    "twice the same": lambda sd: {"state_dict": prefixed(sd, "model.") | prefixed(sd, "net.")},
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrapped_checkpoints(wrap, small, timm_small):
    expected = convert_state_dict(timm_small, small)
    found = convert_state_dict(wrap(timm_small), small)
    assert found.keys() == expected.keys() == small.state_dict().keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_which_weights_of_a_trainer(small, timm_small, other):
    for name in ("state_dict_ema", "model_ema", "ema"):
        checkpoint = {"state_dict": timm_small, name: other}
        for use_ema, expected in ((None, other), (True, other), (False, timm_small)):
            found = convert_state_dict(checkpoint, small, use_ema=use_ema)
            assert torch.equal(found["head.bias"], expected["conv_head.bias"])
    with pytest.raises(WeightsError, match="use_ema=True, but the checkpoint has none of state_dict_ema, model_ema"):
        convert_state_dict({"state_dict": timm_small}, small, use_ema=True)
    with pytest.raises(WeightsError, match="use_ema=False, but the checkpoint has averaged weights alone, model_ema"):
        convert_state_dict({"model_ema": other}, small, use_ema=False)


@pytest.mark.parametrize("name", ["ema_model.", "model_ema.module."])
def test_an_average_in_the_same_dictionary(small, timm_small, other, name):
    """As a LightningModule has it that keeps its average as a module."""
    checkpoint = {"state_dict": prefixed(timm_small, "model.") | prefixed(other, name)}
    for use_ema, expected in ((None, other), (True, other), (False, timm_small)):
        found = convert_state_dict(checkpoint, small, use_ema=use_ema)
        assert torch.equal(found["head.bias"], expected["conv_head.bias"])


LEFT_OUT = {
    "loss": (
        lambda sd, other: {"state_dict": prefixed(sd, "model.") | {"criterion.weight": torch.ones(9)}},
        ["took the weights of state_dict > model.; left out beside them: criterion.weight"],
    ),
    "teacher": (
        lambda sd, other: {"state_dict": prefixed(sd, "model.") | prefixed(other, "teacher.")},
        ["took the weights of state_dict > model.; not those of state_dict > teacher."],
    ),
    "best": (
        lambda sd, other: {"state_dict": sd, "best_state_dict": other},
        ["took the weights of state_dict; not those of best_state_dict"],
    ),
    "average of numbers": (
        lambda sd, other: {"model": sd, "ema": {"decay": 0.999, "updates": 12}},
        ["ema holds no averaged weights, only decay, updates"],
    ),
    "a number for a name": (
        lambda sd, other: sd | {7: torch.ones(1)},
        ["took the weights of the outermost dictionary; left out beside them: a key of type int"],
    ),
    "a name without an end": (
        lambda sd, other: sd | {"x" * 1000: torch.ones(1)},
        [f"took the weights of the outermost dictionary; left out beside them: {'x' * 60}...{'x' * 30}"],
    ),
    "average": (lambda sd, other: {"state_dict": sd, "state_dict_ema": sd, "optimizer": {}}, []),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_left_out_is_named(caplog, timm_small, other, name):
    make, notices = LEFT_OUT[name]
    with caplog.at_level(logging.WARNING, "mnv3"):
        found = unwrap(make(timm_small, other))
    assert found.keys() == timm_small.keys()
    assert all(torch.equal(found[key], timm_small[key]) for key in found)
    assert [record.getMessage() for record in caplog.records] == notices


TWO = {
    "prefixes": (lambda a, b: prefixed(a, "student.") | prefixed(b, "teacher."), "student. and teacher."),
    "dictionaries": (lambda a, b: {"stage1": a, "stage2": b}, "stage1 and stage2"),
    "two of the usual": (lambda a, b: {"state_dict": a, "model": b}, "state_dict and model"),
    "two averages": (lambda a, b: {"model_ema": a, "state_dict_ema": b}, "model_ema and state_dict_ema"),
    "halves": (lambda a, b: {"state_dict": a, "model": {k: v.half() for k, v in a.items()}}, "state_dict and model"),
    "one in parallel": (lambda a, b: {"net": prefixed(a, "x.") | prefixed(b, "module.y.")}, "net > x. and net > y."),
}


@pytest.mark.parametrize("name", TWO)
def test_two_networks_are_refused_with_both_names(timm_small, other, name):
    make, names = TWO[name]
    with pytest.raises(WeightsError, match=f"the checkpoint has two networks, {names}, and nothing says which is"):
        unwrap(make(timm_small, other))


def test_a_network_that_is_not_whole_is_not_found(timm_small):
    """A prefix is taken only where a known network lies under it."""
    cut = {key: value for key, value in timm_small.items() if not key.startswith("blocks.0.")}
    with pytest.raises(WeightsError, match="not a MobileNetV3 that mnv3 knows: keys model.conv_stem.weight"):
        unwrap({"state_dict": prefixed(cut, "model.")})
    with pytest.raises(WeightsError, match="no state dict in the checkpoint: it has a key of type int, b; expected"):
        unwrap({3: timm_small, "b": 1})
    with pytest.raises(WeightsError, match="extra of the file.weight not in the model"):
        convert_state_dict(prefixed(timm_small | {"extra.weight": torch.ones(3)}, "model."), MobileNetV3("small"))


def circle():
    a = {"a": 1}
    a["state_dict"] = a
    return a


def two_in_a_circle():
    a, b = {"x": 1}, {}
    a["model"], b["net"] = b, a
    return {"state_dict": a}


def deep():
    outermost = inner = {}
    for _ in range(100_000):
        inner["state_dict"] = inner = {}
    return outermost


def wide():
    """2**60 ways through 60 dictionaries."""
    inner = {}
    for _ in range(60):
        inner = {"model": inner, "net": inner}
    return inner


@pytest.mark.parametrize("make", [circle, two_in_a_circle, deep, wide])
def test_dictionaries_that_have_no_end(make):
    """Issue 13: an endless loop in 1.2 KB."""
    with pytest.raises(WeightsError, match="no state dict in the checkpoint: it has"):
        unwrap(make())


def test_names_without_an_end(timm_small):
    with pytest.raises(WeightsError, match="no state dict in the checkpoint") as info:
        unwrap(prefixed(timm_small, *["module."] * 3000))
    assert len(str(info.value)) < 1000
    with pytest.raises(WeightsError, match="more than 100 networks"):
        unwrap({f"{i}": timm_small for i in range(200)})


def test_a_checkpoint_in_a_file_names_what_it_leaves_out(tmp_path, caplog, timm_small):
    """Report F2-13: class weights in the loss of a LightningModule."""
    checkpoint = {"state_dict": prefixed(timm_small, "model.") | {"criterion.weight": torch.ones(1000)}, "epoch": 2}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    model = mnv3.load_checkpoint(tmp_path / "last.ckpt", model="mnv3_small")
    expected = convert_state_dict(timm_small, model)
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    assert "left out beside them: criterion.weight" in caplog.text
