"""timm's model contract, over every registered name."""

import copy
import pickle
import re

import pytest
import timm
import torch
from conftest import randomize
from timm.models._features import FeatureGetterNet
from timm.models._manipulate import group_parameters
from torch import nn

from mnv3 import arch
from mnv3.model import MobileNetV3
from mnv3.timm_models import VARIANTS

SIZE = 64  # pixels; large enough for every tap to have its own resolution
KINDS = ("mnv3_large", "mnv3_small_tf", "mnv3_small_minimal", "mnv3_small_cifar")  # by default, where it takes seconds
KINDS_FIRST = pytest.mark.parametrize(
    "arch_name",
    [pytest.param(name, marks=() if name in KINDS else pytest.mark.slow) for name in VARIANTS],
    indirect=True,
)


def build(name, **kwargs):
    return timm.create_model(name, **kwargs)


@pytest.fixture(scope="module")
def model(arch_name):
    return randomize(build(arch_name))


@pytest.fixture
def x():
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def test_configuration_points_at_real_layers(arch_name, model):
    cfg = model.pretrained_cfg
    assert cfg is model.default_cfg
    assert cfg["architecture"] == arch_name
    assert model.get_submodule(cfg["first_conv"]).weight.shape == (model.arch.stem, 3, 3, 3)
    assert model.get_submodule(cfg["classifier"]).weight.shape == (cfg["num_classes"], model.head_hidden_size)
    assert model.num_classes == cfg["num_classes"] == VARIANTS[arch_name].num_classes
    size = cfg["input_size"][-1]
    assert cfg["pool_size"] == tuple(model.eval().forward_features(torch.zeros(1, 3, size, size)).shape[2:])


