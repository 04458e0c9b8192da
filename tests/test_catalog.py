"""The catalog against what timm and torchvision say of the same files."""

import re

import pytest
import timm
import torch
import torchvision
from PIL import Image
from torchvision.models import MobileNet_V3_Large_Weights, MobileNet_V3_Small_Weights

import mnv3
from mnv3.catalog import CATALOG, IMAGENET_MEAN, IMAGENET_STD, checkpoints, find, split_name
from mnv3.timm_models import VARIANTS, default_cfgs

TORCHVISION = {
    weights.url: weights for kind in (MobileNet_V3_Large_Weights, MobileNet_V3_Small_Weights) for weights in kind
}
# No public pin of a whole revision was found for these; they are checked against the digest that the Hub states.
UNPINNED = {
    "mnv3_large.miil_in21k_ft_in1k",
    "mnv3_large_tf.in1k",
    "mnv3_small_075_tf.in1k",
    "mnv3_large_minimal_tf.in1k",
    "mnv3_small_minimal_tf.in1k",
}
RECORDS = pytest.mark.parametrize("record", CATALOG, ids=lambda record: record.name)


@RECORDS
def test_preprocessing_is_the_sources_own(record):
    ours = timm.data.resolve_data_config(pretrained_cfg=timm.models.get_pretrained_cfg(record.name).to_dict())
    if record.repo and record.repo.startswith("timm/"):
        theirs = timm.models.get_pretrained_cfg(record.repo.removeprefix("timm/"))
        for name in ("input_size", "mean", "std", "interpolation", "crop_pct", "num_classes", "test_input_size"):
            assert getattr(record, name) == getattr(theirs, name), name
        assert record.test_crop_pct == theirs.test_crop_pct
        assert ours == timm.data.resolve_data_config(pretrained_cfg=theirs.to_dict())
    elif record.url:
        preset = TORCHVISION[record.url].transforms()
        assert (list(record.mean), list(record.std)) == (preset.mean, preset.std)
        assert record.interpolation == preset.interpolation.value
        assert record.input_size[1:] == tuple(preset.crop_size * 2)
        assert int(record.input_size[1] / record.crop_pct) == preset.resize_size[0]
        assert record.top1 == TORCHVISION[record.url].meta["_metrics"]["ImageNet-1K"]["acc@1"]


@pytest.mark.parametrize("size", [(300, 200), (333, 500), (224, 224), (50, 40)])
@pytest.mark.parametrize("name", ["mnv3_large.tv2_in1k", "mnv3_large.tv_in1k", "mnv3_small.tv_in1k"])
def test_transforms_are_torchvisions(name, size):
    """The same tensor, bit for bit, from a picture with detail in it."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8, generator=generator)
    picture = Image.fromarray(pixels.numpy())
    expected = TORCHVISION[find(*split_name(name)).url].transforms()(picture)
    torch.testing.assert_close(mnv3.transforms(name)(picture), expected, rtol=0, atol=1e-6)


@RECORDS
def test_records_are_complete(record):
    assert record.arch in VARIANTS
    assert (record.repo is None) != (record.url is None)
    assert record.license in ("apache-2.0", "bsd-3-clause")
    assert record.top1 is not None or record.num_classes == 11221 or record.tag == "uint8_in1k"
    if record.sha256:
        assert re.fullmatch("[0-9a-f]{64}", record.sha256)
    if record.url:
        assert record.sha256.startswith(re.search(r"-([0-9a-f]{8})\.pth$", record.url)[1])
    elif record.repo.startswith("org/"):
        assert record.sha256  # which holds whatever namespace and revision it comes from
    elif record.name in UNPINNED:
        assert record.revision is None
    else:
        assert re.fullmatch("[0-9a-f]{40}", record.revision)
    assert bool(VARIANTS[record.arch].pad_type) == record.arch.endswith("_tf")


@RECORDS
def test_timm_has_the_same_record(record):
    cfg = timm.models.get_pretrained_cfg(record.name)
    assert cfg.tag == record.tag
    assert cfg.url == record.url
    if record.repo:
        assert cfg.hf_hub_id == (f"{record.repo}@{record.revision}" if record.revision else record.repo)
    assert cfg.license == record.license
    assert cfg.to_dict()["paper_ids"] == "arXiv:1905.02244"


def test_every_public_checkpoint_is_there():
    family = timm.list_pretrained(["mobilenetv3_large_100*", "mobilenetv3_small*", "tf_mobilenetv3*"])
    ours = {record.repo.removeprefix("timm/") for record in CATALOG if record.repo and record.repo[:5] == "timm/"}
    assert ours == {name for name in family if "." in name}
    assert {record.url for record in CATALOG if record.url} == set(TORCHVISION)
    assert len({record.name for record in CATALOG}) == len(CATALOG)


def test_defaults_are_the_best_with_the_usual_preprocessing():
    for arch in ("mnv3_large", "mnv3_small"):
        default, *others = checkpoints(arch)
        usual = [r for r in (default, *others) if (r.mean, r.std) == (IMAGENET_MEAN, IMAGENET_STD) and r.repo]
        assert default == max(usual, key=lambda r: r.top1)
        assert timm.models.get_pretrained_cfg(arch).tag == default.tag
        assert default_cfgs[arch].tags[0] == default.tag
    assert find("mnv3_large").tag == "ra_in1k"
    assert find("mnv3_small").tag == "lamb_in1k"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnv3_lagre", "unknown model 'mnv3_lagre'. Did you mean 'mnv3_large'"),
        ("resnet50", "unknown model 'resnet50'. Allowed: mnv3_large, mnv3_small"),
        ("mnv3_large.ra", "unknown tag 'ra' of mnv3_large.*ra_in1k"),
        ("mnv3_large_075.x", "no pretrained weights are published for mnv3_large_075.*that has them: mnv3_large, "),
        ("", "unknown model ''"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message):
        mnv3.create_model(name, pretrained=True)


def test_names_and_tags():
    assert mnv3.create_model("mnv3_small.tv_in1k").pretrained_cfg["tag"] == "tv_in1k"
    with pytest.raises(ValueError, match="two tags given: 'mnv3_small.tv_in1k' and pretrained='lamb_in1k'"):
        mnv3.create_model("mnv3_small.tv_in1k", pretrained="lamb_in1k")
    with pytest.raises(ValueError, match="unknown tag 'nope' of mnv3_small"):
        timm.create_model("mnv3_small.nope")
    assert set(timm.list_models("mnv3_*")) == set(VARIANTS)
    assert set(timm.list_pretrained("mnv3_*")) == {record.name for record in CATALOG}


def test_class_names_are_torchvisions():
    model = mnv3.create_model("mnv3_small.lamb_in1k", device="meta")
    names = mnv3.class_names(model)
    assert names == torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    assert names[0] == "tench"
    model.reset_classifier(10)
    assert mnv3.class_names(model) is None
