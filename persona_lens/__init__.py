"""persona_lens: persona vectors for TransformerLens models.

Find the direction of a character trait in a model's residual stream, choose a layer for it, steer along it.
Method: "Persona Vectors" (arXiv 2507.21509).
"""

from persona_lens import errors
from persona_lens.conversations import BadRow, Conversation, read_conversations
from persona_lens.evaluation.capability import Capability, measure_capability
from persona_lens.evaluation.multiple_choice import MultipleChoiceItem, load_multiple_choice
from persona_lens.evaluation.ordinary import measure_ordinary_projections
from persona_lens.evaluation.strength import SteeringStrength, calibrate
from persona_lens.evaluation.sweep import Confirmation, LayerChoice, SweepResult, confirm_choice, sweep_layers
from persona_lens.evaluation.tracing import Trace, trace
from persona_lens.finetuning.domains import domain_dataset, list_domains
from persona_lens.finetuning.planning import PreventionPlan, plan_prevention
from persona_lens.finetuning.shift import FinetuningShift, measure_shift
from persona_lens.finetuning.task_loss import measure_task_loss
from persona_lens.finetuning.tracking import Tracker
from persona_lens.finetuning.training import Finetuned, FinetuneSettings, ProjectionPenalty, finetune
from persona_lens.finetuning.trait_data import trait_dataset
from persona_lens.interventions.making import ablation_sites, capping_sites, steering_sites
from persona_lens.interventions.steering import (
    ablation_hooks,
    capping_hooks,
    hooked,
    intervention_hooks,
    steering,
    steering_hooks,
)
from persona_lens.judges.cache import CachedJudge, ScoreCache
from persona_lens.judges.claude import ClaudeJudge
from persona_lens.judges.expected_score import ExpectedScoreJudge
from persona_lens.judges.judgement import Judge, Judgement
from persona_lens.judges.likelihood import LikelihoodJudge, calibrate_likelihood_judge, measure_separation
from persona_lens.judges.panel import (
    Agreement,
    PanelResult,
    judge_with_panel,
    read_spot_check,
    write_spot_check,
)
from persona_lens.models.engine.activations import cache_residual_stream, pool_residual_stream
from persona_lens.models.engine.rollouts import Rollout, RolloutRequest, sample_recorded_rollouts, sample_rollouts
from persona_lens.models.engine.sampling import SamplingSettings
from persona_lens.models.hooks.pairs import SiteIntervention
from persona_lens.models.loading import describe_model, load_model
from persona_lens.models.text.chat import encode_conversation, encode_prompt
from persona_lens.models.text.spans import TokenSpans
from persona_lens.monitoring import (
    GradedProjections,
    MonitoringCorrelation,
    PersonaMonitor,
    WatchedConversation,
    measure_monitoring,
    project_last_prompt_token,
)
from persona_lens.progress import show_progress
from persona_lens.screening.distributed import screen_on_ray
from persona_lens.screening.scores import ScreenSettings
from persona_lens.screening.screen import screen
from persona_lens.screening.screening import ApproximationCheck, Screening
from persona_lens.screening.splitting import SplitCounts, split_rows
from persona_lens.storage import ShardStore
from persona_lens.tensors.directions import (
    cosine,
    layer_increments,
    mean_difference,
    normalize,
    project,
    project_layers,
)
from persona_lens.tensors.operations import Ablate, Add, Cap
from persona_lens.traits.authoring import author_trait, read_authored_answer, write_authoring_prompt
from persona_lens.traits.library import list_traits, load_trait
from persona_lens.traits.trait import InstructionPair, Trait
from persona_lens.vectors import ExtractionCounts, PersonaVector, extract_persona_vector
from persona_lens.vectors.ordinary import OrdinaryProjections

__all__ = [
    "Ablate",
    "Add",
    "Agreement",
    "ApproximationCheck",
    "BadRow",
    "CachedJudge",
    "Cap",
    "Capability",
    "ClaudeJudge",
    "Confirmation",
    "Conversation",
    "ExpectedScoreJudge",
    "ExtractionCounts",
    "FinetuneSettings",
    "Finetuned",
    "FinetuningShift",
    "GradedProjections",
    "InstructionPair",
    "Judge",
    "Judgement",
    "LayerChoice",
    "LikelihoodJudge",
    "MonitoringCorrelation",
    "MultipleChoiceItem",
    "OrdinaryProjections",
    "PanelResult",
    "PersonaMonitor",
    "PersonaVector",
    "PreventionPlan",
    "ProjectionPenalty",
    "Rollout",
    "RolloutRequest",
    "SamplingSettings",
    "ScoreCache",
    "ScreenSettings",
    "Screening",
    "ShardStore",
    "SiteIntervention",
    "SplitCounts",
    "SteeringStrength",
    "SweepResult",
    "TokenSpans",
    "Trace",
    "Tracker",
    "Trait",
    "WatchedConversation",
    "ablation_hooks",
    "ablation_sites",
    "author_trait",
    "cache_residual_stream",
    "calibrate",
    "calibrate_likelihood_judge",
    "capping_hooks",
    "capping_sites",
    "confirm_choice",
    "cosine",
    "describe_model",
    "domain_dataset",
    "encode_conversation",
    "encode_prompt",
    "errors",
    "extract_persona_vector",
    "finetune",
    "hooked",
    "intervention_hooks",
    "judge_with_panel",
    "layer_increments",
    "list_domains",
    "list_traits",
    "load_model",
    "load_multiple_choice",
    "load_trait",
    "mean_difference",
    "measure_capability",
    "measure_monitoring",
    "measure_ordinary_projections",
    "measure_separation",
    "measure_shift",
    "measure_task_loss",
    "normalize",
    "plan_prevention",
    "pool_residual_stream",
    "project",
    "project_last_prompt_token",
    "project_layers",
    "read_authored_answer",
    "read_conversations",
    "read_spot_check",
    "sample_recorded_rollouts",
    "sample_rollouts",
    "screen",
    "screen_on_ray",
    "show_progress",
    "split_rows",
    "steering",
    "steering_hooks",
    "steering_sites",
    "sweep_layers",
    "trace",
    "trait_dataset",
    "write_authoring_prompt",
    "write_spot_check",
]
