"""Files of other programs: read at the right layers, written bit for bit, refused by name where they are not right."""

import dataclasses
import json
import struct
import sys
import types

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import persona_lens as pl
from persona_lens.errors import FileFormatError, InvalidArgumentError, LayerOutOfRangeError, ModelMismatchError
from persona_lens.vectors import (
    LayerDirections,
    read_assistant_axis,
    read_control_vector,
    read_paper_vector,
    read_steering_vector,
    read_trait_interp,
    write_control_vector,
    write_paper_vector,
    write_steering_vector,
    write_trait_interp,
)
from tests.vectors.exchange.files import D_MODEL, INFO, N_LAYERS, WRITERS, as_bytes, finite_rows, make_directions

READERS = {name: read for name, (_, read) in WRITERS.items()}


@pytest.mark.parametrize("program", WRITERS)
@settings(max_examples=10)
@given(rows=finite_rows)
def test_what_is_written_is_read_bit_for_bit(program, rows, tmp_path_factory):
    write, read = WRITERS[program]
    path = tmp_path_factory.mktemp("round") / "calm.x"
    directions = make_directions(rows)
    left_out = write(directions, path)
    kept = [layer for layer in directions.layers if program != "paper" or layer not in left_out]
    found = read(path)
    assert as_bytes(found, found.layers) == as_bytes(directions, kept)
    vector = found.to_vector(INFO)
    assert vector.layers == tuple(kept)
    assert vector.directions[kept].numpy().tobytes() == directions.to_vector().directions[kept].numpy().tobytes()


def test_the_papers_row_is_the_layer_before_and_its_last_is_no_residual(tmp_path):
    rows = torch.arange(1.0, 6.0)[:, None].expand(N_LAYERS + 1, D_MODEL).contiguous()  # row L is full of L + 1
    torch.save(rows, tmp_path / "evil_prompt_avg_diff.pt")
    found = read_paper_vector(tmp_path / "evil_prompt_avg_diff.pt")
    assert (found.trait, found.position, found.n_layers) == ("evil", "prompt_mean", N_LAYERS)
    assert {layer: float(row[0]) for layer, row in found.by_layer.items()} == {0: 2.0, 1: 3.0, 2: 4.0}
    vector = found.to_vector(INFO)
    assert vector.absent == (3,)
    assert bool(torch.isfinite(vector.directions).all())
    for refused in (
        lambda: pl.steer(vector, layer=3),
        lambda: pl.steer(vector, layers="all"),
        lambda: pl.ablate(vector),
        lambda: pl.cap(vector, layer=3, ceiling=1.0),
        lambda: vector.unit(3),
    ):
        with pytest.raises(LayerOutOfRangeError, match=r"row 4 is .* taken after the final norm"):
            refused()
    assert pl.steer(vector, layers=vector.layers).steps


def test_an_absent_layer_stays_absent_in_files_and_in_sums(tmp_path):
    directions = make_directions()
    whole = directions.to_vector()
    part = LayerDirections("part", {1: directions.by_layer[1]}, N_LAYERS).to_vector(INFO)
    part.save(tmp_path / "part.safetensors")
    assert pl.PersonaVector.load(tmp_path / "part.safetensors").absent == (0, 2, 3)
    assert (whole + part).absent == (part - whole).absent == (2.0 * part).absent == (0, 2, 3)
    with pytest.raises(InvalidArgumentError, match="absent"):
        dataclasses.replace(whole, absent=(1,))
    with pytest.raises(InvalidArgumentError, match="ascend"):
        dataclasses.replace(part, absent=(3, 2))


def test_hidden_states_in_the_papers_file_are_the_residual_stream_but_for_the_last(tiny_model, tiny_folder, tmp_path):
    """Against Hugging Face itself: the file's rows are its hidden states, the layers read are our hook points."""
    tokens = torch.tensor([[5, 6, 7, 8]])
    theirs = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"), dtype=torch.float32)
    with torch.no_grad():
        states = theirs(tokens, output_hidden_states=True).hidden_states
    torch.save(torch.stack(states)[:, 0, -1].clone(), tmp_path / "evil_response_avg_diff.pt")
    residual = pl.cache_residual_stream(tiny_model, tokens)[:, 0, -1]
    vector = read_paper_vector(tmp_path / "evil_response_avg_diff.pt").to_vector(tiny_model)
    assert vector.layers == tuple(range(len(residual) - 1))
    with pytest.raises(InvalidArgumentError, match=r"every layer, for its card.*\[2\]"):
        vector.quality(tiny_model)
    torch.testing.assert_close(vector.directions[:-1], residual[:-1])
    assert not torch.allclose(states[-1][0, -1], residual[-1], atol=1e-2)


