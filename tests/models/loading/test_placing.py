import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BitsAndBytesConfig, LlamaConfig, modeling_utils

import persona_lens as pl
from persona_lens.errors import InvalidArgumentError, UnsupportedModelError
from persona_lens.models.loading import checkpoints, load, load_hugging_face, placing, process_wide, spreading
from persona_lens.models.loading.hooked import build_hooked
from tests.backends import BACKENDS
from tests.models.loading.test_adapters import make_adapter
from tests.tiny import make_hf_model, make_tokenizer, save_tiny

TOKENS = torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(0))
FOUR_BITS = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)


def list_mapped(folder):
    """Files of a folder that are mapped into this process's memory."""
    return {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line}


needs_hooked = pytest.mark.skipif("hooked" not in BACKENDS, reason="TransformerLens 4 has no HookedTransformer")

# Held once --------------------------------------------------------------------------------------------------------


@needs_hooked
def test_a_hooked_transformer_takes_over_the_memory_of_the_weights(tiny_folder):
    hf_model, tokenizer = load_hugging_face(tiny_folder("llama"), torch.float32)
    model = build_hooked("tiny", hf_model, tokenizer, torch.float32)
    theirs = {weight.data_ptr() for weight in hf_model.parameters()}
    ours = {name: weight for name, weight in model.named_parameters() if "b_" not in name.rpartition(".")[2]}
    assert {weight.data_ptr() for weight in ours.values()} == theirs
    assert all(weight.requires_grad and weight.is_leaf for weight in ours.values())


@needs_hooked
def test_tied_embeddings_become_two(tiny_folder):
    hf_model, tokenizer = load_hugging_face(tiny_folder("llama"), torch.float32)
    hf_model.lm_head.weight = hf_model.model.embed_tokens.weight
    model = build_hooked("tiny", hf_model, tokenizer, torch.float32)
    before = model.W_E.clone()
    with torch.no_grad():
        model.W_U.zero_()
    assert torch.equal(model.W_E, before)


@pytest.mark.parametrize("backend", ["hooked", "bridge"])
def test_no_file_stays_mapped(tmp_path, backend):
    pytest.importorskip("transformer_lens.HookedTransformer")
    model = pl.load_model(save_tiny(tmp_path, "llama"), backend=backend, dtype="float32", device="cpu")
    assert list_mapped(tmp_path) == set()
    (tmp_path / "model.safetensors").write_bytes(b"gone")
    assert model(TOKENS).isfinite().all()


def test_from_the_disk_the_weights_stay_in_their_files(tmp_path):
    folder = save_tiny(tmp_path, "llama")
    model = pl.load_model(folder, device_map="disk")
    assert list_mapped(tmp_path) == {f"{folder}/model.safetensors"}
    plain = pl.load_model(folder, backend="bridge", dtype="float32", device="cpu")
    assert torch.equal(model(TOKENS), plain(TOKENS))
    assert pl.describe_model(model) == pl.describe_model(plain)
    with pytest.raises(InvalidArgumentError, match="`dtype` must be 'auto' or the files' own, float32"):
        pl.load_model(folder, device_map={"": "disk"}, dtype="bfloat16")


# Maps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}, {"model": "cpu", "lm_head": torch.device("cpu")}])
def test_a_mapped_model_is_the_same(tiny_folder, tiny_bridge, device_map):
    mapped = pl.load_model(tiny_folder("llama"), device_map=device_map, dtype="float32")
    assert torch.equal(mapped(TOKENS), tiny_bridge(TOKENS))
    assert pl.describe_model(mapped) == pl.describe_model(tiny_bridge)
    requests = [pl.models.RolloutRequest("Hello", (0,))]
    sampled = [pl.models.sample_rollouts(one, requests, pl.Sampling(8)) for one in (mapped, tiny_bridge)]
    assert sampled[0][0].response == sampled[1][0].response


SPREAD = {"model.layers.1": "disk", "lm_head": "disk", "": "cpu"}


