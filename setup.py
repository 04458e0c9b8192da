"""All is said in setup.cfg, but what depends on who publishes: PyPI has none of the files that the README links to."""

import os
import re
from pathlib import Path

from setuptools import setup

described = {}
if repository := os.environ.get("GITHUB_REPOSITORY"):  # as GitHub's workflows have it, `owner/name`
    home = f"https://github.com/{repository}"
    readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    readme = re.sub(r"(!\[[^]]*\]\()(?!http)", rf"\1{home}/raw/HEAD/", readme)
    described = {
        "url": home,
        "long_description": re.sub(r"(?<!!)(\[[^]]*\]\()(?!http|#)", rf"\1{home}/blob/HEAD/", readme),
    }
setup(**described)
