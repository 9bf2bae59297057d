"""Checkpoints with orbax: written in the background, the newest few and the best one kept."""

import pathlib

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers

from infofeat_jax.types import InvalidInput

SCORE = "validation_score"  # what "best" means: robust validation accuracy, for standard training the clean one


def manager(directory: pathlib.Path, keep: int = 2) -> ocp.CheckpointManager:
    """Opens `directory` (created on demand), keeping the `keep` newest checkpoints and the best one."""
    best = checkpoint_managers.BestN(get_metric_fn=lambda m: m[SCORE], n=1, keep_checkpoints_without_metrics=False)
    policy = checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(keep), best])
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy, best_fn=lambda m: m[SCORE], cleanup_tmp_directories=True
    )
    return ocp.CheckpointManager(directory.absolute(), options=options)


def save(checkpoints: ocp.CheckpointManager, step: int, state: PyTree, score: float) -> None:
    """Starts saving `state`; returns before it is on disk. Unfinished saves never count as checkpoints."""
    checkpoints.save(step, args=ocp.args.StandardSave(state), metrics={SCORE: score})


def restore(checkpoints: ocp.CheckpointManager, step: int, like: PyTree) -> PyTree:
    """The state of `step`, placed as the arrays of `like`. Raises InvalidInput if it has other shapes."""
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
        return checkpoints.restore(step, args=ocp.args.StandardRestore(abstract))
    except (ValueError, KeyError) as error:
        raise InvalidInput(
            f"checkpoint {checkpoints.directory}/{step} does not fit this configuration's model:"
            f" {' '.join(str(error).split())[:200]}"
        ) from error


def find(checkpoints: ocp.CheckpointManager, which: str) -> int:
    """The step of the "best" or "latest" checkpoint. Raises InvalidInput if there is none."""
    step = checkpoints.best_step() if which == "best" else checkpoints.latest_step()
    if step is None:
        raise InvalidInput(f"no finished checkpoint in {checkpoints.directory}: train first, with --mode=train")
    return step
