"""The command: its map and help, mistakes, what needs the clone, and completion as shells ask for it."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module

import pytest

from matquant.checkout import PROJECT
from matquant.command import main
from matquant.command.completion import SCRIPTS, candidates
from matquant.command.parsing import parse, parser_of
from matquant.command.subcommand import Subcommand
from matquant.command.table import FIRST_STEPS, GROUPS, SUBCOMMANDS
from matquant.config.compose import choices, compose, sweep_points
from matquant.config.syntax.files import axes
from matquant.config.syntax.listing import listing
from matquant.errors import FailedCellsError, UserError
from tests.processes import only_sentence, python, variables

EXAMPLE = re.compile(r"^ +(?:eval \"\$\()?(?:matquant|python run\.py)(?= |$).*", re.MULTILINE)
"""A line of a help that can be typed."""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    """Leaves logging as pytest has set it up."""
    monkeypatch.setattr("matquant.command.dispatch.log_to_stderr", lambda: None)


# --- help ------------------------------------------------------------------------------------------------------------


def test_the_map_names_every_subcommand_under_its_purpose(capsys):
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert main(words) == 0
        shown = capsys.readouterr().out
        for title, subcommands in GROUPS:
            assert f"\n{title}\n" in shown
            for subcommand in subcommands:
                assert re.search(rf"^  {subcommand.name} +{re.escape(subcommand.summary)}$", shown, re.MULTILINE)
        assert all(example.line in shown for example in FIRST_STEPS)
        assert "docs/" in shown


def help_of(name: str, capsys) -> str:
    assert main([name, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name, one in SUBCOMMANDS.items() if not one.passes_on])
def test_every_help_has_two_examples_that_work_when_typed(name, capsys):
    shown = help_of(name, capsys)
    assert len(EXAMPLE.findall(shown[shown.index("examples:") :])) >= 2
    for line in EXAMPLE.findall(shown):
        type_in(line)


def test_run_is_run_py_whose_help_has_examples_that_work_when_typed():
    done = python("-m", "matquant", "run", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    examples = [line for line in EXAMPLE.findall(done.stdout) if not line.endswith("--help")]
    assert len(examples) >= 5
    for line in examples:
        type_in(line)


@pytest.mark.parametrize("example", [*SUBCOMMANDS["run"].examples, *FIRST_STEPS])
def test_the_examples_of_the_map_work_when_typed(example):
    type_in(example.line)


def type_in(line: str) -> None:
    """Reads a line as its subcommand would, and composes its overrides."""
    (typed,) = re.findall(r"(?:matquant|python run\.py)(?: [^|&)]*|$)", line.strip().partition("   ")[0])
    words = shlex.split(typed.replace("python run.py", "matquant run"))[1:]
    given = parse(words[0], words[1:])
    for overrides in (getattr(given, "overrides", []), getattr(given, "choices", [])):
        typed = [word for word in overrides if isinstance(word, str) and "=" in word]
        swept = (words[0] == "run" and (given.m or given.multirun)) or SUBCOMMANDS[words[0]].takes_sweeps
        for point in sweep_points(typed) if swept else [typed]:
            assert compose(point)


def test_help_is_asked_for_in_either_order(capsys):
    assert main(["help", "launch"]) == 0
    assert capsys.readouterr().out == help_of("launch", capsys)


def test_the_version_names_the_commit(capsys):
    assert main(["--version"]) == 0
    assert re.match(r"matquant \S+( installed\))?, commit [0-9a-f]{40}", capsys.readouterr().out)


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_module_of_the_table_takes_the_arguments_as_they_were_typed(name):
    (parameter,) = inspect.signature(import_module(SUBCOMMANDS[name].module).main).parameters.values()
    assert parameter.name == "arguments"


@pytest.mark.parametrize("folder", ["matquant", "evaluation", "analysis", "slurm"])
def test_there_is_one_way_to_start_a_command(folder):
    programs = [path for path in (PROJECT / folder).rglob("*.py") if 'if __name__ == "' in path.read_text()]
    assert programs == [PROJECT / "matquant" / "__main__.py"] * (folder == "matquant")


# --- an axis without a value -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", axes())
def test_an_axis_without_a_value_lists_its_choices_with_a_line_about_each(axis):
    shown = listing([f"{axis}="], width=10_000)
    assert shown is not None
    for name in choices(axis):
        assert re.search(rf"^{re.escape(f'{axis}={name}')} +\S.{{5,}}$", shown, re.MULTILINE), name


def test_an_experiment_is_listed_with_its_claim_and_a_folder_alone():
    claims = listing(["experiment="], width=10_000) or ""
    assert "experiment=table07" in claims
    assert "about 2.05 effective bits buy 5 to 6 points at int2" in claims
    folder = listing(["experiment=grids/"], width=60) or ""
    lines = folder.split("\n\n")[0].splitlines()
    assert {line.split()[0] for line in lines} == {
        f"experiment={name}" for name in choices("experiment") if "grids/" in name
    }
    assert all(len(line) <= 60 for line in lines)


@pytest.mark.parametrize(
    "words", [["experiment=demo"], ["experiment=nope/"], ["base.num_steps="], ["+x="], []], ids=" ".join
)
def test_other_words_ask_for_no_list(words):
    assert listing(words) is None


@pytest.mark.parametrize("command", [["launch"], ["status", "--watch"], ["report"], ["run"]], ids=" ".join)
def test_every_command_that_takes_overrides_lists_and_succeeds(command, capsys):
    assert main([*command, "base="]) == 0
    assert "base=qat_paper" in capsys.readouterr().out


# --- how it ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("lunch", "there is no subcommand lunch; did you mean launch?"),
        ("help lunch", "did you mean launch?"),
        ("--verbose", "there is no subcommand --verbose; matquant --help lists them"),
        ("launch --dryrun", "unrecognized arguments: --dryrun; matquant launch --help shows how"),
        ("launch --retry-failed=none", "invalid choice: 'none'"),
        ("launch base.num_step=1", "there is no key base.num_step"),
        ("status experiment=dmeo", "did you mean demo"),
        ("search", "the following arguments are required: PLAN or KEY=VALUE"),
        ("search base=gptq", "no plan is named; type one before the overrides, such as evolution@3"),
        ("search evolution", "'evolution' is not a read-out plan"),
        ("search int4 model=tiny", "int4 is not searched for"),
        ("export dense int9 exported base=minmax", "'int9' is not a read-out plan; did you mean int"),
        ("export dense int4 exported experiment=demo", "4 cells match; choose one with base="),
        ("export lm-eval full /proc/nowhere base=none", "cannot write to /proc/nowhere"),
        (
            "export lm-eval int4 exported base=none",
            "a cell of base=none is not quantized and has no int4; read it as full",
        ),
        ("export dense int4 exported base=minmax paths.runs=nowhere", "is not trained yet; run it with `matquant run`"),
        ("search evolution@3 base=none", "choose base=omniquant, base=qat or base=gptq"),
        ("launch experiment=smollm2/nope", "experiment=smollm2/nope does not exist"),
        ("faithfulness base=none --plans int8", "int8 is no read-out of base=none; --plans full goes with"),
        ("faithfulness model=tiny readout=smoke base=minmax --plans int8", "grid.group_size=64 does not divide"),
        ("report experiment=demo paths.results=/etc/passwd --no-notebook", "/etc/passwd is a file"),
        ("pack /proc", "cannot write to /proc"),
        ("faithfulness --plans pyramid@9", "pyramid@9 cannot be met by layers of"),
        ("report experiment=dmeo", "did you mean demo"),
        ("report --no-notbook", "unrecognized arguments"),
        ("tables 31", "there is no table 31; choose from 1 to 30"),
        ("tables table31", "there is no table 31; choose from 1 to 30"),
        ("tables demo", "there is no table demo; tables are numbers from 1 to 30"),
        ("export int4 x base=minmax", "argument FORMAT: invalid choice: 'int4' (choose from 'nested'"),
        ("export nested experiment=demo", "takes CELL DIR, where CELL is an id, the folder of a run or overrides"),
        ("tables experiment=demo", "for another experiment type matquant report experiment=..."),
        ("tables one", "there is no table one; tables are numbers from 1 to 30"),
        ("tables 1 paths.nonsense=1", "there is no key paths.nonsense"),
        ("compare one", "the following arguments are required: CELL:PLAN"),
        ("compare one two", "results; write CELL:PLAN"),
        ("study --chek", "unrecognized arguments"),
        ("wandb experiment=dmeo", "did you mean demo"),
        ("notebooks 6_nothing", "there is no notebook 6_nothing; there are 1_tables"),
        ("published 1", "unrecognized arguments: 1"),
        ("completion", 'no shell is named; type eval "$(matquant completion bash)"'),
        ("completion tcsh", "invalid choice: 'tcsh'"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(words, message, capsys):
    assert main(shlex.split(words)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    line = only_sentence(said.err)
    assert line.startswith("error: ")
    assert message in line


SAME_MISTAKES = {
    "seed=true": "seed=true: Input should be a number",
    "bits=[int8,int4]": "bits=[int8,int4] names several choices, and a cell has one of bits; as cells",
    "base=minmax,none": "as cells of their own, type python run.py -m base=minmax,none",
    "base.num_steps=interval(1,4)": "is a search space",
    "scope=null": "scope=null is not a choice of scope; choices: ffn, ffn_attention",
    "bits": "'bits' ",
}
TAKES_OVERRIDES = [
    *("launch", "launch --dry-run", "launch --cancel", "status", "search evolution@3"),
    "export dense int4 exported",
    *("faithfulness", "report", "tables", "study smollm2_135m", "study smollm2_135m --check", "wandb"),
]


@pytest.mark.parametrize("mistake", SAME_MISTAKES)
@pytest.mark.parametrize("command", TAKES_OVERRIDES)
def test_the_same_mistake_is_the_same_sentence_and_status_2_in_every_command(command, mistake, capsys):
    if command.startswith(("search", "tables", "export")) and "=" not in mistake:
        pytest.skip("a word without an equals sign is a plan or a number there")
    if command == "report" and mistake.startswith("base=minmax"):
        pytest.skip("a report takes the axes of a multirun")
    assert main([*shlex.split(command), mistake]) == 2
    said = capsys.readouterr()
    line = only_sentence(said.err)
    assert (said.out, line.startswith("error: ")) == ("", True)
    assert SAME_MISTAKES[mistake] in line


def ends_by(error: BaseException, monkeypatch) -> None:
    """Lets a subcommand end by an exception."""

    def raises(_):
        raise error

    monkeypatch.setattr("analysis.published.check.main", raises)


def test_a_rank_other_than_the_main_one_says_which_it_is(monkeypatch, capsys):
    ends_by(UserError("no"), monkeypatch)
    monkeypatch.setenv("RANK", "1")
    assert main(["published"]) == 2
    assert capsys.readouterr().err == "rank 1: error: no\n"


def test_cells_that_failed_are_one_sentence_and_status_1(monkeypatch, capsys):
    ends_by(FailedCellsError("1 of 2 cells failed"), monkeypatch)
    assert main(["published"]) == 1
    assert capsys.readouterr().err == "error: 1 of 2 cells failed\n"


def test_ctrl_c_is_one_sentence_and_status_130(monkeypatch, capsys):
    ends_by(KeyboardInterrupt(), monkeypatch)
    assert main(["published"]) == 130
    line = only_sentence(capsys.readouterr().err)
    assert line == "interrupted; what is finished is on disk, the same command continues"


def test_our_own_mistake_keeps_its_traceback(monkeypatch):
    ends_by(ValueError("a bug"), monkeypatch)
    with pytest.raises(ValueError, match="a bug"):
        main(["published"])


@pytest.mark.parametrize("words", [["--help"], ["launch", "--help"], ["published"]])
def test_a_reader_that_has_seen_enough_is_no_error(words):
    theirs, ours = os.pipe()
    os.close(theirs)
    with os.fdopen(ours) as stdout:
        command = [sys.executable, "-m", "matquant", *words]
        done = subprocess.run(command, cwd=PROJECT, stdout=stdout, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_mistake_typed_to_run_is_the_one_of_run_py():
    done = python("-m", "matquant", "run", "base.num_step=1")
    assert done.returncode == 2
    assert done.stdout == ""
    line = only_sentence(done.stderr)
    assert line.startswith("error: there is no key base.num_step")


# --- the wheel alone -------------------------------------------------------------------------------------------------

ALONE = """
import contextlib, io, json, sys
from matquant.command import main
found = {}
for line in json.loads(sys.argv[1]):
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = main(line.split())
    found[line] = status, out.getvalue(), error.getvalue()