def test_the_gguf_package_reads_what_is_written_and_the_reverse(tmp_path):
    directions = make_directions()
    assert write_control_vector(directions, tmp_path / "ours.gguf", model_hint="qwen2") == (0,)
    reader = gguf.GGUFReader(tmp_path / "ours.gguf")
    found = {tensor.name: tensor.data.tobytes() for tensor in reader.tensors}
    assert found == {f"direction.{n}": directions.by_layer[n].numpy().tobytes() for n in (1, 2, 3)}
    assert reader.get_field("controlvector.model_hint").contents() == "qwen2"
    assert reader.get_field("general.architecture").contents() == "controlvector"
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_array("some.texts", ["a", "b"])
    for layer in (3, 1):
        writer.add_tensor(f"direction.{layer}", directions.by_layer[layer].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs = read_control_vector(tmp_path / "theirs.gguf", trait="calm")
    assert as_bytes(theirs, theirs.layers) == as_bytes(directions, (1, 3))
    assert theirs.provenance["read_from"]["model_hint"] == "llama"
    with pytest.raises(InvalidArgumentError, match="does not say which model"):
        theirs.to_vector()
    assert theirs.to_vector(INFO).absent == (0, 2)


def test_a_vector_through_gguf_is_the_same_vector(tmp_path):
    directions = make_directions()
    write_control_vector(directions, tmp_path / "calm.gguf")
    again = read_control_vector(tmp_path / "calm.gguf").to_vector()
    assert (again.trait, again.model, again.digest) == ("calm", INFO, directions.to_vector().digest)
    with pytest.raises(ModelMismatchError, match="the file names"):
        read_control_vector(tmp_path / "calm.gguf").to_vector(dataclasses.replace(INFO, fingerprint="0" * 16))


def test_a_saved_object_of_steering_vectors_gives_up_its_values_alone(tmp_path, monkeypatch):
    @dataclasses.dataclass
    class SteeringVector:
        layer_activations: dict
        layer_type: str = "decoder_block"

    module = types.ModuleType("steering_vectors.steering_vector")
    module.SteeringVector = SteeringVector
    SteeringVector.__module__, SteeringVector.__qualname__ = module.__name__, "SteeringVector"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "steering_vectors", types.ModuleType("steering_vectors"))
    torch.save(SteeringVector({2: torch.ones(D_MODEL).half()}), tmp_path / "a.pt")
    torch.save(SteeringVector({2: torch.ones(D_MODEL)}, "mlp"), tmp_path / "b.pt")
    monkeypatch.delitem(sys.modules, module.__name__)
    assert read_steering_vector(tmp_path / "a.pt").layers == (2,)
    with pytest.raises(FileFormatError, match="'mlp'"):
        read_steering_vector(tmp_path / "b.pt")


def test_an_axis_is_read_bare_as_an_axis_and_as_a_roles_vector(tmp_path):
    rows = torch.randn(N_LAYERS, D_MODEL, dtype=torch.bfloat16)
    for index, content in enumerate((rows, {"axis": rows}, {"vector": rows, "type": "pos_3", "role": "pirate"})):
        torch.save(content, tmp_path / f"{index}.pt")
        found = read_assistant_axis(tmp_path / f"{index}.pt")
        assert torch.equal(torch.stack([found.by_layer[layer] for layer in found.layers]), rows.float())
    assert found.trait == "pirate"
    torch.save({"vectors": {}, "experiments": []}, tmp_path / "capping.pt")
    with pytest.raises(FileFormatError, match="'vectors', 'experiments'"):
        read_assistant_axis(tmp_path / "capping.pt")


def test_a_folder_of_trait_interp_says_what_it_holds(tmp_path):
    folder = tmp_path / "probe"
    write_trait_interp(make_directions(position="last_prompt"), folder)
    assert read_trait_interp(folder).position == "last_prompt"
    with pytest.raises(InvalidArgumentError, match="without layers"):
        write_trait_interp(make_directions(), folder)
    metadata = json.loads((folder / "metadata.json").read_text())
    (folder / "metadata.json").write_text(json.dumps(metadata | {"position": "response[:5]"}))
    with pytest.raises(FileFormatError, match=r"response\[:5\].*nearest"):
        read_trait_interp(folder)
    found = read_trait_interp(folder, position="response_mean")
    assert found.provenance["read_from"]["metadata"]["position"] == "response[:5]"
    (folder / "metadata.json").write_text(json.dumps(metadata | {"component": "attn_out"}))
    with pytest.raises(FileFormatError, match="attn_out"):
        read_trait_interp(folder)


