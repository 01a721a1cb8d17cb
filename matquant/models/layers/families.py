"""Families of models: transformer blocks, and the linear layers in a scope.

The only module that knows architectures: one entry of `FAMILIES` for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, assert_never

from torch import nn

from matquant.config.cell import Scope
from matquant.errors import UserError
from matquant.models.layers.experts import routers


@dataclass(frozen=True)
class Family:
    """The parts of one architecture, by their paths in `transformers`; the defaults are Llama's."""

    blocks: tuple[str, ...] = ("model.layers", "model.language_model.layers")
    """The list of blocks inside the model, at the first of these paths that exists; its parent is the text model."""
    attention: str = "self_attn"
    """The attention inside a block; its forward returns (output, weights)."""
    mixers: tuple[str, ...] = ()
    """The modules that stand in the place of attention in some blocks, or beside it: linear attention, Mamba."""
    feed_forward: tuple[str, ...] = ("mlp", "feed_forward", "block_sparse_moe")
    """The modules of a block's feed-forward network, or its linear layers where they lie in the block itself."""
    kept: tuple[str, ...] = ()
    """Small modules of a block that stay in full precision, as routers do."""
    returns_tuple: bool = False
    """True if a block returns (hidden states, weights) and not hidden states alone."""
    shares_contexts: bool = True
    """True if attention follows a mask and positions that it is given, so that answers can share their question."""
    not_block_wise: str | None = None
    """The reason why the blocks cannot be run one by one, as OmniQuant and GPTQ do."""


LLAMA = Family()
GPT2 = Family(blocks=("transformer.h",), attention="attn")
BLOOM = Family(blocks=("transformer.h",), attention="self_attention", returns_tuple=True, shares_contexts=False)
OPT = Family(blocks=("model.decoder.layers",), feed_forward=("fc1", "fc2"))

HANDS_ON = "its later blocks take keys and values from earlier ones, and every block an input of its own"

# The key is the folder of `transformers.models` that an architecture's classes come from.
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        (
            *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi", "phi3", "starcoder2"),
            *("stablelm", "granite", "olmo", "olmo2", "olmo3", "smollm3", "cohere", "cohere2", "glm", "glm4"),
            *("nemotron", "persimmon", "helium", "exaone4", "ministral", "arcee", "seed_oss"),
        ),
        LLAMA,
    ),
    # Mixtures of experts.
    **dict.fromkeys(
        (
            *("qwen2_moe", "qwen3_moe", "mixtral", "olmoe", "flex_olmo", "deepseek_v2", "deepseek_v3", "glm4_moe"),
            *("gpt_oss", "phimoe", "ernie4_5_moe", "dots1", "hunyuan_v1_moe"),
        ),
        LLAMA,
    ),
    "llama4": Family(feed_forward=("feed_forward",)),
    "granitemoe": Family(feed_forward=("block_sparse_moe",)),
    "granitemoe_swa": Family(feed_forward=("block_sparse_moe",)),
    "granitemoeshared": Family(feed_forward=("block_sparse_moe", "shared_mlp")),
    # Some blocks, or all, have linear attention, a state-space model or a convolution instead of attention.
    "granitemoehybrid": Family(
        mixers=("mamba",), feed_forward=("block_sparse_moe", "shared_mlp"), shares_contexts=False
    ),
    **dict.fromkeys(("qwen3_next", "qwen3_5", "qwen3_5_moe"), Family(mixers=("linear_attn",), shares_contexts=False)),
    "jamba": Family(mixers=("mamba",), feed_forward=("feed_forward",), shares_contexts=False),
    "lfm2": Family(mixers=("conv",), feed_forward=("feed_forward",), shares_contexts=False),
    "lfm2_moe": Family(mixers=("conv",), feed_forward=("feed_forward",), shares_contexts=False),
    "opt": OPT,
    "xglm": Family(feed_forward=("fc1", "fc2")),
    "biogpt": Family(blocks=("biogpt.layers",), feed_forward=("fc1", "fc2")),
    "gpt2": GPT2,
    "gpt_bigcode": GPT2,
    "gpt_neox": Family(blocks=("gpt_neox.layers",), attention="attention"),
    "gptj": Family(blocks=("transformer.h",), attention="attn", returns_tuple=True),
    "codegen": Family(blocks=("transformer.h",), attention="attn", returns_tuple=True),
    # Its local attention counts places in a row, not positions.
    "gpt_neo": Family(blocks=("transformer.h",), attention="attn", returns_tuple=True, shares_contexts=False),
    # Alibi counts places in a row, too.
    "bloom": BLOOM,
    "mpt": Family(
        blocks=("transformer.blocks",),
        attention="attn",
        feed_forward=("ffn",),
        returns_tuple=True,
        shares_contexts=False,
    ),
    # With config.alibi=true it shares no contexts either: `shares_contexts`.
    "falcon": Family(blocks=("transformer.h",), attention="self_attention", returns_tuple=True),
    "gemma3n": Family(
        feed_forward=("mlp", "laurel", "per_layer_input_gate", "per_layer_projection"),
        kept=("altup",),
        not_block_wise=HANDS_ON,
    ),
    "gemma4": Family(
        feed_forward=("mlp", "per_layer_input_gate", "per_layer_projection"),
        not_block_wise=HANDS_ON,
    ),
}


