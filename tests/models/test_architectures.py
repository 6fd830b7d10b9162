"""What runs: tiny random models of each architecture, held against Hugging Face's own.

``python tests/models/test_architectures.py`` runs all of it and writes the table of docs/howto/architectures.md: the
column of the TransformerLens that is installed.
"""

from __future__ import annotations

import re
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import persona_lens as pl
from persona_lens.errors import UnsupportedModelError
from persona_lens.finetuning.rows import encode_training_rows
from persona_lens.models.engine.decoding import open_decoder
from persona_lens.models.engine.requests import SampleRequest, Sampling
from persona_lens.models.engine.sampling import sample_stream
from persona_lens.models.loading import find_blocks, find_output_projection
from persona_lens.models.loading.architectures import TESTED
from persona_lens.models.loading.text_part import take_text_part
from persona_lens.models.text.spans import TokenSpans
from persona_lens.tensors.operations import Add
from tests.architectures import ARCHITECTURES, D_MODEL, N_LAYERS, make_architecture
from tests.conftest import refuse_to_install
from tests.tiny import make_tokenizer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "architectures.md"
COLUMNS = ("3.9", "4")
COLUMN = COLUMNS.index("3.9" if version("transformer-lens").startswith("3.") else "4")
# Residual streams and logits of these models have a standard deviation of 0.4 to 3.
TOLERANCE = {"atol": 5e-5, "rtol": 1e-4}
LAYER, COEFFICIENT = 1, 4.0
VECTOR = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(5))
TOKENS = torch.randint(0, 250, (3, 40), generator=torch.Generator().manual_seed(0))  # longer than the windows
LENGTHS = (2, 9, 33, 14)
N_NEW = 16
ROWS = [{"messages": [{"role": "user", "content": "Say"}, {"role": "assistant", "content": "abcabc"}]}]


class Case:
    """An architecture's Hugging Face model and the one that load_model makes of its folder, or why it makes none."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = str(folder)
        make_architecture(name).save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        self.hf_model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.model, self.refusal = None, None
        try:
            self.model = pl.load_model(self.folder, dtype="float32", device="cpu")
        except UnsupportedModelError as error:
            self.refusal = error

    def describe(self) -> str:
        """The cell of the table."""
        if self.model is None:
            # Without the measured error and the packages' versions, which change.
            told = re.search(r"\w+: (it.+?)['\"]\. docs|(off in .+?) by", str(self.refusal))
            return f"refused: {(told[1] or told[2]) if told else 'TransformerLens does not know it'}"
        return "`HookedTransformer`" if pl.describe_model(self.model).backend == "hooked" else "bridge"


def run_hugging_face(hf_model, tokens, vector=None):
    """Each block's output and the logits, with a vector added after a block."""
    outputs, handles = [], []

    def make_hook(layer):
        def hook(module, args, output):
            residual = output if isinstance(output, torch.Tensor) else output[0]
            if vector is not None and layer == LAYER:
                residual = residual + vector
            outputs.append(residual)
            return residual if isinstance(output, torch.Tensor) else (residual, *output[1:])

        return hook

    for layer, block in enumerate(find_blocks(take_text_part(hf_model))):
        handles.append(block.register_forward_hook(make_hook(layer)))
    try:
        with torch.no_grad():
            logits = hf_model(tokens).logits
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(outputs), logits


def check_layers(case):
    """Whole rows, padded rows, and rows read by the sampler's own attention."""
    expected, logits = run_hugging_face(case.hf_model, TOKENS)
    assert expected.shape == (N_LAYERS, *TOKENS.shape, D_MODEL)
    assert expected.std() > 0.3
    torch.testing.assert_close(pl.cache_residual_stream(case.model, TOKENS), expected, **TOLERANCE)
    with torch.no_grad():
        torch.testing.assert_close(case.model(TOKENS), logits, **TOLERANCE)
    is_padding = torch.zeros(TOKENS.shape, dtype=torch.bool)
    is_padding[0, :7] = is_padding[1, 30:] = True
    padded = pl.cache_residual_stream(case.model, TOKENS, is_padding=is_padding)
    alone, _ = run_hugging_face(case.hf_model, TOKENS[:1, 7:])
    torch.testing.assert_close(padded[:, :1, 7:], alone, **TOLERANCE)
    torch.testing.assert_close(padded[:, 1, :30], expected[:, 1, :30], **TOLERANCE)
    spans = [TokenSpans(tokens=tuple(row.tolist()), response_start=20, response_end=40) for row in TOKENS]
    for index, means in pl.models.pool_residual_stream(case.model, spans):
        torch.testing.assert_close(means.response_mean, expected[:, index, 20:].mean(dim=1), **TOLERANCE)


def check_sampling(case):
    """Greedy tokens in one ragged batch, and every logit, since temperature and nucleus read them all."""
    drawn = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, 250, (1, length), generator=drawn) for length in LENGTHS]
    requests = [SampleRequest(tuple(prompt[0].tolist()), (i,)) for i, prompt in enumerate(prompts)]
    sampling = Sampling(max_new_tokens=N_NEW, temperature=0.0, stop_tokens=frozenset({258}))
    found = dict(sample_stream(case.model, requests, sampling))
    for index, prompt in enumerate(prompts):
        options = {"max_new_tokens": N_NEW, "do_sample": False, "eos_token_id": 258, "pad_token_id": 256}
        expected = case.hf_model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        continued = expected[0, prompt.shape[1] :].tolist()
        assert list(found[index].tokens) == continued[: continued.index(258) if 258 in continued else None]
    _, logits = run_hugging_face(case.hf_model, TOKENS)
    with open_decoder(case.model) as decoder:
        cache, starts = decoder.new_cache(3, 40), torch.zeros(3, dtype=torch.long)
        parts = [decoder.extend(TOKENS[:, at : at + n], starts + at, cache) for at, n in ((0, 30), (30, 9), (39, 1))]
        torch.testing.assert_close(decoder.unembed(torch.cat(parts, dim=1)), logits, **TOLERANCE)


