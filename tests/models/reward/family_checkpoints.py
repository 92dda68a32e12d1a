"""A tiny random PRM of every family in the files that its authors ship, and how they score with it.

`Prm.row` is what their code reads of a question and steps, template and all, up to the row at which
they take the reward of the last step; `Prm.reward` is their head, on a model of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from tests.models.checkpoints import ARCHITECTURES, edit_config, make_model, save
from tests.tiny_models import EOS, tiny_tokenizer

Row = Callable[[Any, str, Sequence[str]], list[int]]
CONTEXT = 1024
SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
_CHATML = ("<|im_start|>", "<|im_end|>", "<extra_0>")
_LLAMA3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


@dataclass(frozen=True)
class Prm:
    """A checkpoint and its authors' way with it."""

    folder: Path
    tokenizer: Any
    read: Callable[[Tensor], Tensor]  # ids [1, T] -> the reward at the last
    full_row: Row
    num_transient: int = 0

    def row(self, question: str, steps: Sequence[str]) -> list[int]:
        return self.full_row(self.tokenizer, question, steps)

    def reward(self, row: Sequence[int]) -> float:
        with torch.no_grad():
            return float(self.read(torch.tensor([list(row)])))


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _write(folder: Path, model: Any, tokenizer: Tokenizer, **special: Any) -> Any:
    save(model, folder)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    wrapped.save_pretrained(folder)
    return wrapped


def _language_model(kind: str, tokenizer: Tokenizer, seed: int) -> Any:
    size = tokenizer.get_vocab_size() + 5
    return make_model(kind, seed, vocab_size=size, max_position_embeddings=CONTEXT)


def _normal(*shape: int, seed: int) -> Tensor:
    return (
        torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 1.5 / shape[-1] ** 0.5
    )


def _add_tensors(folder: Path, head: dict[str, Tensor], *, drop: tuple[str, ...] = ()) -> None:
    path = folder / "model.safetensors"
    kept = {name: t for name, t in load_file(path).items() if name not in drop}
    save_file(kept | head, path, metadata={"format": "pt"})


# TRL: token classification, and the value head of its PPO trainer.


def _trl_row(separator: str) -> Row:
    def row(tokenizer: Any, question: str, steps: Sequence[str]) -> list[int]:
        ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        ids += _ids(tokenizer, question)
        for step in steps:
            ids += _ids(tokenizer, step) + _ids(tokenizer, separator)
        return ids

    return row


def token_classifier(
    folder: Path, kind: str = "qwen2-untied", separator: str = "\n", *, difference: bool = False
) -> Prm:
    tokenizer = tiny_tokenizer()
    model = _language_model(kind, tokenizer, seed=21)
    name = f"{ARCHITECTURES[kind][0]}ForTokenClassification"
    model.config.num_labels = 2
    classifier = getattr(transformers, name)(model.config).eval()
    classifier.model.load_state_dict(model.model.state_dict())
    nn.init.normal_(classifier.score.weight, std=0.3)
    nn.init.normal_(classifier.score.bias, std=0.3)
    special = {} if difference else {"bos_token": "<s>"}
    wrapped = _write(folder, classifier, tokenizer, eos_token=EOS, **special)

    def read(ids: Tensor) -> Tensor:
        chances: Tensor = classifier(ids).logits[0, -1].softmax(-1)
        return chances[1] - chances[0] if difference else chances[1]

    return Prm(folder, wrapped, read, _trl_row(separator))


def value_head(folder: Path, kind: str = "qwen3") -> Prm:
    tokenizer = tiny_tokenizer()
    model = _language_model(kind, tokenizer, seed=22)
    wrapped = _write(folder, model, tokenizer, bos_token="<s>", eos_token=EOS)
    weight, bias = _normal(1, 32, seed=1), torch.tensor([0.1])
    _add_tensors(folder, {"v_head.summary.weight": weight, "v_head.summary.bias": bias})

    def read(ids: Tensor) -> Tensor:
        return torch.sigmoid(model.model(ids).last_hidden_state[0, -1] @ weight[0] + bias[0])

    def row(tokenizer: Any, question: str, steps: Sequence[str]) -> list[int]:
        ids = _ids(tokenizer, f"<s>{question}\n")
        for step in steps:
            ids += [*_ids(tokenizer, step), _ids(tokenizer, "\n\n")[-1]]
        return ids

    return Prm(folder, wrapped, read, row)


# Language models that say + or -.


