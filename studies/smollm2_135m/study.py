"""The study of SmolLM2-135M: the parts of its document, in their order, and other facts about the model.

Another experiment of the study is a file under conf/experiment/smollm2_135m/ and a line in PARTS.
"""

from __future__ import annotations

from analysis.claims.definition import DocumentPart, Headline, HeadlineRow, StudyDefinition
from studies.smollm2_135m.claims import CLAIMS, SEEDS

WIDTHS = ("widths", "widths_log_pplx")
PARTS = (
    DocumentPart("headline", "OmniQuant, FFN, with more documents", (1,), ("pareto",)),
    DocumentPart("headline_seeds", "OmniQuant and QAT, FFN: int2 with three seeds and more documents"),
    DocumentPart("omniquant", "OmniQuant, FFN", (1, 5, 7), (*WIDTHS, "codes", "pareto")),
    DocumentPart("omniquant_seeds", "OmniQuant, FFN: three seeds"),
    DocumentPart("omniquant_ablations", "OmniQuant, FFN: loss weights and co-distillation", (3, 4)),
    DocumentPart("omniquant_budget", "OmniQuant, FFN: int2 with four times the budget"),
    DocumentPart("headline_qat", "QAT, FFN, with more documents", (2,), ("pareto",)),
    DocumentPart("qat", "QAT, FFN", (2, 5, 30), (*WIDTHS, "codes", "pareto")),
    DocumentPart("qat_seeds", "QAT, FFN: int2 with three seeds"),
    DocumentPart("extra_level", "The overflow bucket without Extra Precision"),
    DocumentPart("ffn_attention", "FFN and attention", (6,)),
    DocumentPart("attention_budget", "FFN and attention: QAT with three times the budget"),
    DocumentPart("gptq", "GPTQ and MatGPTQ, FFN", (), (*WIDTHS, "pareto"), nested="{int8: 1, int4: 1, int3: 1}"),
    DocumentPart("gptq_budget", "GPTQ and MatGPTQ, FFN: int3 with eight times the text"),
    DocumentPart("mixnmatch", "Mix'n'Match: four layouts and two searches", (), ("mixnmatch", "plans")),
    DocumentPart("mixnmatch_seeds", "Mix'n'Match: four layouts with three seeds"),
    DocumentPart("mixnmatch_budget", "Mix'n'Match: four layouts with four times the budget"),
)

UNIGRAM = 7.506
"""Log perplexity of the held-out text for a unigram model of the training text, one added to each count."""

REMARKS = {
    "Within 0.5 points, close to": "With 1,800 documents it is a point to each side, so that this rule can hardly hold "
    "here: the loss of log perplexity stands beside it.",
    "At least as good": "(with 300 documents no interval of Task Avg excludes a loss of 0.5 points; its worse end is "
    "stated)",
}

CHANGES = (
    "The rules were written down in commit ebfff96. Until then, only the accuracies of OmniQuant's int2 and MatQuant "
    "on 34 documents had been measured for the study.",
    "After three seeds of OmniQuant had disagreed about int2: a difference has to exceed what another training makes, "
    "and the interval of *at least as good* includes it. After QAT's codes had moved by 0.003: the same for codes.",
    "After 34 documents had proved too few: *within 0.5 points* is read from 300 documents a task where they were "
    "measured, first for OmniQuant.",
    "When half of the held-out text was found to be one paper: every log perplexity was measured again on text of 116 "
    "documents.",
    "When a reader had objected: int6 and int3 are held against their own Baselines too, which is what the paper says; "
    "and before FFN and attention had been measured, a model has failed if it is worse than token frequencies, instead "
    "of worse than holding all tokens for equally likely (10.80 nats).",
    "When two cores had been found too slow for all that was planned: searches are made at 3 bits alone, after some on "
    "the old text had been seen; two more learning rates and 300 documents for GPTQ were given up before anything of "
    "them had been measured.",
    "When another reader had objected: of two failed models neither is better, what documents alone show can "
    "contradict, codes have to move by more than nothing, *within 0.5 points* is not refuted by what another training "
    "could make or log perplexity contradicts, BoolQ says nothing about chance, and int6 and int3 too are held against "
    "other seeds. Held before, cannot be told since: QAT's codes, Single Precision against QAT's baseline, GPTQ's "
    "collapse. Did not hold before, cannot be told since: int6, int3 by OmniQuant, Single Precision by OmniQuant with "
    "attention, and int4 by MatGPTQ within half a point.",
    "When everything else had been measured, these were measured again, as checks: int2 by OmniQuant with four times "
    "the budget, FFN and attention by QAT with three times, the layouts at 3 bits with other seeds and with four times "
    "the budget. Checks are counted apart from the claims' own cases since.",
    "When a bootstrap had been found to call four blocks of text that agree significant (p = 0.0002): all p-values and "
    "intervals are those of tests that are valid for few documents. No verdict changed; of two that cannot be told "
    "(Single Precision by OmniQuant), the reason did.",
)
"""The changes to the rules, or to the cases that they are applied to, and their occasions."""


BASELINE = "Baseline (OmniQuant)"
ROWS = (
    HeadlineRow("OmniQuant", "int8, sliced: one model", "omniquant", "Sliced int8 (OmniQuant)", BASELINE),
    HeadlineRow("", "Baselines: five models", "omniquant", BASELINE),
    HeadlineRow("", "MatQuant {8, 4, 2}: one model", "omniquant", "MatQuant (OmniQuant)"),
)
"""The rows of README's table; the document has those of QAT and GPTQ."""

STUDY = StudyDefinition(
    title="The study of SmolLM2-135M",
    introduction="The claims of MatQuant (arXiv:2502.06786v3) and MatGPTQ (arXiv:2602.03537), tested on SmolLM2-135M, "
    "at a scale that two cores reach.",
    parts=PARTS,
    claims=CLAIMS,
    words=("surprises", "deviations"),
    seeds=SEEDS,
    unigram=UNIGRAM,
    remarks=REMARKS,
    changes=CHANGES,
    headline=Headline(
        "headline",
        "pareto",
        "Task average and log perplexity against bits: one MatQuant checkpoint, sliced int8, explicit baselines",
        ROWS,
    ),
)
