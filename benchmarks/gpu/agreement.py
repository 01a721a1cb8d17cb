"""Every algorithm on the tiny random model: twice the same bits, and what the CPU finds.

Read-outs, planes and MinMax's grids are exact on every device (`benchmarks/gpu/exact.py`).  Sums are not: a GPU adds in
another order, in float32 too.  What is trained or solved therefore drifts from the CPU's.  How far it may was measured
on a CPU, against the same model with every weight moved by at most one unit in its last place (`nudged`); the bounds
are several times that, and on a CPU this part measures it again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lm_eval.api.instance import Instance
from torch import Tensor

from benchmarks.gpu import exact
from benchmarks.gpu.guard import guarded
from benchmarks.gpu.lines import Line, Scale, holds, run_part
from benchmarks.timing import NoProgress
from evaluation.results.metrics import KL
from evaluation.tasks.scoring import language_model
from evaluation.text.perplexity import block_nats
from evaluation.text.scores import score_text
from evaluation.text.teacher import teacher_of
from matquant.algorithms import gptq, minmax, omniquant, qat, range_searched
from matquant.algorithms.calibration import Shelf
from matquant.algorithms.pinned import host_memory
from matquant.algorithms.progress import Layers
from matquant.codes.nested import materialize
from matquant.config.cell import GPTQBase, GridSpec, MinMaxBase, OmniQuantBase, QATBase, RandomModel, SearchBase
from matquant.models.devices import deterministic
from matquant.models.loading import LoadedModel, load_model
from matquant.notation import Objective, Plan, Slice

CPU = torch.device("cpu")
GRID = GridSpec(group_size=32)
MATQUANT = Objective.parse(8, {"int8": 0.1, "int4": 0.1, "int2": 1.0})
TAUGHT = Objective.parse(8, {"int8": 0.1, "int4": 0.1, "8->int2+ep": 1.0})
FLOOR = Objective.parse(8, {"int8": 0.1, "int4_floor": 0.1, "int2_floor": 1.0})
PARTS = tuple(Slice(bits) for bits in (8, 4, 2))
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""The sizes of conf/model/tiny.yaml."""
WIDER = {**TINY, "hidden_size": 256, "intermediate_size": 512}
"""Heads of 64 and long texts, on which a GPU's attention splits its backward pass."""
LEARNING = {"num_steps": 8, "batch_size": 4, "clipping_lr": 0.02}
OMNIQUANT = {**LEARNING, "clipping_init": "search", "clipping_reach": 1.5, "importance": "inputs"}
SCORES = 1e-4
"""The bound of a log-likelihood in float32, in nats: that of the tests against lm-eval."""
PRODUCT = 1e-5
"""The bound of a float32 product's relative error; TF32, which has 10 bits of mantissa, misses it by a factor of 30."""


class Bounds(NamedTuple):
    """The share of codes that may differ from the CPU's, and the relative error of the weights read from them."""

    codes: float
    weights: float


@dataclass(frozen=True)
class Fit:
    """An algorithm with its settings, and how far another order of sums may move it."""

    base: MinMaxBase | SearchBase | OmniQuantBase | QATBase | GPTQBase
    bounds: Bounds
    objective: Objective = MATQUANT

    @property
    def is_exact(self) -> bool:
        """Nothing in it is a sum."""
        return isinstance(self.base, MinMaxBase)

    def __call__(self, loaded: LoadedModel, tokens: Tensor, shelf: Shelf | None = None) -> Layers:
        model, progress, shelf, objective = loaded.model, NoProgress(), shelf or Shelf(), self.objective
        match self.base:
            case MinMaxBase():
                return minmax.fit(model, parent_bits=8, scope="ffn_attention", grid=GRID, progress=progress)
            case SearchBase() as base:
                settings = range_searched.Settings(base, objective, "ffn_attention", GRID)
                return range_searched.fit(model, tokens, settings, progress)
            case OmniQuantBase() as base:
                settings = omniquant.Settings(base, objective, "ffn_attention", GRID, 0, shelf)
                return omniquant.fit(model, tokens, settings, progress)
            case GPTQBase() as base:
                return gptq.fit(model, tokens, gptq.Settings(base, objective, "ffn_attention", GRID, shelf), progress)
            case QATBase() as base:
                return qat.fit(model, tokens, qat.Settings(base, objective, "ffn_attention", GRID, 0), progress)


def _omniquant(**facts: Any) -> OmniQuantBase:
    return OmniQuantBase.model_validate({"kind": "omniquant", **OMNIQUANT, **facts})


def _qat(**facts: Any) -> QATBase:
    # At a rate of 1e-3 a step is two codes wide, and rounding alone moves 56 % of the codes.
    facts = {"num_steps": 8, "warmup_steps": 2, "batch_size": 4, "lr": 2e-5, "compute_dtype": "float32", **facts}
    return QATBase.model_validate({"kind": "qat", **facts})


def _gptq(**facts: Any) -> GPTQBase:
    return GPTQBase.model_validate({"kind": "gptq", "batch_size": 4, "clipping": "search", **facts})


