"""Signals whose place is known by construction, then tiny models that were really trained."""

from dataclasses import replace

import pytest
import torch

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, LayerOutOfRangeError, ModelMismatchError
from persona_lens.finetuning import FoundSignal, SignalActivations, SignalReading, find_signal, measure_signal
from persona_lens.vectors import ActivationPairs
from tests.tiny import save_tiny

N, LAYERS, WIDTH = 16, 3, 48
EXAMPLES = [
    pl.traits.WrittenExample(
        f"Say {'very ' * (i % 3)}{i}?", ordinary=f"Well {i}.", overt=f"NO {'!' * (i % 4)}{i}", opposite="Yes."
    )
    for i in range(6)
]


@pytest.fixture(scope="module")
def info(tiny_model):
    return pl.describe_model(tiny_model)


@pytest.fixture(scope="module")
def first(info):
    """The vector that was there first: along the first axis at every layer, of length 2."""
    return pl.PersonaVector("loud", info, {"response_mean": 2 * axis(0).repeat(LAYERS, 1)})


def axis(at):
    return torch.nn.functional.one_hot(torch.tensor(at), WIDTH).float()


def make(info, signal, change=None, *, seed=0):
    """Activations of noise, the positive side further along ``signal`` by layer; all moved by ``change`` by layer."""
    noise = torch.randn(5, N, LAYERS, WIDTH, generator=torch.Generator().manual_seed(seed))
    noise = noise + (0 if change is None else change)
    answers = {
        position: ActivationPairs("loud", info, noise[at] + signal, noise[at + 1], tuple(range(N)))
        for position, at in (("response_mean", 1), ("last_response", 3))
    }
    return SignalActivations(noise[0], answers)


def along(at, size=4.0, layers=range(LAYERS)):
    """Return a signal of a size along an axis, at some layers."""
    return torch.stack([size * axis(at) * (layer in layers) for layer in range(LAYERS)])


def test_a_signal_that_moved_to_an_orthogonal_direction_is_seen_by_a_fresh_vector_and_a_probe_alone(info, first):
    where_it_was = measure_signal(make(info, along(0)), first)
    for position in ("response_mean", "last_response"):
        assert {name: one.auroc[1].estimate > 0.9 for name, one in where_it_was.text[position].items()} == {
            "first vector": True, "fresh vector": True, "probe": True,
        }  # fmt: skip
    moved = measure_signal(make(info, along(5)), first)
    for position in ("response_mean", "last_response"):
        seen = moved.text[position]
        assert seen["first vector"].auroc[1].low < 0.5 < seen["first vector"].auroc[1].high
        assert seen["fresh vector"].auroc[1].low > 0.8
        assert seen["probe"].auroc[1].low > 0.8
        assert moved.cosine[position][1].high < 0.5 < where_it_was.cosine[position][1].low


def test_a_signal_at_another_layer_is_seen_there_by_all_and_nowhere_else(info, first):
    found = measure_signal(make(info, along(0, layers=[2])), first)
    for one in found.text["response_mean"].values():
        assert one.auroc[2].low > 0.8
        assert all(one.auroc[layer].low < 0.5 < one.auroc[layer].high for layer in (0, 1))


def test_a_move_is_measured_in_lengths_of_the_vector_that_reads_it(info, first):
    """Along the fresh direction by half of its length; the first vector sees nothing of it, or, along it, all."""
    still = make(info, along(5, 40.0))
    aside = measure_signal(make(info, along(5, 40.0), along(5, 20.0, layers=[1])), first, still)
    straight = measure_signal(make(info, along(5, 40.0), along(0, 3.0)), first, still)
    for position in ("last_prompt", "response_mean", "last_response"):
        assert aside.find_move("first vector", 1, position).estimate == pytest.approx(0, abs=1e-6)
        assert aside.find_move("fresh vector", 1, position).estimate == pytest.approx(0.5, abs=0.02)
        assert aside.find_move("probe", 1, position).estimate == pytest.approx(0.5, abs=0.02)
        assert aside.find_move("fresh vector", 0, position).estimate == pytest.approx(0, abs=1e-6)
        assert straight.find_move("first vector", 1, position).estimate == pytest.approx(1.5, abs=1e-5)


def test_a_prompts_end_is_read_along_what_reads_whole_responses(info, first):
    still = make(info, along(5, 40.0))
    last = replace(still.answers["last_response"], positive=still.answers["last_response"].negative + along(7, 40.0))
    still = replace(still, answers={**still.answers, "last_response": last})
    found = measure_signal(replace(still, prompts=still.prompts + along(5, 20.0)), first, still)
    assert found.find_move("fresh vector", 1, "last_prompt").estimate == pytest.approx(0.5, abs=0.02)
    assert found.find_move("fresh vector", 1, "last_response").estimate == 0


def test_what_reads_is_tried_on_questions_that_it_was_not_found_on(info, first):
    """Of noise in more dimensions than answers any direction that saw them would tell all of them apart."""
    found = [measure_signal(make(info, along(0, 0.0), seed=seed), first).text["response_mean"] for seed in range(2)]
    for reader in ("fresh vector", "probe"):
        estimates = [interval.estimate for one in found for interval in one[reader].auroc]
        assert 0.3 < sum(estimates) / len(estimates) < 0.7


def test_the_cosine_of_what_has_not_turned_is_one(info):
    pairs = make(info, along(0)).answers["response_mean"]
    own = pl.vectors.find_vector(pairs)
    assert [one.estimate for one in measure_signal(make(info, along(0)), own).cosine["response_mean"]] == pytest.approx(
        [1.0] * LAYERS
    )


