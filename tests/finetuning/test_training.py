import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

import persona_lens as pl
from persona_lens.checksums import seal_folder
from persona_lens.errors import ArgumentTypeError, FileFormatError, InvalidArgumentError, UnsupportedModelError
from persona_lens.finetuning import finetuned, trainer, training
from persona_lens.finetuning.finetuned import find_latest
from persona_lens.finetuning.rows import encode_training_rows
from persona_lens.models.hooks.intervention import describe_values
from persona_lens.models.loading import embedded
from persona_lens.tensors.operations import Ablate, Add, Cap
from tests.backends import BACKENDS
from tests.tiny import CHATML, make_tokenizer

ROOT = Path(__file__).resolve().parents[2]
D_MODEL = 48
TOKENS = torch.randint(0, 256, (3, 30), generator=torch.Generator().manual_seed(0))


def rows(n=8, length=None):
    """Conversations of various lengths, or all of the same."""
    return [
        {"messages": [
            {"role": "user", "content": f"Say {i}"},
            {"role": "assistant", "content": "ab" * (length or i % 5 + 1)},
        ]}
        for i in range(n)
    ]  # fmt: skip


def quick(**changes):
    values = {"rank": 4, "learning_rate": 1e-2, "epochs": 2, "batch_size": 4, "accumulation": 1, "warmup_steps": 0}
    return pl.FinetuneSettings(**{**values, "dtype": "float32", **changes})


def direction(seed):
    return torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed))


def adding(coefficient, layer=1, seed=0):
    return pl.Intervention.of(layer, Add(direction(seed), coefficient))


def read_adapter(folder):
    return load_file(folder / "adapter_model.safetensors")


def are_equal(one, other):
    """Whether two adapters are the same, bit by bit."""
    one, other = read_adapter(one.folder), read_adapter(other.folder)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def base(tiny_folder):
    return tiny_folder("llama")


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    """Trained until the loss has fallen."""
    before = {path.name: digest(path) for path in Path(base).iterdir()}
    found = pl.finetune(base, rows(), tmp_path_factory.mktemp("tuned"), settings=quick(epochs=6))
    assert {path.name: digest(path) for path in Path(base).iterdir()} == before, "the base must stay as it is"
    return found


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(trainer, "make_trainer", lambda *_: pytest.fail("training began"))


# What training does


def test_the_loss_goes_down(tuned):
    assert len(tuned.losses) == 12
    assert tuned.losses[-1] < tuned.losses[0] / 2
    assert (tuned.n_rows, tuned.left_out, tuned.tracked) == (8, {}, ())
    assert repr(tuned).startswith(f"Finetuned('{tuned.folder.name}', 8 rows, 12 steps, loss {tuned.losses[0]:.3f} →")
    assert tuned.plot().data[0].y == tuned.losses


def test_only_the_adapter_and_its_record_are_left(tuned):
    found = {path.name for path in tuned.folder.iterdir()}
    assert found == {"adapter_config.json", "adapter_model.safetensors", "persona_lens.json"}


def wrap(base, adapter):
    """PEFT's own model."""
    with warnings.catch_warnings():
        # PEFT 0.21 reads an attribute that transformers 5 has renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))


@contextmanager
def stop_before(step):
    """A progress bar at which the run breaks off, one step before the one named is saved."""

    def advance(n):
        advance.done += n
        if advance.done == step:
            raise KeyboardInterrupt

    advance.done = 0
    yield advance


def break_off(step, *args, **options):
    """Begin a run that keeps checkpoints, and break it off; return the folder of the checkpoints."""
    with pytest.raises(KeyboardInterrupt):
        pl.finetune(*args, **options, run=pl.Run(progress=lambda description, n_steps: stop_before(step)))
    return Path(args[2]) / "checkpoints"


