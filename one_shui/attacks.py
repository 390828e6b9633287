"""An import path of version 0.1.0; each name says with a warning where it is now. Not exported from a notebook."""
from .core.legacy import moved

__getattr__ = moved(__name__, {
    "LossAttack": "one_shui.evaluation.attacks:LossAttack",
    "OFFSETS": "one_shui.evaluation.rmia:OFFSETS",
    "Roc": "one_shui.evaluation.attacks:Roc",
    "Signal": "one_shui.evaluation.rmia:Signal",
    "auc_interval": "one_shui.evaluation.attacks:auc_interval",
    "blind_loss_attack": "one_shui.evaluation.attacks:blind_loss_attack",
    "check_disjoint": "one_shui.evaluation.attacks:check_disjoint",
    "check_owners": "one_shui.evaluation.attacks:check_owners",
    "loss_attack": "one_shui.evaluation.attacks:loss_attack",
    "membership_signal": "one_shui.evaluation.rmia:membership_signal",
    "per_person": "one_shui.evaluation.attacks:per_person",
    "rmia_scores": "one_shui.evaluation.rmia:rmia_scores",
    "rmia_votes": "one_shui.evaluation.rmia:rmia_votes",
    "roc": "one_shui.evaluation.attacks:roc",
    "threshold_attack": "one_shui.evaluation.attacks:threshold_attack",
    "tune_offset": "one_shui.evaluation.rmia:tune_offset",
})
