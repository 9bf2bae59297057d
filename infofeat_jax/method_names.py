"""What is true of the training methods by their names, for checks and defaults that do not build them."""

# Methods of a single step; every other method takes the paper's 7 steps of a quarter of epsilon.
ONE_STEP = ("feature_scatter", "adversarial_interpolation", "bilateral")

# Methods whose loss knows a second label only through the targets.
MIXABLE = ("standard", "madry", "infofeature", "alp", "trades", "feature_scatter")

# Methods whose attack may be replaced by ascent of their loss, which knows the perturbed images.
REPLAYED = ("madry", "alp", "feature_matching", "trades", "mart")

# Methods whose attack may start anywhere: the others' start where their authors say.
ANYWHERE = ("madry", "infofeature", "alp", "feature_matching")


# Methods with a term that method.weight is the weight of.
WEIGHTED = ("infofeature", "alp", "feature_matching", "trades", "mart")


def steps(
    name: str, epsilon: float, num_steps: int | None, step_size: float | None, *, single: bool = False
) -> tuple[int, float]:
    """(number of steps, step size) of a method's attack, where they are not given. `single`: N-FGSM and Free-AT."""
    if num_steps is None:
        num_steps = 1 if single or name in ONE_STEP else 7
    if step_size is None:
        step_size = epsilon if num_steps == 1 else epsilon / 4
    return num_steps, step_size
