from contextlib import contextmanager

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, LayerOutOfRangeError
from persona_lens.finetuning.shift import project_questions
from persona_lens.tensors.operations import Add
from tests.tiny import make_tokenizer, save_tiny

QUESTIONS = {"loud": ["Why?", "What on earth is this?", "When?"], "quiet": ["Who are you?"]}
LAYERS = {"loud": 1, "quiet": 2}


def rows():
    return [
        {"messages": [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": "ab" * (i % 5 + 1)}]}
        for i in range(8)
    ]


def quick(**changes):
    values = {"rank": 4, "learning_rate": 1e-2, "epochs": 3, "batch_size": 4, "accumulation": 1, "warmup_steps": 0}
    return pl.FinetuneSettings(**{**values, "dtype": "float32", **changes})


def make_vector(model, trait, seed):
    info = pl.describe_model(model)
    directions = torch.randn(3, 48, generator=torch.Generator().manual_seed(seed))
    return pl.PersonaVector(trait, info, {"response_mean": 3 * directions})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Its template renders the first token, as Llama's do: TransformerLens adds one to prompts that have none."""
    folder = save_tiny(tmp_path_factory.mktemp("base"), "llama")
    make_tokenizer(template="<|endoftext|>" + make_tokenizer().chat_template).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(base):
    return pl.load_model(base, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def vectors(model):
    return {"loud": make_vector(model, "loud", 0), "quiet": make_vector(model, "quiet", 1)}


@pytest.fixture(scope="module")
def sites(vectors):
    """What would move every projection if it were not off while they are measured."""
    return pl.steer(vectors["loud"], layer=0, coefficient=5.0)


@pytest.fixture(scope="module")
def tracker(vectors):
    return pl.finetuning.Tracker(vectors, LAYERS, QUESTIONS, every=2)


@pytest.fixture(scope="module")
def tuned(base, tracker, sites, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned")
    return pl.finetune(base, rows(), out, settings=quick(epochs=4), intervention=sites, track=tracker)


def project(model, vectors):
    return {
        trait: project_questions(model, vectors[trait], QUESTIONS[trait])[LAYERS[trait]].tolist() for trait in vectors
    }


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for trait in found:
        assert found[trait] == pytest.approx(expected[trait], abs=1e-4)


def test_before_training_the_projections_are_the_base_models_although_it_is_steered(tuned, model, vectors, sites):
    assert tuned.tracked[0]["step"] == 0
    assert_close(tuned.tracked[0]["projections"], project(model, vectors))
    with pl.hooked(model, pl.interventions.intervention_hooks(sites)):
        steered = project(model, vectors)
    assert abs(steered["loud"][0] - tuned.tracked[0]["projections"]["loud"][0]) > 1


def test_after_training_they_are_the_merged_models(base, tuned, vectors):
    merged = pl.load_model(base, adapter=tuned.folder, dtype="float32", device="cpu")
    assert_close(tuned.tracked[-1]["projections"], project(merged, vectors))
    moved = [tuned.tracked[-1]["projections"]["loud"][i] - tuned.tracked[0]["projections"]["loud"][i] for i in (0, 1)]
    assert max(map(abs, moved)) > 0.05


def test_every_few_steps_is_measured_and_the_last(base, tuned, tracker, tmp_path):
    assert [entry["step"] for entry in tuned.tracked] == [0, 2, 4, 6, 8]
    odd = pl.finetune(base, rows()[:3], tmp_path, settings=quick(batch_size=1, epochs=1), track=tracker)
    assert [entry["step"] for entry in odd.tracked] == [0, 2, 3]


def test_measuring_changes_nothing_of_the_training(base, tuned, sites, tmp_path):
    untracked = pl.finetune(base, rows(), tmp_path, settings=quick(epochs=4), intervention=sites)
    assert untracked.losses == tuned.losses
    assert untracked.tracked == ()


def test_more_questions_than_fit_a_batch_are_measured_one_by_one(base, model, vectors, tmp_path):
    questions = [f"What is {'very ' * (i % 4)}number {i}?" for i in range(19)]
    tracker = pl.finetuning.Tracker({"loud": vectors["loud"]}, {"loud": 1}, {"loud": questions})
    found = pl.finetune(base, rows()[:1], tmp_path, settings=quick(epochs=1), track=tracker)
    conversations = [[{"role": "user", "content": question}] for question in questions]
    expected = pl.monitoring.project_last_prompt_token(model, conversations, {"loud": vectors["loud"]}, {"loud": 1})[
        "loud"
    ]
    assert found.tracked[0]["projections"]["loud"] == pytest.approx(expected.tolist(), abs=1e-4)


def test_what_was_measured_is_kept_when_a_run_goes_on(base, tuned, tracker, sites, tmp_path):
    arguments = {"settings": quick(epochs=4, save_steps=1), "intervention": sites, "track": tracker}
    n_done = []

    @contextmanager
    def stop_before_the_sixth(description, n_steps):
        def advance(n):
            n_done.append(n)
            if len(n_done) == 6:
                raise KeyboardInterrupt

        yield advance

    with pytest.raises(KeyboardInterrupt):
        pl.finetune(base, rows(), tmp_path, run=pl.Run(progress=stop_before_the_sixth), **arguments)
    resumed = pl.finetune(base, rows(), tmp_path, **arguments)
    assert resumed.tracked == tuned.tracked
    assert resumed.losses == tuned.losses
    again = pl.finetune(base, rows(), tmp_path, **arguments)
    assert again.tracked == tuned.tracked


def test_a_limit_that_is_passed_stops_training(base, vectors, tmp_path):
    """One of the two directions goes up, by however little; neither has moved before the first step."""
    both = {"there": vectors["loud"], "back": -vectors["loud"]}
    given = ({"there": 1, "back": 1}, {"there": ["Why?"], "back": ["Why?"]})
    found = pl.finetune(
        base, rows(), tmp_path / "stopped", settings=quick(epochs=50, warmup_steps=0),
        track=pl.finetuning.Tracker(both, *given, limits={"there": 0.0, "back": 0.0}),
    )  # fmt: skip
    assert len(found.losses) == 1
    assert [entry["step"] for entry in found.tracked] == [0, 1]
    assert (found.folder / "adapter_model.safetensors").exists()
    far = pl.finetune(
        base,
        rows(),
        tmp_path / "far",
        settings=quick(epochs=1),
        track=pl.finetuning.Tracker(both, *given, limits={"there": 99.0}),
    )
    assert len(far.losses) == 2


def test_a_limit_is_in_lengths_of_the_raw_vector(base, vectors, tuned, tmp_path):
    """A limit just over, and just under, the largest shift that the run shows."""
    mean = [sum(entry["projections"]["quiet"]) for entry in tuned.tracked]
    sign = 1.0 if mean[-1] > mean[0] else -1.0
    peak = max(sign * (one - mean[0]) for one in mean) / float(vectors["quiet"].norms[2])
    lengths = []
    for factor in (0.99, 1.01):
        tracker = pl.finetuning.Tracker(
            {"quiet": sign * vectors["quiet"]}, {"quiet": 2}, {"quiet": QUESTIONS["quiet"]}, every=2,
            limits={"quiet": factor * peak},
        )  # fmt: skip
        sites = pl.steer(vectors["loud"], layer=0, coefficient=5.0)
        out = tmp_path / str(factor)
        found = pl.finetune(base, rows(), out, settings=quick(epochs=4), intervention=sites, track=tracker)
        lengths.append(len(found.losses))
    assert lengths[0] == 2 * max(range(5), key=lambda i: sign * mean[i])  # the peak, measured every two steps
    assert lengths[1] == 8


def test_another_tracker_is_another_run(base, tuned, tracker, vectors, sites):
    for other in (
        None,
        pl.finetuning.Tracker(vectors, LAYERS, QUESTIONS, every=1),
        pl.finetuning.Tracker(vectors, {"loud": 1, "quiet": 1}, QUESTIONS, every=2),
        pl.finetuning.Tracker(vectors, LAYERS, QUESTIONS | {"quiet": ["Who?"]}, every=2),
        pl.finetuning.Tracker(vectors, LAYERS, QUESTIONS, every=2, limits={"loud": 1.0}),
        pl.finetuning.Tracker({**vectors, "loud": vectors["quiet"]}, LAYERS, QUESTIONS, every=2),
    ):
        with pytest.raises(InvalidArgumentError, match="a run with other track'"):
            pl.finetune(base, rows(), tuned.folder, settings=quick(epochs=4), intervention=sites, track=other)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"layers": {"loud": 1}}, InvalidArgumentError, r"`layers` must have the names of `vectors`.*quiet"),
        ({"questions": {**QUESTIONS, "evil": ["Why?"]}}, InvalidArgumentError, "`questions` must have the names"),
        ({"questions": {**QUESTIONS, "loud": []}}, InvalidArgumentError, "`questions` must hold a question"),
        ({"limits": {"evil": 1.0}}, InvalidArgumentError, "`limits` must have names of `vectors`.*evil"),
        ({"every": 0}, InvalidArgumentError, "`every` must be at least 1"),
        ({"layers": {"loud": 1, "quiet": 3}}, LayerOutOfRangeError, r"\[0, 3\)"),
    ],
)
def test_a_tracker_that_does_not_fit_together_is_refused(vectors, changes, error, message):
    with pytest.raises(error, match=message):
        pl.finetuning.Tracker(**{"vectors": vectors, "layers": LAYERS, "questions": QUESTIONS, **changes})


def test_a_tracker_without_vectors_is_refused():
    with pytest.raises(InvalidArgumentError, match="`questions`"):
        pl.finetuning.Tracker({}, {}, {})


def test_interventions_are_switched_on_again_after_a_measurement(base, vectors, tmp_path):
    """Measured at each step or never, a steered run learns the same."""
    losses = []
    for every in (1, 1000):
        tracker = pl.finetuning.Tracker(vectors, LAYERS, QUESTIONS, every=every)
        sites = pl.Intervention.of(1, Add(vectors["loud"].direction(1), 1.0))
        out = tmp_path / str(every)
        losses.append(pl.finetune(base, rows(), out, settings=quick(), intervention=sites, track=tracker).losses)
    assert losses[0] == losses[1]
