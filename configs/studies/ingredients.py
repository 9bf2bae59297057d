"""What averaging the weights (EMA) and AWP add to Madry, TRADES and InfoFeature; and Madry against one step (N-FGSM).

An average changes nothing in training, so each run with EMA is evaluated with the average and with the live weights.
At equal numbers of gradient computations: AWP computes 9 a batch where the others compute 8 (7 attack steps and the
update), so its rows train for 8 epochs where the others train for 9. N-FGSM computes 2, and has Madry's seconds: its
steps took 0.38 times as long when this was set (0.32 later: docs/how-to/recipes.md), so it trains for 24. Constants:
AWP's gamma 0.01, for TRADES 0.005 (csdongxian/AWP), and in `madry+half` that for Madry too; EMA over about an epoch, as
short trainings need (`thousand`: five); learning rate as in the paper's recipe.
Hardware: `digits`, 2 CPU cores, about two minutes a run, TRADES ten, where a flag has the whole of AutoAttack measured;
`small`, at width 16, 2 CPU cores, about half an hour a run, or an accelerator, half a minute a run; `thousand`, where
training overfits, a CPU core, 20 minutes a run (TRADES 30); 24 runs.

  python main.py --config=configs/studies/ingredients.py:digits
  python main.py --config=configs/studies/ingredients.py:thousand --config.data.name=cifar10.npz
  python main.py --config=configs/studies/ingredients.py:small --config.data.name=cifar10.npz
"""

from infofeat_jax.configs.studies import scales

NINTHS = {None: 13, "few": 7, "small": 1, "thousand": 11, "digits": 2}  # epochs for each ninth of the budget
EMA = {None: 0.9975, "few": 0.97, "small": 0.994, "thousand": 0.97, "digits": 0.94}
METHODS = {"madry": 0.01, "trades": 0.005, "infofeature": 0.01}  # AWP's gamma


def get_config(scale: str | None = None):
    config = scales.get_config(scale)
    ninths, ema = NINTHS[scale], f"ema.decay={EMA[scale]}"
    config.study.title = "Averaged weights and AWP for three methods, and one step against seven"
    config.study.seeds = (0, 1, 2)
    rows = []
    for method, gamma in METHODS.items():
        named = f"method.name={method} {ema} eval.live_weights=True"
        rows.append(f"{method}+ema: {named} {epochs(9 * ninths)}")
        rows.append(f"{method}+both: {named} {epochs(8 * ninths)} awp.gamma={gamma}")
    half = f"{epochs(8 * ninths)} awp.gamma={METHODS['madry'] / 2}"
    rows.append(f"madry+half: method.name=madry {ema} eval.live_weights=True {half}")
    config.study.rows = (*rows, f"n_fgsm: method.name=madry attack.noise=2.0 {epochs(24 * ninths)}")
    config.eval.validate_every, config.eval.checkpoint = ninths, "latest"
    config.eval.attacks = ("clean", "pgd20", "cw20", "autoattack(version=quick)")
    config.eval.autoattack_examples = 500
    return config


def epochs(number: int) -> str:
    """The changes for a length: the learning rate is divided by ten at half and three quarters."""
    return f"num_epochs={number} optimizer.milestones=({number / 2},{number * 3 / 4})"
