"""An import path of version 0.1.0; each name says with a warning where it is now. Not exported from a notebook."""
from .core.legacy import moved

__getattr__ = moved(__name__, {
    "Artifact": "one_shui.methods.contract:Artifact",
    "Cost": "one_shui.core.costs:Cost",
    "GradientAscent": "one_shui.methods.baselines:GradientAscent",
    "Handover": "one_shui.methods.contract:UnlearnData",
    "METHODS": "one_shui.methods.registry:METHODS",
    "Needs": "one_shui.methods.contract:DataAccess",
    "OF_ONE_RUN": "one_shui.methods.contract:OF_ONE_RUN",
    "Original": "one_shui.methods.baselines:Original",
    "Prepared": "one_shui.methods.harness:Prepared",
    "Retrain": "one_shui.methods.baselines:Retrain",
    "Unlearner": "one_shui.methods.contract:Unlearner",
    "apply_method": "one_shui.methods.harness:apply_method",
    "check_artifact": "one_shui.methods.harness:check_artifact",
    "find_method": "one_shui.methods.registry:find_method",
    "give_back": "one_shui.core.costs:release_memory",
    "method_names": "one_shui.methods.registry:method_names",
    "prepare_method": "one_shui.methods.harness:prepare_method",
    "register": "one_shui.methods.registry:register",
    "settings_of": "one_shui.methods.contract:settings_of",
    "watch_memory": "one_shui.core.costs:watch_memory",
})
