"""depthwise.py: PyTorch's gradients by other ways; and the layers that compute differently in training."""

import ast
import copy
import pickle
import warnings
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import randomize
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mnv3 import depthwise, layers
from mnv3.depthwise import DepthwiseFunction

KERNELS, STRIDES = pytest.mark.parametrize("kernel", [3, 5, 7]), pytest.mark.parametrize("stride", [1, 2])
MAPS = [(1, 1), (2, 2), (3, 5), (4, 4), (8, 8), (9, 7), (16, 16)]
WAYS = pytest.mark.parametrize(("stride", "size"), [(1, 8), (2, 9), (1, 3)], ids=["windows", "pairs", "product"])
UNCOVERED = "dilation=2 padding=4|bias=True|padding=0|padding='same'|groups=2|out_channels=8|kernel_size=4"
UNCOVERED += "|kernel_size=(5,3)|stride=(1,2)|padding_mode='reflect'"


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """The shapes that `weight_grad` has been called with; any CPU passes for one with the faster ways."""
    made, original = [], depthwise.weight_grad
    monkeypatch.setattr(depthwise, "X86", True)
    monkeypatch.setattr(depthwise, "weight_grad", lambda g, x, *args: made.append(x.shape) or original(g, x, *args))
    torch.manual_seed(0)
    return made


