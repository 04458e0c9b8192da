"""Predictions in files: whole or not at all, the same after a kill and in any number of processes."""

import csv
import json
from pathlib import Path

import pytest

from mnv3.errors import DataError
from mnv3.pictures.predict import Prediction
from mnv3.pictures.prediction_files import PredictionFile

FILES = [Path(f"pictures/{i}.jpg") for i in range(7)]
SETTINGS = {"model": "net", "topk": 2}


def prediction(file):
    number = int(file.stem)
    if number == 3:
        return Prediction(file, [], f"{file}: not a picture")
    top = [{"index": i, "label": f"kind, {i}", "prob": p} for i, p in ((number, 0.75), (9, 0.125))]
    return Prediction(file, top)


def write(file, *, stop=None, files=FILES, **options):
    """A run, that dies after `stop` predictions."""
    with PredictionFile(file, options.pop("settings", SETTINGS), **options) as output:
        for count, path in enumerate(output.remaining(files)):
            if count == stop:
                return None
            output.add(prediction(path))
    return output


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("stop", [0, 1, 5, 7])
def test_killed_and_resumed(tmp_path, ending, stop):
    """The file of a run that was killed anywhere, also within a line, is that of one that was not."""
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    whole, resumed = tmp_path / f"whole{ending}", tmp_path / f"resumed{ending}"
    assert write(whole).finish() == 7
    write(resumed, stop=stop)
    assert not resumed.exists()
    partial = tmp_path / f"resumed{ending}.partial"
    with open(partial, "a") as lines:
        lines.write('{"file": "pictures/')
    assert write(resumed, resume=True).finish() == 7
    assert resumed.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"resumed{ending}", f"whole{ending}"]


def test_contents(tmp_path):
    for ending in (".jsonl", ".csv"):
        write(tmp_path / f"a{ending}").finish()
    records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [record["file"] for record in records] == [str(file) for file in FILES]
    assert records[3] == {"file": "pictures/3.jpg", "error": "pictures/3.jpg: not a picture"}
    assert records[4]["topk"][0] == {"index": 4, "label": "kind, 4", "prob": 0.75}
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["file", "index1", "label1", "prob1", "index2", "label2", "prob2", "error"]
    assert rows[5] == ["pictures/4.jpg", "4", "kind, 4", "0.75", "9", "kind, 9", "0.125", ""]
    assert rows[4] == ["pictures/3.jpg", "", "", "", "", "", "", "pictures/3.jpg: not a picture"]


def test_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write(tmp_path / "a.parquet").finish()
    rows = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert rows[4] == {
        "file": "pictures/4.jpg",
        "index": [4, 9],
        "label": ["kind, 4", "kind, 9"],
        "prob": [0.75, 0.125],
        "error": None,
    }
    assert (rows[3]["index"], rows[3]["error"]) == ([], "pictures/3.jpg: not a picture")


@pytest.mark.parametrize("world", [2, 3, 8])
def test_processes_share_the_pictures(tmp_path, world):
    alone, shared = tmp_path / "alone.jsonl", tmp_path / "shared.jsonl"
    write(alone).finish()
    outputs = [write(shared, files=FILES[rank::world], rank=rank, world=world) for rank in range(world)]
    assert outputs[0].finish() == 7
    assert shared.read_bytes() == alone.read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_odd_names(tmp_path):
    """Linux's names are bytes; one that is no UTF-8 comes back as it was."""
    odd = Path("pictures/1\udcff.jpg")
    for ending in (".jsonl", ".csv"):
        with PredictionFile(tmp_path / f"a{ending}", SETTINGS) as output:
            output.add(Prediction(odd, [], "no picture"))
        output.finish()
    assert json.loads((tmp_path / "a.jsonl").read_text())["file"] == str(odd)
    assert b"1\xff.jpg" in (tmp_path / "a.csv").read_bytes()


def test_what_is_refused(tmp_path):
    file = tmp_path / "a.jsonl"
    with pytest.raises(ValueError, match=r"a\.txt: expected a name that ends in \.jsonl, \.csv, \.parquet"):
        PredictionFile(tmp_path / "a.txt", SETTINGS)
    with pytest.raises(ValueError, match="no such folder"):
        PredictionFile(tmp_path / "none" / "a.csv", SETTINGS)
    with pytest.raises(ValueError, match=r"nothing to resume: there is no .*a\.jsonl\.partial"):
        PredictionFile(file, SETTINGS, resume=True)
    write(file, stop=4)
    with pytest.raises(FileExistsError, match="is of a run that did not end: go on with --resume, or remove it"):
        PredictionFile(file, SETTINGS)
    with pytest.raises(ValueError, match="was begun with topk 2, not 3: go on with the same"):
        PredictionFile(file, SETTINGS | {"topk": 3}, resume=True)
    for files, message in (
        (FILES[1:], "as picture 1, now it is pictures/1.jpg"),
        (FILES[:2], "picture 3, now there is none"),
    ):
        with pytest.raises(DataError, match=message):
            write(file, files=files, resume=True)
    (tmp_path / "b.jsonl.partial").write_text("[]\n")
    with pytest.raises(ValueError, match="is not of `mnv3 predict --out`"):
        PredictionFile(tmp_path / "b.jsonl", SETTINGS, resume=True)
    write(file, resume=True).finish()
    with pytest.raises(FileExistsError, match="choose another name, or replace it with --force"):
        PredictionFile(file, SETTINGS)
    write(file, exist_ok=True, files=FILES[:1]).finish()
    assert len(file.read_text().splitlines()) == 1
