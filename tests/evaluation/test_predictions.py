import pytest
import torch

import persona_lens as pl
from persona_lens.evaluation.ordinary import sample_ordinary_spans
from persona_lens.evaluation.predictions import measure_predictions
from persona_lens.interventions import intervention_hooks
from persona_lens.models import TokenSpans
from tests.interventions.test_steering import make_vector

QUESTIONS = [f"What is {i}?" for i in range(11)]


@pytest.fixture(scope="module")
def vector(tiny_model):
    return make_vector(tiny_model)


@pytest.fixture(scope="module")
def spans(tiny_model):
    return sample_ordinary_spans(tiny_model, QUESTIONS, pl.Sampling(max_new_tokens=5))


def test_likelihood_and_divergence_are_those_of_single_plain_passes(tiny_model, vector, spans):
    done = pl.steer(vector, layer=1, coefficient=2.0)

    def make_hooks(batch):
        return intervention_hooks(done, positions="response", prompt_length=[one.response_start for one in batch])

    found = measure_predictions(tiny_model, spans, make_hooks, batch_size=4, compare=True)
    for index, span in enumerate(spans):
        tokens, n = torch.tensor([span.tokens]), span.response_start
        hooks = intervention_hooks(done, positions="response", prompt_length=n)
        with torch.no_grad():
            reference = tiny_model(tokens)[0, n - 1 : -1].log_softmax(-1)
            steered = tiny_model.run_with_hooks(tokens, fwd_hooks=hooks)[0, n - 1 : -1].log_softmax(-1)
        expected = torch.nn.functional.kl_div(steered, reference, log_target=True, reduction="sum")
        assert float(found.divergences[index]) == pytest.approx(float(expected), rel=1e-3, abs=1e-5)
        picked = steered.gather(-1, tokens[0, n:, None]).sum()
        assert float(found.log_likelihoods[index]) == pytest.approx(float(picked), rel=1e-4)
        assert found.n_tokens[index] == len(span.tokens) - n


def test_the_same_hooks_on_both_sides_are_no_divergence(tiny_model, vector, spans):
    with pl.steering(tiny_model, vector, layer=1):
        found = measure_predictions(tiny_model, spans[:3], lambda batch: [], batch_size=2, compare=True)
    assert found.divergences.abs().max() == 0


def test_responses_of_the_same_text_that_begin_elsewhere_share_no_row(tiny_model):
    """Hooks may depend on where a response begins; one-token responses to one prompt do share theirs."""
    tokens, asked = (5, 6, 7, 8, 9), []
    spans = [TokenSpans(tokens, 4, 5), TokenSpans(tokens, 2, 5), TokenSpans((*tokens[:4], 11), 4, 5)]

    def make_hooks(batch):
        asked.extend(one.response_start for one in batch)
        return []

    found = measure_predictions(tiny_model, spans, make_hooks, batch_size=4, compare=False)
    assert sorted(asked) == [2, 4]
    assert found.n_tokens.tolist() == [1, 3, 1]


def test_every_span_is_counted_as_done_once(tiny_model, spans):
    done = []
    measure_predictions(tiny_model, spans, lambda batch: [], batch_size=4, compare=False, advance=done.append)
    assert sum(done) == len(spans)
