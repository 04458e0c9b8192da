"""Hostile and spoilt files of tensors: refused in one line, soon and in little memory, before a model is built."""

import io
import json
import pickle
import random
import struct
import time
import zipfile

import pytest
import timm
import torch
import torchvision
from conftest import randomize
from ports import DLi14
from safetensors.torch import save_file

import mnv3
from mnv3 import WeightsError, arch, convert_state_dict
from mnv3.catalog import WEIGHTS_FILE
from mnv3.files import archives, checkpoint
from mnv3.files.checkpoint import family_of, read_checkpoint

TINY = mnv3.Arch(
    stem=8, rows=(mnv3.Bneck(3, 16, 8, True, "RE", 2), mnv3.Bneck(5, 24, 16, True, "HS", 2)), last=32, head=40
)
STEM_AND_HEAD = {"stem.conv.weight": torch.zeros(16, 3, 3, 3), "head.weight": torch.zeros(1, 1, 1, 1)}


@pytest.fixture(scope="module")
def model():
    return randomize(timm.create_model("mnv3_small", arch=TINY, num_classes=4))


def rewritten(file, change, compress_type=zipfile.ZIP_STORED):
    """The archive again, with `change(name, content)` in place of every member, and its checksum right."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content), compress_type)


def archive_of(file, pickled):
    """A checkpoint with a pickle written by hand."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")


# --- bombs (issue 13) ------------------------------------------------------------------------------------------------


def empty_classifier(file):
    save_file(STEM_AND_HEAD | {"classifier.weight": torch.zeros(3_000_000, 0)}, file.with_suffix(".safetensors"))


def expanded(file):
    torch.save(STEM_AND_HEAD | {"classifier.weight": torch.zeros(1).expand(3_000_000, 1024)}, file)


def narrow_classifier(file):
    torch.save(STEM_AND_HEAD | {"classifier.weight": torch.zeros(3_000_000, 1, dtype=torch.float16)}, file)


def many_channels(file):
    torch.save(STEM_AND_HEAD | {"stem.conv.weight": torch.zeros(1, 3_000_000, 1, 1, dtype=torch.float16)}, file)


def deflated_pickle(file):
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("archive/data.pkl", "w") as member,
    ):
        for _ in range(300):
            member.write(b"N" * (1 << 20))


def deflated_storages(file):
    torch.save(STEM_AND_HEAD | {"classifier.weight": torch.zeros(10_000, 100)}, file)
    rewritten(file, lambda name, content: content, zipfile.ZIP_DEFLATED)


def overlapping_members(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(1_000_000))
        first = archive.infolist()[0]
        for i in range(100):
            again = zipfile.ZipInfo(f"archive/data/{i}")
            again.CRC, again.file_size, again.compress_size = first.CRC, first.file_size, first.compress_size
            again.header_offset = first.header_offset
            archive.filelist.append(again)
    with zipfile.ZipFile(file) as archive:
        assert sum(member.file_size for member in archive.infolist()) > 100_000_000


def many_tensors(file):
    torch.save({f"{i}.weight": torch.zeros(1) for i in range(20_000)}, file)


def one_tensor_many_names(file):
    one = torch.zeros(1000)
    torch.save(STEM_AND_HEAD | {f"{i}.weight": one for i in range(3000)}, file)


def one_large_tensor_many_names(file):
    one = torch.zeros(1000, 1000)
    torch.save(STEM_AND_HEAD | {f"{i}.weight": one for i in range(1000)}, file)


def many_tensors_in_safetensors(file):
    save_file({f"{i}.weight": torch.zeros(1) for i in range(2001)}, file.with_suffix(".safetensors"))


def tuples_in_tuples(file):
    """A key whose hash visits 2**60 values."""
    archive_of(file, b"\x80\x02}N\x85q\x00" + b"h\x00\x86q\x00" * 60 + b"K\x01s.")


def bytearray_of_2_gb(file):
    archive_of(file, b"\x80\x02}X\x01\0\0\0acbuiltins\nbytearray\n(J\xff\xff\xff\x7ftRs.")


def nine_million_values(file):
    archive_of(file, b"\x80\x02(" + b"N" * 9_000_000 + b"t.")


def string_of_4_gb(file):
    archive_of(file, b"\x80\x02}X\xff\xff\xff\xffabc.")


