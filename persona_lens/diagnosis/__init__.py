"""Does a model run as it should? Every check with what was seen, and a cure."""

from persona_lens.diagnosis.examination import doctor
from persona_lens.diagnosis.finding import Diagnosis, Finding

__all__ = ["Diagnosis", "Finding", "doctor"]
