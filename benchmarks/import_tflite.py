"""Quantised TFLite files: top-1 in LiteRT, as plain floats, and with the biases corrected (`mnv3 convert --calibrate`).

    python benchmarks/import_tflite.py FILE.tflite ... --pictures FOLDER [--json FILE]

FOLDER has pictures whose names start with the index of their class: 0000_tench.jpg. Calibrated on 64 of every second
one; 'unseen' are the others.
"""

import argparse
from pathlib import Path

import record
import torch
from torch import Tensor

import mnv3
from mnv3.bench import machine
from mnv3.convert import reading
from mnv3.convert.foreign import Foreign
from mnv3.convert.tflite.calibrate import calibrated
from mnv3.deploy.packages import quiet
from mnv3.model import MobileNetV3


def built(foreign: Foreign) -> MobileNetV3:
    """The imported model."""
    model = mnv3.create_model(foreign.arch, pretrained_cfg_overlay=foreign.config, **foreign.options).eval()
    model.load_state_dict(foreign.state_dict)
    return model


def logits(model: MobileNetV3, x: Tensor) -> Tensor:
    """A model's logits (N, classes) for normalised pictures (N, 3, H, W)."""
    with torch.inference_mode():
        return torch.cat([model(part) for part in x.split(20)])


def litert_logits(file: Path, foreign: Foreign, x: Tensor) -> Tensor:
    """What LiteRT makes of the bytes that normalised pictures (N, 3, H, W) were made of, (N, classes)."""
    from ai_edge_litert.interpreter import Interpreter

    with quiet():
        interpreter = Interpreter(str(file), num_threads=1)
        interpreter.allocate_tensors()
    entry, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]["index"]
    mean, std = (torch.tensor(foreign.config[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    data = ((x * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    outputs = []
    for picture in data:
        interpreter.set_tensor(entry["index"], picture[None])
        interpreter.invoke()
        outputs.append(torch.from_numpy(interpreter.get_tensor(result).copy()))
    return torch.cat(outputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.tflite", help="of uint8, as Google publishes them")
    parser.add_argument("--pictures", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    args = parser.parse_args()
    pictures = sorted(mnv3.images.find(args.pictures))
    labels = torch.tensor([int(file.name.partition("_")[0]) for file in pictures])
    print(f"{machine()}; top-1 of {len(pictures)} pictures / of the {len(pictures[1::2])} unseen, %\n")
    print("| file | in LiteRT | plain | calibrated |\n| --- | ---: | ---: | ---: |")
    rows = []
    for file in args.files:
        foreign = reading.read(file)
        model = built(foreign)
        transform = mnv3.transforms(model)
        x = torch.stack([transform(mnv3.images.load(picture)) for picture in pictures])
        background = foreign.options["num_classes"] - 1000
        row: dict = {"file": file.name}
        corrected = built(calibrated(file, pictures[::2]))
        found = {
            "litert": litert_logits(file, foreign, x),
            "plain": logits(model, x),
            "calibrated": logits(corrected, x),
        }
        for name, y in found.items():
            right = (y.float().argmax(1) - background == labels).float()
            row[name] = [100 * part.mean().item() for part in (right, right[1::2])]
        rows.append(row)
        cells = [f"{row[name][0]:.1f} / {row[name][1]:.1f}" for name in found]
        print(f"| {file.name} | {' | '.join(cells)} |", flush=True)
    if args.json:
        record.write(
            args.json, ("torch", "ai-edge-litert"), pictures=len(pictures), unseen=len(pictures[1::2]), rows=rows
        )


if __name__ == "__main__":
    main()
