"""Reading TensorFlow's checkpoints (V2, 'tensor bundles') without TensorFlow, which is 500 MB and more.

NAME.index is a sorted table in LevelDB's format, of names and protocol buffers that say type, shape and position of a
tensor; NAME.data-00000-of-0000N have the bytes. All have checksums (CRC-32C), and all are checked.
Sources: https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/util/tensor_bundle/tensor_bundle.h,
../../protobuf/tensor_bundle.proto, and https://github.com/google/leveldb/blob/main/doc/table_format.md
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import WeightsError

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
FOOTER = 48  # bytes: two handles, padded, and the magic number
TRAILER = 5  # bytes after a block: compression, checksum
MAX_INDEX, MAX_ENTRIES, MAX_NAME = 16_000_000, 100_000, 1000  # bytes, tensors, bytes; Large's index has 40,000 bytes
TYPES = {1: np.float32, 2: np.float64, 19: np.float16}  # DT_FLOAT, DT_DOUBLE, DT_HALF of types.proto
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers


class Entry(NamedTuple):
    """Where a tensor lies: BundleEntryProto."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int  # bytes
    size: int  # bytes
    crc32c: int  # masked
    sliced: bool


class Bundle:
    """A checkpoint: what it holds, and its tensors on demand.

    Args:
        path: NAME.index.

    Raises:
        WeightsError: The file is damaged, or no index of a checkpoint.
        ImportError: google-crc32c is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        try:
            if (size := path.stat().st_size) > MAX_INDEX:
                raise WeightsError(f"{size} bytes, too large for an index")
            items = _table(path.read_bytes())
            header = dict(_fields(next(items, (b"", b""))[1]))
            self.shards = header.get(1, 0)
            if not 1 <= self.shards <= 99_999 or header.get(2, 0) != 0:
                raise WeightsError("its header names no shards, or numbers with the high byte first")
            for name, value in items:
                if len(self.entries) == MAX_ENTRIES:
                    raise WeightsError(f"more than {MAX_ENTRIES} tensors")
                self.entries[name.decode()] = _entry(value)
        except (WeightsError, ValueError, IndexError, TypeError, OSError) as error:
            raise WeightsError(f"{path}: no index of a TensorFlow checkpoint (V2), or damaged: {error}") from None

    def read(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Tensors by name.

        Raises:
            WeightsError: A file of data is missing or cut off, or a tensor damaged or not of floats.
        """
        prefix, tensors, left = self.path.name.removesuffix(".index"), {}, {}
        for name in names:
            entry = self.entries[name]
            file = self.path.with_name(f"{prefix}.data-{entry.shard:05d}-of-{self.shards:05d}")
            if not file.is_file():
                raise WeightsError(f"{self.path}: {file.name} is not beside it, where its tensors are")
            left.setdefault(file, file.stat().st_size)
            try:
                tensors[name] = _tensor(file, entry, left[file])
            except (WeightsError, ValueError, OSError) as error:
                raise WeightsError(f"{file}: {name} cannot be read: {error}") from None
            left[file] -= entry.size  # so that many entries of the same bytes cannot fill the memory
        return tensors


def _tensor(file: Path, entry: Entry, left: int) -> np.ndarray:
    dtype = TYPES.get(entry.dtype)
    if dtype is None or entry.sliced:
        raise WeightsError("sliced over several variables" if entry.sliced else f"type {entry.dtype}, no float")
    if entry.size != math.prod(entry.shape) * np.dtype(dtype).itemsize:
        raise WeightsError(f"{entry.size} bytes for the shape {entry.shape}")
    if entry.size > left:
        raise WeightsError(f"{entry.size} bytes, of which the file has {left} left: cut off, or entries overlap")
    with open(file, "rb") as stream:
        stream.seek(entry.offset)
        content = stream.read(entry.size)
    if len(content) != entry.size or _masked_crc32c(content) != entry.crc32c:
        raise WeightsError("damaged or cut off: the checksum differs")
    return np.frombuffer(content, np.dtype(dtype).newbyteorder("<")).astype(dtype).reshape(entry.shape)


def _masked_crc32c(content: bytes) -> int:
    try:
        import google_crc32c
    except ImportError:
        raise ImportError("TensorFlow's checkpoints need google-crc32c: pip install 'mnv3[convert]'") from None
    crc = google_crc32c.value(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF  # LevelDB's mask


def _table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a table, in order."""
    footer = content[-FOOTER:]
    if len(footer) < FOOTER or footer[-8:] != MAGIC:
        raise WeightsError(f"{len(content)} bytes that do not end as a table does")
    _, at = _handle(footer, 0)  # of the meta index, which has nothing for us
    index, _ = _handle(footer, at)
    left = len(content)
    for _, value in _block(content, index):
        handle, _ = _handle(value, 0)
        left -= handle[1]
        if left < 0:
            raise WeightsError("blocks overlap")
        yield from _block(content, handle)


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _block(content: bytes, handle: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    """A block's entries: bytes shared with the key before, other bytes of the key, bytes of the value; key; value."""
    offset, size = handle
    block, trailer = content[offset : offset + size], content[offset + size : offset + size + TRAILER]
    if len(trailer) < TRAILER or _masked_crc32c(block + trailer[:1]) != int.from_bytes(trailer[1:], "little"):
        raise WeightsError(f"the checksum of the block at {offset} differs")
    if trailer[0]:
        raise WeightsError("compressed blocks, which TensorFlow does not write")
    end = size - 4 - 4 * int.from_bytes(block[-4:], "little")  # restart points follow, and how many
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        other, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or at + other + length > end or shared + other > MAX_NAME:
            raise WeightsError("an entry reaches past its block, or has a name without end")
        key = key[:shared] + block[at : at + other]
        at += other + length
        yield key, block[at - length : at]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, low ones first, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]  # IndexError at the end, caught by Bundle
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise WeightsError("a number of more than ten bytes")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a protocol buffer's fields."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = _varint(message, at)
        elif wire in (BYTES, FIXED32, FIXED64):
            length, at = _varint(message, at) if wire == BYTES else ({FIXED32: 4, FIXED64: 8}[wire], at)
            value = message[at : at + length]
            at += length
            if at > len(message):
                raise WeightsError("a field reaches past its message")
        else:
            raise WeightsError(f"a field of wire type {wire}")
        yield number, value


def _entry(message: bytes) -> Entry:
    shape: list[int] = []
    fields: dict[int, int | bytes] = {}
    for number, value in _fields(message):
        fields[number] = value
        if number == 2:  # TensorShapeProto: dim = 2, of which size = 1
            shape += [dict(_fields(dim)).get(1, 0) for n, dim in _fields(value) if n == 2]
    crc32c = int.from_bytes(fields.get(6, b""), "little")
    dtype, shard, offset, size = numbers = [fields.get(n, 0) for n in (1, 3, 4, 5)]
    if not all(isinstance(n, int) for n in [*numbers, *shape]):
        raise WeightsError("fields of other types than a tensor's entry has")
    return Entry(dtype, tuple(shape), shard, offset, size, crc32c, sliced=7 in fields)