@pytest.mark.parametrize(
    "device_map", [SPREAD, {"model.layers.0": "cpu", "": "disk"}, {"model": "disk", "lm_head": "disk"}]
)
def test_a_model_that_is_spread_over_memory_and_the_disk_is_the_same(tmp_path, device_map):
    folder = save_tiny(tmp_path, "llama")
    mapped = pl.load_model(folder, device_map=device_map)
    plain = pl.load_model(folder, backend="bridge", dtype="float32", device="cpu")
    assert list_mapped(tmp_path) == {f"{folder}/model.safetensors"}
    assert pl.describe_model(mapped) == pl.describe_model(plain)
    vector = pl.PersonaVector("loud", pl.describe_model(plain), {"response_mean": torch.ones(3, 48)})
    found = []
    for model in (mapped, plain):
        logits = model(TOKENS)
        residuals = pl.cache_residual_stream(model, TOKENS)
        with pl.steering(model, vector, layer=1, coefficient=2.0, positions="all"):
            steered = model(TOKENS)
        requests = [pl.models.RolloutRequest("Hello", (0,), intervention=pl.steer(vector, layer=1, coefficient=1.0))]
        (rollout,) = pl.models.sample_recorded_rollouts(model, requests, pl.Sampling(8))
        found.append((logits, residuals, steered, torch.tensor(rollout.tokens), rollout.residuals.response_mean))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert not torch.equal(found[0][0], found[0][2])


def test_what_a_map_puts_into_memory_is_no_longer_of_the_file(tmp_path):
    folder = save_tiny(tmp_path, "llama")
    model = pl.load_model(folder, device_map=SPREAD).original_model
    places = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    ends = [tuple(int(one, 16) for one in place[0].split("-")) for place in places]

    def is_mapped(weight):
        return any(start <= weight.data_ptr() < end for start, end in ends)

    mapped = {name for name, weight in model.named_parameters() if is_mapped(weight)}
    names = {name for name, _ in model.named_parameters() if not name.endswith("bias")}  # the bridge adds one
    assert mapped == {name for name in names if "layers.1." in name or "lm_head" in name}


def test_a_block_that_lies_elsewhere_is_copied_while_it_runs_and_never_otherwise(tmp_path):
    """As on a GPU, whose memory here is this machine's."""
    model = pl.load_model(save_tiny(tmp_path, "llama"), backend="bridge", dtype="float32", device="cpu")
    expected, block = model(TOKENS), model.blocks[1].original_component
    own = {name: weight.data_ptr() for name, weight in block.named_parameters()}
    seen = []

    def look(module, given, output=None):
        seen.append({name: weight.data_ptr() for name, weight in block.named_parameters()})

    spreading.BlockFetcher(block, torch.device("cpu")).attach()
    block.mlp.register_forward_hook(look)
    assert torch.equal(model(TOKENS), expected)
    assert not set(seen[0].values()) & set(own.values())
    assert {name: weight.data_ptr() for name, weight in block.named_parameters()} == own
    failing = block.mlp.register_forward_hook(lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(TOKENS)
    failing.remove()
    assert {name: weight.data_ptr() for name, weight in block.named_parameters()} == own
    requests = [pl.models.RolloutRequest("Hello", (0,))]
    plain = pl.load_model(save_tiny(tmp_path, "llama"), backend="bridge", dtype="float32", device="cpu")
    sampled = [pl.models.sample_rollouts(one, requests, pl.Sampling(8))[0].tokens for one in (model, plain)]
    assert sampled[0] == sampled[1]


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 9),
    st.lists(st.integers(0, 40), min_size=1, max_size=3), st.booleans(),
)  # fmt: skip
def test_chosen_places_fit_in_their_order_and_the_computing_device_has_room_for_a_copy(blocks, outside, free, on_gpu):
    names = ["cuda:0", "cuda:1", "cpu"][: len(free)] if on_gpu else ["cpu"]
    rooms = dict(zip(names, free, strict=False))
    device = names[0]
    kept = outside + (max(blocks) if device != "cpu" else 0)
    try:
        places = spreading.choose_places(blocks, outside, rooms)
    except InvalidArgumentError:
        assert kept > rooms[device]
        return
    if places is None:
        assert sum(blocks) + outside <= rooms[device]
        return
    taken = {name: sum(b for b, place in zip(blocks, places, strict=True) if place == name) for name in names}
    assert all(taken[name] + (kept if name == device else 0) <= rooms[name] for name in names)
    order = [[*names, "disk"].index(place) for place in places]
    assert order == sorted(order)


