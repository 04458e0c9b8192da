"""`python -m mnv3`."""

from .cli.main import main

raise SystemExit(main())
