"""The tables of the documents, of the records in benchmarks/results/ and of the package: `tables.py` puts them in.

A function for each table gives its Markdown; what was measured has a caption with date, machine, versions and command.
"""
# ruff: noqa: RUF001 (Chinese)

import contextlib
import io
import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from record import ratio_as_text

from mnv3.arch import VARIANTS, count_macs, count_params
from mnv3.catalog import checkpoints, split_name
from mnv3.cli.main import main as mnv3
from mnv3.deploy import FORMATS
from mnv3.text import markdown_table

WIDTH = 125  # of a line of the documents
UNBROKEN = "\0"  # a space that a line does not end at
Record = dict[str, Any]


def read(results: Path, name: str) -> Record:
    """A record by its name."""
    return json.loads((results / f"{name}.json").read_text(encoding="utf-8"))


def caption(record: Record, *notes: str, packages: Sequence[str] = (), chinese: bool = False) -> str:
    """When, on what and how a table was measured.

    Args:
        record: The table's.
        notes: Sentences to go before.
        packages: Those whose versions are said; by default all that are known.
        chinese: For README.zh-CN.md, which does not break lines.
    """
    known = {name: text.partition("+")[0] for name, text in record["versions"].items()}
    versions = ", ".join(f"{name} {text}" for name, text in known.items() if not packages or name in packages)
    note = record.get("note")
    parts = [record["machine"], versions, f"`{record['command']}`", note]
    if chinese:
        return "".join((*notes, f"{record['date']} 测量：{'；'.join(part for part in parts if part)}。"))
    text = " ".join((*notes, f"Measured {record['date']}: {'; '.join(part for part in parts if part)}."))
    text = re.sub(r"`[^`]{1,80}`", lambda code: code[0].replace(" ", UNBROKEN), text)
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False).replace(UNBROKEN, " ")


def in_threads(count: int) -> str:
    """How many threads, in words."""
    return f"{count} thread{'s' * (count > 1)}"


def with_caption(table: str, record: Record, *notes: str) -> str:
    return f"{table}\n\n{caption(record, *notes)}"


def models(results: Path, *, chinese: bool = False) -> str:
    """Every model of the package, and the tags of its weights with their accuracy, the default first."""
    rows = [("model", "params/M", "MACs/M", "weights, top-1/%")]
    if chinese:
        rows = [("模型", "参数量/M", "乘加次数/M", "权重，top-1/%")]
    for name, variant in VARIANTS.items():
        size, classes = variant.size, variant.num_classes
        params = count_params(variant.arch, num_classes=classes)
        macs = count_macs(variant.arch, size=size, num_classes=classes)
        tags = (f"{entry.tag} {entry.top1:.2f}" if entry.top1 else entry.tag for entry in checkpoints(name))
        rows.append((name, f"{params / 1e6:.2f}", f"{macs / 1e6:.1f}", ", ".join(tags) or "-"))
    return markdown_table(rows, "<>><")


