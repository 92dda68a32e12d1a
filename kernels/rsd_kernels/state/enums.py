"""What the integers of the state mean, and how much of each thing a slot has room for.

This does not import torch, so that policies and parameters can be made without it.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

NUM_ROLES = 3
MAX_DELIMITER_STATES = 64
MAX_STOP_STATES = 256
MOVE_SHIFT = 8  # of a move of an automaton: below it the next state, above it the match
MAX_STOP_TOKENS = 32
MAX_LOGPROBS = 20
MAX_BIASED_TOKENS = 1024  # ids of a request's logit_bias, or of its allowed_token_ids
MAX_BAD_WORDS = 128  # token sequences; a word has one or two
MAX_BAD_WORD_TOKENS = 16
MAX_CUT_TOKENS = 8  # most tokens that replace one that runs past a delimiter
LOG_HEADER = 9  # words of a log record before its tokens, see `publish`
LOGPROB_WORDS = 2  # words of a token's logprobs in a record, besides two for each of the likeliest
NOT_FINITE = -1  # as a sampled token: the logits cannot be sampled from
NUM_GUESS_SOURCES = 3
RATE_ONE = 1 << 16  # a `guess_rate` of 1: every guess is kept
RATE_STEPS = 32  # parts of it that `guesses_at_rate` tells apart


class Role(IntEnum):
    """Which model: the first index of every per-role tensor."""

    DRAFT = 0
    TARGET = 1
    PRM = 2


class Phase(IntEnum):
    """What a slot waits for."""

    FREE = 0
    DRAFT = 1
    SCORE = 2
    TARGET = 3
    WAIT_HOST = 4
    DONE = 5
    GUESS = 6  # for the draft, which guesses what the target will write
    PROMPT = 7  # for the roles of `prompt_roles` to read the prompt; nothing is sampled
    CANDIDATE = 8  # for the other candidates of its step; its own is scored
    CHOICE = 9  # for the host, to be forked, or for a choice among the candidates of its step


class Mode(IntEnum):
    """Which models write: all three in turn, or one alone, unscored.

    RSD turns into one of the others when the PRM's context is full (`overflow_mode`).
    """

    RSD = 0
    DRAFT = 1
    TARGET = 2


class GuessSource(IntEnum):
    """Who guessed what the target will write: the first index of the counts of guesses."""

    DRAFT = 0
    REJECTED = 1  # the draft's step that was rejected
    NGRAM = 2  # what followed the last tokens earlier in the slot's own context


class Speculation(IntFlag):
    """Where a request's guesses come from."""

    NONE = 0
    DRAFT = 1 << GuessSource.DRAFT
    REJECTED = 1 << GuessSource.REJECTED
    NGRAM = 1 << GuessSource.NGRAM


class Finish(IntEnum):
    """Why an output ends; 0 while it goes on."""

    NONE = 0
    STOP_TOKEN = 1
    STOP_STRING = 2
    LENGTH = 3
    STEPS = 4
    ERROR = 5  # logits that cannot be sampled from; the host also uses it for its own failures
    PRM_FULL = 6  # the step does not fit the PRM's context; the output ends without it


class HostRequest(IntEnum):
    """What the host asks of the running loop."""

    NONE = 0
    RETURN = 1
    RETURN_WHEN_FREE = 2


class RecordKind(IntEnum):
    """What happened to the tokens of a record."""

    KEPT = 1
    REJECTED = 2
    DROPPED = 3  # the output ends without them
    PART = 4  # kept, and the step goes on: nothing scores it, so its tokens need not wait


class ConfidenceKind(IntEnum):
    """What the column `confidence` holds, by which a draft's step is decided without a PRM's pass.

    LOGPROB and ENTROPY are of the draft's own distributions, and the loop sums them up.
    """

    NONE = 0  # nothing: a PRM scores the steps
    LOGPROB = 1  # exp of the mean log-probability of the tokens
    ENTROPY = 2  # 1 - the mean entropy as a share of the largest
    GIVEN = 3  # a reward that the host has put there


class Purpose(IntEnum):
    """What a draw is for: draws of different purposes are independent.

    What draft and target write for themselves must be: after a rejection the rewrite may not know
    the draws of the draft. Who guesses what the target will write draws as the target will.
    """

    DRAFT_TOKEN = 0
    TARGET_TOKEN = 1
    ACCEPT = 2
    CHOOSE_DRAFT = 3  # among the candidates for a step that the draft wrote
    CHOOSE_TARGET = 4

    @classmethod
    def token_of(cls, role: int) -> Purpose:
        """For the text that a model writes as its own."""
        return cls.TARGET_TOKEN if role == Role.TARGET else cls.DRAFT_TOKEN
