"""An import path of version 0.1.0; each name says with a warning where it is now. Not exported from a notebook."""
from .core.legacy import moved

__getattr__ = moved(__name__, {
    "draw_people": "one_shui.data.toy:draw_people",
    "interval_around": "one_shui.core.intervals:interval_around",
    "mean_and_interval": "one_shui.core.intervals:mean_and_interval",
    "mean_average_precision": "one_shui.data.metrics:mean_average_precision",
    "paired_interval": "one_shui.core.intervals:paired_interval",
    "predict": "one_shui.evaluation.scores:predict",
    "score_interval": "one_shui.evaluation.scores:score_interval",
    "score_name": "one_shui.data.metrics:score_name",
    "task_score": "one_shui.data.metrics:task_score",
    "tow_factor": "one_shui.evaluation.scores:tow_factor",
    "tug_of_war": "one_shui.evaluation.scores:tug_of_war",
    "weighted_scores": "one_shui.evaluation.scores:weighted_scores",
})
