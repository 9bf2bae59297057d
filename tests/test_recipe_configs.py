"""The configurations of published recipes: they are valid, their steps are built, and shortened they run."""

import pathlib

import jax
import numpy as np
import pytest
from small import tiny_model
from test_config import parse
from test_step import create_experiment

from infofeat_jax import checks, cli, run
from infofeat_jax import config as configs
from infofeat_jax import experiment as experiments
from infofeat_jax.types import InvalidInput

__all__ = ["tiny_model"]
pytestmark = pytest.mark.usefixtures("tiny_model")
FILES = sorted(pathlib.Path(__file__).parent.parent.glob("configs/recipes/[!_]*.py"))
REFUSED = "free_at:infofeature"
SHORT = {
    "model.name": "tiny", "model.activation": "", "batch_size": 16, "num_epochs": 1, "attack.num_steps": 1,
    "awp.warmup_epochs": 0.0, "optimizer.milestones": (), "eval.batch_size": 32, "eval.validation_attack": "fgsm",
    "log_every": 1,
}  # fmt: skip


def test_free_training_has_no_place_for_another_objective():
    with pytest.raises(InvalidInput, match="the gradient of its update is not that of its attack"):
        configs.resolve(parse(f"--config=recipes/{REFUSED}"))


BOTH = [(path, method) for path in FILES for method in ("", ":infofeature") if path.stem + method != REFUSED]


@pytest.mark.parametrize(("path", "method"), BOTH, ids=lambda given: getattr(given, "stem", given))
def test_a_recipe_is_valid_and_its_step_can_be_traced(path, method, tmp_path):
    """With InfoFeature in the place of its method, too; on a tiny network, with the recipe's own attack."""
    config = configs.resolve(parse(f"--config={path}{method}"))
    assert (config.method.name == "infofeature") == bool(method)
    cli.check(config, tmp_path / "run", "train")
    dataset = create_experiment("standard").data
    config.model.name, config.model.activation, config.batch_size = "tiny", "", 16
    config.data.extra = ""
    experiment = experiments.create(config, tmp_path, dataset)
    batch = tuple(part[:16] for part in dataset.train)
    state = experiments.describe_state(experiment)
    after, values = jax.eval_shape(experiments.compile_step(experiment), state, batch, jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(lambda leaf: leaf.shape, state)
    assert values["loss"].shape == ()


@pytest.mark.parametrize("name", ["generated_1m", "n_fgsm:infofeature"])
def test_a_shortened_recipe_runs(name, tmp_path):
    config = parse(f"--config=recipes/{name}")
    config.update_from_flattened_dict(SHORT)
    if config.data.extra:
        config.data.extra = str(tmp_path / "pool.npz")
        np.savez(config.data.extra, image=np.zeros((20, 8, 8, 3), np.uint8), label=np.arange(20) % 5)
    dataset = create_experiment("standard").data
    config = configs.resolve(config)
    checks.check_data(config, dataset)
    state = run.train(experiments.create(config, tmp_path, dataset))
    assert state.step == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.evaluated)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_says_what_is_published_where_and_what_it_costs(path):
    text = " ".join(path.read_text().split('"""')[1].split())
    words = "Published, ", "AutoAttack at 8/255", "Hardware: ", "GFLOP", "Not run here", f"{path.stem}.py:infofeature"
    assert [word for word in words if word not in text] == []
