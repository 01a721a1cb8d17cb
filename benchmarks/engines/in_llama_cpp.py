"""llama.cpp, asked from inside its own environment: log likelihood of given tokens, tokens of a text, and its speed.

xllamacpp is a server, which tells no likelihood of a prompt, but its library exports llama.cpp's C interface.  Two of
its structs are passed by value and grow with each version: they are taken whole from the library's defaults, in a
block that is larger than any of them, and only their first fields are set, which is checked.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int8, c_int32, c_uint32, c_void_p

import numpy as np
import xllamacpp.xllamacpp as module  # pyright: ignore[reportMissingImports] -- it is of the other environment

OFF, AUTOMATIC, FLOAT32, FLOAT16 = 0, 2**32 - 1, 0, 1
FLASH_ATTENTION, CACHE_TYPES = 13, slice(26, 28)
"""The places at which the settings of a context name the kind of attention, and the types of its keys and values.

They hold for this version of llama.cpp.  Flash attention rounds to float16 inside, whatever the types of the cache.
"""


class Parameters(Structure):
    """The settings of a model or a context, as 32-bit words."""

    _fields_ = (("words", c_uint32 * 256),)


class Batch(Structure):
    _fields_ = (
        ("num_tokens", c_int32),
        ("tokens", POINTER(c_int32)),
        *((name, c_void_p) for name in ("embeddings", "positions", "num_sequences", "sequences")),
        ("wanted", POINTER(c_int8)),
    )


def library() -> ctypes.CDLL:
    lib = ctypes.CDLL(module.__file__)
    signatures = {
        "llama_model_default_params": ([], Parameters),
        "llama_context_default_params": ([], Parameters),
        "llama_model_load_from_file": ([c_char_p, Parameters], c_void_p),
        "llama_init_from_model": ([c_void_p, Parameters], c_void_p),
        "llama_n_ctx": ([c_void_p], c_uint32),
        "llama_n_batch": ([c_void_p], c_uint32),
        "llama_set_n_threads": ([c_void_p, c_int32, c_int32], None),
        "llama_get_memory": ([c_void_p], c_void_p),
        "llama_memory_clear": ([c_void_p, c_bool], None),
        "llama_decode": ([c_void_p, Batch], c_int32),
        "llama_get_logits": ([c_void_p], POINTER(c_float)),
        "llama_model_get_vocab": ([c_void_p], c_void_p),
        "llama_vocab_n_tokens": ([c_void_p], c_int32),
        "llama_tokenize": ([c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool], c_int32),
        "llama_log_set": ([c_void_p, c_void_p], None),
        "llama_backend_init": ([], None),
    }
    for name, (arguments, result) in signatures.items():
        function = getattr(lib, name)
        function.argtypes, function.restype = arguments, result
    return lib


QUIET = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)(lambda level, text, data: None)


class Model:
    """A GGUF file that llama.cpp has opened."""

    def __init__(self, path: str, context: int, threads: int, *, in_float32: bool) -> None:
        self.lib = library()
        self.lib.llama_log_set(ctypes.cast(QUIET, c_void_p), None)
        self.lib.llama_backend_init()
        model = self.lib.llama_model_load_from_file(path.encode(), self.lib.llama_model_default_params())
        if not model:
            raise ValueError(f"llama.cpp cannot open {path}")
        settings = self.lib.llama_context_default_params()
        settings.words[0] = settings.words[1] = settings.words[2] = context
        if in_float32:
            found = [settings.words[FLASH_ATTENTION], *settings.words[CACHE_TYPES]]
            assert found == [AUTOMATIC, FLOAT16, FLOAT16], "llama.cpp has moved the settings of attention"
            settings.words[FLASH_ATTENTION], settings.words[CACHE_TYPES] = OFF, [FLOAT32, FLOAT32]
        self.context = self.lib.llama_init_from_model(model, settings)
        assert self.lib.llama_n_batch(self.context) >= context, "llama.cpp has moved the first fields of its settings"
        assert self.lib.llama_n_ctx(self.context) >= context, "llama.cpp has moved the first fields of its settings"
        self.lib.llama_set_n_threads(self.context, threads, threads)
        self.vocabulary = self.lib.llama_model_get_vocab(model)
        self.num_tokens = self.lib.llama_vocab_n_tokens(self.vocabulary)

    def forget(self) -> None:
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def logits(self, tokens: list[int], *, last: bool = False) -> np.ndarray:
        """The logits after each token, or after the last alone, given those before it."""
        wanted = [0] * (len(tokens) - 1) + [1] if last else [1] * len(tokens)
        batch = Batch(
            len(tokens), (c_int32 * len(tokens))(*tokens), *[None] * 4, wanted=(c_int8 * len(tokens))(*wanted)
        )
        status = self.lib.llama_decode(self.context, batch)
        if status:
            raise ValueError(f"llama_decode ended with status {status}")
        return np.ctypeslib.as_array(self.lib.llama_get_logits(self.context), (sum(wanted), self.num_tokens))

    def nats(self, tokens: list[int]) -> float:
        """The mean negative log-likelihood of every token but the first."""
        self.forget()
        logits = self.logits(tokens)[:-1].astype(np.float64)
        top = logits.max(-1)
        total = top + np.log(np.exp(logits - top[:, None]).sum(-1))
        return float((total - logits[np.arange(len(logits)), tokens[1:]]).mean())

    def tokenize(self, text: str) -> list[int]:
        data = text.encode()
        found = (c_int32 * (len(data) + 8))()
        count = self.lib.llama_tokenize(self.vocabulary, data, len(data), found, len(found), False, False)
        return found[:count]

    def tokens_per_second(self, count: int) -> float:
        """The speed of writing one token after another, greedily."""
        self.forget()
        token = int(self.logits([1, 2, 3, 4], last=True).argmax())
        start = time.perf_counter()
        for _ in range(count):
            token = int(self.logits([token], last=True).argmax())
        return count / (time.perf_counter() - start)


def answer(
    *, file: str, blocks: list[list[int]], texts: list[str], threads: int, decode: int, in_float32: bool
) -> dict[str, object]:
    model = Model(file, max([64, decode + 8, *map(len, blocks)]), threads, in_float32=in_float32)
    reply: dict[str, object] = {
        "nats": [model.nats(block) for block in blocks],
        "tokens": [model.tokenize(text) for text in texts],
    }
    if decode:
        reply["tokens_per_second"] = max(model.tokens_per_second(decode) for _ in range(3))
    return reply


if __name__ == "__main__":
    print(json.dumps(answer(**json.load(sys.stdin))))
