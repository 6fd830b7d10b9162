from types import SimpleNamespace

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import HooksPresentError, InvalidArgumentError, ModelMismatchError
from persona_lens.evaluation.ordinary import sample_ordinary_spans
from persona_lens.traits.everyday import load_ordinary_questions
from tests.interventions.test_steering import make_vector

QUESTIONS = [f"What is {i}?" for i in range(11)]
SAMPLING = pl.Sampling(max_new_tokens=5)


@pytest.fixture(scope="module")
def vector(tiny_model):
    return make_vector(tiny_model)


@pytest.fixture(scope="module")
def ordinary(tiny_model, vector):
    return pl.measure_ordinary_projections(tiny_model, vector, questions=QUESTIONS, sampling=SAMPLING)


def test_projections_are_those_of_each_response_run_alone(tiny_model, vector, ordinary):
    expected = []
    for text in sample_ordinary_spans(tiny_model, QUESTIONS, SAMPLING):
        resid = pl.cache_residual_stream(tiny_model, torch.tensor([text.tokens]))[:, 0, text.response_start :]
        expected.append(torch.stack([pl.project(resid[layer], vector.unit(layer)) for layer in range(3)]))
    torch.testing.assert_close(ordinary.projections, torch.cat(expected, dim=-1), atol=1e-3, rtol=1e-3)
    assert ordinary.n_responses == len(expected)


def test_quantiles_bound_the_tokens_that_they_say(ordinary):
    high = ordinary.quantile(0.9)
    below = (ordinary.projections <= high[:, None]).float().mean(dim=-1)
    assert below.min() > 0.88
    assert below.max() < 0.93
    torch.testing.assert_close(ordinary.std, ordinary.projections.std(dim=-1))
    with pytest.raises(InvalidArgumentError, match="q"):
        ordinary.quantile(1.5)


def test_capping_at_the_ceiling_of_all_ordinary_tokens_leaves_them_alone(tiny_model, vector, ordinary):
    text = sample_ordinary_spans(tiny_model, QUESTIONS, SAMPLING)[3]
    mask = torch.zeros(1, len(text.tokens), dtype=torch.bool)
    mask[:, text.response_start :] = True
    hooks = pl.capping_hooks(vector, ceiling=ordinary.quantile(1.0) + 1e-3, positions=mask)
    tokens = torch.tensor([text.tokens])
    with torch.no_grad():
        capped = tiny_model.run_with_hooks(tokens, fwd_hooks=hooks)
        torch.testing.assert_close(capped, tiny_model(tokens))


def test_the_bundled_questions_are_distinct_and_touch_no_trait():
    questions = load_ordinary_questions()
    assert len(set(questions)) == len(questions) == 40
    for trait in map(pl.load_trait, pl.list_traits()):
        assert not set(questions) & {*trait.extraction_questions, *trait.evaluation_questions}


def test_bad_input_is_refused(tiny_model, vector, tiny_folder):
    with pytest.raises(InvalidArgumentError, match="questions"):
        pl.measure_ordinary_projections(tiny_model, vector, questions=[])
    other = make_vector(pl.load_model(tiny_folder("qwen2"), backend="bridge", dtype="float32", device="cpu"))
    with pytest.raises(ModelMismatchError):
        pl.measure_ordinary_projections(tiny_model, other)


def test_a_model_that_carries_hooks_has_no_ordinary_responses(tiny_model, vector):
    idle = ("blocks.1.hook_resid_post", lambda residual, hook: residual)
    with tiny_model.hooks(fwd_hooks=[idle]), pytest.raises(HooksPresentError):
        pl.measure_ordinary_projections(tiny_model, vector, questions=QUESTIONS[:2])


@pytest.fixture
def sampled(monkeypatch):
    """What sampling is asked for; its responses are empty but for the second question's."""
    seen = SimpleNamespace()

    def sample(model, requests, settings):
        seen.requests, seen.settings = requests, settings
        return [
            SimpleNamespace(request=r, thought=None, tokens=(5, 6) if i == 1 else ()) for i, r in enumerate(requests)
        ]

    monkeypatch.setattr("persona_lens.evaluation.ordinary.sample_rollouts", sample)
    return seen


def test_responses_are_sampled_with_the_seed_length_and_temperature_given(tiny_model, sampled):
    sample_ordinary_spans(tiny_model, QUESTIONS[:3], pl.Sampling(max_new_tokens=9, temperature=0.5, seed=7))
    assert (sampled.settings.max_new_tokens, sampled.settings.temperature) == (9, 0.5)
    assert [request.question for request in sampled.requests] == QUESTIONS[:3]
    own = [request.seed for request in sampled.requests]
    sample_ordinary_spans(tiny_model, QUESTIONS[:3], pl.Sampling(max_new_tokens=9, temperature=0.5, seed=8))
    assert len({*own, *(request.seed for request in sampled.requests)}) == 6


def test_empty_responses_are_left_out_and_only_empty_ones_are_refused(tiny_model, sampled):
    (text,) = sample_ordinary_spans(tiny_model, QUESTIONS[:3], pl.Sampling(max_new_tokens=9, temperature=1.0, seed=0))
    assert text.tokens[text.response_start :] == (5, 6)
    with pytest.raises(InvalidArgumentError, match="not empty"):
        sample_ordinary_spans(tiny_model, QUESTIONS[:1], SAMPLING)
