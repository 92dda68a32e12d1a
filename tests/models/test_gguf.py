"""GGUF files give the model and the tokenizer they were made from."""

from __future__ import annotations

import logging
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

gguf = pytest.importorskip("gguf")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402

from rsd_engine.models import loader  # noqa: E402
from rsd_engine.models.checkpoints.open import (  # noqa: E402
    load_tokenizer,
    open_checkpoint,
)
from rsd_engine.models.checkpoints.stop_ids import read_stop_ids  # noqa: E402
from rsd_engine.models.config import ModelConfig  # noqa: E402
from rsd_engine.models.loader import load_language_model  # noqa: E402
from rsd_engine.models.rope_config import RopeConfig  # noqa: E402
from rsd_engine.models.weight_form import WeightForm  # noqa: E402
from rsd_kernels import model_ops  # noqa: E402
from rsd_kernels.cpu import ops as cpu_ops  # noqa: E402
from rsd_kernels.formats.weight import StoredMatrix  # noqa: E402
from tests.models.checkpoints import ARCHITECTURES, file_behind, make_model  # noqa: E402
from tests.models.driver import Driver  # noqa: E402
from tests.models.gguf_files import add_tokenizer, write_gguf  # noqa: E402
from tests.plain_weights import plain  # noqa: E402

TOKENS = [5, 1, 44, 60, 2, 17, 30, 30, 9]


def assert_equals_transformers(path: Path, theirs: Any, tolerance: float = 1e-4) -> None:
    ours = Driver(load_language_model(path, max_rows=16)).run((0, TOKENS))
    with torch.no_grad():
        wanted = theirs(torch.tensor([TOKENS])).logits[0, -1:]
    assert (ours - wanted).abs().max() <= tolerance


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama2", {}),
        ("qwen2-tied", {}),
        ("qwen2-untied", {}),
        ("qwen3", {}),
        # llama.cpp has every fourth layer without rope, whatever the config says.
        ("smollm3", {"no_rope_layers": None, "num_hidden_layers": 4}),
        ("granite", {}),
        ("olmo2", {}),
    ],
)
def test_architectures(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    theirs = make_model(name, **changes)
    assert_equals_transformers(write_gguf(tmp_path / "m.gguf", theirs), theirs)


def test_llama3_frequencies(tmp_path: Path) -> None:
    """llama.cpp stores the llama3 scaling as one divisor for each pair of dimensions."""
    theirs = make_model("llama3")
    scaled = RopeConfig.from_dict(
        {"rope_parameters": ARCHITECTURES["llama3"][1]["rope_parameters"]}
    )
    factors = RopeConfig(theta=scaled.theta).inv_freq(8) / scaled.inv_freq(8)
    assert factors.max() == 4.0
    path = write_gguf(tmp_path / "m.gguf", theirs, frequency_factors=factors)
    assert_equals_transformers(path, theirs)


def rounded(theirs: Any, kind: Any) -> Any:
    """With matrices as `kind` stores them, so that transformers gets the rounded weights too."""
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.dim() == 2:
                packed = gguf.quants.quantize(parameter.numpy(), kind)
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(packed, kind)))
    return theirs


def test_quantised_weights_are_expanded_without_the_library(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_ops, "available", lambda: False)
    kind = gguf.GGMLQuantizationType.Q8_0
    theirs = rounded(make_model("llama2", intermediate_size=64), kind)
    with caplog.at_level(logging.INFO, "rsd_engine"):
        path = write_gguf(tmp_path / "m.gguf", theirs, quantise=kind)
        assert_equals_transformers(path, theirs)
    assert "Q8_0" in caplog.text and "MiB in memory" in caplog.text


