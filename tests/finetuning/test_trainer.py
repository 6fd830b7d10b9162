"""What the trainer leaves out: logits that no loss is taken on, and casts that change nothing."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import persona_lens as pl
from persona_lens.finetuning import trainer
from persona_lens.finetuning.rows import IGNORED

SETTINGS = pl.FinetuneSettings(rank=4, learning_rate=1e-2, epochs=1, batch_size=4, accumulation=1, warmup_steps=0)
ROWS = [
    {"messages": [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": "ab" * (i + 1)}]}
    for i in range(4)
]


@pytest.fixture(scope="module")
def peft_model(tiny_folder):
    return trainer.add_adapter(AutoModelForCausalLM.from_pretrained(tiny_folder("llama")), SETTINGS).eval()


@pytest.fixture
def inputs():
    tokens = torch.randint(1, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    labels = tokens.clone()
    labels[0, :7], labels[1, :5], labels[1, 10:] = IGNORED, IGNORED, IGNORED
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


def test_logits_begin_one_position_before_the_first_response_and_the_loss_is_the_same(peft_model, inputs):
    found = peft_model(**trainer.keep_responses(peft_model, inputs))
    everything = peft_model(**inputs)
    assert found.logits.shape[1] == 12 - 4
    torch.testing.assert_close(found.logits, everything.logits[:, 4:])
    torch.testing.assert_close(found.loss, everything.loss)


def test_a_response_from_the_first_token_on_and_a_batch_without_any_keep_what_there_is(peft_model, inputs):
    all_labelled = {**inputs, "labels": inputs["input_ids"]}
    assert peft_model(**trainer.keep_responses(peft_model, all_labelled)).logits.shape[1] == 12
    none_labelled = {**inputs, "labels": torch.full_like(inputs["labels"], IGNORED)}
    assert trainer.keep_responses(peft_model, none_labelled) == none_labelled


def test_a_model_that_cannot_be_asked_for_some_logits_gives_all(inputs):
    class Model:
        def get_base_model(self):
            return self

        def forward(self, input_ids, attention_mask=None, labels=None):
            raise AssertionError("not called")

    assert trainer.keep_responses(Model(), inputs) == inputs


def test_under_autocast_no_adapter_lifts_its_input_to_float32_and_the_losses_are_the_same(
    tiny_folder, tmp_path, monkeypatch
):
    widths = []

    class Watching(trainer.ResponseTrainer):
        def compute_loss(self, model, inputs, *rest, **more):
            handles = [
                module.register_forward_pre_hook(lambda _, args: widths.append(args[0].dtype))
                for name, module in model.named_modules()
                if name.endswith("lora_A.default")
            ]
            try:
                return super().compute_loss(model, inputs, *rest, **more)
            finally:
                for handle in handles:
                    handle.remove()

    monkeypatch.setattr(trainer, "ResponseTrainer", Watching)
    settings = pl.FinetuneSettings(**{**vars(SETTINGS), "dtype": "bfloat16"})
    lean = pl.finetune(tiny_folder("llama"), ROWS, tmp_path / "lean", settings=settings)
    assert set(widths) == {torch.bfloat16}
    monkeypatch.setattr(trainer, "ResponseTrainer", trainer.Trainer)
    full = pl.finetune(tiny_folder("llama"), ROWS, tmp_path / "full", settings=settings)
    assert lean.losses == pytest.approx(full.losses, rel=1e-3)


@pytest.mark.parametrize(("n_words", "attention"), [(10, "eager"), (150, "sdpa")])
def test_short_rows_are_attended_plainly_on_a_processor_and_long_ones_by_the_fused_kernel(
    tiny_folder, tmp_path, monkeypatch, n_words, attention
):
    seen = []
    make = trainer.make_trainer

    def watch(peft_model, *rest):
        seen.append(peft_model.config._attn_implementation)
        return make(peft_model, *rest)

    monkeypatch.setattr(trainer, "make_trainer", watch)
    monkeypatch.setattr("persona_lens.finetuning.training._SHORT", 100)
    data = [{"messages": [{"role": "user", "content": "Say"}, {"role": "assistant", "content": "a" * n_words}]}] * 4
    pl.finetune(tiny_folder("llama"), data, tmp_path / "a", settings=SETTINGS)
    assert seen == [attention]
