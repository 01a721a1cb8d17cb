"""The parts of Hydra and lm-eval that neither promises to keep: the table that a new version is held against.

    python -m pytest tests/evaluation/test_surface.py      one sentence for each that the installed versions lack

Lines of lm-eval's source on which patches rest are quoted in `lm_eval_patches`.  What Hydra 1.4 and lm-eval 0.5 change
is told in docs/reference/libraries.md; pyproject.toml stays below both.
"""

from __future__ import annotations

import inspect
from functools import reduce
from importlib import import_module, metadata
from typing import Any, NamedTuple

HYDRA, LAUNCHER, LM_EVAL = "hydra-core", "hydra-submitit-launcher", "lm-eval"
BELOW = {HYDRA: "1.4", LAUNCHER: "1.4", LM_EVAL: "0.5"}
"""The first versions that pyproject.toml leaves out."""


class Touched(NamedTuple):
    """A name of a library.  `takes`: parameters that are passed or overridden; `says`: a part of its source."""

    library: str
    name: str
    """`module:name`, or `module:Class.name`."""
    used_by: str
    takes: tuple[str, ...] = ()
    says: str = ""

    def lost(self) -> str | None:
        """A sentence if the installed version lacks it, with the file of ours to look at."""
        if (gone := self._gone()) is None:
            return None
        version = metadata.version(self.library)
        return f"{self.library} {version} {gone}; look at {self.used_by}, which rests on it"

    def _gone(self) -> str | None:
        module, _, path = self.name.partition(":")
        try:
            found: Any = reduce(getattr, path.split("."), import_module(module))
        except ImportError:
            return f"has no module {module}, and with it no {path}"
        except AttributeError:
            return f"has no {path} in {module}"
        if lacking := [name for name in self.takes if name not in inspect.signature(found).parameters]:
            return f"has a {path} in {module} that takes no {' and no '.join(lacking)}"
        if self.says and self.says not in inspect.getsource(found):
            return f"has a {path} in {module} without '{self.says}'"
        return None


_SWEEPER = "hydra._internal.core_plugins.basic_sweeper:BasicSweeper"
_OVERRIDES = "hydra.core.override_parser.types"
_SUBMITIT = "hydra_plugins.hydra_submitit_launcher"
_LAUNCHED = ("job_overrides", "initial_job_idx")
_HFLM = "lm_eval.models.huggingface:HFLM"
_MODEL, _PATCHES = "evaluation/tasks/language_model.py", "evaluation/lm_eval_patches.py"
_SCORING = "evaluation/tasks/scoring.py"
_REQUESTS = ("limit", "rank", "world_size", "chat_template", "apply_chat_template", "fewshot_as_multiturn")

