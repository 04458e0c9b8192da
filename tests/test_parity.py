"""Equal outputs to independent implementations: timm's, torchvision's, and d-li14's layout; in float64 to 1e-9."""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from conftest import randomize
from ports import DLi14, double

from mnv3 import arch, convert_state_dict
from mnv3.layers import ConvNormAct
from mnv3.model import MobileNetV3

SIZES = [(64, 64), (97, 131), (33, 32)]
TIMM = {
    "mobilenetv3_large_100": "mnv3_large",
    "mobilenetv3_large_075": "mnv3_large_075",
    "mobilenetv3_small_100": "mnv3_small",
    "mobilenetv3_small_075": "mnv3_small_075",
    "mobilenetv3_small_050": "mnv3_small_050",
    "tf_mobilenetv3_large_100": "mnv3_large_tf",
    "tf_mobilenetv3_large_075": "mnv3_large_075_tf",
    "tf_mobilenetv3_large_minimal_100": "mnv3_large_minimal_tf",
    "tf_mobilenetv3_small_100": "mnv3_small_tf",
    "tf_mobilenetv3_small_075": "mnv3_small_075_tf",
    "tf_mobilenetv3_small_minimal_100": "mnv3_small_minimal_tf",
}


def same_outputs(ours, theirs):
    """The same logits, and features, at several sizes, on real numbers of a picture's range."""
    generator = torch.Generator().manual_seed(2)
    with torch.inference_mode():
        for size in SIZES:
            x = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
            expected, logits = theirs(x), ours(x)
            assert expected.std() > 1e-3, "the reference is degenerate: equality would prove nothing"
            assert (logits - expected).abs().max() <= 1e-9 * expected.abs().max()
            if hasattr(theirs, "forward_features"):
                a, b = ours.forward_features(x), theirs.forward_features(x)
                assert (a - b).abs().max() <= 1e-9 * b.abs().max()


@pytest.mark.parametrize("theirs", TIMM)
def test_timm(theirs):
    reference = double(randomize(timm.create_model(theirs)))
    model = double(timm.create_model(TIMM[theirs]))
    model.load_state_dict(convert_state_dict(reference.state_dict(), model))
    same_outputs(model, reference)


@pytest.mark.parametrize(
    ("theirs", "head"),
    [
        ("mobilenetv3_large_100", {"num_classes": 7, "global_pool": "max"}),
        ("mobilenetv3_small_050", {"num_classes": 0}),
        ("tf_mobilenetv3_small_100", {"in_chans": 1}),
    ],
    ids=str,
)
def test_timm_with_another_head(theirs, head):
    reference = double(randomize(timm.create_model(theirs, **head)))
    model = double(timm.create_model(TIMM[theirs], **head))
    model.load_state_dict(convert_state_dict(reference.state_dict(), model))
    x = torch.randn(2, head.get("in_chans", 3), 80, 80, dtype=torch.float64)
    torch.testing.assert_close(model(x), reference(x), rtol=1e-9, atol=1e-9)


def torchvision_table(size, width, reduced_tail, dilated):
    table = arch.SMALL if size == "small" else arch.LARGE
    table = arch.reduce_tail(table) if reduced_tail else table
    table = arch.dilate(table) if dilated else table
    return arch.scale_torchvision(table, width)


@pytest.mark.parametrize("size", ["large", "small"])
@pytest.mark.parametrize(
    ("width", "reduced_tail", "dilated"),
    [
        *((width, False, False) for width in (0.35, 0.5, 0.75, 1.0, 1.4)),
        (1.0, True, False),
        (1.0, False, True),
        (0.5, True, True),
    ],
)
def test_torchvision(size, width, reduced_tail, dilated):
    make = getattr(torchvision.models, f"mobilenet_v3_{size}")
    reference = double(randomize(make(width_mult=width, reduced_tail=reduced_tail, dilated=dilated)))
    model = double(MobileNetV3(torchvision_table(size, width, reduced_tail, dilated)))
    model.load_state_dict(convert_state_dict(reference.state_dict(), model))
    same_outputs(model, reference)


@pytest.mark.parametrize(("fixed", "se_order"), [(False, "se-act-expanded"), (True, "act-se")])
@pytest.mark.parametrize(("table", "width"), [("large", 0.75), ("small", 1.0)])
def test_d_li14(table, width, fixed, se_order):
    reference = double(randomize(DLi14(arch.scale(arch.as_arch(table), width), fixed=fixed)))
    model = double(MobileNetV3(table, width=width, se_order=se_order))
    model.load_state_dict(convert_state_dict(reference.state_dict(), model))
    same_outputs(model, reference)