def test_widths_of_the_head(arch_name, model, x):
    small, width = "small" in arch_name, VARIANTS[arch_name].width
    assert model.num_features == (576 if small else 960) * width
    assert model.head_hidden_size == (1024 if small else 1280)
    with torch.inference_mode():
        features = model.forward_features(x)
        assert features.shape == (2, model.num_features, *(-(-SIZE // model.stride),) * 2)
        assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
        torch.testing.assert_close(model.forward_head(features), model(x))


def test_paper_order_inside_blocks(arch_name, model, x):
    """SE between depthwise and projection, on a pooled map of the expanded tensor, without batch norm (report A1)."""
    calls = []
    hooks = []
    for name, module in model.blocks.named_modules():
        if re.fullmatch(r"\d+\.(expand|depthwise|se|project|se\.squeeze)", name) and not isinstance(
            module, nn.Identity
        ):
            hooks.append(module.register_forward_hook(lambda m, i, o, n=name: calls.append((n, tuple(i[0].shape)))))
    with torch.inference_mode():
        model(x)
    for hook in hooks:
        hook.remove()
    expected = []
    for i, (row, cin) in enumerate(zip(model.arch.rows, model.arch.inputs, strict=True)):
        expected += [f"{i}.expand"] * (row.exp != cin) + [f"{i}.depthwise"]
        expected += [f"{i}.se.squeeze", f"{i}.se"] * row.se + [f"{i}.project"]
    assert [name for name, _ in calls] == expected
    for name, shape in calls:
        row = model.arch.rows[int(name.split(".")[0])]
        if name.endswith("se.squeeze"):
            assert shape == (2, row.exp, 1, 1)
    for name, module in model.named_modules():
        assert not (".se" in name and isinstance(module, nn.BatchNorm2d)), name
        assert not (isinstance(module, nn.Conv2d) and isinstance(module.padding, str)), name


def test_global_pool(arch_name, model, x):
    with torch.inference_mode():
        average = model(x)
        for pool in ("max", "fast"):
            pooled = randomize(build(arch_name, global_pool=pool))(x)
            assert pooled.shape == average.shape
            assert torch.allclose(pooled, average, atol=1e-4) == (pool == "fast")
        unpooled = randomize(build(arch_name, global_pool=""))
        maps = unpooled(x)
        side = -(-SIZE // unpooled.stride)
        assert maps.shape == (2, unpooled.num_classes, side, side)
        unpooled.reset_classifier(0)
        assert unpooled(x).shape == (2, unpooled.head_hidden_size, side, side)
        # one position of the map is what the pooled model makes of it alone
        corner = unpooled.forward_features(x)[..., :1, :1]
        torch.testing.assert_close(maps[..., :1, :1], model.forward_head(corner)[..., None, None])


def test_reset_classifier(arch_name):
    model, x = build(arch_name, dtype=torch.float64).eval(), torch.zeros(2, 3, 33, 33, dtype=torch.float64)
    for num_classes, pool in ((7, None), (0, None), (5, "max"), (0, ""), (3, "avg")):
        model.reset_classifier(num_classes, pool)
        out = model(x)
        side = -(-33 // model.stride)
        width = num_classes or model.head_hidden_size
        assert out.shape == ((2, width, side, side) if pool == "" else (2, width))
        assert out.dtype == torch.float64
        assert model.num_classes == num_classes
        assert not any(module.training for module in model.modules())
        if num_classes:
            assert model.get_classifier().in_features == model.head_hidden_size
        else:
            assert isinstance(model.get_classifier(), nn.Identity)


def test_features_only(arch_name, model, x):
    info = model.feature_info
    by_list = build(arch_name, features_only=True)
    by_list.load_state_dict(_flattened(model.state_dict(), by_list))
    getter = build(arch_name, features_only=True, feature_cls="getter")
    assert isinstance(getter, FeatureGetterNet)
    getter.model.load_state_dict({k: v for k, v in model.state_dict().items() if k in getter.model.state_dict()})
    with torch.inference_mode():
        maps, others = by_list.eval()(x), getter.eval()(x)
        last, intermediates = model.forward_intermediates(x)
        torch.testing.assert_close(last, model.forward_features(x))
    assert by_list.feature_info.channels() == [i["num_chs"] for i in info] == [m.shape[1] for m in maps]
    assert by_list.feature_info.reduction() == [i["reduction"] for i in info] == [SIZE // m.shape[2] for m in maps]
    for one, other, third in zip(maps, others, intermediates, strict=True):
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(one, third)


def _flattened(state_dict, features):
    """Our keys as timm's FeatureListNet has them, which flattens `blocks`."""
    state_dict = {re.sub(r"^blocks\.(\d+)", r"blocks_\1", key): value for key, value in state_dict.items()}
    return {key: value for key, value in state_dict.items() if key in features.state_dict()}


def test_features_only_indices(arch_name):
    taps = len(arch.taps(VARIANTS[arch_name].arch))
    last = build(arch_name, features_only=True, out_indices=(-1,), in_chans=1)
    assert [m.shape[1] for m in last(torch.zeros(2, 1, SIZE, SIZE))] == [last.feature_info.info[-1]["num_chs"]]
    with pytest.raises((AssertionError, IndexError)):
        build(arch_name, features_only=True, out_indices=(taps,))


def test_forward_intermediates_options(arch_name, model, x):
    with torch.inference_mode():
        everything = model.forward_intermediates(x, intermediates_only=True)
        hook = model.last.register_forward_hook(lambda *_: pytest.fail("it went past the deepest map"))
        first_and_third = model.forward_intermediates(x, indices=[2, 0], intermediates_only=True, stop_early=True)
        hook.remove()
        torch.testing.assert_close(first_and_third, [everything[0], everything[2]])
        torch.testing.assert_close(model.forward_intermediates(x, indices=2, intermediates_only=True), everything[-2:])
    with pytest.raises(ValueError, match="stop_early=True leaves no final map"):
        model.forward_intermediates(x, stop_early=True)
    with pytest.raises(ValueError, match="output_fmt='NLC'.*'NCHW'"):
        model.forward_intermediates(x, output_fmt="NLC")


def test_prune_intermediate_layers(arch_name, model, x):
    with torch.inference_mode():
        everything = model.forward_intermediates(x, intermediates_only=True)
        for i, expected in enumerate(everything):
            pruned = copy.deepcopy(model)
            assert pruned.prune_intermediate_layers([i]) == [i]
            assert pruned.num_features == expected.shape[1]
            torch.testing.assert_close(pruned.forward_intermediates(x, [i], intermediates_only=True)[0], expected)
            torch.testing.assert_close(pruned(x), expected)
            assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())


def test_grad_checkpointing(arch_name, x):
    model = build(arch_name)
    reference = copy.deepcopy(model)
    model.set_grad_checkpointing()
    for m in (model, reference):
        m.train()(x).square().mean().backward()
    for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_parameter_groups(arch_name, model):
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse), reverse=False)
        names = [name for group in groups.values() for name in group]
        assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    layers = {name: i for i, names in groups.items() for name in names}
    order = ["stem.conv.weight", "blocks.0.depthwise.conv.weight", "blocks.5.project.conv.weight"]
    assert sorted(order, key=layers.get) == order
    assert layers["classifier.weight"] == max(layers.values())
    assert model.no_weight_decay() == set()


def test_in_chans(arch_name):
    model = build(arch_name, in_chans=4).eval()
    assert model(torch.zeros(1, 4, 40, 33)).shape == (1, model.num_classes)


def test_every_parameter_gets_a_gradient(arch_name, x):
    model = build(arch_name, drop_rate=0.1, drop_path_rate=0.1).train()
    model(x).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_script_trace_fx(arch_name, model, x):
    """Also at another size: padding is computed in the graph, TensorFlow's too, which depends on the size."""
    odd = torch.randn(3, 3, 71, 90)
    with torch.no_grad():
        expected = [model(x), model(odd)]
        traced = torch.jit.trace(model, x, check_trace=False)
        for graph in (torch.jit.script(model), traced, torch.fx.symbolic_trace(model)):
            torch.testing.assert_close([graph(x), graph(odd)], expected)


def test_a_headless_model_can_be_scripted(x):
    model = build("mnv3_small_cifar", num_classes=0).eval()
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(model)(x), model(x))


@KINDS_FIRST
def test_export_with_any_size(arch_name, model):
    least = model.stride + 1
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("h", min=least), 3: torch.export.Dim("w", min=least)}
    program = torch.export.export(model, (torch.randn(2, 3, SIZE, SIZE),), dynamic_shapes={"x": sizes})
    other = torch.randn(3, 3, 71, 90)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(other), model(other))


