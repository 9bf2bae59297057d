"""Trained models in one line."""

import pathlib

from jax.tree_util import Partial

from infofeat_jax import installation, models
from infofeat_jax.models import Normalization
from infofeat_jax.types import InvalidInput


def load(
    path: str | pathlib.Path, arch: str | None = None, *, mean: Normalization | None = None,
    std: Normalization | None = None, which: str = "best",
) -> Partial:  # fmt: skip
    """A trained model as a function images [b, h, w, c] in [0, 1] -> Outputs, in evaluation mode and the run's dtype.

    Args:
      path: a run's directory (which needs the extra `train`), or a PyTorch file as read by `models.from_torch`. A run
        whose model is one's own is refused: the command evaluates it.
      arch, mean, std: of a PyTorch file, where they cannot be read from it.
      which: of a run's checkpoints, "best" or "latest".

    Raises InvalidInput.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise InvalidInput(f"{path}: no such file or directory: expected a run's directory, or a PyTorch file")
    if not path.is_dir():
        module, variables = models.from_torch(path, arch, mean=mean, std=std)
    else:
        try:
            from infofeat_jax import weights  # here: it needs the extra `train`
        except ModuleNotFoundError as error:
            raise InvalidInput(f"{path}: to read a run ({error}), {installation.command('train')}") from None

        module, variables = weights.load(path, arch, mean=mean, std=std, which=which)
    return Partial(module.apply, variables)