def architecture(module: nn.Module) -> str:
    """The folder of `transformers.models` that a model's or a block's class comes from; empty for other classes."""
    for kind in type(module).__mro__:
        place = kind.__module__.split(".")
        if place[:2] == ["transformers", "models"]:
            return place[2]
    return ""


def family_of(module: nn.Module) -> Family:
    """The family of a model or of one of its blocks; an architecture that is not named is taken for Llama's."""
    return FAMILIES.get(architecture(module), LLAMA)


def _list_of_blocks(model: nn.Module) -> str:
    """The path of the list of blocks; UserError for an architecture where there is none."""
    paths = family_of(model).blocks
    for path in paths:
        try:
            found = model.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(found, nn.ModuleList) and len(found):
            return path
    raise UserError(
        f"{type(model).__name__} is not supported: it has no blocks at {' or '.join(paths)}; "
        f"supported are {', '.join(sorted(FAMILIES))}"
    )


def backbone(model: nn.Module) -> nn.Module:
    """The text model without its language-model head: embedding, blocks, final norm."""
    return model.get_submodule(path_of_backbone(model))


def path_of_backbone(model: nn.Module) -> str:
    """The path of the text model without its head inside the model."""
    return _list_of_blocks(model).rpartition(".")[0]


def blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks, first to last; UserError for an architecture that has none."""
    found = model.get_submodule(_list_of_blocks(model))
    assert isinstance(found, nn.ModuleList)
    return list(found)


def around_blocks(model: nn.Module) -> list[nn.Module]:
    """The parts of the text model before and after its blocks: embeddings, projections, norms."""
    found = model.get_submodule(_list_of_blocks(model))
    return [part for part in backbone(model).children() if part is not found]


def block_name(model: nn.Module, index: int) -> str:
    """The path of a block inside the model."""
    return f"{_list_of_blocks(model)}.{index}"


def linears(block: nn.Module, scope: Scope) -> dict[str, nn.Linear]:
    """The linear layers of one block that are quantized, by their path inside the block.

    `ffn` is every linear of the feed-forward network, the scope of most of the paper; `ffn_attention` adds those of the
    attention (Table 6).  Fused projections (Phi-3's gate_up_proj and qkv_proj) are one layer here, as they are there.
    """
    family, kept = family_of(block), routers(block)
    match scope:
        case "ffn":
            parts = family.feed_forward
        case "ffn_attention":
            parts = (family.attention, *family.mixers, *family.feed_forward)
        case _:
            assert_never(scope)
    found = {
        name: module
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[0] in parts and name not in kept
    }
    if not found:
        raise UserError(
            f"{type(block).__name__} is not supported: no linear layers for scope={scope} under {' or '.join(parts)}; "
            f"supported are {', '.join(sorted(FAMILIES))}"
        )
    return found


def is_attention(block: nn.Module, path: str) -> bool:
    """True for a path inside a block that leads into what mixes tokens."""
    family = family_of(block)
    return path.partition(".")[0] in (family.attention, *family.mixers)


SAME_INPUT = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"})


def input_names(paths: Iterable[str]) -> dict[str, str]:
    """For every linear layer a name of its input, the same for layers that share one: q, k, v and gate, up.

    What is learned per input channel is shared between them, so that it could be folded into the norm before them.
    """
    names = {}
    for path in paths:
        parent, _, leaf = path.rpartition(".")
        group = next((min(together) for together in SAME_INPUT if leaf in together), leaf)
        names[path] = f"{parent}.{group}"
    return names


def attention(block: nn.Module) -> nn.Module:
    """The self-attention of a block; its forward returns (output, weights)."""
    return block.get_submodule(family_of(block).attention)


def has_attention(block: nn.Module) -> bool:
    """False for a block that has something else in the place of attention, or beside it."""
    family = family_of(block)
    return hasattr(block, family.attention) and not any(hasattr(block, mixer) for mixer in family.mixers)


def shares_contexts(model: nn.Module) -> bool:
    """True if the attention of a model follows a mask and positions that it is given.

    Of an architecture that is not named nobody knows: what it computes from places in a row may show in long rows only.
    """
    known = architecture(model) in FAMILIES and family_of(model).shares_contexts
    return known and not getattr(model.config, "alibi", False)


def reads_side_by_side(model: nn.Module) -> bool:
    """True if threads may read texts of their own with a model at once: nothing of a text stays in its modules.

    Some rotary embeddings keep the frequencies of the text that was read last.
    """
    types = [getattr(module, "rope_type", "default") for module in model.modules()]
    names = {name for kind in types for name in (kind.values() if isinstance(kind, dict) else [kind])}
    return architecture(model) in FAMILIES and not any("dynamic" in name or name == "longrope" for name in names)


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Lets another function answer for a module, for as long as the context lasts."""
    original = module.forward
    module.forward = forward
    try:
        yield
    finally:
        module.forward = original
