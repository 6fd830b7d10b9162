"""Fine-tuning with persona vectors: datasets, training, what it shifts, and how to prevent it."""

from persona_lens.finetuning.domains import Level, domain_dataset, list_domains
from persona_lens.finetuning.planning import PreventionPlan, PreventionTrials, TriedPrevention, plan_prevention
from persona_lens.finetuning.rows import Source
from persona_lens.finetuning.settings import FinetuneSettings, ProjectionPenalty
from persona_lens.finetuning.shift import FinetuningShift, measure_shift
from persona_lens.finetuning.task_loss import measure_task_loss
from persona_lens.finetuning.tracking import Tracker
from persona_lens.finetuning.training import Finetuned, finetune
from persona_lens.finetuning.trait_data import trait_dataset
from persona_lens.finetuning.vector_tracking import VectorTracker, VectorTurn

__all__ = [
    "FinetuneSettings", "Finetuned", "FinetuningShift", "Level", "PreventionPlan", "PreventionTrials",
    "ProjectionPenalty", "Source", "Tracker", "TriedPrevention", "VectorTracker", "VectorTurn", "domain_dataset",
    "finetune", "list_domains", "measure_shift", "measure_task_loss", "plan_prevention", "trait_dataset",
]  # fmt: skip
