"""Every table of figures in the documents is what benchmarks/tables.py makes of its record."""

import json
import re
import shutil
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import record
import rendered_speed
import tables

MEASURED = {"ms", "difference", "top1", "agreement", "network", "litert", "mnv3", "images_per_s", "with"}
RECORDS = sorted(path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json"))
DOCUMENTS = [path.relative_to(ROOT).as_posix() for path in tables.documents(ROOT)]


@pytest.fixture
def copy(tmp_path):
    """The documents and records, to be changed."""
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (tmp_path / "docs").mkdir()
    for name in DOCUMENTS:
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def run(root, monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["tables.py", "--root", str(root), *options])
    return tables.main()


def test_documents_are_what_their_records_give(monkeypatch, capsys):
    assert run(ROOT, monkeypatch, "--check") == 0, f"`make tables`: {capsys.readouterr().err}"


def test_every_table_stands_somewhere_and_every_record_is_used():
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS)
    assert set(re.findall(r"<!-- table: (\S+) -->", text)) == set(tables.TABLES)
    assert set(RECORDS) <= {name.partition(".")[0] for name in tables.TABLES}


@pytest.mark.parametrize("name", RECORDS)
def test_what_a_record_says(name):
    found = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", found["date"])
    assert re.match(r"(python benchmarks/|mnv3 )\w+", found["command"])
    script = re.match(r"python (\S+)", found["command"])
    assert script is None or (ROOT / script[1]).is_file()
    assert {"machine", "versions"} <= found.keys()


@pytest.mark.parametrize("name", RECORDS)
def test_a_figure_changed_in_a_record(name, copy, monkeypatch, capsys):
    path = copy / "benchmarks" / "results" / f"{name}.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    if name == "ablation":  # its rows are a file that `mnv3 show` reads
        path = copy / "benchmarks" / "ablation.json"
        found = json.loads(path.read_text(encoding="utf-8"))
        found[0]["mean"] += 1
    else:
        row = found.get("rows", found.get("cells"))[0]
        for key in row.keys() & MEASURED:
            row[key] = [1 + part for part in row[key]] if isinstance(row[key], list) else 1 + row[key]
    path.write_text(json.dumps(found), encoding="utf-8")
    assert run(copy, monkeypatch, "--check") == 1
    assert f"table {name} is not what its record gives" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if tables.PLACE.search((ROOT / name).read_text("utf-8"))])
def test_a_figure_changed_in_a_document(name, copy, monkeypatch, capsys):
    path = copy / name
    text = path.read_text(encoding="utf-8")
    for place in tables.PLACE.finditer(text):
        digit = re.search(r"\d(?=\D*$)", place["content"]) if place["name"] != "formats" else None
        if digit is None:
            continue
        at = place.start("content") + digit.start()
        path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :], encoding="utf-8")
        assert run(copy, monkeypatch, "--check") == 1, place["name"]
        assert f"{name}: table {place['name']} is not what its record gives" in capsys.readouterr().err
        assert run(copy, monkeypatch) == 0
        assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("\n| a | b |\n| --- | ---: |\n| x | 1.5 |\n", "a table of figures outside of"),
        ("\n  | a |\n  | :-: |\n", "a table of figures outside of"),
        ("\n<!-- table: latensy -->\n<!-- end -->\n", "table 'latensy' is unknown: expected one of models"),
        ("\n<!-- table: eager -->\n", "a table of figures outside of"),
    ],
)
def test_tables_that_nobody_makes(added, message, copy, monkeypatch, capsys):
    path = copy / "docs" / "deploy.md"
    text = path.read_text(encoding="utf-8") + added + "\n| a |\n| ---: |\n" * ("eager" in added)
    path.write_text(text, encoding="utf-8")
    assert run(copy, monkeypatch) == 1
    assert message in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == text, "nothing is written into it"


def test_shares_of_the_limit(tmp_path):
    """10^9 multiply-adds, thus 2 x 10^9 operations, in 4 ms are 500 GFLOP/s."""
    cell = {"macs": 10**9, "batch": 1, "ms": 4.0, "limit": {"float32": 1000.0, "int8": 4000.0}}
    assert rendered_speed.share(cell) == pytest.approx(50)
    assert rendered_speed.share(cell, "int8") == pytest.approx(12.5)
    assert rendered_speed.share(cell | {"batch": 2}) == pytest.approx(100)
    assert rendered_speed.of_limit([cell, cell | {"ms": 8.0}]) == " (50 / 25 %)"
    assert rendered_speed.share(cell | {"limit": None}) is None


def test_the_limit_stands_beside_the_figures(copy):
    results = copy / "benchmarks" / "results"
    for name in ("latency", "int8_speed"):
        found = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
        for cell in found["cells"]:
            cell["limit"] = {"float32": 1000.0 * cell["threads"], "int8": 4000.0 * cell["threads"]}
        (results / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")
    for name in ("summary", "summary.zh", "int8_speed"):
        text = " ".join(tables.TABLES[name](results).split())  # lines end anywhere
        assert "1,000 / 2,000 GFLOP/s" in text
        assert "4,000 / 8,000 GOP/s" in text
        assert re.search(r"\d \(\d+ / \d+ %\) \|", text)
    assert "2 threads, batch 1, ms (in brackets: per cent of the matrix rate, 2,000 GFLOP/s" in tables.TABLES[
        "latency"
    ](results)


def test_a_record_is_written(tmp_path, monkeypatch):
    folder = tmp_path / "pictures"
    folder.mkdir()
    words = ["/x/benchmarks/int8.py", "--pictures", str(folder), "--json", "out.json", "--models", "timm/resnet18"]
    monkeypatch.setattr(sys, "argv", words)
    record.write(tmp_path / "new" / "out.json", ("torch",), versions={"Chromium": "156"}, rows=[{"ms": 1.5}, {"ms": 2}])
    text = (tmp_path / "new" / "out.json").read_text(encoding="utf-8")
    found = json.loads(text)
    assert found["command"] == "python benchmarks/int8.py --pictures pictures --models timm/resnet18"
    assert found["versions"].keys() == {"torch", "Chromium"}
    assert found["rows"] == [{"ms": 1.5}, {"ms": 2}]
    assert text.count("\n") == 10, "a line for each key and row"