class Ours(nn.Module):
    """A convolution as `ConvNormAct` calls it."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        if not torch.jit.is_scripting() and depthwise.is_eager(x):
            return depthwise.convolve(self.conv, x)
        return self.conv(x)


def pair(**kwargs):
    """A depthwise convolution as ours and as PyTorch computes it."""
    defaults = {"in_channels": 4, "out_channels": 4, "kernel_size": 5, "padding": 2, "groups": 4, "bias": False}
    stock = nn.Conv2d(**{**defaults, **kwargs})
    return Ours(copy.deepcopy(stock)), stock


def weight(module):
    return next(module.parameters())


def step(model, x):
    """Output, and the gradients of a loss for x and all parameters."""
    x = x.clone().requires_grad_()
    out = model(x)
    torch.manual_seed(1)
    loss = (out.double() * torch.randn(out.shape, dtype=torch.float64)).sum()
    return out, *torch.autograd.grad(loss, (x, *model.parameters()))


def assert_near(found, expected, tolerance=1e-6):
    assert found.shape == expected.shape
    assert (found.double() - expected.double()).norm() <= tolerance * expected.double().norm()


def assert_steps_near(ours, stock, x, tolerance=1e-6):
    for found, expected in zip(step(ours, x), step(stock, x), strict=True):
        assert found.dtype == expected.dtype
        assert_near(found, expected, tolerance)


@KERNELS
@STRIDES
@pytest.mark.parametrize("size", MAPS, ids=str)
def test_each_way_in_float64(monkeypatch, kernel, stride, size):
    monkeypatch.setattr(depthwise, "CHUNK", 1000)
    product = min(size) < kernel and size[0] * size[1] <= depthwise.PRODUCT_PIXELS
    for batch, channels in (1, 3), (3, 1), (129, 2):
        x = torch.randn(batch, channels, *size, dtype=torch.float64)
        weight = torch.randn(channels, 1, kernel, kernel, dtype=torch.float64)
        grad = torch.randn_like(F.conv2d(x, weight, None, stride, kernel // 2, 1, channels))
        same = [stride] * 2, [kernel // 2] * 2, [1, 1], False, [0, 0], channels, [False, True, False]
        expected = torch.ops.aten.convolution_backward(grad, x, weight, None, *same)[1]
        found = [depthwise.grad_by_product(grad, x, kernel, stride), depthwise.weight_grad(grad, x, kernel, stride)]
        if kernel == 5:
            found.append((depthwise.grad_by_windows, depthwise.grad_by_pairs)[stride - 1](grad, x))
        assert (found[1] is None) == (not product and (kernel != 5 or min(size) < 5))
        for gradient in filter(torch.is_tensor, found):
            assert_near(gradient, expected, 1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@KERNELS
@STRIDES
def test_layer_in_float32(calls, kernel, stride, layout):
    ours, stock = pair(kernel_size=kernel, stride=stride, padding=kernel // 2)
    for size in MAPS:
        x = torch.randn(3, 4, *size).contiguous(memory_format=layout)
        assert torch.equal(ours(x), stock(x))
        assert_steps_near(ours, stock, x)
    assert len(calls) == len(MAPS)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_step_of_a_model(calls, checkpointing):
    model = randomize(timm.create_model("mnv3_small_cifar", drop_rate=0.0)).train()
    stock = copy.deepcopy(model)
    for layer in stock.modules():
        if isinstance(layer, layers.ConvNormAct):
            layer.depthwise = False
    model.set_grad_checkpointing(checkpointing)
    assert_steps_near(model, stock, torch.randn(8, 3, 32, 32), 1e-5)
    assert len(calls) == len(model.blocks)


@KERNELS
@STRIDES
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_bfloat16_autocast(calls, kernel, stride, given):
    ours, stock = pair(kernel_size=kernel, stride=stride, padding=kernel // 2)
    rounded = copy.deepcopy(stock).bfloat16().double()
    for size in 3, 8, 9:
        x = torch.randn(16, 4, size, size, dtype=given)
        with torch.autocast("cpu", torch.bfloat16):
            out, *grads = step(ours, x)
            assert torch.equal(out, stock(x))
        assert (out.dtype, *(grad.dtype for grad in grads)) == (torch.bfloat16, given, torch.float32)
        for found, expected in zip(grads, step(rounded, x.bfloat16().double())[1:], strict=True):
            assert_near(found, expected, 2**-7)
    assert len(calls) == 3


@pytest.mark.parametrize("types", ["float32 float16", "float64 float16", "float64 bfloat16"])
def test_other_types_under_autocast_are_stock(calls, types):
    given, target = (getattr(torch, name) for name in types.split())
    with torch.autocast("cpu", target):
        assert_steps_near(*(conv.to(given) for conv in pair()), torch.randn(2, 4, 8, 8, dtype=given), 0)
    assert not calls


@WAYS
def test_other_backward_passes(stride, size):
    x, results = torch.randn(8, 4, size, size), []
    grads = torch.randn(3, *F.conv2d(x, x[:4, :1, :1, :1].contiguous(), stride=stride, groups=4).shape)
    for conv in pair(stride=stride):
        with torch.autocast("cpu", torch.bfloat16):  # has no part in what was computed without it
            result = torch.autograd.grad(torch.autocast("cpu", enabled=False)(conv)(x), weight(conv), grads[0])
        result += torch.autograd.grad(conv(x), weight(conv), grads, is_grads_batched=True)
        (grad,) = torch.autograd.grad(conv(x).pow(3).sum(), weight(conv), create_graph=True)
        results.append((*result, grad, *torch.autograd.grad(grad.square().sum(), weight(conv))))
    for found, expected in zip(*results, strict=True):
        assert_near(found, expected)


@KERNELS
def test_other_backward_passes_in_bfloat16(kernel):
    """The input gradient at stride 2 is no kernel of PyTorch's there."""
    x = torch.randn(8, 4, 9, 8, dtype=torch.bfloat16, requires_grad=True)
    found, expected = [], []
    for conv, results in zip(pair(kernel_size=kernel, stride=2, padding=kernel // 2), (found, expected), strict=True):
        kind = torch.bfloat16 if results is found else torch.float64
        inputs = x.to(kind).detach().requires_grad_()
        out = conv.to(torch.bfloat16).to(kind)(inputs)
        torch.manual_seed(1)
        grads = torch.randn(3, *out.shape, dtype=torch.bfloat16).to(kind)
        results += torch.autograd.grad(out, inputs, grads, is_grads_batched=True, retain_graph=True)
        (grad,) = torch.autograd.grad((out * grads[0]).sum(), inputs, create_graph=True)
        results += torch.autograd.grad((grad * grad.detach()).sum(), weight(conv))
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, 2**-7)


def transformed(conv, x, weight, tangent):
    """What torch.func makes of conv(x, weight); x has one more dimension in front."""
    loss = lambda x, weight: conv(x, weight).pow(3).sum()  # noqa: E731
    yield from torch.func.grad(loss, (0, 1))(x[0], weight)
    yield from torch.func.vmap(torch.func.grad(loss, (0, 1)), (0, None))(x, weight)
    yield from torch.func.jvp(conv, (x[0], weight), (x[1], tangent))
    yield torch.func.hessian(loss, 1)(x[0], weight)
    parameter = nn.Parameter(weight)
    yield torch.func.vmap(conv, (0, None))(x, parameter)
    yield from torch.func.jvp(lambda x: conv(x, parameter), (x[0],), (x[1],))


@WAYS
def test_torch_func_and_gradcheck(stride, size):
    args = torch.randn(3, 2, 4, size, size), torch.randn(4, 1, 5, 5), torch.randn(4, 1, 5, 5)
    convs = partial(depthwise.depthwise_conv2d, stride=stride), partial(F.conv2d, stride=stride, padding=2, groups=4)
    for found, expected in zip(*(transformed(conv, *args) for conv in convs), strict=True):
        assert_near(found, expected)
    args = DepthwiseFunction.apply, (*(arg.double().requires_grad_() for arg in (args[0][0], args[1])), stride)
    assert torch.autograd.gradcheck(*args, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(*args, fast_mode=True)


def test_graphs_show_a_plain_convolution(calls):
    (ours, stock), x, graphs = pair(), torch.randn(2, 4, 8, 8), []
    exported, traced, scripted = torch.export.export(ours, (x,)), torch.jit.trace(ours, x), torch.jit.script(ours)
    compiled = torch.compile(ours, backend=lambda graph, _: graphs.append(graph.graph) or graph, fullgraph=True)
    recorded = exported.module(), traced, scripted, compiled, torch.compile(ours, backend="aot_eager", fullgraph=True)
    for graph in recorded:
        assert_steps_near(graph, stock, x, 0)
    assert not calls
    targets = [n.target for graph in (exported.graph, *graphs) for n in graph.nodes if n.op == "call_function"]
    assert targets == [torch.ops.aten.conv2d.default, torch.conv2d]
    assert [n.kind() for n in traced.inlined_graph.nodes() if "onv" in n.kind()] == ["aten::_convolution"]
    assert "aten::conv2d" in str(scripted.inlined_graph)
    assert_steps_near(torch.fx.symbolic_trace(ours), stock, x)


@pytest.mark.parametrize("config", UNCOVERED.split("|"))
def test_uncovered_configurations_are_stock(calls, config):
    kwargs = {key: ast.literal_eval(value) for key, value in (item.split("=") for item in config.split())}
    assert_steps_near(*pair(**kwargs), torch.randn(2, 4, 9, 9), 0)
    assert not calls


def test_copies_and_other_devices(calls, monkeypatch):
    ours, stock = pair()
    for twin in copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)):
        assert_steps_near(twin, stock, torch.randn(2, 4, 8, 8))
    monkeypatch.setattr(depthwise, "X86", False)
    assert_steps_near(ours, stock, torch.randn(2, 4, 8, 8), 0)
    assert ours.to("meta")(torch.empty(2, 4, 8, 8, device="meta")).shape == (2, 4, 8, 8)
    assert len(calls) == 2