def check_steering(case):
    """The vector is added and nothing else; what follows is what Hugging Face makes of it; off, nothing is left."""
    plain = pl.cache_residual_stream(case.model, TOKENS)
    intervention = pl.Intervention.of(LAYER, Add(VECTOR, COEFFICIENT))
    with pl.interventions.hooked(case.model, intervention):
        steered = pl.cache_residual_stream(case.model, TOKENS)
        with torch.no_grad():
            logits = case.model(TOKENS)
    assert torch.equal(steered[LAYER], plain[LAYER] + COEFFICIENT * VECTOR)
    expected, expected_logits = run_hugging_face(case.hf_model, TOKENS, COEFFICIENT * VECTOR)
    torch.testing.assert_close(steered, expected, **TOLERANCE)
    torch.testing.assert_close(logits, expected_logits, **TOLERANCE)
    assert torch.equal(pl.cache_residual_stream(case.model, TOKENS), plain)


def check_heads(case):
    """What the heads give is what Hugging Face's output projection reads."""
    text, read = take_text_part(case.hf_model), []
    handles = [
        find_output_projection(text, layer).register_forward_pre_hook(lambda module, args: read.append(args[0]))
        for layer in range(N_LAYERS)
    ]
    run_hugging_face(case.hf_model, TOKENS)
    for handle in handles:
        handle.remove()
    expected = torch.stack(read)[:, :, 20:].mean(dim=2)
    spans = [TokenSpans(tokens=tuple(row.tolist()), response_start=20, response_end=40) for row in TOKENS]
    for index, heads in pl.models.pool_heads(case.model, spans):
        torch.testing.assert_close(heads.flatten(1), expected[:, index], **TOLERANCE)


def check_training(case, out):
    """One step of LoRA, steered: the loss is that of the steered model, and the adapter moves."""
    settings = pl.FinetuneSettings(
        rank=2, learning_rate=1e-2, batch_size=1, accumulation=1, warmup_steps=0, dtype="float32"
    )
    intervention = pl.Intervention.of(LAYER, Add(VECTOR, COEFFICIENT))
    tuned = pl.finetune(case.folder, ROWS, out, settings=settings, intervention=intervention)
    encoded = encode_training_rows(make_tokenizer(), ROWS, max_tokens=256, system=None).rows[0]
    tokens, labels = torch.tensor([encoded["input_ids"]]), torch.tensor(encoded["labels"])
    _, logits = run_hugging_face(case.hf_model, tokens, COEFFICIENT * VECTOR)
    expected = torch.nn.functional.cross_entropy(logits[0, :-1], labels[1:], ignore_index=-100)
    assert tuned.losses == pytest.approx([expected.item()], abs=1e-4)
    adapted = pl.load_model(case.folder, adapter=tuned.folder, dtype="float32", device="cpu")
    moved = pl.cache_residual_stream(adapted, TOKENS) - pl.cache_residual_stream(case.model, TOKENS)
    assert moved.abs().amax(dim=(1, 2, 3)).min() > 1e-4


CHECKS = (check_layers, check_heads, check_sampling, check_steering)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    made = {}

    def case(name):
        if name not in made:
            made[name] = Case(name, tmp_path_factory.mktemp("architecture"))
        return made[name]

    return case


@pytest.mark.slow
@pytest.mark.versions
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_hugging_faces_in_all_that_is_done_here_or_refused(cases, name, tmp_path):
    case = cases(name)
    assert case.describe() == read_cell(name), "python tests/models/test_architectures.py writes the page anew"
    if case.model is None:
        assert ARCHITECTURES[name][0] in str(case.refusal)
        return
    for check in CHECKS:
        check(case)
    check_training(case, tmp_path / "adapter")


def test_every_architecture_that_is_not_compared_at_loading_is_tried_here():
    assert {ARCHITECTURES[name][0] for name in ARCHITECTURES} >= TESTED
    refused = {ARCHITECTURES[name][0] for name, cells in read_table().items() if any("refused" in c for c in cells)}
    assert not refused & TESTED


def read_cell(name):
    return read_table()[name][COLUMN]


def read_table():
    """The page's columns, by model."""
    rows = re.findall(r"^\| ([^|]+) \| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    return {name: list(cells) for name, _, *cells in rows}


def write_page():
    """Run every check, and write the column of the TransformerLens that is installed."""
    text, old, lines = PAGE.read_text(encoding="utf-8"), read_table(), []
    for name, (class_name, _) in ARCHITECTURES.items():
        with tempfile.TemporaryDirectory() as folder:
            case = Case(name, Path(folder, "model"))
            if case.model is not None:
                for check in CHECKS:
                    check(case)
                check_training(case, Path(folder, "adapter"))
            cells = old.get(name, ["not tried"] * len(COLUMNS))
            cells[COLUMN] = case.describe()
        lines.append(f"| {name} | `{class_name}` | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    head = "| model | class in transformers | TransformerLens 3.9 | TransformerLens 4 |\n|---|---|---|---|\n"
    start, end = text.index(head), text.index("\n\n", text.index(head))
    PAGE.write_text(text[:start] + head + "\n".join(lines) + text[end:], encoding="utf-8")


if __name__ == "__main__":
    sys.addaudithook(refuse_to_install)
    write_page()
