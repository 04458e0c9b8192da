"""From picture files to labels: mnv3.predict beside timm and torchvision, with the same weights and cores.

    python benchmarks/predict.py --pictures ../shared/images/imagenet_half [--count 200] [--json FILE]

Makes JPEGs of 500 x 375 and of 4,000 x 3,000 pixels of the pictures, and lets these take turns over them: `predict`;
`predict` that decodes everything (`exact`); timm's pipeline as in its inference.py (timm.data.ImageDataset and
create_loader, workers of their own, batches of 32); and torchvision's transforms in a DataLoader. Prints pictures a
second, the ratio to the better of the two others, and in how many pictures the most likely class is another than in
`exact`.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import record
import timm
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

import mnv3
from mnv3.bench import machine

NAME = "mnv3_small_tf.uint8_in1k"
SIZES = ((500, 375), (4000, 3000))
ROUNDS = 3


def enlarge(pictures: list[Path], folder: Path, size: tuple[int, int]) -> None:
    """The pictures as JPEGs of one size."""
    folder.mkdir()
    for number, file in enumerate(pictures):
        resized = mnv3.images.load(file).resize(size, Image.Resampling.BICUBIC)
        resized.save(folder / f"{number:05}.jpg", quality=90)


class Files(Dataset):
    """Picture files through torchvision's transforms."""

    def __init__(self, folder: Path, transform: Callable) -> None:
        self.files, self.transform = sorted(folder.iterdir()), transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(torchvision.io.decode_image(str(self.files[index]), mode="RGB"))


def ours(model: torch.nn.Module, folder: Path, exact: bool) -> list[int]:
    """The most likely class of every picture by mnv3."""
    return [prediction.topk[0]["index"] for prediction in mnv3.predict(model, folder, topk=1, exact=exact)]


def by_timm(model: torch.nn.Module, folder: Path, workers: int) -> list[int]:
    """The same as timm's inference.py does it."""
    config = timm.data.resolve_model_data_config(model)
    dataset = timm.data.create_dataset("", str(folder))
    loader = timm.data.create_loader(
        dataset, batch_size=32, use_prefetcher=False, num_workers=workers, device=torch.device("cpu"), **config
    )
    with torch.inference_mode():
        return [index for x, _ in loader for index in model(x).argmax(1).tolist()]


def by_torchvision(model: torch.nn.Module, folder: Path, workers: int) -> list[int]:
    """The same with torchvision's decoder and transforms."""
    mean, std = (model.pretrained_cfg[name] for name in ("mean", "std"))
    steps = [v2.Resize(256, antialias=True), v2.CenterCrop(224), v2.ToDtype(torch.float32, scale=True)]
    loader = DataLoader(
        Files(folder, v2.Compose([*steps, v2.Normalize(mean, std)])), batch_size=32, num_workers=workers
    )
    with torch.inference_mode():
        return [index for x in loader for index in model(x).argmax(1).tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--count", type=int, default=200, metavar="N", help="pictures of each size (200)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"turns of each ({ROUNDS})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a record, see record.py")
    args = parser.parse_args()
    model = mnv3.create_model(NAME, pretrained=True).eval()
    pictures = mnv3.images.spread(list(mnv3.images.find(args.pictures)), args.count)
    workers = torch.get_num_threads()
    print(f"{machine()}; {NAME}, {len(pictures)} pictures of each size, {workers} workers\n")
    print("| pictures/s | mnv3.predict | exact | timm | torchvision | ratio | other class |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for size in SIZES:
            folder = Path(temporary) / f"{size[0]}"
            enlarge(pictures, folder, size)
            ways = {
                "mnv3": lambda folder=folder: ours(model, folder, exact=False),
                "exact": lambda folder=folder: ours(model, folder, exact=True),
                "timm": lambda folder=folder: by_timm(model, folder, workers),
                "torchvision": lambda folder=folder: by_torchvision(model, folder, workers),
            }
            rates: dict[str, list[float]] = {name: [] for name in ways}
            answers = {}
            for _ in range(args.rounds):
                for name, way in ways.items():
                    start = time.perf_counter()
                    answers[name] = way()
                    rates[name].append(len(pictures) / (time.perf_counter() - start))
            medians = {name: statistics.median(values) for name, values in rates.items()}
            ratio = medians["mnv3"] / max(medians["timm"], medians["torchvision"])
            other = sum(a != b for a, b in zip(answers["mnv3"], answers["exact"], strict=True))
            cells = " | ".join(f"{medians[name]:.1f}" for name in ways)
            print(f"| {size[0]} x {size[1]} | {cells} | {ratio:.2f} | {other} of {len(pictures)} |", flush=True)
            rounded = {name: round(rate, 1) for name, rate in medians.items()}
            rows.append({"size": list(size), **rounded, "ratio": round(ratio, 2), "other": other})
    if args.json:
        packages = ("torch", "torchvision", "timm", "pillow")
        record.write(args.json, packages, pictures=len(pictures), model=NAME, rows=rows)


if __name__ == "__main__":
    main()
