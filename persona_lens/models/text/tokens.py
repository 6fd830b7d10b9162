"""Text as token ids in which text stays text: no control token arises from what people, data or models wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from persona_lens.errors import ChatTemplateError
from persona_lens.models.text.templates import read_settings
from persona_lens.models.text.thoughts import list_marker_tokens

# Tokens that end an assistant's turn in common templates; only those in the vocabulary are used.
_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "</s>")

Place = tuple[int, int]


@dataclass(frozen=True)
class TokenizedText:
    """A text's tokens.

    Args:
        tokens: Token ids.
        offsets: For each token its first character in the text, and one past its last.
        controls: Control tokens whose texts were written where only text may be; they were read as text.
    """

    tokens: tuple[int, ...]
    offsets: tuple[Place, ...]
    controls: tuple[str, ...] = ()


def tokenize_text(tokenizer: Any, text: str, contents: Sequence[Place]) -> TokenizedText:
    """Tokenise a rendered text, its contents as text alone.

    A tokenizer makes a control token, such as ``<|im_end|>``, of any text that spells it. Where that happens within a
    content, the text is cut after the token's first character and both sides are tokenised apart, so that the same
    characters come out as ordinary tokens. All other texts are tokenised in one piece.

    Args:
        tokenizer: A Hugging Face tokenizer.
        text: What the chat template rendered, or a plain text.
        contents: First character, and one past the last, of each part that may hold no control token. Control tokens
            are the tokenizer's special ones, those that end a turn, and added ones that stand outside these parts.

    Raises:
        ChatTemplateError: A control token of one character, or a tokenizer that tells no offsets (a slow one).
    """
    cuts: set[int] = set()
    said: set[str] = set()
    while True:
        tokens, offsets = _tokenize_pieces(tokenizer, text, sorted(cuts))
        arisen = _find_arisen(tokenizer, tokens, offsets, contents)
        if not arisen:
            return TokenizedText(tokens, offsets, tuple(sorted(said)))
        said |= {text[slice(*offsets[index])] for index in arisen}
        new = {offsets[index][0] + 1 for index in arisen if offsets[index][1] - offsets[index][0] > 1}
        if not new:
            rule = "have no control token that is spelled by one character"
            raise ChatTemplateError.of("tokenizer", rule, sorted(said), "Take that character out of the text.")
        cuts |= new


def tokenize_plain(tokenizer: Any, text: str) -> TokenizedText:
    """Tokenise a text that stands alone, without BOS; no control token arises from it.

    Args:
        tokenizer: A Hugging Face tokenizer.
        text: Any.
    """
    return tokenize_text(tokenizer, text, [(0, len(text))])


def stop_token_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids that end an assistant's turn.

    These are the tokenizer's end of sequence, those of the model's generation configuration, and known end-of-turn
    tokens, but for those that end a thought rather than a turn.
    """
    known = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    ids = {tokenizer.convert_tokens_to_ids(token) for token in _END_OF_TURN if token in known}
    ids = (ids | read_settings(tokenizer).stop_tokens) - list_marker_tokens(tokenizer)
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return frozenset(ids)


def _tokenize_pieces(tokenizer: Any, text: str, cuts: Sequence[int]) -> tuple[tuple[int, ...], tuple[Place, ...]]:
    tokens: list[int] = []
    offsets: list[Place] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        # A chat template is complete: whether a BOS token begins the text is for it to say.
        try:
            encoded = tokenizer(text[start:end], add_special_tokens=False, return_offsets_mapping=True)
        except NotImplementedError as error:
            rule, hint = "tell where its tokens stand in a text", "Load the fast tokenizer of this model."
            raise ChatTemplateError.of("tokenizer", rule, type(tokenizer).__name__, hint) from error
        tokens += encoded["input_ids"]
        offsets += [(start + a, start + b) for a, b in encoded["offset_mapping"]]
    return tuple(tokens), tuple(offsets)


def _find_arisen(
    tokenizer: Any, tokens: Sequence[int], offsets: Sequence[Place], contents: Sequence[Place]
) -> list[int]:
    """Return the indices of control tokens that reach into a content."""
    added = tokenizer.added_tokens_decoder
    found = [index for index, token in enumerate(tokens) if token in added]
    inside = [i for i in found if any(offsets[i][0] < end and offsets[i][1] > start for start, end in contents)]
    if not inside:
        return []
    control = stop_token_ids(tokenizer) | list_marker_tokens(tokenizer)
    control |= {token for token, one in added.items() if one.special}
    control |= {tokens[i] for i in set(found).difference(inside)}
    return [i for i in inside if tokens[i] in control]
