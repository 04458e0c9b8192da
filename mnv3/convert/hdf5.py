"""Arrays out of HDF5 files that come from anywhere: only floats that lie, as they are, in the file itself.

HDF5 can point at other files (external links, external storage, virtual datasets), go round in circles, call plugins
(filters), and declare arrays of any size. What Keras writes needs none of it, so all of it is refused.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import WeightsError

MAX_DEPTH = 12
MAX_ENTRIES = 20_000  # Keras' Large with the variables of its optimizer has about 2,000


def read(
    path: Path, file: BinaryIO | None = None, *, groups: tuple[str, ...] = (), leave_out: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """All arrays of a file by their paths, which have no slash in front.

    Args:
        path: The file, or its name for messages where `file` is given.
        file: An open file in memory, as large as its content.
        groups: Read only the first of these groups that is there, with paths below it.
        leave_out: Do not look into groups of these names.

    Raises:
        WeightsError: It is not HDF5, is cut off, or uses what is refused here.
        ImportError: h5py is missing.
    """
    h5py = _h5py(path)
    size = path.stat().st_size if file is None else file.seek(0, 2)
    try:
        with h5py.File(file or path, "r") as root:
            top: Any = root
            for name in groups:
                if name in root.keys():  # noqa: SIM118 - `in root` follows links
                    top = _child(h5py, root, name)
                    break
            datasets = list(_datasets(h5py, top, "", leave_out, MAX_DEPTH, [MAX_ENTRIES]))
            for name, dataset in datasets:
                _check_plain(h5py, name, dataset)
            if (declared := sum(dataset.nbytes for _, dataset in datasets)) > size:
                raise WeightsError(f"it declares {declared} bytes of arrays, and has {size} in all")
            return {name: np.asarray(dataset[()]).astype(dataset.dtype.newbyteorder("=")) for name, dataset in datasets}
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except Exception as error:  # h5py has OSError, RuntimeError, KeyError, ValueError ... for damage
        reason = str(error).strip().split("\n")[0]
        raise WeightsError(f"{path}: cannot be read as HDF5, {size} bytes: {reason}") from None


def attribute(path: Path, name: str, *, limit: int) -> str | None:
    """A text among the attributes of a file, or None if it is no HDF5 file or has no such attribute.

    Raises:
        WeightsError: It is no single text of at most `limit` bytes.
        ImportError: h5py is missing.
    """
    h5py = _h5py(path)
    try:
        with h5py.File(path, "r") as root:
            if name not in root.attrs:
                return None
            stored = root.attrs.get_id(name)
            if stored.shape != () or stored.get_storage_size() > limit or stored.dtype.kind not in "OS":
                raise WeightsError(f"its attribute {name} is no single text")
            text = root.attrs[name]
    except OSError:  # `read` says what is wrong with the file
        return None
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    if not isinstance(text, str) or len(text) > limit:
        raise WeightsError(f"its attribute {name} is no text of at most {limit} bytes")
    return text


def _h5py(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise ImportError(f"{path}: HDF5 files need h5py: pip install 'mnv3[convert]'") from None
    return h5py


def _child(h5py: Any, group: Any, name: str) -> Any:
    """A member of a group that lies in it; nothing is opened that lies elsewhere."""
    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise WeightsError(f"{name!r} is a {type(link).__name__}: links to elsewhere are not followed")
    return group[name]


def _datasets(
    h5py: Any, group: Any, prefix: str, leave_out: tuple[str, ...], depth: int, left: list[int]
) -> Iterator[tuple[str, Any]]:
    left[0] -= len(group)
    if left[0] < 0 or depth == 0:
        raise WeightsError(f"more than {MAX_ENTRIES} entries, or more than {MAX_DEPTH} levels of them, as in a circle")
    for name in group:
        if name in leave_out:
            continue
        child = _child(h5py, group, name)
        if isinstance(child, h5py.Group):
            yield from _datasets(h5py, child, f"{prefix}{name}/", leave_out, depth - 1, left)
        elif isinstance(child, h5py.Dataset):
            yield prefix + name, child


def _check_plain(h5py: Any, name: str, dataset: Any) -> None:
    if dataset.dtype.kind != "f" or dataset.dtype.itemsize not in (2, 4, 8):
        raise WeightsError(f"{name} is of type {dataset.dtype}; expected float16, float32 or float64")
    layout = dataset.id.get_create_plist()
    if layout.get_layout() not in (h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS) or layout.get_nfilters():
        raise WeightsError(f"{name} is chunked, compressed or virtual; Keras writes arrays as they are")
    if layout.get_external_count():
        raise WeightsError(f"{name} lies in another file, which is not opened")
    if dataset.id.get_storage_size() != dataset.nbytes:
        raise WeightsError(f"{name} declares {dataset.nbytes} bytes and has {dataset.id.get_storage_size()}")
