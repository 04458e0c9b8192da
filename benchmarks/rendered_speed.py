"""The tables of speed in README and docs/deploy.md, beside the limit: how fast the processor multiplies matrices."""
# ruff: noqa: RUF001 (Chinese)

import textwrap
from collections.abc import Sequence
from pathlib import Path

from rendered import Record, caption, grid, in_threads, read

from mnv3.text import markdown_table

TIMM = {"mnv3_small": "timm/mobilenetv3_small_100", "mnv3_large": "timm/mobilenetv3_large_100"}
NAMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "executorch": "ExecuTorch", "tflite": "LiteRT"}
KINDS = {"float32": 32, "int8": 8}  # of a limit, and their bits
SUMMARY = (  # of README.md and README.zh-CN.md: a row's name, runtime and models
    ("timm, eager", "timm，eager", "eager", tuple(TIMM.values())),
    ("`mnv3.fuse`", "`mnv3.fuse`", "fused", tuple(TIMM)),
    (
        '`optimize`, in PyTorch alone (`candidates=["onednn"]`)',
        '`optimize`，只用 PyTorch（`candidates=["onednn"]`）',
        "onednn",
        tuple(TIMM),
    ),
    ("`optimize` (it took {})", "`optimize`（它选择了 {}）", "optimize", tuple(TIMM)),
    ("ResNet-50 of timm, eager", "timm 的 ResNet-50，eager", "eager", ("resnet50",)),
)


def share(cell: Record, kind: str = "float32") -> float | None:
    """What a cell reaches of the matrix rate, in per cent; None where that was not measured."""
    rate = cell["limit"] and cell["limit"][kind]
    return 2e-4 * cell["macs"] * cell["batch"] / cell["ms"] / rate if rate else None


def of_limit(cells: Sequence[Record], kind: str = "float32") -> str:
    """The shares of some cells in brackets, as far as they are known."""
    shares = [f"{part:.0f}" for cell in cells if (part := share(cell, kind))]
    return f" ({' / '.join(shares)} %)" if shares else ""


def limits(cells: Sequence[Record], *, chinese: bool = False) -> str:
    """The matrix rates by their threads, in words; nothing where they were not measured."""
    found = {cell["threads"]: cell["limit"] for cell in cells if cell["limit"]}
    float32, int8 = (" / ".join(f"{limit[kind]:,.0f}" for limit in found.values() if limit[kind]) for kind in KINDS)
    if not found:
        return ""
    if chinese:
        return f"float32 {float32} GFLOP/s" + (f"，8 位 {int8} GOP/s" if int8 else "")
    return f"{float32} GFLOP/s in float32" + (f", {int8} GOP/s in 8 bits" if int8 else "")


def _threads(cell: Record) -> str:
    return f"{in_threads(cell['threads'])}, batch {cell['batch']}"


def latency(results: Path) -> str:
    """Every model in every runtime, a table for each number of threads and batch; and against timm."""
    record = read(results, "latency")
    cells, parts = record["cells"], []
    groups = list(dict.fromkeys((cell["threads"], cell["batch"]) for cell in cells))
    order = list(dict.fromkeys(cell["runtime"] for model in TIMM for cell in cells if cell["model"] == model))
    for group in groups:
        table = [cell for cell in cells if (cell["threads"], cell["batch"]) == group]
        limit = limits(table)
        heading = f"{_threads(table[0])}, ms" + (
            f" (in brackets: per cent of the matrix rate, {limit})" if limit else ""
        )
        names, _, found = grid(table, "model", "runtime")
        rows = [("model", *order)]
        for name in names:
            row = [found.get((name, runtime)) for runtime in order]
            rows.append((name, *(f"{cell['ms']:.2f}{of_limit([cell])}" if cell else "-" for cell in row)))
        parts.append(f"{heading}:\n\n{markdown_table(rows, '<' + '>' * len(order))}")
    parts.append("Against timm, the time that is taken:\n\n" + _against_timm(cells, groups))
    parts.append(caption(record))
    return "\n\n".join(parts)


