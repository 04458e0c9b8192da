"""The files of ONNX Runtime Web that the page needs, and the digests by which a browser knows them."""

import base64
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

VERSION = "1.30.0"
CDN = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{VERSION}/dist/"
ADVICE = f"expected the dist folder of the npm package onnxruntime-web (npm pack onnxruntime-web@{VERSION})"


@dataclass(frozen=True)
class PageFile:
    """A file that the page loads.

    Attributes:
        url: Where it lies, relative to the page or on the CDN.
        integrity: Its digest, as browsers take it (subresource integrity).
        bytes: Its size.
    """

    url: str
    integrity: str
    bytes: int


# By device and part: the library, the JavaScript that goes with the binary, and the binary. As npm has them; a test
# compares.
PUBLISHED: dict[str, dict[str, PageFile]] = {
    "wasm": {
        "library": PageFile(
            f"{CDN}ort.wasm.min.mjs",
            "sha384-SfFfy/pvthiOsgaw3KX0bV5TfQ6Iq+oY9KutMe4SxIuHH4cl+DCSD4rTsYOoG1tJ",
            50_126,
        ),
        "glue": PageFile(
            f"{CDN}ort-wasm-simd-threaded.mjs",
            "sha384-XcXA/MtAf0WpB8e023xQH9CM7RIjiugakT7x99DIwpFf7k56BIFFcAPerIF7FDad",
            24_381,
        ),
        "binary": PageFile(
            f"{CDN}ort-wasm-simd-threaded.wasm",
            "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
            14_239_897,
        ),
    },
    "webgpu": {
        "library": PageFile(
            f"{CDN}ort.webgpu.min.mjs",
            "sha384-FPQBMbud8ICuP0Ii+Gr95KWEX9pKHtUC3lacIp0aPI8WYluKvTsEGQ3AE2Ze3QlL",
            66_349,
        ),
        "glue": PageFile(
            f"{CDN}ort-wasm-simd-threaded.asyncify.mjs",
            "sha384-qViEcCGzsR/m8nlQwIsbYh7afN4thuraqFYDQY6huvmoLVoZq/eYawQ1wrv8nnhA",
            53_057,
        ),
        "binary": PageFile(
            f"{CDN}ort-wasm-simd-threaded.asyncify.wasm",
            "sha384-EPVDLTxuO663dkZO/pcKJF6vOyyfq/5z9FY1oksN0UWFX2ABH4wDDZQHeNoUleWR",
            26_781_914,
        ),
    },
}
NAMES = frozenset(file.url.removeprefix(CDN) for parts in PUBLISHED.values() for file in parts.values())


def page_file(url: str, content: bytes) -> PageFile:
    """A file with this content at this address."""
    digest = base64.b64encode(hashlib.sha384(content).digest()).decode()
    return PageFile(url, f"sha384-{digest}", len(content))


def dist_folder(folder: str | os.PathLike[str], devices: list[str]) -> Path:
    """The folder with the runtime's files, where the npm package itself may be given, too.

    Args:
        folder: Of the package, or its dist.
        devices: Of 'wasm' and 'webgpu', those whose files it must have.

    Raises:
        ValueError: There is no such folder, or a file is missing in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"--runtime {folder}: no such folder: {ADVICE}")
    dist = folder / "dist" if (folder / "dist").is_dir() else folder
    for name in (file.url.removeprefix(CDN) for device in devices for file in PUBLISHED[device].values()):
        if not (dist / name).is_file():
            raise ValueError(f"--runtime {folder}: it has no {name}: {ADVICE}")
    return dist


def copy(dist: Path, folder: Path, devices: list[str]) -> dict[str, dict[str, PageFile]]:
    """Copy the runtime's files from `dist` into the page's folder; returns them as `PUBLISHED` has them."""
    copied: dict[str, dict[str, PageFile]] = {}
    for device in devices:
        copied[device] = {}
        for part, published in PUBLISHED[device].items():
            name = published.url.removeprefix(CDN)
            content = (dist / name).read_bytes()
            (folder / name).write_bytes(content)
            copied[device][part] = page_file(name, content)
    return copied


def version_of(dist: Path) -> str | None:
    """The version that the runtime's library says it is."""
    said = re.search(rb"ONNX Runtime Web v([\w.+-]+)", (dist / "ort.wasm.min.mjs").read_bytes()[:1000])
    return said and said[1].decode()
