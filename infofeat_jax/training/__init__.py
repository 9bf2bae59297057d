"""Training: `fit`, the step, the loop around it, the state it moves, checkpoints and health."""

__all__ = ["fit"]


def __getattr__(name: str):
    if name == "fit":  # here: a step does without Orbax, which takes a while to import
        from infofeat_jax.training.fitting import fit

        return fit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
