"""Gradient similarity, against gradients taken by hand."""

import math

import pytest
import torch

import persona_lens as pl
from persona_lens.screening import GradientSketch, MeanGradient, ScreenSettings, read_gradient, score_gradients
from persona_lens.storage import ShardStore
from tests.backends import BACKENDS
from tests.interventions.test_steering import make_vector
from tests.screening.test_scores import converse

SETTINGS = ScreenSettings(max_response_tokens=6, max_prompt_tokens=80)
# No matrix has so many rows: nothing is sketched.
WHOLE = GradientSketch(10_000)
# Bytes of three layers' gradients of which two inputs are left; heads kept apart are sketched one by one.
_OTHERS = 2 * (48 + 2 * 16 + 2 * 80 + 48)  # queries, keys and values, the MLP
N_SKETCHED = {"hooked": 4 * 3 * (_OTHERS + 2 * 6 * 48), "bridge": 4 * 3 * (_OTHERS + 2 * 48)}
ROWS = [converse("Why?", "So be."), converse("Who are you then?", "I!"), converse("When?", "Never, no.")]


def grade_by_hand(model, row):
    """The gradient of a row's mean loss on every matrix of the blocks, one long vector; and the loss."""
    encoded = pl.models.encode_conversation(model.tokenizer, row["messages"])
    start, end = encoded.response_start, min(encoded.response_end, encoded.response_start + 6)
    matrices = [one for name, one in model.blocks.named_parameters() if one.ndim > 1 and "b_" not in name]
    model.zero_grad()
    logits = model(torch.tensor([encoded.tokens[:end]]))[0]
    loss = sum(-logits[t - 1].log_softmax(-1)[encoded.tokens[t]] for t in range(start, end)) / (end - start)
    loss.backward()
    found = torch.cat([one.grad.flatten() for one in matrices]).double()
    model.zero_grad()
    return found, float(loss.detach())


def test_similarity_is_the_cosine_of_gradients_taken_by_hand(tiny_model):
    reference = read_gradient(tiny_model, ROWS[:2], settings=SETTINGS, sketch=WHOLE)
    found = score_gradients(tiny_model, ROWS, {"loud": reference}, settings=SETTINGS)
    by_hand = [grade_by_hand(tiny_model, row) for row in ROWS]
    mean = sum(one / one.norm() for one, _ in by_hand[:2]) / 2
    for index, (gradient, loss) in enumerate(by_hand):
        expected = float(gradient @ mean / gradient.norm() / mean.norm())
        assert found.similarity["loud"][index] == pytest.approx(expected, abs=1e-5)
        assert found.loss[index] == pytest.approx(loss, abs=1e-5)
        assert found.norm[index] == pytest.approx(float(gradient.norm()), rel=1e-5)
    assert found.n_response_tokens == (6, 2, 6)
    assert reference.norm == pytest.approx(float(mean.norm()), abs=1e-6)


def test_reading_leaves_no_gradient_behind(tiny_folder):
    model = pl.load_model(tiny_folder("llama"), dtype="float32", device="cpu")
    with torch.no_grad():  # as in a notebook that computes without gradients
        read_gradient(model, ROWS[:1], settings=SETTINGS)
    assert all(one.grad is None for one in model.parameters())


def test_a_difference_of_two_is_the_way_from_the_ones_rows_to_the_others(tiny_model):
    loud, soft = (read_gradient(tiny_model, [row], settings=SETTINGS, sketch=WHOLE) for row in ROWS[:2])
    found = score_gradients(tiny_model, ROWS, {"loud": loud - soft}, settings=SETTINGS)
    first, second, third = (grade_by_hand(tiny_model, row)[0] for row in ROWS)
    way = first / first.norm() - second / second.norm()
    expected = [float(one @ way / one.norm() / way.norm()) for one in (first, second, third)]
    assert found.similarity["loud"] == pytest.approx(expected, abs=1e-5)
    assert (loud - soft).n_rows == 2


