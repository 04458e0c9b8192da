"""Every published checkpoint of the family, one frozen record each: where it is, how to check it, how to feed it.

timm's default_cfgs, the Hub client, `mnv3 list` and the tables of the documents are made from these records. A tag
without weights is not here. Sources: repositories and preprocessing as timm 1.0.31 and torchvision 0.29.1 state them
(a test compares); top-1 of timm's checkpoints on ImageNet-1k val at 224 px from its results/results-imagenet.csv at
commit 7479d451 (ra4: its model cards), of torchvision's from the metadata of its weights. Revisions and hashes were
read from public pins of these files; where no full one was found the revision is None, the branch `main` is taken, and
the file is checked against the SHA-256 that the Hub states for it. Standard library only.
"""

from dataclasses import dataclass

from .arch import VARIANTS
from .errors import choices

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
WEIGHTS_FILE = "model.safetensors"
ENDINGS = (".safetensors", ".pth", ".pth.tar", ".bin", ".pt", ".ckpt")  # of files of weights, in timm's order
ORG = "org"  # the namespace of whoever publishes mnv3; files/fetch.py: repo_of has another one


@dataclass(frozen=True)
class Checkpoint:
    """One file of weights for one registered name.

    Exactly one of `repo` (on the Hugging Face Hub) and `url` says where it is. `sha256` is the whole digest or, for a
    URL, at least the prefix in its file name. Accuracies are per cent on ImageNet-1k val unless `data` says otherwise.
    """

    arch: str
    tag: str
    repo: str | None = None
    revision: str | None = None
    url: str | None = None
    sha256: str | None = None
    num_classes: int = 1000
    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    test_input_size: tuple[int, int, int] | None = None
    test_crop_pct: float | None = None
    license: str = "apache-2.0"
    top1: float | None = None
    origin: str = "https://github.com/huggingface/pytorch-image-models"
    data: str = "ImageNet-1k val"  # of the accuracy
    bn_eps: float = 1e-5  # of its training
    label_names: tuple[str, ...] | None = None  # None: those that all weights for this number of classes share
    # Of our own, for the model card (cards.py):
    dataset: str | None = None  # its name on the Hub
    recipe: str | None = None  # of `mnv3 recipes`
    measured: str | None = None  # the command that gives `top1`

    @property
    def ours(self) -> bool:
        """Whether it is published by whoever publishes mnv3."""
        return bool(self.repo) and self.repo.startswith(f"{ORG}/")

    @property
    def name(self) -> str:
        """`arch.tag`, as timm and `mnv3` take it."""
        return f"{self.arch}.{self.tag}"


# fmt: off
REVISIONS = {  # the commits of repositories on the Hub
    "mnv3_large.ra_in1k":             "96f46a1c52932f27492dff66c72378eb99b443a7",
    "mnv3_large.ra4_e3600_r224_in1k": "26a545b7c557e54fa13caff7e76da391f6bcbc1a",
    "mnv3_large.miil_in21k":          "b47a59642b7b988108c44f31f36772c5790c7517",
    "mnv3_small.lamb_in1k":           "1824797e7887cbec1990e4adbd6675960a36c589",
    "mnv3_small_075.lamb_in1k":       "fa65a043c25690a5779ff856052a5ae55ec03eda",
    "mnv3_small_050.lamb_in1k":       "f58e7345afe2832abd6f81cc60f67cd1ddf7ce00",
    "mnv3_small_tf.in1k":             "eba2bbe6f862c995a61fc3862f3ceebb5d5684a1",
    "mnv3_large_075_tf.in1k":         "b1c1e44af126225ee71496e7a1f77eae95529ae3",
}
SHA256 = {  # of the files
    "mnv3_large.ra_in1k":             "f425af34cc1cead2b5d6211f789a1f30b94835dc32f9c0fcc5a916e4fd2dde85",
    "mnv3_large.ra4_e3600_r224_in1k": "bd595a2d59301fc6264c4aabb203f93ec17b0aa7bdd7532c8d9e1cf07dfc9bdc",
    "mnv3_large.miil_in21k_ft_in1k":  "436a40242a4b102d92dd5f0d6fc9e15c23aafc45dfa3a8cf00a0353c4f854eb0",
    "mnv3_large.tv2_in1k":            "5c1a416349c4cf298f2a6a5e2600ed0ee55e604713578f5e74e6bc8bcaef7997",
    "mnv3_large.tv_in1k":             "8738ca797c879b547d18bbd15da5736ff2557b2036a9af72225393ca61759a04",
    "mnv3_small.lamb_in1k":           "46d2c063b18125884c48937afa4c49e18128869e52e8db96df48bf0a4d7ff697",
    "mnv3_small.tv_in1k":             "047dcff4addef86ea5bc2eff13c9614dc11f47ab1160d0a71a25e7db994f4e1f",
    "mnv3_small_075.lamb_in1k":       "c56c9ffc148d94301a477d5678e6802d0251b22ff23376c396eacd737edad0b7",
    "mnv3_small_050.lamb_in1k":       "2e3f6937afd4b3704450518a2710168775d6c70ebfb7a0e9aaf06200c6fbe0c4",
    "mnv3_small_tf.uint8_in1k":       "a51165768d655170638020dcb61d423072a21f48117d1284e04ce03265fb5326",
    "mnv3_large_cifar.cifar10":       "7cde3185b2e56d69293aeaf1da398121d7cfe87f2f2342fc2178390438d9fc0e",
    "mnv3_small_cifar.cifar10":       "d1310ef590dbb412637befbde2371ee5b108761a3138d045e8bb6f3566ac4d48",
}
# fmt: on