print(json.dumps(found))
"""
ARGUMENTS = {
    "search": " evolution@3",
    "export": " dense CELL int4 exported",
    "import": " matgptq THEIRS DIR",
    "compare": " one:int4 two:int4",
    "pack": " results",
}


def test_subcommands_that_need_the_clone_say_so_where_the_package_is_alone(tmp_path):
    shutil.copytree(PROJECT / "matquant", tmp_path / "matquant")
    need = {one.name: f"{one.name}{ARGUMENTS.get(one.name, '')}" for one in SUBCOMMANDS.values() if one.needs_clone}
    lines = [*need.values(), "--help", "--version", "launch --help", "completion bash"]
    command = [sys.executable, "-c", ALONE, json.dumps(lines)]
    done = subprocess.run(command, cwd=tmp_path, env=variables(), capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    for name, line in need.items():
        status, out, error = found.pop(line)
        assert (status, out) == (2, "")
        assert re.fullmatch(
            rf"error: matquant {name} needs the repository, .* `pip install --editable '\.\[harness\]'` in it\n", error
        )
    assert {(status, error) for status, _, error in found.values()} == {(0, "")}
    assert "commit" not in found["--version"][1]


def test_a_clone_without_the_libraries_of_the_harness_says_how_they_are_installed(monkeypatch, capsys):
    monkeypatch.setattr("matquant.command.dispatch.find_spec", lambda name: None)
    for line in ("run model=tiny", "launch experiment=demo", "compare one two"):
        assert main(line.split()) == 2
        assert capsys.readouterr().err.endswith("run `pip install --editable '.[harness]'` in the clone\n")


# --- completion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("stat", ["status"]),
        ("help comp", ["compare", "completion"]),
        ("launch --re", ["--retry-failed", "--retry-failed=all", "--retry-failed=some"]),
        ("launch --retry-failed experiment=dem", ["experiment=demo"]),
        ("run --cfg j", ["job"]),
        ("completion ", ["bash", "fish", "zsh"]),
        ("run experiment=smollm2/table0", [f"experiment=smollm2/table0{number}" for number in range(1, 8)]),
        ("run base=minmax,omni", [f"base=minmax,omniquant{rest}" for rest in ("", "_paper", "_plain")]),
        ("report experiment=demo readout.lim", ["readout.limit="]),
        ("run base", ["base.", "base="]),
        ("run base=qat base.warm", ["base.warmup_steps="]),
        ("run base=gptq base.warm", []),
        ("run model=tiny model.config.num_hidden", ["model.config.num_hidden_layers="]),
        ("run model.add_bos=", ["model.add_bos=false", "model.add_bos=true"]),
        ("run seed=", ["seed=0"]),
        ("run +experiment=dem", ["+experiment=demo"]),
        ("run hydra/launcher=submitit_s", ["hydra/launcher=submitit_slurm"]),
        ("run base=nonsense experiment=dem", ["experiment=demo"]),
        ("run base=nonsense readout.", []),
        ("compare readout.", []),
        ("nonsense ", []),
    ],
)
def test_what_is_typed_is_completed(line, offered):
    assert candidates(line.split(" ")) == offered


def test_every_experiment_is_offered_however_deep_it_lies():
    assert candidates(["launch", "experiment="]) == [f"experiment={name}" for name in choices("experiment")]


def options(subcommand: Subcommand) -> set[str]:
    return {option for action in parser_of(subcommand)._actions for option in action.option_strings}


@pytest.mark.parametrize("name", [name for name, one in SUBCOMMANDS.items() if not one.passes_on])
def test_every_option_is_offered(name):
    offered = {option for option in candidates([name, "--"]) if "=" not in option}
    assert offered == options(SUBCOMMANDS[name]) - {"-h", "--line"}


BASH = """
eval "$(matquant completion bash)"
COMP_LINE=$1 COMP_POINT=${#1}
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_matquant
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def with_command(tmp_path) -> dict[str, str]:
    """An environment that has a command called matquant."""
    script = tmp_path / "matquant"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m matquant "$@"\n')
    script.chmod(0o755)
    return {**variables(), "PATH": f"{tmp_path}:{os.environ['PATH']}"}


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed: its completion is NOT tested")
@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("matquant rep", ["report"]),
        ("matquant launch --can", ["--cancel"]),
        ("matquant run experiment=", choices("experiment")),
        ("matquant run experiment=smollm2/fig", ["smollm2/figure2"]),
        ("matquant run base=qat base=minmax,omniquant_", ["minmax,omniquant_paper", "minmax,omniquant_plain"]),
        ("matquant run readout.li", ["readout.limit="]),
        ("matquant launch --retry-failed=a", ["all"]),
    ],
)
def test_bash_is_given_what_follows_the_last_of_its_word_breaks(line, replies, with_command):
    words = re.findall(r"[=:]+|[^ =:]+", line)  # as bash divides it: COMP_WORDBREAKS has = and :
    if line.endswith("="):
        words.append("")
    command = ["bash", "--norc", "--noprofile", "-c", BASH, "bash", line, *words]
    done = subprocess.run(command, cwd=PROJECT, env=with_command, capture_output=True, text=True, check=True)
    assert (done.stdout.splitlines(), done.stderr) == (replies, "")


@pytest.mark.parametrize("shell", SCRIPTS)
def test_each_shell_takes_its_script(shell, with_command):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed: its script is NOT tested")
    script = subprocess.run(
        ["matquant", "completion", shell], cwd=PROJECT, env=with_command, capture_output=True, text=True, check=True
    ).stdout
    subprocess.run([shell, "-n", "/dev/stdin"], input=script, text=True, check=True)
