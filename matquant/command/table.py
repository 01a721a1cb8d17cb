"""The table of subcommands: what a person can type, and the words that explain it.

A new subcommand is an entry here and a module with `main(arguments)`, which reads them by `parse(name, arguments)`.
"""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentTypeError
from pathlib import Path

from matquant.command.subcommand import Argument, Example, Group, Subcommand
from matquant.notation import Plan

EXPORT_FORMATS = ("nested", "humming", "compressed-tensors", "gguf", "hqq", "matgptq", "dense", "lm-eval")


def plan(text: str) -> Plan:
    """A read-out plan as it is typed."""
    try:
        return Plan.parse(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


def plan_or_override(text: str) -> Plan | str:
    return text if "=" in text or text.startswith("~") else plan(text)


def overrides(help: str) -> Argument:
    """Overrides of run.py, as many as there are."""
    return Argument("overrides", help, {"nargs": "*", "metavar": "KEY=VALUE"})


def flag(name: str, help: str) -> Argument:
    return Argument(name, help, {"action": "store_true"})


OVERRIDES = overrides("experiment=..., cluster=..., any override of `matquant run`")
CELL = overrides("the cell, as `matquant run` takes it: base=omniquant bits=matquant")
EVERY_ROW = flag("--all", "print every row of long tables")

RUN = Subcommand(
    "run",
    "matquant.command.run",
    "train and evaluate one cell, or all cells of an experiment, in this process",
    "Trains what is missing of one cell or of an experiment, evaluates every slice, and draws the report.",
    (
        OVERRIDES,
        flag("--multirun", "the product of several choices"),
        flag("-m", "short for --multirun"),
        Argument("--cfg", "print the composed configuration", {"choices": ["job", "hydra", "all"]}),
        flag("--hydra-help", "Hydra's own options"),
    ),
    (
        Example("matquant run experiment=demo", "all cells of an experiment"),
        Example("matquant run base=minmax bits=int8", "one cell"),
        Example("matquant run -m base=minmax,omniquant bits=int2,matquant", "the product, in one joint table"),
    ),
    passes_on=True,
)

LAUNCH = Subcommand(
    "launch",
    "slurm.launch",
    "measure a study as jobs: on SLURM, or as processes of this machine",
    """
Trains every cell of a study and evaluates every slice of it, as jobs: on SLURM (cluster=slurm), as processes of this
machine (cluster=local, the default), or in this process (cluster=debug).  What is on disk is not computed again, what
is queued or running is not submitted again, and a job that was preempted, timed out or killed goes on where it was.
""",
    (
        OVERRIDES,
        flag("--dry-run", "print the plan and submit nothing"),
        Argument(
            "--retry-failed",
            "submit failed jobs too; --retry-failed=all even those that ran out of memory or met a NaN",
            {"choices": ["some", "all"]},
            bare="some",
        ),
        Argument("--only", "only cells whose id matches", {"action": "append", "default": [], "metavar": "PATTERN"}),
        flag("--cancel", "cancel the jobs of this study"),
        flag("--wait", "stay until every job has ended; submit what a full queue has left as places become free"),
        EVERY_ROW,
    ),
    (
        Example("matquant launch experiment=table01 cluster=slurm --dry-run", "the plan: jobs, hours, memory, disk"),
        Example("matquant launch experiment=table01 cluster=slurm cluster.partition=gpu cluster.account=me", ""),
        Example("matquant launch experiment=table01 cluster=slurm", "again, any time: submits what is missing"),
        Example("matquant launch experiment=table01 cluster=slurm --retry-failed", "also what failed with an error"),
        Example("matquant launch experiment=table01 cluster=slurm --only '*int2*'", "some of its cells"),
        Example(
            "matquant launch experiment=table01 cluster=slurm --cancel", "take its jobs back, keep what is finished"
        ),
        Example("matquant launch experiment=demo cluster=local cluster.workers=2", "the same on this machine"),
    ),
    "`matquant status` with the same overrides shows the progress; `matquant run --help` lists the overrides;\n"
    "docs/slurm.md takes you from nothing to a running table, docs/clusters.md has the settings for your cluster.",
)

SEARCH = Subcommand(
    "search",
    "evaluation.searching",
    "search for the width of each layer under a budget",
    """
Searches for the widths of a checkpoint's layers under a budget, by how far its logits leave the unquantized model's.
The checkpoint has to be trained already.  The plan is written to <paths.runs>/<cell id>/plans/evolution@3.json;
settings of a search that are not the defaults are told behind the budget: evolution@3-8c7758f2.json.

Strategies: evolution and dynamic_program give every block a width, evolution_linear and dynamic_program_linear every
linear layer; pyramid is the paper's layout under the same budget.  `search=quick` and single values say how long it
takes.  A read-out names a plan by its strategy, and `matquant run` searches for it where it is missing, or by its path:
  matquant run base=gptq bits=matquant 'readout.plans=[int4, evolution@3, "runs/.../plans/pyramid@3.json"]'
""",
    (
        Argument(
            "choices",
            "plans, each a strategy and effective bits of a quantized weight: evolution@3; and the cell, as "
            "`matquant run` takes it: base=gptq bits=matquant",
            {"nargs": "+", "type": plan_or_override, "metavar": "PLAN or KEY=VALUE"},
        ),
    ),
    (
        Example("matquant search evolution@3 base=gptq bits=matquant", "a width for every block"),
        Example("matquant search evolution_linear@3 base=gptq search=quick readout.search.generations=20", "shorter"),
        Example("matquant search evolution@3 pyramid@3 base=gptq bits=matquant", "two plans to compare"),
    ),
)

FAITHFULNESS = Subcommand(
    "faithfulness",
    "evaluation.faithfulness",
    "compare the numbers with those of lm-eval's own command line",
    """
Compares the harness with lm-eval's command line: same weights, same documents, same batch size, same numbers.

Every read-out is measured by the harness, exported as a Hugging Face folder, and measured by lm-eval in a process of
its own.  Accuracies have to be the same and, in float32, log-likelihoods have to agree to 1e-4 nats; otherwise the
exit status is 1.  In bfloat16 neither lm-eval with another batch size nor the harness gives the same bits, so there the
documents that differ are only counted.
""",
    (
        overrides("the cell and its read-out, as `matquant run` takes them"),
        Argument(
            "--plans",
            "read-outs to compare (default: int8 int4 int2)",
            {"nargs": "+", "type": plan, "default": [Plan.parse(text) for text in ("int8", "int4", "int2")]},
        ),
    ),
    (
        Example(
            "matquant faithfulness base=minmax bits=int8 readout.limit=10 readout.dtype=float32 --plans int8 int2",
            "",
        ),
        Example("matquant faithfulness base=none readout.limit=10 --plans full", "the unquantized model"),
    ),
)

STATUS = Subcommand(
    "status",
    "slurm.status",
    "the progress of a study's jobs",
    "Shows the state and the progress of a study's jobs, from files on disk and from the scheduler.",
    (
        OVERRIDES,
        flag("--watch", "show it again every few seconds, until all has ended"),
        EVERY_ROW,
        flag("--json", "one JSON object a stage"),
    ),
    (
        Example("matquant status experiment=table01 cluster=slurm", ""),
        Example(
            "matquant status experiment=table01 cluster=slurm --watch", "again every few seconds, until all has ended"
        ),
        Example("matquant status experiment=table01 cluster=slurm --json", "for scripts"),
    ),
    "Give the overrides that the study was launched with.  States: done, running, queued, failed (with the reason),\n"
    "missing.",
)

REPORT = Subcommand(
    "report",
    "analysis.report.report",
    "a study's tables, figures, notebook and HTML page, from results",
    """
Draws a study from the results on disk and writes out/<experiment>/:
  table.{md,tex,html,csv}    the summary table; accuracies in the CSV are fractions, log_pplx is in nats per token
  paper.{md,tex,html,csv}    for an experiment that is a table of the paper: that table, ours beneath theirs
  comparisons.csv            every row against its baseline on the same documents: difference, standard error, p-value
  <figure>.{svg,pdf,png}     as wide as the text of a paper; <figure>_column.* as wide as a column
  report.ipynb               the same as a notebook, executed
  report.html                everything on one self-contained page, with how each number was made and what is missing
A report whose files are all there, drawn from the same results by the same code, is left as it is; delete any of its
files to have it drawn again.
""",
    (
        overrides("what to report on, such as experiment=demo"),
        flag("--no-notebook", "leave the notebook out, which takes longest"),
        Argument(
            "--pareto",
            "what Pareto plots have on their vertical axes, joined by commas (default: task_avg,log_pplx): also "
            "perplexity, kl, kl_median, kl_99, kl_max, same_top_p, rms_dp, right_to_wrong, wrong_to_right",
            {"default": "", "metavar": "MEASURES"},
        ),
    ),
    (
        Example("matquant report experiment=demo", "what `matquant run experiment=demo` measured"),
        Example("matquant report experiment=demo --pareto kl,same_top_p", "Pareto plots of the divergence"),
        Example("matquant report experiment=demo paths.results=/data/r", "results copied from another machine"),
        Example("matquant report experiment=demo readout.limit=200", "the same cells under another protocol"),
        Example("matquant report base=minmax bits=int8", "a single cell"),
        Example("matquant report base=minmax,omniquant bits=int2,matquant", "the joint report of a sweep's points"),
    ),
    "Overrides are those of `matquant run` (its --help lists them): give the ones the results were measured with.\n"
    "No model is loaded and nothing is measured; `matquant run ...` with the same overrides measures what is missing.\n"
    "Several choices of an axis are the points of `matquant run -m ...`; their report is in out/sweep, or out/<name>.",
    takes_sweeps=True,
)

TABLES = Subcommand(
    "tables",
    "analysis.report.all_tables",
    "all tables of the papers, ours beside theirs",
    """
Draws the tables of MatQuant (arXiv:2502.06786) and of MatGPTQ's speed (arXiv:2602.03537), ours beside theirs, into
out/papers/.

Table 1 is that of the cells of `experiment=table01`, and so on to 30; v1_2 and v1_3 are Tables 2 and 3 of MatQuant's
first version; kernel and vllm are MatGPTQ's, with what was measured here.  What has not been measured is a visible gap.
""",
    (
        Argument(
            "choices",
            "tables (default: all), and overrides of `matquant run`",
            {"nargs": "*", "metavar": "TABLE or KEY=VALUE"},
        ),
    ),
    (
        Example("matquant tables", "all of them"),
        Example("matquant tables 1 30 paths.results=/data/results", "two of them, from results copied there"),
        Example("matquant tables kernel vllm", "MatGPTQ's speed, and what was measured here"),
    ),
)

COMPARE = Subcommand(
    "compare",
    "analysis.report.compare",
    "two read-outs on the same documents, with p-values",
    """
Compares two read-outs on the documents that both were measured on.

Prints for each task, for Task Avg and for log perplexity the difference (first minus second), its standard error, and a
p-value: McNemar's exact test for one task; for the others exact sign flips where at most 20 documents differ, else
Student's t.  Where both were measured under several protocols, each has lines of its own.
""",
    (
        Argument("first", "a cell's id and a plan", {"metavar": "CELL:PLAN"}),
        Argument("second", "another one", {"metavar": "CELL:PLAN"}),
        Argument("--results", "the folder of results", {"type": Path, "default": Path("results"), "metavar": "DIR"}),
    ),
    (
        Example(
            "matquant compare smollm2_135m-omniquant-matquant-f7a9a509:int2 CELL:int2", "MatQuant and another cell"
        ),
        Example("matquant compare CELL:int4 CELL:int2 --results /data/results", "results copied there"),
    ),
    "`ls results` shows the ids of the cells, `ls results/CELL` the plans of one.",
)

STUDY = Subcommand(
    "study",
    "analysis.claims.study",
    "the document of a study: claims, verdicts, figures, from results",
    """
Draws a study as a document, from results: its claims with their verdicts, its tables and figures.  studies/README.md
shows how to write one; without a name, the studies that are there are listed.

The exit status is 1 if --check finds something out of date.
""",
    (
        Argument("name", "a folder of studies/; without it they are listed", {"nargs": "?", "metavar": "NAME"}),
        overrides("overrides of `matquant run`: paths.results=DIR"),
        flag("--check", "write nothing, and say what is out of date"),
    ),
    (
        Example("matquant study", "the studies there are"),
        Example("matquant study smollm2_135m", "writes the document"),
        Example("matquant study smollm2_135m --check", "writes nothing; names what is out of date"),
    ),
)

WANDB = Subcommand(
    "wandb",
    "analysis.report.wandb_report",
    "a study as a Weights & Biases Report, written or published",
    """
Draws a study as a Weights & Biases Report: Pareto panel, a run set for each method, curves, tables and words.

The runs are those that `matquant run` tracked, one a cell; nothing is uploaded but the report itself, and that only
with --publish and a key (`wandb login`).
""",
    (
        overrides("what to report on, such as experiment=demo"),
        flag("--publish", "publish the report instead of writing it to disk alone"),
    ),
    (
        Example("matquant wandb experiment=demo", "what would be published, as out/demo/wandb_report.json"),
        Example("matquant wandb experiment=demo --publish", "publishes it"),
    ),
)

EXPORT = Subcommand(
    "export",
    "matquant.serving.export",
    "a trained cell as a folder: every width in one, or one read-out for an engine",
    """
Writes a trained cell as a folder that others read.

  nested              every width in one folder: matquant.load(DIR, "int3") reads any of them (no PLAN)
  humming             one read-out for vLLM's kernels, at 1 to 8 bits
  compressed-tensors  one read-out for vLLM and transformers
  gguf                one read-out for llama.cpp
  hqq                 one read-out for HQQ's own library
  matgptq             the nested codes as MatGPTQ's plugin for vLLM has them (no PLAN)
  dense               one read-out with expanded weights, for whatever reads a Hugging Face folder
  lm-eval             the same and its tasks, with the command line of lm-eval that measures it

CELL is the id of a cell, the folder of its run, or the overrides that `matquant run` takes.  PLAN is int8, int4,
int2+ep, pyramid@3, evolution@3, the path of a plan file ...  Each export says whether it is exact, and export.json
keeps that with the plan and the checksum.  An inexact one is refused without --round-zeros.  A nested folder is told to
the tracker as an artifact; tracking=none leaves that out.
""",
    (
        Argument(
            "format",
            "nested, humming, compressed-tensors, gguf, hqq, matgptq, dense or lm-eval",
            {"choices": EXPORT_FORMATS, "metavar": "FORMAT"},
        ),
        Argument(
            "words",
            "the cell; the plan, but for nested and matgptq; and the folder, which must not be there yet",
            {"nargs": "+", "metavar": "CELL, PLAN, DIR or KEY=VALUE"},
        ),
        flag("--round-zeros", "write an inexact export too, in which zeros are rounded to codes"),
        Argument(
            "--dtype",
            "the dtype of what is not quantized (default: that of the model as it was published)",
            {"choices": ["float32", "bfloat16", "float16"]},
        ),
    ),
    (
        Example("matquant export nested smollm2_135m-omniquant-matquant-b666e5f9 served", "a cell by its id"),
        Example("matquant export nested base=omniquant bits=matquant served", "the same by overrides"),
        Example("matquant export gguf CELL int4 served_int4", "an engine's format"),
        Example("matquant export dense runs/CELL pyramid@3 served_pyramid", "the folder of a run"),
    ),
    "docs/serving.md has the table of formats, and leads from a finished cell to a running server.",
)

IMPORT = Subcommand(
    "import",
    "matquant.serving.imports",
    "a checkpoint of another program as a folder that holds every width",
    """
Writes a checkpoint of another program as a nested folder: matquant.load(DIR, "int3") reads it at any width.

  matgptq   MatGPTQ's 8-bit checkpoints: the folder of layers that its quant.py leaves (<layer>/data.pt), or a model
            that its pack_quantized_model.py wrote

A folder of layers needs --model, the model that was quantized.  A packed one has what is not quantized, and is compared
with --model where that is given.  A checkpoint whose zeros were lost in packing is refused; that the order of columns
was lost shows only beside --model.
""",
    (
        Argument("format", "matgptq", {"choices": ["matgptq"], "metavar": "FORMAT"}),
        Argument("theirs", "the folder of the other program", {"metavar": "THEIRS"}),
        Argument("folder", "the nested folder, which must not be there yet", {"metavar": "DIR"}),
        Argument(
            "--model",
            "the unquantized model: a folder, or a repository of the hub",
            {"metavar": "MODEL", "default": None},
        ),
    ),
    (
        Example("matquant import matgptq weights/Llama-3.1-8B served --model meta-llama/Llama-3.1-8B", "layers"),
        Example("matquant import matgptq packed served", "a packed model"),
        Example("matquant import matgptq packed served --model MODEL", "the same, compared with the unquantized model"),
    ),
    "docs/serving.md tells which checkpoints come in.",
    needs_clone=False,
)

PACK = Subcommand(
    "pack",
    "evaluation.results.pack",
    "the results of a folder as two parquet files, or as loose files again",
    """
Packs the loose results of a folder into facts.parquet and documents.parquet.  Every command reads either form.  A loose
file is removed only after its packed twin was read back and found to be the same.
""",
    (
        Argument("folder", "the folder of results", {"type": Path, "metavar": "DIR"}),
        flag("--unpack", "give the loose files back, the same to the byte"),
    ),
    (
        Example("matquant pack results", "packs what is loose, beside what is packed"),
        Example("matquant pack results --unpack", "the loose files again"),
    ),
)

NOTEBOOKS = Subcommand(
    "notebooks",
    "analysis.notebooks.in_place",
    "execute the committed notebooks in place",
    "Executes the notebooks of analysis/notebooks/ and of studies in place: all of them, or those that are named.",
    (Argument("names", "notebooks (default: all), by the stem of their file", {"nargs": "*", "metavar": "NAME"}),),
    (
        Example("matquant notebooks", "all of them"),
        Example("matquant notebooks 1_tables", "one of them"),
    ),
)

PUBLISHED = Subcommand(
    "published",
    "analysis.published.check",
    "check the papers' printed numbers against themselves",
    """
Checks the numbers of the papers, as they are copied in analysis/published/, against themselves: every printed average
against the mean of its six tasks.  The exit status is 1 if one of them does not fit and is not known as an error.
""",
    (),
    (
        Example("matquant published", "known errors, and new ones"),
        Example("matquant published && echo consistent", "for scripts"),
    ),
)

COMPLETION = Subcommand(
    "completion",
    "matquant.command.completion",
    "print a script that completes what is typed: bash, zsh, fish",
    """
Prints a script for a shell to evaluate.  It completes subcommands, their options, and overrides with their values:
nested experiments, lists (base=minmax,omn<TAB>) and keys (readout.<TAB>).
""",
    (
        Argument("shell", "the shell that reads the script", {"nargs": "?", "choices": ["bash", "zsh", "fish"]}),
        Argument("--line", SUPPRESS, {}),
    ),
    (
        Example('eval "$(matquant completion bash)"', "this shell; the same line in ~/.bashrc, every shell"),
        Example('eval "$(matquant completion zsh)"', "after compinit, in ~/.zshrc"),
        Example("matquant completion fish | source", "in ~/.config/fish/config.fish"),
    ),
    needs_clone=False,
)

GROUPS = (
    Group("measure", (RUN, LAUNCH, SEARCH, FAITHFULNESS)),
    Group("look", (STATUS, REPORT, TABLES, COMPARE, STUDY, WANDB)),
    Group("serve", (EXPORT, IMPORT)),
    Group("maintain", (PACK, NOTEBOOKS, PUBLISHED, COMPLETION)),
)
SUBCOMMANDS = {subcommand.name: subcommand for group in GROUPS for subcommand in group.subcommands}
FIRST_STEPS = (
    Example("matquant run experiment=demo", "one real model at five precisions: table, plot, report"),
    Example("matquant launch experiment=table01 cluster=slurm --dry-run", "what a table of the paper would cost"),
    Example('eval "$(matquant completion bash)"', "completes what you type, experiments included"),
)
