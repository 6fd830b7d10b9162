import pytest
import torch

import persona_lens as pl
from persona_lens.errors import ContextLengthError, InvalidArgumentError
from tests.backends import BACKENDS

GREEDY = pl.Sampling(max_new_tokens=12, temperature=0.0)


@pytest.fixture(scope="module", params=BACKENDS)
def model(request, tiny_folder):
    return pl.load_model(tiny_folder("llama"), backend=request.param, dtype="float32", device="cpu")


def make_vector(model):
    info = pl.describe_model(model)
    directions = torch.randn(info.n_layers, info.d_model, generator=torch.Generator().manual_seed(0))
    return pl.PersonaVector("loud", info, {"response_mean": directions})


def sample(model, *, intervention=pl.interventions.NOTHING, system=None):
    request = pl.models.RolloutRequest("Who?", (0,), system, intervention=intervention)
    (found,) = pl.models.sample_rollouts(model, [request], GREEDY)
    return found.response


@pytest.mark.parametrize("system", [None, "Shout!"])
def test_an_answer_is_what_sampling_in_batches_draws(model, system):
    assert pl.ask(model, "Who?", system=system, sampling=GREEDY) == sample(model, system=system)


def test_a_conversation_is_answered_as_the_question_that_it_is(model):
    messages = [{"role": "system", "content": "Shout!"}, {"role": "user", "content": "Who?"}]
    assert pl.ask(model, messages, sampling=GREEDY) == sample(model, system="Shout!")


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (" ", r"`question` must hold a text\. Got ' '"),
        ([{"role": "usr", "content": "Who?"}], r"`messages` must have the roles system, .*Got 'usr'"),
        (
            [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}],
            r"`messages` must end with a turn that the assistant answers\. Got 'assistant'",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_before_the_model_runs(model, question, message):
    def refuse(residual, hook):
        pytest.fail("the model ran")

    hooks = [("blocks.0.hook_resid_post", refuse)]
    with model.hooks(fwd_hooks=hooks), pytest.raises(InvalidArgumentError, match=message):
        pl.ask(model, question, sampling=GREEDY)


def test_inside_a_block_the_answer_is_steered_from_the_last_prompt_token_on(model):
    vector = make_vector(model)
    done = pl.steer(vector, layer=1, coefficient=4.0)
    with pl.steering(model, vector, layer=1, coefficient=4.0, positions="response"):
        steered = pl.ask(model, "Who?", sampling=GREEDY)
    assert steered == sample(model, intervention=done)
    assert steered != pl.ask(model, "Who?", sampling=GREEDY)
    assert "generate_stream" not in vars(model)


def test_a_users_own_hooks_act_too(model):
    plain = pl.ask(model, "Who?", sampling=GREEDY)
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", lambda residual, hook: -residual)]):
        assert pl.ask(model, "Who?", sampling=GREEDY) != plain


def test_the_seed_and_nothing_else_draws_the_answer(model):
    hot = [pl.Sampling(max_new_tokens=24, temperature=2.0, seed=seed) for seed in (1, 1, 2)]
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (pl.ask(model, "Who?", sampling=one) for one in hot)
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), before)


class Pieces:
    def __init__(self):
        self.written = []

    def write(self, text):
        self.written.append(text)

    def flush(self):
        pass


def test_what_is_streamed_is_the_answer_in_whole_characters(model):
    """The tiny model's tokens are bytes, so nearly every character that is not ASCII takes several."""
    stream, hot = Pieces(), pl.Sampling(max_new_tokens=60, temperature=3.0, seed=3)
    answer = pl.ask(model, "Who?", sampling=hot, stream=stream)
    assert "".join(stream.written) == answer + "\n"
    assert len(stream.written) > 5
    assert not any(piece.endswith("\N{REPLACEMENT CHARACTER}") for piece in stream.written[:-1])


def test_an_answer_ends_before_any_of_the_stop_tokens(model):
    whole = model.tokenizer(pl.ask(model, "Who?", sampling=GREEDY))["input_ids"]
    stop = whole[4]
    stopped = pl.Sampling(max_new_tokens=12, temperature=0.0, stop_tokens=frozenset({stop, 3}))
    assert model.tokenizer(pl.ask(model, "Who?", sampling=stopped))["input_ids"] == whole[: whole.index(stop)]


def test_a_question_that_leaves_no_room_for_the_answer_is_refused_before_the_model_runs(model, monkeypatch):
    monkeypatch.setattr(type(model), "generate_stream", lambda *args, **kwargs: pytest.fail("ran"))
    with pytest.raises(ContextLengthError):
        pl.ask(model, "Who?" * 200, sampling=GREEDY)


def test_a_question_that_spells_a_control_token_is_answered_as_text_and_that_is_said(model):
    with pytest.warns(pl.errors.ControlTextWarning, match=r"1 of 1 texts spells control tokens, <\|im_end\|>"):
        pl.ask(model, "Who?<|im_end|>", sampling=GREEDY)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_whose_numbers_overflow_is_an_error(tiny_folder, temperature):
    model = pl.load_model(tiny_folder("llama"), dtype="float16", device="cpu")
    shift = pl.tensors.Add(torch.ones(model.cfg.d_model), 1e6)
    sampling = pl.Sampling(max_new_tokens=4, temperature=temperature)
    with (
        pl.hooked(model, pl.Intervention.of(1, shift)),
        pytest.raises(pl.errors.NonFiniteError, match="response token 0"),
    ):
        pl.ask(model, "Who?", sampling=sampling)
    pl.ask(model, "Who?", sampling=sampling)
