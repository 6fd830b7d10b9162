"""``persona-lens extract``: a trait's vector, into a file."""

from __future__ import annotations

from persona_lens.cli.arguments import Extract
from persona_lens.cli.choosing import choose_origin, keep_unfinished, list_read, load, make_vector
from persona_lens.cli.terminal import print_json, print_line
from persona_lens.files import check_apart, check_file_or_nothing
from persona_lens.models.loading import describe_model


def run(arguments: Extract) -> int:
    """Make the vector, write it, say how far it can be trusted."""
    origin = choose_origin(arguments.trait, arguments.examples, arguments.source)
    check_apart({"--out": arguments.out}, list_read(arguments))
    check_file_or_nothing(arguments.out, "--out")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)  # before any model runs
    model = load(arguments)
    config = {"origin": origin.fingerprint, "model": describe_model(model).to_json()}
    with keep_unfinished(arguments.out.with_name(f"{arguments.out.name[:80]}.unfinished"), config) as run:
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
    next_trait = arguments.trait if origin.trait is not None else f"{origin.name}.json"
    print_line(
        f"Wrote {arguments.out}. Next: persona-lens sweep --trait {next_trait} --vector {arguments.out} --out sweep"
    )
    return 0