def _says_plus(model: Any, plus: int, minus: int) -> Callable[[Tensor], Tensor]:
    def read(ids: Tensor) -> Tensor:
        chances: Tensor = model(ids).logits[0, -1][[plus, minus]].softmax(-1)
        return chances[0]

    return read


def _sentencepiece() -> Tokenizer:
    """As Mistral's: `▁` for a space and before every text, bytes for letters it lacks."""
    merges = [("к", "и"), ("▁", "ки"), ("▁", "+"), ("▁", "-"), ("a", "d"), ("▁", "x")]
    letters = [chr(c) for c in range(33, 127)] + ["к", "и", "▁", *(a + b for a, b in merges)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    made = Tokenizer(
        models.BPE(
            {token: i for i, token in enumerate(tokens)}, merges,
            unk_token="<unk>", fuse_unk=True, byte_fallback=True,
        )
    )  # fmt: skip
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    made.add_special_tokens([AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>")])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return made


def math_shepherd(folder: Path) -> Prm:
    tokenizer = _sentencepiece()
    model = _language_model("mistral", tokenizer, seed=23)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    wrapped = _write(folder, model, tokenizer, **special)
    plus, minus = wrapped.encode("+ -")[1:]

    def row(tokenizer: Any, question: str, steps: Sequence[str]) -> list[int]:
        text = question + " " + "".join(f"{step.strip()} ки\n" for step in steps)
        ids: list[int] = tokenizer.encode(text.removesuffix("\n"))
        assert ids[-1] == tokenizer.encode("ки")[-1]
        return ids

    return Prm(folder, wrapped, _says_plus(model, plus, minus), row)


LLAMA3_TEMPLATE = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December "
    "2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim "
    "+ '<|eot_id|>' }}{% endfor %}"
)


def rlhflow(folder: Path) -> Prm:
    tokenizer = tiny_tokenizer(more_special=_LLAMA3)
    model = _language_model("llama3", tokenizer, seed=24)
    special = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    wrapped = _write(folder, model, tokenizer, chat_template=LLAMA3_TEMPLATE, **special)
    plus, minus = (wrapped.encode(sign)[-1] for sign in "+-")

    def row(tokenizer: Any, question: str, steps: Sequence[str]) -> list[int]:
        said = [step.strip() for step in steps]
        said[0] = f"{question} {said[0]}"
        turns = [[("user", text), ("assistant", "+")] for text in said]
        chat = [{"role": role, "content": text} for pair in turns for role, text in pair]
        ids = tokenizer.apply_chat_template(chat, return_dict=False)
        assert ids[-2] == plus
        return list(ids[:-2])  # the token before the +

    return Prm(folder, wrapped, _says_plus(model, plus, minus), row)


def versa(folder: Path) -> Prm:
    tokenizer = tiny_tokenizer(more_merges="ĊĊ+ĊĊ Ġ+ĊĊĊĊ")
    model = _language_model("llama2", tokenizer, seed=25)
    wrapped = _write(folder, model, tokenizer, bos_token="<s>", eos_token=EOS)
    plus, minus = (wrapped.encode(sign)[-1] for sign in "+-")

    def row(tokenizer: Any, question: str, steps: Sequence[str]) -> list[int]:
        text = question + " \n\n" + "".join(f"{step} \n\n\n\n" for step in steps)
        return list(tokenizer(text)["input_ids"])

    return Prm(folder, wrapped, _says_plus(model, plus, minus), row)


# Heads of two layers or more on Qwen2, in ChatML.

CHATML_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are kind.<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _chatml_row(system: str | None) -> Row:
    def row(tokenizer: Any, question: str, steps: Sequence[str]) -> list[int]:
        said = "<extra_0>".join(steps) + "<extra_0>"
        chat = [{"role": "user", "content": question}, {"role": "assistant", "content": said}]
        if system is not None:
            chat = [{"role": "system", "content": system}, *chat]
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        return _ids(tokenizer, text.removesuffix("<|im_end|>\n"))

    return row


def _qwen(folder: Path, architecture: str, head: dict[str, Tensor], seed: int) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer(more_special=_CHATML)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)  # as Qwen's: no bos
    model = _language_model("qwen2-untied", tokenizer, seed)
    special = {"eos_token": "<|im_end|>", "chat_template": CHATML_TEMPLATE}
    wrapped = _write(folder, model, tokenizer, **special)
    edit_config(folder, architectures=[architecture])
    _add_tensors(folder, head)
    return model, wrapped


def two_layers(outputs: int) -> dict[str, Tensor]:
    return {
        "score.0.weight": _normal(32, 32, seed=2),
        "score.0.bias": _normal(32, seed=3),
        "score.2.weight": _normal(outputs, 32, seed=4),
        "score.2.bias": torch.linspace(0, -0.5, outputs),
    }


def _two_layer_scores(model: Any, head: dict[str, Tensor], ids: Tensor) -> Tensor:
    hidden = model.model(ids).last_hidden_state[0, -1]
    inner = torch.relu(head["score.0.weight"] @ hidden + head["score.0.bias"])
    return head["score.2.weight"] @ inner + head["score.2.bias"]


def two_classes(folder: Path, system: str | None = SYSTEM) -> Prm:
    head = two_layers(2)
    model, wrapped = _qwen(folder, "Qwen2ForProcessRewardModel", head, seed=26)

    def read(ids: Tensor) -> Tensor:
        return _two_layer_scores(model, head, ids).softmax(-1)[1]

    return Prm(folder, wrapped, read, _chatml_row(system))


def universal(folder: Path) -> Prm:
    head = two_layers(1)
    model, wrapped = _qwen(folder, "Qwen2ForRewardModel", head, seed=27)

    def read(ids: Tensor) -> Tensor:
        return torch.sigmoid(_two_layer_scores(model, head, ids))[0]

    def row(tokenizer: Any, question: str, steps: Sequence[str]) -> list[int]:
        asked = (
            f"{question}\n\n###\n\nThe reference answer is: There is no reference answer for this "
            "question."
        )
        chat = [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": asked},
        ]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        answer = tokenizer("\n\n".join(steps) + "\n\n")["input_ids"]
        return [*ids, *answer, tokenizer.eos_token_id]

    return Prm(folder, wrapped, read, row, num_transient=1)


def ensemble(folder: Path, count: int = 5) -> Prm:
    shapes = {"nn1": (32, 128), "nn2": (128, 128), "nn_out": (128, 1)}
    head = {}
    for part in ("model", "reg_model"):
        for i, (layer, shape) in enumerate(shapes.items()):
            weight = _normal(count, shape[1], shape[0], seed=6 + i).transpose(1, 2).contiguous()
            scale = 0.5 if part == "reg_model" else 3.0 if layer == "nn_out" else 1.0
            head[f"score.{part}.{layer}.weight"] = scale * weight
            head[f"score.{part}.{layer}.bias"] = _normal(count, shape[1], seed=9 + i)
    model, wrapped = _qwen(folder, "Qwen2ForEnsemblePRM", head, seed=28)
    _drop_lm_head(folder)
    edit_config(folder, num_ensemble=count)

    def read(ids: Tensor) -> Tensor:
        hidden = model.model(ids).last_hidden_state[0, -1]
        each = []
        for e in range(count):
            x = hidden
            for layer in shapes:
                weight = head[f"score.model.{layer}.weight"][e]
                x = x @ weight + head[f"score.model.{layer}.bias"][e]
                x = x if layer == "nn_out" else x.relu()
            each.append(torch.sigmoid(x)[0])
        return torch.stack(each).mean()

    return Prm(folder, wrapped, read, _chatml_row(SYSTEM))


def _drop_lm_head(folder: Path) -> None:
    _add_tensors(folder, {}, drop=("lm_head.weight",))


@dataclass(frozen=True)
class Case:
    """A family, the folder's name that tells it where only that does, and how to make it."""

    folder: str
    make: Callable[[Path], Prm]


CASES: dict[str, Case] = {
    "TRL-PRM": Case("prm", token_classifier),
    "H4-PRM": Case(
        "Qwen2.5-Math-1.5B-Instruct-PRM-0.2", lambda f: token_classifier(f, separator="\n\n")
    ),
    "PURE-PRM": Case("PURE-PRM-7B", lambda f: token_classifier(f, difference=True)),
    "TRL-value-head": Case("prm", value_head),
    "Math-Shepherd": Case("math-shepherd-mistral-7b-prm", math_shepherd),
    "RLHFlow-PRM": Case("Llama3.1-8B-PRM-Deepseek-Data", rlhflow),
    "VersaPRM": Case("VersaPRM-Base-8B", versa),
    "Qwen2.5-Math-PRM": Case("Qwen2.5-Math-7B-PRM800K", two_classes),
    "ReasonFlux-PRM": Case("ReasonFlux-PRM-7B", lambda f: two_classes(f, system=None)),
    "Universal-PRM": Case("Universal-PRM-7B", universal),
    "ActPRM": Case("ActPRM", ensemble),
}