@pytest.mark.skipif(not cpu_ops.available(), reason="the CPU library is absent")
@pytest.mark.parametrize("name", ["llama2", "qwen2-untied", "qwen3"])
@pytest.mark.parametrize("kind_name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantised_weights_stay_as_they_are(
    name: str, kind_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They give the bits of the expanded ones, all layers in one call or op by op."""
    kind = gguf.GGMLQuantizationType[kind_name]
    theirs = rounded(make_model(name, intermediate_size=64), kind)
    path = write_gguf(tmp_path / "m.gguf", theirs, quantise=kind)
    assert_equals_transformers(path, theirs)
    stored = load_language_model(path, max_rows=16)
    weights = stored.decoder.weights
    assert weights.held_in == kind_name and stored.decoder.is_whole
    monkeypatch.setattr("rsd_kernels.model_ops.cpu_decoder", lambda _: None)
    model_ops.cpu_library_ops.cache_clear()
    try:
        by_ops = load_language_model(path, max_rows=16)
        assert not by_ops.decoder.is_whole
    finally:
        monkeypatch.undo()
        model_ops.cpu_library_ops.cache_clear()
    monkeypatch.setattr(loader, "weight_form", lambda *_: WeightForm.plain(torch.float32))
    wide = load_language_model(path, max_rows=16)
    assert wide.decoder.weights.held_in == "float32"
    assert stored.weight_bytes < 0.4 * wide.weight_bytes
    wanted = Driver(wide).run((0, TOKENS))
    for model in (stored, by_ops):
        assert torch.equal(Driver(model).run((0, TOKENS)), wanted)
    if Path("/proc/self/maps").exists():
        assert isinstance(weights.embedding, StoredMatrix)
        assert file_behind(weights.embedding.rows) == str(path)


@pytest.mark.parametrize(("kind", "held"), [("BF16", "bfloat16"), ("F16", "float16")])
def test_matrices_of_16_bits_are_kept(tmp_path: Path, kind: str, held: str) -> None:
    """They hold what bfloat16 and float16 have in common, so that nothing is rounded."""
    theirs = make_model("qwen2-untied")
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.bfloat16().half())
    path = write_gguf(tmp_path / "m.gguf", theirs, quantise=gguf.GGMLQuantizationType[kind])
    assert_equals_transformers(path, theirs)
    weights = load_language_model(path, max_rows=1).decoder.weights
    assert weights.held_in == (held if cpu_ops.available() else "float32")


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat, then the other cat sat"] * 3, trainer)
    return tokenizer


def test_tokenizer(bpe: Tokenizer, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", make_model("llama2"), tokenizer=bpe)
    checkpoint = open_checkpoint(path)
    tokenizer = load_tokenizer(checkpoint)
    for text in ("the cat", "then 1234 cats\n\n sat", "é 漢 🙂 ", "on<|end|> the mat<|end|>", ""):
        assert tokenizer.encode(text) == bpe.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode("a<|end|>"), skip_special_tokens=True) == "a"
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|end|>", 0)
    chat = [{"role": "user", "content": "the cat"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "the cat<|end|>"
    assert checkpoint.generation_config() == {"eos_token_id": 0}


@pytest.mark.parametrize(
    ("pre", "given", "added"),
    [
        ("llama-bpe", None, True),
        ("llama-v3", None, True),
        ("llama3", False, False),
        ("llama-bpe", True, True),
        ("qwen2", None, False),
        ("qwen2", True, True),
    ],
)
def test_bos_as_llama_cpp_adds_it(
    bpe: Tokenizer, tmp_path: Path, pre: str, given: bool | None, added: bool
) -> None:
    """Where the file does not say, the family decides: Llama 3 begins every text with bos."""

    def add(writer: Any) -> None:
        add_tokenizer(writer, bpe, pre)
        writer.add_bos_token_id(7)
        if given is not None:
            writer.add_add_bos_token(given)

    path = write_gguf(tmp_path / "m.gguf", make_model("llama2"), add=add)
    tokenizer = load_tokenizer(open_checkpoint(path))
    plain = tokenizer.encode("the cat", add_special_tokens=False)
    assert tokenizer.encode("the cat") == [7] * added + plain


def test_ends_of_text_and_turn(bpe: Tokenizer, tmp_path: Path) -> None:
    def add(writer: Any) -> None:
        add_tokenizer(writer, bpe)
        writer.add_eot_token_id(5)
        writer.add_eom_token_id(3)
        writer.add_pad_token_id(2**32 - 1)  # some converters write -1 so

    path = write_gguf(tmp_path / "m.gguf", make_model("llama2"), add=add)
    checkpoint = open_checkpoint(path)
    assert checkpoint.generation_config() == {"eos_token_id": [0, 3, 5]}
    assert read_stop_ids(checkpoint, load_tokenizer(checkpoint)) == {0, 3, 5}


@pytest.mark.parametrize(
    ("add", "rope"),
    [
        (lambda w: w.add_float32("llama.rope.scale_linear", 4.0), {"type": "linear", "factor": 4}),
        (lambda w: w.add_rope_scaling_factor(4.0), {"type": "linear", "factor": 4}),
        (
            lambda w: (
                w.add_rope_scaling_type(gguf.RopeScalingType.YARN),
                w.add_rope_scaling_factor(4.0),
                w.add_rope_scaling_orig_ctx_len(24),
            ),
            {"type": "yarn", "factor": 4, "original_max_position_embeddings": 24},
        ),
        (
            lambda w: (
                w.add_rope_scaling_type(gguf.RopeScalingType.NONE),
                w.add_rope_scaling_factor(4.0),
            ),
            None,
        ),
        (lambda w: w.add_rope_dimension_count(8), None),
    ],
)
def test_rope_keys_old_and_new(
    tmp_path: Path, add: Callable[[Any], object], rope: dict[str, Any] | None
) -> None:
    theirs = make_model("llama2")
    found = ModelConfig.from_dict(
        open_checkpoint(write_gguf(tmp_path / "m.gguf", theirs, add=add)).config()
    )
    wanted = ModelConfig.from_dict(theirs.config.to_dict() | {"rope_scaling": rope})
    assert found.ropes == wanted.ropes
    assert found.max_position_embeddings == wanted.max_position_embeddings


def test_rotating_a_part_of_each_head_is_refused(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "m.gguf", make_model("llama2"), add=lambda w: w.add_rope_dimension_count(4)
    )
    with pytest.raises(ValueError, match="partial_rotary_factor=0.5"):
        load_language_model(path, max_rows=1)


def test_a_bad_size_names_the_metadata(tmp_path: Path) -> None:
    theirs = make_model("llama2")
    theirs.config.num_hidden_layers = 50_000
    path = write_gguf(tmp_path / "m.gguf", theirs)
    message = r"the file's metadata: num_hidden_layers must be .*, got 50000"
    with pytest.raises(ValueError, match=message):
        load_language_model(path, max_rows=1)


def test_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "m.gguf", make_model("llama2"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install 'rsd-engine\[gguf\]'"):
        open_checkpoint(path)


def test_unknown_architecture(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "bert")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        ValueError, match="'bert' is not supported; one of granite, llama, olmo2, qwen2"
    ):
        load_language_model(tmp_path / "m.gguf", max_rows=1)


def test_left_over_tensor(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "m.gguf",
        make_model("llama2"),
        extra={"blk.0.ffn_gate_exps.weight": torch.zeros(2, 2)},
    )
    with pytest.raises(ValueError, match=r"unexpected.*: model\.layers\.0\.ffn_gate_exps\.weight"):
        load_language_model(path, max_rows=1)


@pytest.mark.parametrize("keep", [0.7, 0.01])
def test_truncated(tmp_path: Path, keep: float) -> None:
    path = write_gguf(tmp_path / "m.gguf", make_model("llama2"))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match=r"m\.gguf is damaged"):
        load_language_model(path, max_rows=1)


@pytest.mark.parametrize(
    ("number", "width", "said"),
    [
        (99, 32, "is of type 99, which is not known to the gguf package that is installed"),
        (12, 32, "has rows of 32 elements; Q4_K stores blocks of 256"),
        (8, 2**20, "of Q8_0 ends past the end of the file, which is cut off"),
    ],
)
def test_blocks_that_are_not_whole_are_named(
    tmp_path: Path, number: int, width: int, said: str
) -> None:
    """The file's account of one tensor is changed: its type's number, or the length of its rows."""
    theirs, q8 = make_model("llama2", intermediate_size=64), gguf.GGMLQuantizationType.Q8_0
    path = write_gguf(tmp_path / "m.gguf", theirs, quantise=q8)
    content = bytearray(path.read_bytes())
    after_name = content.index(b"blk.1.attn_q.weight") + len("blk.1.attn_q.weight")
    rank, first = struct.unpack_from("<IQ", content, after_name)
    kind = after_name + 4 + 8 * rank
    assert (rank, first, struct.unpack_from("<I", content, kind)[0]) == (2, 32, q8)
    struct.pack_into("<Q", content, after_name + 4, width)
    struct.pack_into("<I", content, kind, number)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"m\.gguf .*tensor blk\.1\.attn_q\.weight {said}") as e:
        open_checkpoint(path)
    assert "\n" not in str(e.value)


def test_absent_and_not_gguf(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        open_checkpoint(tmp_path / "absent.gguf")
    (tmp_path / "text.gguf").write_text("not a model, but long enough to be read as one")
    with pytest.raises(ValueError, match="damaged or not a GGUF file"):
        open_checkpoint(tmp_path / "text.gguf")


def split(tmp_path: Path, model: Any) -> list[Path]:
    write_gguf(tmp_path / "m.gguf", model, split_max_tensors=8)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert len(parts) > 2
    return parts


@pytest.mark.parametrize("name", ["llama2", "qwen2-tied"])
def test_any_part_of_a_split_file(tmp_path: Path, name: str) -> None:
    theirs = make_model(name)
    parts = split(tmp_path, theirs)
    for part in (parts[0], parts[1], parts[-1]):
        assert_equals_transformers(part, theirs)


def test_missing_part(tmp_path: Path) -> None:
    parts = split(tmp_path, make_model("llama2"))
    parts[1].unlink()
    with pytest.raises(
        ValueError, match=rf"is one of {len(parts)} parts; .* lacks {parts[1].name}"
    ):
        open_checkpoint(parts[0])


def test_a_part_under_another_name(tmp_path: Path) -> None:
    parts = split(tmp_path, make_model("llama2"))
    parts[0].rename(tmp_path / "first.gguf")
    with pytest.raises(ValueError, match=rf"is one of {len(parts)} parts; their names must end in"):
        open_checkpoint(tmp_path / "first.gguf")


def test_the_same_tensor_in_two_parts(tmp_path: Path) -> None:
    parts = split(tmp_path, make_model("llama2"))
    parts[1].write_bytes(parts[0].read_bytes())
    with pytest.raises(ValueError, match=r"holds \S+, as another part does"):
        open_checkpoint(parts[0])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_plain_tensors_stay_in_the_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", make_model("qwen2-untied"))
    content = path.read_bytes()
    embedding = plain(load_language_model(path, max_rows=1).decoder.weights.embedding)
    assert file_behind(embedding) == str(path)
    embedding.zero_()
    assert path.read_bytes() == content
