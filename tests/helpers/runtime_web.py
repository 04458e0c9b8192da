"""Where the npm package onnxruntime-web lies, if it was fetched: `npm install onnxruntime-web@VERSION`."""

import os
from pathlib import Path

import pytest

from mnv3.demo.runtime_files import VERSION

ROOT = Path(__file__).resolve().parent.parent.parent


def dist_or_skip() -> Path:
    """Its folder dist, by MNV3_ONNXRUNTIME_WEB, or in node_modules in the checkout or beside it; else skip the test."""
    given = os.environ.get("MNV3_ONNXRUNTIME_WEB")
    packages = [given] if given else [folder / "node_modules" / "onnxruntime-web" for folder in (ROOT, ROOT.parent)]
    for package in map(Path, packages):
        dist = package / "dist" if (package / "dist").is_dir() else package
        if (dist / "ort.wasm.min.mjs").is_file():
            return dist
    pytest.skip(f"needs `npm install onnxruntime-web@{VERSION}`, or MNV3_ONNXRUNTIME_WEB=FOLDER")