@pytest.mark.skipif("hooked" not in BACKENDS, reason="TransformerLens 4 has no HookedTransformer")
def test_a_sketch_is_the_gradient_on_a_fresh_adapters_second_matrix(tiny_model):
    """With y = x W + x A B and B = 0, the loss's gradient on B is A's transpose times that on W."""
    sketch = GradientSketch(4, seed=3)
    reference = read_gradient(tiny_model, ROWS[:1], settings=SETTINGS, sketch=sketch)
    whole = read_gradient(tiny_model, ROWS[:1], settings=SETTINGS, sketch=WHOLE)
    name = "blocks.1.mlp.W_in"
    layer, x = tiny_model.blocks[1].mlp, []
    handle = tiny_model.blocks[1].ln2.register_forward_hook(lambda module, given, output: x.append(output))
    generator = torch.Generator().manual_seed(3)
    drawn = {
        key: torch.randn(4, one.shape[-2], generator=generator) / 2
        for key, one in tiny_model.named_parameters()
        if key in whole.by_weight
    }
    b = torch.zeros(4, layer.W_in.shape[1], requires_grad=True)
    adapted = layer.hook_pre_linear.register_forward_hook(
        lambda module, given, output: output + x[-1] @ drawn[name].T @ b
    )
    try:
        encoded = pl.models.encode_conversation(tiny_model.tokenizer, ROWS[0]["messages"])
        start = encoded.response_start
        logits = tiny_model(torch.tensor([encoded.tokens[: start + 6]]))[0, start - 1 : start + 5]
        torch.nn.functional.cross_entropy(logits, torch.tensor(encoded.tokens[start : start + 6])).backward()
    finally:
        handle.remove()
        adapted.remove()
        tiny_model.zero_grad()
    cosine = torch.nn.functional.cosine_similarity(reference.by_weight[name].flatten(), b.grad.flatten(), dim=0)
    assert float(cosine) == pytest.approx(1, abs=1e-5)
    assert reference.by_weight[name].shape == (4, layer.W_in.shape[1])
    assert reference.n_bytes < whole.n_bytes / 2


def test_sketched_similarities_come_near_the_whole_ones_as_the_rank_grows(tiny_model):
    def score(sketch):
        reference = read_gradient(tiny_model, ROWS[:1], settings=SETTINGS, sketch=sketch)
        return score_gradients(tiny_model, ROWS[1:], {"loud": reference}, settings=SETTINGS).values("loud")

    exact = score(WHOLE)
    errors = {rank: sum(float((score(GradientSketch(rank, seed)) - exact).abs().mean()) for seed in range(4)) / 4
              for rank in (1, 16)}  # fmt: skip
    assert errors[16] < errors[1] / 2
    assert errors[16] < 0.05


def test_rows_that_cannot_be_scored_have_a_line_with_the_reason(tiny_model):
    reference = read_gradient(tiny_model, ROWS[:1], settings=SETTINGS)
    data = [converse("x" * 100, "Yes."), {"messages": []}, *ROWS]
    found = score_gradients(tiny_model, data, {"loud": reference}, settings=SETTINGS)
    assert found.status == ("prompt too long", "no messages", "scored", "scored", "scored")
    assert found.similarity["loud"][:2] == found.loss[:2] == (None, None)
    assert found.counts == {"scored": 3, "prompt too long": 1, "no messages": 1}
    assert found.rows["loud.similarity"][:] == list(found.similarity["loud"])
    assert len(found.values("loud")) == 3
    assert score_gradients(tiny_model, data, {"loud": reference}, settings=SETTINGS, max_rows=3).counts["scored"] == 1


def test_scores_stand_beside_a_screenings_of_the_same_rows(tiny_model, tmp_path):
    reference = read_gradient(tiny_model, ROWS[:1], settings=SETTINGS)
    vector = make_vector(tiny_model)
    screened = pl.screen(tiny_model, ROWS, {"loud": vector}, tmp_path / "s", layers={"loud": 1}, settings=SETTINGS)
    found = score_gradients(tiny_model, ROWS, {"loud": reference}, settings=SETTINGS)
    joined = found.join(screened)
    assert {"loud.delta", "loud.similarity", "loss", "norm"} <= set(joined.column_names)
    assert joined["n_response_tokens"][:] == list(found.n_response_tokens)
    with pytest.raises(pl.errors.InvalidArgumentError, match="`screening` must be of the same 2 rows"):
        score_gradients(tiny_model, ROWS[:2], {"loud": reference}, settings=SETTINGS).join(screened)


