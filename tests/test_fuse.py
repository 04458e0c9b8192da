"""fuse(): the same outputs from fewer operators."""

import pytest
import timm
import torch
from conftest import randomize
from torch import nn

import mnv3


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
    fused = mnv3.fuse(randomize(timm.create_model("mnv3_small")))
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
