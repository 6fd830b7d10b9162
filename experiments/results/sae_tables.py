"""What experiments/sae_features.py finds, in tables."""

from __future__ import annotations

import html
from collections.abc import Sequence

import torch

from persona_lens.plots.style import say
from persona_lens.statistics.missing import mean_interval
from results.sae_features import (
    FEATURES,
    KINDS,
    RANDOM,
    RANDOM_FEATURES,
    SHUFFLED,
    VECTOR,
    SaeFeatures,
    TraitContents,
    spread,
)

Row = tuple[str, list[str]]
READERS = ("own reading", "sentence vectors")


def contents_to_markdown(found: Sequence[SaeFeatures]) -> str:
    """Write the autoencoder's quality, then words, sums, effects, the check and each trait's features."""
    lines = []
    for one in found:
        names = [trait.trait for trait in one.traits]
        lines += [
            *_write_quality(one), "",
            *_write_rows("what is in it", names, list_readings(one)), "",
            *_write_rows("what steering does, at lengths set for equal coherence", names, list_effects(one)), "",
            *_write_rows("how far the decomposition misleads", names, list_checks(one)), "",
        ]  # fmt: skip
        for trait in one.traits:
            lines += [*_write_features(trait), ""]
        lines.append("![What is in a vector](../../figures/sae_features.png)")
    return "\n".join(lines)


def _write_quality(one: SaeFeatures) -> list[str]:
    found = one.reconstruction
    return [
        "| autoencoder, judged on answers that it was not trained on | |",
        "|---|---|",
        f"| features, of which a token has | {one.n_features}, {found.n_firing:.1f} |",
        f"| trained on | {one.n_training_tokens:,} tokens of {one.n_training_texts} answers |",
        f"| judged on | {found.n_tokens:,} tokens of {found.n_texts} answers |",
        f"| variance explained | {found.explained_variance:.2f} |",
        f"| features that fired at none of these tokens | {found.never_fired:.0%} |",
        f"| loss (nats a token): as it is, reconstructed, averaged | {found.loss}, {found.loss_reconstructed}, "
        f"{found.loss_averaged} |",
        f"| loss recovered, of what averaging costs | {found.loss_recovered:.0%} |",
    ]


