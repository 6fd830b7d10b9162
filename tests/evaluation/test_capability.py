import collections
import csv
import json
import math
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

import persona_lens as pl
from persona_lens.errors import (
    ArgumentTypeError,
    ContextLengthError,
    FileFormatError,
    HookNeverFiredError,
    InvalidArgumentError,
)
from persona_lens.evaluation.capability import (
    Capability,
    MultipleChoiceItem,
    _bootstrap_ratio,
    _encode_answer,
    load_multiple_choice,
    measure_capability,
)
from persona_lens.interventions import Window
from persona_lens.statistics.bootstrap import t_interval_of_moments
from tests.backends import BACKENDS
from tests.tiny import make_tokenizer

DATA = Path(pl.__file__).parent / "data"
NAME = "blocks.1.hook_resid_post"
TEXTS = ["The cat sat on the mat.", "It rained.", "A longer text about nothing in particular.", "Yes and no."]
ITEMS = (
    MultipleChoiceItem("What is snow?", ("Hot", "White and cold", "A kind of metal", "Far"), 1),
    MultipleChoiceItem("Two?", ("2", "3"), 0),
    MultipleChoiceItem("Which one flies?", ("A stone", "The eagle", "Cow"), 1),
    MultipleChoiceItem("What do we see with?", ("Ears", "The nose", "Eyes", "Hair", "A foot"), 2),
    MultipleChoiceItem("Opposite of up?", ("Down", "Left"), 0),
)
ROWS = [
    {"question": "What is snow?", "choices": ["Hot", "White"], "answer": 1, "subject": "weather"},
    {"question": "Two?", "choices": ["2", "3", "4"], "answer": "A", "subject": "sums"},
    {"question": 'What "flies"?', "choices": ["Stone", "Eagle, mostly"], "answer": "Eagle, mostly", "subject": ""},
]
READ = (
    MultipleChoiceItem("What is snow?", ("Hot", "White"), 1),
    MultipleChoiceItem("Two?", ("2", "3", "4"), 0),
    MultipleChoiceItem('What "flies"?', ("Stone", "Eagle, mostly"), 1),
)


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny models gain nothing from two, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=BACKENDS)
def model(request, tiny_folder):
    return pl.load_model(tiny_folder("llama"), backend=request.param, dtype="float32", device="cpu")


def push(residual, hook):
    return residual + torch.linspace(-2, 2, residual.shape[-1])


def leave_alone(residual, hook):
    return residual * 1.0


def blank(residual, hook):
    return residual * 0.0


def fail(residual, hook):
    raise AssertionError("the model ran")


def predict_alone(model, tokens, hooks=()):
    """Log-probabilities ``[pos, vocab]`` of one row without padding."""
    with torch.no_grad(), model.hooks(fwd_hooks=list(hooks)):
        return model(torch.tensor([tokens]), return_type="logits")[0].double().log_softmax(dim=-1)


def score_alone(model, prompt, answer, hooks=()):
    tokenizer = model.tokenizer
    tokens = tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
    log_probs = predict_alone(model, [tokenizer.bos_token_id, *tokens], hooks)
    # In the tiny tokenizer every character of these texts is a token.
    return sum(float(log_probs[i, tokens[i]]) for i in range(len(tokens) - len(answer), len(tokens))) / len(answer)


def as_chat(question):
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def as_plain(question):
    return f"Question: {question}\nAnswer: "


def mark_likeliest(model, item, render, hooks=()):
    """The item with the model's own answer called right."""
    scores = [score_alone(model, render(item.question), choice, hooks) for choice in item.choices]
    return MultipleChoiceItem(item.question, item.choices, scores.index(max(scores)))


def measure(model, hooks=(), **options):
    return measure_capability(model, hooks, **{"texts": TEXTS, "items": ITEMS, **options})


# The measures --------------------------------------------------------------------------------------------------


