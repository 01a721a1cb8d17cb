"""Shell completion: subcommands, their options, and overrides with their values.

Hydra's own completion was looked at first: it offers neither nested choices (experiment=smollm2/table01) nor the
second value of a list, and argcomplete knows nothing of configuration.  Here the choices come from conf/ itself and the
keys from what has been typed so far, composed: base=qat offers the keys of QAT.
"""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matquant.command.parsing import parse
from matquant.command.subcommand import Subcommand
from matquant.command.table import SUBCOMMANDS
from matquant.errors import UserError

# A script asks the command that is being typed, so that .venv/bin/matquant completes too.
SCRIPTS = {
    # bash takes `=` and `:` for ends of words: what is before the last of them is there already.
    "bash": r"""
_matquant() {
    local IFS=$'\n' typed=${COMP_LINE:0:COMP_POINT} word cut="" number
    word=${typed##*[[:space:]]}
    [[ $COMP_WORDBREAKS == *=* ]] && cut=${word%"${word##*[=:]}"}
    COMPREPLY=($("${COMP_WORDS[0]}" completion --line "$typed" 2>/dev/null))
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=.,/] ]] && compopt -o nospace 2>/dev/null
    for number in "${!COMPREPLY[@]}"; do COMPREPLY[number]=${COMPREPLY[number]#"$cut"}; done
}
complete -o default -F _matquant matquant
""",
    "zsh": r"""
_matquant() {
    local -a found
    found=("${(@f)$("${words[1]}" completion --line "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}")
    compadd -Q -S '' -- ${(M)found:#*[=.]}
    compadd -Q -- ${found:#(|*[=.])}
    (( ${#found:#} )) || _files
}
compdef _matquant matquant
""",
    "fish": r"""
function __matquant
    set -l words (commandline -opc)
    set -l found ($words[1] completion --line (commandline -cp | string collect) 2>/dev/null)
    if test -n "$found"
        printf '%s\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c matquant -f -a '(__matquant)'
""",
}


def main(arguments: Sequence[str]) -> None:
    given = parse("completion", arguments)
    if given.line is not None:
        print("".join(f"{text}\n" for text in candidates(_words(given.line))), end="")
    elif given.shell is None:
        raise UserError('no shell is named; type eval "$(matquant completion bash)", with zsh or fish for those shells')
    else:
        print(SCRIPTS[given.shell].strip())


def _words(line: str) -> list[str]:
    """The words behind `matquant` up to the cursor; the last one is being typed, and may be empty."""
    words = line.split()
    return [*words[1:], *([""] if not line or line[-1].isspace() else [])]


def candidates(words: Sequence[str]) -> list[str]:
    """Everything that the last word can become."""
    *before, word = words or [""]
    return sorted({text for text in _offers(before, word) if text.startswith(word)})


def _offers(before: Sequence[str], word: str) -> Iterable[str]:
    if not before or before == ["help"]:
        return [*SUBCOMMANDS, *(["help", "--help", "--version"] if not before else [])]
    if before[0] not in SUBCOMMANDS:
        return []
    subcommand, typed = SUBCOMMANDS[before[0]], before[1:]
    if word.startswith("-"):
        return _options(subcommand)
    values = _values_of_option(subcommand, typed)
    if values or not subcommand.takes_overrides:
        return values or [
            str(value)
            for argument in subcommand.arguments
            if not argument.name.startswith("-")
            for value in argument.settings.get("choices", ())
        ]
    try:
        return _overrides([text for text in typed if "=" in text and not text.startswith("-")], word)
    except UserError:  # a mistake in the words before: the command will name it
        return []


def _options(subcommand: Subcommand) -> list[str]:
    shown = [one for one in subcommand.options if one.help != SUPPRESS]
    with_values = [f"{one.name}={value}" for one in shown for value in one.settings.get("choices", ())]
    return ["--help", *(one.name for one in shown), *with_values]


def _values_of_option(subcommand: Subcommand, typed: Sequence[str]) -> list[str]:
    """Choices of an option whose value is typed as a word of its own."""
    last = typed[-1] if typed else ""
    options = {one.name: one for one in subcommand.options if one.bare is None}
    return list(options[last].settings.get("choices", ())) if last in options else []


def _overrides(before: Sequence[str], word: str) -> Iterable[str]:
    from matquant.config.compose import CONF, choices, compose

    sign = word[0] if word[:1] in ("+", "~") else ""
    key, equals, value = word.removeprefix(sign).partition("=")
    is_axis = bool(key) and (CONF / key).is_dir()
    if equals and is_axis:
        listed = value[: value.rfind(",") + 1]
        return [f"{sign}{key}={listed}{choice}" for choice in choices(key) if choice not in listed.split(",")]
    values = compose([text for text in before if "," not in text])
    if equals:
        return [f"{sign}{key}={text}" for text in _values(values, key)]
    path, dot, _ = key.rpartition(".")
    axes = [] if dot else [f"{one.name}=" for one in CONF.iterdir() if one.is_dir() and one.name != "hydra"]
    return [f"{sign}{text}" for text in [*axes, *_keys(values, path)]]


def _at(values: Mapping[str, Any], key: str) -> Any:
    place: Any = values
    for part in key.split(".") if key else ():
        place = place.get(part) if isinstance(place, Mapping) else None
    return place


def _keys(values: Mapping[str, Any], path: str) -> list[str]:
    """The keys below one: with a dot where there are more below, with an equals sign where a value is."""
    place = _at(values, path)
    if not isinstance(place, Mapping):
        return []
    prefix = f"{path}." if path else ""
    return [f"{prefix}{key}{'.' if isinstance(value, Mapping) and value else '='}" for key, value in place.items()]


def _values(values: Mapping[str, Any], key: str) -> list[str]:
    """The present value of a key, or both values of a boolean."""
    match _at(values, key):
        case bool():
            return ["true", "false"]
        case str() | int() | float() as value:
            return [str(value)]
        case _:
            return []