def test_unusual_inputs_and_requests():
    (ours, stock), x = pair(), torch.randn(2, 4, 8, 8)
    for unusual in x[:0], x[0]:  # an empty batch, no batch
        assert_steps_near(ours, stock, unusual, 0)
    with torch.no_grad():
        assert not ours(x).requires_grad
    for conv in ours, stock:
        conv(x).sum().backward()  # an expanded gradient
    assert_near(weight(ours).grad, stock.weight.grad)
    assert x.grad is None
    x.requires_grad_()
    for conv in ours, stock:
        conv.requires_grad_(False)
    assert torch.equal(*(torch.autograd.grad(conv(x).square().sum(), x)[0] for conv in (ours, stock)))


def test_what_is_hooked_on_or_changed_is_called(calls):
    """Counters, pruning, quantisation and Grad-CAM reach every convolution and norm: no fast way passes them by."""
    x, model = torch.randn(2, 3, 32, 32), randomize(timm.create_model("mnv3_small_cifar"))
    leaves = [m for m in model.modules() if type(m) in (nn.Conv2d, nn.BatchNorm2d)]
    assert len(leaves) == 34 + 2 * 9 + 1 + 34
    plain = model(x)
    seen = []
    for register in (nn.Module.register_forward_hook, nn.Module.register_forward_pre_hook):
        handles = [register(leaf, lambda module, *_: seen.append(module)) for leaf in leaves]
        torch.testing.assert_close(model(x), plain, atol=1e-4, rtol=1e-4)
        assert set(seen) == set(leaves)
        for handle in handles:
            handle.remove()
        seen.clear()
    with nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module)):
        model(x)
    assert set(leaves) <= set(seen)
    for leaf in leaves:
        before = leaf.forward
        leaf.forward = lambda x: 0 * before(x)  # as accelerate and others put themselves in between  # noqa: B023
        assert not torch.allclose(model(x), plain), leaf
        del leaf.forward
    model.train()
    nn.utils.parametrize.register_parametrization(model.blocks[3].depthwise.conv, "weight", nn.Tanh())
    model(x).sum().backward()
    assert len(calls) == len(model.blocks) - 1


@WAYS
def test_distributed_data_parallel(tmp_path, stride, size):
    (ours, stock), x = pair(stride=stride), torch.randn(2, 4, size, size)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(ours)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as: strides of the gradient do not match
            model(x).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert_near(weight(ours).grad, torch.autograd.grad(stock(x).square().sum(), stock.weight)[0])


@pytest.mark.parametrize(("training", "inplace"), [(True, True), (False, True), (False, False)])
def test_hardswish_in_place_only_in_evaluation(training, inplace):
    x, given = torch.linspace(-4, 4, 9).repeat(2, 1)
    out = layers.Hardswish(inplace=inplace).train(training)(given)
    assert torch.equal(out, F.hardswish(x))
    assert torch.equal(given, out if inplace and not training else x)


def test_squeeze_excite_mean_in_training():
    se, x = layers.SqueezeExcite(4, 2).double(), torch.randn(2, 4, 9, 7, dtype=torch.float64)
    for found, expected in zip(step(se.train(), x), step(copy.deepcopy(se).eval(), x), strict=True):
        assert_near(found, expected, 1e-12)
    assert_near(se.train().mean(x), x.mean((2, 3), keepdim=True), 1e-14)
    large = torch.full((1, 1, 16, 16), 6e4, dtype=torch.float16)
    assert torch.equal(se.mean(large), large[..., :1, :1])
