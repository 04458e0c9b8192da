"""fuse(): the same outputs from fewer operators."""

import copy

import pytest
import timm
import torch
from conftest import randomize
from exports import net
from safetensors.torch import load_file
from timm.utils import freeze, unfreeze
from torch import nn
from torch.nn.utils import parametrize, prune
from torchvision.ops.misc import FrozenBatchNorm2d

import mnv3
from mnv3.convert import writing
from mnv3.files.checkpoint import digest


def test_equal_outputs(arch_name):
    model = randomize(timm.create_model(arch_name))
    fused = mnv3.fuse(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()), "the original is untouched"
    x = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        expected, found = model(x), fused(x)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    exact = mnv3.fuse(model.double())
    with torch.inference_mode():
        torch.testing.assert_close(exact(x.double()), model(x.double()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["tf_mobilenetv3_small_100.in1k", "tf_mobilenetv3_large_minimal_100.in1k"])
def test_real_logits_to_1e_5(shared, name):
    model = mnv3.load_checkpoint(shared / "weights" / "hub" / "timm" / name).eval()
    x = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(mnv3.fuse(model)(x), model(x), rtol=0, atol=1e-5)


def test_feature_extractors_can_be_fused():
    features = randomize(timm.create_model("mnv3_small", features_only=True))
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for found, expected in zip(mnv3.fuse(features)(x), features(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_fused_model_can_be_scripted_and_exported():
    fused = mnv3.fuse(net())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(fused)(x), fused(x))
        torch.testing.assert_close(torch.export.export(fused, (x,)).module()(x), fused(x))


def test_what_cannot_be_fused():
    with pytest.raises(ValueError, match="needs a model in eval mode.*model.eval"):
        mnv3.fuse(timm.create_model("mnv3_small"))
    fused = mnv3.fuse(timm.create_model("mnv3_small").eval())
    with pytest.raises(ValueError, match="no batch norm of mnv3 in this MobileNetV3: is it fused already"):
        mnv3.fuse(fused)
    with pytest.raises(ValueError, match="no batch norm of mnv3 in this ResNet"):
        mnv3.fuse(timm.create_model("resnet18").eval())


STEPS = {
    "all but the classifier": lambda model: freeze(model, [n for n, _ in model.named_children() if n != "classifier"]),
    "some blocks": lambda model: freeze(model, ["stem", "blocks.0", "blocks.3"]),
    "one norm": lambda model: freeze(model, ["blocks.2.project.norm"]),
    "thawed again": lambda model: (freeze(model), unfreeze(model)),
    "SyncBatchNorm": nn.SyncBatchNorm.convert_sync_batchnorm,
}


@pytest.mark.parametrize("step", STEPS)
def test_frozen_norms(tmp_path, step):
    """As timm.utils.freeze and torchvision's detection models leave them: folded, saved, exported."""
    model = copy.deepcopy(net())
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = model(x)
    STEPS[step](model)
    kinds = [type(module) for module in model.modules()]
    with torch.inference_mode():
        torch.testing.assert_close(mnv3.fuse(model)(x), expected, rtol=1e-4, atol=1e-5)
    exported = mnv3.deploy.export(model, tmp_path / "net.torchscript", to="torchscript")
    assert exported.difference < 1e-4
    fast = mnv3.deploy.optimize(model, candidates=["fused"])
    folder = mnv3.save(model, tmp_path / "net")
    assert [type(module) for module in model.modules()] == kinds
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mnv3.deploy.load(exported.file)(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mnv3.load_checkpoint(folder).eval()(x), expected, rtol=1e-5, atol=1e-6)
    saved = load_file(folder / "model.safetensors")
    assert all(saved[key] == 0 for key in saved if key.endswith("num_batches_tracked"))
    assert saved.keys() == net().state_dict().keys()
    assert mnv3.deploy.load(exported.file).metadata["sha256"] == digest(folder / "model.safetensors")


def test_another_eps_reaches_frozen_norms():
    model = randomize(mnv3.create_model("mnv3_small_cifar"))
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = model(x)
    freeze(model, ["blocks.0", "blocks.3"])
    mnv3.set_bn_eps(model, 1e-3)
    frozen = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert len(frozen) > 3
    assert {module.eps for module in frozen} == {1e-3}
    with torch.inference_mode():
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_frozen_weights_for_timm():
    model = randomize(mnv3.create_model("mnv3_small", num_classes=3))
    expected = writing.export_state_dict(model, "timm")
    freeze(model)
    torch.testing.assert_close(writing.export_state_dict(model, "timm"), expected, rtol=0, atol=0)


def prune_last(model):
    prune.l1_unstructured(model.blocks[1].project.conv, "weight", amount=0.3)


def parametrize_last(model):
    parametrize.register_parametrization(model.blocks[1].project.conv, "weight", nn.Identity())


@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize(("change", "advice"), [(prune_last, "prune.remove"), (parametrize_last, "parametrizations")])
def test_weights_that_are_computed_in_every_call(tmp_path, change, advice, with_gradients):
    model = copy.deepcopy(net())
    change(model)
    with torch.set_grad_enabled(with_gradients):
        expected = model(torch.ones(1, 3, 32, 32)).detach()
    for use in (
        mnv3.fuse,
        mnv3.deploy.optimize,
        lambda model: mnv3.deploy.export(model, tmp_path / "net.onnx", to="onnx"),
        lambda model: mnv3.save(model, tmp_path / "net"),
        lambda model: mnv3.deploy.quantize(model, tmp_path / "net.onnx", to="onnx", calibrate=tmp_path),
    ):
        with pytest.raises(ValueError, match=rf"^blocks.1.project.conv.weight is computed anew.*{advice}"):
            use(model)
    assert not list(tmp_path.iterdir())
    layer = model.blocks[1].project.conv
    if change is prune_last:
        prune.remove(layer, "weight")
    else:
        parametrize.remove_parametrizations(layer, "weight")
    with torch.inference_mode():
        torch.testing.assert_close(mnv3.fuse(model)(torch.ones(1, 3, 32, 32)), expected, rtol=1e-4, atol=1e-5)
