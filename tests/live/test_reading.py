import math
from dataclasses import replace

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, NonFiniteError
from persona_lens.live.reading import split_text
from tests.tiny import make_tokenizer

CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": "Hé 🐙"},
]


def test_each_token_has_its_message_and_texts_join_up_to_the_rendering(tiny_model, vectors):
    read = pl.live.read_conversation(tiny_model, CHAT, vectors)
    variant = read.of(0.0)
    for turn, message in enumerate(CHAT):
        texts = [text for text, whose in zip(variant.texts, variant.turns, strict=True) if whose == turn]
        assert "".join(texts) == message["content"]
    whole = pl.models.encode_conversation(tiny_model.tokenizer, CHAT)
    assert "".join(variant.texts) == whole.text
    assert read.roles == ("system", "user", "assistant")


def test_projections_are_those_of_the_residual_stream_on_unit_vectors(tiny_model, vectors):
    variant = pl.live.read_conversation(tiny_model, CHAT, vectors).of(0.0)
    tokens = torch.tensor([pl.models.encode_conversation(tiny_model.tokenizer, CHAT).tokens])
    residual = pl.cache_residual_stream(tiny_model, tokens)[:, 0]
    for index, vector in enumerate(vectors.values()):
        for layer in range(3):
            expected = residual[layer] @ vector.unit(layer)
            torch.testing.assert_close(variant.projections[index, layer], expected, rtol=1e-4, atol=1e-4)


def test_a_question_is_answered_under_each_coefficient_and_read_as_it_was_sampled(tiny_model, vectors):
    sampling = pl.Sampling(max_new_tokens=6, seed=3)
    read = pl.live.read_conversation(
        tiny_model, "Hi", vectors, coefficients=(4.0, 0.0), along="kind", layer=1, sampling=sampling
    )
    assert read.coefficients == (0.0, 4.0)
    assert read.roles == ("user", "assistant")
    assert (read.along, read.layer) == ("kind", 1)
    plain, steered = read.variants
    assert not plain.steered.any()
    n_prompt = len(pl.models.encode_prompt(tiny_model.tokenizer, [{"role": "user", "content": "Hi"}]).tokens)
    assert steered.steered.tolist() == [at >= n_prompt - 1 for at in range(len(steered.texts))]
    # Before the steered tokens nothing changes; at the last prompt token the projection moves by the vector's length.
    torch.testing.assert_close(plain.projections[..., : n_prompt - 1], steered.projections[..., : n_prompt - 1])
    moved = steered.projections[1, 1, n_prompt - 1] - plain.projections[1, 1, n_prompt - 1]
    assert float(moved) == pytest.approx(4 * float(vectors["kind"].direction(1).norm()), rel=1e-4)
    expected = steered.projections[1, 1, n_prompt:].mean()
    assert float(read.response_mean(4.0)[1, 1]) == pytest.approx(float(expected))


def test_the_record_comes_back_from_json_with_what_is_not_known(tiny_model, vectors):
    read = pl.live.read_conversation(tiny_model, CHAT, vectors)
    again = pl.live.ReadConversation.from_json(read.to_json())
    assert torch.equal(again.variants[0].projections, read.variants[0].projections)
    assert again.thresholds.isnan().all()
    assert math.isnan(float(again.ordinary_mean[0, 0]))


def test_what_is_ordinary_gives_mean_deviation_and_threshold(tiny_model, vectors):
    sampling = pl.Sampling(max_new_tokens=4)
    ordinary = pl.measure_ordinary_projections(
        tiny_model, vectors["kind"], questions=["Hi", "Well?"], sampling=sampling
    )
    read = pl.live.read_conversation(tiny_model, CHAT, vectors, ordinary={"kind": ordinary})
    assert torch.equal(read.thresholds[1], ordinary.quantile(0.99))
    assert torch.equal(read.ordinary_std[1], ordinary.std)
    assert read.thresholds[0].isnan().all()


def test_an_answer_that_was_given_is_read_only_while_the_numbers_are_finite(tiny_model, vectors):
    overflowing = [("blocks.1.hook_resid_post", lambda residual, hook: residual * math.inf)]
    with tiny_model.hooks(fwd_hooks=overflowing), pytest.raises(NonFiniteError, match="residual stream of layer 1"):
        pl.live.read_conversation(tiny_model, CHAT, vectors)


@pytest.mark.parametrize("setting", [{"layer": True}, {"layer": 1.5}])
def test_a_layer_that_is_no_whole_number_is_no_place_to_steer(tiny_model, vectors, setting):
    tried = {"loud": replace(vectors["loud"], provenance={"setting": setting})}
    with pytest.raises(InvalidArgumentError, match="as whole number"):
        pl.live.read_conversation(tiny_model, CHAT, tried, coefficients=(1.0,))


def test_texts_grow_by_whole_characters():
    tokenizer = make_tokenizer()
    tokens = tokenizer("é🐙!")["input_ids"]
    assert split_text(tokenizer, tokens) == ["", "é", "", "", "", "🐙", "!"]
    assert split_text(tokenizer, tokens[:1]) == ["\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("coefficients", {"coefficients": ()}),
        ("coefficients", {"coefficients": (1.0, 1.0)}),
        ("along", {"along": "shy"}),
        ("layer", {"coefficients": (1.0,)}),
        ("conversation", {"conversation": " "}),
    ],
)
def test_what_does_not_fit_is_refused(tiny_model, vectors, name, arguments):
    with pytest.raises(InvalidArgumentError, match=f"`{name}`"):
        pl.live.read_conversation(tiny_model, **{"conversation": "Hi", "vectors": vectors, **arguments})