def test_perplexity_and_kl_are_those_of_each_text_alone_pooled_over_tokens(model):
    hooks = [(NAME, push)]
    nll, kl, n_tokens = 0.0, 0.0, 0
    for text in TEXTS:
        tokens = [model.tokenizer.bos_token_id, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
        q, p = predict_alone(model, tokens, hooks), predict_alone(model, tokens)
        for i in range(1, len(tokens) - 1):
            nll -= float(q[i, tokens[i + 1]])
            kl += float((p[i].exp() * (p[i] - q[i])).sum())
            n_tokens += 1
    found = measure(model, hooks)
    assert found.n_tokens == n_tokens
    assert found.perplexity.estimate == pytest.approx(math.exp(nll / n_tokens), rel=1e-4)
    assert found.kl.estimate == pytest.approx(kl / n_tokens, rel=1e-4)
    assert found.kl.estimate > 0.1
    assert found.perplexity.low < found.perplexity.estimate < found.perplexity.high
    assert found.kl.low < found.kl.estimate < found.kl.high


@pytest.mark.parametrize("hooks", [[], [(NAME, push)]])
def test_an_item_is_answered_with_the_choice_likeliest_a_token(model, hooks):
    agreeing = [mark_likeliest(model, item, as_chat, hooks).answer == item.answer for item in ITEMS]
    assert measure(model, hooks).accuracy.estimate == pytest.approx(sum(agreeing) / len(ITEMS))


@pytest.mark.parametrize("window", [Window(stop=2), Window(start=1, every=3)])
def test_windows_count_the_tokens_that_are_predicted(model, window):
    """Those of an answer from the prompt's last token on; of a text from its first, as if it were being written."""
    direction = 3 * torch.linspace(-2, 2, model.cfg.d_model)
    during = pl.Intervention.of(1, pl.tensors.Add(direction, 1.0)).during(window)
    done = pl.Intervention.of(0, pl.tensors.Add(-direction, 1.0)) + during

    def act(start):
        def push_within(residual, hook):
            chosen = torch.tensor([at - (start - 1) in window for at in range(residual.shape[1])])
            return residual + chosen[None, :, None] * direction

        return [("blocks.0.hook_resid_post", lambda residual, hook: residual - direction), (NAME, push_within)]

    nll, kl, n_tokens = 0.0, 0.0, 0
    for text in TEXTS:
        tokens = [model.tokenizer.bos_token_id, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
        q, p = predict_alone(model, tokens, act(2)), predict_alone(model, tokens)
        for i in range(1, len(tokens) - 1):
            nll -= float(q[i, tokens[i + 1]])
            kl += float((p[i].exp() * (p[i] - q[i])).sum())
            n_tokens += 1
    marked = []
    for item in ITEMS:
        prompt = model.tokenizer(as_chat(item.question), add_special_tokens=False)["input_ids"]
        marked.append(mark_likeliest(model, item, as_chat, act(1 + len(prompt))))
    found = measure(model, done, items=marked, batch_size=3)
    assert found.perplexity.estimate == pytest.approx(math.exp(nll / n_tokens), rel=1e-4)
    assert found.kl.estimate == pytest.approx(kl / n_tokens, rel=1e-4)
    assert found.accuracy.estimate == 1
    always = pl.Intervention(tuple(replace(step, window=None) for step in done.steps))
    assert measure(model, always, items=marked).kl.estimate != pytest.approx(found.kl.estimate, rel=0.01)


def test_the_accuracy_follows_which_choice_is_called_right(model):
    right = [mark_likeliest(model, item, as_chat) for item in ITEMS]
    wrong = [MultipleChoiceItem(i.question, i.choices, (i.answer + 1) % len(i.choices)) for i in right]
    assert measure(model, items=right).accuracy.estimate == 1
    assert measure(model, items=wrong).accuracy.estimate == 0
    assert measure(model, items=[*right, *wrong]).accuracy.estimate == 0.5


def test_without_a_chat_template_the_question_is_asked_in_plain_text(model):
    model.tokenizer.chat_template = None
    right = [mark_likeliest(model, item, as_plain) for item in ITEMS]
    assert measure(model, items=right).accuracy.estimate == 1


@pytest.mark.parametrize("has_template", [True, False])
def test_exactly_the_choices_own_tokens_are_scored(has_template):
    tokenizer = make_tokenizer()
    if not has_template:
        tokenizer.chat_template = None
    span = _encode_answer(tokenizer, "Which one flies?", "The eagle", "items[0]", 256)
    assert tokenizer.decode(span.response_tokens) == "The eagle"


def test_the_interval_of_a_ratio_weighs_units_by_their_counts():
    totals, counts = torch.tensor([2.0, 30.0], dtype=torch.float64), torch.tensor([2.0, 10.0], dtype=torch.float64)
    found = _bootstrap_ratio(totals, counts, seed=0)
    assert found.estimate == pytest.approx(32 / 12)
    # Drawn are the first twice, both (half of the time), or the second twice: ratios 1, 32/12 and 3.
    drawn = np.array([1, 32 / 12, 32 / 12, 3])
    deviations = drawn - drawn.mean()
    expected = t_interval_of_moments(
        32 / 12, 2 * float((deviations**2).mean()), 2**1.5 * float((deviations**3).mean()), 1, 0.95
    )
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=0.1)
    assert math.isnan(_bootstrap_ratio(torch.tensor([2.0, math.inf], dtype=torch.float64), counts, seed=0).low)


def test_batches_and_padding_change_no_number(model):
    hooks = [(NAME, push)]
    alone = measure(model, hooks, batch_size=1)
    for batch_size in (3, 64):
        together = measure(model, hooks, batch_size=batch_size)
        assert together.accuracy == alone.accuracy
        for name in ("perplexity", "kl"):
            ours, theirs = getattr(together, name), getattr(alone, name)
            assert (ours.estimate, ours.low, ours.high) == pytest.approx(
                (theirs.estimate, theirs.low, theirs.high), rel=1e-4
            )


def test_the_tokenizers_padding_side_changes_no_number(model):
    # TransformerLens would guess padding from token ids, and take this tokenizer's BOS for it.
    plain = measure(model)
    model.tokenizer.padding_side = "left"
    model.cfg.default_prepend_bos = False
    found = measure(model)
    assert (found.perplexity, found.accuracy) == (plain.perplexity, plain.accuracy)


def test_a_model_that_knows_nothing_has_the_vocabularys_perplexity_and_shares_every_point(model):
    found = measure(model, [("blocks.2.hook_resid_post", blank)])
    assert found.perplexity.estimate == pytest.approx(259)
    assert found.accuracy.estimate == pytest.approx(found.chance_accuracy)
    assert found.chance_accuracy == pytest.approx((1 / 4 + 1 / 2 + 1 / 3 + 1 / 5 + 1 / 2) / 5)


def test_logits_that_are_not_finite_give_nan_and_no_points(model):
    found = measure(model, [(NAME, lambda residual, hook: residual * math.nan)])
    assert math.isnan(found.perplexity.estimate)
    assert math.isnan(found.kl.estimate)
    assert found.accuracy.estimate == 0
    again = Capability.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    assert math.isnan(again.perplexity.low)


def test_texts_are_cut_to_max_tokens(model):
    found = measure(model, max_tokens=12)
    # BOS and the first token of a text are not predicted.
    assert found.n_tokens == sum(min(1 + len(text), 12) - 2 for text in TEXTS)
    cut = measure(model, max_tokens=12, texts=[text[:11] for text in TEXTS])
    assert found.perplexity == cut.perplexity


# Hooks ---------------------------------------------------------------------------------------------------------


def test_an_intervention_that_changes_nothing_costs_nothing(model):
    plain, found = measure(model), measure(model, [(NAME, leave_alone)])
    assert (found.kl.estimate, found.kl.low, found.kl.high) == (0, 0, 0)
    assert found.perplexity == plain.perplexity
    assert found.accuracy == plain.accuracy


def test_without_hooks_there_is_nothing_to_compare(model):
    assert measure(model).kl is None


def test_hooks_that_are_on_the_model_take_effect_and_stay(model):
    given, plain = measure(model, [(NAME, push)]), measure(model)
    model.add_hook(NAME, push)
    around = measure(model)
    assert around.perplexity == given.perplexity != plain.perplexity
    assert around.kl is None
    # They act on both sides of the comparison.
    assert measure(model, [(NAME, leave_alone)]).kl.estimate == 0
    assert measure(model).perplexity == given.perplexity
    model.reset_hooks()
    assert measure(model).perplexity == plain.perplexity


def test_no_hook_stays_on_the_model(model):
    plain = measure(model)
    measure(model, [(NAME, push)])
    assert measure(model).perplexity == plain.perplexity
    with pytest.raises(AssertionError, match="the model ran"):
        measure(model, [(NAME, push), (NAME, fail)])
    assert measure(model).perplexity == plain.perplexity


@pytest.mark.skipif("hooked" not in BACKENDS, reason="TransformerBridge refuses such hook points itself")
def test_a_hook_that_is_never_reached_is_an_error(tiny_model):
    with pytest.raises(HookNeverFiredError, match=r"blocks\.0\.attn\.hook_result"):
        measure(tiny_model, [(NAME, push), ("blocks.0.attn.hook_result", push)])


def test_an_unknown_hook_name_is_an_error_before_the_model_runs(model):
    with pytest.raises(InvalidArgumentError, match=r"blocks\.9"):
        measure(model, [(NAME, fail), ("blocks.9.hook_resid_post", push)])


# Arguments and results -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": []}, "texts"),
        ({"texts": ["One text."]}, "texts"),
        ({"texts": "One text."}, r"`texts` .* For one text"),
        ({"texts": ["Two texts.", ""]}, r"texts\[1\]"),
        ({"items": []}, "items"),
        ({"items": ITEMS[:1]}, "items"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_tokens": 2}, "max_tokens"),
        ({"max_tokens": 257}, r"\[3, 256\]"),
    ],
)
def test_a_bad_argument_is_refused_before_the_model_runs(tiny_model, options, message):
    with pytest.raises((InvalidArgumentError, ArgumentTypeError), match=message):
        measure(tiny_model, [(NAME, fail)], **options)


