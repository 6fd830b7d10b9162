"""What a vector's card is measured on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.text.chat import Message, build_messages, encode_conversation
from persona_lens.traits.written import Kind, WrittenExample, list_texts, list_written_traits, load_written_examples
from persona_lens.vectors.pairs import ActivationPairs, read_pairs

_N_OTHERS = 20
"""Written examples of each other trait: what lies near a vector shows in few."""
_STYLE_KINDS: tuple[Kind, ...] = ("style", "ordinary")


@checked
@dataclass(frozen=True, eq=False)
class QualityData:
    """What a vector's card is measured on; what is left out is missing on the card.

    Args:
        pairs: Those that the vector was found from: how stable it is.
        held_out: Answers with and without the trait to questions that had no part in the vector: what it separates.
        lengths: Of each held-out pair's answers, in tokens.
        style: Answers in the trait's style and without the trait, as positive ones, and ordinary answers.
        others: Pairs of other traits.

    Raises:
        InvalidArgumentError: Lengths without held-out pairs, or of others.
    """

    pairs: ActivationPairs | None = None
    held_out: ActivationPairs | None = None
    lengths: tuple[tuple[int, int], ...] = ()
    style: ActivationPairs | None = None
    others: tuple[ActivationPairs, ...] = ()

    def __post_init__(self) -> None:
        n_pairs = 0 if self.held_out is None else len(self.held_out)
        if self.lengths and len(self.lengths) != n_pairs:
            rule = f"be given for each of the {n_pairs} held-out pairs"
            raise InvalidArgumentError.of("lengths", rule, len(self.lengths))

    def list_pairs(self) -> list[ActivationPairs]:
        """Return all pairs that there are."""
        return [one for one in (self.pairs, self.held_out, self.style, *self.others) if one is not None]


@checked
def read_quality_data(
    model: HookedModel, trait: str, *, examples: str | Path | None = None, n_examples: int | None = None
) -> QualityData:
    """Read all that bears on a trait's vector: its written examples, and those of other traits.

    Of a trait with written examples, bundled or in a file: the training half, from which its written vector is found;
    the judging half, which had no part in it, with its lengths and its answers in the trait's style; and of each other
    bundled trait up to twenty pairs of the judging half. Of a trait without, the other traits' alone. Examples without
    ``style`` leave out what it costs to read style for the trait.

    About 520 answers, a minute on one core for the embedded model.

    Args:
        model: HookedTransformer or TransformerBridge, unsteered.
        trait: The trait's name.
        examples: File of a trait's own written examples, as :func:`persona_lens.traits.load_written_examples` reads it.
        n_examples: Most examples of each half and trait; fewer are read sooner, and leave intervals wider. None takes
            all.

    Raises:
        InvalidArgumentError: Fewer than four examples, or some with answers in the trait's style and others without
            these or without ordinary ones.
        FileNotFoundError: No such file.
        FileFormatError: A file that holds no written examples, or none of a half.
        HooksPresentError: The model carries hooks.

    Example:
        >>> import persona_lens as pl
        >>> data = pl.vectors.read_quality_data(pl.load_model(), "evil")  # doctest: +SKIP
        >>> own = pl.vectors.read_quality_data(pl.load_model(), "boastful", examples="boastful.jsonl")  # doctest: +SKIP
    """
    if n_examples is not None and n_examples < 4:
        raise InvalidArgumentError.of("n_examples", "be at least 4", n_examples)
    halves, has_style = None, False
    if examples is not None or trait in list_written_traits():  # a file is read before any model runs
        source = trait if examples is None else Path(examples)
        halves = [load_written_examples(source, half)[:n_examples] for half in ("training", "judging")]
        # Where some have them and others not, one was forgotten.
        has_style = any(one.style is not None for one in halves[1])
        for kind in _STYLE_KINDS if has_style else ():
            list_texts(halves[1], kind)
    others = tuple(
        read_pairs(model, name, load_written_examples(name, "judging")[: min(n_examples or _N_OTHERS, _N_OTHERS)])
        for name in list_written_traits()
        if name != trait
    )
    if halves is None:
        return QualityData(others=others)
    training, judging = halves
    return QualityData(
        pairs=read_pairs(model, trait, training),
        held_out=read_pairs(model, trait, judging),
        lengths=tuple(
            (_count(model, one.question, one.overt), _count(model, one.question, one.opposite)) for one in judging
        ),
        style=_read_style(model, trait, judging) if has_style else None,
        others=others,
    )


def _read_style(model: HookedModel, trait: str, examples: tuple[WrittenExample, ...]) -> ActivationPairs:
    """Read style against ordinary: examples whose overt answer is the one in the trait's style."""
    plain = [replace(one, overt=text) for one, text in zip(examples, list_texts(examples, "style"), strict=True)]
    return read_pairs(model, f"{trait}, style alone", plain, against="ordinary")


def _count(model: HookedModel, question: str, text: str) -> int:
    """Count an answer's tokens."""
    answer = Message(role="assistant", content=text)
    spans = encode_conversation(model.tokenizer, [*build_messages(question), answer], n_ctx=model.cfg.n_ctx)
    return spans.response_end - spans.response_start
