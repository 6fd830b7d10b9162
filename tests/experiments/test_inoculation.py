"""A trait kept out at equal task loss: the script run as a user runs it, and comparisons where the answer is known."""

import importlib
import json

import pytest
import torch

import persona_lens as pl
from persona_lens.finetuning.task_loss import read_task
from persona_lens.tensors import Add
from persona_lens.traits import list_written_traits, load_trait
from tests.experiments.scripts import ROOT, run, save_talkative

NONE, PROMPTED = "no prevention", "prompt in training"
N_QUESTIONS = 8


@pytest.fixture
def results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module("results.inoculation")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module("inoculation")


def make(results, method, dose, seed, loss, score, second=None):
    """A model with a loss and with a score, but for a little by question and seed that all models share."""
    noise = torch.randn(N_QUESTIONS, generator=torch.Generator().manual_seed(seed))
    scores = torch.stack([score + noise, (score if second is None else second) + noise])
    return results.Prevented(
        method, dose, seed, torch.tensor([loss - 0.1, loss + 0.1]), scores, torch.zeros(N_QUESTIONS), "NO!", 1.0, 1.0
    )


USUAL = {
    ("base model", ""): (2.0, 10.0),
    ("no prevention, half of the rows", ""): (1.0, 50.0),
    (NONE, ""): (0.5, 90.0),
    (PROMPTED, "one"): (0.5, 30.0),
    (PROMPTED, "another"): (0.5, 60.0),
    ("steered in training", "one layer × 3"): (0.75, 70.0),  # as plain training that learnt as little
    ("irrelevant prompt in training", ""): (0.5, 90.0),
    ("steered afterwards", "one layer × -3"): (3.0, 2.0),  # worse than untrained
    ("steered afterwards", "all layers × -1"): (1.5, 20.0),
}


def make_trait(results, changed=None, name="loud"):
    ways = USUAL | (changed or {})
    measured = tuple(make(results, *way, seed, *values) for seed in range(3) for way, values in ways.items())
    return results.TraitPrevented(name, 1, ("a, valid for loud", "b"), (), measured)


def gather(results, *traits):
    config = {"model": {"name": "tiny"}, "profile": {"n_rows": 4, "n_held_out": 2}}
    return results.Inoculation(config=config, traits=traits)


def test_plain_training_is_read_at_a_loss_on_the_line_from_one_training_to_the_next(results):
    scores = torch.tensor([[[10.0]], [[50.0]], [[90.0]]])
    read = [float(results.read_at_loss(loss, (2.0, 1.0, 0.5), scores)) for loss in (2.0, 1.5, 1.0, 0.75, 0.5, 0.4)]
    assert read == pytest.approx([10, 30, 50, 70, 90, 90])
    assert results.read_at_loss(2.1, (2.0, 1.0, 0.5), scores).isnan().all()


def test_a_score_that_is_missing_is_missing_where_it_is_needed_alone(results):
    scores = torch.tensor([[[10.0]], [[50.0]], [[torch.nan]]])
    assert float(results.read_at_loss(1.0, (2.0, 1.0, 0.5), scores)) == 50
    assert results.read_at_loss(0.75, (2.0, 1.0, 0.5), scores).isnan().all()


def test_what_lowers_the_score_by_learning_less_lowers_nothing_at_equal_task_loss(results):
    found = make_trait(results)
    assert found.lowers("steered in training")[0].estimate == pytest.approx(0, abs=1e-3)
    assert found.lowers("prompt in training", "one")[1].estimate == pytest.approx(-60, abs=1e-3)
    assert found.lowers("steered afterwards", "one layer × -3")[0].is_missing
    assert found.lowers("steered afterwards", "all layers × -1")[0].estimate == pytest.approx(-10, abs=1e-3)


def test_a_dose_is_chosen_on_the_questions_on_which_it_is_not_judged(results):
    # The first dose is better on even questions, the second on odd ones: chosen there, each is judged where it is not.
    first = torch.tensor([-9.0, 1.0] * 4)
    doses = torch.stack([first, -first])[:, None, None].expand(2, 3, 2, 8)
    chosen = results.choose_on_others(doses)
    assert chosen[0, 0].tolist() == [9.0, 1.0] * 4
    assert results.choose_on_others(torch.full_like(doses, torch.nan)).isnan().all()