def test_a_run_that_is_killed_between_chunks_computes_the_others_alone(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("persona_lens.screening.gradients._SHARD_ROWS", 1)
    run = pl.Run(ShardStore(tmp_path, {"a": 1}))
    reference = read_gradient(tiny_model, ROWS[:1], settings=SETTINGS)
    whole = score_gradients(tiny_model, ROWS, {"loud": reference}, settings=SETTINGS)
    grad, n_taken = torch.autograd.grad, 0

    def take(*given, **options):
        nonlocal n_taken
        n_taken += 1
        if n_taken == 2:
            raise KeyboardInterrupt
        return grad(*given, **options)

    monkeypatch.setattr(torch.autograd, "grad", take)
    with pytest.raises(KeyboardInterrupt):
        score_gradients(tiny_model, ROWS, {"loud": reference}, settings=SETTINGS, run=run)
    again = score_gradients(tiny_model, ROWS, {"loud": reference}, settings=SETTINGS, run=run)
    assert again.to_json() == whole.to_json()
    assert n_taken == 4  # one was kept, one was broken off, two came after


def test_a_finished_run_computes_nothing_again_and_other_references_are_scored_anew(tiny_model, tmp_path, monkeypatch):
    run = pl.Run(ShardStore(tmp_path, {"a": 1}))
    reference = read_gradient(tiny_model, ROWS[:1], settings=SETTINGS, run=run)
    first = score_gradients(tiny_model, ROWS, {"loud": reference}, settings=SETTINGS, run=run)
    short = ScreenSettings(max_response_tokens=3, max_prompt_tokens=80)
    assert score_gradients(tiny_model, ROWS, {"loud": reference}, settings=short, run=run).loss != first.loss
    assert read_gradient(tiny_model, ROWS[:1], settings=SETTINGS, sketch=WHOLE, run=run).n_bytes > reference.n_bytes
    other = read_gradient(tiny_model, ROWS[1:2], settings=SETTINGS)
    assert score_gradients(tiny_model, ROWS, {"loud": other}, settings=SETTINGS, run=run).similarity != first.similarity

    def refuse(*given, **options):
        raise AssertionError("computed again")

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    again = score_gradients(tiny_model, ROWS, {"loud": reference}, settings=SETTINGS, run=run)
    assert again.to_json() == first.to_json()
    kept = read_gradient(tiny_model, ROWS[:1], settings=SETTINGS, run=run)
    assert kept.digest == reference.digest


def test_a_bridge_gives_the_same_as_a_hooked_model(tiny_model, tiny_bridge):
    found = []
    for model in (tiny_model, tiny_bridge):
        reference = read_gradient(model, ROWS[:1], settings=SETTINGS, sketch=WHOLE)
        found.append(score_gradients(model, ROWS, {"loud": reference}, settings=SETTINGS))
        # Whichever way a matrix is stored, its inputs are what is sketched.
        sketched = read_gradient(model, ROWS[:1], settings=SETTINGS, sketch=GradientSketch(2))
        assert sketched.n_bytes == N_SKETCHED[pl.describe_model(model).backend]
    assert found[0].similarity["loud"] == pytest.approx(found[1].similarity["loud"], abs=1e-4)


def test_what_cannot_be_compared_is_refused_before_any_row_is_read(tiny_model, tiny_folder):
    reference = read_gradient(tiny_model, ROWS[:1], settings=SETTINGS)
    errors = pl.errors
    with pytest.raises(errors.InvalidArgumentError, match="`references` must be a mapping by name"):
        score_gradients(tiny_model, ROWS, {})
    other = read_gradient(tiny_model, ROWS[:1], settings=SETTINGS, sketch=GradientSketch(2))
    with pytest.raises(errors.InvalidArgumentError, match="`references` must be sketched alike"):
        score_gradients(tiny_model, ROWS, {"a": reference, "b": other})
    with pytest.raises(errors.InvalidArgumentError, match="`other` must be sketched alike"):
        reference - other
    with pytest.raises(errors.InvalidArgumentError, match="`references` must have a length above zero"):
        score_gradients(tiny_model, ROWS, {"a": reference - reference})
    with pytest.raises(errors.InvalidArgumentError, match="`data` must hold conversations that can be scored"):
        read_gradient(tiny_model, [converse("x" * 100, "Yes.")], settings=SETTINGS)
    with pytest.raises(errors.InvalidArgumentError, match="`data` must hold at least one conversation"):
        read_gradient(tiny_model, [])
    foreign = MeanGradient(
        reference.by_weight, pl.describe_model(pl.load_model(tiny_folder("qwen2"))), reference.sketch, 1
    )
    with pytest.raises(errors.ModelMismatchError, match="`references` must come from the model that scores"):
        score_gradients(tiny_model, ROWS, {"a": foreign})
    few = MeanGradient(dict(list(reference.by_weight.items())[:2]), reference.model, reference.sketch, 1)
    ones = {name: torch.ones(1) for name in reference.by_weight}
    for wrong in (few, MeanGradient(ones, reference.model, reference.sketch, 1)):
        with pytest.raises(errors.ModelMismatchError, match="`references` must be of the matrices of `model`"):
            score_gradients(tiny_model, ROWS, {"a": wrong})
    with pytest.raises(TypeError, match="unsupported operand"):
        reference - 3
    with pytest.raises(errors.InvalidArgumentError, match="`data` must hold a conversation that can be scored"):
        score_gradients(tiny_model, [{"messages": []}], {"a": reference}, settings=SETTINGS)
    assert math.isclose(reference.norm, 1.0, rel_tol=1e-5)


def test_weights_without_gradients_are_refused(tiny_folder):
    model = pl.load_model(tiny_folder("llama"), dtype="float32", device="cpu")
    for weight in model.parameters():
        weight.requires_grad_(False)
    with pytest.raises(pl.errors.UnsupportedModelError, match="take gradients"):
        read_gradient(model, ROWS)
