"""Checkpoints of TF-Slim: one that TensorFlow wrote, with its logits, and others in the same format."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import randomize

import mnv3
from mnv3 import WeightsError, arch, convert_state_dict
from mnv3.convert import reading, slim as from_slim, tensorbundle
from mnv3.model import MobileNetV3

crc32c = pytest.importorskip("google_crc32c", reason="needs pip install 'mnv3[convert]'")
TENSORFLOWS = Path(__file__).parent / "data" / "slim" / "model.index"
TYPES = {np.dtype("f4"): 1, np.dtype("f8"): 2, np.dtype("f2"): 19, np.dtype("i8"): 9}


def test_what_tensorflow_wrote():
    """A MobileNetV3 of 8 channels and 5 classes, its checkpoint and logits both by TensorFlow 2.21 (float16 variables).

    data/slim/make.py did it. The picture has odd sides.
    """
    found = reading.read(TENSORFLOWS)
    assert found.note == "TF-Slim's weights of another width, 5 classes"
    assert found.options["arch"]["stem"] == 8
    model = found.build().eval()
    x = (np.arange(2 * 33 * 47 * 3) * 37 % 255 / 127.5 - 1).reshape(2, 33, 47, 3).astype("f4")
    logits = [
        [-7.6307955, 4.3640246, 6.2049590, 1.9923618, 0.6439875],
        [-23.1284294, -2.0863404, 21.3356590, 1.2967830, 7.9627013],
    ]
    with torch.no_grad():
        outputs = model(torch.from_numpy(x).permute(0, 3, 1, 2))
    torch.testing.assert_close(outputs, torch.tensor(logits), rtol=0, atol=1e-4)


# A writer of the format, to make what TensorFlow would not. TensorFlow reads what it writes.


def varint(n):
    return bytes([n & 127 | 128]) + varint(n >> 7) if n > 127 else bytes([n])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def masked(content):
    crc = crc32c.value(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, "little")


def entry(array, place, content, **changed):
    shape = b"".join(field(2, field(1, n)) for n in array.shape)
    values = {"dtype": TYPES[array.dtype], "shard": 0, "offset": place, "size": len(content), "crc": masked(content)}
    values |= changed
    fields = field(1, values["dtype"]) + field(2, shape) + field(3, values["shard"])
    return fields + field(4, values["offset"]) + field(5, values["size"]) + varint(6 << 3 | 5) + values["crc"]


def block(items, *, share=True):
    """Entries with what they share with the key before, and one restart point."""
    out, before = b"", b""
    for key, value in items:
        shared = 0
        while share and shared < min(len(key), len(before)) and key[shared] == before[shared]:
            shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    out += (0).to_bytes(4, "little") + (1).to_bytes(4, "little")
    return out


def table(items, per_block=20):
    out, handles = b"", []
    for start in range(0, len(items), per_block):
        chunk = items[start : start + per_block]
        content = block(chunk)
        handles.append((chunk[-1][0], varint(len(out)) + varint(len(content))))
        out += content + b"\0" + masked(content + b"\0")
    places = []
    for content in (block([]), block(handles, share=False)):
        places += [len(out), len(content)]
        out += content + b"\0" + masked(content + b"\0")
    return out + b"".join(map(varint, places)).ljust(40, b"\0") + tensorbundle.MAGIC


HEADER = field(1, 1) + field(3, field(1, 1))


def write(folder, arrays, *, header=HEADER, name="model", **changed):
    """`changed`: entries that lie, by name of the variable."""
    data, items = b"", [(b"", header)]
    for key, array in sorted(arrays.items()):
        content = array.tobytes()
        items.append((key.encode(), entry(array, len(data), content, **changed.get(key, {}))))
        data += content
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.data-00000-of-00001").write_bytes(data)
    (folder / f"{name}.index").write_bytes(table(items))
    return folder / f"{name}.index"


LEAVES = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
PLACES = {"stem": "Conv", "last": "Conv_1", "head": "Conv_2", "classifier": "Logits/Conv2d_1c_1x1"}


def slim(model, ending=""):
    """Variables of a model of ours under Slim's names, in TensorFlow's axes."""
    arrays = {}
    for key, value in model.state_dict().items():
        *parts, leaf = key.split(".")
        if leaf == "num_batches_tracked":
            continue
        if parts[0] == "blocks":
            place = "expanded_conv" + f"_{parts[1]}" * (parts[1] != "0")
            part = {"squeeze": "squeeze_excite/Conv", "excite": "squeeze_excite/Conv_1"}.get(parts[3], parts[2])
            place = f"{place}/{part}"
        else:
            place = PLACES[parts[0]]
        if parts[-1] == "norm":
            name = f"{place}/BatchNorm/{LEAVES[leaf]}"
        elif "depthwise" in parts:
            name, value = f"{place}/depthwise_weights", value.permute(2, 3, 0, 1)
        elif leaf == "weight":
            value = value[:, :, None, None] if value.ndim == 2 else value
            name, value = f"{place}/weights", value.permute(2, 3, 1, 0)
        else:
            name = f"{place}/biases"
        arrays[f"MobilenetV3/{name}{ending}"] = np.ascontiguousarray(value.numpy())
    return arrays


NARROW = arch.scale(arch.SMALL, 0.25)
EMA = "/ExponentialMovingAverage"


@pytest.fixture(scope="module")
def model():
    return randomize(MobileNetV3(NARROW, pad_type="same", num_classes=11, dtype=torch.float64))


FAST = ("mnv3_small_075_tf", "mnv3_large_minimal_tf")
OTHERS = [name for name, variant in arch.VARIANTS.items() if variant.pad_type == "same" and name not in FAST]


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_every_model(name, tmp_path):
    """Same weights, but for the eps: 1e-3 there, as `convert_state_dict` folds it."""
    theirs = randomize(mnv3.create_model(name, num_classes=1001))
    extras = {"global_step": np.array(388500, "i8"), "MobilenetV3/Conv/weights/RMSProp": np.zeros((3, 3, 3, 16), "f4")}
    found = from_slim.read(write(tmp_path, slim(theirs) | extras))
    assert (found.arch, found.options) == (name, {"num_classes": 1001})
    assert found.config == {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    expected = convert_state_dict(theirs.state_dict(), theirs, bn_eps=1e-3)
    assert found.state_dict.keys() == expected.keys()
    assert all(torch.equal(found.state_dict[key], value) for key, value in expected.items())
    again = mnv3.create_model(name)  # and the background class goes as everywhere
    again.load_state_dict(convert_state_dict(found.state_dict, again, drop_background=True))
    assert torch.equal(again.classifier.bias, theirs.classifier.bias[1:])


def test_averages(model, tmp_path):
    averaged = randomize(MobileNetV3(NARROW, pad_type="same", num_classes=11, dtype=torch.float64), seed=1)
    both, only = slim(model) | slim(averaged, EMA), slim(averaged, EMA)
    some = slim(model) | {name: array for name, array in slim(averaged, EMA).items() if "moving" not in name}
    for arrays, use_ema, expected in (
        (both, None, averaged),
        (both, True, averaged),
        (both, False, model),
        (only, None, averaged),
        (slim(model), None, model),
        (slim(model), False, model),
        (some, None, averaged),
    ):
        found = from_slim.read(write(tmp_path, arrays), use_ema=use_ema)
        assert torch.equal(found.state_dict["head.weight"], expected.head.weight)
        assert ("averaged" in found.note) == (expected is averaged)
        means = model if arrays is some else expected
        assert torch.equal(found.state_dict["stem.norm.running_mean"], means.stem.norm.running_mean)
    with pytest.raises(WeightsError, match="use_ema=True, but no variable has an average"):
        from_slim.read(write(tmp_path, slim(model)), use_ema=True)
    with pytest.raises(WeightsError, match="not a MobileNetV3: 0 blocks"):
        from_slim.read(write(tmp_path, {"MobilenetV3/Conv/biases": np.zeros(3, "f4")}))


def test_several_files_of_data(model, tmp_path):
    """Two shards; a variable of the second."""
    arrays = slim(model)
    name = "MobilenetV3/Conv_2/biases"
    second = np.arange(float(arrays[name].size))
    changed = {"shard": 1, "offset": 0, "crc": masked(second.tobytes())}
    index = write(tmp_path, arrays, header=field(1, 2), **{name: changed})
    with pytest.raises(WeightsError, match=r"model.data-0000\d-of-00002 is not beside it"):
        from_slim.read(index)
    (tmp_path / "model.data-00000-of-00001").rename(tmp_path / "model.data-00000-of-00002")
    (tmp_path / "model.data-00001-of-00002").write_bytes(second.tobytes())
    assert from_slim.read(index).state_dict["head.bias"].tolist() == second.tolist()


# What is refused.


def refused(index, message):
    with pytest.raises(WeightsError, match=message) as info:
        from_slim.read(index)
    assert str(index.parent) in str(info.value)
    assert "\n" not in str(info.value)


def test_not_an_index(tmp_path):
    index = tmp_path / "model.index"
    for content in (b"", b"<html>", bytes(10_000), tensorbundle.MAGIC, bytes(40) + tensorbundle.MAGIC):
        index.write_bytes(content)
        refused(index, "no index of a TensorFlow checkpoint")
    refused(tmp_path / "nowhere.index", "no index of a TensorFlow checkpoint")
    with open(index, "wb") as file:
        file.truncate(1 << 40)  # of which nothing is read
    refused(index, "too large for an index")


def test_damage_of_the_index(tmp_path):
    """A changed byte is noticed by a checksum or the structure, at once."""
    content = TENSORFLOWS.read_bytes()
    index = tmp_path / "model.index"
    data = TENSORFLOWS.with_name("model.data-00000-of-00001")
    (tmp_path / data.name).write_bytes(data.read_bytes())
    expected = from_slim.read(TENSORFLOWS).state_dict
    harmless = 0
    for at in range(0, len(content), 31):
        index.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        try:
            found = from_slim.read(index).state_dict
        except WeightsError:
            continue
        assert all(torch.equal(found[key], value) for key, value in expected.items())
        harmless += 1  # in the meta index, or the footer's zeros, which are not read
    assert harmless < 5
    for size in range(0, len(content), 997):
        index.write_bytes(content[:size])
        refused(index, "no index of a TensorFlow checkpoint")


def test_damage_of_the_data(tmp_path):
    content = TENSORFLOWS.with_name("model.data-00000-of-00001").read_bytes()
    (tmp_path / "model.index").write_bytes(TENSORFLOWS.read_bytes())
    data = tmp_path / "model.data-00000-of-00001"
    refused(tmp_path / "model.index", "model.data-00000-of-00001 is not beside it, where its tensors are")
    for at in (0, 12_345, len(content) - 9):  # the last eight are of global_step, which is not read
        data.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        refused(tmp_path / "model.index", "cannot be read: damaged or cut off: the checksum differs")
    data.write_bytes(content[:-9])
    refused(tmp_path / "model.index", "cut off|the file has")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"offset": 1 << 40}, "checksum differs"),
        ({"offset": 1 << 66}, "no index|cannot be read"),
        ({"size": 1 << 40}, "1099511627776 bytes for the shape"),
        ({"dtype": 9}, "type 9, no float"),
        ({"dtype": 2}, "bytes for the shape"),
        ({"shard": 7}, "data-00007-of-00001 is not beside it"),
        ({"shard": b"seven"}, "fields of other types"),
        ({"crc": bytes(4)}, "the checksum differs"),
    ],
    ids=str,
)
def test_entries_that_lie(changed, message, model, tmp_path):
    arrays = {name: array.astype("f4") for name, array in slim(model).items()}
    refused(write(tmp_path, arrays, **{"MobilenetV3/Conv_2/biases": changed}), message)


def test_many_entries_of_the_same_bytes(tmp_path):
    """What is read is never more than the file has."""
    content = np.zeros((1, 1, 500, 500), "f4").tobytes()
    (tmp_path / "model.data-00000-of-00001").write_bytes(content)
    array = np.zeros((1, 1, 500, 500), "f4")
    names = sorted(f"MobilenetV3/expanded_conv_{i}/expand/weights" for i in range(1, 900))
    items = [(b"", HEADER), *((name.encode(), entry(array, 0, content)) for name in names)]
    (tmp_path / "model.index").write_bytes(table(items))
    refused(tmp_path / "model.index", "of which the file has 0 left: cut off, or entries overlap")


def test_tables_that_would_fill_the_memory(tmp_path, monkeypatch):
    index = tmp_path / "model.index"
    long = b"MobilenetV3/" + b"x" * 2000
    index.write_bytes(table([(b"", HEADER), (long, b""), (long + b"y", b"")]))
    refused(index, "a name without end")
    monkeypatch.setattr(tensorbundle, "MAX_ENTRIES", 1000)
    index.write_bytes(table([(b"", HEADER)] + [(str(i).encode(), b"") for i in range(1001)], per_block=2000))
    refused(index, "more than 1000 tensors")
    monkeypatch.undo()
    out, handles = b"", []
    for content in (block([(b"", HEADER)]), block([(b"a", entry(np.zeros(1, "f4"), 0, bytes(4)))])):
        handles.append(varint(len(out)) + varint(len(content)))
        out += content + b"\0" + masked(content + b"\0")
    content = block([(b"0", handles[0])] + [(str(i).encode(), handles[1]) for i in range(1000, 6000)], share=False)
    place = varint(0) + varint(0) + varint(len(out)) + varint(len(content))
    tail = content + b"\0" + masked(content + b"\0") + place.ljust(40, b"\0") + tensorbundle.MAGIC
    index.write_bytes(out + tail)
    refused(index, "blocks overlap")


def test_other_networks(model, tmp_path):
    v2 = {name.replace("V3", "V2"): array for name, array in slim(model).items()}
    refused(write(tmp_path, v2), "no checkpoint of Slim's MobileNetV3: it holds MobilenetV2/Conv/BatchNorm/beta, ")
    detector = {f"FeatureExtractor/{name}": array for name, array in slim(model).items()}
    refused(write(tmp_path, detector), "no checkpoint of Slim's MobileNetV3: it holds FeatureExtractor/")
    fewer = {name: array for name, array in slim(model).items() if "conv_10/" not in name}
    refused(write(tmp_path, fewer), "not a MobileNetV3: 10 blocks")
    without = {name: array for name, array in slim(model).items() if "Conv_1/BatchNorm/gamma" not in name}
    refused(write(tmp_path, without), r"1 of \d+ tensors are wrong \(last.norm.weight missing\)")
    big_endian = field(1, 1) + field(2, 1)
    refused(write(tmp_path, slim(model), header=big_endian), "the high byte first")


def test_google_crc32c_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(ImportError, match=r"pip install 'mnv3\[convert\]'"):
        from_slim.read(TENSORFLOWS)
