"""A Linen model of one's own, called as the models of this package are."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
from jaxtyping import PyTree

from infofeat_jax import parts
from infofeat_jax.attacks.inputs import as_forward

# Arguments of __call__ that choose the mode, and their value for evaluation.
MODES = {"train": False, "training": False, "is_training": False, "deterministic": True, "use_running_average": True,
         "inference": True}  # fmt: skip
FIELD = "config.model.name"


class Own(nn.Module):
    """Any Linen module `inner` of images [b, h, w, c] in [0, 1]; it returns Outputs, bare logits or a tuple.

    Its collections besides "params", whatever they are called, are kept together as "batch_stats".
    """

    inner: nn.Module

    @nn.nowrap
    def init(self, key, images) -> dict[str, PyTree]:  # pyrefly: ignore[bad-override]
        """{"params", "batch_stats"}."""
        params_key, dropout_key = key, key
        variables = self.inner.init({"params": params_key, "dropout": dropout_key}, images, **self._mode(train=False))
        others = {name: value for name, value in variables.items() if name != "params"}
        return {"params": variables.get("params", {}), "batch_stats": others}

    @nn.nowrap
    def apply(  # pyrefly: ignore[bad-override]
        self, variables: Mapping[str, PyTree], images, *, train: bool = False, mutable: Sequence[str] = (), rngs=None
    ) -> Any:
        """Outputs; with `mutable`, (Outputs, {"batch_stats"})."""
        others = variables.get("batch_stats", {})
        result, moved = self.inner.apply(
            {"params": variables["params"], **others}, images, rngs=rngs, mutable=list(others) if mutable else [],
            **self._mode(train=train),
        )  # fmt: skip
        outputs = as_forward(lambda _: result)(images)
        return (outputs, {"batch_stats": {**others, **moved}}) if mutable else outputs

    @nn.nowrap
    def _mode(self, *, train: bool) -> dict[str, bool]:
        accepted = inspect.signature(type(self.inner).__call__).parameters
        return {name: value != train for name, value in MODES.items() if name in accepted}


def adapted(module: nn.Module) -> nn.Module:
    """A module of this package as it is, and any other as `Own`."""
    return module if type(module).__module__.startswith(f"{__package__}.") else Own(module)


def natural(module: nn.Module, variables: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """The variables of the `adapted` module as those of the module that it was made from."""
    if not isinstance(module, Own):
        return dict(variables)
    return {"params": variables["params"], **variables.get("batch_stats", {})}


def create(name: str, **options) -> Own:
    """The module that "package.module:name" returns for `num_classes` and other `options`. Raises InvalidInput."""
    return Own(parts.call(FIELD, name, nn.Module, "a flax.linen.Module", **options))