FITS: Mapping[str, Fit] = {
    "minmax": Fit(MinMaxBase(kind="minmax"), Bounds(0, 0)),
    "search": Fit(SearchBase(kind="search", importance="inputs", batch_size=4), Bounds(0.02, 0.02)),
    "omniquant": Fit(_omniquant(), Bounds(0.05, 0.05)),
    "omniquant, transformation": Fit(_omniquant(transformation=True), Bounds(0.2, 0.1)),
    "omniquant, published transformation": Fit(_omniquant(transformation="published"), Bounds(0.05, 0.05)),
    "qat": Fit(_qat(), Bounds(0.1, 0.1)),
    "qat, trained scales": Fit(_qat(train_scales=True, clipping_init="search", clipping_reach=1.5), Bounds(0.05, 0.05)),
    "gptq": Fit(_gptq(), Bounds(0.05, 0.05)),
    "gptq, in order of activations": Fit(_gptq(act_order=True, true_sequential=True), Bounds(0.05, 0.05)),
    "omniquant, int8 teaches int2 with its extra bucket": Fit(_omniquant(), Bounds(0.05, 0.05), TAUGHT),
    "qat, int8 teaches int2 with its extra bucket": Fit(_qat(), Bounds(0.1, 0.1), TAUGHT),
    "gptq, slices by floor": Fit(_gptq(), Bounds(0.05, 0.05), FLOOR),
}


def agreement(scale: Scale) -> Iterator[Line]:
    """Exact arithmetic first, then every algorithm, then scores."""
    device, length = scale.device, 32 if scale.small else 256
    for what in (exact.read_outs, exact.grids, exact.planes):
        yield from guarded(what.__name__, partial(what, device))
    yield from guarded("float32 products", partial(products, device))
    yield from guarded("scores", partial(scores, device, length))
    for name, fit in FITS.items():
        yield from guarded(name, partial(compared, name, fit, device, length))
    for name in ("omniquant", "gptq"):
        yield from guarded(f"{name} from host memory", partial(from_host_memory, name, scale))
    in_bfloat16 = {
        "qat in bfloat16": _qat(compute_dtype="bfloat16"),
        "omniquant in bfloat16": _omniquant(compute_dtype="bfloat16"),
        "gptq in bfloat16": _gptq(compute_dtype="bfloat16"),
    }
    for name, base in in_bfloat16.items():
        yield from guarded(name, partial(repeated, name, Fit(base, Bounds(1, 1)), scale))


def loaded(device: torch.device, config: Mapping[str, Any] = TINY) -> LoadedModel:
    """The random model, the same on every device."""
    spec = RandomModel(kind="random", name="tiny", architecture="llama", config=dict(config))
    return load_model(spec, cache=Path(), dtype="float32", device=device)


def nudged() -> LoadedModel:
    """The model with every weight moved by at most one unit in its last place."""
    model, draw = loaded(CPU), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.model.parameters():
            weight.mul_(1 + (torch.rand(weight.shape, generator=draw) * 2 - 1) * torch.finfo(torch.float32).eps)
    return model


def text(length: int, *, sequences: int = 8) -> Tensor:
    """Random bytes: they need no file."""
    return torch.randint(0, 256, (sequences, length), generator=torch.Generator().manual_seed(0))


def compared(name: str, fit: Fit, device: torch.device, length: int) -> Iterator[Line]:
    """One algorithm in float32, twice on the device and once on the CPU."""
    with deterministic(device):
        first, second = (fit(loaded(device), text(length)) for _ in range(2))
    yield holds(f"{name}, twice: numbers that differ", unlike(first, second), 0)
    yield from drift(
        name, fit.bounds, first, fit(loaded(CPU) if device != CPU or fit.is_exact else nudged(), text(length))
    )


def drift(name: str, bounds: Bounds, found: Layers, expected: Layers) -> Iterator[Line]:
    """The difference between two fits that differ in the order of sums alone."""
    yield holds(f"{name}: codes unlike the CPU's", unlike_codes(found, expected), bounds.codes, unit="share")
    yield holds(f"{name}: weights unlike the CPU's", relative_error(found, expected), bounds.weights, unit="relative")


def repeated(name: str, fit: Fit, scale: Scale) -> Iterator[Line]:
    """One algorithm twice on longer text, and twice more as torch computes where it only warns."""
    device, config, length = (scale.device, TINY, 32) if scale.small else (scale.device, WIDER, 1024)

    def run() -> tuple[Layers, float]:
        model, start = loaded(device, config), time.perf_counter()
        layers = fit(model, text(length))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return layers, time.perf_counter() - start

    with deterministic(device):
        (first, _), (second, seconds) = run(), run()
    yield holds(f"{name}, twice: numbers that differ", unlike(first, second), 0)
    (third, _), (fourth, free) = run(), run()
    note = f"{unlike(third, fourth)} numbers differ where torch only warns"
    yield Line(f"{name}: time of deterministic algorithms", seconds, "s", free, "warnings only", note)


