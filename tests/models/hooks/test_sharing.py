"""One model, one user at a time: threads, iterators that are half read, and contexts that end in another order."""

import copy
import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import ModelBusyError
from persona_lens.models.engine.activations import pool_residual_stream
from persona_lens.models.engine.likelihood import mean_log_likelihoods
from persona_lens.models.engine.requests import SampleRequest
from persona_lens.models.engine.sampling import sample_recorded_stream, sample_stream
from persona_lens.models.hooks import sharing
from persona_lens.models.text.spans import TokenSpans
from tests.backends import BACKENDS

SAMPLING = pl.Sampling(max_new_tokens=12)
PROMPT = torch.tensor([[256, 72, 105, 33]])


@pytest.fixture(scope="module", params=BACKENDS)
def model(request, tiny_folder):
    return pl.load_model(tiny_folder("llama"), backend=request.param, dtype="float32", device="cpu")


def add(model, layer=1, coefficient=6.0):
    shift = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(layer))
    return pl.Intervention.of(layer, pl.tensors.Add(shift, coefficient))


def requests(intervention=pl.interventions.NOTHING, n=6):
    return [SampleRequest((256, 72, 105, 33 + i), (i,), intervention) for i in range(n)]


def sample(model, intervention=pl.interventions.NOTHING):
    return {i: one.tokens for i, one in sample_stream(model, requests(intervention), SAMPLING)}


def count_hooks(model):
    return sum(len(point.fwd_hooks) for point in {id(p): p for p in model.hook_dict.values()}.values())


def logits(model):
    with torch.no_grad():
        return model(PROMPT)


def test_samples_of_two_threads_are_those_of_each_alone(model):
    ways = [pl.interventions.NOTHING, add(model), add(model, 2)] * 2
    alone = [sample(model, way) for way in ways]
    with ThreadPoolExecutor(len(ways)) as pool:
        together = list(pool.map(lambda way: sample(model, way), ways))
    assert together == alone
    assert count_hooks(model) == 0


def test_answers_scores_and_readings_of_two_threads_are_those_of_each_alone(model):
    tokens = torch.tensor([[256, 5, 6, 7, 8]])
    spans = [TokenSpans.join((256, 5), (6, 7, 8))]

    def read():
        return pl.cache_residual_stream(model, tokens)

    def score():
        return mean_log_likelihoods(model, spans)

    def answer():
        return pl.ask(model, "Who?", sampling=SAMPLING)

    alone = [read(), score(), answer()]
    with ThreadPoolExecutor(6) as pool:
        found = [pool.submit(work) for _ in range(3) for work in (read, score, answer)]
        for index, one in enumerate(found):
            expected = alone[index % 3]
            assert torch.equal(one.result(), expected) if index % 3 == 0 else one.result() == expected


def test_answers_of_two_models_do_not_share_random_numbers(tiny_folder):
    models = [pl.load_model(tiny_folder("llama"), dtype="float32", device="cpu") for _ in range(2)]
    long = pl.Sampling(max_new_tokens=40, seed=3)
    alone = pl.ask(models[0], "Who?", sampling=long)
    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(lambda model: pl.ask(model, "Who?", sampling=long), models)) == {alone}


def test_another_thread_may_not_use_a_model_that_carries_ones_hooks(model):
    with ThreadPoolExecutor(1) as other, pl.hooked(model, add(model)):
        steered = logits(model)
        for use in (sample, logits, lambda model: pl.ask(model, "Who?", sampling=SAMPLING)):
            with pytest.raises(ModelBusyError, match="thread"):
                other.submit(use, model).result(timeout=60)

        def hook():
            with pl.hooked(model, add(model, 2)):
                pass

        with pytest.raises(ModelBusyError, match="thread"):
            other.submit(hook).result(timeout=60)
        assert torch.equal(logits(model), steered)
    assert count_hooks(model) == 0
    with ThreadPoolExecutor(1) as other:
        assert other.submit(sample, model).result(timeout=60) == sample(model)


@pytest.mark.parametrize("stream", [sample_stream, sample_recorded_stream, "pooled"])
def test_a_half_read_iterator_lets_nothing_else_run_and_is_not_changed_by_it(model, stream):
    spans = [TokenSpans.join((256, 72), (105, 33 + i)) for i in range(4)]

    def start():
        if stream == "pooled":
            return pool_residual_stream(model, spans)
        return stream(model, requests(add(model)), SAMPLING)

    whole = dict(start())
    steps = start()
    index, first = next(steps)
    for use in (logits, sample, lambda model: pl.ask(model, "Who?", sampling=SAMPLING)):
        with pytest.raises(ModelBusyError, match="half read"):
            use(model)
    with pytest.raises(ModelBusyError, match="half read"), pl.hooked(model, add(model)):
        pass
    rest = {index: first, **dict(steps)}
    assert repr(rest) == repr(whole)
    assert count_hooks(model) == 0
    logits(model)