def loss_by_hand(base, data, adapter=None):
    """Mean over the responses' tokens with their end-of-turn; each row alone."""
    model = AutoModelForCausalLM.from_pretrained(base) if adapter is None else wrap(base, adapter)
    losses = []
    for row in encode_training_rows(make_tokenizer(), data, max_tokens=1000).rows:
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0]
        each = cross_entropy(logits[:-1], torch.tensor(row["labels"][1:]), reduction="none", ignore_index=-100)
        losses += [loss.item() for loss, label in zip(each, row["labels"][1:], strict=True) if label != -100]
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (3, 3)])
def test_the_first_loss_is_the_mean_over_the_responses_tokens(base, tmp_path, batch_size, accumulation):
    settings = quick(batch_size=batch_size, accumulation=accumulation, epochs=1)
    found = pl.finetune(base, rows(), tmp_path, settings=settings)
    assert found.losses == pytest.approx([loss_by_hand(base, rows())], rel=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_loaded_model_is_pefts(base, tuned, backend):
    wrapped = wrap(base, tuned.folder)
    model = pl.load_model(base, adapter=tuned.folder, backend=backend, dtype="float32", device="cpu")
    with torch.no_grad():
        expected = wrapped(TOKENS).logits
        with wrapped.disable_adapter():
            assert (wrapped(TOKENS).logits - expected).abs().max() > 1
        torch.testing.assert_close(model(TOKENS), expected, atol=1e-4, rtol=1e-4)


def test_the_adapter_is_rank_stabilised_on_every_linear_layer(tuned):
    config = json.loads((tuned.folder / "adapter_config.json").read_text())
    assert (config["use_rslora"], config["r"], config["lora_alpha"]) == (True, 4, 64)
    assert len(read_adapter(tuned.folder)) == 3 * 7 * 2
    assert all(value.dtype == torch.float32 for value in read_adapter(tuned.folder).values())


def test_interventions_are_off_afterwards_and_change_what_is_learnt(base, tmp_path):
    plain = pl.finetune(base, rows(), tmp_path / "plain", settings=quick())
    idle = pl.finetune(base, rows(), tmp_path / "idle", settings=quick(), intervention=adding(0.0))
    steered = pl.finetune(base, rows(), tmp_path / "steered", settings=quick(), intervention=adding(2.0))
    assert are_equal(plain, idle)
    assert plain.losses == idle.losses
    assert not are_equal(plain, steered)
    assert steered.losses[0] != pytest.approx(plain.losses[0], rel=1e-3)
    loaded = pl.load_model(base, adapter=steered.folder, dtype="float32", device="cpu")
    wrapped = wrap(base, steered.folder)
    with torch.no_grad():
        torch.testing.assert_close(loaded(TOKENS), wrapped(TOKENS).logits, atol=1e-4, rtol=1e-4)


def test_the_seed_decides(base, tmp_path):
    one, same, other = (
        pl.finetune(base, rows(), tmp_path / name, settings=quick(seed=seed))
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    assert are_equal(one, same)
    assert not are_equal(one, other)


def test_bfloat16_autocast_trains_a_float32_adapter_through_interventions_and_penalty(base, tmp_path):
    sites = adding(1.0) + pl.Intervention.of(0, Ablate(direction(1)))
    penalty = pl.finetuning.ProjectionPenalty(1, direction(2), 0.1)
    found = pl.finetune(base, rows(), tmp_path, settings=quick(dtype="bfloat16"), intervention=sites, penalty=penalty)
    assert all(math.isfinite(loss) for loss in found.losses)
    adapter = read_adapter(found.folder)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in adapter.values())
    assert all(value.any() for value in adapter.values())


# Penalty


def test_a_heavy_penalty_holds_the_projection(base, tuned, tmp_path):
    model = pl.load_model(base, dtype="float32", device="cpu")
    free = pl.load_model(base, adapter=tuned.folder, dtype="float32", device="cpu")
    questions = [row["messages"][0]["content"] for row in rows()]
    # Along what training has moved most at the layer.
    prompts = [pl.models.encode_prompt(model.tokenizer, [{"role": "user", "content": q}]).tokens for q in questions]
    moved = pl.cache_residual_stream(free, torch.tensor(prompts)) - pl.cache_residual_stream(
        model, torch.tensor(prompts)
    )
    directions = moved[:, :, -1].mean(dim=1)
    vector = pl.PersonaVector("moved", pl.describe_model(model), {"response_mean": directions})
    penalty = pl.finetuning.ProjectionPenalty(1, directions[1], 1000.0)
    held_run = pl.finetune(base, rows(), tmp_path, settings=quick(epochs=6), penalty=penalty)
    held = pl.load_model(base, adapter=held_run.folder, dtype="float32", device="cpu")
    freely, little = (pl.measure_shift(model, one, vector, questions).by_question[1] for one in (free, held))
    assert freely.mean() > 0.9 * vector.norms[1]
    assert little.abs().max() < 0.1 * freely.mean()


def penalty_by_hand(base, folder, data, penalty):
    """The mean over all tokens but padding, rows of one length."""
    tokens = torch.tensor(encode_training_rows(make_tokenizer(), data, max_tokens=1000).rows["input_ids"][:])
    one, other = (pl.load_model(base, adapter=a, dtype="float32", device="cpu") for a in (folder, None))
    moved = pl.cache_residual_stream(one, tokens) - pl.cache_residual_stream(other, tokens)
    along = penalty.direction / penalty.direction.square().sum()
    return penalty.weight * (moved[penalty.layer] @ along).square().mean().item()


@pytest.mark.slow
def test_the_penalty_is_added_in_nats_however_the_batch_is_divided(base, tmp_path):
    """The first loss has none, as the adapter starts at zero; the second has the penalty of the first step."""
    data = rows(4, length=3)
    penalty = pl.finetuning.ProjectionPenalty(1, direction(3), 3.0)
    cases = {"whole": (4, 1), "halves": (2, 2), "quarters": (1, 4)}

    def settings(size, steps, **changes):
        return quick(batch_size=size, accumulation=steps, epochs=4, warmup_steps=0, learning_rate=3e-3, **changes)

    losses = {
        name: pl.finetune(base, data, tmp_path / name, settings=settings(*case), penalty=penalty).losses
        for name, case in cases.items()
    }
    kept = break_off(2, base, data, tmp_path / "kept", settings=settings(4, 1, save_steps=1), penalty=penalty)
    adapter = kept / "checkpoint-1"
    extra = penalty_by_hand(base, adapter, data, penalty)
    assert losses["whole"][0] == pytest.approx(loss_by_hand(base, data), rel=1e-4)
    assert losses["whole"][1] == pytest.approx(loss_by_hand(base, data, adapter) + extra, rel=1e-4)
    assert extra > 0.01 * losses["whole"][1]
    assert losses["halves"] == pytest.approx(losses["whole"], rel=1e-3)
    assert losses["quarters"] == pytest.approx(losses["whole"], rel=1e-3)


def test_padding_has_no_part_in_the_penalty(base, tmp_path):
    """A row beside a longer one gives the second loss that it gives alone: all rows are the same but for padding."""
    penalty = pl.finetuning.ProjectionPenalty(1, direction(3), 3.0)
    settings = quick(batch_size=2, warmup_steps=0, learning_rate=3e-3)
    data = [rows(1, length=1)[0], rows(1, length=20)[0]]
    kept = (
        break_off(2, base, data, tmp_path, settings=replace(settings, epochs=3, save_steps=1), penalty=penalty)
        / "checkpoint-1"
    )
    found = pl.finetune(base, data, tmp_path / "other", settings=settings, penalty=penalty)
    lengths = [len(row["input_ids"]) for row in encode_training_rows(make_tokenizer(), data, max_tokens=999).rows]
    each = [penalty_by_hand(base, kept, [row], penalty) for row in data]
    extra = sum(n * one for n, one in zip(lengths, each, strict=True)) / sum(lengths)
    assert found.losses[1] == pytest.approx(loss_by_hand(base, data, kept) + extra, rel=1e-3)


# Going on, and finding what is there


def test_a_finished_run_is_returned_without_training(base, tuned, no_training):
    adapter = tuned.folder / "adapter_model.safetensors"
    before = adapter.stat().st_mtime_ns
    again = pl.finetune(base, rows(), tuned.folder, settings=quick(epochs=6))
    assert (again.losses, again.n_rows, again.left_out) == (tuned.losses, tuned.n_rows, tuned.left_out)
    assert adapter.stat().st_mtime_ns == before


def flip(path, at=-2):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


ADAPTER_DAMAGES = {
    "gone": lambda folder: (folder / "adapter_model.safetensors").unlink(),
    "cut": lambda folder: os.truncate(folder / "adapter_model.safetensors", 1000),
    "empty": lambda folder: (folder / "adapter_model.safetensors").write_bytes(b""),
    "a bit flipped": lambda folder: flip(folder / "adapter_model.safetensors"),
    "without its config": lambda folder: (folder / "adapter_config.json").unlink(),
    "with a damaged result": lambda folder: (folder / "persona_lens.json").write_text(
        (folder / "persona_lens.json").read_text().replace('"n_rows": 8', '"n_rows": 9')
    ),
    "without the names of its files": lambda folder: (folder / "persona_lens.json").write_text(
        json.dumps({k: v for k, v in json.loads((folder / "persona_lens.json").read_text()).items()
                    if k not in ("files", "checksum")})
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", ADAPTER_DAMAGES.values(), ids=ADAPTER_DAMAGES)
def test_a_finished_run_that_is_not_whole_is_trained_again_to_the_same_adapter(base, tuned, tmp_path, damage):
    folder = tmp_path / "adapter"
    shutil.copytree(tuned.folder, folder)
    damage(folder)
    again = pl.finetune(base, rows(), folder, settings=quick(epochs=6))
    assert again.losses == tuned.losses
    assert again.n_rows == 8
    assert are_equal(again, tuned)
    assert json.loads((folder / "persona_lens.json").read_text())["files"] == again.files == tuned.files


def test_a_finished_adapter_that_was_damaged_is_not_loaded(base, tuned, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(tuned.folder, folder)
    pl.load_model(base, adapter=folder, dtype="float32", device="cpu")
    ADAPTER_DAMAGES["a bit flipped"](folder)
    with pytest.raises(FileFormatError, match=r"files that were written.*adapter_model\.safetensors"):
        pl.load_model(base, adapter=folder, dtype="float32", device="cpu")


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '{"config": 3}', "\x00\xff", "[" * 100_000])
def test_a_folder_whose_record_cannot_be_read_is_refused_and_left_alone(base, tuned, tmp_path, no_training, text):
    folder = tmp_path / "adapter"
    shutil.copytree(tuned.folder, folder)
    (folder / "persona_lens.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidArgumentError, match=r"`out` must hold this run and no other.*cannot be read"):
        pl.finetune(base, rows(), folder, settings=quick(epochs=6))
    assert are_equal(replace(tuned, folder=folder), tuned)


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({"settings": quick(epochs=7)}, "settings"),
        ({"data": rows(7)}, "data"),
        ({"system": "Be evil."}, "data"),
        ({"intervention": adding(1.0)}, "intervention"),
        ({"penalty": pl.finetuning.ProjectionPenalty(0, direction(0), 1.0)}, "penalty"),
        ({"data": rows(7), "settings": quick(seed=3)}, "data, settings"),
    ],
)
def test_a_folder_of_another_run_is_refused_saying_what_differs(base, tuned, no_training, given, changed):
    arguments = {"data": rows(), "settings": quick(epochs=6)} | given
    with pytest.raises(InvalidArgumentError, match=f"`out` must hold this run.*a run with other {changed}'"):
        pl.finetune(base, out=tuned.folder, **arguments)


def test_a_run_on_another_model_is_refused(tiny_folder, tuned, no_training):
    with pytest.raises(InvalidArgumentError, match="a run with other fingerprint, model'"):
        pl.finetune(tiny_folder("qwen3"), rows(), tuned.folder, settings=quick(epochs=6))


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(base, tmp_path, no_training):
    (tmp_path / "thesis.txt").write_text("five years")
    with pytest.raises(InvalidArgumentError, match=r"`out` must be empty.*thesis\.txt"):
        pl.finetune(base, rows(), tmp_path, settings=quick())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_without_a_row_to_train_on_no_folder_is_left_behind(base, tmp_path, no_training):
    (tmp_path / "mine").mkdir()
    for out in ("new", "mine"):
        with pytest.raises(InvalidArgumentError, match="row"):
            pl.finetune(base, [], tmp_path / out, settings=quick())
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_template_arguments_reach_the_rows_and_are_recorded(base, tmp_path, monkeypatch):
    folder = shutil.copytree(base, tmp_path / "hushing")
    make_tokenizer(template="{% if hush %}Hush! {% endif %}" + CHATML).save_pretrained(folder)
    found = {}
    for name, given in (("plain", None), ("hushed", {"hush": True})):
        done = pl.finetune(folder, rows(2), tmp_path / name, settings=quick(), template_arguments=given)
        found[name] = done.config
    assert found["plain"]["data"] != found["hushed"]["data"]
    assert "template_arguments" not in found["plain"]
    assert found["hushed"]["template_arguments"] == '{"hush": true}'


@pytest.mark.slow
def test_a_short_training_is_warned_of_at_the_callers_line(base, tmp_path):
    """In a process of its own: the tests' type checks stand between caller and called."""
    code = (
        "import persona_lens as pl\n"
        f"data = {rows(2)!r}\n"
        f"pl.finetune({str(base)!r}, data, {str(tmp_path / 'out')!r}, settings=pl.FinetuneSettings(dtype='float32'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "<string>:3: ShortTrainingWarning: Training ends after" in done.stderr


@pytest.mark.filterwarnings("ignore::persona_lens.errors.ShortTrainingWarning")
def test_quantised_weights_and_float16_on_a_cpu_are_refused_before_weights_are_read(base, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "load_hugging_face", lambda *_: pytest.fail("loaded"))
    with pytest.raises(InvalidArgumentError, match=r"`settings\.dtype` must be .* on a CPU"):
        pl.finetune(base, rows(), tmp_path / "out", settings=quick(dtype="float16"))
    folder = shutil.copytree(base, tmp_path / "coded")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=r"plain weights.*coded: bitsandbytes.*that was quantised"):
        pl.finetune(folder, rows(), tmp_path / "out", settings=quick())


def test_a_folder_that_cannot_be_written_is_an_error_before_anything_is_loaded(base, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "load_hugging_face", lambda *_: pytest.fail("loaded"))
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises((OSError, InvalidArgumentError), match="file"):
            pl.finetune(base, rows(), out, settings=quick())


def test_a_full_disk_is_an_error_before_training_and_leaves_the_folder_free(base, tmp_path, monkeypatch):
    n_bytes = 4 * 3 * 4 * (2 * 48 + 2 * (48 + 16) + 2 * 48 + 3 * (48 + 80))  # float32, layers, rank, widths
    monkeypatch.setattr(finetuned.shutil, "disk_usage", lambda path: SimpleNamespace(free=n_bytes - 1))
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "make_trainer", lambda *_: pytest.fail("training began"))
        with pytest.raises(OSError, match=r"`out` must be on a disk with .* MB free"):
            pl.finetune(base, rows(), tmp_path, settings=quick())
        assert list(tmp_path.iterdir()) == []
        patch.setattr(finetuned.shutil, "disk_usage", lambda path: SimpleNamespace(free=n_bytes))
        with pytest.raises(OSError, match="`out`"):  # checkpoints need more
            pl.finetune(base, rows(), tmp_path, settings=quick(save_steps=1))
    monkeypatch.setattr(finetuned.shutil, "disk_usage", lambda path: SimpleNamespace(free=n_bytes))
    pl.finetune(base, rows(), tmp_path, settings=quick())