def test_an_item_longer_than_the_context_is_named_before_the_model_runs(tiny_model):
    long = MultipleChoiceItem("Why? " * 60, ("So", "No"), 0)
    with pytest.raises(ContextLengthError, match=r"items\[5\]"):
        measure(tiny_model, [(NAME, fail)], items=[*ITEMS, long])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((" ", ("a", "b"), 0), "question"),
        (("Why?", ("a",), 0), "choices"),
        (("Why?", ("a", "a"), 0), "choices"),
        (("Why?", ("a", " "), 0), "choices"),
        (("Why?", ("a", "b"), 2), "answer"),
        (("Why?", ("a", "b"), -1), "answer"),
    ],
)
def test_an_item_that_cannot_be_answered_is_refused(fields, message):
    with pytest.raises(InvalidArgumentError, match=f"`{message}`"):
        MultipleChoiceItem(*fields)


def test_a_measurement_survives_json(tiny_model):
    for hooks in ([], [(NAME, push)]):
        found = measure(tiny_model, hooks)
        assert Capability.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found
    with pytest.raises(FileFormatError, match="accuracy"):
        Capability.from_json({k: v for k, v in found.to_json().items() if k != "accuracy"})


def test_a_measurement_says_what_it_measured_and_on_what(tiny_model):
    found = measure(tiny_model, [(NAME, push)], seed=3)
    assert (found.n_texts, found.n_items) == (4, 5)
    assert found.provenance["hooks"] == [NAME]
    assert found.provenance["seed"] == 3
    assert found.provenance["texts"] != measure(tiny_model, texts=TEXTS[:3]).provenance["texts"]
    assert found.provenance["items"] != measure(tiny_model, items=ITEMS[:3]).provenance["items"]
    for shown in (repr(found), found._repr_html_()):
        assert f"{found.perplexity.estimate:.3g}" in shown
        assert f"{found.kl.estimate:.3g}" in shown
        assert "5 items" in shown
    assert "not compared" in repr(measure(tiny_model))


