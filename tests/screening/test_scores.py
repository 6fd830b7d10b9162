import pytest
import torch

import persona_lens as pl
from persona_lens.conversations import BadRow, read_conversations
from persona_lens.screening.scores import score_rows

SETTINGS = pl.screening.ScreenSettings(max_response_tokens=6, max_prompt_tokens=80)


def converse(*texts):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]}


@pytest.fixture
def units(tiny_model):
    torch.manual_seed(0)
    one, two = (torch.nn.functional.normalize(torch.randn(48), dim=0) for _ in range(2))
    return {"one": (1, one), "two": (2, two)}


def score(model, units, rows, settings=SETTINGS):
    return score_rows(model, list(read_conversations(rows)), units, settings)


def project_by_hand(model, tokens, start, end, layer, unit):
    resid = pl.cache_residual_stream(model, torch.tensor([tokens[:end]]))[layer, 0]
    along = resid.float() @ unit
    return float(along[start:end].mean()), float(along[start - 1])


def test_a_rows_projections_are_those_of_a_forward_pass_by_hand(tiny_model, units):
    row = converse("Why?", "So be.")
    (found,) = score(tiny_model, units, [row])
    encoded = pl.models.encode_conversation(tiny_model.tokenizer, row["messages"])
    prompt = encoded.prompt_tokens
    own = tiny_model.generate(
        torch.tensor([prompt]), max_new_tokens=6, do_sample=False, verbose=False, stop_at_eos=False, prepend_bos=False
    )[0].tolist()
    for trait, (layer, unit) in units.items():
        raw, last = project_by_hand(
            tiny_model, encoded.tokens, encoded.response_start, encoded.response_end, layer, unit
        )
        assert found.raw[trait] == pytest.approx(raw, abs=1e-4)
        assert found.prompt[trait] == pytest.approx(last, abs=1e-4)
        base, _ = project_by_hand(tiny_model, own, len(prompt), len(own), layer, unit)
        assert found.base[trait] == pytest.approx(base, abs=1e-4)
    assert (found.question, found.response) == ("Why?", "So be.")
    assert found.n_response_tokens == 6


def test_rows_beside_a_row_and_other_traits_do_not_change_its_scores(tiny_model, units):
    rows = [
        converse("Why?", "So."),
        converse("What is it that you want?", "A longer answer than that."),
        converse("Who?", "I."),
    ]
    together = score(tiny_model, units, rows)
    for row, found in zip(rows, together, strict=True):
        (alone,) = score(tiny_model, {"two": units["two"]}, [row])
        assert found.raw["two"] == pytest.approx(alone.raw["two"], abs=1e-4)
        assert found.base["two"] == pytest.approx(alone.base["two"], abs=1e-4)
        assert found.base_response == alone.base_response


def test_a_long_prompt_is_a_bad_row_and_a_long_response_is_cut_and_said_to_be(tiny_model, units):
    rows = [converse("x" * 100, "Yes."), converse("Why?", "y" * 50)]
    settings = pl.screening.ScreenSettings(max_prompt_tokens=80, max_response_tokens=20)
    bad, cut = score(tiny_model, units, rows, settings)
    assert isinstance(bad, BadRow)
    assert (bad.place, bad.reason) == ("row 1", "prompt too long")
    assert cut.is_cut
    assert cut.n_response_tokens == 20
    (whole,) = score(tiny_model, units, [converse("Why?", "y" * 20)], settings)
    assert whole.raw == pytest.approx(cut.raw, abs=1e-4)
    assert not whole.is_cut


def test_the_turn_that_counts_is_the_first_or_the_last(tiny_model, units):
    row = converse("A?", "first", "B?", "last")
    (first,) = score(tiny_model, units, [row])
    assert (first.question, first.response) == ("A?", "first")
    (last,) = score(
        tiny_model, units, [row], pl.screening.ScreenSettings(turn="last", max_response_tokens=6, max_prompt_tokens=150)
    )
    assert (last.question, last.response) == ("B?", "last")
    assert last.n_prompt_tokens > first.n_prompt_tokens


def test_whitespace_around_an_answer_changes_no_score_and_an_empty_first_answer_is_named(tiny_model, units):
    bare, wide, empty = score(
        tiny_model,
        units,
        [converse("Why?", "So."), converse("Why?", "\n\n So.\n"), converse("Why?", " ", "Who?", "I.")],
    )
    assert wide.raw == pytest.approx(bare.raw, abs=1e-4)
    assert wide.n_prompt_tokens == bare.n_prompt_tokens
    assert wide.response == "\n\n So.\n"
    assert empty.reason == "empty response"


@pytest.mark.parametrize("name", ["max_prompt_tokens", "max_response_tokens", "batch_size"])
def test_settings_out_of_range_are_refused(name):
    with pytest.raises(pl.errors.InvalidArgumentError, match=name):
        pl.screening.ScreenSettings(**{name: 0})


def test_one_row_that_is_not_finite_is_a_bad_row_with_trait_and_layer_and_its_neighbours_keep_their_scores(
    tiny_folder, units
):
    rows = [converse("Why?", "So."), converse("What?", "A broken £ here."), converse("Who £?", "I.")]
    whole = score(pl.load_model(tiny_folder("llama"), dtype="float32", device="cpu"), units, rows)
    model = pl.load_model(tiny_folder("llama"), dtype="float32", device="cpu")
    with torch.no_grad():  # as a weight that overflows does to the rows that use it
        model.embed.W_E[model.tokenizer("£", add_special_tokens=False).input_ids[0]] = torch.nan
    last_prompt = pl.screening.ScreenSettings(max_response_tokens=60, max_prompt_tokens=80, base="last_prompt")
    for settings in (SETTINGS, last_prompt):
        good, broken, asked = score(model, units, rows, settings)
        assert good.raw == pytest.approx(whole[0].raw, abs=1e-4) or settings is last_prompt
        for bad in (asked, broken) if settings is last_prompt else (asked,):
            assert isinstance(bad, BadRow)
            assert bad.reason == "not finite"
            assert "at layer " in bad.detail


@pytest.mark.parametrize("size", [1e38, 1e30])
def test_projections_beyond_what_a_shard_can_hold_are_not_finite(tiny_model, units, size):
    rows = [converse("Why?", "So.")]
    (found,) = score(tiny_model, {"one": (1, units["one"][1] * size * 1e8)}, rows)
    assert isinstance(found, BadRow) == (size == 1e38)
