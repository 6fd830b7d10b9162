import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import persona_lens as pl
from persona_lens.errors import (
    ArgumentTypeError,
    InvalidArgumentError,
    ModelBusyError,
    ModelMismatchError,
    NonFiniteError,
)
from persona_lens.monitoring import GoOn, PersonaMonitor, SteerWith, Stop, stream_tokens
from persona_lens.monitoring.ordinary_responses import read_sampled_responses, summarize_responses
from persona_lens.streams import Stream
from tests.chat_templates import save_thinker
from tests.interventions.test_steering import make_vector
from tests.monitoring.examples import LAYERS, ORDINARY

ASK = [{"role": "user", "content": "Who?"}]
HOT = pl.Sampling(max_new_tokens=24, temperature=2.0, seed=3)
RESPONSES = pl.Sampling(max_new_tokens=24, temperature=2.0, rollouts=4)


@pytest.fixture(scope="module")
def speaking(model, vectors):
    return PersonaMonitor.calibrate(
        model, vectors, LAYERS, ordinary=ORDINARY, responses=RESPONSES, quantiles=(0.05, 0.5)
    )


def shift(model, vectors, coefficient):
    """Moves the projection that the monitor reads for the first trait, far beyond anything ordinary."""
    return pl.steer(vectors["loud"], layer=LAYERS["loud"], coefficient=coefficient)


def hooks_on(model):
    return [name for name, point in model.hook_dict.items() if point.fwd_hooks]


def test_readings_are_the_streams_projections_at_the_traits_layers_with_their_running_means(model, vectors, speaking):
    read = list(speaking.stream(model, ASK, sampling=HOT))
    tokens = list(stream_tokens(model, ASK, vectors, sampling=HOT))
    assert [one.token_id for one in read] == [one.token_id for one in tokens]
    assert "".join(one.text for one in read) == pl.ask(model, ASK, sampling=HOT)
    for index, name in enumerate(vectors):
        expected = torch.stack([one.projections[index, LAYERS[name]] for one in tokens]).double()
        assert [one.of(name).projection for one in read] == pytest.approx(expected.tolist(), abs=1e-4)
        means = expected.cumsum(0) / torch.arange(1, len(expected) + 1)
        assert [one.of(name).mean for one in read] == pytest.approx(means.tolist(), abs=1e-4)


def test_calibration_learns_from_the_models_own_answers_how_high_running_means_rise(model, vectors, speaking):
    known = {one.trait: one.responses for one in speaking.traits}
    peaks, tokens = {name: [] for name in vectors}, {name: [] for name in vectors}
    for index, conversation in enumerate(ORDINARY):
        prompt = pl.models.encode_prompt(model.tokenizer, conversation).tokens
        requests = [
            pl.models.SampleRequest(prompt, (0, Stream.ORDINARY_RESPONSES, index, rollout)) for rollout in range(4)
        ]
        stops = pl.Sampling(max_new_tokens=24, temperature=2.0, stop_tokens=frozenset({256, 257}))
        for _, response in list(pl.models.sample_stream(model, requests, stops)):
            resid = pl.cache_residual_stream(model, torch.tensor([[*prompt, *response.tokens]]))[:, 0, len(prompt) :]
            for name, vector in vectors.items():
                found = pl.project(resid[LAYERS[name]], vector.unit(LAYERS[name])).double()
                tokens[name] += found.tolist()
                if len(found) >= 8:
                    peaks[name].append(float((found.cumsum(0) / torch.arange(1, len(found) + 1))[7:].max()))
    for name in vectors:
        assert known[name].peaks == pytest.approx(sorted(peaks[name]), abs=1e-3)
        assert known[name].n_tokens == len(tokens[name])
        assert known[name].n_short + len(known[name].peaks) == 20
        assert known[name].tokens[0] == pytest.approx(min(tokens[name]), abs=1e-3)
        assert known[name].tokens[-1] == pytest.approx(max(tokens[name]), abs=1e-3)


def test_ordinary_answers_alarm_as_often_as_the_thresholds_say(speaking):
    for one in speaking.traits:
        for quantile, threshold in zip(one.quantiles, one.response_thresholds, strict=True):
            share = sum(peak > threshold for peak in one.responses.peaks) / len(one.responses.peaks)
            assert share == pytest.approx(1 - quantile, abs=1 / len(one.responses.peaks))


