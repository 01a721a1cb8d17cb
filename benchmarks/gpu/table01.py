"""`experiment=table01` of one model on this GPU, as far as the minutes reach; the same command goes on.

    make gpu-table                                        the largest model of Table 1 that this GPU holds; 8 minutes
    python -m benchmarks.gpu.table01 --model gemma2_2b --minutes 20
    python -m benchmarks.gpu.table01 --model DIR            a model that lies on this disk
    python -m benchmarks.gpu.table01 --small                tiny: that the command itself works

Without a network weights are random, of the model's published shape, and the text is made up: what is measured is time
and memory, not quality.  The cells are those of the experiment, MatQuant first, with the paper's steps and calibration
size; read-outs are log perplexity and divergence, since the six tasks are on a hub.  Other words are overrides, such as
`readout.tasks=[piqa] readout.source=embedded`.

Whatever is finished stays in out/gpu_table01: blocks, checkpoints, results.  Written beside it: gpu_table01.json, and
the page gpu_table01.md with the estimates of `slurm/estimate.py` beside the measurements.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.gpu.check import machine, number
from evaluation.planning.known_models import stand_in
from evaluation.planning.work import size_of
from evaluation.protocol import missing
from evaluation.results.store import ResultStore
from evaluation.stages import EVALUATE, TRAIN, Kind, run_cell
from matquant.checkout import PROJECT
from matquant.command.terminal import ended, log_to_stderr
from matquant.config.cell import Cell, HubModel, ModelSpec, OmniQuantBase, RandomModel
from matquant.config.setup import Setup
from matquant.config.study import load_study
from matquant.errors import UserError
from matquant.runs import stopping
from matquant.runs.folder import RunDir
from matquant.runs.stopping import Stopped, give_way
from slurm.estimate import GB, START_S, cost_of
from slurm.jobs import Job

MODELS = ("gemma2_9b", "mistral_7b", "gemma2_2b")
"""Those of Table 1, the largest first."""
SHARE = 0.95
"""The part of a GPU's memory that an estimate may take."""
TEXT_BYTES = 8_000_000
"""Enough for the calibration set and, in a tenth of it, for the held-out text; a token is at least a byte."""
SMALL = ("data.num_sequences=4", "data.sequence_length=32")
SMALL += ("readout.perplexity.num_sequences=4", "readout.perplexity.sequence_length=32")
TINY = RandomModel(
    kind="random",
    name="tiny",
    architecture="llama",
    config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
)


@dataclass(frozen=True)
class Record:
    """One stage of a cell in one call: what it has done, and in how many seconds."""

    cell: str
    stage: Kind
    seconds: float
    done: int
    """Blocks that were trained, or plans that were read."""
    of: int
    peak_gb: float = 0.0


@dataclass(frozen=True)
class Table:
    """The cells of one model, the setup that they run with, and the one that their estimates are for."""

    cells: Sequence[Cell]
    here: Setup
    card: Setup

    def plans(self, cell: Cell) -> int:
        """The number of plans of a cell that are not measured yet."""
        return len(missing(cell, self.here.readout, ResultStore(self.here.paths.results)))

    def blocks(self, cell: Cell) -> int:
        """The number of blocks of a cell that are trained."""
        run = RunDir(self.here.paths.runs, cell.id)
        layers = size_of(cell, self.here.paths.cache).layers
        return layers if run.description.exists() else len(list(run.state.glob("*.safetensors")))

    def estimate(self, cell: Cell, stage: Kind) -> tuple[float, float]:
        """Seconds of a stage on a card, without its start, and gigabytes."""
        plans = self.card.readout.plans_of(cell) if stage == "evaluate" else ()
        cost = cost_of(Job(cell, self.card, EVALUATE if stage == "evaluate" else TRAIN), plans)
        return 3600 * cost.gpu_hours - START_S, cost.memory_gb


