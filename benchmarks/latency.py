"""Latency of a forward pass beside timm's and torchvision's own models with the same weights.

    python benchmarks/latency.py [--threads 1 2] [--batch 1] [--size 224] [--runs 60] [--json FILE]

Models run in turn, one pass each, so that a change of the machine's speed meets all of them; after a warm-up, the
median of the ratios of each turn is printed, with the quartiles. Below 1, mnv3 is faster.
"""

import argparse
import statistics
import time
from pathlib import Path

import record
import timm
import torch
import torchvision

import mnv3
from mnv3 import bench

SIZES = {
    "large": ("mobilenetv3_large_100", "mobilenet_v3_large"),
    "small": ("mobilenetv3_small_100", "mobilenet_v3_small"),
}


def models(size: str) -> dict[str, torch.nn.Module]:
    """timm's, torchvision's and our model with the same function, and ours with batch norm folded."""
    timm_name, torchvision_name = SIZES[size]
    theirs = getattr(torchvision.models, torchvision_name)()
    for norm in theirs.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.eps = 1e-5
    timms = timm.create_model(timm_name)
    ours = mnv3.MobileNetV3(size)
    ours.load_state_dict(mnv3.convert_state_dict(timms.state_dict(), ours))
    state = mnv3.convert_state_dict(theirs.state_dict(), ours, bn_eps=1e-5)
    back = dict(zip(state, theirs.state_dict(), strict=True))  # both in the order of the network
    shapes = theirs.state_dict()
    theirs.load_state_dict({back[k]: v.reshape(shapes[back[k]].shape) for k, v in ours.state_dict().items()})
    found = {"timm": timms, "torchvision": theirs, "mnv3": ours.eval()}
    return {name: model.eval() for name, model in found.items()} | {"mnv3 fused": mnv3.fuse(ours)}


def measure(size: str, *, batch: int, pixels: int, runs: int) -> dict[str, list[float]]:
    """Seconds of every pass of every model, in turn."""
    candidates = models(size)
    x = torch.randn(batch, 3, pixels, pixels)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    with torch.inference_mode():
        outputs = {name: model(x) for name, model in candidates.items()}
        for name, output in outputs.items():
            torch.testing.assert_close(output, outputs["timm"], atol=1e-4, rtol=1e-3, msg=f"{name} has other logits")
        for turn in range(runs + 10):
            for name, model in candidates.items():
                start = time.perf_counter()
                model(x)
                if turn >= 10:
                    times[name].append(time.perf_counter() - start)
    return times


def machine() -> str:
    """What the figures were measured on."""
    return f"{bench.machine()}, timm {timm.__version__}, torchvision {torchvision.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=224, help="pixels along a side")
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    args = parser.parse_args()
    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        for size in SIZES:
            times = measure(size, batch=args.batch, pixels=args.size, runs=args.runs)
            for name in ("mnv3", "mnv3 fused"):
                row = {"model": size, "threads": threads, "what": name, "ms": 1e3 * statistics.median(times[name])}
                row |= {f"to {other}": record.ratio(times[name], times[other]) for other in ("timm", "torchvision")}
                rows.append(row)
    if args.json:
        record.write(args.json, ("torch", "timm", "torchvision"), batch=args.batch, size=args.size, rows=rows)
    print(f"{machine()}; batch {args.batch}, {args.size} px\n")
    print("| model | threads | | ms | / timm | / torchvision |\n| --- | ---: | --- | ---: | ---: | ---: |")
    for row in rows:
        ratios = [record.ratio_as_text(row[f"to {other}"]) for other in ("timm", "torchvision")]
        print(f"| {row['model']} | {row['threads']} | {row['what']} | {row['ms']:.1f} | {' | '.join(ratios)} |")


if __name__ == "__main__":
    main()
