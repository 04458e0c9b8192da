"""The commands `mnv3 recipes`, `finetune`, `eval` and `ablate`."""

import argparse
import logging
from pathlib import Path

from ..text import aligned_columns, terminal
from ..train import recipe as recipes
from .arguments import MODEL_HELP, Command, add_ema, check_model, positive


def add_commands(command: Command) -> None:
    """Add these commands to the command line's parser."""
    sub = command("recipes", show_recipes, "List the training recipes of the package, or show one.")
    sub.add_argument("name", nargs="?", metavar="RECIPE", help="show this one")

    sub = command("finetune", run_finetune, "Train a model by a recipe.")
    _add_recipe(sub, "recipe", "a recipe's name (see `mnv3 recipes`) or YAML file")
    sub.add_argument("--out", metavar="FOLDER", type=Path, help="where to write (runs/RECIPE)")
    sub.add_argument("--resume", action="store_true", help="go on where the run in this folder stopped")

    sub = command("eval", run_eval, "Measure a model's accuracy on pictures with classes.")
    sub.add_argument("model", metavar="ARCH[.TAG]|FOLDER|FILE", help=MODEL_HELP)
    sub.add_argument("--data", required=True, metavar="DATA", help="cifar10, cifar100, or a folder SPLIT/<class>/*")
    sub.add_argument("--split", default="test", choices=("test", "val", "train"), help="which pictures of it (test)")
    sub.add_argument("--data-dir", default="data", metavar="FOLDER", help="where torchvision's CIFAR lies (data)")
    sub.add_argument("--download", action="store_true", help="let torchvision download it there")
    sub.add_argument("--arch", metavar="ARCH", help="the model, for a single file of weights")
    add_ema(sub)
    sub.add_argument("--tta", default="none", choices=("none", "flip"), help="flip: average with the mirror image")
    sub.add_argument("--batch-size", type=positive, default=256, metavar="N", help="pictures at a time (256)")
    sub.add_argument("--workers", type=int, metavar="N", help="threads that read pictures (one a processor)")
    sub.add_argument("--json", metavar="FILE", type=Path, help="write all metrics to this file")
    sub.add_argument("--png", metavar="FILE", type=Path, help="write a picture of the confusion matrix")

    sub = command("ablate", run_ablate, "Train with and without squeeze-and-excite and h-swish, and compare.")
    _add_recipe(sub, "recipe", "the recipe that all are trained by")
    sub.add_argument("--seeds", default="0,1", metavar="A,B,...", help="train each variant with these seeds (0,1)")
    sub.add_argument("--variants", metavar="A,B,...", help="only these: none, se, hs, both, se-first")
    sub.add_argument("--out", metavar="FOLDER", type=Path, default=Path("runs/ablation"), help="(runs/ablation)")


def _add_recipe(sub: argparse.ArgumentParser, name: str, help: str) -> None:
    sub.add_argument(name, metavar="RECIPE", help=help)
    sub.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="values in place of the recipe's"
    )


def _overrides(pairs: list[str]) -> dict[str, object]:
    return dict(recipes.parse_override(pair) for pair in pairs)


def show_recipes(args: argparse.Namespace) -> int:
    """`mnv3 recipes [NAME]`."""
    if args.name:
        print(recipes.find(args.name).read_text(encoding="utf-8"), end="")
        return 0
    texts = {name: recipes.find(name).read_text(encoding="utf-8") for name in recipes.names()}
    rows = [(name, text.partition("\n")[0].removeprefix("# ")) for name, text in texts.items()]
    print("\n".join(aligned_columns(rows, "<<")))
    return 0


def run_finetune(args: argparse.Namespace) -> int:
    """`mnv3 finetune RECIPE`."""
    overrides = _overrides(args.set)
    check_model(recipes.load(args.recipe, **overrides).model)
    from ..train.finetune import finetune
    from ..train.processes import leave_together

    logging.getLogger("mnv3").setLevel(logging.INFO)
    folder = finetune(args.recipe, out=args.out, resume=args.resume, **overrides)
    if leave_together():
        print(terminal(f"wrote {folder}: try `mnv3 predict --checkpoint {folder} PICTURE`"))
    return 0


def run_eval(args: argparse.Namespace) -> int:
    """`mnv3 eval MODEL --data DATA`."""
    check_model(args.model)
    from ..figures.charts import confusion
    from ..loading import resolve
    from ..pictures import data
    from ..pictures.evaluate import evaluate
    from ..train.processes import leave_together, process_group

    pictures = data.load(args.data, args.split, data_dir=args.data_dir, download=args.download)
    model = resolve(args.model, arch=args.arch, use_ema=args.use_ema)
    accelerator = process_group()
    metrics = evaluate(
        model.to(accelerator.device),
        pictures,
        batch_size=args.batch_size,
        tta=args.tta,
        workers=args.workers,
        accelerator=accelerator,
    )
    if not leave_together():
        return 0
    if args.json:
        metrics.save(args.json)
    if args.png:
        confusion(metrics.confusion, metrics.classes, args.png)
    print(f"top-1 {metrics.top1:.2f} %, top-5 {metrics.top5:.2f} %, loss {metrics.loss:.4f}, {metrics.count} pictures")
    rows = [(terminal(name), accuracy) for name, accuracy in metrics.per_class.items()]
    width = max(len(name) for name, _ in rows)
    for name, accuracy in rows:
        print(f"  {name:{width}}  {accuracy:6.2f} %")
    return 0


def run_ablate(args: argparse.Namespace) -> int:
    """`mnv3 ablate RECIPE`."""
    from ..train.ablate import VARIANTS, ablate

    logging.getLogger("mnv3").setLevel(logging.INFO)
    try:
        seeds = [int(seed) for seed in args.seeds.split(",")]
    except ValueError:
        raise ValueError(f"--seeds {args.seeds}: expected whole numbers, such as 0,1,2") from None
    variants = args.variants.split(",") if args.variants else list(VARIANTS)
    print(ablate(args.recipe, out=args.out, seeds=seeds, variants=variants, **_overrides(args.set)), end="")
    return 0
