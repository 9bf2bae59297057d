"""Can InfoFeature's idea be made to work? Eleven changes, registered before they were run.

On images that are still classified correctly the gradient of the maps' distance outweighs that of the cross-entropy
(docs/results.md). Each row changes the attack or the loss for that; all else is Madry's training. The criterion, and
what came of it: docs/reproduction.md, "Ideas". The parts are in benchmarks/ideas.py: nothing in the package knows them.
Hardware: `digits`, 2 CPU cores, about a minute and a half a run; `few`, an accelerator, half a minute a run; 78 runs.

  PYTHONPATH=benchmarks python main.py --config=configs/studies/ideas.py:digits
  PYTHONPATH=benchmarks python main.py --config=configs/studies/ideas.py:few --config.data.name=cifar10.npz
"""

from infofeat_jax.configs.studies import scales

IDEAS = (
    "margin", "margin_cam", "normalized_03", "normalized_1", "while_correct", "once_wrong", "label_and_rival",
    "signed", "grad_cam", "features", "update_term",
)  # fmt: skip


def get_config(scale: str | None = None):
    config = scales.get_config(scale)
    config.study.title = "Ideas to make InfoFeature work"
    config.study.seeds = (0, 1, 2, 3, 4, 5)
    config.study.rows = ("madry", "infofeature", *(f"{idea}: method.name=ideas:train_{idea}" for idea in IDEAS))
    config.eval.attacks = ("clean", "pgd20", "cw20", "autoattack(version=quick)")
    config.eval.autoattack_examples = 500
    return config
