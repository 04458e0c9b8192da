"""What does not fit is refused with a message that says why."""

import logging

import pytest
import timm
import torch
import torchvision
from conftest import randomize
from ports import DLi14

from mnv3 import WeightsError, arch, convert_state_dict
from mnv3.model import MobileNetV3


def test_our_own_state_dict_is_unchanged(small):
    own = randomize(MobileNetV3("small")).state_dict()
    found = convert_state_dict(own, small)
    assert list(found) == list(own)
    assert all(torch.equal(found[key], own[key]) for key in own)
    twice = convert_state_dict(convert_state_dict(own, small), small)
    assert all(torch.equal(twice[key], own[key]) for key in own)


def test_conversion_leaves_its_input_alone(small):
    theirs = randomize(torchvision.models.mobilenet_v3_small()).state_dict()
    before = {key: value.clone() for key, value in theirs.items()}
    convert_state_dict(theirs, small)
    assert all(torch.equal(theirs[key], before[key]) for key in before)


def test_counters(small, timm_small):
    without = {key: value for key, value in timm_small.items() if not key.endswith("num_batches_tracked")}
    halved = {key: value.half() for key, value in timm_small.items()}
    for state_dict in (without, halved):
        model = MobileNetV3("small")
        model.load_state_dict(convert_state_dict(state_dict, model))
        assert model.stem.norm.num_batches_tracked.dtype == torch.int64
        assert model.stem.conv.weight.dtype == torch.float32


def test_half_precision_keeps_the_variance():
    theirs = randomize(torchvision.models.mobilenet_v3_small())
    model = MobileNetV3("small")
    found = convert_state_dict({key: value.half() for key, value in theirs.state_dict().items()}, model)
    key = "stem.norm.running_var"
    assert found[key].dtype == torch.float32
    torch.testing.assert_close(found[key], theirs.state_dict()["features.0.1.running_var"].half().float() + 1e-3 - 1e-5)


def test_other_classifier_is_left_out_with_one_notice(caplog, timm_small):
    model = MobileNetV3("small", num_classes=10)
    with caplog.at_level(logging.WARNING, "mnv3"):
        found = convert_state_dict(timm_small, model)
    assert [r.message for r in caplog.records] == [
        "classifier left at its initial values: the file has 1000 classes, the model 10; all else is loaded"
    ]
    assert set(model.state_dict()) - set(found) == {"classifier.weight", "classifier.bias"}
    assert torch.equal(found["head.weight"], timm_small["conv_head.weight"])
    caplog.clear()
    convert_state_dict(timm_small, MobileNetV3("small", num_classes=0))
    assert not caplog.records


def test_everything_but_the_classifier_is_bit_equal_through_timm(tmp_path, timm_small):
    file = tmp_path / "theirs.pth"
    torch.save(timm_small, file)
    model = timm.create_model("mnv3_small", pretrained=True, num_classes=10, pretrained_cfg_overlay={"file": str(file)})
    expected = convert_state_dict(timm_small, MobileNetV3("small"))
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]) != key.startswith("classifier."), key


@pytest.mark.parametrize("in_chans", [1, 2, 4, 6])
def test_other_channels_are_timms_adaptation_of_the_stem(tmp_path, timm_small, in_chans):
    """A function of the file's stem, the same with every seed (report C8), and as timm's own model makes it."""
    file = tmp_path / "theirs.pth"
    torch.save(timm_small, file)
    overlay = {"file": str(file)}
    stems = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = timm.create_model("mnv3_small", pretrained=True, in_chans=in_chans, pretrained_cfg_overlay=overlay)
        stems.append(model.stem.conv.weight)
    theirs = timm.create_model(
        "mobilenetv3_small_100", pretrained=True, in_chans=in_chans, pretrained_cfg_overlay=overlay
    )
    assert torch.equal(*stems)
    assert torch.equal(stems[0], theirs.conv_stem.weight)


def test_background_class(caplog, timm_small):
    with_background = timm_small | {
        f"classifier.{leaf}": torch.cat(
            [torch.full_like(timm_small[f"classifier.{leaf}"][:1], 9), timm_small[f"classifier.{leaf}"]]
        )
        for leaf in ("weight", "bias")
    }
    model = MobileNetV3("small")
    with pytest.raises(
        WeightsError, match="1001 classes, one more than the model.*background class.*drop_background=True"
    ):
        convert_state_dict(with_background, model)
    with caplog.at_level(logging.WARNING, "mnv3"):
        found = convert_state_dict(with_background, model, drop_background=True)
    assert torch.equal(found["classifier.weight"], timm_small["classifier.weight"])
    assert torch.equal(found["classifier.bias"], timm_small["classifier.bias"])
    assert "dropped class 0" in caplog.text
    kept = MobileNetV3("small", num_classes=1001)
    assert len(convert_state_dict(with_background, kept)["classifier.bias"]) == 1001