def test_a_file_of_another_shape_of_model_is_refused(tmp_path):
    write_paper_vector(make_directions(), tmp_path / "calm.pt")
    for wrong in ({"n_layers": N_LAYERS + 1}, {"d_model": D_MODEL + 2}):
        with pytest.raises(ModelMismatchError, match="fit the directions"):
            read_paper_vector(tmp_path / "calm.pt").to_vector(dataclasses.replace(INFO, **wrong))


def test_a_format_of_one_row_a_layer_needs_to_know_their_number(tmp_path):
    one = LayerDirections("calm", {2: torch.ones(D_MODEL)})
    with pytest.raises(InvalidArgumentError, match="how many layers"):
        write_paper_vector(one, tmp_path / "x.pt")
    with pytest.raises(InvalidArgumentError, match="above 0"):
        write_control_vector(LayerDirections("calm", {0: torch.ones(D_MODEL)}), tmp_path / "x.gguf")
    assert not list(tmp_path.iterdir())


def test_half_a_character_is_refused_before_a_file_is_written(tmp_path):
    with pytest.raises(InvalidArgumentError, match="`trait` must hold whole characters"):
        LayerDirections("calm \ud800", {1: torch.ones(D_MODEL)})
    with pytest.raises(InvalidArgumentError, match="`model_hint` must hold whole characters"):
        write_control_vector(make_directions(), tmp_path / "x.gguf", model_hint="\ud800")
    assert not list(tmp_path.iterdir())


# Hostile files ------------------------------------------------------------------------------------------------------


class Bomb:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def list_hostile(folder):
    """Contents that are nothing of what any reader expects."""
    nan = torch.ones(N_LAYERS + 1, D_MODEL)
    nan[2, 1] = float("nan")
    return {
        "bomb": Bomb(folder / "went off"),
        "NaN": nan,
        "NaN in a mapping": {"layer_activations": {1: nan[2]}, "axis": nan},
        "cube": torch.ones(2, 3, 4),
        "whole numbers": torch.ones(5, 6).long(),
        "empty": torch.ones(0, 6),
        "one number": torch.tensor(1.0),
        "text": "x",
        "list": [1, 2],
        "nothing": None,
        "sparse": torch.eye(5).to_sparse(),
        "overflow": torch.full((5, 6), 1e300, dtype=torch.float64),
        "zeros": torch.zeros(5, 6),
        "claims": torch.ones(1).expand(2**20, 2**20),
        "keys": {"layer_activations": {-1: torch.ones(6), "a": torch.ones(6)}},
        "widths": {"layer_activations": {1: torch.ones(6), 2: torch.ones(7)}},
    }


@pytest.mark.parametrize("program", WRITERS)
def test_a_hostile_file_is_one_error_and_runs_nothing(program, tmp_path):
    for name, content in list_hostile(tmp_path).items():
        path = tmp_path / name
        file = path
        if program == "trait-interp":
            path.mkdir()
            file = path / "layer1.pt"
        torch.save(content, file)
        with pytest.raises(FileFormatError) as refused:
            READERS[program](path)
        assert "\n" not in str(refused.value), name
        assert len(str(refused.value)) < 600, name
    assert not (tmp_path / "went off").exists()


@pytest.mark.parametrize("program", WRITERS)
@settings(max_examples=25)
@given(data=st.data())
def test_a_damaged_file_is_read_as_something_finite_or_is_one_error(program, data, tmp_path_factory):
    write, read = WRITERS[program]
    folder = tmp_path_factory.mktemp("damaged")
    write(make_directions(), folder / "calm")
    file = folder / "calm" / "layer1.pt" if program == "trait-interp" else folder / "calm"
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    try:
        found = read(folder / "calm")
    except FileFormatError:
        return
    assert all(bool(torch.isfinite(row).all()) for row in found.by_layer.values())


def field(key, kind, value):
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value


