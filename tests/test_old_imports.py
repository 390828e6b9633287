"""Import paths of version 0.1.0 go on working, with a warning that names the new place."""
import importlib
import warnings

import pytest

import one_shui

SHIMS = ("unlearn", "attacks", "scores", "key_edit", "metaunlearn", "experiment", "splits")
USED = {"unlearn": "apply_method", "attacks": "rmia_scores", "scores": "tug_of_war", "key_edit": "KeyEdit",
        "metaunlearn": "MetaUnlearn", "experiment": "Config", "splits": "make_splits"}


@pytest.mark.parametrize("module", SHIMS)
def test_a_name_is_found_in_its_new_place(module):
    old = importlib.import_module(f"one_shui.{module}")
    with pytest.warns(DeprecationWarning, match=f"import {USED[module]} from one_shui"):
        found = getattr(old, USED[module])
    assert found.__name__ == USED[module]


@pytest.mark.parametrize("module", SHIMS)
def test_every_name_of_a_shim_exists(module):
    old = importlib.import_module(f"one_shui.{module}")
    names = old.__getattr__.__closure__
    table = next(cell.cell_contents for cell in names if isinstance(cell.cell_contents, dict))
    assert len(table) > 5 or module == "metaunlearn"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for name in table: assert getattr(old, name) is not None


def test_a_name_that_never_was_is_an_attribute_error():
    old = importlib.import_module("one_shui.unlearn")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"): old.nothing  # noqa: B018


def test_importing_the_package_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        importlib.reload(one_shui)