def table_of(model: str, folder: Path, *, small: bool, device: str, words: Sequence[str]) -> Table:
    """The cells of Table 1 for a model by its name in conf/model, or for one in a folder."""
    text = made_up_text(folder / "text.txt")
    typed = [
        *("experiment=table01", "data=text_files", f"data.paths=['{text}']", "data.num_sequences=128"),
        *("data.sequence_length=2048", "perplexity=text_files", f"readout.perplexity.paths=['{text}']"),
        *("readout.perplexity.num_sequences=128", "readout.tasks=[]", "tracking=none"),
        *(f"paths.{name}={folder / name}" for name in ("runs", "results", "cache")),
        *(SMALL if small else ()),
        *words,
    ]
    named = model if model in MODELS else MODELS[0]
    here, card = (load_study([*typed, *more]) for more in ((f"device={device}",), ("cluster=slurm",)))
    spec = TINY if small else spec_of(model)
    cells = [of_model(cell, spec, small=small) for cell in here.cells if cell.model.name == named]
    nested_first = sorted(cells, key=lambda cell: cell.objective is None or not cell.objective.is_nested)
    return Table(nested_first, here.setup, card.setup)


def of_model(cell: Cell, spec: ModelSpec, *, small: bool) -> Cell:
    """A cell of the experiment for another model; a small one takes a single step."""
    base = cell.base
    if small and isinstance(base, OmniQuantBase):
        base = base.model_copy(update={"num_steps": 1, "batch_size": 2})
    return cell.model_copy(update={"model": spec, "base": base})


def spec_of(model: str) -> ModelSpec:
    """A folder's model, one of conf/model that needs no hub, or random weights of the shape of one that does."""
    if (folder := Path(model).expanduser().absolute()).is_dir():
        words = ("model=folder", f"model.path='{folder}'", f"model.name='{folder.name}'", "model.dtype=bfloat16")
        return load_study([*words, "base=none"]).one_cell().model
    spec = load_study([f"model={model}", "base=none"]).one_cell().model
    if not isinstance(spec, HubModel):
        return spec  # it lies on this disk, or has random weights anyway
    shape = stand_in(spec)
    if shape is None:
        raise UserError(f"no shape is known of {model}; choose {' or '.join(MODELS)}, or the folder of a model")
    return shape.model_copy(update={"name": f"{spec.name}_random", "dtype": spec.dtype, "add_bos": spec.add_bos})


def largest(folder: Path, gigabytes: float, words: Sequence[str]) -> str:
    """The largest model of Table 1 whose training is estimated to fit."""
    for model in MODELS:
        table = table_of(model, folder, small=False, device="auto", words=words)
        if max(table.estimate(cell, "train")[1] for cell in table.cells) <= SHARE * gigabytes:
            return model
    raise UserError(
        f"no model of Table 1 is estimated to fit {gigabytes:.0f} GB; add activations=host, or name one with --model"
    )


def made_up_text(path: Path) -> Path:
    """A file of words of random letters, the same each time, in documents of 200 words."""
    if not path.exists():
        draw, documents, size = random.Random(0), list[str](), 0
        words = ["".join(draw.choices("etaoinshrdlucmfwyp", k=draw.randint(2, 9))) for _ in range(5000)]
        while size < TEXT_BYTES:
            documents.append(" ".join(draw.choices(words, k=200)))
            size += len(documents[-1]) + 3
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n\n".join(documents), encoding="utf-8")
    return path


def run(table: Table, records: list[Record]) -> None:
    """Does what is missing, cell by cell, until somebody asks to stop; Stopped is raised then."""
    for cell in table.cells:
        give_way(f"before {cell.id}")
        run_cell(cell, table.here, lambda stage, cell=cell: recorded(table, cell, stage, records))


@contextmanager
def recorded(table: Table, cell: Cell, stage: Kind, records: list[Record]) -> Iterator[None]:
    """Remembers what a stage has done, also if it is stopped in the middle."""
    count = table.blocks if stage == "train" else table.plans
    before, start, on_card = count(cell), time.perf_counter(), torch.cuda.is_available()
    if on_card:
        torch.cuda.reset_peak_memory_stats()
    try:
        yield
    finally:
        seconds, done = time.perf_counter() - start, abs(count(cell) - before)
        whole = size_of(cell, table.here.paths.cache).layers
        of = whole if stage == "train" else len(table.here.readout.plans_of(cell))
        peak = torch.cuda.max_memory_allocated() / GB if on_card else 0.0
        if done:
            records.append(Record(cell.id, stage, seconds, done, of, peak))


