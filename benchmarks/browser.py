"""Milliseconds of the demo page's network in a headless Chromium, beside ONNX Runtime in Python.

    MNV3_ONNXRUNTIME_WEB=node_modules/onnxruntime-web python benchmarks/browser.py [MODEL ...] [--runs 60] [--json FILE]

The page runs one picture after the other, as it does for a user, by WebAssembly with as many threads as the machine has
(at most four); ONNX Runtime runs the same file with as many.
"""

import argparse
import os
import re
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime
import record

import mnv3
from mnv3.bench import machine
from mnv3.demo import runtime_files, server, site

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))
from browser import Browser  # noqa: E402 (of the tests)

PICTURE = ROOT / "docs" / "clock.jpg"
RUN = """(async () => {
  const [network, blob] = [await state.network, await (await fetch("clock.jpg")).blob()];
  const bitmap = await decode(new File([blob], "clock.jpg", {type: "image/jpeg"}));
  const [preparing, running] = [[], []];
  for (let i = 0; i < RUNS + 5; i++) {
    const start = performance.now();
    const bytes = inputOf(bitmap);
    const middle = performance.now();
    await network.run(bytes);
    preparing.push(middle - start);
    running.push(performance.now() - middle);
  }
  return [preparing.slice(5), running.slice(5), network.threads];
})()"""


def in_python(file: Path, runs: int, threads: int) -> float:
    """Median milliseconds of ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    size = [side if isinstance(side, int) else 1 for side in entry.shape]
    x = np.random.default_rng(0).integers(0, 255, size, np.uint8)
    times = []
    for _ in range(runs + 5):
        start = time.perf_counter()
        session.run(None, {entry.name: x})
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[5:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["mnv3_small_cifar.cifar10", "mnv3_small_tf.uint8_in1k"])
    parser.add_argument("--runs", type=int, default=60, metavar="N", help="pictures, after 5 that do not count (60)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    args = parser.parse_args()
    print(f"{machine()}\n")
    print(
        "| ms for one picture | px | threads | browser: resizing | browser: network | ONNX Runtime in Python | ratio |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as temporary, Browser() as browser:
        for name in args.models:
            model = mnv3.create_model(name, pretrained=True)
            folder = site.write(model, Path(temporary) / name, runtime=os.environ["MNV3_ONNXRUNTIME_WEB"])
            (folder / "clock.jpg").write_bytes(PICTURE.read_bytes())
            running = server.server(folder, 0)
            threading.Thread(target=running.serve_forever, daemon=True).start()
            with running:
                browser.open(server.url_of(running), width=1280)
                agent = browser.evaluate("navigator.userAgent")
                preparing, network, threads = browser.evaluate(RUN.replace("RUNS", str(args.runs)))
                running.shutdown()
            native = in_python(folder / "model.onnx", args.runs, threads)
            size, milliseconds = model.pretrained_cfg["input_size"][-1], statistics.median(network)
            cells = f"{size} | {threads} | {statistics.median(preparing):.1f} | {milliseconds:.1f} | {native:.2f}"
            row = {"model": name, "size": size, "threads": threads, "resizing": statistics.median(preparing)}
            rows.append(row | {"network": milliseconds, "python": native, "ratio": milliseconds / native})
            print(f"| {name} | {cells} | {milliseconds / native:.1f} |", flush=True)
    if args.json:
        chromium = re.search(r"Chrome/(\d+)", agent)
        versions = {"Chromium": chromium[1] if chromium else agent, "onnxruntime-web": runtime_files.VERSION}
        record.write(args.json, ("onnxruntime",), versions=versions, pictures=args.runs, rows=rows)


if __name__ == "__main__":
    main()
