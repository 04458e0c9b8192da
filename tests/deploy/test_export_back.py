"""Our weights in timm's and torchvision's models: loaded strictly, the same outputs, and back again."""

import pytest
import timm
import torch
import torchvision
from conftest import randomize
from test_parity import TIMM, double, same_outputs, torchvision_table

import mnv3
from mnv3 import convert_state_dict
from mnv3.convert.writing import export_state_dict, target, write
from mnv3.model import MobileNetV3


def loaded(model, to):
    """Their model with our weights, in float64."""
    theirs = double(target(model, to).build())
    theirs.load_state_dict(export_state_dict(model, to), strict=True)
    return theirs.eval()


@pytest.mark.parametrize(("theirs", "ours"), TIMM.items())
def test_timm(theirs, ours):
    model = double(randomize(mnv3.create_model(ours)))
    assert target(model, "timm").name == theirs
    same_outputs(model, loaded(model, "timm"))


HEADS = [{"num_classes": 7}, {"num_classes": 0}, {"in_chans": 1}, {"global_pool": "max"}]


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_timm_with_another_head(head):
    model = double(randomize(mnv3.create_model("mnv3_small_tf", **head)))
    reference = loaded(model, "timm")
    x = torch.randn(2, head.get("in_chans", 3), 80, 80, dtype=torch.float64)
    torch.testing.assert_close(reference(x), model(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", ["large", "small"])
@pytest.mark.parametrize(
    ("width", "reduced", "dilated"), [(1.0, False, False), (0.75, True, False), (0.35, False, True), (1.4, True, True)]
)
def test_torchvision(size, width, reduced, dilated):
    model = double(randomize(MobileNetV3(torchvision_table(size, width, reduced, dilated), num_classes=9)))
    same_outputs(model, loaded(model, "torchvision"))


def test_the_call_that_builds_theirs():
    model = MobileNetV3(torchvision_table("small", 0.75, True, False), num_classes=9)
    expected = "torchvision.models.mobilenet_v3_small(width_mult=0.75, reduced_tail=True, num_classes=9)"
    assert str(target(model, "torchvision")) == expected
    model = mnv3.create_model("mnv3_large_075", num_classes=9)
    assert str(target(model, "timm")) == "timm.create_model('mobilenetv3_large_075', num_classes=9)"


def test_there_and_back():
    """Bit-equal where no eps differs; variances to a rounding of eps where one does."""
    for theirs, ours, to in (
        (timm.create_model("mobilenetv3_small_100"), "mnv3_small", "timm"),
        (timm.create_model("tf_mobilenetv3_small_100"), "mnv3_small_tf", "timm"),
        (torchvision.models.mobilenet_v3_small(), "mnv3_small", "torchvision"),
    ):
        before = randomize(theirs).state_dict()
        model = mnv3.create_model(ours)
        model.load_state_dict(convert_state_dict(before, model))
        after = export_state_dict(model, to)
        assert list(after) == list(before)
        for key, value in before.items():
            assert after[key].dtype == value.dtype
            if (to == "timm" and "tf_" not in theirs.default_cfg["architecture"]) or "running_var" not in key:
                assert torch.equal(after[key], value), key
            else:
                torch.testing.assert_close(after[key], value, rtol=2e-7, atol=1e-10)


def test_back_and_there():
    """Our weights survive timm's form: what we read of it is what we wrote."""
    model = randomize(mnv3.create_model("mnv3_large_tf"))
    again = convert_state_dict(export_state_dict(model, "timm"), mnv3.create_model("mnv3_large_tf"))
    for key, value in model.state_dict().items():
        torch.testing.assert_close(again[key], value, rtol=2e-7, atol=0)


def test_no_room_for_their_eps():
    model = randomize(mnv3.create_model("mnv3_small"))
    model.blocks[3].expand.norm.running_var[:5] = 1e-4
    model.last.norm.running_var[7] = 0
    with pytest.raises(ValueError, match=r"^6 channels have a variance below 0.001, the eps of torchvision's"):
        export_state_dict(model, "torchvision")
    export_state_dict(model, "timm")  # its eps is ours
    model = double(randomize(mnv3.create_model("mnv3_small")))
    mnv3.set_bn_eps(model, 1e-3)  # as finetune leaves it; then variances go over as they are
    model.last.norm.running_var[7] = 1e-4
    same_outputs(model, loaded(model, "torchvision"))


def test_a_variance_of_zero_survives():
    """TensorFlow's and torchvision's weights have channels that are off."""
    theirs = randomize(torchvision.models.mobilenet_v3_small())
    theirs.features[0][1].running_var[:4] = torch.tensor([0, 1e-12, 1e-30, 1e-9])
    model = mnv3.create_model("mnv3_small")
    model.load_state_dict(convert_state_dict(theirs.state_dict(), model))
    found = export_state_dict(model, "torchvision")["features.0.1.running_var"]
    assert (found >= 0).all()
    torch.testing.assert_close(found[:4], theirs.features[0][1].running_var[:4], rtol=0, atol=2e-10)


@pytest.mark.parametrize(
    ("name", "options", "to", "message"),
    [
        ("mnv3_small_cifar", {}, "timm", "timm has no model like this mnv3_small_cifar: symmetric padding, 11 blocks"),
        ("mnv3_small_cifar", {}, "torchvision", "torchvision has no model like this mnv3_small_cifar: "),
        ("mnv3_large_minimal", {}, "timm", "timm has no model like this mnv3_large_minimal"),
        ("mnv3_small_tf", {}, "torchvision", "no model like this mnv3_small_tf: TensorFlow's padding"),
        ("mnv3_small_075", {}, "torchvision", "torchvision has no model like this mnv3_small_075"),
        ("mnv3_small", {"width": 1.3}, "timm", "timm has no model like this mnv3_small: .* 24 channels of the stem"),
        ("mnv3_small", {"in_chans": 1}, "torchvision", "1 input channels"),
        ("mnv3_small", {"num_classes": 0}, "torchvision", "0 classes"),
        ("mnv3_small", {"global_pool": "max"}, "torchvision", "pooling 'max'"),
        ("mnv3_small", {"se_order": "se-act"}, "timm", "in the paper's order alone; the model has 'se-act'"),
        ("mnv3_small", {}, "tim", "to='tim'. Did you mean 'timm'"),
    ],
)
def test_what_they_do_not_have(name, options, to, message):
    with pytest.raises(ValueError, match=message):
        export_state_dict(mnv3.create_model(name, **options), to)


def test_file(tmp_path):
    """timm and torchvision read the file as they read their own."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    file = tmp_path / "new" / "out.safetensors"
    for name, to in (("mnv3_small_tf", "timm"), ("mnv3_large", "torchvision")):
        model = randomize(mnv3.create_model(name))
        found = write(model, to, file, exist_ok=True)
        if to == "timm":
            theirs = timm.create_model(found.name, checkpoint_path=str(file)).eval()
        else:
            theirs = torchvision.models.mobilenet_v3_large().eval()
            theirs.load_state_dict(load_file(file))
        x = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(theirs(x), model(x), rtol=1e-4, atol=1e-5)
        with safe_open(file, "pt") as opened:
            assert opened.metadata()["load with"] == str(found)
    before = file.read_bytes()
    with pytest.raises(FileExistsError, match="out.safetensors exists"):
        write(model, "torchvision", file)
    with pytest.raises(ValueError, match=r"give a name that ends in .safetensors"):
        write(model, "torchvision", tmp_path / "out.pth")
    with pytest.raises(ValueError, match="timm has no model like this"):
        write(mnv3.create_model("mnv3_small_cifar"), "timm", file, exist_ok=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "out.safetensors"]
    assert file.read_bytes() == before


def test_changed_models():
    with pytest.raises(ValueError, match=r"before fuse\(\)"):
        export_state_dict(mnv3.fuse(mnv3.create_model("mnv3_small").eval()), "timm")
    with pytest.raises(ValueError, match="cannot take this Linear: only a whole mnv3.MobileNetV3"):
        export_state_dict(torch.nn.Linear(2, 2), "timm")


def test_published_weights(shared):
    """Google's own weights, as timm has them, come back as they were."""
    from safetensors.torch import load_file

    for name in ("tf_mobilenetv3_small_100", "tf_mobilenetv3_large_minimal_100"):
        before = load_file(shared / "weights" / "hub" / "timm" / f"{name}.in1k" / "model.safetensors")
        model = mnv3.create_model(TIMM[name])
        model.load_state_dict(convert_state_dict(before, model))
        after = export_state_dict(model, "timm")
        assert before.keys() <= after.keys()
        for key, value in before.items():
            torch.testing.assert_close(after[key], value, rtol=2e-7, atol=1e-10 if "running_var" in key else 0)
