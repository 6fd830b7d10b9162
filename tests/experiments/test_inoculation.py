"""A trait kept out at equal task loss: the script run as a user runs it, and comparisons where the answer is known."""

import importlib
import json

import numpy as np
import pytest
import torch

import persona_lens as pl
from persona_lens.finetuning.task_loss import read_task
from persona_lens.tensors import Add
from persona_lens.traits import list_written_traits, load_trait
from tests.experiments.scripts import ROOT, run, save_talkative

BASE, SHORT, NONE = "base model", "no prevention, half of the rows", "no prevention"
PROMPTED, IRRELEVANT = "prompt in training", "irrelevant prompt in training"
STEERED, RANDOM = "steered in training", "random direction in training"
AFTERWARDS, RANDOM_AFTERWARDS = "steered afterwards", "random direction afterwards"
N_QUESTIONS = 8


@pytest.fixture
def results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module("results.inoculation")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module("inoculation")


USUAL = {  # loss, then score of the first judge and, where it is another, of the second
    BASE: (2.0, 10.0),
    SHORT: (1.0, 50.0),
    NONE: (0.5, 90.0),
    PROMPTED: (0.5, 30.0),
    IRRELEVANT: (0.5, 90.0),
    STEERED: (0.75, 71.0),  # as plain training that learnt as little
    RANDOM: (0.5, 90.0),
    AFTERWARDS: (1.5, 10.0),  # 20 below the line
    RANDOM_AFTERWARDS: (1.0, 50.0),
}
TITLE = "Surely below plain training and the floor for both judges at equal task loss, "