@KINDS_FIRST
def test_compile_captures_one_graph(arch_name, model, x):
    torch._dynamo.reset()  # it counts the models of one class, and gives up after eight
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_compile_to_machine_code(x):
    model = randomize(build("mnv3_small_tf"))
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model)(x), model(x), atol=1e-4, rtol=1e-4)


def test_copies(arch_name, model, x):
    with torch.inference_mode():
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(twin(x), model(x))


def test_layouts_and_precisions(arch_name, model, x):
    with torch.inference_mode():
        expected = model(x)
        torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), expected)
        torch.testing.assert_close(copy.deepcopy(model).to(memory_format=torch.channels_last)(x), expected)
        for dtype, tolerance in ((torch.float64, 1e-4), (torch.bfloat16, 0.2)):
            out = copy.deepcopy(model).to(dtype)(x.to(dtype))
            assert out.dtype == dtype
            torch.testing.assert_close(out.float(), expected, atol=tolerance * expected.abs().max(), rtol=0)


def test_forward_leaves_the_input_alone_and_is_deterministic(arch_name, model, x):
    before = x.clone()
    with torch.inference_mode():
        first, second = model(x), model(x)
    assert torch.equal(first, second)
    assert torch.equal(x, before)
    assert first.is_contiguous()


def test_maps_that_leave_the_model_have_the_callers_layout(arch_name, model, x):
    """forward() goes over to channels_last inside; a map that a caller gets must take .view()."""
    with torch.inference_mode():
        for m in (model.forward_features(x), *model.forward_intermediates(x, intermediates_only=True)):
            assert m.is_contiguous()


