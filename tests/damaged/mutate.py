"""Seeded damage: to bytes, to a member of a zip archive, to a value somewhere in JSON."""

import io
import json
import random
import zipfile
from collections.abc import Callable
from typing import Any

EDGE = 4096  # half of the damage goes to the first and last so many bytes, where formats keep their tables
WORDS = [bytes(4), b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\x01\x00\x00\x00"]
VALUES = [
    *(None, True, False, 0, -1, 1, 3, 2**31, 10**30, -(10**30), 1e-300, 1e308, 0.5, float("nan"), float("inf")),
    *("", "x", "0", "../../etc/passwd", "\x1b[31mred", "a\nb", "\ud800", "x" * 100_000),
    *([], {}, [[]], [0], [1, 2, 3], [-1] * 4, {"a": 1}, list(range(10_000))),
]


def _position(data: bytes, rng: random.Random) -> int:
    size = max(len(data), 1)
    if rng.random() < 0.5 and size > 2 * EDGE:
        return rng.choice([rng.randrange(EDGE), size - 1 - rng.randrange(EDGE)])
    return rng.randrange(size)


def _flip(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 1, 8])):
        data[_position(data, rng)] ^= 1 << rng.randrange(8)
    return data


def _fill(data: bytearray, rng: random.Random) -> bytes:
    start, length = _position(data, rng), rng.choice([1, 16, 500])
    data[start : start + length] = bytes([rng.choice([0, 255, 65])]) * len(data[start : start + length])
    return data


def _word(data: bytearray, rng: random.Random) -> bytes:
    start = _position(data, rng) // 4 * 4
    data[start : start + 4] = rng.choice(WORDS)
    return data


def _cut(data: bytearray, rng: random.Random) -> bytes:
    return data[: _position(data, rng)] if rng.random() < 0.8 else data[_position(data, rng) :]


def _insert(data: bytearray, rng: random.Random) -> bytes:
    data[(start := _position(data, rng)) : start] = rng.randbytes(rng.choice([1, 8, 300]))
    return data


def _repeat(data: bytearray, rng: random.Random) -> bytes:
    start, length = _position(data, rng), rng.choice([8, 64, 1000])
    data[start:start] = data[start : start + length]
    return data


def _swap(data: bytearray, rng: random.Random) -> bytes:
    a, b, length = _position(data, rng), _position(data, rng), rng.choice([1, 8, 64])
    first, second = bytes(data[a : a + length]), bytes(data[b : b + length])
    data[a : a + len(first)], data[b : b + len(second)] = second[: len(first)], first[: len(second)]
    return data


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """`data` with one kind of damage in it."""
    return bytes(rng.choice([_flip, _flip, _fill, _word, _cut, _insert, _repeat, _swap])(bytearray(data or b"x"), rng))


def damaged_archive(data: bytes, rng: random.Random) -> bytes:
    """A zip archive made again, its checksums right, with one member damaged, renamed, left out or doubled."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    i = rng.randrange(len(members))
    name, content = members[i]
    deflate = rng.random() < 0.1
    what = rng.choice(["damage", "damage", "damage", "rename", "drop", "double"])
    if what == "damage":
        members[i] = (name, damaged_bytes(content, rng))
    elif what == "rename":
        members[i] = (rng.choice(["../" + name, "/" + name, name + "x", name.upper(), "a\nb", "x" * 5000]), content)
    elif what == "drop":
        del members[i]
    else:
        members.append((name + rng.choice(["", "2"]), content))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content)
    return out.getvalue()


def damaged_json(text: str, rng: random.Random) -> str:
    """JSON with one value replaced, left out, or under another key."""
    root = {"root": json.loads(text)}
    place, key = rng.choice(list(_places(root)))
    what = rng.random()
    if what < 0.7:
        place[key] = rng.choice(VALUES)
    elif isinstance(place, dict) and what < 0.85:
        place[rng.choice(["x", "", "__class__", "checkpoint_path", "file"])] = place.pop(key)
    else:
        del place[key]
    return json.dumps(root.get("root"))


def _places(value: Any, place: Any = None, key: Any = None) -> Any:
    """Every (container, key) in a JSON value."""
    if place is not None:
        yield place, key
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for inner_key, inner in list(items):
        yield from _places(inner, value, inner_key)


def cases(data: bytes, count: int, seed: int, *ways: Callable[[bytes, random.Random], bytes]) -> list[bytes]:
    """So many damaged copies, by each of the ways in turn."""
    return [ways[i % len(ways)](data, random.Random(f"{seed} {i}")) for i in range(count)]
