"""What a better key would be worth, for both kinds of labels."""
import pytest

from one_shui.experiments.config import Config
from one_shui.experiments.image_sets import load_image_sets
from one_shui.methods.key_edit.key_oracle import key_oracle
from one_shui.models.networks import ModelSpec, create_model


@pytest.mark.parametrize("task", ["attributes", "ages"])
def test_nothing_is_gained_where_the_original_is_the_retrained_network(task):
    "Its ToW is 100 then, so that a gain would come from scores of other labels"
    images = load_image_sets(Config.tiny(toy=dict(n_people=30, n_photos=6, size=32, task=task)))
    network = create_model(ModelSpec("small_cnn", images.faces.task.n_outputs, 32, options=dict(width=8))).eval()
    table = key_oracle(network, network, images.train, images.val, images.support, images.forget, images.retain, images.test)
    assert len(table) == 7 and not table.to_numpy().any()
