"""The documentation site: `sphinx-build -W -c docs . docs/_build/site`.

Its source is the folder above, so that links between the documents are those that work on GitHub.
"""

from sphinx.application import Sphinx

from mnv3.version import __version__

project, author, release = "mnv3", "The mnv3 developers", __version__
html_title = f"mnv3 {release}"
html_theme = "furo"
html_additional_pages = {"index": "redirect.html"}
templates_path = ["templates"]
html_copy_source = False

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = ["README*.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/*.md"]
include_patterns += ["weights/README.md", "weights/*/README.md"]
exclude_patterns = ["docs/_build"]

myst_heading_anchors = 3

default_role = "code"
autodoc_typehints = "description"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"

CONTENTS = """

```{toctree}
:hidden:
:glob:

Start <self>
docs/models
docs/timm
docs/pictures
docs/training
docs/cifar10
docs/deploy
docs/show
docs/convert
docs/publish
docs/security
docs/api
docs/*
CONTRIBUTING
CHANGELOG
weights/README
weights/*/README
中文 <README.zh-CN>
```
"""


def add_contents(app: Sphinx, page: str, source: list[str]) -> None:
    """Give README.md, the first page, the table of contents, which GitHub would not understand."""
    if page == root_doc:
        source[0] += CONTENTS


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_contents)