def test_an_alarm_is_asked_at_the_eighth_token_at_the_earliest_and_only_above_a_threshold(model, vectors, speaking):
    asked = []

    def alarm(reading):
        asked.append(reading)
        return GoOn()

    read = list(speaking.stream(model, ASK, alarm=alarm, intervention=shift(model, vectors, 50.0), sampling=HOT))
    assert asked == [one for one in read if one.alert] == read[7:]
    assert all(one.of("loud").mean_quantile == (None if one.index < 7 else 1.0) for one in read)
    assert all(one.of("loud").quantile == 1.0 for one in read)
    assert all(one.acting == (1,) for one in read)
    asked.clear()
    away = list(speaking.stream(model, ASK, alarm=alarm, intervention=shift(model, vectors, -50.0), sampling=HOT))
    assert all(one.of("loud").alert == 0 for one in away)


def test_an_alarm_may_stop_the_answer_at_its_token(model, vectors, speaking):
    done = shift(model, vectors, 50.0)
    read = list(speaking.stream(model, ASK, alarm=lambda reading: Stop(), intervention=done, sampling=HOT))
    assert len(read) == 8
    assert not hooks_on(model)
    pl.ask(model, "Who?", sampling=HOT)


def test_an_alarm_may_steer_from_the_next_token_on(model, vectors, speaking):
    done, back = shift(model, vectors, 50.0), shift(model, vectors, -50.0)
    asked = []

    def alarm(reading):
        asked.append(reading.index)
        return SteerWith(back)

    read = list(speaking.stream(model, ASK, alarm=alarm, intervention=done, sampling=HOT))
    plain = list(speaking.stream(model, ASK, intervention=done, sampling=HOT))
    assert asked[0] == 7
    # What is drawn behind the alarm's token was drawn before it; the one after that is the first that may differ.
    assert [one.token_id for one in read[:9]] == [one.token_id for one in plain[:9]]
    assert [one.of("loud").projection for one in read[:8]] == [one.of("loud").projection for one in plain[:8]]
    difference = read[8].of("loud").projection - plain[8].of("loud").projection
    assert difference == pytest.approx(-50.0 * float(vectors["loud"].direction(1).norm()), rel=1e-3)


def test_heads_may_be_steered_by_an_alarm_too(model, vectors, speaking):
    head = pl.Intervention.of(0, pl.tensors.Add(torch.ones(model.cfg.d_head), 3.0), head=1)
    done = shift(model, vectors, 50.0)
    read = list(speaking.stream(model, ASK, alarm=lambda one: SteerWith(head), intervention=done, sampling=HOT))
    plain = list(speaking.stream(model, ASK, intervention=done, sampling=HOT))
    assert read[7].traits == plain[7].traits
    assert read[8].traits != plain[8].traits
    assert not hooks_on(model)


def test_an_alarm_that_raises_answers_nonsense_or_runs_the_model_leaves_no_hook_and_a_free_model(
    model, vectors, speaking
):
    def raising(reading):
        raise ZeroDivisionError

    alarms = {
        ZeroDivisionError: raising,
        ArgumentTypeError: lambda reading: "stop",
        ModelBusyError: lambda reading: pl.ask(model, "Who?", sampling=HOT),
    }
    for error, alarm in alarms.items():
        with pytest.raises(error):
            list(speaking.stream(model, ASK, alarm=alarm, intervention=shift(model, vectors, 50.0), sampling=HOT))
        assert not hooks_on(model)
        pl.ask(model, "Who?", sampling=HOT)


def test_a_stream_closed_early_leaves_no_hook_and_a_free_model(model, speaking):
    stream = speaking.stream(model, ASK, sampling=HOT)
    next(stream)
    assert hooks_on(model)
    stream.close()
    assert not hooks_on(model)
    pl.ask(model, "Who?", sampling=HOT)