def test_a_dose_without_equal_task_loss_is_not_chosen(results):
    best = make_trait(results).best("steered afterwards")
    assert best.mean().item() == pytest.approx(-10, abs=1e-3)


def test_the_first_judge_chooses_and_the_second_does_not(results):
    found = make_trait(results, {(PROMPTED, "another"): (0.5, 60.0, 0.0)})
    assert found.lowers("prompt in training")[1].estimate == pytest.approx(-60, abs=1e-3)


def test_the_finding_names_what_prevents_and_what_does_it_better(results):
    found = gather(results, make_trait(results))
    assert found.say_finding() == (
        "Surely lowered for both judges at equal task loss, prompt in training: loud; steered in training: none; "
        "steered afterwards: loud; surely lower prompt in training than steered in training (loud) and prompt in "
        "training than steered afterwards (loud) and steered afterwards than steered in training (loud)"
    )
    assert found.judges == {"loud": "a, valid for loud"}
    assert results.Inoculation.from_json(found.to_json()).to_json() == found.to_json()


def test_what_one_judge_alone_sees_is_not_claimed(results):
    prompts = {(PROMPTED, dose): (0.5, 30.0, 90.0) for dose in ("one", "another")}
    after = {("steered afterwards", "all layers × -1"): (1.5, 30.0)}
    found = gather(results, make_trait(results, prompts | after))
    assert found.say_finding() == (
        "Surely lowered for both judges at equal task loss, prompt in training: none; steered in training: none; "
        "steered afterwards: none; none surely better than another"
    )


def test_a_trait_that_training_does_not_raise_is_named_and_nothing_is_said_to_prevent_it(results):
    flat = make_trait(results, {(NONE, ""): (0.5, 9.0)}, name="soft")
    assert gather(results, flat).say_finding().startswith("Plain training surely raises no trait")
    both = gather(results, make_trait(results), flat).say_finding()
    assert both.endswith("; not surely raised: soft")
    assert "(loud)" in both


def test_table_and_figure_show_every_way_and_say_the_finding(results):
    found = gather(results, make_trait(results), make_trait(results, name="soft"))
    said = found.to_markdown()
    assert "| prompt in training | one | 30 " in said
    assert "| steered afterwards | one layer × -3 | 2 " in said
    assert "| prompt in training less irrelevant prompt in training | soft | -60 [" in said
    assert "Compute: 54 trainings, 1 core-seconds each, and 54 models measured, 1 each: 2 core-minutes" in said
    figure = found.plot()
    assert len(figure.data) == 2 * (2 * 7 + 2)
    assert figure.layout.title.text.startswith("Surely lowered")


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
    ways = [(one["method"], one["dose"]) for one in measured if one["seed"] == 0]
    assert ways == [
        ("base model", ""), ("no prevention, half of the rows", ""), ("no prevention", ""),
        ("steered afterwards", "one layer × -1"), ("steered afterwards", "all layers × -1"), ("prompt in training", ""),
        ("steered in training", "one layer × 1"), ("irrelevant prompt in training", ""),
    ]  # fmt: skip
    assert [(one["method"], one["dose"]) for one in measured if one["seed"] == 1] == ways
    own = {(one["method"], one["dose"]): one for one in measured if one["seed"] == 0}
    assert set(own["base model", ""]["shift"]) == {0.0}
    plain, after = own["no prevention", ""], own["steered afterwards", "one layer × -1"]
    assert plain["task_losses"] != after["task_losses"]
    assert plain["shift"] == after["shift"]
    assert plain["training_seconds"] > 0 == after["training_seconds"]
    others = {tuple(one["task_losses"]) for way, one in own.items() if one["training_seconds"] > 0}
    assert len(others) == 5
    page = path.with_suffix(".html")
    drawn = page.read_bytes()
    page.unlink()
    again = run(setting, "inoculation", "out", "--replot", "--model", "nobody/has-this-model")
    assert again.returncode == 0, again.stderr
    assert page.read_bytes() == drawn


def test_a_trait_without_written_answers_is_refused_before_a_model_is_loaded(tmp_path):
    done = run((tmp_path, "nobody/has-this-model"), "inoculation", "never", "--trait", "curiosity")
    assert done.returncode != 0
    assert "written answers" in done.stderr
