import re
from dataclasses import replace

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, LayerOutOfRangeError, ModelMismatchError
from tests.interventions.test_steering import make_vector

CHAT = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So. <b>{x}</b>"}]


@pytest.fixture(scope="module")
def vector(tiny_model):
    return make_vector(tiny_model)


@pytest.fixture(scope="module")
def start(tiny_model):
    return pl.models.encode_conversation(tiny_model.tokenizer, CHAT).response_start


def test_steering_shows_at_the_tokens_it_reached_and_nowhere_else(tiny_model, vector, start):
    hooks = pl.steering_hooks(vector, layer=1, coefficient=2.0, positions="response", prompt_length=start)
    trace = pl.trace(tiny_model, CHAT, vector, hooks)
    change = trace.after - trace.before
    reached = torch.arange(len(trace.tokens)) >= start - 1
    assert torch.equal(trace.steered[1], reached)
    assert not trace.steered[[0, 2]].any()
    torch.testing.assert_close(change[1], reached * 2 * vector.norms[1], atol=1e-4, rtol=1e-4)
    assert change[0].abs().max() == 0
    assert (change[2][reached].abs() > 1e-3).all()  # felt downstream
    assert change[2][~reached].abs().max() == 0


def test_without_hooks_nothing_changes_and_the_projections_are_plain_ones(tiny_model, vector, start):
    trace = pl.trace(tiny_model, CHAT, vector)
    assert torch.equal(trace.before, trace.after)
    assert not trace.steered.any()
    tokens = pl.models.encode_conversation(tiny_model.tokenizer, CHAT).tokens
    resid = pl.cache_residual_stream(tiny_model, torch.tensor([tokens]))[:, 0]
    expected = torch.stack([pl.project(resid[layer], vector.unit(layer)) for layer in range(3)])
    torch.testing.assert_close(trace.before, expected)
    assert trace.read.nonzero()[0].item() == start
    torch.testing.assert_close(trace.response_mean[:, 0], expected[:, trace.read].mean(-1))
    assert "".join(trace.tokens[start:]).startswith("So. <b>{x}</b>")


def test_ablation_everywhere_is_traced_everywhere(tiny_model, vector):
    trace = pl.trace(tiny_model, CHAT, vector, pl.ablation_hooks(vector))
    assert trace.steered.all()
    assert trace.after.abs().max() < 1e-4


def test_a_caption_speaks_of_hooks_only_where_there_are_some(tiny_model, vector):
    plain = pl.trace(tiny_model, CHAT, vector).plot().html
    hooked = (
        pl.trace(tiny_model, CHAT, vector, pl.steering_hooks(vector, layer=2, coefficient=2.0)).plot(layers=[0]).html
    )
    assert [("with them" in one, "Underlined" in one) for one in (plain, hooked)] == [(False, False), (True, True)]


def test_the_coloured_text_escapes_what_the_model_said(tiny_model, vector, tmp_path):
    chat = [CHAT[0], {"role": "assistant", "content": "<script>alert('x')</script>&\""}]
    trace = pl.trace(tiny_model, chat, vector, pl.steering_hooks(vector, layer=1))
    picture = trace.plot(layers=[0, 1, 2])
    assert "<script" not in picture.html
    text = re.sub(r"</span>|<span[^>]*>", "", picture.html)
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&amp;&quot;" in text
    assert picture.html.count("Layer ") == 3
    said = "; a notebook shows it, .write_html(path) writes a page)"
    assert repr(picture) == f"ColouredTokens({len(trace.tokens)} tokens, 3 layers{said}"
    assert repr(trace.plot(layer=1)) == f"ColouredTokens({len(trace.tokens)} tokens, layer 1{said}"
    picture.write_html(tmp_path / "trace.html")
    assert (tmp_path / "trace.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_layer_shown_is_the_one_most_changed_or_the_middle(tiny_model, vector):
    assert "Layer 1," in pl.trace(tiny_model, CHAT, vector).plot().html
    hooks = pl.steering_hooks(vector, layer=2, coefficient=3.0)
    assert "Layer 2," in pl.trace(tiny_model, CHAT, vector, hooks)._repr_html_()
    with pytest.raises(LayerOutOfRangeError):
        pl.trace(tiny_model, CHAT, vector).plot(layer=3)


def test_a_conversation_must_end_with_a_response(tiny_model, vector):
    with pytest.raises(InvalidArgumentError, match="assistant"):
        pl.trace(tiny_model, CHAT[:1], vector)


def test_a_trace_says_what_it_holds(tiny_model, vector):
    assert "3 layers" in repr(pl.trace(tiny_model, CHAT, vector))


def test_only_the_responses_own_tokens_are_read(tiny_model, vector):
    encoded = pl.models.encode_conversation(tiny_model.tokenizer, CHAT)
    trace = pl.trace(tiny_model, CHAT, vector)
    assert torch.equal(trace.read, encoded.is_response)
    assert len(trace.tokens) > encoded.response_end  # the end of the turn is there, and not read


def test_tokens_that_any_hook_of_a_layer_reached_are_marked(tiny_model, vector, start):
    n_pos = len(pl.models.encode_conversation(tiny_model.tokenizer, CHAT).tokens)
    masks = torch.eye(n_pos)[[start, start + 2]] > 0
    hooks = [pair for mask in masks for pair in pl.steering_hooks(vector, layer=1, positions=mask[None])]
    assert torch.equal(pl.trace(tiny_model, CHAT, vector, hooks).steered[1], masks.any(dim=0))


def test_a_vector_of_another_model_is_refused(tiny_model, vector):
    other = pl.PersonaVector("loud", replace(vector.model, fingerprint="another"), {"response_mean": vector.directions})
    with pytest.raises(ModelMismatchError):
        pl.trace(tiny_model, CHAT, other)


def test_one_layer_and_several_are_not_asked_for_at_once_and_none_is_no_request(tiny_model, vector):
    trace = pl.trace(tiny_model, CHAT, vector)
    with pytest.raises(InvalidArgumentError, match="layers"):
        trace.plot(1, layers=[0, 2])
    with pytest.raises(InvalidArgumentError, match="at least one layer"):
        trace.plot(layers=[])
    assert trace.plot(layers="all").html == trace.plot(layers=[0, 1, 2]).html


def test_an_intervention_is_traced_as_its_hooks_are(tiny_model, vector, start):
    done = pl.steer(vector, layer=1, coefficient=2.0)
    hooks = pl.interventions.intervention_hooks(done, positions="response", prompt_length=start)
    expected, found = (
        pl.trace(tiny_model, CHAT, vector, hooks),
        pl.trace(tiny_model, CHAT, vector, done, positions="response"),
    )
    assert torch.equal(found.after, expected.after)
    assert torch.equal(found.steered, expected.steered)
    everywhere = pl.trace(tiny_model, CHAT, vector, done)
    assert everywhere.steered[1].all()


def test_a_trace_survives_the_round_trip(tiny_model, vector, tmp_path):
    trace = pl.trace(tiny_model, CHAT, vector, pl.steer(vector, layer=1))
    trace.save(tmp_path / "trace.json")
    again = pl.evaluation.Trace.load(tmp_path / "trace.json")
    assert again.tokens == trace.tokens
    assert torch.equal(again.after, trace.after)
    assert torch.equal(again.steered, trace.steered)