TOUCHED = (
    Touched(HYDRA, "hydra:main", "run.py", ("version_base",)),
    Touched(HYDRA, "hydra:initialize_config_dir", "matquant/config/compose.py", ("version_base",)),
    Touched(HYDRA, "hydra.version:base_at_least", "version_base in run.py and matquant/config/compose.py"),
    Touched(HYDRA, "hydra.core.config_store:ConfigStore.__init__", "matquant/config/compose.py", says="self.repo"),
    Touched(HYDRA, "hydra.core.plugins:Plugins.register", "matquant/config/compose.py", ("clazz",)),
    Touched(HYDRA, "hydra._internal.utils:get_args_parser", "matquant/config/compose.py"),
    Touched(HYDRA, f"{_OVERRIDES}:Override.sweep_string_iterator", "matquant/config/sweeper.py"),
    Touched(HYDRA, f"{_OVERRIDES}:IntervalSweep", "matquant/config/sweeper.py", ("start", "end")),
    Touched(HYDRA, f"{_OVERRIDES}:Glob.filter", "matquant/config/syntax/axis.py", ("names",)),
    Touched(HYDRA, f"{_OVERRIDES}:QuotedString", "matquant/config/syntax/value.py", ("text", "quote")),
    Touched(
        HYDRA, f"{_SWEEPER}.split_arguments", "matquant/config/syntax/overrides.py", ("overrides", "max_batch_size")
    ),
    Touched(HYDRA, f"{_SWEEPER}.validate_batch_is_legal", "slurm/hydra_points.py", ("batch",)),
    Touched(HYDRA, f"{_SWEEPER}.sweep", "slurm/hydra_points.py", says="self.validate_batch_is_legal("),
    Touched(
        HYDRA, "hydra._internal.core_plugins.basic_launcher:BasicLauncher.launch", "slurm/hydra_points.py", _LAUNCHED
    ),
    Touched(HYDRA, "hydra.core.plugins:Plugins.__init__", "slurm/hydra_points.py", says="self.class_name_to_class"),
    Touched(
        HYDRA, "hydra.core.plugins:Plugins._instantiate", "slurm/hydra_points.py", says="is_in_toplevel_plugins_module"
    ),
    Touched(HYDRA, "hydra.core.singleton:Singleton.get_state", "slurm/hydra_points.py"),
    Touched(HYDRA, "hydra.core.utils:JobReturn", "slurm/hydra_points.py", ("_return_value", "status")),
    Touched(LAUNCHER, f"{_SUBMITIT}.config:BaseQueueConf", "slurm/hydra_points.py", ("submitit_folder",)),
    Touched(
        LAUNCHER,
        f"{_SUBMITIT}.submitit_launcher:BaseSubmititLauncher.__call__",
        "slurm/hydra_points.py",
        ("sweep_overrides", "job_dir_key", "job_num", "job_id", "singleton_state"),
    ),
    Touched(
        LAUNCHER,
        f"{_SUBMITIT}.submitit_launcher:BaseSubmititLauncher.launch",
        "slurm/hydra_points.py",
        _LAUNCHED,
        "self.params",
    ),
    Touched(LM_EVAL, "lm_eval.evaluator:evaluate", _SCORING, ("task_dict", "limit", "bootstrap_iters")),
    Touched(LM_EVAL, "lm_eval.defaults:DEFAULT_OTHER_SEED", _SCORING),
    Touched(LM_EVAL, f"{_HFLM}._encode_pair", _MODEL, ("context", "continuation")),
    Touched(LM_EVAL, f"{_HFLM}._loglikelihood_tokens", _MODEL, ("requests", "disable_tqdm")),
    Touched(LM_EVAL, f"{_HFLM}._model_generate", _MODEL),
    Touched(LM_EVAL, f"{_HFLM}.__init__", _MODEL, ("pretrained", "tokenizer", "add_bos_token"), "self.softmax_dtype"),
    Touched(LM_EVAL, f"{_HFLM}.apply_chat_template", _PATCHES, ("chat_history", "add_generation_prompt")),
    Touched(LM_EVAL, "lm_eval.tasks._factory:TaskFactory._build_task", _PATCHES, ("entry", "overrides")),
    Touched(LM_EVAL, "lm_eval.tasks._index:Entry", _PATCHES, ("name", "kind", "yaml_path")),
    Touched(LM_EVAL, "lm_eval.tasks._index:Kind.TASK", _PATCHES),
    Touched(LM_EVAL, "lm_eval.tasks._yaml_loader:_import_func_in_yml", _PATCHES, ("qual", "base_dir")),
    Touched(LM_EVAL, "lm_eval.api.task:Task.build_all_requests", _PATCHES, _REQUESTS),
    Touched(LM_EVAL, "lm_eval.api.task:Task.set_fewshot_seed", _PATCHES, ("seed",)),
    Touched(LM_EVAL, "lm_eval.api.task:ConfigurableTask.__init__", _PATCHES, ("config",), "self.task_docs ="),
    Touched(LM_EVAL, "lm_eval.api.task:ConfigurableTask.__init__", "evaluation/sources/gold.py", says="multiple_input"),
    Touched(LM_EVAL, "lm_eval.api.task:eval_logger", _PATCHES),
    Touched(LM_EVAL, "lm_eval.api.task:tqdm", _PATCHES),
    Touched(LM_EVAL, "lm_eval.api.task:ConfigurableTask.process_results", _SCORING, ("doc", "results")),
    Touched(LM_EVAL, "lm_eval.api.instance:Instance", _PATCHES, ("resps", "filtered_resps")),
    Touched(LM_EVAL, "lm_eval.api.group:Group.aggregate", "evaluation/tasks/group_scores.py", ("task_metrics",)),
    Touched(LM_EVAL, "lm_eval.config.task:TaskConfig", "evaluation/tasks/group_scores.py", ("task", "output_type")),
)


def lost() -> list[str]:
    """A sentence for each part that the installed versions lack."""
    return [gone for touched in TOUCHED if (gone := touched.lost()) is not None]