@pytest.mark.parametrize("pretrained_cfg", [None, {"num_classes": 5, "input_size": (3, 96, 96)}])
def test_arguments_of_timm_are_accepted(arch_name, pretrained_cfg):
    model = build(
        arch_name,
        pretrained=False,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay={"num_classes": 5},
        drop_rate=0.1,
        checkpoint_path="",
        scriptable=True,
        exportable=True,
    )
    assert model.num_classes == 5
    with pytest.raises(TypeError, match="width_mult"):
        build(arch_name, width_mult=0.5)


def test_unpooled_head_still_loads(arch_name, model):
    assert build(arch_name, global_pool="").load_state_dict(model.state_dict()).missing_keys == []


BAD_VALUES = [
    ({"width": 0}, "width=0: expected a number above 0"),
    ({"num_classes": -1}, "num_classes=-1: expected a whole number of at least 0"),
    ({"num_classes": 2.5}, r"num_classes=2\.5: expected a whole number"),
    ({"in_chans": 0}, "in_chans=0: expected a whole number of at least 1"),
    ({"drop_rate": 1.0}, r"drop_rate=1\.0: expected a number from 0"),
    ({"drop_path_rate": -0.1}, r"drop_path_rate=-0\.1: expected a number from 0"),
    ({"global_pool": "gem"}, "global_pool='gem'.*'avg', 'max', 'avgmax', 'catavgmax'"),
    ({"bn_eps": 0}, "bn_eps=0: expected a number above 0"),
    ({"bn_momentum": 1.5}, r"bn_momentum=1\.5: expected a number above 0 and at most 1"),
    ({"bn_momentum": 0.1, "norm_layer": "groupnorm1"}, r"bn_momentum=0\.1: GroupNorm1 has no momentum"),
    ({"norm_layer": "lrn"}, "norm_layer='lrn': expected timm's name of a layer"),
    ({"act_layer": "sine"}, "act_layer='sine': expected timm's name of a layer"),
    ({"output_stride": 4}, "output_stride=4: expected one of 8, 16, 32"),
    ({"output_stride": 16, "arch": arch.cifar(arch.SMALL)}, "output_stride=16: the total stride of this table is 8"),
    ({"pad_type": "valid"}, "pad_type='valid'.*'', 'same'"),
    ({"se_order": "first"}, "se_order='first'.*'act-se', 'se-act', 'se-act-expanded'"),
    ({"arch": "medium"}, "unknown arch 'medium'.*large, small"),
    ({"pretrained": 3}, "pretrained=3: expected True, False or a tag of mnv3_small"),
    ({"pretrained": "ra"}, "unknown tag 'ra' of mnv3_small.*lamb_in1k, tv_in1k"),
]


@pytest.mark.parametrize(("kwargs", "message"), BAD_VALUES, ids=[str(k) for k, _ in BAD_VALUES])
def test_bad_values(kwargs, message):
    from mnv3.timm_models import mnv3_small

    with pytest.raises(ValueError, match=message):
        mnv3_small(**kwargs)


def test_bad_values_are_refused_before_any_download(monkeypatch):
    from mnv3.files import fetch

    monkeypatch.setattr(fetch, "locate", lambda *args, **kwargs: pytest.fail("it went for the weights"))
    with pytest.raises(ValueError, match="global_pool='gem'"):
        timm.create_model("mnv3_small", pretrained=True, global_pool="gem")
    with pytest.raises(TypeError, match="widht"):
        timm.create_model("mnv3_small", pretrained=True, widht=0.5)