def test_what_does_not_fit_together_is_refused(info, first):
    read = make(info, along(0))
    with pytest.raises(InvalidArgumentError, match=f"n_folds.*{N}"):
        measure_signal(read, first, n_folds=N + 1)
    with pytest.raises(InvalidArgumentError, match=r"vector.*none at \[1\]"):
        measure_signal(read, replace(first, by_position={"response_mean": along(0, layers=[0, 2])}))
    with pytest.raises(InvalidArgumentError, match="`vector` must be of the trait that was read, 'loud'"):
        measure_signal(read, replace(first, trait="shy"))
    twice = {at: replace(pairs, questions=(0, *range(N - 1))) for at, pairs in read.answers.items()}
    with pytest.raises(InvalidArgumentError, match=r"each question once.*\[0\]"):
        SignalActivations(read.prompts, twice)
    with pytest.raises(ModelMismatchError, match="vector"):
        measure_signal(read, replace(first, model=replace(info, fingerprint="another")))
    with pytest.raises(ModelMismatchError, match="base"):
        measure_signal(read, first, make(replace(info, fingerprint="another"), along(0)))
    others = {at: replace(pairs, provenance={"examples": "others"}) for at, pairs in read.answers.items()}
    with pytest.raises(InvalidArgumentError, match="same answers"):
        measure_signal(read, first, replace(read, answers=others))
    with pytest.raises(InvalidArgumentError, match="answers"):
        SignalActivations(read.prompts, {"response_mean": read.answers["response_mean"]})
    with pytest.raises(InvalidArgumentError, match="shape"):
        SignalActivations(read.prompts[:4], read.answers)
    with pytest.raises(InvalidArgumentError, match="base"):
        measure_signal(read, first).find_move("probe", 1)


@pytest.fixture(scope="module")
def tuned(tiny_folder, tmp_path_factory):
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "NO!"}]}
    settings = pl.FinetuneSettings(rank=4, learning_rate=1e-2, accumulation=1, warmup_steps=0, dtype="float32")
    base = tiny_folder("llama")
    done = pl.finetune(base, [row] * 4, tmp_path_factory.mktemp("tuned"), settings=settings)
    return pl.load_model(base, adapter=done.folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def found(tiny_model, tuned, first):
    return find_signal(tiny_model, tuned, first, EXAMPLES)


def test_a_trained_models_moves_are_those_of_its_activations(tiny_model, tuned, first, found):
    for index, one in enumerate(EXAMPLES):
        chat = [{"role": "user", "content": one.question}, {"role": "assistant", "content": one.ordinary}]
        spans = pl.models.encode_conversation(tiny_model.tokenizer, chat)
        tokens = torch.tensor([spans.tokens])
        before, after = (pl.cache_residual_stream(model, tokens)[:, 0] for model in (tiny_model, tuned))
        change = after - before
        for position, expected in (
            ("last_prompt", change[:, spans.response_start - 1]),
            ("response_mean", change[:, spans.response_start : spans.response_end].mean(dim=1)),
            ("last_response", change[:, spans.response_end - 1]),
        ):
            moved = found.after.moved[position]["first vector"][:, index]
            torch.testing.assert_close(moved, expected[:, 0] / 2, atol=1e-4, rtol=1e-3)
    assert found.after.moved["last_prompt"]["first vector"].abs().max() > 1e-3


def test_a_found_signal_comes_back_from_its_file_says_itself_and_is_drawn(found, tmp_path):
    found.save(tmp_path / "found.json")
    again = FoundSignal.load(tmp_path / "found.json")
    assert again.to_json() == found.to_json()
    said = again.describe(1).splitlines()
    assert [line.split(":")[0] for line in said[1:4]] == ["first vector", "fresh vector", "probe"]
    assert str(found.after.find_move("probe", 1)) in said[3]
    furthest = max(range(LAYERS), key=lambda layer: found.after.find_move("probe", layer).estimate)
    estimate = found.after.find_move("probe", furthest).estimate
    assert f"(furthest, chosen afterwards: {estimate:.2f} at layer {furthest});" in said[3]
    figure = again.plot(1)
    move = found.after.find_move("probe", 1).estimate
    assert f"{move:.2f} along the probe" in figure.layout.title.text.replace("<br>", " ")
    drawn = [list(trace.y) for trace in figure.data]
    for reader in ("first vector", "fresh vector", "probe"):
        assert [found.after.find_move(reader, layer).estimate for layer in range(LAYERS)] in drawn
        assert [one.estimate for one in found.before.text["response_mean"][reader].auroc] in drawn
    for refused in (found.describe, found.plot):
        with pytest.raises(LayerOutOfRangeError):
            refused(3)


def test_a_model_has_not_moved_from_itself_and_another_base_is_refused(tiny_model, first, tmp_path):
    same = find_signal(tiny_model, tiny_model, first, EXAMPLES).after
    assert isinstance(same, SignalReading)
    assert not any(values.any() for readers in same.moved.values() for values in readers.values())
    stranger = pl.load_model(save_tiny(tmp_path, "llama", seed=5), dtype="float32", device="cpu")
    with pytest.raises(ModelMismatchError):
        find_signal(tiny_model, stranger, first, EXAMPLES)
    with pytest.raises(InvalidArgumentError, match="n_folds"):
        find_signal(tiny_model, tiny_model, first, EXAMPLES, n_folds=7)