def test_progress_counts_every_row(tiny_model):
    counts = []

    @contextmanager
    def record(label, total):
        counts.append(total)
        yield lambda n: counts.append(-n)

    measure(tiny_model, run=pl.Run(progress=record))
    assert sum(counts) == 0
    assert counts[0] > len(TEXTS)


# Reading items -------------------------------------------------------------------------------------------------


def write_rows(path, rows):
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({**row, "choices": json.dumps(row["choices"])} for row in rows)
    else:
        datasets.Dataset.from_list([{**row, "answer": str(row["answer"])} for row in rows]).to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_kind_of_file_gives_the_same_items(tmp_path, suffix):
    path = write_rows(tmp_path / f"items{suffix}", ROWS)
    assert load_multiple_choice(path) == READ
    assert load_multiple_choice(str(path)) == READ


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\x0b", "\n", "\r\n"])
def test_a_line_separator_within_a_cell_ends_no_row_of_a_csv_file(tmp_path, separator):
    question = f"First line,{separator}second line?"
    path = write_rows(tmp_path / "items.csv", [{**ROWS[0], "question": question}, ROWS[1]])
    assert load_multiple_choice(path) == (replace(READ[0], question=question), READ[1])


def test_a_dataset_in_memory_is_read_as_it_is():
    rows = [{**row, "answer": item.answer} for row, item in zip(ROWS, READ, strict=True)]
    assert load_multiple_choice(datasets.Dataset.from_list(rows)) == READ


