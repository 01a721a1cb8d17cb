"""The estimated cost of a job: the figures of docs/experiments.md, and in proportion to the work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evaluation.planning import speed
from evaluation.planning.known_models import SHAPES
from evaluation.planning.work import size_of
from evaluation.stages import EVALUATE, SEARCH, TRAIN
from matquant.checkout import PROJECT
from matquant.notation import Plan
from slurm.estimate import START_HERE_S, START_S, Cost, cost_of, named_speed, ranks_of
from slurm.jobs import Job

MODELS = sorted((PROJECT / "conf/model").glob("*.yaml"))
GEMMA_9B = (
    *(
        "model.architecture=gemma2",
        "model.dtype=bfloat16",
        "+model.config.head_dim=256",
        "+model.config.vocab_size=256000",
    ),
    *("model.config.hidden_size=3584", "model.config.intermediate_size=14336", "model.config.num_hidden_layers=42"),
    *("model.config.num_attention_heads=16", "model.config.num_key_value_heads=8"),
    *("grid=per_channel", "cluster=slurm", "bits=matquant"),
)


def job(tiny_study, *overrides: str) -> Job:
    study = tiny_study(*GEMMA_9B, *overrides)
    return Job(study.cells[0], study.setup)


def test_omniquant_of_gemma_9b_takes_the_documented_hours_and_fits_one_gpu(tiny_study):
    data = ("data.num_sequences=128", "data.sequence_length=2048")
    cost = cost_of(job(tiny_study, "base=omniquant_paper", "base.num_steps=1221", *data), ())
    assert cost.gpu_hours == pytest.approx(1.3, rel=0.1)
    assert cost.memory_gb == pytest.approx(57, rel=0.05)
    assert cost.disk_gb == pytest.approx(2 * 6.47, rel=0.1)


@pytest.mark.parametrize(("gpus", "memory_gb"), [(8, 66), (4, 83)])
def test_qat_of_gemma_9b_needs_the_documented_memory(tiny_study, gpus, memory_gb):
    shape = ("data.num_sequences=64", "data.sequence_length=8192", "base.batch_size=8", "base.micro_batch_size=1")
    asked = ("base=qat_paper", *shape, "base.activation_checkpointing=true", f"cluster.gpus_per_node={gpus}")
    made = job(tiny_study, *asked)
    assert ranks_of(made) == gpus
    assert cost_of(made, ()).memory_gb == pytest.approx(memory_gb, rel=0.1)


def test_a_read_out_costs_as_much_as_its_documents(tiny_study):
    study = tiny_study(*GEMMA_9B, "readout.tasks=[piqa,winogrande]", "readout.limit=1000")
    job, plan = Job(study.cells[0], study.setup, EVALUATE), Plan.parse("int4")
    start, few, more, many = (cost_of(job, [plan] * number).gpu_hours for number in (0, 1, 2, 5))
    assert many - few == pytest.approx(4 * (more - few))
    assert many > few > start > 0


def test_a_divergence_makes_a_text_nearly_half_as_long_again_and_the_unquantized_model_reads_it_once(tiny_study):
    def hours(number: int, divergence: str) -> float:
        words = ("readout.tasks=[]", "perplexity=embedded", f"readout.divergence={divergence}", "base=minmax")
        text = ("readout.perplexity.num_sequences=200", "readout.perplexity.sequence_length=2048")
        study = tiny_study(*GEMMA_9B, *words, *text, "readout.batch_size=16")
        return cost_of(Job(study.cells[0], study.setup, EVALUATE), [Plan.parse("int4")] * number).gpu_hours

    text, compared = (hours(2, divergence) - hours(1, divergence) for divergence in ("false", "auto"))
    assert 1.2 < compared / text < 1.6
    once = hours(1, "auto") - hours(1, "false") - (compared - text)
    assert 0.3 * text < once <= text


def test_no_divergence_is_counted_where_there_is_none(tiny_study):
    def of(*words: str) -> Cost:
        study = tiny_study(*GEMMA_9B, "readout.tasks=[]", "perplexity=embedded", *words)
        return cost_of(Job(study.cells[0], study.setup, EVALUATE), [Plan.parse("full")])

    assert of("base=none") == of("base=none", "readout.divergence=false")


def test_the_text_of_a_large_vocabulary_takes_memory_by_its_blocks(tiny_study):
    def gigabytes(*words: str) -> float:
        study = tiny_study(*GEMMA_9B, "readout.tasks=[]", "perplexity=embedded", "readout.dtype=bfloat16", *words)
        return cost_of(Job(study.cells[0], study.setup, EVALUATE), [Plan.parse("int4")]).memory_gb

    short, long = gigabytes("base=minmax"), gigabytes("base=minmax", "readout.perplexity.sequence_length=2048")
    assert long - short == pytest.approx(5.2 - 1.6, abs=1.2)  # a block in 16 bits, and twice in float32
    assert long < 40


def test_a_search_costs_what_it_reads_and_a_dynamic_program_once_for_all_budgets(tiny_study):
    def hours(*plans: str) -> float:
        study = tiny_study(*GEMMA_9B, "base=gptq")
        return cost_of(Job(study.cells[0], study.setup, SEARCH), [Plan.parse(plan) for plan in plans]).gpu_hours

    none, one, two = (hours(*plans) for plans in ((), ("evolution@3",), ("evolution@3", "evolution@4")))
    assert one > none
    assert two - one == pytest.approx(one - none, rel=0.05)
    once = hours("dynamic_program@3") - none
    assert hours("dynamic_program@3", "dynamic_program@4") - none == pytest.approx(once)
    assert hours("dynamic_program_linear@3") - none == pytest.approx(2 * once, rel=0.1)


@pytest.mark.parametrize(
    ("base", "field"),
    [("omniquant", "clipping_init"), ("qat", "clipping_init"), ("gptq", "clipping")],
)
def test_a_search_for_ends_costs_the_same_before_whatever_is_learned(tiny_study, base, field):
    without, searched = (
        cost_of(job(tiny_study, f"base={base}_plain", *words), ()) for words in ((), (f"base.{field}=search",))
    )
    alone = (
        cost_of(job(tiny_study, "base=search"), ()).gpu_hours
        - cost_of(job(tiny_study, "base=minmax", "bits=int8"), ()).gpu_hours
    )
    assert searched.gpu_hours - without.gpu_hours == pytest.approx(alone, rel=0.05)


def test_the_columns_of_a_model_count_an_input_once_that_layers_share(tiny_study):
    made = job(tiny_study, "base=gptq")
    assert size_of(made.cell, made.setup.paths.cache).columns == 42 * (3584 + 14336)


def test_gptq_on_a_gpu_takes_the_time_of_its_columns_and_of_its_moments_in_float32(tiny_study):
    def seconds(sequences: int) -> float:
        made = job(tiny_study, "base=gptq_paper", f"data.num_sequences={sequences}", "data.sequence_length=2048")
        return 3600 * cost_of(made, ()).gpu_hours - START_S

    of_a_sequence = (seconds(32) - seconds(16)) / 16
    columns = seconds(16) - 16 * of_a_sequence
    # An H100: 2.43 s a block for the solves, and 0.33 s a block for 16 sequences (docs/gpu_measured.md).
    assert columns / 42 == pytest.approx(2.43, rel=0.1)
    assert 16 * of_a_sequence / 42 == pytest.approx(0.33, rel=0.25)


def test_answers_of_short_documents_take_the_time_of_their_batches(tiny_study):
    def hours(batch_size: int) -> float:
        study = tiny_study(*GEMMA_9B, "readout.tasks=[piqa]", f"readout.batch_size={batch_size}")
        return cost_of(Job(study.cells[0], study.setup, EVALUATE), [Plan.parse("int4")]).gpu_hours

    assert hours(16) - hours(32) == pytest.approx(2 * (hours(32) - hours(64)), rel=0.01)


def test_an_evaluation_costs_the_tasks_that_it_lacks(tiny_study):
    study = tiny_study(*GEMMA_9B, "base=minmax", "readout.tasks=[boolq,winogrande]", "perplexity=embedded")
    job, plan = Job(study.cells[0], study.setup, EVALUATE), Plan.parse("int4")

    def seconds(*tasks: str) -> float:
        return 3600 * cost_of(job, {plan: tasks}).gpu_hours - START_S

    assert seconds("boolq", "winogrande", "log_pplx") == pytest.approx(3600 * cost_of(job, [plan]).gpu_hours - START_S)
    assert 0 < seconds("winogrande") < seconds("boolq") / 2
    assert seconds() == 0


@pytest.mark.parametrize("stage", [TRAIN, EVALUATE])
def test_on_this_machine_a_plan_counts_with_the_speed_that_its_cpu_is_timed_at(stage, tiny_study, monkeypatch):
    def seconds(*words: str) -> float:
        study = tiny_study("base=gptq", "bits=matquant", *words)
        return 3600 * cost_of(Job(study.cells[0], study.setup, stage), [Plan.parse("int4")]).gpu_hours - START_HERE_S

    monkeypatch.setattr(speed, "product_speed", lambda dtype: 1e6)
    once = seconds("cluster=local")
    assert once == seconds("cluster=debug", "device=cpu") > 0
    assert seconds("cluster=local", "cluster.workers=4") == pytest.approx(4 * once)
    monkeypatch.setattr(speed, "product_speed", lambda dtype: 2e6)
    assert seconds("cluster=local") == pytest.approx(once / 2)
    assert seconds("cluster=local", "cluster.tflops=1e-6") == pytest.approx(speed.EFFICIENCY * once)
    # A GPU is not timed by a product on the CPU.
    assert seconds("cluster=local", "cluster.gpus_per_worker=1") < 1e-3 * once


def test_a_gpu_of_this_machine_takes_the_time_of_one_of_a_cluster(tiny_study):
    def hours(*cluster: str) -> float:
        study = tiny_study(*GEMMA_9B, "base=gptq_paper", *cluster)
        return cost_of(Job(study.cells[0], study.setup, TRAIN), ()).gpu_hours

    here = hours("cluster=local", "cluster.gpus_per_worker=1")
    assert here == pytest.approx(hours("cluster=slurm") - (START_S - START_HERE_S) / 3600)


def test_a_plan_says_which_speed_it_counts_with(tiny_study):
    def words(*overrides: str) -> str:
        return named_speed(tiny_study(*overrides).setup)

    assert words("cluster=local") == "at the speed this CPU has now"
    assert words("cluster=local", "cluster.tflops=3") == "at cluster.tflops=3"
    assert words("cluster=local", "cluster.gpus_per_worker=1") == words("cluster=slurm") == "at cluster.tflops=400"


WEIGHTS = {
    "google/gemma-2-2b": 2_614_341_888,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "Qwen/Qwen3-0.6B-Base": 596_049_920,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
}
"""As the hub counts them."""


@pytest.mark.parametrize("repo", WEIGHTS)
def test_the_size_of_a_model_that_is_not_here_is_that_of_its_published_shape(repo, tiny_study, tmp_path):
    (cell,) = tiny_study("model=hub", f"model.repo={repo}", "model.name=x", "base=none").cells
    assert size_of(cell, tmp_path).weights == WEIGHTS[repo]


def test_the_shape_of_every_hub_model_that_can_be_chosen_is_known():
    repositories = re.findall(r"^repo: ([\w.-]+/[\w.-]+)", "\n".join(map(Path.read_text, MODELS)), re.MULTILINE)
    assert len(repositories) > 5
    assert set(repositories) == set(SHAPES)
