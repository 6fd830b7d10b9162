"""Ways to steer are brought to what they cost: a divergence, or a coherence."""

import math

import pytest
import torch

import persona_lens as pl
from persona_lens.evaluation.ordinary import sample_ordinary_spans
from persona_lens.interventions import NOTHING, Intervention
from persona_lens.reproduction.ways import DivergenceMeter, Way, find_strengths
from persona_lens.tensors import Add, Rotate


@pytest.fixture(scope="module")
def meter(tiny_model):
    spans = sample_ordinary_spans(tiny_model, None, pl.Sampling(max_new_tokens=6))
    return DivergenceMeter(tiny_model, spans[:3])


@pytest.fixture(scope="module")
def direction(tiny_model):
    return torch.randn(tiny_model.cfg.d_model, generator=torch.Generator().manual_seed(3))


def test_nothing_costs_nothing(meter):
    assert meter.measure(NOTHING) == 0


def test_what_is_measured_is_the_divergence_of_the_responses_tokens(tiny_model, meter, direction):
    done = Intervention.of(1, Add(direction, 0.5))
    expected = []
    for span in meter.spans:
        tokens = torch.tensor([span.tokens])
        plain = tiny_model(tokens).log_softmax(dim=-1)[0]

        def add(residual, hook, start=span.response_start - 1):
            residual = residual.clone()
            residual[:, start:] += 0.5 * direction
            return residual

        steered = tiny_model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_post", add)])
        log_q = steered.log_softmax(dim=-1)[0]
        where = slice(span.response_start - 1, span.response_end - 1)
        kl = (plain.exp() * (plain - log_q)).sum(dim=-1)[where]
        expected.append(kl.mean())
    assert meter.measure(done) == pytest.approx(float(torch.stack(expected).detach().mean()), rel=1e-3)
    assert len(meter.spans) == 3


def test_strengths_are_found_that_cost_what_was_asked(meter, direction):
    way = Way("random", "add", lambda strength: Intervention.of(1, Add(direction, strength)))
    targets = (0.001, 0.01, 0.05)
    found = find_strengths(way, meter, targets)
    for one, target in zip(found, targets, strict=True):
        assert abs(math.log(one.kl / target)) <= math.log(1.08)
        assert one.kl == pytest.approx(meter.measure(way.make(one.strength)))
    assert [one.strength for one in found] == sorted(one.strength for one in found)


def test_where_no_strength_costs_as_much_the_strongest_stands(meter, direction):
    way = Way("random", "rotate", lambda degrees: Intervention.of(1, Rotate(direction, degrees)), most=2.0, start=1.0)
    weak, strongest = find_strengths(way, meter, (1e-6, 50.0))
    assert strongest.strength == 2.0
    assert strongest.kl < 50
    assert weak.strength < strongest.strength
