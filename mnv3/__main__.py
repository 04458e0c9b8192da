"""`python -m mnv3`."""

from .cli import main

raise SystemExit(main())
