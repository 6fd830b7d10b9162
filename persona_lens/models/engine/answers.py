"""One question, one answer, whatever hooks the model carries."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from persona_lens.checking import checked
from persona_lens.errors import NonFiniteError
from persona_lens.models.engine.finite import OVERFLOW_HINT
from persona_lens.models.engine.requests import SampledResponse, Sampling, decode_part
from persona_lens.models.engine.rollouts import warn_of_unfinished
from persona_lens.models.hooked_model import HookedModel
from persona_lens.models.hooks.points import attached
from persona_lens.models.hooks.sharing import drawing
from persona_lens.models.text.chat import Message, build_messages, encode_prompt, warn_of_controls
from persona_lens.models.text.templates import TemplateArguments
from persona_lens.models.text.thoughts import open_format
from persona_lens.models.text.tokens import stop_token_ids


@runtime_checkable
class TextStream(Protocol):
    """What text is written to as it comes, such as ``sys.stdout``."""

    def write(self, text: str, /) -> object:
        """Take a piece of text."""
        ...

    def flush(self) -> object:
        """Show what was written."""
        ...


@checked
def ask(
    model: HookedModel,
    question: str | Sequence[Message],
    *,
    system: str | None = None,
    sampling: Sampling = Sampling(max_new_tokens=128, temperature=0.7),
    stream: TextStream | None = None,
    template_arguments: TemplateArguments | None = None,
) -> str:
    """Ask a chat model something, through its chat template, and return what it answers.

    Runs TransformerLens' own generation, so that every hook on the model takes effect: inside
    ``with pl.steering(...)``, ``pl.hooked(...)`` or ``model.hooks(...)`` the answer is a steered one. To ask many
    questions at once take :func:`persona_lens.score_conditions` or ``pl.models.sample_rollouts``, which fill batches.

    Args:
        model: HookedTransformer or TransformerBridge with a tokenizer that has a chat template.
        question: The user's turn; or a whole conversation, ending with one.
        system: System prompt of a question; None leaves it to the chat template.
        sampling: Length, temperature, ``top_p``, seed, stop tokens, and ``judged``: which part of the response of a
            model that thinks is returned. Its other values are for batches.
        stream: Where each piece of the response is written as it comes, thought and all, such as ``sys.stdout``.
        template_arguments: What the chat template reads besides the messages, such as ``{"enable_thinking": False}``;
            they go before those that the model was loaded with.

    Returns:
        The answer, without the stop token; the same seed gives the same one. Empty where a thought does not end.

    Raises:
        ChatTemplateError: The tokenizer has no usable chat template.
        InvalidArgumentError: A template argument that the template does not read.
        ContextLengthError: A conversation that leaves no room for the answer.
        NonFiniteError: Logits that overflow, as under too strong a steering.
        ModelBusyError: The model does something else.

    Warns:
        UnfinishedThoughtWarning: The response is a thought that does not end.

    Example:
        >>> import persona_lens as pl
        >>> model = pl.load_model()  # doctest: +SKIP
        >>> with pl.steering(model, pl.load_vector("empathy"), layer=24, coefficient=1.5):  # doctest: +SKIP
        ...     print(pl.ask(model, "I failed my exam."))
    """
    messages = build_messages(question, system) if isinstance(question, str) else question
    tokenizer = model.tokenizer
    prompt = encode_prompt(
        tokenizer, messages, n_ctx=model.cfg.n_ctx, reserve=sampling.max_tokens, template_arguments=template_arguments
    )
    warn_of_controls([prompt])
    stops = sampling.stop_tokens or stop_token_ids(tokenizer)
    form = open_format(tokenizer)
    reader = None if form is None else form.begin(prompt.tokens)
    tokens: list[int] = []
    shown = ""

    def check_logits(logits: Float[Tensor, "row pos vocab"], hook: object) -> None:
        if not bool(logits[:, -1].max(dim=-1).values.isfinite().all()):
            rule, got = (
                "be answered in finite numbers",
                f"infinity or NaN in the logits of response token {len(tokens)}",
            )
            raise NonFiniteError.of("question", rule, got, OVERFLOW_HINT)

    with attached(model, [("unembed.hook_out", check_logits)]), drawing(), torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(sampling.seed)
        steps = model.generate_stream(
            torch.tensor([prompt.tokens], device=model.cfg.device),
            max_new_tokens=sampling.max_tokens,
            max_tokens_per_yield=1,
            stop_at_eos=False,  # it knows one stop token; a template may have several
            do_sample=sampling.temperature > 0,
            temperature=sampling.temperature,
            top_p=None if sampling.top_p == 1 else sampling.top_p,
            verbose=False,
        )
        with closing(steps):
            for step in steps:
                token = int(step[0, -1])  # the first step repeats the prompt before it
                if token in stops:
                    break
                tokens.append(token)
                if reader is not None:
                    reader.feed(token)
                if stream is not None:
                    text = tokenizer.decode(tokens, skip_special_tokens=True)
                    # A character may take several tokens; an unfinished one decodes to the replacement character.
                    if not text.endswith("\N{REPLACEMENT CHARACTER}"):
                        stream.write(text[len(shown) :])
                        stream.flush()
                        shown = text
                if reader is not None and reader.count(sampling.max_thought_tokens) >= sampling.max_new_tokens:
                    break
    if stream is not None:
        whole: str = tokenizer.decode(tokens, skip_special_tokens=True)
        stream.write(whole[len(shown) :] + "\n")
    response = SampledResponse(tuple(tokens), "stop", thought=None if reader is None else reader.thought)
    warn_of_unfinished([response], sampling.max_tokens)
    return decode_part(tokenizer, response, sampling.judged)
