"""Layer sweeps of several traits, as a page of the documentation."""

from __future__ import annotations

from collections.abc import Sequence

from persona_lens.reproduction.layer_sweep import LayerSweep


def sweeps_to_markdown(found: Sequence[LayerSweep]) -> str:
    """Write what each sweep chose, and what every reader sees of it on fresh questions; then the figures."""
    lines = [
        "| trait, vector | chosen: layer × coefficient | split-half cosine | judge | unsteered | steered | "
        "away | system prompt | steered less unsteered | less shuffled labels | less random, equal coherence | "
        "coherence |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        choice, steered = one.choice, one.steered
        cosine = one.split_half_cosine["response_mean"][choice.layer]
        head = (f"| {one.trait}, {one.source} | {choice.layer} × {choice.coefficient:g} | {cosine:.2f}", "|  |  | ")
        for row, judge in enumerate(one.readers):
            cells = [
                judge,
                *(f"{one.mean(judge, name):.0f}" for name in ("unsteered", steered, f"{steered}, away")),
                f"{one.mean(judge, 'system prompt'):.0f}",
                f"{one.rise(judge, steered):.0f}",
                *(
                    f"{one.above(judge, steered, null):.0f}" if null in one.nulls else "–"
                    for null in ("shuffled labels", "random, equal coherence")
                ),
                f"{one.coherence('unsteered'):.0f} → {one.coherence(steered):.0f}",
            ]
            lines.append(f"{head[row > 0]} | {' | '.join(cells)} |")
    figures = []
    for one in found:
        stem = f"../../figures/layer_sweep_{one.trait}"
        figures += [f"![Layer sweep for {one.trait}]({stem}.png)", f"![{one.trait}, fresh questions]({stem}_fresh.png)"]
    return "\n".join([*lines, "", *(f"{one.say_finding().replace('<br>', ' ')}.\n" for one in found), *figures])
