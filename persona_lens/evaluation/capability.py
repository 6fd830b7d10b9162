"""What an intervention costs: ordinary text under it, how far predictions move, and simple questions.

The model is taken as it is: hooks that are on it when it is measured take effect. Everything here is the model's
ordinary forward pass, so that a hook may sit anywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.resources import files
from typing import Any

import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import ContextLengthError, InvalidArgumentError
from persona_lens.evaluation.multiple_choice import MultipleChoiceItem, load_multiple_choice
from persona_lens.evaluation.predictions import measure_predictions
from persona_lens.interventions.hooks import intervention_hooks
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.intervention import Intervention, check_interventions
from persona_lens.models.hooks.points import FiringWatch, HookPair
from persona_lens.models.loading import ModelInfo, describe_model
from persona_lens.models.text.chat import Message, build_messages, encode_conversation
from persona_lens.models.text.spans import TokenSpans
from persona_lens.models.text.tokens import tokenize_plain
from persona_lens.records import Record, format_table
from persona_lens.run import Run
from persona_lens.statistics import Interval, bootstrap_mean
from persona_lens.statistics.bootstrap import bootstrap, draw_multinomial, t_interval
from persona_lens.storage import collect_versions

_DATA = files("persona_lens") / "data"
_INTERVALS = ("perplexity", "kl", "accuracy")
_N_RESAMPLES = 2000
_LEVEL = 0.95


@checked
@dataclass(frozen=True, repr=False)
class Capability(Record):
    """What a model can do, as it was measured.

    Compare a steered with an unsteered one, both by :func:`measure_capability` on the same texts and items.

    Args:
        perplexity: Of ordinary text, a token; bootstrapped over texts. NaN if the logits are not finite.
        kl: KL(unsteered || steered) in nats a token of ordinary text, bootstrapped over texts; None where no hooks
            were given to compare with.
        accuracy: Share of items answered rightly, bootstrapped over items.
        chance_accuracy: What guessing would get.
        n_texts: Texts.
        n_tokens: Tokens predicted in them.
        n_items: Multiple-choice items.
        model: What was measured.
        provenance: Hooks, data, settings, seed and versions.
    """

    perplexity: Interval
    kl: Interval | None
    accuracy: Interval
    chance_accuracy: float
    n_texts: int
    n_tokens: int
    n_items: int
    model: ModelInfo
    provenance: dict[str, Any]

    def _describe(self) -> dict[str, str]:
        """Return the measured numbers in words."""
        return {
            "perplexity": f"{self.perplexity:.3g}",
            "KL": "not compared" if self.kl is None else f"{self.kl:.3g} nats a token",
            "accuracy": f"{self.accuracy:.3g} (chance {self.chance_accuracy:.3g})",
        }

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name} {value}" for name, value in self._describe().items())
        return (
            f"Capability({self.model.name!r}: {numbers}; {self.n_texts} texts of {self.n_tokens} tokens, "
            f"{self.n_items} items)"
        )

    def _repr_html_(self) -> str:
        caption = f"{self.model.name}: {self.n_texts} texts of {self.n_tokens} tokens, {self.n_items} items"
        return format_table(caption, self._describe().items())


@checked
def measure_capability(
    model: HookedModel,
    hooks: Intervention | Sequence[HookPair] = (),
    *,
    texts: Sequence[str] | None = None,
    items: Sequence[MultipleChoiceItem] | None = None,
    batch_size: int = 16,
    max_tokens: int = 128,
    seed: int = 0,
    run: Run = Run(),
) -> Capability:
    r"""Measure perplexity, divergence and multiple-choice accuracy under an intervention.

    .. math::
        \text{perplexity} = \exp \frac{\sum_d \sum_t -\log q(x_{d,t} \mid x_{d,<t})}{\sum_d T_d}, \qquad
        \text{KL} = \frac{\sum_d \sum_t \sum_v p_{d,t}(v) \log \frac{p_{d,t}(v)}{q_{d,t}(v)}}{\sum_d T_d}

    Every token of every text counts the same: sums over all tokens are divided by their number, and the bootstrap
    draws whole texts. A text follows the tokenizer's BOS token, if it has one, and is predicted from its second
    token on: a chat model's BOS may open a turn, which no prose begins. ``q`` is the model with ``hooks``, ``p``
    without them; hooks that are already on the model act in both.

    An item is answered with the choice of the highest mean log-likelihood a token, as the assistant's answer to the
    question alone (after ``Question: ...`` and ``Answer:`` where the tokenizer has no chat template). The mean
    rather than the sum is the convention of GPT-3's evaluation: it does not favour short answers. Choices that tie,
    as logits in bfloat16 often do, share the point.

    Args:
        model: HookedTransformer or TransformerBridge, with whatever hooks are on it.
        hooks: An intervention, done at every token, or during its windows; or TransformerLens ``(name, fn)`` pairs.
            Attached around every forward pass and removed after it. Windows count the tokens that are predicted: those
            of an item's answer, and of a text all from its first predicted one on, as if the model were writing it.
        texts: Ordinary texts that the model was not fitted on, two or more; None takes 40 bundled paragraphs.
        items: Two or more; None takes the bundled ones. See :func:`load_multiple_choice`.
        batch_size: Rows of a forward pass; its logits take ``batch_size * max_tokens * vocab`` numbers.
        max_tokens: Texts are cut after so many tokens, BOS included.
        seed: Seed of the bootstrap.
        run: Shows progress.

    Returns:
        The three measures with their 95 % intervals.

    Raises:
        InvalidArgumentError: Fewer than two texts or items, a text of fewer than two tokens, an unknown hook name, or
            a number out of range.
        ContextLengthError: An item exceeds the model's context.
        HookNeverFiredError: The forward pass did not reach one of ``hooks``.

    Reference:
        Brown et al., Language Models are Few-Shot Learners (arXiv 2005.14165), section 2.4, for the likelihood a
        token. Persona Vectors (arXiv 2507.21509), section 3.2, measures the cost of steering by MMLU accuracy.

    Example:
        >>> import persona_lens as pl
        >>> model = pl.load_model()  # doctest: +SKIP
        >>> measure_capability(model).accuracy.low > 0.3  # doctest: +SKIP
        True
    """
    if batch_size < 1:
        raise InvalidArgumentError.of("batch_size", "be at least 1", batch_size)
    if not 3 <= max_tokens <= model.cfg.n_ctx:
        rule = f"be in [3, {model.cfg.n_ctx}], the model's context"
        raise InvalidArgumentError.of("max_tokens", rule, max_tokens)
    windowed = hooks if isinstance(hooks, Intervention) and hooks.has_windows else None
    if isinstance(hooks, Intervention):
        check_interventions(model, [hooks])
        hooks = intervention_hooks(hooks)  # of one with windows the names alone: its tokens differ from text to text
    unknown = [name for name, _ in hooks if name not in model.hook_dict]
    if unknown:
        raise InvalidArgumentError.of("hooks", "name hook points in model.hook_dict", unknown)
    texts = load_ordinary_texts() if texts is None else texts
    items = load_multiple_choice() if items is None else items
    if isinstance(texts, str) or len(texts) < 2:
        rule = "be a list of at least two texts: intervals are drawn over texts"
        raise InvalidArgumentError.of("texts", rule, texts)
    if len(items) < 2:
        rule = "be at least two items: the interval is drawn over items"
        raise InvalidArgumentError.of("items", rule, items)
    tokenizer: Any = model.tokenizer
    paragraphs = [_encode_paragraph(tokenizer, text, f"texts[{i}]", max_tokens) for i, text in enumerate(texts)]
    answers = [
        _encode_answer(tokenizer, item.question, choice, f"items[{i}]", model.cfg.n_ctx)
        for i, item in enumerate(items)
        for choice in item.choices
    ]
    watch = FiringWatch()

    def make_hooks(batch: Sequence[TokenSpans]) -> list[HookPair]:
        done = hooks
        if windowed is not None:
            done = intervention_hooks(windowed, prompt_length=[span.response_start for span in batch])
        return [(name, watch.watch(name, fn)) for name, fn in done]

    score = partial(measure_predictions, model, make_hooks=make_hooks, batch_size=batch_size)
    with run.progress("measuring capability", len(paragraphs) + len(answers)) as advance:
        ordinary = score(paragraphs, compare=bool(hooks), advance=advance)
        watch.check("Is the hook point switched off in model.cfg?")
        answered = score(answers, compare=False, advance=advance)
    mean_nll = _bootstrap_ratio(-ordinary.log_likelihoods, ordinary.n_tokens, seed)
    return Capability(
        perplexity=Interval(_exp(mean_nll.estimate), _exp(mean_nll.low), _exp(mean_nll.high), mean_nll.level),
        kl=_bootstrap_ratio(ordinary.divergences, ordinary.n_tokens, seed) if hooks else None,
        accuracy=bootstrap_mean(
            _grade(items, answered.log_likelihoods / answered.n_tokens),
            n_resamples=_N_RESAMPLES,
            level=_LEVEL,
            seed=seed,
        ),
        chance_accuracy=sum(1 / len(item.choices) for item in items) / len(items),
        n_texts=len(texts),
        n_tokens=int(ordinary.n_tokens.sum()),
        n_items=len(items),
        model=describe_model(model),
        provenance={
            "hooks": [name for name, _ in hooks],
            "texts": _hash(list(texts)),
            "items": _hash([asdict(item) for item in items]),
            "max_tokens": max_tokens,
            "seed": seed,
            "versions": collect_versions(),
        },
    )


def _encode_paragraph(tokenizer: Any, text: str, name: str, max_tokens: int) -> TokenSpans:
    tokens, ends = _tokenize(tokenizer, text)
    # From the second token that holds a character: a BOS holds none.
    start = 1 + sum(end == 0 for end in ends)
    if len(tokens) <= start:
        raise InvalidArgumentError.of(name, "have two tokens or more", text)
    cut = tokens[:max_tokens]
    return TokenSpans(cut, start, len(cut))


def _encode_answer(tokenizer: Any, question: str, choice: str, name: str, n_ctx: int) -> TokenSpans:
    if getattr(tokenizer, "chat_template", None):
        messages: list[Message] = [*build_messages(question), {"role": "assistant", "content": choice}]
        span: TokenSpans = encode_conversation(tokenizer, messages)
    else:
        prompt = f"Question: {question}\nAnswer: "
        tokens, ends = _tokenize(tokenizer, prompt + choice)
        # The token that holds the choice's first character, though it may begin with the space before.
        span = TokenSpans(tokens, next(i for i, end in enumerate(ends) if end > len(prompt)), len(tokens))
    if span.response_end > n_ctx:
        rule = f"fit the model's context of {n_ctx} tokens with its question and a choice"
        raise ContextLengthError.of(name, rule, span.response_end, "Leave the item out.")
    return span


def _tokenize(tokenizer: Any, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return token ids after a BOS, if there is one, and the character at which each token ends."""
    encoded = tokenize_plain(tokenizer, text)
    # Put there by hand: whether a tokenizer adds it by itself depends on how it was loaded.
    bos = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    return (*bos, *encoded.tokens), (*(0 for _ in bos), *(end for _, end in encoded.offsets))


