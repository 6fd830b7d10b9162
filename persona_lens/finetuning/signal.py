"""Where a trait's signal is in a model after training: along the vector that was there first, or elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.finetuning.signal_reading import FIRST, FRESH, READERS, SignalReading, measure_signal, read_signal
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.sites import check_layer
from persona_lens.records import Record
from persona_lens.traits.written import Kind, WrittenExample
from persona_lens.vectors.persona_vector import PersonaVector

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@checked
@dataclass(frozen=True, eq=False)
class FoundSignal(Record):
    """How well a trait is read before and after training, and how far training moved the model along what reads it.

    Args:
        trait: The trait's name.
        model: The trained model's name.
        before: The base model's reading.
        after: The trained model's, compared with the base.
    """

    trait: str
    model: str
    before: SignalReading
    after: SignalReading

    def describe(self, layer: int) -> str:
        """Say in a few lines how far the model moved at a layer, and how well answers are told apart there.

        Args:
            layer: Zero-based block index: where the vector was penalised, added or watched.

        Raises:
            LayerOutOfRangeError: The model has no such layer.

        Example:
            >>> print(found.describe(15))  # doctest: +SKIP
        """
        n_layers = len(self.after.cosine["response_mean"])
        check_layer(layer, n_layers)
        lines = [f"{self.trait}, layer {layer} of {self.model}; 95 % intervals over questions"]
        for reader in READERS:
            furthest = max(range(n_layers), key=lambda one: self.after.find_move(reader, one).estimate)
            lines.append(
                f"{reader}: moved by {self.after.find_move(reader, layer)} of its length at the prompt's end "
                f"(furthest, chosen afterwards: {self.after.find_move(reader, furthest).estimate:.2f} at layer "
                f"{furthest}); answers' AUROC "
                f"{self.after.text['response_mean'][reader].auroc[layer]}, before "
                f"{self.before.text['response_mean'][reader].auroc[layer]}"
            )
        turned, was = (one.cosine["response_mean"][layer] for one in (self.after, self.before))
        lines.append(f"cosine of a {FRESH} with the {FIRST}: {turned}, before {was}")
        return "\n".join(lines)

    def plot(self, layer: int | None = None) -> Figure:
        """Draw movement, separation and cosine over layers; returns a plotly Figure.

        Args:
            layer: Is marked: where the vector was penalised, added or watched.

        Raises:
            LayerOutOfRangeError: The model has no such layer.
        """
        from persona_lens.plots.signal import plot_signal  # plotly is imported only when drawing

        return plot_signal(self, layer)


@checked
def find_signal(
    base: HookedModel,
    tuned: HookedModel,
    vector: PersonaVector,
    examples: Sequence[WrittenExample],
    *,
    against: Kind = "ordinary",
    n_folds: int = 5,
) -> FoundSignal:
    """Look for a trait in a trained model where its vector may no longer show it.

    A loss on a projection (:class:`ProjectionPenalty`) teaches a model to keep that one number still; what the number
    stood for can go on along another direction, at another layer or at other tokens. Both models read the same written
    answers, which neither was trained on, and :func:`measure_signal` says what the first vector, a fresh one and a
    probe make of them. Where only the first has lost the signal, it was hidden; where all have, it is gone, as far as
    these readers see. To compare many models with one base, read the base once: :func:`read_signal`.

    Args:
        base: The model that the vector was made from, unsteered.
        tuned: The same after fine-tuning, unsteered: ``load_model(name, adapter=folder)``.
        vector: The vector that was penalised, added or watched, made from other answers.
        examples: Answers to questions that neither vector nor training had: the judging half.
        against: What the overt answers are compared with.
        n_folds: Parts of the questions that fresh vector and probe are found and tried on.

    Returns:
        Separation, cosine and movement, by layer and position, with intervals over questions.

    Raises:
        InvalidArgumentError: Too few examples or folds, overt answers against themselves, or a vector without a
            direction at some layer.
        ModelMismatchError: A vector of another base, or a model fine-tuned from another one.
        ContextLengthError: An answer that is longer than the model's context.
        HooksPresentError: A model carries hooks.

    Reference:
        Persona Vectors (arXiv 2507.21509), section 5 and appendix J.

    Example:
        >>> import persona_lens as pl
        >>> held_out = pl.traits.load_written_examples("evil", "judging")
        >>> found = pl.finetuning.find_signal(base, tuned, vector, held_out)  # doctest: +SKIP
        >>> print(found.describe(15))  # doctest: +SKIP
    """
    for model in (base, tuned):
        vector.check_model(model)
    if not 2 <= n_folds <= len(examples):
        raise InvalidArgumentError.of("n_folds", f"be in [2, {len(examples)}], the examples", n_folds)
    first, second = (read_signal(model, vector.trait, examples, against=against) for model in (base, tuned))
    before = measure_signal(first, vector, n_folds=n_folds)
    return FoundSignal(vector.trait, second.model.name, before, measure_signal(second, vector, first, n_folds=n_folds))
