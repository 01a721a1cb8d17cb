"""Every remedy that a sentence about a command line names works when it is typed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

import pytest

from matquant.config.compose import sweep_points
from matquant.config.study import load_study
from matquant.config.syntax.overrides import key_of
from matquant.errors import UserError
from tests.refusals import refusal

OVERRIDE = re.compile(r"""(python run\.py -m )?('[^']*=(?:[^']|'"'"')*'|[+~]*[a-z][\w./]*=[^\s;()]+|~[a-z][\w.]*)""")


def remedies(sentence: str) -> list[tuple[list[str], bool]]:
    """The overrides behind a sentence's first semicolon, with those that stand beside them, and whether they sweep."""
    found: list[tuple[list[str], bool]] = []
    end = -1
    for match in OVERRIDE.finditer(sentence, sentence.index(";")):
        (typed,) = shlex.split(match[2].rstrip(","))
        typed = typed.replace("[FILE,...]", "[FILE]")
        if "..." in typed or "VALUE" in typed:
            continue
        if match.start() == end + 1 and found:  # behind a space: typed together
            found[-1][0].append(typed)
        else:
            found.append(([typed], match[1] is not None))
        end = match.end()
    return found


@pytest.mark.parametrize(
    ("overrides", "number"),
    [
        (["bits=[int8,int4]"], 2),
        (["bits=int8,int4"], 2),
        (["bits=[8,matquant]"], 2),
        (["model=[tiny,smollm2_135m]"], 2),
        (["tracking=[none,wandb]"], 1),
        (["readout=[smoke,embedded]"], 1),
        (["experiment=[smoke,demo]"], 1),
        (["extra_bit=[true,false]"], 2),
        (["readout.tasks=piqa,boolq"], 2),
        (["data=text_files", "data.paths=a.txt,b.txt"], 2),
        (["model=folder", "model.name=x", "model.path=/nope/a,b"], 2),
        (["base.num_steps=interval(1,4)"], 2),
        (["base=qat", "base.lr=interval(1e-4,0.5)"], 1),
        (["base.num_steps=1,2"], 1),
        (["grid=100"], 1),
        (["weights=gemma2", "bits.widths=[int8,int6,int4,int2]"], 1),
        (["weights=gemma2", "bits.widths=[int8]"], 2),
        (["weights=gemma2", "weights.int8=0"], 2),
        (["bits.parent_bits=4", "bits.widths=[4,2]", "distill=8to2"], 2),
        (["readout=smoke", "perplexity=text_files"], 1),
        (["experiment=smoke", "only.bits=int8"], 1),
        (["weights={int8: 1, int4: 1, int2: 2}"], 1),
        (["experiment=smoke", "only={bits: [int8]}"], 1),
        (["base=minmax", "data=[null,embedded]"], 3),
        (["experiment=[null,smoke]"], 2),
        (["seed=[3,4]"], 1),
        (["readout.dtype=[float32]"], 1),
        (["paths.runs=[a]"], 1),
        (["data=null"], 1),
        (["base.batch_size=999"], 1),
        (["readout.plans=[]"], 1),
        (["readout.tasks=[]", "perplexity=null"], 2),
        (["+base=minmax"], 1),
        (["+seed=3"], 1),
        (["bits:int8"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_remedy_of_a_sentence_works_when_it_is_typed(overrides, number):
    said = refusal(*overrides)
    found = remedies(f"{said};")
    assert len(found) == number, (said, found)
    for typed, swept in found:
        # In the place of the mistake, which stands last, or beside it.
        assert fits(overrides[:-1], typed, swept=swept) or fits(overrides, typed, swept=swept), typed


def fits(kept: Sequence[str], typed: Sequence[str], *, swept: bool) -> bool:
    line = [*(one for one in kept if key_of(one) not in map(key_of, typed)), *typed]
    try:
        return all(load_study(point).cells for point in (sweep_points(line) if swept else [line]))
    except UserError:
        return False
