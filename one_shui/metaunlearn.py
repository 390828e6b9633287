"""An import path of version 0.1.0; each name says with a warning where it is now. Not exported from a notebook."""
from .core.legacy import moved

__getattr__ = moved(__name__, {
    "MetaUnlearn": "one_shui.methods.metaunlearn.method:MetaUnlearn",
})
