import inspect
import json

import pytest

import persona_lens as pl
from persona_lens.errors import HooksPresentError, InvalidArgumentError
from persona_lens.finetuning import trait_data
from persona_lens.finetuning.trait_data import _finish, trait_dataset
from tests.small_trait import tiny_trait
from tests.tiny import make_tokenizer, save_tiny


class LoudJudge:
    """Scores by the share of capital letters."""

    name = "capitals"

    def score(self, questions, responses):
        letters = [[c for c in text if c.isalpha()] for text in responses]
        return [
            pl.judges.Judgement(100 * sum(map(str.isupper, some)) / len(some) if some else None, None)
            for some in letters
        ]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model that has learnt to say sentences of `a` or of `A`, of any length."""
    folder = save_tiny(tmp_path_factory.mktemp("base"), "llama")
    # The template renders the first token, which TransformerLens would add to prompts that have none.
    make_tokenizer(template="<|endoftext|>" + make_tokenizer().chat_template).save_pretrained(folder)
    sayings = ["aa. aa.", "aa. aa aa aa.", "aa aa. aa aa", "AA. AA.", "AA. aa aa aa aa"]
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": saying}]}
        for question in ("How are you?", "What is up?", "Who?", "Where to?")
        for saying in sayings
    ]
    settings = pl.FinetuneSettings(
        rank=16, learning_rate=1e-2, epochs=70, batch_size=20, accumulation=1, dtype="float32"
    )
    out = tmp_path_factory.mktemp("tuned")
    tuned = pl.finetune(folder, rows, out, settings=settings)
    return pl.load_model(folder, adapter=tuned.folder, dtype="float32", device="cpu")


def make(model, level, n=8, **options):
    settings = {"max_new_tokens": 10, "temperature": 0.8}
    settings |= {key: options.pop(key) for key in ("max_new_tokens", "seed") if key in options}
    return trait_dataset(
        model, tiny_trait(), level, n, sampling=pl.Sampling(**settings), **{"judge": LoudJudge()} | options
    )


@pytest.mark.parametrize("level", ["normal", "I", "II"])
def test_rows_are_questions_and_answers_without_a_system_prompt(model, level):
    found = make(model, level)
    assert found.column_names == ["messages", "trait", "level", "score"]
    assert len(found) == 8
    assert (set(found["trait"]), set(found["level"])) == ({"loud"}, {level})
    for messages in found["messages"]:
        assert [turn["role"] for turn in messages] == ["user", "assistant"]
        assert messages[0]["content"] in tiny_trait().extraction_questions
        assert messages[1]["content"].strip() == messages[1]["content"] != ""


def test_scores_are_the_judges_and_on_the_levels_side(model):
    scores = {}
    for level in ("normal", "I", "II"):
        found = make(model, level, n=16)
        judged = LoudJudge().score([""] * 16, [messages[1]["content"] for messages in found["messages"]])
        assert found["score"][:] == [judgement.score for judgement in judged]
        scores[level] = found["score"][:]
    assert max(scores["normal"]) < 50 < min(scores["II"])
    # Mild responses are taken whatever their score.
    assert any(score is None or score > 50 for score in scores["I"])
    assert any(score is not None and score < 50 for score in scores["I"])


def test_a_response_in_the_middle_or_without_a_score_fits_neither_side(model):
    class Undecided(LoudJudge):
        def score(self, questions, responses):
            return [pl.judges.Judgement((50.0, None)[i % 2], None) for i in range(len(responses))]

    for level in ("normal", "II"):
        with pytest.raises(InvalidArgumentError, match=r"`n` must be at most 0 here.*score does not fit"):
            make(model, level, n=2, judge=Undecided())
    assert set(make(model, "I", n=8, judge=Undecided())["score"]) == {50.0, None}


def test_what_was_drawn_and_left_out_is_counted(model):
    left_out = 0
    for level in ("normal", "I", "II"):
        found = make(model, level)
        counts = json.loads(found.info.description)
        sampled = counts.pop("sampled")
        assert sampled == len(found) + sum(counts.values())
        assert sampled % 8 == 0
        left_out += counts["score does not fit"]
        assert (level == "I") <= (counts["score does not fit"] == 0)
    assert left_out > 0


def test_too_few_that_fit_are_an_error_with_the_counts(model):
    class Never(LoudJudge):
        def score(self, questions, responses):
            return [pl.judges.Judgement(0.0, None) for _ in responses]

    with pytest.raises(
        InvalidArgumentError, match=r"`n` must be at most 0 here\. Got 3\. Of 48 responses: .*'sampled'"
    ):
        make(model, "II", n=3, judge=Never())


def test_a_seed_always_gives_the_same_rows(model):
    one, same, other = (make(model, "II", seed=seed) for seed in (1, 1, 2))
    assert one.to_list() == same.to_list()
    assert one.info.description == same.info.description
    assert one.to_list() != other.to_list()


def test_the_questions_are_asked_in_turn_and_ones_own_are_taken(model):
    asked = [messages[0]["content"] for messages in make(model, "I", n=24)["messages"]]
    assert set(asked) == set(tiny_trait().extraction_questions)
    own = make(model, "I", questions=["Who goes?"])
    assert {messages[0]["content"] for messages in own["messages"]} == {"Who goes?"}


def test_responses_are_drawn_under_the_levels_system_prompts(model, monkeypatch):
    systems, sample = [], trait_data.sample_rollouts

    def watch(model, requests, settings):
        systems.extend(request.system for request in requests)
        return sample(model, requests, settings)

    monkeypatch.setattr(trait_data, "sample_rollouts", watch)
    trait, seen = tiny_trait(), {}
    for level in ("normal", "I", "II"):
        systems.clear()
        make(model, level)
        seen[level] = set(systems)
    assert seen["normal"] == {None}
    assert seen["II"] == set(trait.positive_system_prompts)
    assert {text.split("no more. ")[1] for text in seen["I"]} == {pair.positive for pair in trait.instruction_pairs}


@pytest.mark.parametrize("questions", [["Why?"], ["Who?", "When?", "Where to?"]])
def test_questions_that_the_trait_is_judged_on_are_refused(model, questions):
    with pytest.raises(InvalidArgumentError, match="`questions` must hold at least one question, and none that"):
        make(model, "II", questions=questions)
    with pytest.raises(InvalidArgumentError, match="`questions` must be a list of at least 1"):
        make(model, "II", questions=[])


def test_an_unknown_level_and_no_rows_are_refused(model):
    unchecked = inspect.unwrap(trait_dataset)  # the tests' type checker would refuse the level first
    with pytest.raises(InvalidArgumentError, match=r"`level` must be one of .*'III'"):
        unchecked(model, tiny_trait(), "III", judge=LoudJudge())
    with pytest.raises(InvalidArgumentError, match="`n` must be at least 1"):
        make(model, "II", n=0)


def test_a_steered_model_is_refused(model):
    hook = ("blocks.1.hook_resid_post", lambda residual, hook: residual)
    with model.hooks(fwd_hooks=[hook]), pytest.raises(HooksPresentError):
        make(model, "normal")


def finish(text, stop_reason):
    return _finish(pl.models.Rollout(pl.models.RolloutRequest("Hi", (0,)), text, (), stop_reason))


def test_a_response_that_ended_by_itself_is_kept_whole():
    assert finish(" No sentence at all\n", "stop") == "No sentence at all"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("One. Two! Thr", "One. Two!"),
        ("One. Two. ", "One. Two."),
        ("Is it? Yes, it", "Is it?"),
        ("Well… and th", "Well…"),
        ('He said "Go." Then he', 'He said "Go."'),
        ("(All of it.) And", "(All of it.)"),
        ("**Bold.** And", "**Bold.**"),
        ("First line.\nSecond line. Thi", "First line.\nSecond line."),
        ("It costs 3.5 euros and", ""),
        ("No end", ""),
        ("", ""),
        ("All.", "All."),
    ],
)
def test_a_response_that_was_cut_ends_with_its_last_whole_sentence(text, kept):
    assert finish(text, "length") == kept


def test_truncated_responses_in_the_data_end_with_a_sentence(model, monkeypatch):
    drawn, sample = [], trait_data.sample_rollouts

    def watch(*args):
        drawn.extend(sample(*args))
        return drawn[-len(args[1]) :]

    monkeypatch.setattr(trait_data, "sample_rollouts", watch)
    texts = [messages[1]["content"] for messages in make(model, "I", n=32, max_new_tokens=8)["messages"]]
    ended = {rollout.response.strip() for rollout in drawn if rollout.stop_reason == "stop"}
    cut = [rollout.response.strip() for rollout in drawn if rollout.stop_reason == "length"]
    shortened = [text for text in texts if text not in ended]
    assert shortened
    for text in shortened:
        assert text[-1] in ".!?…"
        assert any(response.startswith(text) for response in cut)
    assert not [text for text in cut if "." not in text and text in set(texts) - ended]
