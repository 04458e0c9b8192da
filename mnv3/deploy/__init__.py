"""Getting a model ready for where it runs."""

from .fuse import fuse

__all__ = ["fuse"]
