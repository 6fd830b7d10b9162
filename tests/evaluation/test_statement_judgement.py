"""A model's judgement of statements is that of an ordinary forward pass, and shifts reach the statement alone."""

import pytest
import torch

import persona_lens as pl
from persona_lens.evaluation import judge_statements
from persona_lens.evaluation.statement_judgement import _EXAMPLES, _QUESTION, _WORDS, _find_answers
from persona_lens.models.text.tokens import tokenize_plain

TEXTS = ["Snow is cold.", "A mouse is larger than an elephant.", "Two is two."]
EXAMPLES = "".join(f"{text}{_QUESTION}{_WORDS[is_true]}\n\n" for text, is_true in _EXAMPLES)


@pytest.fixture(scope="module")
def model(roomy_folder):
    return pl.load_model(roomy_folder, dtype="float32", device="cpu")


def judge_plainly(model, text, hooks=()):
    """The slow way: the whole text in one pass, every byte a token."""
    (true, false), shared = _find_answers(model.tokenizer)
    tokens = [*tokenize_plain(model.tokenizer, f"{EXAMPLES}{text}{_QUESTION}").tokens, *shared]
    with torch.no_grad():
        logits = model.run_with_hooks(torch.tensor([tokens]), fwd_hooks=list(hooks))[0, -1]
    return float(logits[true] - logits[false])


def test_examples_are_as_often_true_as_false():
    assert sum(is_true for _, is_true in _EXAMPLES) == len(_EXAMPLES) / 2


def test_the_judgement_is_that_of_an_ordinary_pass(model):
    found = judge_statements(model, TEXTS)
    assert found.tolist() == pytest.approx([judge_plainly(model, text) for text in TEXTS], abs=2e-3)
    assert len({round(value, 3) for value in found.tolist()}) == len(TEXTS)


def test_a_shift_is_added_over_the_statements_tokens_and_nowhere_else(model):
    shifts = 50 * torch.randn(len(TEXTS), model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    found = judge_statements(model, TEXTS, shifts=shifts, layer=1)
    start = len(tokenize_plain(model.tokenizer, EXAMPLES).tokens)
    for text, shift, value in zip(TEXTS, shifts, found.tolist(), strict=True):
        end = start + len(text)

        def add(residual, hook, shift=shift, end=end):
            residual[:, start:end] += shift
            return residual

        expected = judge_plainly(model, text, [("blocks.1.hook_resid_post", add)])
        assert value == pytest.approx(expected, abs=1e-4)
        assert abs(value - judge_plainly(model, text)) > 1e-3


def test_no_shift_and_a_shift_of_nothing_are_the_same_to_the_bit(model):
    nothing = torch.zeros(len(TEXTS), model.cfg.d_model)
    assert torch.equal(judge_statements(model, TEXTS), judge_statements(model, TEXTS, shifts=nothing, layer=2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": []}, "none of them empty"),
        ({"texts": ["Yes.", " "]}, "none of them empty"),
        ({"texts": TEXTS, "shifts": torch.zeros(2, 48)}, "have shape"),
        ({"texts": TEXTS, "layer": 3}, "layer"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_the_model_runs(model, arguments, message):
    with pytest.raises(pl.errors.InvalidArgumentError, match=message):
        judge_statements(model, **arguments)


def test_a_statement_that_does_not_fit_is_refused(tiny_model):
    with pytest.raises(pl.errors.ContextLengthError, match="eight examples"):
        judge_statements(tiny_model, ["Snow is cold."])


def test_a_steered_model_is_refused(model):
    with (
        model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", lambda residual, hook: residual)]),
        pytest.raises(pl.errors.HooksPresentError),
    ):
        judge_statements(model, TEXTS)
