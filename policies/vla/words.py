"""Instructions as numbers: for the vision-language model of ours one token for each word of a small vocabulary."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from policies.vla.config import VlaConfig
from robot_stack.core.errors import PolicyError

NOTHING = ""
"""Token 0: no word here."""


def vocabulary_of(instructions: Iterable[str]) -> tuple[str, ...]:
    """The words of these instructions in alphabetical order, after the token for no word."""
    return (NOTHING, *sorted({word for instruction in instructions for word in _words(instruction)}))


def token_ids(net: VlaConfig, instruction: str, vocabulary: tuple[str, ...]) -> NDArray[np.int64]:
    """What the network is given for an instruction: (max_words,), 0 where there is no word. A pretrained model has its
    own vocabulary. PolicyError if there are too many or none, or one that is not known."""
    if not net.model:
        return encode_instruction(instruction, vocabulary, net.max_words)
    from policies.vla.vlm import model_tokens

    return model_tokens(net.model, instruction, net.max_words)


def encode_instruction(instruction: str, vocabulary: tuple[str, ...], length: int) -> NDArray[np.int64]:
    """Token ids (length,) of an instruction, filled up with 0; PolicyError for a word that was never trained on."""
    words = _words(instruction)
    unknown = [word for word in words if word not in vocabulary]
    if unknown:
        raise PolicyError(
            f"the instruction '{instruction}' has words that the policy does not know: {', '.join(unknown)}; it knows "
            f"{', '.join(vocabulary[1:])}"
        )
    if not words or len(words) > length:
        raise PolicyError(f"the instruction '{instruction}' has {len(words)} words; allowed: 1 to {length}")
    ids = np.zeros(length, np.int64)
    ids[: len(words)] = [vocabulary.index(word) for word in words]
    return ids


def _words(instruction: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", instruction.lower())