def make(results, method, seed, loss, score, second=None, *, coherence=80.0, row_noise=0.1):
    """A model with a loss and with a score, but for a little by question and seed that all models share."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(N_QUESTIONS, generator=generator)
    scores = torch.stack([score + noise, (score if second is None else second) + noise])
    losses = loss + row_noise * torch.tensor([-1.0, 1.0, -1.0, 1.0])
    coherences = torch.full((N_QUESTIONS,), coherence) + noise
    shift = torch.zeros(N_QUESTIONS)
    return results.Prevented(method, seed, losses, scores, coherences, shift, "NO!", 1.0, 1.0)


def make_trait(results, changed=None, name="loud", **options):
    ways = USUAL | (changed or {})
    measured = tuple(
        make(results, method, seed, *values, **options) for seed in range(3) for method, values in ways.items()
    )
    names = (f"reader (a), valid for {name}", f"sentences (b), partly valid for {name}")
    return results.TraitPrevented(name, names, (), measured)


def gather(results, *traits):
    config = {"model": {"name": "tiny"}, "profile": {"n_rows": 4, "n_held_out": 2, "coefficient": 3.0}}
    return results.Inoculation(config=config, layer=1, traits=traits)


def read(results, loss, losses, scores):
    return results.read_at_loss(*(np.array(each, dtype=float) for each in (loss, losses, scores)))


def test_plain_training_is_read_at_a_loss_on_the_line_from_one_training_to_the_next(results):
    asked = [2.1, 2.0, 1.5, 1.0, 0.75, 0.5, 0.4]
    line = [[point] * len(asked) for point in (2.0, 1.0, 0.5)], [[score] * len(asked) for score in (10, 50, 90)]
    assert read(results, asked, *line) == pytest.approx([10, 10, 30, 50, 70, 90, 90])


def test_a_half_training_whose_loss_is_not_between_the_others_bends_no_line(results):
    scores = [[10] * 2, [50] * 2, [90] * 2]
    for half in (0.4, 2.2):  # it learnt the task better than the whole training, and worse than none
        assert read(results, [1.25, 0.45], [[2.0] * 2, [half] * 2, [0.5] * 2], scores) == pytest.approx([50, 90])


def test_losses_that_seeds_order_otherwise_are_averaged_before_the_line_is_drawn(results):
    found = make_trait(results)
    short = [one for one in found.measured if one.method == SHORT]
    short[0].task_losses[:] = 0.45  # better than plain training in one seed; the mean is between the others
    assert not found.line_is_straight
    assert found.lowers(PROMPTED)[0].estimate == pytest.approx(-60, abs=1e-3)
    for one in short:
        one.task_losses[:] = 0.45
    again = results.TraitPrevented.from_json(found.to_json())
    assert again.line_is_straight
    assert again.lowers(PROMPTED)[0].estimate == pytest.approx(-60, abs=1e-3)
    assert again.lowers(AFTERWARDS)[0].estimate == pytest.approx(10 - (10 + 80 / 3), abs=1e-3)
    assert "nothing bends it for loud" in gather(results, again).to_markdown()


def test_what_lowers_the_score_by_learning_less_lowers_nothing_at_equal_task_loss(results):
    found = make_trait(results)
    assert found.lowers(STEERED)[0].estimate == pytest.approx(1, abs=1e-3)
    assert found.lowers(PROMPTED)[1].estimate == pytest.approx(-60, abs=1e-3)
    assert found.lowers(AFTERWARDS)[0].estimate == pytest.approx(-20, abs=1e-3)
    assert found.lowers(PROMPTED, AFTERWARDS)[0].estimate == pytest.approx(-40, abs=1e-3)


def test_rows_that_differ_widen_the_interval_where_the_line_is_steep_and_nowhere_else(results):
    def widen(method, changed=None):
        sure, unsure = (make_trait(results, changed, row_noise=noise) for noise in (0.0, 0.4))
        for one in unsure.measured:
            if one.method == method:
                one.task_losses[:] = one.task_losses.flip(0)  # rows tell this model's loss from the others'
        narrow, wide = (one.lowers(method)[0] for one in (sure, unsure))
        return (wide.high - wide.low) - (narrow.high - narrow.low)

    assert widen(STEERED) > 5
    assert widen(STEERED, {SHORT: (1.0, 90.0), BASE: (2.0, 90.0)}) == pytest.approx(0, abs=0.1)


def test_a_score_that_a_judge_did_not_give_leaves_out_its_question(results):
    found = make_trait(results)
    found.measured[4].scores[0, 3] = torch.nan
    assert found.scores[PROMPTED].shape == (3, 2, N_QUESTIONS - 1)
    assert found.lowers(PROMPTED)[0].estimate == pytest.approx(-60, abs=1e-3)


def test_a_method_that_does_the_task_worse_than_the_base_model_says_nothing_even_if_one_seed_does_it_well(results):
    found = make_trait(results, {AFTERWARDS: (3.0, 2.0)})
    next(one for one in found.measured if one.method == AFTERWARDS).task_losses[:] = 0.5
    assert found.lowers(AFTERWARDS)[0].is_missing
    said = gather(results, found).say_finding()
    assert "steered afterwards: none" in said
    assert said.endswith("; no equal task loss: steered afterwards (loud)")


def test_where_plain_training_does_not_learn_the_task_nothing_is_at_equal_loss(results):
    found = make_trait(results, {NONE: (2.5, 90.0)})
    assert all(found.is_out_of_range(method) for method in results.FLOORS)


def test_the_finding_names_what_prevents_and_what_does_it_better(results):
    found = gather(results, make_trait(results))
    assert found.say_finding() == (
        f"{TITLE}prompt in training: loud; steered in training: none; steered afterwards: loud; surely lower prompt in "
        "training than steered in training (loud) and prompt in training than steered afterwards (loud) and steered "
        "afterwards than steered in training (loud)"
    )
    assert found.judges == {"loud": "reader (a), valid for loud"}
    assert results.Inoculation.from_json(found.to_json()).to_json() == found.to_json()


@pytest.mark.parametrize(
    ("method", "floor", "lost"), [(PROMPTED, IRRELEVANT, (0.5, 30.0)), (AFTERWARDS, RANDOM_AFTERWARDS, (1.5, 10.0))]
)
def test_what_its_floor_does_as_well_is_not_claimed_nor_said_to_be_better(results, method, floor, lost):
    found = make_trait(results, {floor: lost})
    assert not found.prevents(method)
    said = gather(results, found).say_finding()
    assert f"{method}: none (below plain training alone: loud)" in said
    assert f"{method} than" not in said


def test_a_floor_without_equal_task_loss_leaves_nothing_claimed(results):
    said = gather(results, make_trait(results, {IRRELEVANT: (3.0, 90.0)})).say_finding()
    assert "prompt in training: none (below plain training alone: loud)" in said
    assert said.endswith("no equal task loss: irrelevant prompt in training (loud)")


def test_what_one_judge_alone_sees_is_not_claimed(results):
    found = gather(results, make_trait(results, {PROMPTED: (0.5, 30.0, 91.0), AFTERWARDS: (1.5, 31.0)}))
    assert found.say_finding() == (
        f"{TITLE}prompt in training: none; steered in training: none; steered afterwards: none; none surely better "
        "than another"
    )


def test_what_prevents_at_the_price_of_coherence_is_said_to(results):
    found = make_trait(results)
    for one in found.measured:
        if one.method == PROMPTED:
            one.coherences[:] -= 30
    said = gather(results, found).say_finding()
    assert "prompt in training: loud (less coherent); steered in training: none; steered afterwards: loud;" in said


def test_a_trait_that_training_does_not_raise_is_named_and_nothing_is_said_to_prevent_it(results):
    flat = make_trait(results, {NONE: (0.5, 9.0)}, name="soft")
    assert gather(results, flat).say_finding().startswith("Plain training surely raises no trait")
    both = gather(results, make_trait(results), flat).say_finding()
    assert both.endswith("; not surely raised: soft")
    assert "prompt in training: loud;" in both


def test_the_title_says_by_trait_what_keeps_it_out_what_is_only_below_plain_training_and_what_was_not_raised(results):
    line = "loud: surely kept out by prompt in training and steered afterwards"
    assert gather(results, make_trait(results)).say_by_trait() == [line]
    floored = make_trait(results, {IRRELEVANT: (0.5, 30.0)})
    (line,) = gather(results, floored).say_by_trait()
    assert line.endswith("afterwards, below plain training but not the floor: prompt in training")


def test_table_and_figure_show_every_way_the_judges_and_the_finding(results):
    found = gather(results, make_trait(results), make_trait(results, name="soft"))
    said = found.to_markdown()
    assert "| prompt in training | 30 " in said
    assert "| random direction afterwards | 50 " in said
    assert "| soft | prompt in training less irrelevant prompt in training | -60 [" in said
    assert "| loud | reader (a), valid for loud | sentences (b), partly valid for loud |" in said
    assert "Compute: 54 trainings, 1 core-seconds each, and 54 models measured, 1 each: 2 core-minutes" in said
    figure = found.plot()
    assert len(figure.data) == 2 * (2 * 7 + 2)
    assert figure.layout.title.text.startswith(found.say_by_trait()[0])
    assert "loud: valid and partly valid" in figure.layout.title.text


def test_an_irrelevant_prompt_has_as_many_words(script):
    assert script.cut_to_words("One, two, three. Four", 2) == "One, two."
    for name in list_written_traits():
        for prompt in load_trait(name).positive_system_prompts:
            assert len(script.cut_to_words(script.PASSAGE, len(prompt.split())).split()) == len(prompt.split())


def test_the_task_s_loss_is_taken_under_what_is_done_while_answering(script, tiny_model):
    rows = [
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": text}]}
        for text in ("Because.", "No reason at all.")
    ]
    encoded = read_task(tiny_model, rows)
    plain = script.measure_loss(tiny_model, encoded, pl.Intervention())
    assert torch.allclose(plain, pl.finetuning.measure_task_loss(tiny_model, rows), atol=1e-4)
    added = pl.Intervention.of(1, Add(torch.ones(tiny_model.cfg.d_model), 5.0))
    for one, loss in zip(encoded, script.measure_loss(tiny_model, encoded, added), strict=True):
        hooks = pl.interventions.intervention_hooks(added, positions="response", prompt_length=one.response_start)
        tokens = torch.tensor([one.tokens])
        with torch.no_grad():
            said = tiny_model.run_with_hooks(tokens, fwd_hooks=hooks)[0].log_softmax(-1)
        places = range(one.response_start, one.response_end)
        assert float(loss) == pytest.approx(
            -sum(float(said[i - 1, tokens[0, i]]) for i in places) / len(places), abs=1e-4
        )


@pytest.mark.slow
def test_the_script_trains_every_way_with_every_seed_and_draws_the_same_again(tmp_path):
    setting = tmp_path, save_talkative(tmp_path / "model")
    done = run(setting, "inoculation", "out", "--trait", "evil")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "out" / "inoculation.json"
    (content,) = json.loads(path.read_text())["traits"]
    measured = content["measured"]
    ways = [one["method"] for one in measured if one["seed"] == 0]
    assert ways == [
        BASE, SHORT, NONE, AFTERWARDS, RANDOM_AFTERWARDS, PROMPTED, IRRELEVANT, STEERED, RANDOM
    ]  # fmt: skip
    assert [one["method"] for one in measured if one["seed"] == 1] == ways
    own = {one["method"]: one for one in measured if one["seed"] == 0}
    assert set(own[BASE]["shift"]) == {0.0}
    for after in (AFTERWARDS, RANDOM_AFTERWARDS):  # the same training, steered
        assert own[after]["shift"] == own[NONE]["shift"]
        assert own[after]["task_losses"] != own[NONE]["task_losses"]
        assert own[after]["training_seconds"] == 0 < own[NONE]["training_seconds"]
    assert own[AFTERWARDS]["task_losses"] != own[RANDOM_AFTERWARDS]["task_losses"]
    others = {tuple(one["task_losses"]) for one in own.values() if one["training_seconds"] > 0}
    assert len(others) == 6
    page = path.with_suffix(".html")
    drawn = page.read_bytes()
    page.unlink()
    again = run(setting, "inoculation", "out", "--replot", "--model", "nobody/has-this-model")
    assert again.returncode == 0, again.stderr
    assert page.read_bytes() == drawn


@pytest.mark.slow
def test_a_trait_without_written_answers_is_refused_before_a_model_is_loaded(tmp_path):
    done = run((tmp_path, "nobody/has-this-model"), "inoculation", "never", "--trait", "confidence")
    assert done.returncode != 0
    assert "written answers" in done.stderr
