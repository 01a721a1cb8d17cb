"""The study of two small models: the parts of its document, and what holds for all its claims; design.md says why."""

from __future__ import annotations

from analysis.claims.definition import DocumentPart, StudyDefinition
from studies.two_models.claims import ALGORITHMS, CLAIMS, MODELS, PLAIN

PARTS = (
    DocumentPart("headline", "One int8 that was only rounded, MatQuant, and baselines, groups of 64", (), ("pareto",)),
    DocumentPart("headline_long", "The same in 48 blocks of 256 tokens, one seed"),
    DocumentPart("choice", "The choice of the grid that suits slices, on tuning text"),
    DocumentPart("untrained", "Without training", (), ("widths_log_pplx",)),
    DocumentPart("suited", "Without training, on the grid that suits slices"),
    DocumentPart("omniquant", "OmniQuant, groups of 64", (), ("widths_log_pplx",)),
    DocumentPart(
        "gptq", "GPTQ and MatGPTQ, groups of 64", (), ("widths_log_pplx",), nested="{int8: 1, int4: 1, int3: 1}"
    ),
    DocumentPart("qat", "QAT, groups of 64", (), ("widths_log_pplx",)),
    DocumentPart("per_channel", "One scale a channel"),
    DocumentPart("sliced", "int8 of each algorithm, read narrower"),
    DocumentPart("objectives", "Single Precision and Extra Precision"),
    DocumentPart("distill", "Co-distillation"),
    DocumentPart("mixnmatch", "Mix'n'Match", (), ("mixnmatch", "plans")),
    DocumentPart("attention", "Feed-forward layers and attention"),
)

CHANGES = (
    "2026-11-27, when Gemma's untrained slices had been read: on the chosen grid they are worse at int4 and "
    "int3 in groups of 64 than on today's, so the first claim is held against today's grid too, as checks, which are "
    "counted apart.",
    "2026-11-27, when a reader had held the rules against the design, and no trained row had been compared with "
    "another: the list of that date in the design. Of the four verdicts that there were, none changed.",
    "2026-11-27, when SmolLM2's rows of the headline had been read in blocks of 256 tokens: MatQuant's int8 reads "
    "below the unquantized model in blocks of 32 tokens and above it in these, so OmniQuant's cases of claims 1, 2, 3 "
    "and 5 in groups of 64 are asked of them too, as checks: of one seed, with the spread of seeds in short blocks.",
    "2026-11-27, after results were seen: MatQuant between searched ranges, which learns nothing but takes its ranges "
    "from text that the seed draws, is of three seeds like what is trained, and is asked of long blocks too, as a "
    "check.",
)
"""The changes to the rules, or to the cases that they are applied to, and their occasions."""

UNIGRAM = {"smollm2_135m": 7.600, "gemma3_270m": 7.677}
"""Log perplexity of the test text for a unigram model of the training text, one added to each count, by model."""

STUDY = StudyDefinition(
    title="Two small models, fair grids, three seeds",
    introduction="The claims of MatQuant (arXiv:2502.06786v3) and MatGPTQ (arXiv:2602.03537), tested on SmolLM2-135M "
    "and Gemma 3 270M as [the design](design.md) lays down, which was written before rows were compared.",
    parts=PARTS,
    answers=("answers",),
    carrying=("headline_pareto", "answers", "mixnmatch_mixnmatch"),
    claims=CLAIMS,
    seeds={base: (base, "per_channel") for base in ALGORITHMS},
    models=tuple(MODELS),
    nested=PLAIN,
    unigram=UNIGRAM,
    changes=CHANGES,
)
