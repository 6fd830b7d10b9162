"""Fine-tuning with persona vectors: datasets, training, what it shifts, and how to prevent it."""

from persona_lens.finetuning.domains import Level, domain_dataset, list_domains
from persona_lens.finetuning.planning import PreventionPlan, PreventionTrials, TriedPrevention, plan_prevention
from persona_lens.finetuning.rows import Source
from persona_lens.finetuning.settings import FinetuneSettings, ProjectionPenalty
from persona_lens.finetuning.shift import FinetuningShift, measure_shift
from persona_lens.finetuning.signal import FoundSignal, find_signal
from persona_lens.finetuning.signal_reading import SignalActivations, SignalReading, measure_signal, read_signal
from persona_lens.finetuning.task_loss import measure_task_loss
from persona_lens.finetuning.tracking import Tracker
from persona_lens.finetuning.training import Finetuned, finetune
from persona_lens.finetuning.trait_data import trait_dataset

__all__ = [
    "FinetuneSettings", "Finetuned", "FinetuningShift", "FoundSignal", "Level", "PreventionPlan", "PreventionTrials",
    "ProjectionPenalty", "SignalActivations", "SignalReading", "Source", "Tracker", "TriedPrevention",
    "domain_dataset", "find_signal", "finetune", "list_domains", "measure_shift", "measure_signal",
    "measure_task_loss", "plan_prevention", "read_signal", "trait_dataset",
]  # fmt: skip