def test_a_gguf_file_that_claims_more_than_it_has_is_refused_at_once(tmp_path):
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    tensor = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 11) + b"direction.1"
    claims = {
        "array": head + field("a", 9, struct.pack("<IQ", 0, 2**60)),
        "texts": head + field("a", 9, struct.pack("<IQ", 8, 2**60)),
        "text": head + field("a", 8, struct.pack("<Q", 2**60)),
        "nested": head + field("a", 9, struct.pack("<IQ", 9, 2**60)),
        "fields": b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60),
        "width": tensor + struct.pack("<IQIQ", 1, 2**60, 0, 0),
        "dimensions": tensor + struct.pack("<I", 2**31),
        "offset": tensor + struct.pack("<IQIQ", 1, 4, 0, 2**60),
        "quantised": tensor + struct.pack("<IQIQ", 1, 32, 8, 0),
        "none": b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
        "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    }
    for name, content in claims.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileFormatError):
            read_control_vector(tmp_path / name)


def test_a_models_gguf_file_is_no_control_vector(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.ones((3, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FileFormatError, match=r"'token_embd\.weight'.*'llama'"):
        read_control_vector(tmp_path / "model.gguf")


def test_a_compressed_torch_file_is_refused_before_it_is_unpacked(tmp_path):
    import zipfile

    torch.save(torch.ones(5, 6), tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in whole.infolist():
            packed.writestr(entry.filename, whole.read(entry))
    with pytest.raises(FileFormatError, match="compressed"):
        read_paper_vector(tmp_path / "packed.pt")


def test_what_is_not_there_is_said_so(tmp_path):
    for read in READERS.values():
        with pytest.raises(FileNotFoundError, match="must name an existing"):
            read(tmp_path / "nowhere")


def test_a_vector_of_steering_vectors_is_given_to_its_class_as_it_is(tmp_path):
    write_steering_vector(make_directions(), tmp_path / "calm.pt")
    content = torch.load(tmp_path / "calm.pt", weights_only=True)
    assert set(content) == {"layer_activations", "layer_type"}
    assert content["layer_activations"][2].shape == (D_MODEL,)


def test_tensors_that_overlap_or_are_empty_are_refused(tmp_path):
    def tensor(number, *shape):
        name = f"direction.{number}".encode()
        sizes = struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", size) for size in shape)
        return struct.pack("<Q", len(name)) + name + sizes + struct.pack("<IQ", 0, 0)

    def write(name, *tensors):
        head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 0) + b"".join(tensors)
        (tmp_path / name).write_bytes(head + bytes(32 + -len(head) % 32) + bytes(4096))
        return tmp_path / name

    with pytest.raises(FileFormatError, match="overlap"):
        read_control_vector(write("overlapping", *(tensor(number, 1024) for number in range(1, 9))))
    with pytest.raises(FileFormatError, match="shape"):
        read_control_vector(write("empty", tensor(1, 0, 2**64 - 1)))


def test_a_torch_file_that_zip_refuses_is_not_given_to_torch(tmp_path):
    torch.save(torch.ones(5, 6), tmp_path / "whole.pt")
    data = bytearray((tmp_path / "whole.pt").read_bytes())
    data[data.rindex(b"PK\x01\x02") + 6] = 99  # the version that is needed to read an entry
    (tmp_path / "newer.pt").write_bytes(data)
    with pytest.raises(FileFormatError, match="damaged archive"):
        read_paper_vector(tmp_path / "newer.pt")


def test_more_layers_than_any_model_has_are_refused_before_they_are_held(tmp_path):
    row = torch.ones(1).expand(2**17)
    torch.save({"layer_activations": {layer: row for layer in range(1025)}}, tmp_path / "many.pt")
    with pytest.raises(FileFormatError, match="at most 1024 layers"):
        pl.vectors.read_steering_vector(tmp_path / "many.pt")


def test_two_files_of_one_layer_are_not_both_taken(tmp_path):
    pl.vectors.write_trait_interp(make_directions(), tmp_path / "folder")
    torch.save(torch.zeros(D_MODEL) + 7, tmp_path / "folder" / "layer01.pt")
    found = pl.vectors.read_trait_interp(tmp_path / "folder")
    assert as_bytes(found, found.layers) == as_bytes(make_directions(), range(N_LAYERS))


def test_at_an_absent_layer_a_unit_is_no_number(tmp_path):
    pl.vectors.write_paper_vector(make_directions(), tmp_path / "calm_response_avg_diff.pt")
    vector = pl.vectors.read_paper_vector(tmp_path / "calm_response_avg_diff.pt").to_vector(INFO)
    assert vector.units[-1].isnan().all()
    assert vector.units[:-1].isfinite().all()
