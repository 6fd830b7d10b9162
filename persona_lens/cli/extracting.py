"""``persona-lens extract``: a trait's vector, into a file."""

from __future__ import annotations

import shlex
import warnings

from persona_lens.cli.arguments import DEFAULT_MODEL, Extract
from persona_lens.cli.choosing import Origin, choose_origin, keep_unfinished, list_read, load, make_vector
from persona_lens.cli.terminal import print_json, print_line
from persona_lens.errors import UnstableVectorWarning
from persona_lens.files import check_apart, check_file_or_nothing
from persona_lens.models.loading import describe_model
from persona_lens.vectors.persona_vector import PersonaVector


def run(arguments: Extract) -> int:
    """Make the vector, write it, say how far it can be trusted."""
    origin = choose_origin(arguments.trait, arguments.examples, arguments.source)
    check_apart({"--out": arguments.out}, list_read(arguments))
    check_file_or_nothing(arguments.out, "--out")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)  # before any model runs
    model = load(arguments)
    config = {"origin": origin.fingerprint, "model": describe_model(model).to_json()}
    with keep_unfinished(arguments.out.with_name(f"{arguments.out.name[:80]}.unfinished"), config) as run:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnstableVectorWarning)  # it is said below
            vector = make_vector(model, origin, run)
        vector.save(arguments.out)
    cosines = vector.split_half_cosine.get(vector.position)  # None where too few pairs were kept for halves
    if arguments.json:
        print_json(
            {
                "trait": origin.name, "out": str(arguments.out), "model": vector.model.name,
                "pairs": vector.counts.pairs, "kept": vector.counts.kept, "norms": vector.norms.tolist(),
                "split_half_cosine": None if cosines is None else cosines.tolist(),
            }
        )  # fmt: skip
        return 0
    print_line(repr(vector))
    if cosines is None:
        print_line("Too few pairs were kept to see whether two halves of the questions agree: trust it little.")
    else:
        best = int(cosines.argmax())
        print_line(
            f"Two halves of the questions agree best at layer {best} (cosine {float(cosines[best]):.2f}); under about "
            "0.5 the direction depends on which questions were asked."
        )
    print_line(f"Wrote {arguments.out}. Next: {suggest_next(arguments, origin, vector)}")
    return 0


def suggest_next(arguments: Extract, origin: Origin, vector: PersonaVector) -> str:
    """Return a command that works on what was written."""
    out = shlex.quote(str(arguments.out))
    model = "" if arguments.model == DEFAULT_MODEL else f" --model {shlex.quote(arguments.model)}"
    if origin.trait is not None:
        return f"persona-lens sweep --trait {shlex.quote(arguments.trait)} --vector {out}{model} --out sweep"
    where = f"--layer {vector.model.n_layers // 2} --coefficient 1"
    return (
        f'persona-lens steer "How are you?" --vector {out}{model} {where} (where steering works best finds `sweep`, '
        "which needs the trait's .json file)"
    )
