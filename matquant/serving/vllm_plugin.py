"""The plugin of vLLM: `--quantization matquant` serves a nested folder at the width that a request of the server names.

    pip install matquant[vllm]
    vllm serve DIR --quantization matquant --hf-overrides '{"quantization_config": {"plan": "int3"}}'

vLLM finds it by the entry point `vllm.general_plugins`, and calls `register` in every process that it starts.
"""

from __future__ import annotations

METHOD = "matquant"


def register() -> None:
    """Makes the method and its weights known to vLLM; a second call changes nothing."""
    from vllm.model_executor.layers.quantization import (  # pyright: ignore[reportMissingImports]
        QUANTIZATION_METHODS,
        register_quantization_config,
    )

    from matquant.serving import with_vllm

    if METHOD not in QUANTIZATION_METHODS:
        register_quantization_config(METHOD)(with_vllm.MatQuantConfig)
        with_vllm.read_nested_weights()