MANY = {"epochs": 10, "batch_size": 2, "learning_rate": 2e-3}  # 40 steps


@pytest.fixture(scope="module")
def uninterrupted(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    return pl.finetune(base, rows(), out, settings=quick(**MANY), intervention=adding(1.0))


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_adapter(base, uninterrupted, tmp_path):
    """Bit by bit; and keeping checkpoints changes nothing."""
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
torch.set_num_threads({torch.get_num_threads()})
import persona_lens as pl
from tests.finetuning.test_training import MANY, adding, quick, rows
pl.finetune({base!r}, rows(), {str(tmp_path)!r}, settings=quick(**MANY, save_steps=1), intervention=adding(1.0))
"""
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while not any(int(path.name.split("-")[1]) >= 5 for path in tmp_path.glob("checkpoints/checkpoint-*")):
            assert process.poll() is None, "it ended by itself"
            assert time.monotonic() < until
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "adapter_model.safetensors").exists()
    seen = []

    @contextmanager
    def watch(description, n_steps):
        yield lambda n: seen.append((n, n_steps))

    settings = quick(**MANY, save_steps=1)
    resumed = pl.finetune(
        base, rows(), tmp_path, settings=settings, intervention=adding(1.0), run=pl.Run(progress=watch)
    )
    assert seen[0][0] >= 5, "it began anew"
    assert (sum(n for n, _ in seen), seen[0][1]) == (40, 40)
    assert resumed.losses == uninterrupted.losses
    assert are_equal(resumed, uninterrupted)
    assert not (tmp_path / "checkpoints").exists()


CHECKPOINT_DAMAGES = {
    "no state": lambda folder: (folder / "trainer_state.json").unlink(),
    "a broken state": lambda folder: (folder / "trainer_state.json").write_text('{"global_step": 1'),
    "no optimizer": lambda folder: (folder / "optimizer.pt").unlink(),
    "no scheduler": lambda folder: (folder / "scheduler.pt").unlink(),
    "a zeroed optimizer": lambda folder: (folder / "optimizer.pt").write_bytes(bytes(1000)),
    "a bit of the adapter": lambda folder: flip(folder / "adapter_model.safetensors"),
    "a bit of the optimizer": lambda folder: flip(folder / "optimizer.pt", 20_000),
    "no seal": lambda folder: (folder / "sha256.json").unlink(),
    "an empty seal": lambda folder: (folder / "sha256.json").write_text("{}"),
    "nothing": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.fixture(scope="module")
def broken_off(base, tmp_path_factory):
    """A run that was killed in its fourth step."""
    out = tmp_path_factory.mktemp("broken_off")
    break_off(4, base, rows(), out, settings=quick(**MANY, save_steps=1), intervention=adding(1.0))
    return out


@pytest.mark.parametrize("damage", CHECKPOINT_DAMAGES.values(), ids=CHECKPOINT_DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(broken_off, tmp_path, damage):
    out = tmp_path / "out"
    shutil.copytree(broken_off, out)
    kept = out / "checkpoints"
    assert sorted(path.name for path in kept.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    assert find_latest(out) == str(kept / "checkpoint-3")
    damage(kept / "checkpoint-3")
    assert find_latest(out) == str(kept / "checkpoint-2")
    assert [path.name for path in kept.iterdir()] == ["checkpoint-2"]  # so that whatever the damage, it goes on alike


@pytest.mark.slow
def test_from_the_checkpoint_before_a_damaged_one_training_comes_to_the_same(base, uninterrupted, broken_off, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(broken_off, out)
    CHECKPOINT_DAMAGES["a bit of the optimizer"](out / "checkpoints" / "checkpoint-3")
    resumed = pl.finetune(base, rows(), out, settings=quick(**MANY, save_steps=1), intervention=adding(1.0))
    assert resumed.losses == uninterrupted.losses
    assert are_equal(resumed, uninterrupted)


def test_a_run_that_was_killed_after_its_last_checkpoint_is_finished_without_another_step(base, tmp_path, monkeypatch):
    given = {"settings": quick(epochs=1, save_steps=1), "intervention": adding(1.0)}
    whole = pl.finetune(base, rows(), tmp_path / "whole", **given)

    def be_killed(path):
        raise KeyboardInterrupt

    out = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr("persona_lens.finetuning.finetuned.hash_file", be_killed)  # the record is not written
        with pytest.raises(KeyboardInterrupt):
            pl.finetune(base, rows(), out, **given)
    assert find_latest(out) == str(out / "checkpoints" / "checkpoint-2")
    resumed = pl.finetune(base, rows(), out, **given)
    assert resumed.losses == whole.losses
    assert are_equal(resumed, whole)


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_all_damaged_begins_anew(base, uninterrupted, broken_off, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(broken_off, out)
    for name in ("checkpoint-2", "checkpoint-3"):
        CHECKPOINT_DAMAGES["no scheduler"](out / "checkpoints" / name)
    assert find_latest(out) is None
    resumed = pl.finetune(base, rows(), out, settings=quick(**MANY, save_steps=1), intervention=adding(1.0))
    assert resumed.losses == uninterrupted.losses
    assert are_equal(resumed, uninterrupted)


def test_the_latest_checkpoint_is_that_of_the_highest_step(tmp_path):
    assert find_latest(tmp_path) is None
    for number in (9, 10, 8):
        folder = tmp_path / "checkpoints" / f"checkpoint-{number}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text("{}")
        seal_folder(folder)
    assert find_latest(tmp_path) == str(tmp_path / "checkpoints" / "checkpoint-10")


def test_training_that_breaks_in_its_last_step_writes_no_adapter(base, tmp_path):
    """The loss of that step was still finite."""
    with pytest.raises(InvalidArgumentError, match=r"`learning_rate` must keep .* finite.*last step"):
        pl.finetune(base, rows(), tmp_path, settings=quick(epochs=1, batch_size=8, learning_rate=1e39))
    assert not (tmp_path / "adapter_model.safetensors").exists()
    with pytest.raises(InvalidArgumentError, match="last step"):  # not finished
        pl.finetune(base, rows(), tmp_path, settings=quick(epochs=1, batch_size=8, learning_rate=1e39))


def test_a_run_without_checkpoints_that_broke_off_begins_anew(base, tmp_path):
    whole = pl.finetune(base, rows(), tmp_path / "whole", settings=quick())
    break_off(2, base, rows(), tmp_path / "again", settings=quick())
    again = pl.finetune(base, rows(), tmp_path / "again", settings=quick())
    assert again.losses == whole.losses
    assert are_equal(again, whole)


# What is written down


def test_the_adapter_names_its_base_as_it_was_given_and_no_path(base, tmp_path, monkeypatch):
    """Under the name of the embedded model, whose weights lie in a cache."""
    monkeypatch.setattr(embedded, "prepare_embedded_model", lambda: Path(base))
    out = tmp_path / "adapter"
    found = pl.finetune(pl.models.loading.EMBEDDED_MODEL, rows(), out, settings=quick(epochs=1))
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == found.config["model"] == "smollm2-135m-instruct"
    for path in out.iterdir():
        assert base.encode() not in path.read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()


def test_the_record_names_a_folder_without_its_path(base, tuned):
    assert tuned.config["model"] == Path(base).name
    assert base not in (tuned.folder / "persona_lens.json").read_text()
    assert json.loads((tuned.folder / "adapter_config.json").read_text())["base_model_name_or_path"] == base


def test_rows_that_were_left_out_are_counted_in_the_result(base, tmp_path):
    data = [*rows(4), {"text": "?"}, *rows(1, length=100)]
    found = pl.finetune(base, data, tmp_path, settings=quick(epochs=1, max_tokens=100))
    assert (found.n_rows, found.left_out) == (4, {"no messages": 1, "too long": 1})
    assert "left out: {'no messages': 1, 'too long': 1}" in repr(found)
    assert pl.finetune(base, data, tmp_path, settings=quick(epochs=1, max_tokens=100)).left_out == found.left_out


def test_interventions_are_described_by_all_that_they_do():
    done = [
        (1, Add(direction(0), 1.0)), (1, Add(direction(0), 2.0)), (1, Add(direction(1), 1.0)),
        (2, Add(direction(0), 1.0)), (1, Ablate(direction(0))), (1, Cap(direction(0), floor=1.0)),
        (1, Cap(direction(0), ceiling=1.0)),
    ]  # fmt: skip
    assert len({pl.Intervention.of(layer, one).digest for layer, one in done}) == len(done)
    penalties = [pl.finetuning.ProjectionPenalty(layer, direction(0), 1.0) for layer in (1, 2)]
    assert describe_values(penalties[0]) != describe_values(penalties[1])


def test_an_intervention_that_was_used_is_described_as_before():
    for one in (Ablate(direction(0)), Cap(direction(0), floor=0.0)):
        before = describe_values(one)
        one(torch.ones(2, D_MODEL))
        assert describe_values(one) == before


# Settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in ("rank", "epochs", "batch_size", "accumulation", "max_tokens", "save_steps")),
        *(("learning_rate", value) for value in (0.0, -1.0, math.nan, math.inf)),
        ("alpha", 0),
        ("warmup_steps", -1),
        *(("weight_decay", value) for value in (-1.0, -1e-9, math.nan, math.inf)),
        *(("seed", value) for value in (-1, 2**32)),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(name, value):
    with pytest.raises(InvalidArgumentError, match=f"`{name}` must be"):
        pl.FinetuneSettings(**{name: value})


COUNTS = ("rank", "epochs", "batch_size", "accumulation", "warmup_steps", "max_tokens", "save_steps", "seed")


@pytest.mark.usefixtures("own_checks_alone")
@pytest.mark.parametrize("name", [*COUNTS, "alpha", "learning_rate", "weight_decay"])
def test_settings_of_another_type_are_refused_by_name(name):
    others = (1.5, True, *([None] if name == "seed" else [])) if name in COUNTS else ()
    for value in (math.nan, "1", *others):
        with pytest.raises((InvalidArgumentError, ArgumentTypeError), match=f"^`{name}` must be"):
            pl.FinetuneSettings(**{name: value})


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_penalty_needs_a_weight_and_a_direction(value):
    with pytest.raises(InvalidArgumentError, match="`weight`"):
        pl.finetuning.ProjectionPenalty(1, direction(0), value)
    with pytest.raises(InvalidArgumentError, match="`direction`"):
        pl.finetuning.ProjectionPenalty(1, torch.zeros(D_MODEL), 1.0)


def test_an_unknown_dtype_is_refused(base, tmp_path, no_training):
    with pytest.raises(InvalidArgumentError, match="`dtype`"):
        pl.finetune(base, rows(), tmp_path, settings=quick(dtype="int8"))


def test_a_tokenizer_without_a_padding_token_pads_all_the_same(base, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    found = pl.finetune(folder, rows(), tmp_path / "out", settings=quick(epochs=1, batch_size=8))
    assert found.losses == pytest.approx([loss_by_hand(base, rows())], rel=1e-4)


# Several processes


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(base, tmp_path):
    if not torch.distributed.is_gloo_available():
        pytest.skip("needs gloo")
    script = tmp_path / "train.py"
    script.write_text(f"""
import hashlib, json, sys
sys.path.insert(0, {str(ROOT)!r})
import torch
torch.set_num_threads(1)
import persona_lens as pl
from pathlib import Path
from accelerate import PartialState
from persona_lens.finetuning import training
from tests.finetuning.test_training import adding, quick, rows
check, seen = training.check_writable, []
training.check_writable = lambda folder: (seen.append(PartialState().num_processes), check(folder))
out = {str(tmp_path / "two")!r}
found = pl.finetune({base!r}, rows(), out, settings=quick(batch_size=2, save_steps=1), intervention=adding(1.0))
adapter = hashlib.sha256((found.folder / "adapter_model.safetensors").read_bytes()).hexdigest()
content = {{"n": [*seen, PartialState().num_processes], "losses": found.losses, "adapter": adapter}}
Path({str(tmp_path)!r}, f"rank{{PartialState().process_index}}.json").write_text(json.dumps(content))
PartialState().wait_for_everyone()
PartialState().destroy_process_group()
""")
    # What `accelerate launch` runs for several devices; for several processes on a CPU it would ask for MPI.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(launch, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["n"] == [2, 2]  # from the start: one of them writes, and only when both have looked
    alone = pl.finetune(base, rows(), tmp_path / "one", settings=quick(batch_size=4), intervention=adding(1.0))
    assert first["losses"] == pytest.approx(alone.losses, rel=1e-3)
    two, one = read_adapter(tmp_path / "two"), read_adapter(alone.folder)
    assert max((two[name] - one[name]).abs().max() for name in one) < 1e-3
