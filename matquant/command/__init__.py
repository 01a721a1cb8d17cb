"""The command `matquant`: the table of its subcommands, their help and options, how each ends, and shell completion.

May use `config`, `runs` and `notation`; `dispatch` imports the module of a subcommand only when it is called.
No measuring, no drawing and no heavy library comes in here: `matquant --help` answers at once.
"""

from __future__ import annotations

from matquant.command.dispatch import main

__all__ = ["main"]