# What the trainings have in common: preprocessing, eps, licence, where they come from.
RA4 = {"mean": HALF, "std": HALF, "crop_pct": 0.95, "test_input_size": (3, 256, 256), "test_crop_pct": 1.0}
MIIL = {
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
    "interpolation": "bilinear",
    "origin": "https://github.com/Alibaba-MIIL/ImageNet21K",
}
MIIL21K = MIIL | {"num_classes": 11221}
TF = {
    "mean": HALF,
    "std": HALF,
    "interpolation": "bilinear",
    "bn_eps": 1e-3,
    "origin": "https://github.com/tensorflow/models/tree/master/research/slim/nets/mobilenet",
}
UINT8 = TF | {  # what the file says of its bytes
    "mean": (128 / 255,) * 3,
    "std": (0.4980392175416152,) * 3,
    "data": "ImageNet-1k",
    "dataset": "ILSVRC/imagenet-1k",
}
TV = {
    "interpolation": "bilinear",
    "bn_eps": 1e-3,
    "license": "bsd-3-clause",
    "origin": "https://github.com/pytorch/vision",
}
TV2 = TV | {"crop_pct": 0.965}  # torchvision resizes to 232 for a crop of 224
CIFAR = {
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "label_names": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "origin": f"https://github.com/{ORG}/mnv3",
    "data": "CIFAR-10 test",
    "dataset": "uoft-cs/cifar10",
}


def _pinned(arch: str, tag: str, **fields) -> Checkpoint:
    """A checkpoint with its revision and hash from the tables above."""
    name = f"{arch}.{tag}"
    return Checkpoint(arch, tag, revision=REVISIONS.get(name), sha256=SHA256.get(name), **fields)


def _timm(arch: str, tag: str, name: str, top1: float | None, **fields) -> Checkpoint:
    """A repository of timm's on the Hub, of the model that timm calls `name`."""
    return _pinned(arch, tag, repo=f"timm/{name}.{tag}", top1=top1, **fields)


def _torchvision(arch: str, tag: str, name: str, top1: float, **fields) -> Checkpoint:
    """A file of torchvision's, whose name ends in the first digits of its hash."""
    file = f"{name}-{SHA256[f'{arch}.{tag}'][:8]}.pth"
    return _pinned(arch, tag, url=f"https://download.pytorch.org/models/{file}", top1=top1, **fields)


def _ours(arch: str, tag: str, recipe: str | None, top1: float | None, **fields) -> Checkpoint:
    """A checkpoint that we publish, which ships with mnv3 in weights/; see its model card there."""
    measured = f"mnv3 eval {arch}.{tag} --data {tag} --data-dir data --download" if top1 else None
    return _pinned(arch, tag, repo=f"{ORG}/{arch}.{tag}", recipe=recipe, top1=top1, measured=measured, **fields)


