"""An import path of version 0.1.0; each name says with a warning where it is now. Not exported from a notebook."""
from .core.legacy import moved

__getattr__ = moved(__name__, {
    "Edits": "one_shui.methods.key_edit.edit_site:Edits",
    "Keeps": "one_shui.methods.key_edit.records:Keeps",
    "KeyEdit": "one_shui.methods.key_edit.method:KeyEdit",
    "Place": "one_shui.methods.key_edit.edit_site:EditSite",
    "Pool": "one_shui.methods.key_edit.edit_site:Pool",
    "Seen": "one_shui.methods.key_edit.statistics:FeatureStatistics",
    "Strength": "one_shui.methods.key_edit.edit:Strength",
    "Views": "one_shui.methods.key_edit.statistics:LayerOutputs",
    "answer": "one_shui.methods.key_edit.edit_site:logits_from_site",
    "carried_back": "one_shui.methods.key_edit.edit_site:jacobian_pinv",
    "head_edit": "one_shui.methods.key_edit.edit:head_edit",
    "keys_and_gaps": "one_shui.methods.key_edit.statistics:keys_and_gaps",
    "last_layer": "one_shui.methods.key_edit.edit_site:last_layer_site",
    "look": "one_shui.methods.key_edit.statistics:collect_statistics",
    "memory_gap": "one_shui.methods.key_edit.statistics:memorization_gap",
    "noised": "one_shui.methods.key_edit.records:add_noise",
    "privacy_loss": "one_shui.methods.key_edit.records:privacy_loss",
    "spared": "one_shui.methods.key_edit.edit:whiten_keys",
    "views": "one_shui.methods.key_edit.statistics:layer_outputs",
    "whole_people": "one_shui.methods.key_edit.statistics:chunks_of_identities",
    "wide_place": "one_shui.methods.key_edit.edit_site:find_edit_site",
})
