"""Every part of the documentation that is written from results."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

from persona_lens.reproduction.figures import Result
from persona_lens.reproduction.layer_sweep import LayerSweep
from results.alarms import Alarms, alarms_to_markdown
from results.attributions import Attributions
from results.benchmarks import benchmarks_to_markdown
from results.blind_reading import BlindReading
from results.control_model import ControlModel, controls_to_markdown
from results.detection import Detection
from results.drift import DriftOverTurns
from results.entrance import entrance_to_markdown
from results.finetuning_shift import FinetuningShift
from results.gallery import gallery_to_markdown
from results.heads import Heads, heads_to_markdown
from results.hidden_signal import HiddenSignal, hidden_to_markdown
from results.inoculation import Inoculation
from results.judge_agreement import JudgeAgreement, agreements_to_markdown
from results.judge_validation import JudgeValidations
from results.kinds import load_result
from results.known_entities import KnownEntities, entities_to_markdown
from results.layer_sweep import sweeps_to_markdown
from results.mitigation import Mitigation, mitigation_to_markdown
from results.monitoring import Monitoring, monitoring_to_markdown
from results.moving_vectors import MovingVectors, moving_to_markdown
from results.persona_space import PersonaSpaceResult
from results.positive_traits import PositiveTraits, positive_to_markdown, promotion_to_markdown
from results.projection_difference import ProjectionDifference
from results.real_conversations import RealConversations
from results.reflection import ReflectionResult
from results.sae_features import SaeFeatures
from results.sae_tables import contents_to_markdown
from results.sample_separation import SampleSeparation, separations_to_markdown
from results.steering_away import SteeringAway
from results.steering_evidence import SteeringEvidence, summarize
from results.steering_modes import SteeringModes, modes_to_markdown
from results.token_positions import TokenPositions, positions_to_markdown
from results.trait_survey import TraitSurvey, survey_to_markdown
from results.truth import Truth, truth_to_markdown
from results.vector_quality import VectorQualities
from results.vector_stability import VectorStability, stability_to_markdown
from results.ways_to_steer import WaysToSteer

R = TypeVar("R", bound=Result)


def render_pages(root: Path) -> dict[tuple[str, str], str]:
    """Return by page and part what the results say that are committed in a folder."""
    figures = root / "figures"
    load = functools.cache(load_result)  # several parts, and the gallery, are made of the same

    def read(kind: type[R], stem: str) -> list[R]:
        return [cast(R, load(path)) for path in sorted(figures.glob(f"{stem}.json"))]

    evidence = read(SteeringEvidence, "steering_evidence_*")
    away = read(SteeringAway, "steering_away_*")
    reading, reading_away = (read(BlindReading, stem) for stem in ("blind_reading", "blind_reading_away"))
    parts: dict[tuple[str, str], Callable[[], str]] = {
        ("docs/results/evidence.md", "summary"): lambda: summarize(evidence),
        ("README.md", "entrance"): lambda: entrance_to_markdown(root / "docs" / "developing" / "entrance.json"),
        ("README.md", "pairs"): lambda: "\n".join(one.pairs_to_markdown() for one in away),
        ("docs/results/evidence.md", "tables"): lambda: "\n".join(one.to_markdown() for one in evidence),
        ("docs/results/evidence.md", "reading"): lambda: "\n".join(one.to_markdown() for one in reading),
        ("docs/results/evidence.md", "away"): lambda: _join(away),
        ("docs/results/evidence.md", "away reading"): lambda: "\n".join(one.to_markdown() for one in reading_away),
        ("docs/results/judges.md", "reading"): lambda: "\n".join(one.correlations_to_markdown() for one in reading),
        ("docs/results/judges.md", "table"): lambda: _join(read(JudgeValidations, "judge_validation")),
        ("docs/results/judges.md", "agreement"): lambda: agreements_to_markdown(
            read(JudgeAgreement, "judge_agreement_*")
        ),
        ("docs/results/sweeps.md", "sweeps"): lambda: sweeps_to_markdown(read(LayerSweep, "layer_sweep_*")),
        ("docs/results/sweeps.md", "stability"): lambda: stability_to_markdown(
            read(VectorStability, "vector_stability_*")
        ),
        ("docs/results/sweeps.md", "positions"): lambda: positions_to_markdown(
            read(TokenPositions, "token_positions_*")
        ),
        ("docs/results/sweeps.md", "survey"): lambda: survey_to_markdown(read(TraitSurvey, "trait_survey")),
        ("docs/results/quality.md", "table"): lambda: _join(read(VectorQualities, "vector_quality")),
        ("docs/concepts/quality.md", "cards"): lambda: "\n".join(
            one.cards_to_markdown() for one in read(VectorQualities, "vector_quality")
        ),
        ("docs/results/contents.md", "contents"): lambda: contents_to_markdown(read(SaeFeatures, "sae_features")),
        ("docs/results/finetuning.md", "shift"): lambda: _join(read(FinetuningShift, "finetuning_shift")),
        ("docs/results/finetuning.md", "screening"): lambda: _join(read(ProjectionDifference, "projection_difference")),
        ("docs/results/finetuning.md", "mitigation"): lambda: mitigation_to_markdown(read(Mitigation, "mitigation_*")),
        ("docs/results/finetuning.md", "control"): lambda: controls_to_markdown(read(ControlModel, "control_model_*")),
        ("docs/results/finetuning.md", "moving"): lambda: moving_to_markdown(read(MovingVectors, "moving_vectors_*")),
        ("docs/results/finetuning.md", "hidden"): lambda: hidden_to_markdown(read(HiddenSignal, "hidden_signal_*")),
        ("docs/results/positive.md", "steering"): lambda: positive_to_markdown(read(PositiveTraits, "positive_traits")),
        ("docs/results/positive.md", "training"): lambda: promotion_to_markdown(
            read(PositiveTraits, "positive_traits")
        ),
        ("docs/results/finetuning.md", "inoculation"): lambda: _join(read(Inoculation, "inoculation")),
        ("docs/results/steering.md", "modes"): lambda: modes_to_markdown(read(SteeringModes, "steering_modes_*")),
        ("docs/results/ways.md", "ways"): lambda: _join(read(WaysToSteer, "ways_to_steer")),
        ("docs/results/monitoring.md", "detection"): lambda: _join(read(Detection, "detection")),
        ("docs/results/space.md", "space"): lambda: _join(read(PersonaSpaceResult, "persona_space")),
        ("docs/results/drift.md", "drift"): lambda: _join(read(DriftOverTurns, "drift")),
        ("docs/results/monitoring.md", "alarms"): lambda: alarms_to_markdown(read(Alarms, "alarms")),
        ("docs/results/reflection.md", "reflection"): lambda: _join(read(ReflectionResult, "reflection")),
        ("docs/results/screening.md", "attributions"): lambda: _join(read(Attributions, "attributions")),
        ("docs/results/screening.md", "real"): lambda: _join(read(RealConversations, "real_conversations")),
        ("docs/results/truth.md", "truth"): lambda: truth_to_markdown(read(Truth, "truth")),
        ("docs/results/truth.md", "entities"): lambda: entities_to_markdown(read(KnownEntities, "known_entities")),
        ("docs/ways/act-heads.md", "heads"): lambda: heads_to_markdown(read(Heads, "heads_*")),
        ("docs/gallery.md", "gallery"): lambda: gallery_to_markdown(figures, load),
        ("docs/results/monitoring.md", "table"): lambda: monitoring_to_markdown(read(Monitoring, "monitoring_*")),
        ("docs/results/monitoring.md", "separation"): lambda: separations_to_markdown(
            read(SampleSeparation, "sample_separation_*")
        ),
        ("docs/developing/speed.md", "bench"): lambda: benchmarks_to_markdown(root / "benchmarks" / "results"),
    }
    return {place: write().rstrip("\n") + "\n" for place, write in parts.items()}


def _join(
    found: list[JudgeValidations]
    | list[FinetuningShift]
    | list[ProjectionDifference]
    | list[SteeringAway]
    | list[WaysToSteer]
    | list[Detection]
    | list[VectorQualities]
    | list[PersonaSpaceResult]
    | list[DriftOverTurns]
    | list[ReflectionResult]
    | list[Attributions]
    | list[Inoculation]
    | list[RealConversations],
) -> str:
    return "\n".join(one.to_markdown() for one in found)
