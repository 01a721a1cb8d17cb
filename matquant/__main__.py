"""`python -m matquant ...` is the command `matquant ...`."""

from __future__ import annotations

import sys

from matquant.command import main

if __name__ == "__main__":
    sys.exit(main())