# The first record of an arch is its default: of the best on the Hub, the one with ImageNet's usual mean and std, which
# users of torch.hub type in by habit.
# fmt: off
CATALOG: tuple[Checkpoint, ...] = (
    #            arch                     tag                    name there, or recipe              top-1
    _timm(       "mnv3_large",            "ra_in1k",             "mobilenetv3_large_100",            75.786),
    _timm(       "mnv3_large",            "ra4_e3600_r224_in1k", "mobilenetv3_large_100",            76.310, **RA4),
    _timm(       "mnv3_large",            "miil_in21k_ft_in1k",  "mobilenetv3_large_100",            77.910, **MIIL),
    _timm(       "mnv3_large",            "miil_in21k",          "mobilenetv3_large_100",            None,   **MIIL21K),
    _torchvision("mnv3_large",            "tv2_in1k",            "mobilenet_v3_large",               75.274, **TV2),
    _torchvision("mnv3_large",            "tv_in1k",             "mobilenet_v3_large",               74.042, **TV),
    _timm(       "mnv3_small",            "lamb_in1k",           "mobilenetv3_small_100",            67.638),
    _torchvision("mnv3_small",            "tv_in1k",             "mobilenet_v3_small",               67.668, **TV),
    _timm(       "mnv3_small_075",        "lamb_in1k",           "mobilenetv3_small_075",            65.266),
    _timm(       "mnv3_small_050",        "lamb_in1k",           "mobilenetv3_small_050",            57.924),
    _timm(       "mnv3_large_tf",         "in1k",                "tf_mobilenetv3_large_100",         75.514, **TF),
    _timm(       "mnv3_small_tf",         "in1k",                "tf_mobilenetv3_small_100",         67.932, **TF),
    _ours(       "mnv3_small_tf",         "uint8_in1k",          None,                               None,   **UINT8),
    _timm(       "mnv3_large_075_tf",     "in1k",                "tf_mobilenetv3_large_075",         73.448, **TF),
    _timm(       "mnv3_small_075_tf",     "in1k",                "tf_mobilenetv3_small_075",         65.732, **TF),
    _timm(       "mnv3_large_minimal_tf", "in1k",                "tf_mobilenetv3_large_minimal_100", 72.270, **TF),
    _timm(       "mnv3_small_minimal_tf", "in1k",                "tf_mobilenetv3_small_minimal_100", 62.894, **TF),
    _ours(       "mnv3_large_cifar",      "cifar10",             "cifar10_large_cutmix",             94.29,  **CIFAR),
    _ours(       "mnv3_small_cifar",      "cifar10",             "cifar10_small_distilled",          92.66,  **CIFAR),
)
# fmt: on


# What timm and torchvision call the models.
TIMM_NAMES = {"mobilenetv3_large_075": "mnv3_large_075"} | {
    record.repo.removeprefix("timm/").partition(".")[0]: record.arch
    for record in CATALOG
    if record.repo and record.repo.startswith("timm/")
}
TORCHVISION_NAMES = {"mobilenet_v3_large": "mnv3_large", "mobilenet_v3_small": "mnv3_small"}


def arch_named(name: str) -> str | None:
    """The registered name of a model, by that or by timm's name, with a tag or without; None for other models."""
    name = name.partition(".")[0]
    return name if name in VARIANTS else TIMM_NAMES.get(name)


def checkpoints(arch: str) -> list[Checkpoint]:
    """The checkpoints of a registered name, the default first; none where no weights are published."""
    return [record for record in CATALOG if record.arch == arch]


def split_name(name: str) -> tuple[str, str | None]:
    """Split 'arch.tag' or 'arch' into arch and tag, both of which have to exist; the tag is None where none is given.

    Raises:
        ValueError: There is no such arch, or no such tag of it; the message has the near misses and the list.
    """
    arch, _, tag = name.partition(".")
    if "/" in name or name.endswith(ENDINGS):
        raise ValueError(f"{name}: no such file or folder; a repository of the Hub is hf-hub:NAMESPACE/NAME")
    if arch not in VARIANTS:
        raise ValueError(f"unknown model {arch!r}. {choices(arch, VARIANTS)}")
    if not tag:
        return arch, None
    find(arch, tag)
    return arch, tag


def find(arch: str, tag: str | None = None) -> Checkpoint:
    """The checkpoint of an arch by its tag, or its default.

    Raises:
        ValueError: No weights are published for the arch, or none under this tag.
    """
    records = checkpoints(arch)
    if not records:
        with_weights = dict.fromkeys(record.arch for record in CATALOG)
        raise ValueError(
            f"no pretrained weights are published for {arch}: use pretrained=False, or one that has them: "
            f"{', '.join(with_weights)}"
        )
    for record in records:
        if tag in (None, record.tag):
            return record
    raise ValueError(f"unknown tag {tag!r} of {arch}. {choices(str(tag), [record.tag for record in records])}")
