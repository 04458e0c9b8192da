"""The SHA-256 that tells that an exported file is the one that was written.

It stands at the end of a file that has room for it: in a zip archive's comment (pt2, torchscript), as ONNX's last
property, in an XML comment (openvino, where it covers the .bin too). Other formats have it in FILE.json.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import WeightsError
from .formats import FORMATS
from .writers import METADATA, beside

MARK = b"mnv3-sha256:"
LENGTH = len(MARK) + 64
TAIL = re.compile(rb"mnv3-sha256:([0-9a-f]{64})(?:-->)?\Z")
MAX_JSON = 2**24  # bytes; the names of 20,000 classes take half a million
AGAIN = "Export it again"


@dataclass(frozen=True)
class ExportedFile:
    """An exported file as it was written: its bytes, so that no one can change them after they were checked."""

    file: Path
    parts: dict[str, bytes]  # by ending: the file, and the .bin that goes with it
    text: str | None = None  # its metadata, where they are beside it
    trusted: bool = False  # whether it may hold any program

    @property
    def content(self) -> bytes:
        """The bytes of the file itself."""
        return self.parts[self.file.suffix]


def format_of(file: Path) -> str | None:
    """The format that a file's ending means."""
    return next((name for name, entry in FORMATS.items() if entry.suffix == file.suffix.lower()), None)


def seal(file: Path) -> None:
    """Put the SHA-256 of an exported file, and of what goes with it, into it or into its FILE.json."""
    entry = FORMATS[format_of(file)]
    if not entry.own_metadata:
        metadata = json.loads(beside(file).read_text(encoding="utf-8"))
        metadata["files"] = _digests(_parts(file)) | {".json": _digest_of(metadata)}
        beside(file).write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
    elif wrap := WRAPS.get(entry.suffix):
        exported = read_unchecked(file)
        if not _is_sealed(exported):
            before, after = wrap(exported.content)
            file.write_bytes(before + MARK + _digest(before, exported).encode() + after)


def read(file: Path) -> ExportedFile:
    """The bytes of an exported file, as they were written.

    Raises:
        WeightsError: Something is missing, was changed, or was not written by mnv3.
    """
    entry = FORMATS[format_of(file)]
    if entry.own_metadata:
        return _read_sealed(file)
    text = _text_beside(file)
    try:
        metadata = json.loads(text)
        expected = dict(metadata["files"])
    except (ValueError, KeyError, TypeError, RecursionError):
        what = f"its {beside(file).name} does not say what it takes and gives"
        raise WeightsError(f"{file}: {what}: not written by mnv3?") from None
    if ".json" not in expected:
        raise WeightsError(f"{file}: its {beside(file).name} has no SHA-256 of its own: of mnv3 0.1.0? {AGAIN}")
    parts = _parts(file)
    digests = _digests(parts) | {".json": _digest_of(metadata)}
    if digests != expected:
        what = [suffix for suffix in digests if digests[suffix] != expected.get(suffix)] or sorted(expected)
        raise WeightsError(f"{file}: the {' and '.join(what)} is not what was written: damaged? {AGAIN}")
    return ExportedFile(file, parts, text)


def is_ours(file: Path) -> bool:
    """Whether mnv3 wrote what lies beside a file of this name: its .bin, and its FILE.json."""
    try:
        if FORMATS[format_of(file)].own_metadata:
            return not file.is_symlink() and file.is_file() and f"<{METADATA} value=".encode() in file.read_bytes()
        return not beside(file).is_symlink() and json.loads(_text_beside(file))["format"] in FORMATS
    except (OSError, WeightsError, ValueError, KeyError, TypeError, RecursionError):
        return False


def files_of(file: Path) -> list[Path]:
    """Where a file of this name and what goes with it lie."""
    entry = FORMATS[format_of(file)]
    weights = [file.with_suffix(".bin")] if entry.suffix in (".xml", ".param") else []
    return [file, *weights, *([] if entry.own_metadata else [beside(file)])]


def read_unchecked(file: Path) -> ExportedFile:
    """The bytes of a file that this program has just written itself, of any model."""
    return ExportedFile(file, _parts(file), trusted=True)


def _read_sealed(file: Path) -> ExportedFile:
    with open(file, "rb") as opened:  # first what tells other files, which may be large, from ours
        size = opened.seek(0, 2)
        opened.seek(max(0, size - LENGTH - 3))
        if not TAIL.search(opened.read()):
            raise WeightsError(
                f"{file}: no SHA-256 at its end: cut off, of mnv3 0.1.0 (export it again), or not written by mnv3?"
            )
    exported = ExportedFile(file, _parts(file))
    if not _is_sealed(exported):
        names = " and ".join(exported.parts)
        other = "are not those that were written together" if len(exported.parts) > 1 else "is not what was written"
        raise WeightsError(f"{file}: the {names} {other}: damaged? {AGAIN}")
    return exported


def _is_sealed(exported: ExportedFile) -> bool:
    """Whether a file ends in the digest of the rest."""
    content = exported.content
    tail = TAIL.search(content, max(0, len(content) - LENGTH - 3))
    return tail is not None and tail[1].decode() == _digest(content[: tail.start()], exported)


def _digest(before: bytes, exported: ExportedFile) -> str:
    """SHA-256 of a file up to its seal, and then of what goes with it."""
    state = hashlib.sha256(before)
    for suffix, content in exported.parts.items():
        if suffix != exported.file.suffix:
            state.update(content)
    return state.hexdigest()


def _parts(file: Path) -> dict[str, bytes]:
    """The contents of a file and of its .bin, by ending."""
    parts = [path for path in files_of(file) if path != beside(file)]
    for path in parts:
        if not path.is_file():
            raise WeightsError(f"{file}: its {path.name} is missing, or not a file")
    return {path.suffix: path.read_bytes() for path in parts}


def _text_beside(file: Path) -> str:
    path = beside(file)
    if not path.is_file():
        what = "not a file" if path.exists() else "missing, which says what it takes and gives"
        raise WeightsError(f"{file}: its {path.name} is {what}")
    if path.stat().st_size > MAX_JSON:
        raise WeightsError(f"{file}: its {path.name} has more than {MAX_JSON} bytes: not written by mnv3?")
    return path.read_bytes().decode(errors="replace")


def _digests(parts: dict[str, bytes]) -> dict[str, str]:
    return {suffix: hashlib.sha256(content).hexdigest() for suffix, content in parts.items()}


def _digest_of(metadata: dict[str, Any]) -> str:
    """SHA-256 of what a JSON file says, whatever its spaces, less its digests."""
    content = {key: value for key, value in metadata.items() if key != "files"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _in_zip(content: bytes) -> tuple[bytes, bytes]:
    """As the archive's comment, whose length its last two bytes tell."""
    if content[-22:-18] != b"PK\5\6" or content[-2:] != b"\0\0":
        raise ValueError("this zip archive has a comment already")
    return content[:-2] + LENGTH.to_bytes(2, "little"), b""


def _in_onnx(content: bytes) -> tuple[bytes, bytes]:
    """As one more entry of `metadata_props`, field 14: the entries of protocol buffers may follow one another."""
    key = f"{METADATA}.sha256".encode()
    entry = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([LENGTH])
    return content + b"\x72" + bytes([len(entry) + LENGTH]) + entry, b""


def _in_xml(content: bytes) -> tuple[bytes, bytes]:
    return content + b"\n<!--", b"-->"


WRAPS = {".pt2": _in_zip, ".torchscript": _in_zip, ".onnx": _in_onnx, ".xml": _in_xml}