def _against_timm(cells: Sequence[Record], groups: Sequence[tuple[int, int]]) -> str:
    """Ratios: ours to timm's eager model, and `optimize` to the faster of two runtimes on timm's own export."""
    ms = {(cell["model"], cell["runtime"], cell["threads"], cell["batch"]): cell["ms"] for cell in cells}
    ours = ("fused", "onednn", "optimize")
    heading = [f"{name} / eager of timm" for name in ours]
    rows = [("model", "threads", "batch", *heading, "optimize / faster of onnx and openvino of timm")]
    for model, timms in TIMM.items():
        for group in groups:
            ratios = [ms[(model, name, *group)] / ms[(timms, "eager", *group)] for name in ours]
            best = min(ms[(timms, name, *group)] for name in ("onnx", "openvino"))
            ratios.append(ms[(model, "optimize", *group)] / best)
            rows.append((model, *group, *(f"{ratio:.2f}" for ratio in ratios)))
    return markdown_table(rows, "<>>>>>>")


def summary(results: Path, *, chinese: bool = False) -> str:
    """One picture, on all numbers of threads: README's."""
    record = read(results, "latency")
    cells = [cell for cell in record["cells"] if cell["batch"] == 1]
    threads = " / ".join(str(count) for count in dict.fromkeys(cell["threads"] for cell in cells))
    size = cells[0]["size"]
    heading = f"ms for one picture of {size} px, on {threads} threads"
    rows = [(f"一张 {size} 像素图片的毫秒数，{threads} 个线程" if chinese else heading, "Small", "Large")]
    for english, translated, runtime, models in SUMMARY:
        found = [[c for c in cells if (c["model"], c["runtime"]) == (model, runtime)] for model in models]
        chosen = {NAMES.get(cell.get("choice"), cell.get("choice")) for row in found for cell in row}
        took = (" 或 " if chinese else " or ").join(sorted(filter(None, chosen)))
        figures = [" / ".join(_short(cell["ms"]) for cell in row) + of_limit(row) for row in found]
        rows.append(((translated if chinese else english).format(took), *figures, *[""] * (2 - len(figures))))
    limit = limits(cells, chinese=chinese)
    what = "括号内：处理器矩阵乘法速度的百分比，后者为" if chinese else "in brackets: % of the matrix rate,"
    command = textwrap.shorten(record["command"], 40, placeholder=" ...")
    short = record | {"command": command, "note": f"{what} {limit}" if limit else None}
    return f"{markdown_table(rows, '<>>')}\n\n{caption(short, packages=('torch', 'timm', 'openvino'), chinese=chinese)}"


def _short(ms: float) -> str:
    return f"{ms:.2f}" if ms < 20 else f"{ms:.1f}"


def int8_speed(results: Path) -> str:
    """8 bits against float32."""
    record = read(results, "int8_speed")
    cells = record["cells"]
    names = list(dict.fromkeys(cell["runtime"] for cell in cells))
    rows, of_kind = [("", *names)], {}
    for kind, label in (("float32", "float32"), ("int8", "8 bits")):
        columns = [[c for c in cells if (c["runtime"], c["bits"]) == (name, KINDS[kind])] for name in names]
        figures = [" / ".join(f"{cell['ms']:.2f}" for cell in column) + of_limit(column, kind) for column in columns]
        rows.append((label, *figures))
        of_kind[kind] = columns
    pairs = [zip(*both, strict=True) for both in zip(*of_kind.values(), strict=True)]
    ratios = [" / ".join(f"{before['ms'] / after['ms']:.2f}" for before, after in pair) for pair in pairs]
    rows.append(("times as fast in 8 bits", *ratios))
    limit = limits(cells)
    notes = [f"In brackets: per cent of the matrix rate of that type, {limit}."] if limit else []
    return f"{markdown_table(rows, '<' + '>' * len(names))}\n\n{caption(record, *notes)}"