def test_se_before_the_activation_in_every_block():
    """'se-act' against the arithmetic written out, block by block."""
    model = double(randomize(MobileNetV3("small", se_order="se-act")))
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    act = {"RE": F.relu, "HS": lambda x: x * F.relu6(x + 3) / 6}

    def conv(layer: ConvNormAct, x):
        norm = layer.norm
        x = F.conv2d(x, layer.conv.weight, None, layer.conv.stride, layer.conv.padding, groups=layer.conv.groups)
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0, 1e-5)

    with torch.inference_mode():
        y = act["HS"](conv(model.stem, x))
        for block, row, cin in zip(model.blocks, model.arch.rows, model.arch.inputs, strict=True):
            z = y if row.exp == cin else act[row.act](conv(block.expand, y))
            z = conv(block.depthwise, z)
            if row.se:
                gate = F.relu(F.conv2d(z.mean((2, 3), keepdim=True), block.se.squeeze.weight, block.se.squeeze.bias))
                gate = F.conv2d(gate, block.se.excite.weight, block.se.excite.bias)
                z = z * F.relu6(gate + 3) / 6
            z = conv(block.project, act[row.act](z))
            y = z + y if row.stride == 1 and cin == row.out else z
        torch.testing.assert_close(model.forward_features(x), act["HS"](conv(model.last, y)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("theirs", ["mobilenetv3_small_100", "tf_mobilenetv3_small_100"])
def test_gradients_are_timms(theirs):
    """In training mode, on batch statistics: one step moves both models alike."""
    reference = randomize(timm.create_model(theirs)).double().train()
    model = timm.create_model(TIMM[theirs]).double().train()
    model.load_state_dict(convert_state_dict(reference.state_dict(), model, bn_eps=1e-5))
    for m in (reference, model):  # folding eps moves running_var, so training needs the same eps in both
        for module in m.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 1e-5
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    for m in (reference, model):
        m(x).square().mean().backward()
    theirs_by_ours = convert_state_dict(
        {n: p.grad for n, p in reference.named_parameters()} | dict(reference.named_buffers()),
        model,
        bn_eps=1e-5,
    )
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, theirs_by_ours[name], rtol=1e-7, atol=1e-10, msg=name)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, theirs_by_ours[name], rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [1, 2, 7, 8, 224, 225])
def test_same_padding_is_tensorflows(kernel, size):
    """ceil(n / 2) outputs, the odd pixel at the end: https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2."""
    layer = ConvNormAct(1, 1, kernel=kernel, stride=2, pad_type="same").conv
    torch.nn.init.ones_(layer.weight)
    x = torch.arange(1.0, size + 1).square().repeat(size, 1)[None, None]  # rows alike: what is summed tells the columns
    total = max((-(-size // 2) - 1) * 2 + kernel - size, 0)
    padded = F.pad(x, [total // 2, total - total // 2] * 2)
    torch.testing.assert_close(layer(x), F.conv2d(padded, layer.weight, stride=2))
    assert layer(x).shape[-1] == -(-size // 2)


def test_activations_at_their_corners():
    from mnv3.layers import ACTIVATION, SqueezeExcite

    x = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    exact = x * (x + 3).clamp(0, 6) / 6
    torch.testing.assert_close(ACTIVATION["HS"]()(x), exact, rtol=0, atol=1e-15)
    torch.testing.assert_close(SqueezeExcite(8, 8).gate(x), (x + 3).clamp(0, 6) / 6, rtol=0, atol=1e-15)
    corners = torch.tensor([-3.0, 0.0, 3.0], requires_grad=True)
    values = ACTIVATION["HS"]()(corners)
    assert values.tolist() == [0, 0, 3]
    values.sum().backward()
    assert corners.grad.isfinite().all()


def test_eps_matters_so_folding_is_needed():
    """Weights trained with eps 1e-3 give other logits under 1e-5 (report A12)."""
    reference = randomize(timm.create_model("mobilenetv3_small_100", bn_eps=1e-3)).double()
    model = timm.create_model("mnv3_small").double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    model.load_state_dict(convert_state_dict(reference.state_dict(), model))
    assert (model(x) - reference(x)).abs().max() > 1e-4
    model.load_state_dict(convert_state_dict(reference.state_dict(), model, bn_eps=1e-3))
    torch.testing.assert_close(model(x), reference(x), rtol=1e-9, atol=1e-9)
