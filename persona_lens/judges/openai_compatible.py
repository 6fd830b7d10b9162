"""OpenAIJudge: a judge at any endpoint that speaks OpenAI's chat completions (vLLM, Ollama, OpenRouter, OpenAI)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from persona_lens.checking import checked
from persona_lens.errors import InvalidArgumentError
from persona_lens.judges.asking import API_DECLINED, check_limits, judge_concurrently, unanswered
from persona_lens.judges.chat_answers import (
    UNSETTLED,
    Reading,
    describe_error_body,
    find_choice,
    is_moderated,
    read_beginning,
    read_likeliest,
    read_text,
)
from persona_lens.judges.expected_score import COHERENCE_RUBRIC
from persona_lens.judges.judgement import Judgement
from persona_lens.traits.keys import describe_failure, keep_out_of_logs, missing_key, quote, read_key, refused_key
from persona_lens.traits.trait import Trait, fill_rubric

if TYPE_CHECKING:  # slow to import; each function that asks imports it
    import openai

_KEY = "OPENAI_API_KEY"
_HINT = f"Set {_KEY} in the environment, or use LikelihoodJudge, which needs no key."
_NO_KEY = "no-key-was-set"  # the client insists on one; an endpoint that needs none does not look at it
_DEFAULT_URL = "https://api.openai.com/v1"  # the client's own
_TIMEOUT_SECONDS = 120.0
_OTHER_CLIENT_ERRORS = {401, 402, 403, 408, 409, 429}  # of 400 to 499, those that say nothing about the parameters

# A ceiling, not a cost: a number takes a few tokens, but models that think before it count their thoughts here.
_MAX_TEXT_TOKENS = 2048
# How to ask for a number: the paper's way, then what endpoints take that refuse it. OpenAI's thinking models refuse a
# temperature too, and know the ceiling by another name.
_LIKELIEST = {"temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": 20}
_TEXT = {"temperature": 0, "max_tokens": _MAX_TEXT_TOKENS}
_TEXT_OF_THINKERS = {"max_completion_tokens": _MAX_TEXT_TOKENS}
# Where a tokenizer writes each digit apart: the longest number and one token more.
_BEGINNING = {"temperature": 0, "max_tokens": 4}


@dataclass
class _Learnt:
    """What the endpoint's answers taught: the first of the ways to ask that it takes."""

    way: int = 0