@pytest.mark.parametrize(("classes", "wanted"), [(10, 9), (1, 0), (5, 4)])
def test_one_class_more_is_not_always_a_background(caplog, classes, wanted):
    file = MobileNetV3("small", num_classes=classes).state_dict()
    assert "classifier.weight" not in convert_state_dict(file, MobileNetV3("small", num_classes=wanted))
    with pytest.raises(WeightsError, match=f"drop_background=True, but the file has {classes} classes, the model 3"):
        convert_state_dict(file, MobileNetV3("small", num_classes=3), drop_background=True)


def test_background_class_through_timm(tmp_path, timm_small):
    with_background = dict(timm_small)
    for leaf in ("weight", "bias"):
        rows = timm_small[f"classifier.{leaf}"]
        with_background[f"classifier.{leaf}"] = torch.cat([torch.full_like(rows[:1], 9), rows])
    torch.save(with_background, tmp_path / "tf.pth")
    overlay = {"file": str(tmp_path / "tf.pth")}
    with pytest.raises(WeightsError, match=r"tf.pth has 1001 classes, mnv3_small 1000: pass num_classes=1001"):
        timm.create_model("mnv3_small", pretrained=True, pretrained_cfg_overlay=overlay)
    overlay["label_offset"] = 1
    model = timm.create_model("mnv3_small", pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(model.classifier.weight, timm_small["classifier.weight"])


def refused(state_dict, model, *parts):
    with pytest.raises(WeightsError) as info:
        convert_state_dict(state_dict, model)
    message = str(info.value)
    assert "\n" not in message
    assert len(message) < 600
    for part in parts:
        assert part in message, message


def test_another_width_is_named(small):
    narrow = timm.create_model("mobilenetv3_small_075").state_dict()
    refused(
        narrow,
        small,
        "timm weights do not fit",
        "tensors are wrong",
        "The file fits mnv3_small_075 or mnv3_small_075_tf",
    )


def test_another_size_is_named(small):
    large = torchvision.models.mobilenet_v3_large().state_dict()
    refused(large, small, "torchvision weights do not fit", "The file fits mnv3_large")
    refused(small.state_dict(), MobileNetV3("large"), "mnv3 weights", "The file fits mnv3_small")
    refused(timm.create_model("tf_mobilenetv3_small_minimal_100").state_dict(), small, "mnv3_small_minimal")


def test_squeeze_width_of_early_ports(small):
    """A quarter that is not rounded to 8 (report A8)."""
    port = DLi14(arch.SMALL, fixed=True, squeeze=30).state_dict()
    refused(port, small, "d-li14 weights do not fit", "Only the squeeze-and-excite widths differ: the file has 30 for")


def test_se_order_of_the_file(small):
    port = DLi14(arch.SMALL).state_dict()
    refused(
        port, small, "the file has its squeeze-and-excite in se_order='se-act-expanded', the model in se_order='act-se'"
    )
    refused(DLi14(arch.SMALL, fixed=True).state_dict(), MobileNetV3("small", se_order="se-act"), "se_order='act-se'")
    for theirs in (timm.create_model("mobilenetv3_small_100"), torchvision.models.mobilenet_v3_small()):
        refused(theirs.state_dict(), MobileNetV3("small", se_order="se-act"), "the file has its squeeze-and-excite in")
    mixed = DLi14(arch.SMALL, fixed=True).state_dict()
    for key in [key for key in mixed if key.startswith("features.4.")]:
        del mixed[key]
    mixed |= {key: value for key, value in port.items() if key.startswith("features.4.")}
    refused(mixed, small, "an order that differs from block to block")


def test_first_d_li14_ports_are_another_network(small):
    port = DLi14(arch.SMALL).state_dict()
    port = {key.replace("classifier.3", "classifier.2"): value for key, value in port.items()}
    refused(port, small, "h-swish after the pool", "cannot be loaded")


def test_other_networks(small):
    refused(torchvision.models.resnet18().state_dict(), small, "not a MobileNetV3 that mnv3 knows", "conv1.weight")
    refused(torchvision.models.mobilenet_v2().state_dict(), small, "known layouts: mnv3, timm, torchvision, d-li14")
    refused(timm.create_model("mobilenetv2_100").state_dict(), small, "timm weights do not fit")
    refused(timm.create_model("efficientnet_b0").state_dict(), small, "timm weights do not fit")
    refused(timm.create_model("mobilenetv3_rw").state_dict(), MobileNetV3("large"), "file (18, 72, 1, 1)")
    refused({}, small, "no state dict in the checkpoint: it has nothing")
    refused({"epoch": 3, "best": 0.7}, small, "it has epoch, best; expected tensors, or one of")


def test_missing_and_unexpected_tensors(small, timm_small):
    lacking = {key: value for key, value in timm_small.items() if key != "blocks.1.0.bn2.weight"}
    refused(lacking, small, "1 of", "blocks.1.depthwise.norm.weight missing")
    refused(timm_small | {"extra.weight": torch.zeros(3)}, small, "extra of the file.weight not in the model")
    wrong = timm_small | {"conv_stem.weight": torch.zeros(16, 3, 5, 5)}
    refused(wrong, small, "stem.conv.weight: file (16, 3, 5, 5), model (16, 3, 3, 3)")


def test_a_mismatch_is_refused_also_for_another_number_of_classes():
    """Only the classifier may differ (report B7)."""
    refused(timm.create_model("mobilenetv3_small_075").state_dict(), MobileNetV3("small", num_classes=5), "do not fit")


def test_files_without_classifier(tmp_path):
    torch.save(MobileNetV3("small", num_classes=0).state_dict(), tmp_path / "body.pth")
    overlay = {"file": str(tmp_path / "body.pth")}
    with pytest.raises(WeightsError, match="body.pth has no classifier, mnv3_small 1000: pass num_classes=0"):
        timm.create_model("mnv3_small", pretrained=True, pretrained_cfg_overlay=overlay)
    for num_classes in (0, 5, 1000):
        model = timm.create_model(
            "mnv3_small", pretrained=True, num_classes=num_classes, pretrained_cfg_overlay=overlay
        )
        assert model.num_classes == num_classes


def test_file_decides_the_number_of_classes_only_when_asked(tmp_path):
    source = randomize(MobileNetV3("small", num_classes=37))
    torch.save(source.state_dict(), tmp_path / "37.pth")
    overlay = {"file": str(tmp_path / "37.pth")}
    with pytest.raises(WeightsError, match="has 37 classes, mnv3_small 1000: pass num_classes=37"):
        timm.create_model("mnv3_small", pretrained=True, pretrained_cfg_overlay=overlay)
    model = timm.create_model("mnv3_small", pretrained=True, num_classes=37, pretrained_cfg_overlay=overlay)
    assert torch.equal(model.classifier.weight, source.classifier.weight)
    features = timm.create_model("mnv3_small", pretrained=True, features_only=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(features.stem.conv.weight, source.stem.conv.weight)


def test_a_state_dict_of_ones_own_comes_before_any_file(monkeypatch, timm_small):
    """timm's pretrained_cfg_overlay=dict(state_dict=...): never the published weights in its place."""
    monkeypatch.setattr("mnv3.files.fetch.locate", lambda *args, **kwargs: pytest.fail("it went for a file"))
    expected = convert_state_dict(timm_small, MobileNetV3("small"))
    overlay = {"state_dict": timm_small}
    model = timm.create_model("mnv3_small", pretrained=True, pretrained_cfg_overlay=overlay)
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    assert "state_dict" not in model.pretrained_cfg
    narrow = {"state_dict": MobileNetV3("small", num_classes=7).state_dict()}
    with pytest.raises(WeightsError, match="the state dict has 7 classes, mnv3_small 1000: pass num_classes=7"):
        timm.create_model("mnv3_small", pretrained=True, pretrained_cfg_overlay=narrow)


def test_features_are_those_of_the_file(tmp_path):
    source = randomize(MobileNetV3("small"))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    features = timm.create_model(
        "mnv3_small", pretrained=True, features_only=True, pretrained_cfg_overlay={"file": str(tmp_path / "w.pth")}
    ).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for found, expected in zip(features(x), source.forward_intermediates(x, intermediates_only=True), strict=True):
            torch.testing.assert_close(found, expected)
