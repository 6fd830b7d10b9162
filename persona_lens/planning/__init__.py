"""What work on a model will take, from its configuration alone."""

from persona_lens.planning.costs import PlannedWork
from persona_lens.planning.hardware import HARDWARE, Hardware, measure_hardware
from persona_lens.planning.plan import Plan, plan_work

__all__ = ["HARDWARE", "Hardware", "Plan", "PlannedWork", "measure_hardware", "plan_work"]