BAD_INPUTS = [
    (torch.zeros(3, 224), r"shape \(B, 3, H, W\).*got \(3, 224\)"),
    (torch.zeros(3, 224, 224), r"got \(3, 224, 224\); for a single picture use x.unsqueeze\(0\)"),
    (torch.zeros(1, 1, 3, 224, 224), r"got \(1, 1, 3, 224, 224\)"),
    (torch.zeros(1, 1, 224, 224), r"\(B, 3, H, W\).*got \(1, 1, 224, 224\)"),
    (torch.zeros(1, 224, 224, 3), r"channels come second: use x.permute\(0, 3, 1, 2\)"),
    (torch.zeros(1, 3, 0, 224), "at least 1 pixel"),
    (
        torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
        r"expected a float tensor, got torch.uint8; mnv3.transforms\(model\)",
    ),
    (torch.zeros(1, 3, 64, 64, dtype=torch.int64), "expected a float tensor, got torch.int64"),
]


@pytest.fixture(scope="module")
def small():
    return MobileNetV3("small").eval()


@pytest.mark.parametrize(("bad", "message"), BAD_INPUTS, ids=[f"{tuple(x.shape)}-{x.dtype}" for x, _ in BAD_INPUTS])
@pytest.mark.parametrize("method", ["forward", "forward_features", "forward_intermediates"])
def test_bad_input(small, bad, message, method):
    with pytest.raises(ValueError, match=message):
        getattr(small, method)(bad)


def test_training_needs_more_than_one_value_per_channel():
    model = MobileNetV3("small").train()
    with pytest.raises(ValueError, match=r"batch 1 of 32x32 pixels leaves a 1x1 map.*batch of 2 or more, more than 32"):
        model(torch.zeros(1, 3, 32, 32))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 1000)
    assert model(torch.randn(1, 3, 33, 32)).shape == (1, 1000)
    assert model.eval()(torch.zeros(1, 3, 1, 1)).shape == (1, 1000)
    frozen = MobileNetV3("small").train()
    for module in frozen.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert frozen(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


def test_custom_table_width_and_ablation():
    table = arch.Arch(
        stem=8, rows=(arch.Bneck(3, 16, 8, True, "HS", 2), arch.Bneck(5, 24, 16, False, "RE", 1)), last=32, head=24
    )
    model = timm.create_model("mnv3_small", arch=table, num_classes=3)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 3)
    assert timm.create_model("mnv3_small", arch=table.to_dict(), num_classes=3).arch == table
    assert timm.create_model("mnv3_large", width=1.4).arch == arch.scale(arch.LARGE, 1.4)
    assert timm.create_model("mnv3_large_075", width=0.5).arch == arch.scale(arch.LARGE, 0.5)
    assert MobileNetV3("large", use_se=False).arch == arch.without_se(arch.LARGE)
    assert MobileNetV3("large", use_hs=False).arch == arch.without_hs(arch.LARGE)
    kinds = {type(m) for m in MobileNetV3("small", use_se=False, use_hs=False).modules()}
    assert nn.Hardswish not in kinds
    assert nn.Hardsigmoid not in kinds


def test_dilated_keeps_the_last_maps_large():
    model = randomize(MobileNetV3(arch.dilate(arch.SMALL)))
    assert model.forward_features(torch.zeros(1, 3, 224, 224)).shape == (1, 576, 14, 14)


def test_sync_batch_norm_and_eps():
    model = MobileNetV3("small")
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {m.eps for m in norms} == {1e-5}
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in converted.modules()) == len(norms) == 34


def test_initial_weights_are_those_of_timm():
    """Of one scale, layer by layer (He et al. 2015, fan out): a training begins as timm's does."""
    ours = timm.create_model("mnv3_small")
    theirs = timm.create_model("mobilenetv3_small_100")
    layers = [[m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))] for model in (ours, theirs)]
    assert [layer.weight.shape for layer in layers[0]] == [layer.weight.shape for layer in layers[1]]
    ratios = [
        one.weight.std() / other.weight.std() for one, other in zip(*layers, strict=True) if one.weight.numel() > 2000
    ]
    assert len(ratios) > 20
    assert all(0.85 < ratio < 1.15 for ratio in ratios[:-1]), "the last is the classifier's"
    assert 0.9 < ours.classifier.weight.std() / 0.01 < 1.1
    assert all(layer.bias is None or not layer.bias.any() for layer in layers[0])