# Numbers -------------------------------------------------------------------------------------------------------


def _grade(items: Sequence[MultipleChoiceItem], scores: Float[Tensor, " answer"]) -> Float[Tensor, " item"]:
    """Return 1 where the right choice is the likeliest, its share of a tie, else 0 (as where a score is NaN)."""
    points = []
    for item, own in zip(items, scores.split([len(item.choices) for item in items]), strict=True):
        best = [choice for choice, is_best in zip(item.choices, own >= own.max(), strict=True) if is_best]
        points.append(best.count(item.choices[item.answer]) / max(1, len(best)))
    return torch.tensor(points, dtype=torch.float64)


def _bootstrap_ratio(totals: Float[Tensor, " unit"], counts: Float[Tensor, " unit"], seed: int) -> Interval:
    """Divide a sum over units by another, with a bootstrap interval over units."""
    if not bool(totals.isfinite().all()):
        return Interval.missing(_LEVEL)

    def divide(drawn: ndarray) -> ndarray:
        ratios: ndarray = (drawn @ totals.numpy()) / (drawn @ counts.numpy())
        return ratios

    return t_interval(bootstrap(divide, (len(totals),), _N_RESAMPLES, _LEVEL, seed, draw_multinomial), len(totals))


def _exp(value: float) -> float:
    """Exponentiate to infinity where ``math.exp`` would raise."""
    return float(torch.tensor(value, dtype=torch.float64).exp())


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:16]


def load_ordinary_texts() -> tuple[str, ...]:
    """Return the bundled paragraphs."""
    lines = (_DATA / "ordinary_text.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(json.loads(line)["text"] for line in lines)
