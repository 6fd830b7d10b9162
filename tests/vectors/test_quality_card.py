"""A vector's card: what is on it, what is missing, and that it is kept and shown whole."""

import json
from dataclasses import asdict, replace

import pytest
import torch

import persona_lens as pl
from persona_lens.plots import plot_quality
from persona_lens.statistics import Interval
from persona_lens.vectors import NullMargin, QualityData, UnembeddedLayer, Unembedding, VectorQuality
from tests.small_trait import write_examples

EXAMPLES = write_examples(6)
EVIL = "<script>alert(1)</script>|`"


@pytest.fixture(scope="module")
def data(tiny_model):
    pairs = pl.vectors.read_pairs(tiny_model, "loud", EXAMPLES)
    other = pl.vectors.read_pairs(tiny_model, EVIL, EXAMPLES, against="style")
    return QualityData(pairs, pairs, tuple((10 + i, 20 - i % 3) for i in range(6)), other, (other,))


@pytest.fixture(scope="module")
def vector(data):
    return pl.vectors.find_vector(data.pairs)


@pytest.fixture(scope="module")
def card(tiny_model, vector, data):
    null = NullMargin("a judge", 1, 2.0, Interval(3.0, -1.0, 7.0), 50.0, 51.0)
    return vector.quality(tiny_model, data, layer=2, again=-1.0 * vector, null=null)


def test_a_card_holds_every_measure_of_every_layer_and_comes_back_from_its_file(card, tmp_path):
    assert card.missing == {}
    for measure in (
        card.stability.agreement, card.stability.cone, card.separation.auroc, card.separation.d_prime, card.length,
        card.style.auroc, card.specificity[0].cosine, card.unembedding.layers, card.again.cosine, card.reproduced,
    ):  # fmt: skip
        assert len(measure) == 3
    assert card.reproduced == pytest.approx((1.0,) * 3)
    assert [one.estimate for one in card.again.cosine] == pytest.approx([-1.0] * 3)
    card.save(tmp_path / "card.json")
    again = VectorQuality.load(tmp_path / "card.json")
    assert again.to_json() == card.to_json()
    assert again.list_lines() == card.list_lines()


def test_a_card_says_what_was_not_measured_and_what_it_takes(tiny_model, vector):
    card = vector.quality(tiny_model, QualityData())
    assert set(card.missing) == {"stability", "separation", "length", "style", "specificity", "again", "null"}
    assert "again: not measured" in {name for name, _, _ in card.list_lines()}
    assert card.list_concerns() == ()
    assert "not measured" in repr(card)
    texts = [one.text for one in plot_quality(card).layout.annotations]
    assert texts.count("not measured") == 5  # the unembedding needs the model alone


def test_lines_are_of_the_layer_asked_for(card):
    assert card.list_lines() == card.list_lines(2)
    values = {name: value for name, value, _ in card.list_lines(0)}
    assert values["agreement of single differences"] == str(card.stability.agreement[0])
    assert values["held-out AUROC"] == str(card.separation.auroc[0])
    with pytest.raises(pl.errors.LayerOutOfRangeError):
        card.list_lines(3)


