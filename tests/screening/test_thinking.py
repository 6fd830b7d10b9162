from dataclasses import replace

import pytest
import torch

import persona_lens as pl
from persona_lens.conversations import BadRow, read_conversations
from persona_lens.screening.scores import score_rows
from persona_lens.screening.shards import plan_screening
from tests.chat_templates import load_thinker, save_thinker

SETTINGS = pl.screening.ScreenSettings(max_response_tokens=6, max_thought_tokens=40)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory):
    return load_thinker(save_thinker(tmp_path_factory.mktemp("thinker"), "r1"), "r1")


def answer(text, **more):
    return {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": text, **more}]}


def score(model, rows, settings):
    unit = torch.nn.functional.normalize(torch.ones(48), dim=0)
    return score_rows(model, list(read_conversations(rows)), {"one": (1, unit)}, settings), unit


@pytest.mark.parametrize("part", ["answer", "thought", "response"])
@pytest.mark.parametrize(
    "row", [answer("So be it.", reasoning_content="Hm, hm."), answer("<think>Hm, hm.</think>So be it.")]
)
def test_the_part_that_is_screened_is_that_of_a_forward_pass_by_hand(thinker, part, row):
    (found,), unit = score(thinker, [row], replace(SETTINGS, part=part))
    encoded = pl.models.encode_conversation(thinker.tokenizer, row["messages"])
    start, end = encoded.find(part)
    along = pl.cache_residual_stream(thinker, torch.tensor([encoded.tokens[: start + 6]]))[1, 0] @ unit
    assert found.raw["one"] == pytest.approx(float(along[start : start + 6].mean()), abs=1e-4)
    assert found.prompt["one"] == pytest.approx(float(along[encoded.response_start - 1]), abs=1e-4)
    assert (found.n_response_tokens, found.is_cut) == (6, end - start > 6)
    shown = {"answer": "So be it.", "thought": "Hm, hm.", "response": "Hm, hm.\n\nSo be it."}
    assert found.response == shown[part]
    if part != "response":
        # What it is compared with is the same part of the model's own response.
        assert len(thinker.tokenizer(found.base_response, add_special_tokens=False)["input_ids"]) <= 6


def test_rows_without_the_part_that_is_screened_are_bad_rows_with_the_reason(thinker):
    rows = [answer("So."), answer("<think>Hm"), answer("So.", thinking="Hm " * 20)]
    by_answer, _ = score(thinker, rows, SETTINGS)
    assert [one.reason for one in by_answer if isinstance(one, BadRow)] == ["unfinished thought", "thought too long"]
    by_thought, _ = score(thinker, rows, replace(SETTINGS, part="thought"))
    assert [one.reason for one in by_thought if isinstance(one, BadRow)] == ["no thought"]


def test_a_model_that_only_thinks_has_no_base_and_is_counted(thinker, tmp_path):
    with torch.no_grad():
        bias = thinker.unembed.b_U.clone()
        thinker.unembed.b_U[thinker.tokenizer.convert_tokens_to_ids(["</think>", "<|im_end|>"])] = -50
    rows = [answer("So be it.", reasoning_content="Hm."), answer("Yes.", reasoning_content="Well.")]
    vector = pl.PersonaVector("loud", pl.describe_model(thinker), {"response_mean": torch.ones(3, 48)})
    found = pl.screen(thinker, rows, {"loud": vector}, tmp_path / "out", layers={"loud": 1}, settings=SETTINGS)
    assert (found.n_unfinished, found.n_without_base, found.counts) == (2, 2, {"scored": 2})
    assert pl.screening.Screening.load(tmp_path / "out").n_unfinished == 2
    with torch.no_grad():
        thinker.unembed.b_U[:] = bias


def test_a_datasets_thought_is_read_with_its_answer_and_another_type_is_a_bad_row():
    good, other, wrong = read_conversations(
        [
            answer("So.", reasoning_content="Hm."),
            answer("So.", thinking=[{"type": "text", "text": "Hm."}]),
            answer("So.", thinking=7),
        ]
    )
    assert good.messages[1] == other.messages[1] == {"role": "assistant", "content": "So.", "reasoning_content": "Hm."}
    assert wrong.reason == "wrong type"
    (user,) = read_conversations(
        [{"messages": [{"role": "user", "content": "Hi", "thinking": "x"}, *answer("So.")["messages"][1:]]}]
    )
    assert user.messages[0] == {"role": "user", "content": "Hi"}


def test_settings_are_recorded_as_before_there_were_thoughts_unless_they_say_something_of_them():
    assert not {"part", "max_thought_tokens"} & pl.screening.ScreenSettings().to_json().keys()
    assert replace(SETTINGS, part="thought").to_json()["part"] == "thought"


def test_the_form_of_a_text_that_changed_makes_another_screening_and_no_other_does(thinker):
    vector = pl.PersonaVector("loud", pl.describe_model(thinker), {"response_mean": torch.ones(3, 48)})
    given = (pl.describe_model(thinker), {"loud": vector}, {"loud": 1})
    plans = {
        part: plan_screening(*given, replace(SETTINGS, part=part), 4, None).config
        for part in ("answer", "thought", "response")
    }
    assert {part: config.get("text") for part, config in plans.items()} == {
        "answer": None, "thought": None, "response": 2,
    }  # fmt: skip


@pytest.mark.parametrize("part", ["thought", "response"])
def test_an_unfinished_thought_is_cut_where_tokens_end(thinker, part):
    long = answer("<think>" + "Hm, " * 20)
    alone, _ = score(thinker, [long], replace(SETTINGS, part=part))
    beside, _ = score(
        thinker, [long, answer("So be it. " * 6, reasoning_content="Well.")], replace(SETTINGS, part=part)
    )
    assert alone[0].is_cut
    assert alone[0].raw["one"] == pytest.approx(beside[0].raw["one"], abs=1e-5)
    encoded = pl.models.encode_conversation(thinker.tokenizer, long["messages"])
    start, _ = encoded.find(part)
    unit = torch.nn.functional.normalize(torch.ones(48), dim=0)
    along = pl.cache_residual_stream(thinker, torch.tensor([encoded.tokens[: start + 6]]))[1, 0] @ unit
    assert alone[0].raw["one"] == pytest.approx(float(along[start:].mean()), abs=1e-4)
