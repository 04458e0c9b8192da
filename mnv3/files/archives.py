"""Files of torch.save, checked before torch.load reads them.

Today's are zip archives, older ones pickles one after another with the storages behind them. torch.load with
weights_only runs no code in them, but it looks at no checksum, inflates what is compressed, and takes the time and
memory that a pickle asks for. Here all of that has bounds.
"""

import io
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import WeightsError
from .tensors import shown

MAX_MEMBERS = 20_000  # of a zip archive; a whole training state of MobileNetV3-Large has 1,152
MAX_OPCODES = 500_000  # of a pickle; that one has 38,000
MAX_PICKLE = 16 << 20  # bytes; that one takes 114,000
MAX_NESTED = 100_000  # values inside a tuple, counted as often as they are reached: what its hash has to visit
LEGACY_PICKLES = 5  # magic number, version, machine, the object, its storages' names
_MARK = None


def read_records(path: Path) -> dict[str, bytes]:
    """The members of a zip archive without the folder that torch.save puts them into.

    Raises:
        WeightsError: A checksum is wrong, a member is compressed or given twice, or they are together larger than the
            file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(members, path.stat().st_size)
            return {member.filename.partition("/")[2]: archive.read(member) for member in members}
    except (zipfile.BadZipFile, ValueError, EOFError, RuntimeError, NotImplementedError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"the zip archive is damaged: {error}") from error


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    if len(members) > MAX_MEMBERS:
        raise WeightsError(f"the zip archive has {len(members):,} members: save the state_dict alone")
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise WeightsError("it is a TorchScript program: save the state_dict of its model")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise WeightsError(
                f"{shown(member.filename)} in it is compressed, which torch.save never does: unpack it and pack it "
                "again without compression (zip -0)"
            )
    if len({member.filename for member in members}) < len(members):
        raise WeightsError("the zip archive has two members of one name")
    if sum(member.file_size for member in members) > size:
        raise WeightsError("the members of the zip archive are larger than the file: they overlap")


def as_archive(records: dict[str, bytes]) -> BinaryIO:
    """The records as a zip archive in memory for torch.load, which then reads what was checked and nothing else.

    Raises:
        WeightsError: torch.save did not write them, or the pickle among them asks for too much.
    """
    if "data.pkl" not in records:
        raise WeightsError("it is a zip archive, but none of torch.save: it has no data.pkl")
    check_pickle(io.BytesIO(records["data.pkl"][:MAX_PICKLE]))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in records.items():
            folder, _, key = name.rpartition("/")
            # torch takes a name in capitals for the same record, and would read it again for each spelling
            if folder != "data" or key.isdecimal():
                archive.writestr(f"archive/{name}", content)
    file.seek(0)
    return file


def check_legacy(path: Path) -> None:
    """Check the pickles at the start of a file that is no zip archive.

    Raises:
        WeightsError: torch.save did not write them, or they ask for too much.
    """
    with open(path, "rb") as file:
        start = io.BytesIO(file.read(MAX_PICKLE))
    for _ in range(LEGACY_PICKLES):
        check_pickle(start)


def check_pickle(file: BinaryIO) -> None:
    """Check one pickle, which ends where the file is then read on.

    Raises:
        WeightsError: It is too long or damaged, or has tuples whose hash takes for ever or a bytearray of any size.
    """
    stack: list[int | None] = []
    memo: dict[int, int | None] = {}
    try:
        for opcode, argument in _opcodes(file):
            if "PUT" in opcode.name:
                memo[argument] = stack[-1]
            elif "GET" in opcode.name:
                stack.append(memo[argument])
            elif opcode.name == "MARK":
                stack.append(_MARK)
            else:
                _run(opcode, stack)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise WeightsError(f"the pickle in it is damaged: {error}") from error


def _opcodes(file: BinaryIO) -> Iterator[tuple[pickletools.OpcodeInfo, object]]:
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count >= MAX_OPCODES:
            raise WeightsError(f"the pickle in it has more than {MAX_OPCODES:,} values: save the state_dict alone")
        if opcode.name == "GLOBAL" and argument in ("builtins bytearray", "__builtin__ bytearray"):
            raise WeightsError("it holds a bytearray, which may be of any size: save the state_dict alone")
        yield opcode, argument


def _run(opcode: pickletools.OpcodeInfo, stack: list[int | None]) -> None:
    """What an opcode does to the stack, with the number of values in place of every value."""
    taken = []
    before = [kind for kind in opcode.stack_before if kind is not pickletools.stackslice]
    if pickletools.markobject in before:
        while (value := stack.pop()) is not _MARK:
            taken.append(value)
        before.remove(pickletools.markobject)
    taken += [stack.pop() for _ in before]
    nested = 1 + sum(taken) if "TUPLE" in opcode.name else 1
    if nested > MAX_NESTED:
        raise WeightsError(f"the pickle in it has a tuple with more than {MAX_NESTED:,} values inside")
    stack += [nested] * len(opcode.stack_after)
