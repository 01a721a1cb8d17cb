"""Small files of models that somebody else quantized, in the layouts that their programs document."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from matquant.codes.quantizers import Grid, dequantize, minmax_grid, quantize
from matquant.codes.sliced import SlicedWeight
from matquant.config.cell import GridSpec, RandomModel
from matquant.models.random_model import byte_tokenizer, random_model
from matquant.notation import Slice
from matquant.serving.engines.compressed_tensors import packed_words
from matquant.serving.engines.hqq import layer_state

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
GROUP = 16
NF4 = tuple(torch.linspace(-1, 1, 16).tolist())
"""A table of sixteen values; files bring their own."""
Layer = tuple[dict[str, Tensor], dict[int, Tensor]]
"""The tensors of a layer, and its weights at each of its widths."""


def plain_folder(folder: Path) -> Path:
    """A small model with a byte tokenizer."""
    spec = RandomModel(kind="random", name="x", architecture="llama", config=TINY)
    random_model(spec, torch.float32).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def foreign_folder(
    folder: Path, pack: Callable[[Tensor], Layer], config: Mapping[str, Any]
) -> dict[int, dict[str, Tensor]]:
    """A small model whose linear layers are packed, and the weights of the whole model at each width."""
    plain_folder(folder)
    tensors = load_file(folder / "model.safetensors")
    packed: dict[str, Tensor] = {}
    weights: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if "_proj" not in name:
            packed[name] = tensor.half()
            continue
        parts, at = pack(tensor)
        packed |= {f"{name.removesuffix('.weight')}.{part}": one.contiguous() for part, one in parts.items()}
        for bits, weight in at.items():
            weights.setdefault(bits, {})[name] = weight
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**facts, **config}))
    return {bits: {**{n: t for n, t in packed.items() if n in tensors}, **one} for bits, one in weights.items()}


def on_grid(weight: Tensor, bits: int, *, group_size: int = GROUP, zero: Any = "rounded") -> tuple[Tensor, Grid]:
    """Codes and a grid with float16 scales and zeros that are codes."""
    grid = minmax_grid(weight, bits, GridSpec(group_size=group_size, zero=zero, scale_dtype="float16"))
    zeros = grid.zero.float().round().clamp(0, 2**bits - 1)
    grid = Grid(grid.scale.half().float(), zeros)
    return quantize(weight, grid, bits).to(torch.uint8), grid


# --- codes on grids --------------------------------------------------------------------------------------------------


def gptq(bits: int = 4, *, layout: str = "gptq", act_order: bool = False) -> tuple[Callable[[Tensor], Layer], dict]:
    def pack(weight: Tensor) -> Layer:
        order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(0))
        order = order if act_order else torch.arange(weight.shape[1])
        codes, grid = on_grid(weight[:, order], bits)
        place = order.argsort()
        zeros = grid.zero.T - (1 if layout == "gptq" else 0)
        parts = {
            "qweight": packed_words(codes[:, place], bits).T,
            "qzeros": packed_words((zeros % 2**bits).to(torch.uint8), bits),
            "scales": grid.scale.T.half(),
            "g_idx": (place // GROUP).int(),
        }
        return parts, {bits: dequantize(codes, grid)[:, place]}

    facts = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": GROUP,
        "sym": False,
        "desc_act": act_order,
        "checkpoint_format": layout,
        "meta": {"quantizer": ["gptqmodel:2.2.0"]},
    }
    return pack, {"quantization_config": facts}


def awq() -> tuple[Callable[[Tensor], Layer], dict]:
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])

    def packed(codes: Tensor) -> Tensor:
        return packed_words(codes.to(torch.uint8).unflatten(1, (-1, 8))[:, :, order].flatten(1), 4)

    def pack(weight: Tensor) -> Layer:
        codes, grid = on_grid(weight, 4)
        parts = {"qweight": packed(codes.T), "qzeros": packed(grid.zero.T), "scales": grid.scale.T.half()}
        return parts, {4: dequantize(codes, grid)}

    facts = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    return pack, {"quantization_config": facts}


def hqq(bits: int = 4) -> tuple[Callable[[Tensor], Layer], dict]:
    """As hqq's `HQQLinear.state_dict` encodes itself for safetensors."""

    def encoded(value: Any) -> Tensor | None:
        match value:
            case Tensor():
                return value
            case torch.Size():
                return torch.tensor(value)
            case bool():
                return torch.tensor(int(value), dtype=torch.uint8)
            case int():
                return torch.tensor(value, dtype=torch.int32)
            case _:
                return torch.tensor([ord(letter) for letter in str(value)], dtype=torch.uint8)

    def pack(weight: Tensor) -> Layer:
        grid = minmax_grid(weight, bits, GridSpec(group_size=GROUP))
        codes = quantize(weight, grid, bits).to(torch.uint8)
        state = layer_state(SlicedWeight(codes, grid, Slice(bits)), None)
        parts = {name: one for name, value in state.items() if (one := encoded(value)) is not None}
        return parts, {bits: dequantize(codes, grid)}

    facts = {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": bits, "group_size": GROUP}}}
    return pack, {"quantization_config": facts}


def matgptq() -> tuple[Callable[[Tensor], Layer], dict]:
    from matquant.codes.nested import NestedWeight

    def pack(weight: Tensor) -> Layer:
        spec = GridSpec(group_size=GROUP, symmetric=True, scale_dtype="bfloat16")
        grid = minmax_grid(weight, 8, spec)
        nested = NestedWeight(quantize(weight, grid, 8).to(torch.uint8), grid, 8)
        parts = {"qweight": nested.codes, "scales": grid.scale.bfloat16()}
        return parts, {bits: nested.at(Slice(bits)).weight for bits in range(1, 9)}

    facts = {"quant_method": "matgptq_quant", "master_bitwidth": 8, "group_size": GROUP, "quant_dtype": "bfloat16"}
    return pack, {"quantization_config": facts}


# --- codes of tables -------------------------------------------------------------------------------------------------


def bitsandbytes(kind: str = "nf4", *, double: bool = False) -> tuple[Callable[[Tensor], Layer], dict]:
    block = 32

    def pack_int8(weight: Tensor) -> Layer:
        largest = weight.abs().amax(1)
        codes = (weight * (127.0 / largest[:, None])).round().to(torch.int8)
        parts = {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
        return parts, {8: codes.float() * largest[:, None] * 7.874015718698502e-3}

    def pack(weight: Tensor) -> Layer:
        flat, table = weight.reshape(-1, block), torch.tensor(NF4)
        largest = flat.abs().amax(1)
        state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": "float32", "shape": [*weight.shape]}
        parts: dict[str, Tensor] = {}
        if double:
            inner, nested = torch.linspace(-1, 1, 256), largest.mean()
            spread = (largest - nested).reshape(-1, 4)
            outer = spread.abs().amax(1)
            eighth = (spread / outer[:, None]).unsqueeze(-1).sub(inner).abs().argmin(-1).to(torch.uint8)
            largest = (inner[eighth.long()] * outer[:, None]).flatten() + nested
            parts = {"weight.absmax": eighth.flatten(), "weight.nested_absmax": outer}
            parts["weight.nested_quant_map"] = inner
            state |= {"nested_blocksize": 4, "nested_dtype": "float32", "nested_offset": float(nested)}
        else:
            parts = {"weight.absmax": largest}
        codes = (flat / largest[:, None]).unsqueeze(-1).sub(table).abs().argmin(-1)
        pairs = codes.reshape(-1, 2)
        parts["weight"] = (pairs[:, :1] << 4 | pairs[:, 1:]).to(torch.uint8)
        parts["weight.quant_map"] = table
        described = torch.tensor([*json.dumps(state).encode()], dtype=torch.uint8)
        parts[f"weight.quant_state.bitsandbytes__{kind}"] = described
        return parts, {4: (table[codes] * largest[:, None]).reshape(weight.shape)}

    facts: dict[str, Any] = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": kind != "int8",
        "bnb_4bit_quant_type": kind,
    }
    facts |= {"load_in_8bit": kind == "int8", "bnb_4bit_use_double_quant": double}
    return pack_int8 if kind == "int8" else pack, {"quantization_config": facts}


def any_precision(seed: int = 3, parent: int = 5) -> tuple[Callable[[Tensor], Layer], dict]:
    def pack(weight: Tensor) -> Layer:
        codes = (weight.argsort(1).argsort(1) * 2**parent // weight.shape[1]).numpy()
        parts, at = {"qweight": any_precision_planes(codes, parent)}, {}
        for bits in range(seed, parent + 1):
            table = torch.linspace(-0.1, 0.1, 2**bits).pow(3).mul(50).expand(len(weight), -1).half()
            parts[f"lut{bits}"] = table
            at[bits] = table.float().gather(1, torch.from_numpy(codes >> (parent - bits)))
        return parts, at

    arch = {"model_name": "model", "layers_name": "layers"}
    return pack, {"anyprec": {"seed_precision": seed, "parent_precision": parent, "arch_config": arch}}


def any_precision_planes(codes: np.ndarray, bits: int) -> Tensor:
    """Planes in the order of pack.py: the bytes of a warp dealt out to its threads, the last byte first in memory."""
    rows, columns = codes.shape
    planes = []
    for place in range(bits - 1, -1, -1):
        plane = np.packbits(codes >> place & 1, axis=1)
        words = np.zeros((rows, columns // 8), dtype=np.uint8)
        for start in range(0, columns // 8, 128):
            of_warp = plane[:, start : start + 128]
            threads = of_warp.shape[1] // 4
            words[:, start : start + 128] = (
                of_warp.reshape(rows, 4, threads)[:, ::-1].transpose(0, 2, 1).reshape(rows, -1)
            )
        planes.append(words.view(np.int32))
    return torch.from_numpy(np.stack(planes))


def any_bcq(seed: int = 2, parent: int = 4, group_size: int = GROUP) -> tuple[Callable[[Tensor], Layer], dict]:
    def pack(weight: Tensor) -> Layer:
        generator = torch.Generator().manual_seed(0)
        rows, columns = weight.shape
        signs = torch.randint(0, 2, (columns, parent, rows), generator=generator)
        lanes = torch.arange(32)[:, None, None]
        parts: dict[str, Tensor] = {
            "qweight": (signs.unflatten(0, (-1, 32)) << lanes).sum(1).to(torch.int32),
            "q_bias": torch.zeros(columns // group_size, rows).half(),
        }
        at = {}
        for bits in range(seed, parent + 1):
            alpha = torch.rand(columns // group_size, bits, rows, generator=generator).half() / 50
            beta = torch.randn(columns // group_size, rows, generator=generator).half() / 50
            parts |= {f"alpha_{bits}": alpha, f"beta_{bits}": beta}
            of_input = alpha.float().repeat_interleave(group_size, 0)
            shifted = beta.float().repeat_interleave(group_size, 0)
            at[bits] = ((2 * signs[:, :bits] - 1) * of_input).sum(1).add(shifted).T
        return parts, at

    facts = {"seed_precision": seed, "parent_precision": parent, "group_size": group_size, "arch_config": {}}
    return pack, {"anybcq": facts}


FORMATS: Mapping[str, Callable[[], tuple[Callable[[Tensor], Layer], dict]]] = {
    "gptq": gptq,
    "gptq in 3 bits": lambda: gptq(3),
    "gptq in the order of activations": lambda: gptq(act_order=True),
    "gptq_v2": lambda: gptq(8, layout="gptq_v2"),
    "awq": awq,
    "hqq": hqq,
    "hqq in 3 bits": lambda: hqq(3),
    "bitsandbytes nf4": bitsandbytes,
    "bitsandbytes nf4, scales in 8 bits": lambda: bitsandbytes(double=True),
    "bitsandbytes int8": lambda: bitsandbytes("int8"),
    "matgptq": matgptq,
    "any-precision": any_precision,
    "anybcq": any_bcq,
}