def test_a_name_is_looked_up_on_the_hub(monkeypatch):
    asked = []

    def load_dataset(name, subset, *, split):
        asked.append((name, subset, split))
        return datasets.Dataset.from_list([{**ROWS[0]}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_multiple_choice("cais/mmlu", subset="all", split="validation") == READ[:1]
    assert asked == [("cais/mmlu", "all", "validation")]


@pytest.mark.parametrize("error", [ConnectionError("no network"), ValueError("no such subset")])
def test_a_hub_dataset_that_cannot_be_had_is_an_error_of_ours(monkeypatch, error):
    def load_dataset(*args, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InvalidArgumentError, match=str(error)):
        load_multiple_choice("cais/mmlu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": None}, "`question` must be a text"),
        ({"question": ""}, "`question` must not be empty"),
        ({"choices": "Hot or cold"}, "`choices` must be a list"),
        ({"choices": ["Hot", 3]}, "`choices` must be a list of texts"),
        ({"choices": ["Hot", "Hot"], "answer": 1}, "at least two different texts"),
        ({"answer": 2}, "`answer` must be"),
        ({"answer": -1}, "`answer` must be"),
        ({"answer": True}, "`answer` must be"),
        ({"answer": "C"}, "`answer` must be"),
        ({"answer": "Blue"}, "`answer` must be"),
        ({"answer": None}, "`answer` must be"),
        ({"choices": ["1", "0"], "answer": "1"}, "and not of two"),
        ({"choices": ["B", "A"], "answer": "A"}, "and not of two"),
    ],
)
def test_a_bad_row_is_refused_with_its_number(tmp_path, changes, message):
    path = write_rows(tmp_path / "items.jsonl", [ROWS[0], {**ROWS[0], **changes}])
    with pytest.raises(FileFormatError, match=f"Row 2 .*{message}"):
        load_multiple_choice(path)


def test_a_choice_that_looks_like_the_letter_or_index_of_none_is_read_as_text(tmp_path):
    rows = [{"question": "Which?", "choices": ["X", "7"], "answer": answer} for answer in ("X", "7")]
    path = write_rows(tmp_path / "items.jsonl", rows)
    assert [item.answer for item in load_multiple_choice(path)] == [0, 1]


