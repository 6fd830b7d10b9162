"""``persona-lens convert``: a vector's file, or a trait's, from one program's form to another's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from persona_lens.cli.arguments import Convert
from persona_lens.cli.terminal import print_json, print_line
from persona_lens.errors import InvalidArgumentError
from persona_lens.files import check_apart


def run(arguments: Convert) -> int:
    """Read one form, write the other, say what had no place in it."""
    read = {"SOURCE": arguments.source}
    if arguments.evaluation is not None:
        read["--evaluation"] = arguments.evaluation
    check_apart({"TARGET": arguments.target}, read)
    is_trait = [path.suffix == ".json" for path in (arguments.source, arguments.target)]
    if any(is_trait):
        if not all(is_trait):
            raise InvalidArgumentError.of("TARGET", "be a .json file as SOURCE is, or neither", str(arguments.target))
        said, line = _convert_trait(arguments)
    else:
        said, line = _convert_vector(arguments)
    if arguments.json:
        print_json(said)
    else:
        print_line(line)
    return 0


def _convert_trait(arguments: Convert) -> tuple[dict[str, Any], str]:
    from persona_lens.traits.trait import Trait

    of_vectors = {
        "--from": arguments.source_format, "--to": arguments.to, "--model": arguments.model,
        "--position": arguments.position,
    }  # fmt: skip
    for name, value in of_vectors.items():
        if value is not None:
            raise InvalidArgumentError.of(name, "be left out for a trait's .json file", value)
    trait = Trait.from_paper_json(arguments.source, arguments.evaluation, name=arguments.trait)
    trait.to_json(arguments.target)
    said = {"trait": trait.name, "target": str(arguments.target), "origin": trait.origin}
    return said, f"{trait!r}, {trait.origin}."


def _convert_vector(arguments: Convert) -> tuple[dict[str, Any], str]:
    from persona_lens.vectors.exchange.directions import LayerDirections
    from persona_lens.vectors.exchange.formats import FORMATS, guess_source, guess_target

    if arguments.evaluation is not None:
        raise InvalidArgumentError.of("--evaluation", "stand beside a trait's .json file", str(arguments.source))
    target_format = arguments.to or guess_target(arguments.target)
    source_format = arguments.source_format or guess_source(arguments.source)
    if source_format == target_format == "persona-lens":
        rule = "be another program's form: a copy of one's own file loses nothing, this would"
        raise InvalidArgumentError.of("TARGET", rule, str(arguments.target), "PersonaVector.load and save rename it.")
    position = {} if arguments.position is None else {"position": arguments.position}
    found = FORMATS[source_format].read(arguments.source, trait=arguments.trait, **position)
    if arguments.model is not None:
        from persona_lens.models.loading import load_model

        found = LayerDirections.of(found.to_vector(load_model(arguments.model)))
    elif target_format == "persona-lens" and found.model is None:
        rule = f"name the model that the directions belong to, which files of {source_format} do not say"
        raise InvalidArgumentError.of("--model", rule, None)
    left_out = FORMATS[target_format].write(found, Path(arguments.target))
    told = found.provenance.get("left_out")
    why = told if isinstance(told, dict) else {}
    said = {
        "trait": found.trait, "source": str(arguments.source), "from": source_format, "target": str(arguments.target),
        "to": target_format, "d_model": found.d_model, "layers": list(found.layers), "not_read": why,
        "not_written": list(left_out),
    }  # fmt: skip
    line = f"{found.trait}: {len(found.layers)} layers of width {found.d_model}, {source_format} to {target_format}."
    line += "".join(f" Layer {layer} was not read: {reason}" for layer, reason in why.items())
    if left_out:
        line += f" No place there for layer {', '.join(map(str, left_out))}."
    return said, line
