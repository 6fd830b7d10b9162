import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import persona_lens as pl
from persona_lens.conversations import Conversation
from persona_lens.finetuning import PreventionTrials, planning
from persona_lens.finetuning.planning import PreventionPlan, TriedPrevention, recommend
from persona_lens.statistics import Interval

SETTINGS = pl.FinetuneSettings(
    rank=2, alpha=4, learning_rate=1e-2, batch_size=4, accumulation=1, warmup_steps=0, max_tokens=200, dtype="float32"
)
QUESTIONS = ("Why?", "When?", "What for?")


def tried(method, coefficient, shift, extra):
    return TriedPrevention(
        method, coefficient, Interval(shift, shift - 0.01, shift + 0.01), Interval(2.0, 1.9, 2.1),
        Interval(extra, extra - 0.01, extra + 0.01),
    )  # fmt: skip


def test_nothing_is_recommended_where_training_alone_shifts_little():
    ways = [tried("none", 0.0, 0.02, 0.0), tried("one layer", 1.0, 0.0, -0.3)]
    assert recommend(ways, 0.1, 0.05) is ways[0]


def test_the_cheapest_way_that_keeps_the_shift_within_bounds_is_recommended():
    ways = [
        tried("none", 0.0, 0.5, 0.0), tried("one layer", 1.0, 0.3, 0.0), tried("one layer", 3.0, 0.05, 0.03),
        tried("all layers", 1.0, -0.05, 0.01), tried("all layers", 2.0, -0.4, 0.0),
    ]  # fmt: skip
    assert recommend(ways, 0.1, 0.05) is ways[3]


def test_a_way_that_costs_too_much_or_oversteers_is_not_recommended():
    ways = [tried("none", 0.0, 0.5, 0.0), tried("one layer", 1.0, 0.05, 0.045), tried("one layer", 3.0, -0.2, 0.0)]
    assert recommend(ways, 0.1, 0.05) is None


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=6))
def test_what_is_recommended_keeps_to_both_limits(values):
    ways = [
        tried("none" if i == 0 else "one layer", float(i), s, 0.0 if i == 0 else e) for i, (s, e) in enumerate(values)
    ]
    best = recommend(ways, 0.1, 0.05)
    if best is not None:
        assert best.shift.low >= -0.1
        assert best.shift.high <= 0.1
        assert best is ways[0] or best.extra_loss.high <= 0.05


@pytest.mark.parametrize("best", [0, 1, 2, None])
def test_a_plan_says_the_same_after_the_round_trip_through_a_file(tmp_path, best):
    prompted = replace(tried("prompt", 0.0, 0.04, 0.01), prompt="Be cruel.")
    ways = (tried("none", 0.0, 0.5, 0.0), tried("one layer", 3.0, 0.05, 0.03), prompted)
    made = PreventionPlan("evil", 1, 0.1, None, ways, None if best is None else ways[best], 8, 4, 2)
    made.save(tmp_path / "plan.json")
    again = PreventionPlan.load(tmp_path / "plan.json")
    assert again == made
    assert (again.verdict, repr(again)) == (made.verdict, repr(made))


def test_a_prompt_is_recommended_in_its_own_words():
    without, prompted = tried("none", 0.0, 0.5, 0.0), replace(tried("prompt", 0.0, 0.04, 0.01), prompt="Be cruel.")
    found = PreventionPlan("evil", 1, 0.1, None, (without, prompted), prompted, 8, 4, 2)
    assert found.verdict.startswith("Train under the system prompt “Be cruel.” and leave it out afterwards: the shift")
    assert "prompt “Be cruel.”: shift 0.04" in repr(found)
    assert "<td>“Be cruel.”</td>" in found._repr_html_()


def test_a_way_that_an_earlier_version_wrote_has_no_prompt():
    content = tried("one layer", 3.0, 0.05, 0.03).to_json()
    del content["prompt"]
    assert TriedPrevention.from_json(content).dose == "× 3"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module")