def page(table: Table, records: Sequence[Record], about: dict[str, str], failed: Sequence[str]) -> str:
    """The work of all calls, with estimates of the same work."""
    lines = [f"# Table 1 on {about['device']}: {table.cells[0].model.name}", ""]
    lines += [", ".join(f"{name} {value}" for name, value in about.items() if name != "device" and value), ""]
    lines += ["| cell | stage | done | seconds | estimate | GB at most | estimate |", "|---|---|--:|--:|--:|--:|--:|"]
    for cell in table.cells:
        for stage in ("train", "evaluate"):
            lines += _lines(table, cell, stage, [one for one in records if (one.cell, one.stage) == (cell.id, stage)])
    lines += ["", "Seconds are those of all calls together, each with its start; the estimate is that of what is done."]
    return "\n".join([*lines, "", "## What failed", "", *(failed or ["Nothing."])]) + "\n"


def _lines(table: Table, cell: Cell, stage: Kind, records: Sequence[Record]) -> Iterator[str]:
    if stage == "train" and cell.objective is None:
        return
    if not records:
        yield f"| {cell.id} | {stage} | not begun | | | | |"
        return
    seconds, memory = table.estimate(cell, stage)
    done, of = sum(one.done for one in records), records[0].of
    share = seconds * done / of + START_S * len(records)
    peak = max(one.peak_gb for one in records)
    what = f"{done} of {of} {'blocks' if stage == 'train' else 'plans'}"
    taken = sum(one.seconds for one in records)
    yield f"| {cell.id} | {stage} | {what} | {number(taken)} | {number(share)} | {number(peak)} | {number(memory)} |"


def write(out: Path, table: Table, records: Sequence[Record], about: dict[str, str], failed: Sequence[str]) -> None:
    content = {"machine": about, "records": [asdict(one) for one in records], "failed": list(failed)}
    (out / "gpu_table01.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    (out / "gpu_table01.md").write_text(page(table, records, about, failed), encoding="utf-8")


def earlier(out: Path, about: dict[str, str]) -> list[Record]:
    """The records of earlier calls on the same machine."""
    path = out / "gpu_table01.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return [Record(**one) for one in content.get("records", ())] if content.get("machine") == about else []


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.table01",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    there = torch.cuda.is_available()
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="overrides of the study")
    parser.add_argument(
        "--model", help=f"a name of conf/model ({', '.join(MODELS)}), or a folder; default: the largest"
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="time to the last safe point: the end of a block")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if there else "cpu")
    parser.add_argument("--small", action="store_true", help="a tiny model")
    parser.add_argument("--out", type=Path, default=PROJECT / "out", help="folder of all files (default: out)")
    options = parser.parse_args(arguments)
    log_to_stderr()
    return ended(lambda: _main(options))


def _main(options: argparse.Namespace) -> int:
    about, folder = machine(options.device), options.out.absolute() / "gpu_table01"
    small = options.small or (options.device == "cpu" and options.model is None)
    model = options.model
    if model is None and not small:
        model = largest(folder, torch.cuda.get_device_properties(0).total_memory / GB, options.overrides)
    table = table_of(model or MODELS[-1], folder, small=small, device=options.device, words=options.overrides)
    records, failed = earlier(options.out, about), list[str]()
    print(f"{len(table.cells)} cells of {table.cells[0].model.name}, {options.minutes:g} minutes, in {folder}")
    clock = threading.Timer(60 * options.minutes, stopping.request)
    clock.daemon = True
    clock.start()
    try:
        run(table, records)
        print("all cells are done")
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on")
    except Exception as error:  # of any kind: what was measured is written all the same
        failed.append(f"- {type(error).__name__}: {' '.join(str(error).split())}")
        print(failed[-1])
    finally:
        clock.cancel()
        stopping.reset()
        write(options.out, table, records, about, failed)
    print(page(table, records, about, failed))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
