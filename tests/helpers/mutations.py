"""Damaged copies of a file of other frameworks, read one after the other.

    python tests/helpers/mutations.py FILE COUNT SEED

In a process of its own, as a library in C may end it. Prints one line of JSON: how many were read, how many refused,
the longest time of one, and every exception that is none of ours, or not in one line.
"""

import json
import random
import resource
import shutil
import sys
import time
import zipfile
from pathlib import Path

EXTREMES = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
VALUES = [None, True, -1, 0, 2, 1e308, float("nan"), "", "x" * 1000, [], [[]], {}, {"class_name": []}, [1, 2, 3, 4]]
MEMORY = 6 << 30  # bytes of addresses; what libraries reserve is in it


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, cut off, doubled or taken out; most often near an end, where structures lie."""
    changed = bytearray(content)
    kind = rng.choice(("bytes", "bytes", "number", "number", "cut", "doubled", "out"))
    spots = (
        rng.randrange(len(changed)),
        rng.randrange(min(4000, len(changed))),
        -1 - rng.randrange(min(4000, len(changed))),
    )
    at = rng.choice(spots) % len(changed)
    length = rng.randrange(1, 64)
    if kind == "bytes":
        for _ in range(rng.randrange(1, 20)):
            changed[(at + rng.randrange(200)) % len(changed)] = rng.randrange(256)
    elif kind == "number":
        number = rng.choice(EXTREMES).to_bytes(4, rng.choice(("little", "big")))
        changed[at : at + 4] = number
    elif kind == "cut":
        del changed[at:]
    elif kind == "doubled":
        changed[at:at] = changed[at : at + length]
    else:
        del changed[at : at + length]
    return bytes(changed)


def another(config: object, rng: random.Random) -> object:
    """A configuration with one value, anywhere in it, replaced or left out."""
    parent, node, key = None, config, None
    while isinstance(node, (dict, list)) and node and (parent is None or rng.random() < 0.9):
        parent, key = node, rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = parent[key]
    if rng.random() < 0.3:
        del parent[key]
    else:
        parent[key] = rng.choice(VALUES)
    return config


def mutate(file: Path, out: Path, rng: random.Random) -> None:
    """A mutation of a file, with what lies beside it."""
    if file.suffix == ".keras" and rng.random() < 0.5:
        with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                if name == "config.json":
                    content = json.dumps(another(json.loads(content), rng)).encode()
                new.writestr(name, content)
        return
    if file.stem == "whole" and rng.random() < 0.5:
        import h5py

        shutil.copyfile(file, out)
        with h5py.File(out, "r+") as root:
            root.attrs["model_config"] = json.dumps(another(json.loads(root.attrs["model_config"]), rng))
        return
    beside = list(file.parent.glob(f"{file.stem}.data*"))
    for other in beside:
        shutil.copyfile(other, out.with_name(other.name.replace(file.stem, out.stem)))
    if beside and rng.random() < 0.3:
        shutil.copyfile(file, out)
        target = out.with_name(beside[0].name.replace(file.stem, out.stem))
        target.write_bytes(damaged(beside[0].read_bytes(), rng))
    else:
        out.write_bytes(damaged(file.read_bytes(), rng))


def main(path: str, count: str, seed: str) -> None:
    """Mutate and read."""
    from mnv3 import WeightsError
    from mnv3.convert import reading

    file = Path(path)
    out = file.with_name(f"damaged{file.suffix}")
    reading.read(file)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    found = {"read": 0, "refused": 0, "longest": 0.0, "wrong": []}
    for number in range(int(count)):
        mutate(file, out, random.Random(f"{file.name} {seed} {number}"))
        start = time.monotonic()
        try:
            found["read"] += reading.read(out) is not None
        except WeightsError as error:
            found["refused"] += 1
            if "\n" in str(error):
                found["wrong"].append(f"{number}: {error}")
        except Exception as error:
            found["wrong"].append(f"{number}: {type(error).__name__}: {error}")
        found["longest"] = max(found["longest"], time.monotonic() - start)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