def test_a_word_spreads_a_model_that_memory_has_no_room_for(tmp_path, monkeypatch):
    folder = save_tiny(tmp_path, "llama")
    stem, blocks, outside = spreading.count_bytes(LlamaConfig.from_pretrained(folder), torch.float32)
    assert (stem, len(blocks)) == ("model.layers", 3)
    assert sum(blocks) + outside == sum(4 * w.numel() for w in make_hf_model("llama").parameters())
    monkeypatch.setattr(load, "measure_rooms", lambda: {"cpu": outside + blocks[0]})
    model = pl.load_model(folder, device_map="auto", dtype="float32")
    assert list_mapped(tmp_path)
    plain = pl.load_model(folder, backend="bridge", dtype="float32", device="cpu")
    assert torch.equal(model(TOKENS), plain(TOKENS))
    monkeypatch.setattr(load, "measure_rooms", lambda: {"cpu": outside - 1})
    with pytest.raises(InvalidArgumentError, match="`device_map` must be 'disk' for a model whose embeddings"):
        pl.load_model(folder, device_map="auto", dtype="float32")


def test_weights_are_spread_by_the_bytes_that_they_have_in_their_files(tmp_path, monkeypatch):
    folder = save_tiny(tmp_path / "float32", "llama")
    auto = placing.choose_placement(None, "auto", None, backend=None, adapter=False)
    _, blocks, outside = spreading.count_bytes(LlamaConfig.from_pretrained(folder), torch.float32)
    monkeypatch.setattr(load, "resolve_dtype", lambda dtype, device: torch.bfloat16)
    # In bfloat16 two of the blocks would lie beside the rest.
    monkeypatch.setattr(load, "measure_rooms", lambda: {"cpu": (outside + sum(blocks)) // 2 - 1})
    found = load._find_room(checkpoints.find_checkpoint(folder), "auto", auto, None)
    assert list(found.places.values()) == ["cpu", "disk", "disk", "disk"]
    monkeypatch.setattr(load, "measure_rooms", lambda: {"cpu": (outside + sum(blocks)) // 2})
    assert load._find_room(checkpoints.find_checkpoint(folder), "auto", auto, None).places is None


def test_weights_that_have_room_in_their_files_dtype_alone_keep_it(tmp_path, monkeypatch):
    folder = tmp_path / "bfloat16"
    make_hf_model("llama").to(torch.bfloat16).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    _, blocks, outside = spreading.count_bytes(LlamaConfig.from_pretrained(folder), torch.bfloat16)
    monkeypatch.setattr(load, "resolve_dtype", lambda dtype, device: torch.float32)
    monkeypatch.setattr(load, "measure_rooms", lambda: {"cpu": outside + sum(blocks)})
    model = pl.load_model(str(folder), device_map="auto")
    assert model.cfg.dtype == torch.bfloat16
    assert not list_mapped(folder)


def test_bytes_are_counted_while_no_other_thread_loads(tiny_folder, monkeypatch):
    counted, counts = threading.Event(), spreading.count_bytes

    def count(*given):
        counted.set()
        return counts(*given)

    monkeypatch.setattr(load, "count_bytes", count)
    checkpoint = checkpoints.find_checkpoint(tiny_folder("llama"))
    auto = placing.choose_placement(None, "auto", None, backend=None, adapter=False)
    other = threading.Thread(target=load._find_room, args=(checkpoint, "float32", auto, None))
    with process_wide.quiet():
        other.start()
        assert not counted.wait(0.5)
    other.join()
    assert counted.is_set()


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (
            {"model.layers": "cpu", "": "disk"},
            r"keep embeddings, .* on the first GPU that it names, cuda:0. Got 'some on disk",
        ),
        ({"": "cuda:0", "model.layers.1.mlp": "cpu"}, r"keep each block in one place, that of layer 1 too"),
        ({"model": "cuda:0"}, r"name a place for every weight, lm_head.weight too"),
    ],
)
def test_places_that_a_gpu_could_not_fetch_from_are_refused(tmp_path, places, message):
    model = pl.load_model(save_tiny(tmp_path, "llama"), device_map="disk")
    with pytest.raises(InvalidArgumentError, match=message):
        spreading.spread_weights(model, places, torch.device("cuda:0"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": "fast"}, "`device_map` must be 'auto'"), ({"device_map": {}}, "`device_map` must name"),
        ({"device_map": "auto", "device": "cpu"}, "`device` must be left out"),
        ({"device_map": {"": "abacus"}}, "`device_map` must be devices or 'disk' that torch knows"),
        ({"device_map": {"": "meta"}}, "`device_map` must name devices, or 'disk'"),
        ({"device_map": {"": "cuda:97", "model.layers.1": "disk"}}, "`device_map` must name devices of this machine"),
        ({"device_map": "disk", "quantization_config": FOUR_BITS}, "`quantization_config` must be left out"),
    ],
)  # fmt: skip
def test_arguments_that_exclude_each_other_are_named(tmp_path, options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        pl.load_model(tmp_path, **options)


@pytest.mark.parametrize("options", [{"device_map": "auto"}, {"quantization_config": FOUR_BITS}])
def test_what_a_hooked_transformer_cannot_hold_is_refused_by_name(tiny_folder, tiny_model, options):
    (name,) = options
    with pytest.raises(UnsupportedModelError, match=f"`backend` must be None or 'bridge' with {name}"):
        pl.load_model(tiny_folder("llama"), backend="hooked", **options)
    with pytest.raises(InvalidArgumentError, match=f"`{name}` must be None for a loaded model"):
        pl.load_model(tiny_model, **options)


def test_an_adapter_is_not_merged_into_codes(tiny_folder, tmp_path):
    adapter = make_adapter(tmp_path / "adapter")
    with pytest.raises(InvalidArgumentError, match="`quantization_config` must be left out with an adapter"):
        pl.load_model(tiny_folder("llama"), adapter=adapter, quantization_config=FOUR_BITS)


def test_a_map_that_transformers_found_for_quantised_weights_is_looked_at():
    placing.check_map({"model": 0, "lm_head": 0})
    placing.check_map({"model": 0, "lm_head": "cuda:0", "norm": "cuda"})
    with pytest.raises(UnsupportedModelError, match=r"weights on cuda:0, cuda:1"):
        placing.check_map({"model": 0, "lm_head": 1})


# Beside other threads -----------------------------------------------------------------------------------------------


def test_loads_that_end_in_another_order_than_they_began_leave_the_reader_as_it_was():
    own = vars(modeling_utils)["safe_open"]
    first, second = process_wide.unmapped_files(), process_wide.unmapped_files()
    entered = []

    def load():
        with second:
            entered.append(vars(modeling_utils)["safe_open"])

    thread = threading.Thread(target=load)
    with first:
        thread.start()
        thread.join(0.2)
        assert not entered  # it waits
    thread.join()
    assert entered
    assert vars(modeling_utils)["safe_open"] is own


def test_a_model_that_is_made_without_memory_leaves_no_other_threads_without(tiny_folder):
    """Else the second thread's weights would be empty, and the last to end would leave torch's own function changed."""
    register, begun, made = torch.nn.Module.register_parameter, threading.Event(), []

    def make():
        begun.set()
        made.append(load_hugging_face(tiny_folder("llama"), torch.float32)[0])

    thread = threading.Thread(target=make)
    with process_wide.empty_weights():
        thread.start()
        begun.wait()
        thread.join(0.2)
        assert not made  # it waits
    thread.join()
    assert not any(weight.is_meta for weight in made[0].parameters())
    assert torch.nn.Module.register_parameter is register


def test_a_gguf_file_cannot_stay_on_the_disk(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(InvalidArgumentError, match="`device_map` must be left out for a GGUF file"):
        pl.load_model(tmp_path / "model.gguf", device_map="disk")
