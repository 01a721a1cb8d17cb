"""Draws a report: `python -m analysis.report experiment=demo`."""

from __future__ import annotations

import sys

from analysis.report.report import main

if __name__ == "__main__":
    sys.exit(main())
