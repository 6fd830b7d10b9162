"""Estimates with intervals: means, correlations and AUROC, numbers in and numbers out."""

from persona_lens.statistics.bootstrap import bootstrap_mean, bootstrap_paired_difference
from persona_lens.statistics.correlation import (
    bootstrap_pearson_difference_by_group,
    bootstrap_pearson_r,
    bootstrap_pearson_r_by_group,
    bootstrap_spearman_r,
    pearson_r,
)
from persona_lens.statistics.crossed import mean_over_directions_interval
from persona_lens.statistics.interval import Interval
from persona_lens.statistics.line import bootstrap_line_by_group
from persona_lens.statistics.ranking import bootstrap_auroc_difference_by_group, bootstrap_precision_by_group
from persona_lens.statistics.separation import auroc, bootstrap_auroc, bootstrap_auroc_by_group

__all__ = [
    "Interval", "auroc", "bootstrap_auroc", "bootstrap_auroc_by_group", "bootstrap_auroc_difference_by_group",
    "bootstrap_line_by_group", "bootstrap_mean", "bootstrap_paired_difference",
    "bootstrap_pearson_difference_by_group", "bootstrap_pearson_r", "bootstrap_pearson_r_by_group",
    "bootstrap_precision_by_group", "bootstrap_spearman_r", "mean_over_directions_interval", "pearson_r",
]  # fmt: skip
