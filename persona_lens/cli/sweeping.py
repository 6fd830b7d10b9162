"""``persona-lens sweep``: at which layer does a vector steer?"""

from __future__ import annotations

from dataclasses import replace

from persona_lens.cli.arguments import Sweep
from persona_lens.cli.choosing import (
    choose_origin,
    choose_sampling,
    keep_unfinished,
    list_read,
    load,
    make_judge,
    make_vector,
)
from persona_lens.cli.terminal import print_json, print_line, print_table
from persona_lens.errors import InvalidArgumentError
from persona_lens.evaluation.sweep import SweepResult, sweep_layers
from persona_lens.files import check_apart, check_file_or_nothing, write_bytes_atomically
from persona_lens.models.hooks.sites import check_layer
from persona_lens.models.loading import describe_model
from persona_lens.statistics.missing import mean_interval
from persona_lens.vectors.persona_vector import PersonaVector


def run(arguments: Sweep) -> int:
    """Sweep, choose, write."""
    origin = choose_origin(arguments.trait, arguments.examples)
    trait = origin.require_trait()
    if arguments.questions < 1:
        raise InvalidArgumentError.of("--questions", "be at least 1", arguments.questions)
    out = {name: arguments.out / name for name in ("vector.safetensors", "sweep.json", "sweep.html")}
    check_apart({f"--out's {name}": path for name, path in out.items()}, list_read(arguments))
    for path in out.values():
        check_file_or_nothing(path, "--out")
    given = None if arguments.vector is None else PersonaVector.load(arguments.vector)
    if given is not None:
        for layer in arguments.layers:
            check_layer(layer, given.model.n_layers)
    arguments.out.mkdir(parents=True, exist_ok=True)  # before any model runs
    model = load(arguments)
    config = {"origin": origin.fingerprint, "model": describe_model(model).to_json()}
    with keep_unfinished(arguments.out / "unfinished", config) as run:
        vector = make_vector(model, origin, run) if given is None else given
        swept = sweep_layers(
            model, trait, vector, coefficients=arguments.coefficients,
            layers=arguments.layers or range(1, model.cfg.n_layers, 3),
            questions=trait.evaluation_questions[: arguments.questions], judge=make_judge(model, origin, run),
            sampling=choose_sampling(model), run=run,
        )  # fmt: skip
        choice = swept.choose_coherent() or swept.choose_by_score()
        setting = {"layer": choice.layer, "coefficient": choice.coefficient, "coherence": choice.coherence.estimate}
        replace(vector, provenance=vector.provenance | {"setting": setting}).save(out["vector.safetensors"])
        swept.save(out["sweep.json"])
        page = swept.plot().to_html(include_plotlyjs=True)  # looked at where there is no network too
        write_bytes_atomically(out["sweep.html"], page.encode())
    unsteered = mean_interval(swept.baseline_scores)
    random = swept.null_interval(choice.coefficient)
    if arguments.json:
        print_json({"trait": trait.name, "out": str(arguments.out), "rule": choice.rule, **setting,
                    "score": choice.score.estimate, "unsteered": unsteered.estimate, "random": random.estimate,
                    "judge": swept.judge})  # fmt: skip
        return 0
    show(swept)
    print_line(
        f"Chosen ({choice.rule}): layer {choice.layer} × {choice.coefficient:g}, score {choice.score:.0f}, "
        f"coherence {choice.coherence:.0f}. Unsteered: score {unsteered:.0f}; random directions of that length: "
        f"{random:.0f}"
    )
    print_line(
        f"Scored by the {swept.judge}, on the questions that chose. Read some answers before you believe it"
        + ("" if origin.is_bundled_written else ": for this trait no judge was measured")
        + "."
    )
    print_line(f'Next: persona-lens steer "How are you?" --vector {out["vector.safetensors"]}')
    return 0


def show(swept: SweepResult) -> None:
    """Print the mean score and coherence of each layer and coefficient."""
    scores, coherences = swept.scores.nanmean(dim=-1), swept.coherences.nanmean(dim=-1)
    print_table(
        f"{swept.trait}: mean score of 100 (coherence)",
        ("layer", *(f"× {one:g}" for one in swept.coefficients)),
        [
            (str(layer), *(f"{s:.0f} ({c:.0f})" for s, c in zip(scores[i], coherences[i], strict=True)))
            for i, layer in enumerate(swept.layers)
        ],
    )