def test_an_iterator_that_is_thrown_away_leaves_the_steering_around_it_alone(model):
    with pl.hooked(model, add(model)):
        steered = logits(model)
        steps = sample_stream(model, requests(), SAMPLING)
        next(steps)
        del steps
        gc.collect()
        assert torch.equal(logits(model), steered)
    assert count_hooks(model) == 0


def test_another_thread_waits_for_an_iterator_and_gives_up_if_it_is_not_read_on(model, monkeypatch):
    monkeypatch.setattr(sharing, "_PATIENCE", 0.2)
    expected = sample(model)
    steps = sample_stream(model, requests(), SAMPLING)
    next(steps)
    with ThreadPoolExecutor(1) as other:
        with pytest.raises(ModelBusyError, match="does not go on"):
            other.submit(sample, model).result(timeout=60)
        waiting = other.submit(sample, model)
        list(steps)
        assert waiting.result(timeout=60) == expected


def test_contexts_that_end_in_another_order_take_off_their_own_hooks_alone(model):
    plain = logits(model)
    alone = {}
    for layer in (0, 1):
        with pl.hooked(model, add(model, layer)):
            alone[layer] = logits(model)
    first, second = (pl.hooked(model, add(model, layer)) for layer in (0, 1))
    first.__enter__()
    second.__enter__()
    both = logits(model)
    first.__exit__(None, None, None)
    assert torch.equal(logits(model), alone[1])
    second.__exit__(None, None, None)
    assert torch.equal(logits(model), plain)
    assert not torch.equal(both, alone[1])
    assert count_hooks(model) == 0
    assert model.context_level == 0


def test_a_users_own_hooks_and_ours_end_in_any_order(model):
    own = [("blocks.0.hook_resid_post", lambda residual, hook: residual + 1)]
    with model.hooks(fwd_hooks=own):
        only_own = logits(model)
    with ExitStack() as stack:
        ours = pl.hooked(model, add(model))
        ours.__enter__()
        stack.enter_context(model.hooks(fwd_hooks=own))
        logits(model)
        ours.__exit__(None, None, None)
        assert torch.equal(logits(model), only_own)
    assert count_hooks(model) == 0


def test_generate_is_the_models_own_again_whatever_the_order_in_which_contexts_end(model):
    own = model.generate
    prompt = PROMPT[:, :3]

    def generate():
        return model.generate(prompt, max_new_tokens=4, do_sample=False, verbose=False).tolist()

    plain = generate()
    first, second = (
        pl.hooked(model, pl.interventions.intervention_hooks(add(model, layer), positions="response"))
        for layer in (0, 1)
    )
    first.__enter__()
    second.__enter__()
    generate()
    first.__exit__(None, None, None)
    generate()  # the second's positions still follow it
    second.__exit__(None, None, None)
    assert model.generate == own
    assert "generate" not in model.__dict__
    assert generate() == plain


def test_between_two_steps_of_a_stream_other_calls_are_not_taken_for_its_own(model):
    hooks = pl.interventions.intervention_hooks(add(model), positions="response")
    options = {"max_new_tokens": 4, "max_tokens_per_yield": 1, "do_sample": False, "verbose": False}
    with pl.hooked(model, hooks):
        whole = [step.tolist() for step in model.generate_stream(PROMPT, **options)]
        steps = model.generate_stream(PROMPT, **options)
        read = [next(steps).tolist()]
        with pytest.raises(pl.errors.InvalidArgumentError, match="prompt_length"):
            logits(model)  # nothing says where the prompt of a plain call ends
        inner = [step.tolist() for step in model.generate_stream(PROMPT[:, :2], **options)]
        read += [step.tolist() for step in steps]
    assert read == whole
    with pl.hooked(model, hooks):
        assert inner == [step.tolist() for step in model.generate_stream(PROMPT[:, :2], **options)]


def test_an_error_leaves_the_model_free(model):
    with pytest.raises(pl.errors.HookNeverFiredError), pl.hooked(model, add(model)):
        pass

    def fail(residual, hook):
        raise ZeroDivisionError

    with pl.hooked(model, [("blocks.0.hook_resid_post", fail)]), pytest.raises(ZeroDivisionError):
        sample(model)
    with ThreadPoolExecutor(1) as other:
        other.submit(sample, model).result(timeout=60)
    assert count_hooks(model) == 0


def test_a_models_copy_is_another_model(model):
    with pl.hooked(model, add(model)):
        logits(model)
    other = copy.deepcopy(model)
    with pl.hooked(model, add(model)), ThreadPoolExecutor(1) as pool:
        logits(model)
        pool.submit(sample, other).result(timeout=60)


def test_whoever_waits_goes_on_as_soon_as_the_work_ends(model):
    inside, done = threading.Event(), threading.Event()

    def work():
        with sharing.working(model):
            inside.set()
            done.wait(30)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(30)
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(sample, model)
        time.sleep(0.1)
        assert not waiting.done()
        done.set()
        waiting.result(timeout=60)
    thread.join()
