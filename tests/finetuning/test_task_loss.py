import pytest
import torch

import persona_lens as pl


def converse(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_the_loss_is_the_mean_of_the_responses_token_losses(tiny_model):
    rows = [converse("Why?", "Because."), converse("Who goes there?", "A friend of yours.")]
    found = pl.finetuning.measure_task_loss(tiny_model, rows)
    for row, loss in zip(rows, found, strict=True):
        encoded = pl.models.encode_conversation(tiny_model.tokenizer, row["messages"])
        tokens = torch.tensor([encoded.tokens])
        with torch.no_grad():
            log_probs = tiny_model(tokens)[0].log_softmax(-1)
        span = range(encoded.response_start, encoded.response_end)
        expected = -sum(float(log_probs[i - 1, tokens[0, i]]) for i in span) / len(span)
        assert float(loss) == pytest.approx(expected, abs=1e-4)


def test_a_row_without_a_response_is_refused_with_its_place(tiny_model):
    rows = [converse("Why?", "Because."), {"messages": [{"role": "user", "content": "Why?"}]}]
    with pytest.raises(pl.errors.InvalidArgumentError, match=r"row 2: no response"):
        pl.finetuning.measure_task_loss(tiny_model, rows)
    with pytest.raises(pl.errors.InvalidArgumentError, match="at least one"):
        pl.finetuning.measure_task_loss(tiny_model, [])