def old_string_of_4_gb(file):
    file.write_bytes(b"\x80\x02}X\xff\xff\xff\xffabc.")


def old_storage_of_7_gb(file):
    """What torch.save wrote before it wrote zip archives, with a storage that is not in the file."""
    kind = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    tensor = (
        b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n"
        b"X\x01\0\0\x000X\x03\0\0\0cpuJ\x00\x00\x00\x70NtQK\x00K\x01\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRs."
    )
    head = (torch.serialization.MAGIC_NUMBER, 1001, kind)
    pickles = [*(pickle.dumps(value, 2) for value in head), tensor, pickle.dumps(["0"], 2)]
    file.write_bytes(b"".join(pickles) + struct.pack("<q", 0x70000000) + b"1234")


def zip_in_a_zip(file):
    inner = io.BytesIO()
    torch.save(STEM_AND_HEAD, inner)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/inner.pth", inner.getvalue())


def dimensions(file):
    header = json.dumps({"a": {"dtype": "U8", "shape": [0] * 2_000_000, "data_offsets": [0, 0]}}).encode()
    file.with_suffix(".safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


BOMBS = {
    empty_classifier: r"classifier.weight is empty, of shape \(3000000, 0\)",
    expanded: r"classifier.weight is expanded to \(3000000, 1024\) from less memory",
    narrow_classifier: "3,000,000 classes and 3 channels: expected at most 100,000 and 10,000",
    many_channels: "0 classes and 3,000,000 channels",
    deflated_pickle: "archive/data.pkl in it is compressed, which torch.save never does",
    deflated_storages: "in it is compressed",
    overlapping_members: "larger than the file: they overlap",
    many_tensors: "the zip archive has 20,00[0-9] members",
    one_tensor_many_names: "3,002 tensors: expected at most 2,000",
    one_large_tensor_many_names: "the tensors share 4,001,732 bytes of memory, and would take 4,000,001,732",
    many_tensors_in_safetensors: "2,001 tensors, .*: expected at most 2,000",
    tuples_in_tuples: "a tuple with more than 100,000 values inside",
    bytearray_of_2_gb: "it holds a bytearray, which may be of any size",
    nine_million_values: "more than 500,000 values",
    string_of_4_gb: "the pickle in it is damaged: expected 4294967295 bytes",
    old_string_of_4_gb: "the pickle in it is damaged: expected 4294967295 bytes",
    old_storage_of_7_gb: "cannot be read as weights",
    zip_in_a_zip: "a zip archive, but none of torch.save: it has no data.pkl",
    dimensions: "its header would take 6000[0-9]+, expected at most 4,000,000",
}


def peak():
    """The most memory that this process has held since the mark was last reset, in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))


@pytest.mark.parametrize("make", BOMBS, ids=lambda make: make.__name__)
def test_a_bomb_does_not_go_off(tmp_path, make):
    make(tmp_path / "x.pth")
    (file,) = tmp_path.iterdir()
    try:
        with open("/proc/self/clear_refs", "w") as mark:
            mark.write("5")
    except OSError:
        pytest.skip("needs a Linux that can say how much memory was held")
    held, start = peak(), time.perf_counter()
    with pytest.raises(WeightsError, match=BOMBS[make]) as info:
        mnv3.load_checkpoint(file, model="mnv3_small")
    assert "\n" not in str(info.value)
    assert str(info.value).startswith(str(file))
    assert len(str(info.value)) < 500
    assert peak() - held < 300_000_000
    assert time.perf_counter() - start < 10


# --- damage (issue 13) -----------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path, model):
    """The checksums of a zip archive are looked at; 23 of 42 flips gave other answers without."""
    file = tmp_path / "x.pth"
    torch.save(model.state_dict(), file)
    data, expected, rng, refused = file.read_bytes(), model.state_dict(), random.Random(0), 0
    for _ in range(100):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        try:
            found = read_checkpoint(file)
        except WeightsError as error:
            assert str(error).startswith(str(file))  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
            refused += 1
        else:
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert refused > 50


def test_a_download_with_a_flipped_bit_is_damaged(tmp_path, model):
    file = tmp_path / "x.pth"
    torch.save(model.state_dict(), file)
    assert checkpoint.damage(file) is None
    data = bytearray(file.read_bytes())
    at = data.index(model.state_dict()["stem.conv.weight"].numpy().tobytes())
    data[at] ^= 1
    file.write_bytes(data)
    assert "the zip archive is damaged: Bad CRC-32" in checkpoint.damage(file)


def test_older_files_of_torch_save_load(tmp_path, model):
    torch.save({"state_dict": model.state_dict()}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    found = read_checkpoint(tmp_path / "x.pth")["state_dict"]
    assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())


def test_a_whole_training_state_is_within_the_limits(tmp_path):
    """A third of them at most, for the largest model with everything that a trainer keeps."""
    large = timm.create_model("mnv3_large", num_classes=10)
    optimizer = torch.optim.AdamW(large.parameters())
    large(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    state = large.state_dict()
    checkpoint = {"state_dict": state, "optimizer": optimizer.state_dict()}
    checkpoint["state_dict_ema"] = {key: value.clone() for key, value in state.items()}
    torch.save(checkpoint, tmp_path / "x.pth")
    records = archives.read_records(tmp_path / "x.pth")
    count = sum(1 for _ in archives._opcodes(io.BytesIO(records["data.pkl"])))
    assert count < archives.MAX_OPCODES / 3
    assert len(records["data.pkl"]) < archives.MAX_PICKLE / 3
    assert len(records) < archives.MAX_MEMBERS / 3
    assert family_of(read_checkpoint(tmp_path / "x.pth")).num_classes == 10


# --- tensors that are no weights (issue 13) --------------------------------------------------------------------------

TENSOR = torch.linspace(0.5, 1, 8)
NONSENSE = {
    "NaN": (TENSOR.log() * float("nan"), "has 8 of 8 values that are NaN or infinite"),
    "infinite": (TENSOR / torch.tensor([1, 1, 1, 1, 1, 1, 1, 0]), "has 1 of 8 values that are NaN or infinite"),
    "absurd": (TENSOR * 1e38, "has a value beyond 1e.10: a training that diverged, or a damaged file"),
    "integer": (TENSOR.long(), "is of type torch.int64: expected a dense tensor of floating-point numbers"),
    "bool": (TENSOR.bool(), "is of type torch.bool"),
    "complex": (TENSOR.to(torch.complex64), "is of type torch.complex64"),
    "8 bits": (TENSOR.to(torch.float8_e4m3fn), "is of type torch.float8_e4m3fn"),
    "sparse": (TENSOR.to_sparse(), r"is sparse \(torch.sparse_coo\)"),
    "quantised": (torch.quantize_per_tensor(TENSOR, 0.1, 0, torch.quint8), r"is quantised \(torch.quint8\)"),
    "meta": (TENSOR.to("meta"), "is without values, on the meta device"),
    "expanded": (torch.ones(()).expand(8), r"is expanded to \(8,\) from less memory \(strides \(0,\)\)"),
    "empty": (TENSOR[:0], r"is empty, of shape \(0,\)"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_what_is_no_weight_is_refused_by_name(tmp_path, model, name):
    tensor, message = NONSENSE[name]
    spoilt = model.state_dict() | {"stem.norm.running_var": tensor}
    refused = pytest.raises(WeightsError, match=f"stem.norm.running_var {message}")
    with refused:
        convert_state_dict(spoilt, model)
    with refused:
        timm.create_model(
            "mnv3_small", arch=TINY, pretrained=True, num_classes=4, pretrained_cfg_overlay={"state_dict": spoilt}
        )
    if name != "quantised":  # which PyTorch warns of
        torch.save({"state_dict": spoilt}, tmp_path / "x.pth")
        with refused:
            mnv3.load_checkpoint(tmp_path / "x.pth", model="mnv3_small", arch=TINY)
    if name in ("NaN", "infinite", "absurd", "integer", "bool"):
        folder = mnv3.save(model, tmp_path / "net")
        save_file(spoilt, folder / WEIGHTS_FILE)
        with refused:
            mnv3.load_checkpoint(folder)
        with refused:
            timm.create_model(f"local-dir:{folder}", pretrained=True)


def test_negative_variances_are_refused(model):
    key = "blocks.1.depthwise.norm.running_var"
    spoilt = model.state_dict() | {key: -model.state_dict()[key]}
    with pytest.raises(WeightsError, match=f"{key} has a variance of -"):
        convert_state_dict(spoilt, model)
    theirs = randomize(torchvision.models.mobilenet_v3_small()).state_dict()
    theirs["features.0.1.running_var"][3] = -0.5
    with pytest.raises(WeightsError, match=r"stem.norm.running_var has a variance of -0.5: a damaged file"):
        convert_state_dict(theirs, mnv3.MobileNetV3("small"))


def test_a_dead_channel_trained_with_a_smaller_eps_comes_back(model):
    """Folding leaves its variance between -1e-5 and 0, which is no damage."""
    dead = model.state_dict() | {"stem.norm.running_var": torch.zeros(8)}
    once = convert_state_dict(dead, model, bn_eps=1e-6)
    assert once["stem.norm.running_var"].max() < 0
    again = convert_state_dict(once, model)
    assert torch.equal(again["stem.norm.running_var"], once["stem.norm.running_var"])


def test_eps_that_no_batch_norm_has(model):
    for eps in (float("nan"), float("inf"), -5, 0, 2):
        with pytest.raises(ValueError, match=f"bn_eps={eps}: expected a number above 0 and at most 1"):
            convert_state_dict(model.state_dict(), model, bn_eps=eps)


def test_other_memory_layouts_are_weights(model):
    """Channels last, a slice of something larger, every second column, tied tensors."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state["stem.conv.weight"] = state["stem.conv.weight"].to(memory_format=torch.channels_last)
    state["classifier.weight"] = torch.cat([state["classifier.weight"]] * 2)[4:]
    state["head.bias"] = torch.stack([state["head.bias"]] * 2, dim=1)[:, 0]
    state["last.norm.bias"] = state["last.norm.weight"]
    found = convert_state_dict(state, model)
    assert all(torch.equal(found[key], state[key]) for key in state)


# --- shapes and names that no layout has (issue 13) ------------------------------------------------------------------


@pytest.fixture(scope="module")
def layouts():
    """The same architecture's state dict in every layout."""
    models = {
        "mnv3": mnv3.MobileNetV3("small"),
        "timm": timm.create_model("mobilenetv3_small_100"),
        "torchvision": torchvision.models.mobilenet_v3_small(),
        "d-li14": DLi14(arch.SMALL, fixed=True),
    }
    return {name: randomize(model).state_dict() for name, model in models.items()}


SPOILT = {
    "stem of no dimension": ("mnv3", {"stem.conv.weight": torch.tensor(1.0)}, "expected .stem, channels, 3, 3."),
    "stem of one": ("timm", {"conv_stem.weight": torch.ones(16)}, r"conv_stem.weight is of shape \(16,\)"),
    "classifier of no dimension": ("timm", {"classifier.weight": torch.tensor(1.0)}, r"of shape \(\): expected"),
    "squeeze of one": ("mnv3", {"blocks.1.se.squeeze.bias": torch.ones(7)}, "mnv3 weights do not fit"),
    "no expansion": ("mnv3", {"blocks.0.depthwise.conv.weight": torch.tensor(1.0)}, "mnv3 weights do not fit"),
    "number without end": ("torchvision", {"features.99999999999.0.weight": torch.ones(1)}, "do not fit"),
    "number of 400 digits": ("torchvision", {f"features.{'9' * 400}.0.weight": torch.ones(1)}, "do not fit"),
    "too many parts": (
        "torchvision",
        {f"features.2.block.{i}.0.weight": torch.ones(1) for i in range(5, 9)},
        r"features.2.block has \d convolutions: a block of MobileNetV3 has two or three",
    ),
    "no parts": (
        "torchvision",
        {"features.11.0.weight": torch.ones(1), "features.50.x": torch.ones(1)},
        "has 0 convolutions",
    ),
    "many convolutions": (
        "d-li14",
        {f"features.2.conv.{i}.weight": torch.ones(1, 1, 1, 1) for i in range(20, 25)},
        r"features.2.conv has \d convolutions",
    ),
    "control characters": ("timm", {"a\n\x1b[31m.weight": torch.ones(1)}, r"a\\n\\x1b\[31m of the file.weight"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_shapes_and_names(layouts, name):
    layout, changes, message = SPOILT[name]
    with pytest.raises(WeightsError, match=message) as info:
        convert_state_dict(family_of(layouts[layout] | changes).state_dict, mnv3.MobileNetV3("small"))
    assert "\n" not in str(info.value)
    assert len(str(info.value)) < 700
