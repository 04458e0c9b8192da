"""What the tools around timm and torchvision ask of a model: torch.fx, feature extractors, train.py, 8 bits, counters.

timm's own tests/test_models.py and torchvision's test/test_models.py, run over every name of ours, ask for what stands
here, for one name of each kind.
"""

import copy
import dataclasses
import io
import warnings
from collections import Counter

import pytest
import timm
import torch
import torchvision
from conftest import randomize
from timm.layers import get_notrace_functions, get_notrace_modules
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import mnv3
from mnv3 import arch

TRACER = {"leaf_modules": get_notrace_modules(), "autowrap_functions": get_notrace_functions()}
TIMM_SMALL = {"mnv3_small": "mobilenetv3_small_100", "mnv3_small_tf": "tf_mobilenetv3_small_100"}


@pytest.fixture(scope="module", params=["mnv3_large", "mnv3_small_tf", "mnv3_small_minimal", "mnv3_small_cifar"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return randomize(timm.create_model(name, num_classes=7))


@pytest.fixture
def x():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_fx_in_evaluation_is_equal_to_the_bit(model, x):
    with torch.inference_mode():
        expected = model(x)
        graph = torch.fx.symbolic_trace(model)
        assert torch.equal(graph(x), expected)
        last = get_graph_node_names(model, TRACER)[1][-1]
        extractor = create_feature_extractor(model, {last: "logits"}, tracer_kwargs=TRACER)
        assert torch.equal(extractor(x)["logits"], expected)
        torch.testing.assert_close(torch.jit.script(extractor)(x)["logits"], expected, rtol=1e-4, atol=1e-4)
    shown = {type(graph.get_submodule(node.target)) for node in graph.graph.nodes if node.op == "call_module"}
    assert nn.BatchNorm2d in shown


def test_fx_in_training_is_the_same_step(name, x):
    model = randomize(timm.create_model(name, num_classes=7, drop_path_rate=0.1)).train()
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0  # it is traced through, and draws nothing
    traced = copy.deepcopy(model)
    graph = torch.fx.symbolic_trace(traced)
    loss = [m(x).double().square().mean() for m in (model, graph)]
    torch.testing.assert_close(*loss)
    for part in loss:
        part.backward()
    for (key, parameter), other in zip(model.named_parameters(), traced.parameters(), strict=True):
        assert (parameter.grad - other.grad).norm() <= 1e-3 * parameter.grad.norm() + 1e-6, key
    torch.testing.assert_close(dict(model.named_buffers()), dict(traced.named_buffers()), rtol=1e-4, atol=1e-4)


def test_extractors_of_torchvision_and_timm_give_the_taps(name, model, x):
    taps = [info["module"] for info in model.feature_info]
    with torch.inference_mode():
        expected = model.forward_intermediates(x, intermediates_only=True)
        extractor = create_feature_extractor(model, taps)
        torch.testing.assert_close([extractor(x)[tap] for tap in taps], expected, rtol=1e-4, atol=1e-4)
        for options in (
            {"feature_cls": "list"},
            {"feature_cls": "dict"},
            {"feature_cls": "hook"},
            {"feature_cfg": {"feature_cls": "fx", "out_indices": (-2, -1)}},
            {"feature_cfg": {"feature_cls": "getter", "out_indices": (-2, -1)}},
        ):
            net = timm.create_model(name, features_only=True, **options).eval()
            maps = net(x)
            maps = list(maps.values()) if isinstance(maps, dict) else maps
            wanted = expected[-2:] if "feature_cfg" in options else expected
            assert [m.shape for m in maps] == [m.shape for m in wanted], options
            assert net.feature_info.channels() == [m.shape[1] for m in wanted]
    create_feature_extractor(copy.deepcopy(model), taps).train()(x)[taps[-1]].sum().backward()


@pytest.mark.parametrize(
    ("ours", "output_stride"), [("mnv3_large", 8), ("mnv3_small", 16), ("mnv3_small_tf", 8), ("mnv3_small_tf", 32)]
)
def test_output_stride(ours, output_stride, x):
    theirs = TIMM_SMALL.get(ours, "mobilenetv3_large_100")
    model, reference = (timm.create_model(n, features_only=True, output_stride=output_stride) for n in (ours, theirs))
    assert model.feature_info.channels() == reference.feature_info.channels()
    assert model.feature_info.reduction() == reference.feature_info.reduction()
    assert [m.shape for m in model(x)] == [m.shape for m in reference(x)]
    whole = timm.create_model(ours, output_stride=output_stride)
    table = {32: lambda a: a, 16: arch.dilate, 8: lambda a: arch.dilate(arch.dilate(a))}[output_stride]
    assert whole.arch == table(mnv3.timm_models.VARIANTS[ours].arch)
    assert whole.state_dict().keys() == timm.create_model(ours).state_dict().keys()


def test_output_stride_8_is_torchvisions_network(x):
    """The same layers with the dilations of torchvision's rows written by hand."""
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    dilations = [1] * 6 + [2] * 6 + [4] * 3
    rows = zip(arch.LARGE.rows, arch.LARGE.inputs, dilations, strict=True)
    rows = [InvertedResidualConfig(cin, r.kernel, r.exp, r.out, r.se, r.act, r.stride, d, 1.0) for r, cin, d in rows]
    reference = randomize(MobileNetV3(rows, 1280)).double()
    model = timm.create_model("mnv3_large", output_stride=8).double().eval()
    model.load_state_dict(reference.state_dict())
    torch.testing.assert_close(model(x.double()), reference(x.double()), rtol=1e-9, atol=1e-9)
    assert model.forward_features(x.double()).shape[2:] == (8, 8)


@pytest.mark.parametrize(
    ("ours", "options"),
    [
        ("mnv3_small", {"global_pool": "catavgmax"}),
        ("mnv3_small_tf", {"act_layer": "silu"}),
        ("mnv3_small", {"act_layer": nn.Mish, "head_bias": False}),
        ("mnv3_small_tf", {"bn_momentum": 0.03, "drop_rate": 0.2}),
    ],
    ids=str,
)
def test_arguments_of_timms_train_py(ours, options, x):
    reference = randomize(timm.create_model(TIMM_SMALL[ours], num_classes=5, **options)).double()
    model = timm.create_model(ours, num_classes=5, **options).double().eval()
    model.load_state_dict(reference.state_dict())
    torch.testing.assert_close(model(x.double()), reference(x.double()), rtol=1e-9, atol=1e-9)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {m.momentum for m in norms} == {options.get("bn_momentum", 0.1)}


def test_norm_layer_as_torchvision_takes_it(x):
    model = mnv3.MobileNetV3("small", norm_layer=lambda channels: nn.GroupNorm(1, channels))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert sum(isinstance(m, nn.GroupNorm) for m in model.modules()) == 34
    model.train()(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    by_name = timm.create_model("mnv3_small", norm_layer="groupnorm1", act_layer=nn.GELU)  # which takes no inplace
    assert Counter(type(m) for m in by_name.modules())[timm.layers.GroupNorm1] == 34
    assert by_name(x).shape == (2, 1000)
    with pytest.raises(ValueError, match="act_layer=SiLU: oneDNN's convolution has only ReLU and h-swish"):
        mnv3.onednn.pack(mnv3.MobileNetV3("small", act_layer="silu").eval(), x)
    with pytest.raises(ValueError, match="has an activation of its own"):
        mnv3.MobileNetV3("small", norm_layer=timm.layers.BatchNormAct2d)
    with pytest.raises(ValueError, match="global_pool='max' gives 576 channels, the head takes 1152"):
        mnv3.MobileNetV3("small", global_pool="catavgmax").reset_classifier(3, "max")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Files that timm's and torchvision's scripts write: name of ours -> (file, their model)."""
    folder, made = tmp_path_factory.mktemp("checkpoints"), {}
    theirs = {name: timm.create_model(theirs) for name, theirs in TIMM_SMALL.items()}
    for name, model in (*theirs.items(), ("mnv3_large", torchvision.models.mobilenet_v3_large())):
        torch.save({"state_dict": randomize(model).state_dict()}, folder / f"{name}.pth")
        made[name] = str(folder / f"{name}.pth"), model
    return made


@pytest.mark.parametrize("name", [*TIMM_SMALL, "mnv3_large"])
def test_checkpoint_path_takes_their_layouts(checkpoints, name, x):
    """validate.py --checkpoint, train.py --initial-checkpoint: load_state_dict alone, after the model was made."""
    path, theirs = checkpoints[name]
    with torch.inference_mode():
        for options in ({}, {"bn_eps": 1e-3 if name != "mnv3_small" else 1e-4}):
            ours = timm.create_model(name, checkpoint_path=path, **options).eval()
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
            assert ours.stem.norm.eps == options.get("bn_eps", 1e-5)
    inside = nn.ModuleDict({"net": timm.create_model(name)})
    inside.load_state_dict({f"net.{key}": value for key, value in theirs.state_dict().items()})
    torch.testing.assert_close(inside["net"].state_dict(), timm.create_model(name, checkpoint_path=path).state_dict())
    ours = timm.create_model(name)
    assert not ours.load_state_dict(ours.state_dict()).missing_keys
    with pytest.raises(RuntimeError, match="Missing key"):
        ours.load_state_dict({"nobody.weight": torch.zeros(1)})


def test_a_new_classifier_is_forced_as_train_py_does(checkpoints):
    path, theirs = checkpoints["mnv3_small"]
    overlay = {"file": path, "num_classes": -1}
    for options in ({}, {"num_classes": 1000}, {"num_classes": 7}):
        ours = timm.create_model("mnv3_small", pretrained=True, pretrained_cfg_overlay=overlay, **options)
        classes = options.get("num_classes", 1000)
        assert ours.num_classes == ours.pretrained_cfg["num_classes"] == len(ours.classifier.weight) == classes
        assert torch.equal(ours.head.weight, theirs.conv_head.weight)
        assert ours.classifier.weight.std() < 0.015, "as it was initialised"
        assert not ours.classifier.bias.any()


def test_bn_eps_of_loaded_and_saved_weights(checkpoints, tmp_path, x):
    """Evaluation stays what it is, whatever eps the training goes on with; a weights folder is for 1e-5."""
    path, theirs = checkpoints["mnv3_small"]
    load = {"pretrained": True, "pretrained_cfg_overlay": {"file": path}}
    with torch.inference_mode():
        expected = theirs(x)
        model = timm.create_model("mnv3_small", bn_eps=1e-4, **load).eval()
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
        changed = mnv3.set_bn_eps(timm.create_model("mnv3_small", **load), 1e-4)
        for name, saved, eps in (("made", model, 1e-4), ("changed", changed, 1e-5)):
            again = mnv3.load_checkpoint(mnv3.save(saved, tmp_path / name)).eval()
            torch.testing.assert_close(again(x), expected, rtol=1e-4, atol=1e-4)
            assert again.stem.norm.eps == eps
            assert saved.stem.norm.eps == 1e-4
    with pytest.raises(ValueError, match="a batch norm has a channel of variance"):
        timm.create_model("mnv3_small", bn_eps=5.0, **load)
    with pytest.raises(ValueError, match="norm_layer=.*cannot be written into config.json"):
        mnv3.save(timm.create_model("mnv3_small", norm_layer=timm.layers.GroupNorm1), tmp_path / "custom")


def test_counters_see_the_types_that_they_know():
    """thop and ptflops look up a module's exact type, as FX quantisation does."""
    ours, theirs = timm.create_model("mnv3_small"), torchvision.models.mobilenet_v3_small()
    kinds = [Counter(type(m) for m in model.modules()) for model in (ours, theirs)]
    assert kinds[0][nn.BatchNorm2d] == kinds[1][nn.BatchNorm2d] == 34
    assert kinds[0][nn.Conv2d] == kinds[1][nn.Conv2d] + 1  # the head, a linear layer there
    macs = 0

    def count(layer, _, out):
        nonlocal macs
        macs += layer.weight[0].numel() * out[0].numel()

    for module in ours.eval().modules():
        if type(module) in (nn.Conv2d, nn.Linear):
            module.register_forward_hook(count)
    ours(torch.zeros(1, 3, 224, 224))
    assert macs == arch.count_macs(arch.SMALL)


@pytest.mark.parametrize(("ours", "training"), [("mnv3_small", False), ("mnv3_small_tf", True)])
def test_fx_quantisation(ours, training, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated in favour of torchao
        from torch.ao.quantization import get_default_qat_qconfig_mapping, get_default_qconfig_mapping
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx

        torch.backends.quantized.engine = "x86"
        model = randomize(timm.create_model(ours, num_classes=7))
        with torch.inference_mode():
            expected = model(x)
        if training:
            prepared = prepare_qat_fx(copy.deepcopy(model).train(), get_default_qat_qconfig_mapping("x86"), (x,))
            prepared(x).square().mean().backward()
            prepared.eval()(x)
        else:
            prepared = prepare_fx(model, get_default_qconfig_mapping("x86"), (x,))
            prepared(x)
        eight = convert_fx(prepared)
        with torch.inference_mode():
            logits = eight(x)
    floats = {nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.Hardswish}
    assert not floats & {type(module) for module in eight.modules()}
    functions = {str(node.target) for node in eight.graph.nodes if node.op == "call_function"}
    assert not [function for function in functions if "torch._C._nn.linear" in function or "batch_norm" in function]
    if not training:
        assert (logits - expected).abs().max() < 0.3 * expected.abs().max()


def test_script_of_torchvisions_suite(x):
    """Saved, loaded and equal; and the gradient reaches the input."""
    model = randomize(timm.create_model("mnv3_small_tf", num_classes=7))
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(model), buffer)
    buffer.seek(0)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(buffer)(x), model(x), rtol=1e-4, atol=1e-4)
    model(x.requires_grad_()).sum().backward()
    assert x.grad.abs().sum() > 0


def test_models_without_pooling_are_no_classifiers(noisy, tmp_path):
    model = timm.create_model("mnv3_small_cifar", num_classes=3, global_pool="")
    line = "the model has global_pool='' and gives a map for each class"
    with pytest.raises(ValueError, match=line):
        mnv3.predict(model, [noisy])
    with pytest.raises(ValueError, match=line):
        mnv3.evaluate(model, mnv3.data.load(str(noisy), "test"))
    folder = mnv3.save(model, tmp_path / "maps")
    recipe = mnv3.recipe.Recipe(model="mnv3_small_cifar", data=str(noisy), size=16, batch_size=8, epochs=1, workers=0)
    with pytest.raises(ValueError, match="has global_pool='' and makes maps"):
        mnv3.finetune(dataclasses.replace(recipe, checkpoint=str(folder)), out=tmp_path / "run")
