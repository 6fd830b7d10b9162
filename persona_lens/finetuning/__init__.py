"""Fine-tuning with persona vectors: datasets, training, what it shifts, and how to prevent it or pull it back."""

from persona_lens.finetuning.distance import PersonaDistance, measure_distance
from persona_lens.finetuning.domains import Level, domain_dataset, list_domains
from persona_lens.finetuning.finetuned import Finetuned
from persona_lens.finetuning.interpolation import blend_adapters, interpolating, scale_adapter
from persona_lens.finetuning.planning import PreventionPlan, PreventionTrials, TriedPrevention, plan_prevention
from persona_lens.finetuning.pulling_back import PullBack, choose_share, pull_back
from persona_lens.finetuning.rows import Source
from persona_lens.finetuning.settings import FinetuneSettings, ProjectionPenalty
from persona_lens.finetuning.shift import FinetuningShift, measure_shift
from persona_lens.finetuning.signal import FoundSignal, find_signal
from persona_lens.finetuning.signal_reading import SignalActivations, SignalReading, measure_signal, read_signal
from persona_lens.finetuning.task_loss import measure_task_loss
from persona_lens.finetuning.tracking import Tracker
from persona_lens.finetuning.training import finetune
from persona_lens.finetuning.trait_data import trait_dataset
from persona_lens.finetuning.vector_tracking import VectorTracker, VectorTurn
from persona_lens.finetuning.weight_change import (
    WeightChange,
    WeightCosine,
    WeightDetection,
    compare_weights,
    detect_by_weights,
    read_weight_change,
)

__all__ = [
    "FinetuneSettings", "Finetuned", "FinetuningShift", "FoundSignal", "Level", "PersonaDistance", "PreventionPlan",
    "PreventionTrials", "ProjectionPenalty", "PullBack", "SignalActivations", "SignalReading", "Source", "Tracker",
    "TriedPrevention", "VectorTracker", "VectorTurn", "WeightChange", "WeightCosine", "WeightDetection",
    "blend_adapters", "choose_share", "compare_weights", "detect_by_weights", "domain_dataset", "find_signal",
    "finetune", "interpolating", "list_domains", "measure_distance", "measure_shift", "measure_signal",
    "measure_task_loss", "plan_prevention", "pull_back", "read_signal", "read_weight_change", "scale_adapter",
    "trait_dataset",
]  # fmt: skip
