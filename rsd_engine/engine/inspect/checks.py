"""Whether the checkpoints of an engine fit together: tokens, PRM, stop tokens, templates, lengths.

The rules are those by which an engine loads them.
"""

from __future__ import annotations

from dataclasses import dataclass

from rsd_engine.engine.inspect.facts import ModelFacts, NamedId
from rsd_engine.engine.inspect.finding import Finding, ok, problem
from rsd_engine.engine.inspect.roles import Roles
from rsd_engine.engine.memory_fit import MemoryFit
from rsd_engine.steps.sharing import first_difference, first_special_difference
from rsd_kernels.state.enums import Role


@dataclass(frozen=True)
class Link:
    """How text gets from one model to another.

    Attributes:
        shares_vocabulary: ids of one mean the same to the other, so that the device passes them on.
        difference: in what the vocabularies differ first; None if they do not.
        special_difference: the first special token that differs; None if none does.
    """

    shares_vocabulary: bool
    difference: str | None
    special_difference: str | None

    @property
    def same_tokens(self) -> bool:
        """Whether every id means the same, special tokens included."""
        return self.shares_vocabulary and self.special_difference is None


def find_link(first: Role, second: Role, roles: Roles) -> Link:
    """Compares the tokenizers of two roles."""
    names = (f"the {_name(first)}", f"the {_name(second)}")
    ours, theirs = roles[first], roles[second]
    difference = first_difference(ours.vocabulary, theirs.vocabulary, names)
    special = first_special_difference(ours.vocabulary, theirs.vocabulary, names)
    return Link(difference is None, difference, special)


def check_stored(role: Role, model: ModelFacts) -> list[Finding]:
    """Whether the weights are there, and ids within the model's rows."""
    found = []
    if model.storage.num_files == 0 and model.is_local:
        found.append(
            problem(
                "weights",
                f"{_name(role)}: no weights in {model.source}, neither safetensors nor .bin; "
                "download them to this folder",
            )
        )
    rows = model.config.vocab_size
    named = [*model.stop_tokens, *(model.prm.separator if model.prm else ())]
    beyond = [token for token in named if not 0 <= token.id < rows]
    if beyond:
        found.append(
            problem(
                "vocabulary",
                f"{_name(role)}: id {beyond[0]} is beyond the model's {rows} rows; mend "
                "eos_token_id in its generation_config.json, or use the tokenizer of this model",
            )
        )
    return found


def check_writers(roles: Roles, link: Link) -> list[Finding]:
    """How steps of draft and target reach each other."""
    if link.same_tokens:
        count = roles[Role.TARGET].vocabulary.num_tokens
        text = f"draft and target share one vocabulary of {count} tokens"
        return [ok("vocabulary", text)]
    text = "draft and target have different tokenizers: steps go from one to the other through text"
    difference = link.special_difference or link.difference
    return [ok("vocabulary", f"{text}, on the host ({difference})")]


def check_prm(prm: ModelFacts, link: Link | None, writers: Link | None) -> list[Finding]:
    """How the PRM is fed, and how steps reach it.

    Args:
        prm: the model.
        link: to it from a writer, if there is one.
        writers: between draft and target, if there are both.
    """
    if prm.prm is None:
        return []
    found = [ok("prm", f"its tokenizer has the tokens of its format, {prm.prm.family}")]
    if link is None:
        return found
    if writers and not writers.same_tokens:
        text = "as text, on the host, like those from draft to target"
    elif not link.shares_vocabulary:
        text = f"as text, on the host, for the vocabularies differ: {link.difference}"
    elif link.special_difference:
        text = f"as ids, on the device; special tokens may differ ({link.special_difference})"
    else:
        text = "as ids, on the device: the vocabularies are the same"
    return [*found, ok("steps to PRM", text)]


def check_stop_tokens(roles: Roles, link: Link | None) -> list[Finding]:
    """Which ids end a text: those that any writer of the vocabulary names.

    Args:
        roles: the models.
        link: between draft and target, if there are both.
    """
    writers = {role: model for role, model in roles.items() if role != Role.PRM}
    found = [
        problem(
            "stop tokens",
            f"{_name(role)} names none, so its texts end only at max_tokens; put eos_token_id into "
            "its generation_config.json, or give stop_token_ids with each request",
        )
        for role, model in writers.items()
        if not model.stop_tokens
    ]
    if writers and not found and link and not link.same_tokens:
        listed = "; ".join(
            f"{_name(role)}: {', '.join(map(str, model.stop_tokens))}"
            for role, model in writers.items()
        )
        found.append(ok("stop tokens", listed))
    elif writers and not found:
        all_of_them = sorted({t for m in writers.values() for t in m.stop_tokens}, key=_id)
        listed = ", ".join(map(str, all_of_them))
        same = len({frozenset(m.stop_tokens) for m in writers.values()}) == 1
        found.append(ok("stop tokens", listed if same else f"{listed} (all that a writer names)"))
    return found


def check_template(roles: Roles) -> list[Finding]:
    """Whether `chat` can be used: with the template of the target, or of a draft alone."""
    main = roles.get(Role.TARGET) or roles.get(Role.DRAFT)
    if main is None:
        return []
    name = _name(Role.TARGET if Role.TARGET in roles else Role.DRAFT)
    if main.has_chat_template:
        return [ok("chat", f"messages go through the {name}'s template")]
    return [ok("chat", f"the {name} has no template: chat() is refused, generate() takes raw text")]


def check_contexts(roles: Roles, fit: MemoryFit, asked: int | None) -> list[Finding]:
    """The lengths of contexts that an engine has; `asked` is its `max_model_len`."""
    allowed = min(m.config.max_position_embeddings for r, m in roles.items() if r != Role.PRM)
    text = f"{fit.model_len} tokens of prompt and output"
    if asked is None and fit.model_len < allowed:
        text += f", as many as fit of the {allowed} that the models allow"
    if Role.PRM in fit.max_len:
        prm_len = fit.max_len[Role.PRM]
        text += f"; the PRM reads up to {prm_len}"
        if prm_len < fit.model_len:
            text += ", and an output ends where that is full, unless prm_overflow says otherwise"
    return [ok("context", text)]


def _name(role: Role) -> str:
    return "PRM" if role == Role.PRM else role.name.lower()


def _id(token: NamedId) -> int:
    return token.id
