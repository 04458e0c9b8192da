"""Archives with broken names are refused in one line; more damage to files of other frameworks is in tests/damaged."""

import io
import zipfile

import pytest

from mnv3 import WeightsError
from mnv3.convert import reading


def with_name(raw, flags):
    """A zip archive whose one entry has this name, byte for byte."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("x" * len(raw), b"content")
    content = bytearray(content.getvalue().replace(b"x" * len(raw), raw))
    directory = content.index(b"PK\x01\x02")
    content[directory + 8 : directory + 10] = flags.to_bytes(2, "little")
    content[6:8] = flags.to_bytes(2, "little")
    return bytes(content)


@pytest.mark.parametrize(("raw", "flags"), [(b"\xff\xfe\xfa.json", 0x800), (b"a\0b\x1b[2J", 0)])
def test_zip_archives_with_broken_names(tmp_path, raw, flags):
    """Names that are not the UTF-8 that they say to be were a raw UnicodeDecodeError."""
    file = tmp_path / "x.keras"
    file.write_bytes(with_name(raw, flags))
    with pytest.raises(WeightsError, match=r"x.keras: (cannot be read: |by its name a Keras archive)") as info:
        reading.kind_of(file)
    assert "\n" not in str(info.value)
