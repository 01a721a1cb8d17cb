"""Executes notebooks without a browser, and writes that of a report."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import nbformat

from analysis.report.files import write_text
from matquant.checkout import PROJECT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbformat import NotebookNode

TEMPLATE = Path(__file__).with_name("experiment.ipynb")
"""The notebook that `matquant report` executes; its cell of parameters is replaced by the command line."""

PARAMETERS = "parameters"
TIMEOUT_S = 600


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def execute(notebook: NotebookNode) -> NotebookNode:
    """Runs all cells in a kernel of their own, from the project's folder; an error of a cell is raised.

    Times and the kernel's version are left out, so that the same numbers give the same file.
    """
    from nbclient import NotebookClient

    resources = {"metadata": {"path": str(PROJECT)}}
    client = NotebookClient(
        notebook, timeout=TIMEOUT_S, kernel_name="python3", resources=resources, record_timing=False
    )
    # The client owns, and at the end stops, a kernel that it made itself.
    manager = client.create_kernel_manager()
    with TemporaryDirectory(prefix="kernel-") as folder:
        if sys.platform != "win32":
            # Sockets that are files instead of the network; in a folder of this kernel alone.
            manager.transport, manager.ip = "ipc", str(Path(folder) / "socket")
        client.execute()
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return notebook


def with_parameters(notebook: NotebookNode, overrides: Sequence[str]) -> NotebookNode:
    """The notebook with its cell of parameters set to a command line."""
    (cell,) = [cell for cell in notebook.cells if PARAMETERS in cell.metadata.get("tags", [])]
    cell.source = f"overrides = {list(overrides)!r}"
    return notebook


def write_report_notebook(overrides: Sequence[str], path: Path) -> None:
    """The executed notebook of a report."""
    write(execute(with_parameters(read(TEMPLATE), overrides)), path)


def write(notebook: NotebookNode, path: Path) -> None:
    write_text(path, nbformat.writes(notebook) + "\n")