@pytest.mark.parametrize("column", ["question", "choices", "answer"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_missing_column_is_named(tmp_path, suffix, column):
    path = write_rows(tmp_path / f"items{suffix}", ROWS)
    path.write_text(path.read_text().replace(column, "other"))
    with pytest.raises(FileFormatError, match=rf"Row 1 .*Missing columns: \['{column}'\]"):
        load_multiple_choice(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("items.jsonl", '{"question": \n', "Row 1 .*JSON"),
        ("items.jsonl", json.dumps(ROWS[0]) + "\n3\n", "Row 2 .*no mapping"),
        ("items.jsonl", "\n", "at least one row"),
        ("items.json", "[", "must be JSON"),
        ("items.json", json.dumps(ROWS[0]), "must be a JSON list"),
        ("items.csv", "question,choices,answer\nWhy?,so; no,0\n", "choices in row 1 .*JSON"),
        ("items.parquet", "PAR1", "whole Parquet file"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(FileFormatError, match=message):
        load_multiple_choice(tmp_path / name)


def test_a_missing_file_and_an_unknown_kind_of_file_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`source` must name an existing file.*none\.jsonl"):
        load_multiple_choice(tmp_path / "none.jsonl")
    (tmp_path / "items.txt").write_text("Why?")
    for source in (tmp_path / "items.txt", str(tmp_path / "items.txt")):
        with pytest.raises(InvalidArgumentError, match=r"\.jsonl, \.json, \.csv, \.parquet"):
            load_multiple_choice(source)


def test_a_draw_depends_on_its_seed_alone_and_keeps_the_order():
    everything = load_multiple_choice()
    drawn = load_multiple_choice(n=20, seed=1)
    assert drawn == load_multiple_choice(n=20, seed=1) != load_multiple_choice(n=20, seed=2)
    positions = [everything.index(item) for item in drawn]
    assert positions == sorted(set(positions))
    assert load_multiple_choice(n=len(everything)) == everything


@pytest.mark.parametrize("n", [0, -1, 1000])
def test_a_draw_larger_than_the_source_or_empty_is_refused(n):
    with pytest.raises(InvalidArgumentError, match="`n`"):
        load_multiple_choice(n=n)


# The bundled data ----------------------------------------------------------------------------------------------


def test_the_bundled_items_are_many_and_different_with_four_choices():
    items = load_multiple_choice()
    assert len(items) >= 240
    assert len({item.question for item in items}) == len(items)
    assert all(len({choice.lower() for choice in item.choices}) == 4 for item in items)


def test_neither_place_nor_length_gives_the_bundled_answers_away():
    items = load_multiple_choice()
    places = collections.Counter(item.answer for item in items)
    assert max(places.values()) - min(places[place] for place in range(4)) <= 1
    for extreme in (min, max):
        # Points of somebody who always takes the shortest, or longest, choice.
        points = 0.0
        for item in items:
            lengths = [len(choice) for choice in item.choices]
            points += (lengths[item.answer] == extreme(lengths)) / lengths.count(extreme(lengths))
        assert 0.2 < points / len(items) < 0.3


def test_the_bundled_texts_are_forty_different_paragraphs():
    texts = [json.loads(line)["text"] for line in (DATA / "ordinary_text.jsonl").read_text().splitlines()]
    assert len(set(texts)) == len(texts) == 40
    assert all(60 <= len(text.split()) <= 100 for text in texts)


def test_the_bundled_data_are_the_default(tiny_model):
    found = measure_capability(tiny_model, max_tokens=16)
    assert (found.n_texts, found.n_items) == (40, len(load_multiple_choice()))


@pytest.mark.slow
def test_the_embedded_model_answers_the_bundled_items_above_chance(embedded_model):
    found = measure_capability(embedded_model, items=load_multiple_choice(n=48), max_tokens=16)
    assert found.accuracy.low > 0.25
    assert found.perplexity.estimate < 200