def test_a_monitor_saved_before_there_were_thresholds_for_responses_still_streams_but_takes_no_alarm(
    model, monitor, speaking, tmp_path
):
    monitor.save(tmp_path / "monitor.json")
    content = json.loads((tmp_path / "monitor.json").read_text())
    for one in content["traits"]:
        del one["responses"]
    content.pop("checksum")
    (tmp_path / "old.json").write_text(json.dumps(content))
    old = PersonaMonitor.load(tmp_path / "old.json")
    read = list(old.stream(model, ASK, sampling=HOT))
    assert {(one.of("loud").quantile, one.alert) for one in read} == {(None, 0)}
    with pytest.raises(InvalidArgumentError, match="Calibrate"):
        old.stream(model, ASK, alarm=lambda reading: Stop())
    speaking.save(tmp_path / "new.json")
    again = PersonaMonitor.load(tmp_path / "new.json")
    assert list(again.stream(model, ASK, sampling=HOT)) == list(speaking.stream(model, ASK, sampling=HOT))


def test_another_models_monitor_is_refused(speaking, tiny_folder):
    other = pl.load_model(tiny_folder("qwen2"), dtype="float32", device="cpu")
    with pytest.raises(ModelMismatchError):
        speaking.stream(other, ASK)


def test_short_answers_count_neither_in_thresholds_nor_in_ranks():
    responses = [np.full(3, 9.0), np.full(7, 9.0), *(np.full(8, float(peak)) for peak in range(11))]
    known = summarize_responses(responses, RESPONSES)
    assert known.n_short == 2
    assert known.list_thresholds([0.5, 1.0]) == (5.0, 10.0)
    assert known.rank_mean(5.0) == 5 / 11
    assert known.rank_mean(-1.0) == 0.0


def test_an_alarm_about_a_response_that_nothing_reaches_is_refused(model, speaking):
    with pytest.raises(InvalidArgumentError, match="alarm"):
        speaking.stream(model, ASK, alarm=lambda reading: Stop(), sampling=replace(HOT, positions="prompt"))


def test_an_ordinary_answer_that_breaks_is_named_by_its_prompt(model):
    units, overflowing = torch.ones(1, model.cfg.d_model), lambda residual, hook: residual * torch.inf
    with (
        model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", overflowing)]),
        pytest.raises(NonFiniteError, match=r"prompts\[0\]"),
    ):
        read_sampled_responses(model, ORDINARY[:1], units, [1], RESPONSES, (0,))


def test_a_monitor_says_how_ordinary_answers_were_drawn_and_what_their_thresholds_are(speaking, monitor):
    assert speaking.provenance["responses"] == RESPONSES.to_json()
    assert monitor.provenance["responses"] is None
    for one in speaking.traits:
        assert f"{one.response_thresholds[0]:.2f} (5%)" in speaking._repr_html_()
    assert f"and {len(speaking.traits[0].responses.peaks)} ordinary responses" in repr(speaking)
    assert "ordinary responses" not in repr(monitor)


def test_template_arguments_reach_the_ordinary_conversations(tmp_path):
    model = pl.load_model(save_thinker(tmp_path, "qwen3"), dtype="float32", device="cpu")
    vectors = {"loud": make_vector(model)}

    def calibrate(arguments, responses=None):
        return PersonaMonitor.calibrate(
            model, vectors, {"loud": 1}, ordinary=ORDINARY, responses=responses, template_arguments=arguments
        )

    quick, plain = calibrate({"enable_thinking": False}, RESPONSES), calibrate(None, RESPONSES)
    assert quick.provenance["template_arguments"] == {"enable_thinking": False}
    assert "template_arguments" not in plain.provenance
    assert quick.traits[0].ordinary != plain.traits[0].ordinary
    assert quick.traits[0].responses.tokens != plain.traits[0].responses.tokens
    read = quick.watch(model, ORDINARY[0], template_arguments={"enable_thinking": False})
    assert read.readings[0].projection in quick.traits[0].ordinary
    with pytest.raises(InvalidArgumentError, match="unread"):
        calibrate({"unread": 1})


def test_calibration_refuses_answers_that_are_all_too_short(model, vectors):
    with pytest.raises(InvalidArgumentError, match="responses"):
        PersonaMonitor.calibrate(
            model, vectors, LAYERS, ordinary=ORDINARY, responses=pl.Sampling(max_new_tokens=4, temperature=0.0)
        )
