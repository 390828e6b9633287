"""An import path of version 0.1.0; each name says with a warning where it is now. Not exported from a notebook."""
from .core.legacy import moved

__getattr__ = moved(__name__, {
    "Splits": "one_shui.data.splits:Splits",
    "load_splits": "one_shui.data.splits:load_splits",
    "make_splits": "one_shui.data.splits:make_splits",
    "save_splits": "one_shui.data.splits:save_splits",
    "simulate_requests": "one_shui.evaluation.simulation:simulate_requests",
    "write_file": "one_shui.core.files:write_file",
    "write_text": "one_shui.core.files:write_text",
})