def training(tiny_folder):
    folder = tiny_folder("llama")
    model = pl.load_model(folder, dtype="float32", device="cpu")
    torch.manual_seed(0)
    directions = torch.randn(3, 48)
    vector = pl.PersonaVector("any", pl.describe_model(model), {"response_mean": directions})
    rows = [
        {"messages": [{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": "No! " * 4}]}
        for i in range(12)
    ]
    return folder, vector, rows


def plan(training, out, *, layer=1, held_out=None, questions=QUESTIONS, **more):
    folder, vector, rows = training
    trials = PreventionTrials(**({"one_layer": (1.0,), "all_layers": (), "n_rows": 8, "n_held_out": 4} | more))
    return pl.plan_prevention(
        folder, rows, vector, out, layer=layer, trials=trials, held_out=held_out, questions=questions,
        settings=SETTINGS,
    )  # fmt: skip


@pytest.mark.slow
def test_every_way_is_trained_and_measured_against_training_alone(training, tmp_path):
    found = plan(training, tmp_path, max_shift=1e-6, all_layers=(1.0,))
    assert [(one.method, one.coefficient) for one in found.tried] == [
        ("none", 0.0), ("one layer", 1.0), ("all layers", 1.0),
    ]  # fmt: skip
    assert found.recommended is None
    assert "No way tried" in found.verdict
    assert found.tried[0].extra_loss.estimate == 0
    base = pl.load_model(training[0], dtype="float32")
    tuned = pl.load_model(training[0], adapter=tmp_path / "one-layer-1", dtype="float32")
    shift = pl.measure_shift(base, tuned, training[1], QUESTIONS).mean[1] / training[1].norms[1]
    assert found.tried[1].shift.estimate == pytest.approx(float(shift), abs=1e-5)
    assert (found.n_steps, found.n_held_out) == (2, 4)
    assert "one layer" in repr(found)
    assert "<table>" in found._repr_html_()


def test_one_value_of_trials_is_used_with_many_models_so_it_holds_no_data():
    assert hash(PreventionTrials(prompts=("Be cruel.",))) == hash(PreventionTrials(prompts=("Be cruel.",)))
    with pytest.raises(pl.errors.InvalidArgumentError, match=r"Got 'Never\.'"):
        PreventionTrials(prompts=("Be cruel.", "Never.", "Never."))


@pytest.mark.slow
def test_a_prompt_is_there_in_training_and_not_when_the_shift_is_measured(training, tmp_path):
    found = plan(training, tmp_path / "trials", max_shift=1e-6, one_layer=(), prompts=("Say no!", "Never."))
    assert [(one.method, one.prompt) for one in found.tried] == [
        ("none", ""), ("prompt", "Say no!"), ("prompt", "Never."),
    ]  # fmt: skip
    drawn = planning._draw(training[2], 12, SETTINGS.seed).select(range(8))
    done = pl.finetune(training[0], drawn, tmp_path / "own", settings=SETTINGS, system="Say no!")
    base = pl.load_model(training[0], dtype="float32")
    tuned = pl.load_model(training[0], adapter=done.folder, dtype="float32")
    shift = pl.measure_shift(base, tuned, training[1], QUESTIONS).mean[1] / training[1].norms[1]
    assert found.tried[1].shift.estimate == pytest.approx(float(shift), abs=1e-5)
    assert found.tried[2].shift != found.tried[1].shift
    again = plan(training, tmp_path / "trials", max_shift=1e-6, one_layer=(), prompts=("Never.", "Say no!"))
    assert again.tried[2] == found.tried[1]  # each prompt has a folder of its own, in whatever order they come


def test_extra_loss_is_taken_on_the_rows_held_out_for_it(training, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": text}]} for text in "ab"
    ]
    found = plan(training, tmp_path, max_shift=1e-6, held_out=iter(rows), max_extra_loss=0.5)
    plain, tuned = (
        pl.finetuning.measure_task_loss(pl.load_model(training[0], adapter=tmp_path / name, dtype="float32"), rows)
        for name in ("none-0", "one-layer-1")
    )
    assert found.tried[1].extra_loss.estimate == pytest.approx(float((tuned - plain).mean()), abs=1e-4)
    assert found.n_held_out == 2


def test_trials_that_end_within_the_warm_up_are_refused(training, tmp_path):
    folder, vector, rows = training
    settings = replace(SETTINGS, warmup_steps=2)
    with pytest.raises(pl.errors.InvalidArgumentError, match="warmup_steps"):
        pl.plan_prevention(
            folder, rows, vector, tmp_path, layer=1, trials=PreventionTrials(n_rows=8), settings=settings
        )
    assert not list(tmp_path.iterdir())


def test_where_none_is_needed_nothing_else_is_trained(training, tmp_path):
    found = plan(training, tmp_path, max_shift=1e6)
    assert found.recommended is found.tried[0]
    assert "No prevention is needed" in found.verdict
    assert [path.name for path in tmp_path.iterdir()] == ["none-0"]


def test_rows_to_try_on_are_drawn_from_everywhere_into_every_place():
    rows = [{"messages": [user("Which?"), assistant(str(i))]} for i in range(6)]
    draws = [[int(row["messages"][1]["content"]) for row in planning._draw(iter(rows), 2, seed)] for seed in range(300)]
    assert all(len(set(draw)) == 2 for draw in draws)
    for place in (0, 1):  # each row with probability 1/6: 50 of 300, of which the standard deviation is 6.5
        counts = [sum(draw[place] == row for draw in draws) for row in range(6)]
        assert min(counts) > 24, counts
        assert max(counts) < 76, counts


def test_drawing_keeps_no_more_rows_in_memory_than_it_draws(monkeypatch):
    alive: list[weakref.ref[Conversation]] = []
    most = 0

    def read(_):
        nonlocal most
        for index in range(200):
            row = Conversation(f"row {index + 1}", index, (user("Why?"), assistant(f"{index}")))
            alive.append(weakref.ref(row))
            most = max(most, sum(found() is not None for found in alive))
            yield row

    monkeypatch.setattr(planning, "read_conversations", read)
    assert len(planning._draw("a generator", 8, 0)) == 8
    assert most <= 8 + 3  # and the one read, the one before it, and one that was just replaced


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"layer": 3}, "layer"),
        ({"max_shift": 0.0}, "max_shift"),
        ({"n_rows": 9}, "data"),
        ({"n_held_out": 1}, "n_held"),
        ({"max_extra_loss": 0.1}, "held_out"),
        ({"one_layer": (float("nan"),)}, "coefficient"),
        ({"held_out": [{"messages": []}]}, "held_out"),
        ({"prompts": ("Be cruel.", " ")}, "prompts"),
        ({"prompts": ("Be cruel.", " Be cruel.\n")}, "prompts"),
        ({"questions": ("Why?",)}, "questions"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_trained(training, tmp_path, more, name):
    with pytest.raises(pl.errors.InvalidArgumentError, match=name):
        plan(training, tmp_path, **more)
    assert not list(tmp_path.iterdir())
