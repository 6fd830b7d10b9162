from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, LayerOutOfRangeError, ModelMismatchError
from persona_lens.finetuning import VectorTracker
from persona_lens.finetuning.vector_tracking import Reading, compare_readings
from persona_lens.interventions import Window
from persona_lens.traits import WrittenExample
from tests.tiny import make_tokenizer, save_tiny

EXAMPLES = tuple(WrittenExample(f"Why {i}?", ordinary="so", overt="SO " * (i % 3 + 1), opposite="hm") for i in range(5))
LAYER = 1


def rows():
    return [
        {"messages": [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": "AB" * (i % 5 + 1)}]}
        for i in range(8)
    ]


def quick(**changes):
    values = {"rank": 4, "learning_rate": 1e-2, "epochs": 3, "batch_size": 4, "accumulation": 1, "warmup_steps": 0}
    return pl.FinetuneSettings(**{**values, "dtype": "float32", **changes})


def steer_along(vector):
    return pl.steer(vector, layer=LAYER, coefficient=2.0)


def track(**changes):
    return VectorTracker.of_examples("loud", EXAMPLES, **{"every": 2, **changes})


def read_adapter(tuned):
    return load_file(tuned.folder / "adapter_model.safetensors")


def are_same(a, b):
    first, second = read_adapter(a), read_adapter(b)
    return first.keys() == second.keys() and all(bool((first[name] == second[name]).all()) for name in first)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("base"), "llama")
    make_tokenizer(template="<|endoftext|>" + make_tokenizer().chat_template).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(base):
    return pl.load_model(base, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def first(model):
    return pl.read_persona_vector(model, "loud", EXAMPLES)


@pytest.fixture(scope="module")
def followed(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("followed")
    return pl.finetune(base, rows(), out, settings=quick(), track=track(follow=steer_along))


def test_the_first_reading_is_the_base_models_and_the_last_the_trained_models(base, model, first, followed):
    merged = pl.load_model(base, adapter=followed.folder, dtype="float32", device="cpu")
    for step, expected in ((0, first), (6, pl.read_persona_vector(merged, "loud", EXAMPLES))):
        found = followed.load_vector(step)
        found.check_model(model)
        found.check_model(merged)
        assert torch.allclose(found.directions, expected.directions, atol=2e-4)
        (halves,) = (one.split_half_cosine["response_mean"] for one in [found])
        assert torch.allclose(halves, expected.split_half_cosine["response_mean"], atol=1e-4)
    assert float((found.directions - first.directions).abs().max()) > 0.05


@pytest.mark.slow
def test_a_training_in_half_precision_reads_in_it(base, first, tmp_path):
    settings = quick(dtype="bfloat16", epochs=1)
    found = pl.finetune(base, rows(), tmp_path, settings=settings, track=track()).load_vector(0)
    cosines = torch.nn.functional.cosine_similarity(found.directions, first.directions)
    assert float(cosines.min()) > 0.99
    assert not torch.allclose(found.directions, first.directions, atol=1e-5)


def test_a_reading_is_taken_every_few_steps_and_after_the_last(base, followed, tmp_path):
    assert [turn.step for turn in followed.turns] == [0, 2, 4, 6]
    odd = pl.finetune(base, rows()[:3], tmp_path, settings=quick(batch_size=1, epochs=1), track=track())
    assert [turn.step for turn in odd.turns] == [0, 2, 3]
    with pytest.raises(InvalidArgumentError, match=r"`step` must be one at which .* They are \[0, 2, 3\]"):
        odd.load_vector(1)


def test_a_reading_is_taken_where_another_tracker_stops_the_training(base, first, tmp_path):
    stopping = pl.finetuning.Tracker({"loud": first}, {"loud": LAYER}, {"loud": ["Why?"]}, limits={"loud": -99.0})
    done = pl.finetune(base, rows(), tmp_path, settings=quick(), track=[stopping, track(every=4)])
    assert len(done.losses) == 1
    assert [turn.step for turn in done.turns] == [0, 1]


def test_the_turns_are_those_of_the_vectors_that_were_kept(followed):
    kept = [followed.load_vector(turn.step) for turn in followed.turns]
    cosine = torch.nn.functional.cosine_similarity
    for index, turn in enumerate(followed.turns):
        now, before = kept[index].directions, kept[max(index - 1, 0)].directions
        assert torch.allclose(turn.with_first, cosine(kept[0].directions, now), atol=1e-5)
        assert torch.allclose(turn.with_previous, cosine(before, now), atol=1e-5)
        assert torch.allclose(turn.norms, kept[index].norms)
        assert torch.allclose(turn.halves, kept[index].split_half_cosine["response_mean"])
    assert float(followed.turns[-1].with_first.min()) < 0.999


def test_halves_crossed_share_no_answer():
    """Half one turns by a right angle, half two stays."""
    x, y = torch.eye(4)[:2]
    before = Reading(0, torch.stack([x, x])[:, None], 2)
    after = Reading(1, torch.stack([y, x])[:, None], 2)
    same, turned = compare_readings([before, after])
    assert same.crossed.tolist() == [1.0]
    assert turned.crossed.tolist() == pytest.approx([0.5])
    assert turned.halves.tolist() == pytest.approx([0.0])
    assert turned.with_first.tolist() == pytest.approx([0.5**0.5])
    assert turned.norms.tolist() == pytest.approx([0.5**0.5])


def test_reading_alone_changes_nothing_of_the_training(base, first, tmp_path):
    """Although the intervention is switched off meanwhile, and so is the mode of training."""
    given = {"settings": quick(), "intervention": steer_along(first)}
    plain, read = (
        pl.finetune(base, rows(), tmp_path / name, **given, **more)
        for name, more in (("plain", {}), ("read", {"track": track(every=1)}))
    )
    assert read.losses == plain.losses
    assert are_same(read, plain)


def test_following_a_vector_that_stays_is_bit_identical_to_steering_with_it(base, first, tmp_path):
    fixed = pl.finetune(base, rows(), tmp_path / "fixed", settings=quick(), intervention=steer_along(first))
    following = track(every=1, follow=lambda fresh: steer_along(first))
    followed = pl.finetune(base, rows(), tmp_path / "followed", settings=quick(), track=following)
    assert followed.losses == fixed.losses
    assert are_same(followed, fixed)


@pytest.mark.slow
def test_what_is_given_acts_beside_what_follows(base, first, tmp_path):
    both = pl.finetune(
        base, rows(), tmp_path / "both", settings=quick(), intervention=steer_along(first) + steer_along(first)
    )
    beside = pl.finetune(
        base, rows(), tmp_path / "beside", settings=quick(), intervention=steer_along(first),
        track=track(follow=lambda fresh: steer_along(first)),
    )  # fmt: skip
    assert beside.losses == both.losses
    assert are_same(beside, both)


def test_a_fresh_vector_acts_from_the_step_after_its_reading_and_not_before(base, followed, tmp_path):
    """Steered on with the first vector instead, the losses part where the second reading comes in."""
    seen = []

    def follow(vector):
        seen.append(vector)
        return steer_along(seen[0] if len(seen) == 1 else seen[1])  # the first that is given is a random one, to try it

    kept = pl.finetune(base, rows(), tmp_path, settings=quick(), track=track(follow=follow))
    assert len(seen) == 5
    assert torch.equal(seen[1].directions, followed.load_vector(0).directions)
    assert torch.equal(seen[2].directions, followed.load_vector(2).directions)
    assert kept.losses[:2] == followed.losses[:2]
    assert all(a != b for a, b in zip(kept.losses[2:], followed.losses[2:], strict=True))


@pytest.mark.slow
def test_each_step_is_steered_with_the_vector_that_was_kept_of_the_latest_reading(base, followed, tmp_path):
    """Those that were kept, handed out one after the other, make the same training bit by bit."""
    kept = iter([followed.load_vector(step) for step in (0, 0, 2, 4, 6)])  # the first for the random one
    again = pl.finetune(
        base, rows(), tmp_path, settings=quick(), track=track(follow=lambda fresh: steer_along(next(kept)))
    )
    assert again.losses == followed.losses
    assert are_same(again, followed)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_with_the_vector_that_it_followed(base, followed, tmp_path):
    arguments = {"settings": quick(save_steps=1), "track": track(follow=steer_along)}
    whole = pl.finetune(base, rows(), tmp_path / "whole", **arguments)
    assert whole.losses == followed.losses
    n_done = []

    @contextmanager
    def stop_before_the_fifth(description, n_steps):
        def advance(n):
            n_done.append(n)
            if len(n_done) == 4:
                raise KeyboardInterrupt

        yield advance

    out = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        pl.finetune(base, rows(), out, run=pl.Run(progress=stop_before_the_fifth), **arguments)
    resumed = pl.finetune(base, rows(), out, **arguments)
    assert resumed.losses == whole.losses
    assert are_same(resumed, whole)
    for one, other in zip(resumed.turns, whole.turns, strict=True):
        assert torch.equal(one.with_first, other.with_first)
    again = pl.finetune(base, rows(), out, **arguments)
    assert [turn.step for turn in again.turns] == [0, 2, 4, 6]


def test_another_tracker_is_another_run_and_the_same_is_not(base, followed):
    given = {"settings": quick()}
    same = track(follow=lambda vector: pl.steer(vector, layer=LAYER, coefficient=2.0))
    assert pl.finetune(base, rows(), followed.folder, track=same, **given).losses == followed.losses
    for other in (
        track(),
        track(every=1, follow=steer_along),
        track(against="ordinary", follow=steer_along),
        track(follow=lambda vector: pl.steer(vector, layer=LAYER, coefficient=2.5)),
        track(follow=lambda vector: pl.steer(vector, layer=0, coefficient=2.0)),
    ):
        with pytest.raises(InvalidArgumentError, match="a run with other track_vector'"):
            pl.finetune(base, rows(), followed.folder, track=other, **given)


@pytest.mark.slow
def test_a_training_whose_vectors_are_damaged_is_done_again(base, tmp_path):
    arguments = {"settings": quick(epochs=1), "track": track()}
    done = pl.finetune(base, rows(), tmp_path, **arguments)
    expected = done.load_vector(2).directions
    (tmp_path / "vectors" / "step-000002.safetensors").write_bytes(b"torn")
    again = pl.finetune(base, rows(), tmp_path, **arguments)
    assert torch.equal(again.load_vector(2).directions, expected)


def test_kept_responses_are_read_with_their_prompts(base, model, tmp_path):
    """Under the system prompts that drew them: the vector of the model's own responses, without sampling them again."""
    prompts = ("Be loud.", "Be quiet.")
    pairs = [
        tuple(
            [
                {"role": "system", "content": prompt}, {"role": "user", "content": f"Why {i}?"},
                {"role": "assistant", "content": answer * (i + 1)},
            ]
            for prompt, answer in zip(prompts, ("AH", "ah"), strict=True)
        )
        for i in range(3)
    ]  # fmt: skip
    means = [
        pl.vectors.read_response_means(model, [pair[side] for pair in pairs]).double().mean(dim=0) for side in (0, 1)
    ]
    found = pl.finetune(base, rows(), tmp_path, settings=quick(epochs=1), track=VectorTracker("loud", pairs))
    assert torch.allclose(found.load_vector(0).directions, (means[0] - means[1]).float(), atol=2e-4)
    assert found.load_vector(0).counts.kept == 3


@pytest.mark.parametrize(
    ("follow", "error", "message"),
    [
        (lambda vector: vector, InvalidArgumentError, "`track.follow` must return an Intervention"),
        (lambda vector: steer_along(vector).during(Window(stop=3)), InvalidArgumentError, "have no window here"),
        (lambda vector: pl.steer(vector, layer=9), LayerOutOfRangeError, r"\[0, 3\)"),
        (lambda vector: pl.Intervention(fingerprint="another"), ModelMismatchError, "track.follow"),
    ],
)
def test_what_cannot_be_followed_is_refused_before_training(base, follow, error, message, tmp_path, monkeypatch):
    from persona_lens.finetuning import trainer

    monkeypatch.setattr(trainer, "make_trainer", lambda *_: pytest.fail("training began"))
    with pytest.raises(error, match=message):
        pl.finetune(base, rows(), tmp_path, settings=quick(), track=track(follow=follow))


@pytest.mark.slow
def test_both_kinds_are_tracked_at_once_and_two_of_a_kind_are_refused(base, first, followed, tmp_path):
    projections = pl.finetuning.Tracker({"loud": first}, {"loud": LAYER}, {"loud": ["Why?"]}, every=3)
    both = [projections, track(follow=steer_along)]
    found = pl.finetune(base, rows(), tmp_path, settings=quick(), track=both)
    assert found.losses == followed.losses
    assert [entry["step"] for entry in found.tracked] == [0, 3, 6]
    assert [turn.step for turn in found.turns] == [0, 2, 4, 6]
    for kind in both:
        with pytest.raises(InvalidArgumentError, match="`track` must hold at most one tracker of a kind"):
            pl.finetune(base, rows(), tmp_path, track=[kind, kind])


def test_what_cannot_be_read_is_refused_before_training(base, tmp_path):
    question = [{"role": "user", "content": "Why?"}]
    with pytest.raises(InvalidArgumentError, match="end with a non-empty assistant message"):
        pl.finetune(base, rows(), tmp_path, track=VectorTracker("loud", [(question, question)] * 2))
    with pytest.raises(InvalidArgumentError, match="`pairs` must be at least 2"):
        VectorTracker("loud", [(question, question)])
    with pytest.raises(InvalidArgumentError, match="`every` must be at least 1"):
        track(every=0)
