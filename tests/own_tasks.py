"""A folder of one's own lm-eval yaml files over small local data, as a user writes them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import yaml

WORDS = ("red", "blue", "jar", "sea", "stone", "lid", "moon", "tree")
EXACT = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "regexes_to_ignore": ["(?s).*#### "]}


def write_own_tasks(folder: Path) -> Path:
    """Writes `colors`, `seas` (by a function), `sums` (generated), `my_text` (rolling) and the group `mine`."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)

    def words(count: int) -> str:
        return " ".join(draw.choices(WORDS, k=count))

    for split, count in (("dev", 6), ("test", 12)):
        rows = [
            {"question": words(8), "choices": [words(2) for _ in range(4)], "answer": index % 4}
            for index in range(count)
        ]
        (folder / f"choices_{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for split, count in (("train", 6), ("test", 4)):
        pairs = [(draw.randint(1, 9), draw.randint(1, 9)) for _ in range(count)]
        rows = [{"question": f"{a} plus {b}?", "answer": f"It is #### {a + b}"} for a, b in pairs]
        (folder / f"sums_{split}.json").write_text(json.dumps(rows))

    def files(stem: str, ending: str, *splits: str) -> dict[str, object]:
        names = {split: str(folder / f"{stem}_{split}.{ending}") for split in splits}
        return {"dataset_path": "json", "dataset_kwargs": {"data_files": names}, "test_split": "test"}

    (folder / "utils.py").write_text("def half(docs):\n    return docs.select(range(len(docs) // 2))\n")
    choices = {
        **files("choices", "jsonl", "dev", "test"),
        "fewshot_split": "dev",
        "fewshot_config": {"sampler": "first_n"},
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
        ],
    }
    write(folder, "_choices", choices)
    write(folder, "colors.yaml", {"include": "_choices", "task": "colors", "tag": "short"})
    (folder / "seas.yaml").write_text(
        "include: _choices\ntask: seas\ntag: [short]\nprocess_docs: !function utils.half\nnum_fewshot: 0\n"
    )
    sums = {
        **files("sums", "json", "train", "test"),
        "task": "sums",
        "training_split": "train",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "num_fewshot": 2,
        "generation_kwargs": {"until": ["Question:"], "do_sample": False, "max_gen_toks": 8},
        "metric_list": [EXACT],
        "filter_list": [
            {"name": "strict-match", "filter": [{"function": "regex", "regex_pattern": "#### ([0-9]+)"}, TAKE]},
            {
                "name": "flexible-extract",
                "filter": [{"function": "regex", "group_select": -1, "regex_pattern": "([0-9]+)"}, TAKE],
            },
        ],
    }
    write(folder, "sums.yaml", sums)
    rolling = {
        **files("choices", "jsonl", "test"),
        "task": "my_text",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "question",
        "metric_list": [{"metric": "word_perplexity"}],
    }
    write(folder, "my_text.yaml", rolling)
    group = {
        "group": "mine",
        "task": [
            "short",
            {
                "group": "inner",
                "task": [{"task": "piqa", "num_fewshot": 1}],
                "aggregate_metric_list": [{"metric": "acc"}],
            },
        ],
        "aggregate_metric_list": [{"metric": "acc"}, {"metric": "acc_norm", "weight_by_size": False}],
    }
    write(folder, "group.yaml", group)
    return folder


TAKE = {"function": "take_first"}


def write(folder: Path, name: str, content: dict[str, object]) -> None:
    """Writes a yaml file."""
    (folder / name).write_text(yaml.safe_dump(content, sort_keys=False))
