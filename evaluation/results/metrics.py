"""The metric that stands for a task, and how it is read: which direction is better, and whether it is a fraction.

One rule for everything that shows or compares results.  A metric is named as in a result file: `acc`, or with the
filter of lm-eval that made it, `exact_match,strict-match`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

LOG_PPLX = "log_pplx"  # the pseudo task of log perplexity, beside the accuracy tasks, and its metric
TASK_AVG = "task_avg"

KL, KL_MEDIAN, KL_99, KL_MAX = "kl", "kl_median", "kl_99", "kl_max"
"""Divergence from the unquantized model on held-out text, nats a token: mean, median, 99th percentile, largest."""
SAME_TOP, RMS_DP, MEAN_DP = "same_top_p", "rms_dp", "mean_dp"
"""The share of tokens whose most likely successor is the same; the change of the right token's probability."""
BASE_LOG_PPLX = "log_pplx_base"
"""Log perplexity of the unquantized model as the divergence was measured from it."""
MEASURES = (KL, KL_MEDIAN, KL_99, KL_MAX, SAME_TOP, RMS_DP, MEAN_DP, BASE_LOG_PPLX)
"""The metrics beside log perplexity that compare with the unquantized model; results of earlier versions have none."""

HEADLINE_METRICS = (
    *(LOG_PPLX, "acc_norm", "acc", "exact_match", "em", "f1", "mcc", "bleu", "rougeL", "chrf", "ter"),
    *("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"),
)
"""The metrics that can stand for a task: the first of them that a task has does, else the first that it lists."""

FILTERS = ("", "strict-match")
"""The filters whose answer counts first, where a metric is computed with several."""

SHARE = re.compile(
    r"(acc|accuracy|exact_match|em|contains|pass@1|pass_at_1|task_avg)(_.*)?|.*_(acc|accuracy)"
    f"|{SAME_TOP}|{RMS_DP}"
)
"""The shares of right answers, printed in percent and averaged.  Not f1, which some tasks give in percent."""

LOWER_IS_BETTER = frozenset(
    {LOG_PPLX, KL, KL_MEDIAN, KL_99, KL_MAX, RMS_DP, "bits_per_byte", "ter", "wer", "cer", "brier_score"}
)
"""What is known of a metric by its name; the yaml of a task, where it says another thing, is right."""

COUNTS = frozenset({"num_tokens", "sample_len"})
"""Numbers beside the metrics that say how much was measured."""

ERROR = "_stderr"


def headline_metric(metrics: Iterable[str]) -> str | None:
    """The metric that stands for a task; None if it has none."""
    return min(filter(is_metric, metrics), key=_rank, default=None)


def is_metric(name: str) -> bool:
    """False for a standard error, a count, and a document's number."""
    return not is_error(name) and name not in COUNTS and name != "doc_id"


def is_error(name: str) -> bool:
    return _base(name).endswith(ERROR)


def error_name(metric: str) -> str:
    """The name of a metric's standard error: `acc_stderr`, `exact_match_stderr,strict-match`."""
    base, comma, of_filter = metric.partition(",")
    return f"{base}{ERROR}{comma}{of_filter}"


def is_fraction(metric: str) -> bool:
    """True for a share of right answers, or its standard error: between 0 and 1."""
    return SHARE.fullmatch(_base(metric).removesuffix(ERROR)) is not None


Directions = Mapping[str, bool]
"""True for a metric of which more is better: what the yaml of a task says."""


def higher_is_better(metric: str, said: Directions | None = None) -> bool:
    """True for a metric of which more is better: by the yaml of its task (`said`), else by its name.

    By their names, perplexities and rates of errors are better low.
    """
    if said is not None and _base(metric) in said:
        return said[_base(metric)]
    base = _base(metric).casefold()
    return not (base in LOWER_IS_BETTER or any(word in base for word in ("perplexity", "pplx", "loss", "error_rate")))


def _base(metric: str) -> str:
    return metric.partition(",")[0]


def _rank(metric: str) -> tuple[int, int]:
    base, _, of_filter = metric.partition(",")
    return _place(base, HEADLINE_METRICS), _place(of_filter, FILTERS)


def _place(name: str, names: tuple[str, ...]) -> int:
    return names.index(name) if name in names else len(names)
