"""The documentation: no dead link, no command that does not run, nothing of the reference missing, no long page."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from docs.from_code.commands import commands as pages_of_commands
from docs.from_code.keys import FIRST, SECTIONS, Key, keys, top_keys
from docs.from_code.length import MOST_OF_THE_README, MOST_WORDS, num_words
from docs.from_code.markdown import cell
from docs.from_code.pages import generated
from docs.pictures.draw import FOLDER, LOOKS, PICTURES, draw
from evaluation.results.store import ResultStore
from matquant.checkout import PROJECT, STUDIES
from matquant.command import main
from matquant.command.parsing import parse
from matquant.command.table import GROUPS, SUBCOMMANDS
from matquant.config.compose import check_line, choices, compose
from matquant.config.sweep import is_of_hydra
from matquant.config.sweeper import sample_points
from matquant.config.syntax.files import CONF, axes, is_group
from matquant.config.syntax.grammar import is_searched
from matquant.config.syntax.listing import listing
from matquant.config.syntax.overrides import for_hydra, sweep_points
from tests.documentation import (
    DOCS,
    FILES,
    PAGES,
    PLACEHOLDER,
    Shown,
    anchors,
    blocks,
    commands,
    inline,
    links,
    name,
    prose,
)

FROM_CODE = re.compile(r"^```\{from_code\} (.+)\n```$", re.MULTILINE)
INCLUDED = re.compile(r'^```\{include\} (\S+)\n:start-after: "(.+)"\n:end-before: "(.+)"\n```$', re.MULTILINE)
TREE = re.compile(r"^```\{toctree\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN = sorted({shown for path in FILES for shown in [*commands(path), *inline(path)]})
CHOSEN_BY_THE_READER = {"cluster=mine", "experiment=first_look/int2"}
"""Files that a page tells its reader to write."""


def whole(path: Path) -> str:
    """A page as it is built: with what comes out of the code and out of other files."""

    def included(match: re.Match[str]) -> str:
        text = (path.parent / match[1]).read_text(encoding="utf-8")
        return text.partition(match[2])[2].partition(match[3])[0]

    text = FROM_CODE.sub(lambda match: generated(match[1]), path.read_text(encoding="utf-8"))
    return INCLUDED.sub(included, text)


# --- pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_no_page_is_longer_than_a_reader_wants(path):
    assert num_words(whole(path)) <= MOST_WORDS, "divide it by subject"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_page_opens_with_its_purpose(path):
    title, _, rest = path.read_text(encoding="utf-8").partition("\n\n")
    assert re.fullmatch(r"# [^\n]+", title)
    assert re.match(r"[A-Z`*][^\n]{30,}[.:]", rest), "words for the reader before the first heading"


def test_every_page_is_in_the_navigation():
    told = {DOCS / "index.md"}
    for path in PAGES:
        for tree in TREE.findall(path.read_text(encoding="utf-8")):
            lines = [line for line in tree.splitlines() if line and not line.startswith(":")]
            told |= {(path.parent / f"{line}.md").resolve() for line in lines}
    assert told == set(PAGES)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_link_is_dead(path):
    for target in links(path):
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("theme", LOOKS)
def test_pictures_are_those_that_the_code_draws(picture, theme, tmp_path):
    drawn = draw(picture, theme, tmp_path)
    committed = FOLDER / drawn.name
    assert drawn.read_bytes() == committed.read_bytes(), "run: python -m docs.pictures.draw"


# --- commands --------------------------------------------------------------------------------------------------------


def ours(words: tuple[str, ...]) -> tuple[str, ...]:
    """A command line as `matquant` takes it; empty for another program."""
    program, *rest = (Path(words[0]).name, *words[1:])
    match (program, *rest):
        case ("matquant", *typed):
            return tuple(typed)
        case ("python", "-m", "matquant", *typed):
            return tuple(typed)
        case ("python", script, *typed) if Path(script).name == "run.py":
            return ("run", *typed)
        case ("torchrun", *typed) if "run.py" in typed:
            return ("run", *typed[typed.index("run.py") + 1 :])
    return ()


@pytest.mark.filterwarnings("ignore:(?s).*validated against ConfigStore schema")  # Hydra's words about a launcher
@pytest.mark.parametrize("shown", SHOWN, ids=str)
def test_every_command_on_a_page_can_be_typed(shown):
    program = Path(shown.words[0]).name
    typed = ours(shown.words)
    if typed:
        type_in(typed)
    elif program == "make":
        targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
        assert {word for word in shown.words[1:] if "=" not in word} <= targets
    elif program == "pip":
        facts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        extras = {extra for word in shown.words for extra in re.findall(r"matquant\[(\w+)\]", word)}
        assert extras <= set(facts)
    elif shown.words[1:2] == ("-m",):
        assert find_spec(shown.words[2]) is not None
    else:
        assert program == "python"
        assert (PROJECT / shown.words[1]).is_file()


def type_in(typed: tuple[str, ...]) -> None:
    """Reads a line as its subcommand would, and composes its overrides."""
    subcommand, *words = typed
    if subcommand in ("--help", "--version", "help", "SUBCOMMAND"):
        return
    assert subcommand in SUBCOMMANDS
    if not words or "..." in words or any(word.startswith("[") for word in words):  # a mention, or the form of a line
        options = {re.split(r"[=\]]", word.lstrip("["))[0] for word in words if word.lstrip("[").startswith("-")}
        assert options <= {option.name for option in SUBCOMMANDS[subcommand].options}
        return
    if "--help" in words or listing(words) is not None:
        return
    swept = subcommand == "run" and bool({"-m", "--multirun"} & set(words))
    is_whole = not (any(map(PLACEHOLDER.search, words)) or CHOSEN_BY_THE_READER & set(words))
    if subcommand == "run" and is_whole and not swept:
        check_line(words)
    given = parse(subcommand, words)
    overrides = [
        word
        for place in ("overrides", "choices", "words")
        for word in getattr(given, place, None) or []
        if isinstance(word, str) and "=" in word and not PLACEHOLDER.search(word) and word not in CHOSEN_BY_THE_READER
    ]
    for point in points(overrides) if swept or SUBCOMMANDS[subcommand].takes_sweeps else [overrides]:
        compose([*needed(point), *point])


def points(overrides: list[str]) -> list[list[str]]:
    """The points of a sweep; of a search, some that a sweeper could draw."""
    drawn = sample_points(overrides) if is_searched(overrides) else sweep_points(for_hydra(overrides))
    return [[word for word in point if not is_of_hydra(word)] for point in drawn]


def needed(point: list[str]) -> list[str]:
    """Values that a page leaves to its reader, so that the rest of the line composes."""
    open_values = {"model=hub": ["model.repo=a/b", "model.name=a"], "model=folder": ["model.path=a", "model.name=a"]}
    given = {word.partition("=")[0] for word in point}
    wanted = [value for word in point for value in open_values.get(word, [])]
    return [word for word in point if word in open_values] + [w for w in wanted if w.partition("=")[0] not in given]


def is_cheap(shown: Shown) -> bool:
    """True for a line that reads what is committed, and for the plan of the demo."""
    typed = ours(shown.words)
    if not typed or any(map(PLACEHOLDER.search, typed)):
        return False
    return (
        typed == ("published",)
        or typed == ("study",)
        or (typed[0] in ("completion", "compare") and len(typed) > 1)
        or listing(typed) is not None
        or typed == ("launch", "experiment=demo", "--dry-run")
    )


CHEAP = [shown for shown in SHOWN if is_cheap(shown)]


@pytest.mark.parametrize("typed", sorted({ours(shown.words) for shown in CHEAP}), ids=" ".join)
def test_cheap_commands_of_pages_run(typed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("matquant.command.dispatch.log_to_stderr", lambda: None)
    if typed[0] == "run":
        assert listing(typed)
        return
    folders = [f"paths.runs={tmp_path}", f"paths.results={tmp_path}"] if typed[0] == "launch" else []
    if typed[0] == "compare":
        monkeypatch.chdir(PROJECT)
    assert main([*typed, *folders]) == 0
    assert capsys.readouterr().out


ID = re.compile(r"\b[a-z0-9_]+-[a-z]+-[a-z0-9_]+-[0-9a-f]{8}\b")


@pytest.mark.parametrize("place", ["docs/serving.md", "docs/tutorials/serve.md", "matquant/command/table.py"])
def test_the_id_of_a_cell_that_is_exported_is_that_of_the_command_beside_it(place, composed):
    text = (PROJECT / place).read_text(encoding="utf-8")
    exported = {found for line in text.splitlines() if "compare" not in line for found in ID.findall(line)}
    assert exported == {composed("base=omniquant", "bits=matquant").one_cell().id}


def test_every_id_on_a_page_has_results_in_the_clone():
    stores = [ResultStore(folder) for folder in STUDIES.glob("*/results")]
    shown = {(path, found) for path in FILES for found in ID.findall(path.read_text(encoding="utf-8"))}
    assert shown
    assert not [(path, cell) for path, cell in shown if not any(store.paths(cell) for store in stores)]


def test_pages_have_commands_of_every_kind_that_is_run():
    assert {ours(shown.words)[0] for shown in CHEAP} >= {"run", "launch", "compare", "completion", "published", "study"}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_python_on_a_page_is_python_and_names_what_is_there(path):
    for block in blocks(path, "python"):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("studies."):
                module = import_module(node.module)
                assert all(hasattr(module, one.name) or find_spec(f"{node.module}.{one.name}") for one in node.names)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "matquant":
                assert node.attr in import_module("matquant").__all__


@pytest.mark.parametrize("path", FILES, ids=name)
def test_yaml_on_a_page_is_yaml(path):
    for block in blocks(path, "yaml"):
        assert yaml.safe_load(block)


# --- the reference ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> dict[str, Key]:
    """Every key that a page of the reference shows."""
    found = [key for axis in FIRST for choice in FIRST[axis] for key in keys(axis, choice)]
    return {key.name: key for key in [*found, *top_keys()]}


def test_every_key_has_a_meaning_and_values(reference):
    assert not [key.name for key in reference.values() if not (key.meaning and key.values and key.default)]


@pytest.mark.parametrize("axis", [axis for axis in axes() if axis != "experiment"])
def test_every_key_of_every_choice_is_in_the_reference(axis, reference):
    place = SECTIONS.get(axis, axis)
    for choice in choices(axis):
        needs = [f"{place}.{name}=x" for name in ("repo", "name", "path") if f"{name}: ???" in text_of(axis, choice)]
        lists = [f"{place}.paths=[x]"] if choice == "text_files" else []
        values = compose([f"{axis}={choice}", *needs, *lists])
        for part in place.split("."):
            values = values[part]
        if isinstance(values, dict):
            sections = {section.rpartition(".")[2] for section in SECTIONS.values()} if axis == "readout" else set()
            assert {f"{place}.{one}" for one in values if one != "kind" and one not in sections} <= set(reference)


def text_of(axis: str, choice: str) -> str:
    path = CONF / axis / f"{choice}.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def test_every_top_level_key_is_in_the_reference(reference):
    tops = {name for name in compose([]) if not is_group(name) and name != "paths"}
    assert tops <= set(reference)


def test_every_kind_page_and_choice_is_asked_for_by_a_page():
    asked = " ".join(FROM_CODE.findall("\n".join(path.read_text(encoding="utf-8") for path in PAGES)))
    for axis in FIRST:
        assert f"keys {axis}" in asked
        assert f"choices {axis}" in asked
    assert {group.title for group in GROUPS} == set(re.findall(r"commands (\w+)", asked))
    assert set(FIRST) == set(axes()) - {"experiment"}


def test_the_pages_of_commands_name_every_option_and_example():
    shown = "\n".join(pages_of_commands(group.title) for group in GROUPS)
    for subcommand in SUBCOMMANDS.values():
        assert f"## matquant {subcommand.name}\n" in shown
        assert all(cell(example.line) in shown for example in subcommand.examples)
        assert all(option.name in shown for option in subcommand.options if "--line" not in option.name)


def test_the_page_of_experiments_names_every_experiment():
    shown = "".join(whole(DOCS / "reference" / name) for name in ("experiments.md", "study_experiments.md"))
    assert not [one for one in choices("experiment") if f"| `{one}` |" not in shown]


def test_lines_of_the_readme_can_be_pasted_into_any_shell():
    lines = [line for block in blocks(PROJECT / "README.md", "") for line in block.splitlines()]
    assert lines
    # zsh takes a `#` that is typed for a word.
    assert not [line for line in lines if "#" in line or PLACEHOLDER.search(line)]


def test_the_readme_is_a_screen_and_a_half_and_says_what_its_words_mean():
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert num_words(text) <= MOST_OF_THE_README, "move it to the documentation"
    for word in ("parent", "slice", "plan", "nats"):
        first = re.search(rf"\*?\b{word}\b", text)
        assert first is not None
        assert first[0] == f"*{word}", f"say what it is where it is first met: *{word}*"


def test_readme_leads_to_the_documentation():
    assert "docs/index.md" in links(PROJECT / "README.md")
    assert "make docs" in prose((PROJECT / "README.md").read_text(encoding="utf-8"))
