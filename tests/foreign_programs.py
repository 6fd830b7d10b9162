"""Other programs read our files and steer as we do, and we read theirs. Run by hand: they are no dependencies.

    pip install --no-deps --target FOREIGN repeng==0.4.0 steering-vectors==0.12.2
    PYTHONPATH=.:FOREIGN HF_HUB_OFFLINE=1 python tests/foreign_programs.py

With ``--llama-cpp FOLDER`` (one with ``libllama-common.so``, as in the npm package ``@node-llama-cpp/linux-x64``), also
llama.cpp, which takes g++; with ``--easysteer FOLDER`` and ``--assistant-axis FOLDER``, checkouts of these, they too.
Prints a line a check; leaves with status 1 where one fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import persona_lens as pl
from persona_lens.models.loading.embedded import _embedded_gguf
from persona_lens.vectors import LayerDirections
from tests.tiny import save_tiny

TOKENS = [[5, 6, 7, 8, 9]]
FAILED = []


def report(program: str, what: str, good: bool, measured: str = "") -> None:
    print(f"{'ok  ' if good else 'FAIL'} {program}: {what}{f' ({measured})' if measured else ''}")
    if not good:
        FAILED.append(what)


def same_bytes(found: Mapping[int, Any], directions: LayerDirections, first: int) -> bool:
    expected = {layer: directions.by_layer[layer].numpy().tobytes() for layer in directions.layers if layer >= first}
    return {layer: np.asarray(row).tobytes() for layer, row in found.items()} == expected


def load_module(path: Path, name: str):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def our_logits(model, vector: pl.PersonaVector, layers: tuple[int, ...]) -> torch.Tensor:
    """At each of the layers the whole vector is added, as these programs do."""
    added = [pl.steer(vector, layer=layer, coefficient=2.0) for layer in layers]
    with pl.hooked(model, added[0] + added[1] if len(added) > 1 else added[0]), torch.no_grad():
        return model(torch.tensor(TOKENS))


def check_repeng(folder: Path, model, hf_model, vector: pl.PersonaVector) -> None:
    vars(np).setdefault("float_", np.float64)  # named in an annotation of 0.4.0's; NumPy 2 has it no more
    from repeng import ControlModel, ControlVector

    program, directions = f"repeng {version('repeng')}", LayerDirections.of(vector)
    pl.vectors.write_control_vector(directions, folder / "ours.gguf", model_hint="llama")
    theirs = ControlVector.import_gguf(str(folder / "ours.gguf"))
    report(program, "reads our GGUF bit for bit", same_bytes(theirs.directions, directions, first=1))
    copies = {layer: np.array(row) for layer, row in theirs.directions.items()}
    ControlVector("llama", copies).export_gguf(str(folder / "theirs.gguf"))
    found = pl.vectors.read_control_vector(folder / "theirs.gguf")
    report(program, "its GGUF is read bit for bit", same_bytes(found.by_layer, directions, 1))
    control = ControlModel(hf_model, [1, 2])
    control.set_control(theirs, 2.0)
    with torch.no_grad():
        steered = control(input_ids=torch.tensor(TOKENS)).logits
    control.reset()
    control.unwrap()
    off = float((steered - our_logits(model, vector, (1, 2))).abs().max())
    report(
        program,
        "steered by our file at layers 1 and 2 its logits are ours",
        off < 1e-4,
        f"largest difference {off:.1e}",
    )


def check_steering_vectors(folder: Path, model, hf_model, vector: pl.PersonaVector) -> None:
    from steering_vectors import SteeringVector

    program, directions = f"steering-vectors {version('steering-vectors')}", LayerDirections.of(vector)
    pl.vectors.write_steering_vector(directions, folder / "ours.pt")
    theirs = SteeringVector(**torch.load(folder / "ours.pt", weights_only=True))
    report(program, "takes our file bit for bit", same_bytes(theirs.layer_activations, directions, 0))
    torch.save(theirs, folder / "theirs.pt")
    found = pl.vectors.read_steering_vector(folder / "theirs.pt")
    report(program, "its saved object is read bit for bit", same_bytes(found.by_layer, directions, 0))
    one = SteeringVector({1: theirs.layer_activations[1]})
    with one.apply(hf_model, multiplier=2.0), torch.no_grad():
        steered = hf_model(input_ids=torch.tensor(TOKENS)).logits
    off = float((steered - our_logits(model, vector, (1,))).abs().max())
    report(program, "steers by our file at layer 1 as we do", off < 1e-4, f"largest difference {off:.1e}")


def check_easysteer(folder: Path, checkout: Path, vector: pl.PersonaVector) -> None:
    theirs = load_module(checkout / "easysteer" / "steer" / "utils.py", "easysteer_utils").StatisticalControlVector
    directions = LayerDirections.of(vector)
    pl.vectors.write_control_vector(directions, folder / "ours.gguf")
    read = theirs.import_gguf(str(folder / "ours.gguf"))
    report("EasySteer", "its reader reads our GGUF bit for bit", same_bytes(read.directions, directions, first=1))
    rows = {layer: row.numpy() for layer, row in directions.by_layer.items()}
    theirs("diffmean", rows, {"share": 0.5, "note": "x"}).export_gguf(str(folder / "easy.gguf"))
    found = pl.vectors.read_control_vector(folder / "easy.gguf")
    report("EasySteer", "its GGUF is read bit for bit, layer 0 too", same_bytes(found.by_layer, directions, 0))


def check_assistant_axis(folder: Path, checkout: Path, vector: pl.PersonaVector) -> None:
    axis = load_module(checkout / "assistant_axis" / "axis.py", "assistant_axis_axis")
    directions = LayerDirections.of(vector)
    pl.vectors.write_assistant_axis(directions, folder / "axis.pt")
    read = axis.load_axis(str(folder / "axis.pt"))
    report("assistant-axis", "reads our file bit for bit", same_bytes(dict(enumerate(read.numpy())), directions, 0))
    axis.save_axis(read, str(folder / "theirs_axis.pt"), {"note": "x"})
    found = pl.vectors.read_assistant_axis(folder / "theirs_axis.pt")
    report("assistant-axis", "its file is read bit for bit", same_bytes(found.by_layer, directions, 0))


def check_llama_cpp(folder: Path, libraries: Path, vector: pl.PersonaVector) -> None:
    """Its reader's floats; and, on the embedded model's own file, which of our layers its steering is like."""
    names = sorted(one for kind in ("llama-common", "llama*", "ggml*") for one in libraries.glob(f"lib{kind}.so"))
    linked = sorted({one for one in names if "cpu" not in one.name})
    program, binary = f"llama.cpp ({', '.join(one.name for one in linked if 'llama.' in one.name)})", folder / "foreign"
    source = Path(__file__).with_suffix(".cpp")
    command = ["g++", "-w", "-o", binary, source, *linked, f"-Wl,-rpath,{libraries}", "-Wl,--allow-shlib-undefined"]
    subprocess.run(list(map(str, command)), check=True)

    def run(*arguments: object) -> np.ndarray:
        done = subprocess.run([str(binary), *map(str, arguments)], capture_output=True, check=True)
        return np.frombuffer(done.stdout, np.float32)

    directions = LayerDirections.of(vector)
    pl.vectors.write_control_vector(directions, folder / "ours.gguf")
    read = run("-", "-", folder / "ours.gguf").reshape(-1, directions.d_model)
    report(program, "reads our GGUF bit for bit", same_bytes({n + 1: row for n, row in enumerate(read)}, directions, 1))

    model, ready = pl.load_model(), pl.load_vector("evil")
    tokens = model.to_tokens("How was your day?")[0].tolist()
    gguf = _embedded_gguf()
    plain = torch.tensor(run(libraries, gguf, "-", *tokens))
    with torch.no_grad():
        ours_plain = model(torch.tensor([tokens]))[0, -1]
    for layer in (1, 15, 29):
        one = LayerDirections(ready.trait, {layer: 3.0 * ready.direction(layer)}, 30)
        pl.vectors.write_control_vector(one, folder / "one.gguf")
        change = torch.tensor(run(libraries, gguf, folder / "one.gguf", *tokens)) - plain
        alike = {}
        for there in range(max(0, layer - 2), min(30, layer + 3)):
            added = pl.tensors.Add(one.by_layer[layer], 1.0)
            with pl.hooked(model, pl.Intervention.of(there, added)), torch.no_grad():
                alike[there] = float(pl.cosine(model(torch.tensor([tokens]))[0, -1] - ours_plain, change))
        said = ", ".join(f"{there}: {cosine:.4f}" for there, cosine in alike.items())
        report(
            program,
            f"direction.{layer} changes logits as our layer {layer}",
            max(alike, key=alike.get) == layer,
            f"cosine at layer {said}",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("llama-cpp", "easysteer", "assistant-axis"):
        parser.add_argument(f"--{name}", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = save_tiny(folder / "tiny", "llama")
        model = pl.load_model(tiny, dtype="float32", device="cpu")
        hf_model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
        rows = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
        vector = pl.PersonaVector("calm", pl.describe_model(model), {"response_mean": rows})
        check_repeng(folder, model, hf_model, vector)
        check_steering_vectors(folder, model, hf_model, vector)
        if given.easysteer:
            check_easysteer(folder, given.easysteer, vector)
        if given.assistant_axis:
            check_assistant_axis(folder, given.assistant_axis, vector)
        if given.llama_cpp:
            check_llama_cpp(folder, given.llama_cpp.resolve(), vector)
    sys.exit(bool(FAILED))


if __name__ == "__main__":
    main()
