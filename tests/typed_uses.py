# pyright: strict
"""Uses of the public API with their types, for `pyright` (.ci/run); nothing here is run."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from torch import Tensor, nn
from typing_extensions import assert_type

import mnv3
from mnv3.hub.publish import Push
from mnv3.pictures.evaluate import Metrics
from mnv3.pictures.predict import Prediction


def models(folder: Path, picture: Image.Image, x: Tensor) -> None:
    model = mnv3.create_model("mnv3_small", pretrained=True, num_classes=10)
    assert_type(model, nn.Module)
    assert_type(mnv3.load_checkpoint(folder / "weights.pth", model="mnv3_small"), nn.Module)
    assert_type(mnv3.class_names(model), list[str] | None)
    assert_type(mnv3.transforms(model)(picture), Tensor)
    assert_type(mnv3.convert_state_dict(model.state_dict(), model), dict[str, Tensor])
    assert_type(mnv3.set_bn_eps(model, 1e-3), nn.Module)
    assert_type(mnv3.fuse(model.eval()), nn.Module)
    assert_type(mnv3.save(model, "out"), Path)
    arch = mnv3.Arch(stem=16, rows=(mnv3.Bneck(3, 16, 16, True, "RE", 2),), last=240, head=256)
    network = mnv3.MobileNetV3(arch, num_classes=10)
    assert_type(network.forward_features(x), Tensor)
    for record in mnv3.CATALOG:
        assert_type(record, mnv3.Checkpoint)
        assert_type(record.name, str)


def pictures(model: nn.Module) -> None:
    predictions = mnv3.predict(model, ["cat.jpg", Path("dog.jpg")], topk=3)
    assert_type(predictions, Iterator[Prediction])
    assert_type(mnv3.evaluate(model, mnv3.data.load("cifar10", "test")), Metrics)
    assert_type(mnv3.images.load("cat.jpg"), Image.Image)


def training() -> None:
    recipe = mnv3.recipe.load("cifar10_small", lr=0.1)
    assert_type(recipe, mnv3.recipe.Recipe)
    assert_type(mnv3.finetune(recipe, out="runs/mine"), Path)


def deployment(model: nn.Module, x: Tensor) -> None:
    assert_type(mnv3.deploy.export(model, "net.onnx", to="onnx"), mnv3.deploy.Report)
    assert_type(mnv3.deploy.load("net.onnx"), mnv3.deploy.Exported)
    assert_type(mnv3.deploy.optimize(model), mnv3.deploy.Optimized)
    report = mnv3.deploy.quantize(model, "net.onnx", to="onnx", calibrate="pictures")
    assert_type(report, mnv3.deploy.QuantizeReport)


def figures(model: nn.Module) -> None:
    mnv3.show.arch("mnv3_small", path="table.svg")
    mnv3.show.features("cat.jpg", model)
    mnv3.show.why("cat.jpg", model, class_="cat", path=Path("why.png"))
    mnv3.show.compare(["mnv3_small", "mnv3_large"], latency=False)
    mnv3.show.run("runs/mine")
    assert_type(mnv3.show.report("runs/mine", "report.html"), Path)


def publishing(folder: Path) -> None:
    assert_type(mnv3.publish.push(folder, dry_run=True), Push)
    assert_type(mnv3.publish.pull("org/mnv3_small_cifar.cifar10", folder), Path)


def errors() -> type[Exception]:
    return (mnv3.WeightsError, mnv3.PublishError, mnv3.TrainingStopped)[0]