def test_text_is_escaped_wherever_it_is_shown(card):
    tokens = (UnembeddedLayer(((EVIL, 3.0),), ((EVIL, -3.0),), 0.5),) * 3
    marked = replace(card, trait=EVIL, unembedding=Unembedding(tokens, Interval(0.1, 0.0, 0.2)))
    for page in (marked._repr_html_(), marked.to_markdown(), plot_quality(marked).to_json()):
        assert "<script>" not in page
    rows = [line for line in marked.to_markdown().splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {4}


def everywhere(estimate, low, high):
    return (Interval(estimate, low, high),) * 3


def test_concerns_are_what_is_sure_against_a_vector(card):
    stability = replace(card.stability, pairwise=everywhere(0.3, 0.1, 0.5), split_half=everywhere(0.8, 0.7, 0.9))
    (other,) = card.specificity
    good = replace(
        card,
        stability=stability,
        again=replace(card.again, cosine=everywhere(0.9, 0.85, 0.95)),
        separation=replace(card.separation, auroc=everywhere(0.9, 0.8, 1.0)),
        length=everywhere(0.1, -0.1, 0.3),
        style=replace(card.style, auroc=everywhere(0.5, 0.4, 0.6)),
        specificity=(replace(other, auroc=everywhere(0.5, 0.4, 0.6)),),
        null=replace(card.null, margin=Interval(5.0, 1.0, 9.0)),
    )
    assert good.list_concerns() == ()
    worse = {
        "another direction than": {"reproduced": (0.5,) * 3},
        "do not surely agree": {"stability": replace(stability, pairwise=everywhere(0.1, -0.1, 0.3))},
        "other pairs would": {"stability": replace(stability, split_half=everywhere(0.5, 0.4, 0.6))},
        "found anew": {"again": replace(card.again, cosine=everywhere(0.7, 0.7, 0.9))},
        "told apart": {"separation": replace(card.separation, auroc=everywhere(0.6, 0.4, 0.8))},
        "style": {"style": replace(card.style, auroc=everywhere(0.8, 0.6, 0.9))},
        "length": {"length": everywhere(-0.4, -0.6, -0.2)},
        "other traits": {"specificity": (replace(other, auroc=everywhere(0.2, 0.1, 0.4)),)},
        "equal coherence": {"null": replace(card.null, margin=Interval(1.0, -1.0, 3.0))},
        "pushed less": {"null": replace(card.null, margin=Interval(5.0, 1.0, 9.0), null_coherence=56.0)},
        "less coherent, by 6 points: they were pushed more": {
            "null": replace(card.null, margin=Interval(5.0, 1.0, 9.0), null_coherence=44.0)
        },
    }
    for word, change in worse.items():
        (concern,) = replace(good, **change).list_concerns()
        assert word in concern


def test_pairs_and_vectors_of_another_model_are_refused(tiny_model, vector, data):
    foreign = replace(data.pairs, model=replace(data.pairs.model, fingerprint="f" * 16))
    with pytest.raises(pl.errors.ModelMismatchError, match="data"):
        vector.quality(tiny_model, QualityData(held_out=foreign))
    with pytest.raises(pl.errors.ModelMismatchError, match="again"):
        vector.quality(tiny_model, QualityData(), again=replace(vector, model=foreign.model))
    with pytest.raises(pl.errors.InvalidArgumentError, match="lengths"):
        QualityData(lengths=((1, 2),))


def test_what_is_bundled_is_read_for_a_trait_and_the_other_traits(roomy_folder):
    model = pl.load_model(roomy_folder, dtype="float32", device="cpu")
    data = pl.vectors.read_quality_data(model, "evil", n_examples=4)
    others = [name for name in pl.traits.list_written_traits() if name != "evil"]
    assert [len(one) for one in data.list_pairs()] == [4] * (3 + len(others))
    judging = pl.traits.load_written_examples("evil", "judging")[:4]
    assert data.lengths[0][0] == len(model.tokenizer.encode(judging[0].overt, add_special_tokens=False))
    plain = pl.vectors.read_pairs(model, "evil", judging, against="ordinary")
    assert torch.equal(data.style.negative, plain.negative)
    assert not torch.equal(data.style.positive, plain.positive)
    assert [one.trait for one in data.others] == others
    with pytest.raises(pl.errors.InvalidArgumentError, match="n_examples"):
        pl.vectors.read_quality_data(model, "evil", n_examples=3)


def test_a_traits_own_written_examples_are_read_from_their_file(roomy_folder, tmp_path):
    model = pl.load_model(roomy_folder, dtype="float32", device="cpu")
    rows = [
        asdict(one) | {"half": half}
        for half in ("training", "judging")
        for one in pl.traits.load_written_examples("evil", half)[:4]
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    data = pl.vectors.read_quality_data(model, "mine", examples=path, n_examples=4)
    bundled = pl.vectors.read_quality_data(model, "evil", n_examples=4)
    for name in ("pairs", "held_out", "style"):
        assert torch.equal(getattr(data, name).positive, getattr(bundled, name).positive)
    assert data.lengths == bundled.lengths
    assert [one.trait for one in data.others] == list(pl.traits.list_written_traits())
    card = pl.read_persona_vector(model, "mine", pl.traits.load_written_examples(path, "training")).quality(model, data)
    assert not {"stability", "separation", "length", "style", "specificity"} & set(card.missing)
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        pl.vectors.read_quality_data(model, "mine", examples=tmp_path / "none.jsonl")


def test_without_answers_in_a_style_that_is_not_measured_and_with_some_none_may_lack_one(roomy_folder, tmp_path):
    model = pl.load_model(roomy_folder, dtype="float32", device="cpu")
    bare = [
        {"question": f"Why {i}?", "overt": f"SO {i}!", "opposite": f"so {i}", "half": half}
        for half in ("training", "judging")
        for i in range(4)
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, bare)))
    data = pl.vectors.read_quality_data(model, "mine", examples=path, n_examples=4)
    assert (data.style, len(data.held_out)) == (None, 4)
    bare[-1] |= {"style": "Soo.", "ordinary": "So."}
    path.write_text("\n".join(map(json.dumps, bare)))
    with pytest.raises(pl.errors.InvalidArgumentError, match=r"must have a 'style' answer each.* in example 1, 'Why 0"):
        pl.vectors.read_quality_data(model, "mine", examples=path, n_examples=4)


def test_a_sampled_vectors_stability_is_not_that_of_written_answers(tiny_model, vector, data, monkeypatch):
    monkeypatch.setattr("persona_lens.vectors.quality.assessing.read_quality_data", lambda model, trait: data)
    assert vector.quality(tiny_model).stability is not None  # its provenance names written examples
    assert replace(vector, provenance={}).quality(tiny_model).stability is None


def test_the_table_is_of_the_layer_that_a_vector_was_tried_at(tiny_model, vector):
    assert vector.quality(tiny_model, QualityData()).layer == 1  # the middle one
    tried = replace(vector, provenance={"setting": {"layer": 2}})
    assert tried.quality(tiny_model, QualityData()).layer == 2