def from_host_memory(name: str, scale: Scale) -> Iterator[Line]:
    """One algorithm with its activations on the device and in host memory, which a GPU copies while it computes."""
    text_of, device = text(32 if scale.small else 256), scale.device
    with deterministic(device):
        here, there = (FITS[name](loaded(device), text_of, Shelf(place=place)) for place in ("device", "host"))
    pinned = host_memory((1,), torch.float32, device=device).is_pinned()
    note = f"{'pinned' if pinned else 'ordinary'} memory"
    yield holds(f"{name}, activations in host memory: numbers that differ", unlike(there, here), 0, note=note)


def tensors(layers: Layers) -> Iterator[Tensor]:
    """All that is stored of some layers."""
    for nested in layers.values():
        yield from (nested.codes, *nested.grid, *(nested.transform.tensors.values() if nested.transform else ()))


def unlike(one: Layers, other: Layers) -> int:
    """The number of stored numbers that two fits do not share."""
    assert list(one) == list(other)
    return sum(exact.unlike(*pair) for pair in zip(tensors(one), tensors(other), strict=True))


def unlike_codes(one: Layers, other: Layers) -> float:
    """The share of codes that differ."""
    differing = sum(exact.unlike(one[name].codes, other[name].codes) for name in other)
    return differing / sum(nested.codes.numel() for nested in other.values())


def relative_error(one: Layers, other: Layers) -> float:
    """The largest relative difference of all read-out weights together, over the slices."""

    def of(part: Slice) -> float:
        pairs = [(one[name].at(part).weight.to(CPU), other[name].at(part).weight.to(CPU)) for name in other]
        squares = sum((mine - theirs).double().square().sum().item() for mine, theirs in pairs)
        return (squares / sum(theirs.double().square().sum().item() for _, theirs in pairs)) ** 0.5

    return max(map(of, PARTS))


def products(device: torch.device) -> Iterator[Line]:
    """The relative error of a matrix product in float32, which torch may compute in TF32 if it is told to."""
    draw = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(512, 1024, generator=draw) for _ in range(2))
    wide = x.double() @ weight.double().T
    error = (x.to(device) @ weight.to(device).T).to(CPU).double() - wide
    said = f"torch.get_float32_matmul_precision() is {torch.get_float32_matmul_precision()}"
    yield holds("float32 products: relative error", (error.norm() / wide.norm()).item(), PRODUCT, note=said)


def scores(device: torch.device, length: int) -> Iterator[Line]:
    """Log-likelihoods and held-out text of one read-out, here and on the CPU."""
    here, there = (_scored(on, length) for on in (device, CPU))
    (answers, nats), (expected, expected_nats) = here, there
    largest = max(abs(mine - theirs) for (mine, _), (theirs, _) in zip(answers, expected, strict=True))
    flips = sum(mine != theirs for (_, mine), (_, theirs) in zip(answers, expected, strict=True))
    yield holds("log-likelihoods: largest difference", largest, SCORES, unit="nats", note=f"{flips} greedy flips")
    kl, expected_kl = (_divergence(on, length) for on in (device, CPU))
    largest = (kl - expected_kl).abs().max().item()
    yield holds("divergence from the unquantized model: largest difference", largest, SCORES, unit="nats a token")
    yield holds(
        "held-out text: largest difference", (nats - expected_nats).abs().max().item(), SCORES, unit="nats a token"
    )


def _scored(device: torch.device, length: int) -> tuple[list[tuple[float, bool]], Tensor]:
    model, tokenizer = loaded(device)
    layers = {name: nested.to(device) for name, nested in _stored().items()}
    materialize(model, layers, Plan.parse("int4"))
    lm = language_model(model, tokenizer, batch_size=8, add_bos=False)
    nats = torch.cat(list(block_nats(model, text(length), batch_size=4)))
    return lm.loglikelihood(requests()), nats


def _divergence(device: torch.device, length: int) -> Tensor:
    """The divergence of one read-out in each block of a text."""
    model, _ = loaded(device)
    # Without a fingerprint nothing is kept, and no folder is looked at.
    teacher = teacher_of(model, text(length), content=None, batch_size=4, cache=Path())
    materialize(model, {name: nested.to(device) for name, nested in _stored().items()}, Plan.parse("int4"))
    found = score_text(model, text(length), teacher, batch_size=4, description="the check", bar=Silent())
    return torch.tensor(found.blocks[KL])


class Silent:
    """A bar that nobody sees."""

    def update(self, n: int = 1, /) -> None:
        """Nothing."""


@cache
def _stored() -> Layers:
    """One checkpoint for both devices."""
    return FITS["minmax"](loaded(CPU), text(32))


def requests(documents: int = 12) -> list[Instance]:
    """Questions of random letters with four answers each."""
    draw = torch.Generator().manual_seed(2)

    def words(length: int) -> str:
        return bytes(torch.randint(97, 123, (length,), generator=draw).tolist()).decode()

    found = []
    for document in range(documents):
        question = words(20 + 3 * document)
        for answer in range(4):
            arguments = (question, f" {words(3 + answer)}")
            found.append(
                Instance(
                    request_type="loglikelihood", doc={}, arguments=arguments, idx=answer, metadata=("t", document, 1)
                )
            )
    return found


def main() -> None:
    run_part(agreement, __doc__)


if __name__ == "__main__":
    main()
