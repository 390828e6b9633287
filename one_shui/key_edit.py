"""An import path of version 0.1.0; each name says with a warning where it is now. Not exported from a notebook."""
from .core.legacy import moved

__getattr__ = moved(__name__, {
    "Edits": "one_shui.methods.key_edit.method:Edits",
    "Keeps": "one_shui.methods.key_edit.method:Keeps",
    "KeyEdit": "one_shui.methods.key_edit.method:KeyEdit",
    "Place": "one_shui.methods.key_edit.method:Place",
    "Pool": "one_shui.methods.key_edit.method:Pool",
    "Seen": "one_shui.methods.key_edit.method:Seen",
    "Strength": "one_shui.methods.key_edit.method:Strength",
    "Views": "one_shui.methods.key_edit.method:Views",
    "answer": "one_shui.methods.key_edit.method:answer",
    "carried_back": "one_shui.methods.key_edit.method:carried_back",
    "head_edit": "one_shui.methods.key_edit.method:head_edit",
    "keys_and_gaps": "one_shui.methods.key_edit.method:keys_and_gaps",
    "last_layer": "one_shui.methods.key_edit.method:last_layer",
    "look": "one_shui.methods.key_edit.method:look",
    "memory_gap": "one_shui.methods.key_edit.method:memorization_gap",
    "noised": "one_shui.methods.key_edit.method:noised",
    "privacy_loss": "one_shui.methods.key_edit.method:privacy_loss",
    "spared": "one_shui.methods.key_edit.method:spared",
    "views": "one_shui.methods.key_edit.method:views",
    "whole_people": "one_shui.methods.key_edit.method:whole_people",
    "wide_place": "one_shui.methods.key_edit.method:wide_place",
})