def _write_rows(head: str, names: Sequence[str], rows: Sequence[Row]) -> list[str]:
    lines = [f"| {head} | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    return lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows]


def list_readings(one: SaeFeatures) -> list[Row]:
    """Return words by layer, sums of tokens and nearest features, each beside what random directions give."""
    rows: list[Row] = []

    def add(name: str, cells: list[str]) -> None:
        rows.append((name, cells))

    for at, layer in enumerate(read.layer for read in one.traits[0].lens.layers):
        add(f"layer {layer}, unembedding", [_words(t.unembedding.layers[layer].promoted) for t in one.traits])
        add(f"layer {layer}, Jacobian lens", [_words(t.lens.layers[at].words.promoted) for t in one.traits])
        add(
            f"layer {layer}, kurtosis by the unembedding (random)",
            [f"{t.unembedding.layers[layer].kurtosis:.1f} ({t.unembedding.random:.1f})" for t in one.traits],
        )
        add(
            f"layer {layer}, kurtosis by the lens (random)",
            [f"{t.lens.layers[at].words.kurtosis:.1f} ({t.lens.layers[at].random_kurtosis:.1f})" for t in one.traits],
        )
        add(
            f"layer {layer}, gain to the last layer (random)",
            [f"{t.lens.layers[at].gain:.2f} ({t.lens.layers[at].random_gain})" for t in one.traits],
        )
    add("first tokens of the sum", [_list_signed(t) for t in one.traits])
    add("explained by all its tokens", [f"{float(t.token_sum.explained[-1]):.3f}" for t in one.traits])
    for name in (SHUFFLED, RANDOM):
        add(f"likewise of {name}", [format(spread(t.null_explained[name][:, -1]), ".3f") for t in one.traits])
    add("cosine of the nearest feature", [f"{t.features[0].cosine:.2f}" for t in one.traits])
    for name in (SHUFFLED, RANDOM):
        add(f"likewise of {name}", [str(spread(t.null_cosines[name])) for t in one.traits])
    return rows


def list_effects(one: SaeFeatures) -> list[Row]:
    """Return what each kind of direction does, and what lies beyond the random kinds, for both judges."""
    rows: list[Row] = []

    def add(name: str, cells: list[str]) -> None:
        rows.append((name, cells))

    for kind in KINDS:
        add(f"{kind}: length (× an activation's)", [f"{t.steps[kind]:.2f}" for t in one.traits])
        add(f"{kind}: coherence", [str(t.coherence(kind)) for t in one.traits])
    for place, reader in enumerate(READERS):
        for kind in KINDS:
            add(
                f"{kind}: points above unsteered, {reader}",
                [say(t.mean_rise(list(t.scores)[place], kind)) for t in one.traits],
            )
        for kind in (VECTOR, FEATURES):
            for null in (RANDOM_FEATURES, RANDOM):
                add(
                    f"{kind} less {null}, {reader} (*: not as coherent)",
                    [
                        say(t.above(list(t.scores)[place], kind, null)) + " *" * (null not in t.list_fair_nulls(kind))
                        for t in one.traits
                    ],
                )
        add(
            f"nearer features raise it further (Spearman's r), {reader}",
            [say(t.rank_agreement(list(t.scores)[place])) for t in one.traits],
        )
    add("features beyond all random ones, by both judges", [str(len(t.standing_out())) for t in one.traits])
    return rows


def list_checks(one: SaeFeatures) -> list[Row]:
    """Return why an encoder may not be asked about a vector, beside random directions of its length."""
    names = {
        "relative_norm": "length, as a share of an activation's", "n_firing": "features that fire for it",
        "shared_with_zero": "of these, fire for zeros too",
        "reconstruction_cosine": "cosine with its reconstruction, less that of zeros",
        "shifted_cosine": "cosine with what it changes at the mean activation",
        "negative_share": "squared cosines that lie below zero",
        "explained": f"explained by {one.traits[0].check.n_terms} features of either sign",
        "negative_terms": "of these, subtracted",
    }  # fmt: skip
    rows: list[Row] = []
    for field, name in names.items():
        cells = []
        for trait in one.traits:
            nulls = torch.tensor([float(getattr(check, field)) for check in trait.null_checks])
            cells.append(f"{getattr(trait.check, field):.2f} (random {spread(nulls)})")
        rows.append((name, cells))
    return rows


def _write_features(one: TraitContents) -> list[str]:
    out = set(one.standing_out())
    rises = [one.rise(judge, FEATURES) for judge in one.scores]
    coherence = one.pick(FEATURES, one.responses.coherences).nanmean(dim=1)
    lines = [
        f"| {one.trait}: feature | cosine | its words | points, {READERS[0]} | points, {READERS[1]} | coherence |",
        "|---|---|---|---|---|---|",
    ]
    for place, (feature, words) in enumerate(zip(one.features, one.feature_words, strict=True)):
        if place < 10 or place in out:
            points = " | ".join(say(mean_interval(values[place])) for values in rises)
            mark = "**" if place in out else ""
            lines.append(
                f"| {mark}{feature.feature}{mark} | {feature.cosine:.2f} | {' '.join(map(_quote, words))} | {points} | "
                f"{float(coherence[place]):.0f} |"
            )
    return lines


def _quote(text: str) -> str:
    """Return a token as text in a table's cell, in which nothing of it is markup."""
    shown = html.escape(text.strip() or repr(text)[1:-1], quote=False)
    return "".join(f"\\{letter}" if letter in "|`*_[]\\" else letter for letter in shown)


def _words(promoted: Sequence[tuple[str, float]]) -> str:
    return " ".join(_quote(word) for word, _ in promoted[:6])


def _list_signed(one: TraitContents) -> str:
    pairs = zip(one.tokens, one.token_sum.coefficients, strict=True)
    return " ".join(f"{'+' if share > 0 else '−'}{_quote(token)}" for token, share in list(pairs)[:8])