def weights(results: Path) -> str:
    """The catalog."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        mnv3(["list", "--markdown"])
    return printed.getvalue().strip()


def formats(results: Path) -> str:
    """What `mnv3 export` writes."""
    files = {"onnx": ".onnx, opset 18", "openvino": ".xml, .bin", "executorch": ".pte, XNNPACK", "ncnn": ".param, .bin"}
    rows = [("`--to`", "file", "extra", "dynamic", "`--half`", "input", "says what it is in")]
    for name, entry in FORMATS.items():
        extra = entry.extra if entry.runtime or entry.writers else "-"
        dynamic = "always both" if name == "torchscript" else ", ".join(entry.dynamic) or "-"
        takes = "(B, H, W, 3)" if entry.layout == "NHWC" else "(B, 3, H, W)" if entry.batches else "(3, H, W)"
        where = "the file" if entry.own_metadata else f"{entry.suffix}.json"
        rows.append((name, files.get(name, entry.suffix), extra, dynamic, "yes" if entry.half else "-", takes, where))
    return markdown_table(rows, "<<<<<<<")


def grid(rows: Sequence[Record], row: str, column: str) -> tuple[list[Any], list[Any], dict[tuple[Any, Any], Record]]:
    """Records by two of their keys: the rows' names, the columns', and the record of each cell."""
    found = {(entry[row], entry[column]): entry for entry in rows}
    return list(dict.fromkeys(key for key, _ in found)), list(dict.fromkeys(key for _, key in found)), found


def export(results: Path) -> str:
    """Largest difference of a logit, by model and format."""
    record = read(results, "export")
    run = [row for row in record["rows"] if row["difference"] is not None]  # Core ML's are not
    names, columns, found = grid(run, "model", "format")
    rows = [("model", "logits up to", *columns)]
    for name in names:
        cells = [found[name, to] for to in columns]
        rows.append((name, f"{cells[0]['largest']:.3g}", *(f"{cell['difference']:.1e}" for cell in cells)))
    same = all(row["agreement"] == 100 for row in run)
    note = "The most likely class is the same everywhere." if same else "The most likely class is not always the same!"
    return with_caption(markdown_table(rows, "<" + ">" * (len(columns) + 1)), record, note)


def int8_cifar(results: Path) -> str:
    """Accuracy in 8 bits."""
    record = read(results, "int8_cifar")
    names, columns, found = grid(record["rows"], "model", "runtime")
    rows = [("model", "float32", *columns)]
    for name in names:
        cells = [found[name, to] for to in columns]
        rows.append((name, f"{cells[0]['float_top1']:.2f}", *(f"{cell['top1']:.2f}" for cell in cells)))
    rows.append(("file, % of float32's weights, row by row", "", *_shares(names, columns, found)))
    return with_caption(markdown_table(rows, "<>" + ">" * len(columns)), record)


def int8_imagenet(results: Path) -> str:
    """Agreement of 8 bits with float32."""
    record = read(results, "int8_imagenet")
    names, columns, found = grid(record["rows"], "model", "runtime")
    rows = [("weights", *columns)]
    rows += [(name, *(f"{found[name, to]['agreement']:.1f}" for to in columns)) for name in names]
    rows.append(("file, % of float32's weights, row by row", *_shares(names, columns, found)))
    return with_caption(markdown_table(rows, "<" + ">" * len(columns)), record)


def _shares(names: list[str], columns: list[str], found: dict[tuple[str, str], Record]) -> list[str]:
    return [", ".join(f"{found[name, to]['share']:.0f}" for name in names) for to in columns]


def eager(results: Path) -> str:
    """Beside timm and torchvision in eager mode."""
    record = read(results, "eager")
    rows = [("model", "threads", "", "ms", "/ timm", "/ torchvision")]
    for row in record["rows"]:
        ratios = [ratio_as_text(row[f"to {other}"]) for other in ("timm", "torchvision")]
        rows.append((row["model"], row["threads"], row["what"], f"{row['ms']:.1f}", *ratios))
    return with_caption(markdown_table(rows, "<><>>>"), record)


def browser(results: Path) -> str:
    """The demo page."""
    record = read(results, "browser")
    columns = ("browser: resizing", "browser: network", "ONNX Runtime in Python", "ratio")
    rows = [("ms for one picture", "px", "threads", *columns)]
    for row in record["rows"]:
        figures = (f"{row['resizing']:.1f}", f"{row['network']:.1f}", f"{row['python']:.2f}", f"{row['ratio']:.1f}")
        rows.append((row["model"], row["size"], row["threads"], *figures))
    return with_caption(markdown_table(rows, "<>>>>>>"), record)


def cifar10(results: Path) -> str:
    """Our checkpoints on CIFAR-10 beside published ones."""
    record = read(results, "cifar10")
    rows = [("", "top-1 / %", "MACs / M at 32 px", "parameters / M", "")]
    for source, name, top1, macs, params in _cifar10(results):
        rows.append(
            (name, top1, f"{macs / 1e6:.1f}" if macs else "-", f"{params / 1e6:.2f}" if params else "-", source)
        )
    mirrored = (f"`{row['model']}` {row['flip']:.2f}" for row in record["rows"])
    note = f"With the mirror image: {', '.join(mirrored)}."
    return with_caption(markdown_table(rows, "<>>><"), record, note)


def cifar10_by_source(results: Path, *, chinese: bool = False) -> str:
    """As `cifar10`, a row for each source: its networks with their accuracy and, in brackets, MACs."""
    rows = [("CIFAR-10, 32 px", "top-1/% (MACs/M)")]
    if chinese:
        rows = [("CIFAR-10，32 像素", "top-1/%（乘加次数/M）")]
    found: dict[str, list[str]] = {}
    for source, name, top1, macs, _ in _cifar10(results):
        source = "原始文档" if chinese and source == "the document" else source
        found.setdefault(source, []).append(f"{name} {top1}" + (f" ({macs / 1e6:.1f})" if macs else ""))
    return markdown_table([*rows, *((source, ", ".join(texts)) for source, texts in found.items())], "<<")


def _cifar10(results: Path) -> list[tuple[str, str, Any, int | None, int | None]]:
    """Source, name, top-1, MACs at 32 px and parameters of our networks for CIFAR-10, and of those published."""
    found = []
    for row in read(results, "cifar10")["rows"]:
        arch = VARIANTS[split_name(row["model"])[0]].arch
        costs = count_macs(arch, size=32, num_classes=10), count_params(arch, num_classes=10)
        found.append(("mnv3", f"`{row['model']}`", f"**{row['top1']:.2f}**", *costs))
    for row in json.loads((results.parent / "cifar10_published.json").read_text(encoding="utf-8"))["models"]:
        source = row["source"].split("/")[3] if "/" in row["source"] else "the document"
        name = re.sub(r"^(document,|kuangliu) ", "", row["name"])
        found.append((source, name, row["top1"], row["macs"], row["params"]))
    return found


def cifar10_trials(results: Path) -> str:
    """What was tried for our checkpoints on CIFAR-10."""
    record = read(results, "cifar10_trials")
    rows = [("", "what", "epochs", "pictures", "without", "with")]
    for row in record["rows"]:
        top1 = (f"{row[key]:.2f}" for key in ("without", "with"))
        rows.append((row["model"], row["what"], row["epochs"] or "-", row["on"], *top1))
    return with_caption(markdown_table(rows, "<<><>>"), record)


def ablation(results: Path) -> str:
    """Squeeze-and-excite and h-swish, with and without."""
    record = read(results, "ablation")
    what = {"none": "- | -", "se": "yes | -", "hs": "- | yes", "both": "yes | yes"}
    what["se-first"] = "before the activation | yes"
    figures = ("top-1", "the document's", "parameters / M", "MACs / M", "latency")
    rows = [("squeeze-and-excite", "h-swish", *figures)]
    for row in json.loads((results.parent / "ablation.json").read_text(encoding="utf-8")):
        top1, document = f"{row['mean']:.2f} ± {row['sd']:.2f}", record["document"].get(row["variant"], "")
        costs = (f"{row['params'] / 1e6:.3f}", f"{row['macs'] / 1e6:.2f}", f"{row['latency_ms']:.2f}")
        rows.append((*what[row["variant"]].split(" | "), top1, document, *costs))
    return with_caption(markdown_table(rows, "<<>>>>>"), record)


def training(results: Path) -> str:
    """Images a second of a training."""
    record = read(results, "training")
    whats = ("mnv3", "mnv3, float32", "timm, float32", "timm, bfloat16")
    others = ("timm, float32", "timm, bfloat16", "mnv3, one thread")
    rows = [("model", "", *whats, *(f"mnv3 / {other}" for other in others))]
    found = {(row["model"], row["threads"], row["what"]): row for row in record["rows"]}
    for model, threads in dict.fromkeys((row["model"], row["threads"]) for row in record["rows"]):
        parts = [(in_threads(threads), whats)]
        if threads > 1:
            parts.append((f"{threads} processes", ("mnv3, processes",)))
        for part, names in parts:
            own = [found[model, threads, name] for name in names]
            rates = [f"{row['images_per_s']}" for row in own] + ["-"] * (len(whats) - len(own))
            ratios = [own[0].get(f"to {other}") for other in others]
            rows.append((model, part, *rates, *(ratio_as_text(ratio) if ratio else "-" for ratio in ratios)))
    return with_caption(markdown_table(rows, "<<>>>>>>>"), record)


def training_profile(results: Path) -> str:
    """Milliseconds of an update of a training, and of its operators."""
    record = read(results, "training_profile")
    columns = [f"{row['model']}: {in_threads(row['threads'])}, {row['pictures']}" for row in record["rows"]]
    parts = [part for part in record["rows"][0] if part not in ("model", "threads", "pictures", "ms")]
    lines = [("an update", *(f"{row['ms']:.0f}" for row in record["rows"]))]
    lines += [(part, *(f"{row[part]:.0f}" for row in record["rows"])) for part in parts]
    rest = [row["ms"] - sum(row[part] for part in parts) for row in record["rows"]]
    lines.append(("all else", *(f"{ms:.0f}" for ms in rest)))
    return with_caption(markdown_table([("ms; threads, pictures", *columns), *lines], "<" + ">" * len(columns)), record)


def training_gain(results: Path, over: str, between: str) -> str:
    """From how many to how many times as fast as timm: a figure in a sentence."""
    ours = [row for row in read(results, "training")["rows"] if row["what"] in ("mnv3", "mnv3, processes")]
    ratios = [row[f"to timm, {over}"]["median"] for row in ours]
    return f"{min(ratios):.1f} {between} {max(ratios):.1f}"


def predict(results: Path) -> str:
    """From picture files to labels."""
    record = read(results, "predict")
    columns = ("`mnv3 predict`", "`--exact`", "timm, as its inference.py", "torchvision's transforms")
    rows = [("JPEGs of", *columns, "ratio to the better")]
    for row in record["rows"]:
        rates = [f"{row[key]:.0f}" for key in ("mnv3", "exact", "timm", "torchvision")]
        rows.append((" x ".join(f"{side:,}" for side in row["size"]), *rates, f"{row['ratio']:.1f}"))
    other = [f"{row['other']} of {record['pictures']}" for row in record["rows"]]
    note = f"With `--exact` the most likely class is another in {' and '.join(other)}."
    return with_caption(markdown_table(rows, "<>>>>>"), record, note)


def import_tflite(results: Path) -> str:
    """Quantised TFLite files."""
    record = read(results, "import_tflite")
    names = {"v3-small": "Small", "v3-large-minimalistic": "Large minimalistic"}
    rows = [("top-1, %", "in LiteRT", "as plain floats, as timm has them", "calibrated")]
    for row in record["rows"]:
        cells = [" / ".join(f"{top1:.1f}" for top1 in row[key]) for key in ("litert", "plain", "calibrated")]
        rows.append((names.get(row["file"].partition("_")[0], row["file"]), *cells))
    return with_caption(markdown_table(rows, "<>>>"), record)