@checked
@dataclass(frozen=True, eq=False)
class OpenAIJudge:
    r"""Scores responses by the number that a model at an OpenAI-compatible endpoint answers to the trait's rubric.

    .. math:: \text{score} = \frac{\sum_{n=0}^{100} n\,p(n)}{\sum_{n=0}^{100} p(n)}

    ``p(n)`` is the probability that the answer's first token is the number ``n``, out of its 20 likeliest tokens at
    temperature 0; tokens that differ in spaces (``"87"``, ``" 87"``) are the same number and add up. Where the mass of
    all numbers is below ``min_mass`` there is no score. The coherence is asked for in a second request, with the same
    rubric as ExpectedScoreJudge's.

    Where the endpoint gives no log-probabilities, or refuses the parameters with a 4xx, the number is asked for as
    text; this is remembered for the judge's further requests. A model that also refuses a temperature is then asked at
    its own, and its scores are no longer reproducible.

    Numbers of several tokens: the probabilities are those of the first token alone. Where a tokenizer writes each digit
    apart, a first digit is not taken for the number: if no likely token has two digits or more, while 1 to 9 hold 1 %
    of the numbers' mass, that number is asked for once more, four tokens long, and read as text. A "100" cut into "10"
    and "0" by a tokenizer that has two-digit tokens counts as 10.

    Question and response are put into the rubric's places in one pass, so that nothing in them changes the rubric. The
    key is read from the environment variable OPENAI_API_KEY for each call and kept nowhere; it is sent to ``base_url``.
    Without one a placeholder is sent, except to OpenAI itself.

    Args:
        trait: The trait, whose rubric is used.
        model: The model's name at the endpoint.
        base_url: The endpoint, as ``http://localhost:11434/v1``; None takes the client's own default: the environment
            variable OPENAI_BASE_URL, or else OpenAI. Without user name, password or query, which logs would show.
        min_mass: Least mass of the numbers 0 to 100.
        max_concurrent: Requests under way at once.
        max_retries: Attempts after the first, on rate limits, overload and lost connections; the waits grow, or are
            those that the endpoint asks for.

    Raises:
        InvalidArgumentError: An argument out of range.

    Reference:
        Persona Vectors (arXiv 2507.21509), appendix A; 0.25 is the paper's threshold.

    Example:
        >>> import persona_lens as pl
        >>> OpenAIJudge(pl.load_trait("evil"), "qwen3:8b", "http://localhost:11434/v1")
        OpenAIJudge('evil' read by 'qwen3:8b' at 'localhost:11434/v1')
    """

    trait: Trait
    model: str
    base_url: str | None = None
    min_mass: float = 0.25
    max_concurrent: int = 8
    max_retries: int = 5
    _learnt: _Learnt = field(default_factory=_Learnt, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise InvalidArgumentError.of("model", "name a model of the endpoint's", self.model)
        describe_endpoint(*_find_url(self.base_url))
        if not 0 < self.min_mass <= 1:
            raise InvalidArgumentError.of("min_mass", "be in (0, 1]", self.min_mass)
        check_limits(self.max_concurrent, self.max_retries)

    @property
    def name(self) -> str:
        """What the judge is."""
        return f"{self.model} at {self._endpoint}"

    @property
    def identity(self) -> str:
        """All that a response's score depends on besides the response: two judges of one identity are one judge."""
        read = {
            "endpoint": self._endpoint,
            "model": self.model,
            "rubrics": [self.trait.rubric, COHERENCE_RUBRIC],
            "min_mass": self.min_mass,
            "asked": [_LIKELIEST, _TEXT, _TEXT_OF_THINKERS, _BEGINNING],
        }
        return f"OpenAIJudge {json.dumps(read, sort_keys=True, ensure_ascii=False)}"

    def __repr__(self) -> str:
        return f"OpenAIJudge({self.trait.name!r} read by {self.model!r} at {self._endpoint!r})"

    @property
    def _endpoint(self) -> str:
        return describe_endpoint(*_find_url(self.base_url))

    def score(self, questions: Sequence[str], responses: Sequence[str]) -> list[Judgement]:
        """Judge each response to its question, two requests each.

        Returns:
            In the order given, a score and a coherence each (None where the model answers no number to that rubric), or
            a reason: an empty response (which is not sent), too little mass on numbers, a refusal, an answer that is no
            number, or an error of the endpoint that outlived the retries.

        Raises:
            InvalidArgumentError: Lists of unequal length, a key that is refused, or none where OpenAI needs one.
        """

        def judge(client: openai.OpenAI) -> list[Judgement]:
            return judge_concurrently(partial(self._judge, client), questions, responses, self.max_concurrent)

        found = _attempt(judge, self.base_url, self.max_retries)
        if isinstance(found, InvalidArgumentError):
            raise found
        return found

    def _judge(self, client: openai.OpenAI, question: str, response: str) -> Judgement:
        score = self._ask(client, self.trait.render_rubric(question, response))
        if score.retryable:  # the response will be asked about again, so its coherence can wait
            return unanswered(score.reason)
        coherence = self._ask(client, fill_rubric(COHERENCE_RUBRIC, question, response))
        if coherence.retryable:
            return unanswered(f"coherence: {coherence.reason}")
        return Judgement(score.number, coherence.number, score.reason)

    def _ask(self, client: openai.OpenAI, prompt: str) -> Reading:
        """Ask in the first way that the endpoint takes, and remember which that was."""
        ways = (
            (_LIKELIEST, partial(read_likeliest, min_mass=self.min_mass)),
            (_TEXT, read_text),
            (_TEXT_OF_THINKERS, read_text),
        )
        for way in range(self._learnt.way, len(ways)):
            reading = self._ask_once(client, prompt, *ways[way])
            if not reading.refused:
                break
        if not reading.retryable:  # a failure may have had nothing to do with how it was asked
            self._learnt.way = max(self._learnt.way, way)
        if reading is UNSETTLED:
            reading = self._ask_once(client, prompt, _BEGINNING, read_beginning)
        quoted = f": {quote(reading.said, client.api_key)!r}" if reading.said else ""
        return replace(reading, reason=reading.reason + quoted)

    def _ask_once(
        self,
        client: openai.OpenAI,
        prompt: str,
        parameters: Mapping[str, Any],
        read: Callable[[Mapping[str, Any]], Reading],
    ) -> Reading:
        import openai

        content = prompt.encode(errors="replace").decode()  # half a surrogate pair has no UTF-8
        try:
            # The body as it came: the client checks no types, and a stranger's answer may be anything.
            raw = client.chat.completions.with_raw_response.create(
                model=self.model,
                messages=[{"role": "user", "content": content}],
                timeout=_TIMEOUT_SECONDS,
                **parameters,
            )
            choice = find_choice(json.loads(raw.content))
        except openai.AuthenticationError:
            raise
        except openai.PermissionDeniedError as error:
            if is_moderated(error.body):
                return Reading(None, API_DECLINED)
            raise
        except openai.APIError as error:
            return Reading(
                None, _describe_error(error, client.api_key), retryable=True, refused=_is_about_parameters(error)
            )
        except (ValueError, RecursionError) as error:
            return Reading(None, f"malformed HTTP body: {type(error).__name__}", retryable=True)
        return choice if isinstance(choice, Reading) else read(choice)


def describe_endpoint(url: str, parameter: str) -> str:
    """Return an endpoint's host, port and path, which is all that may be shown of its address.

    Args:
        url: An HTTP address.
        parameter: Where it came from, for the error.

    Raises:
        InvalidArgumentError: No such address, or one with a user name, a password, a query or a fragment.

    Example:
        >>> describe_endpoint("https://OpenRouter.ai/api/v1/", "base_url")
        'openrouter.ai/api/v1'
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        is_address = host != "" and parts.scheme in ("http", "https") and url.isprintable() and " " not in url
    except ValueError:
        is_address = False
    if not is_address:
        # Of a text that cannot be taken apart nothing is quoted: any part of it may be a password.
        raise InvalidArgumentError.of(parameter, "be an address such as http://localhost:8000/v1", "another text")
    if "@" in parts.netloc or "?" in url or "#" in url:
        rule, hint = "hold no user name, password, query or fragment", f"Logs would show them; {_KEY} is sent instead."
        raise InvalidArgumentError.of(parameter, rule, f"one at {host!r}", hint)
    address = f"[{host}]" if ":" in host else host
    return address + (f":{port}" if port else "") + parts.path.rstrip("/")


def _find_url(base_url: str | None) -> tuple[str, str]:
    """Return the endpoint's address as the client would find it, and the name of what says so."""
    if base_url is not None:
        return base_url, "base_url"
    return os.environ.get("OPENAI_BASE_URL", "").strip() or _DEFAULT_URL, "OPENAI_BASE_URL"


def _attempt(
    work: Callable[[openai.OpenAI], list[Judgement]], base_url: str | None, max_retries: int
) -> list[Judgement] | InvalidArgumentError:
    """Call a function with a client that has the environment's key, kept nowhere else; a refused key is an error."""
    import openai

    url, _ = _find_url(base_url)
    key = read_key(_KEY, _HINT)
    if not key and urlsplit(url).hostname == urlsplit(_DEFAULT_URL).hostname:
        raise missing_key(_KEY, _HINT)
    key = key or _NO_KEY
    # Said as a header too, so that no other authorization comes from the environment.
    headers = {"Authorization": f"Bearer {key}"}
    client = openai.OpenAI(api_key=key, base_url=url, max_retries=max_retries, default_headers=headers)
    try:
        with keep_out_of_logs(key), client:
            return work(client)
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        # Not raised here: the endpoint's own error, which holds the key, would go with it.
        return refused_key(_KEY, _describe_error(error, key), _HINT)


def _describe_error(error: openai.APIError, key: str) -> str:
    return describe_failure(error, describe_error_body(error.body), key)


def _is_about_parameters(error: openai.APIError) -> bool:
    """Return whether the endpoint refuses a request for what it asks, and not for who asks or when."""
    status = getattr(error, "status_code", 0)
    return 400 <= status < 500 and status not in _OTHER_CLIENT_ERRORS
