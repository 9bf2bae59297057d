"""A JAX model as a torch.nn.Module."""

import numpy as np
import torch

from infofeat_jax.adapters.padded import Padded
from infofeat_jax.types import Forward


class _Call(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images: torch.Tensor, model: Padded) -> torch.Tensor:
        channels_last = images.detach().permute(0, 2, 3, 1).cpu().numpy()
        if ctx.needs_input_grad[0]:
            logits, ctx.pull = model.vjp(channels_last)
        else:
            logits = model.logits(channels_last)
        return _tensor(logits, images)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        pulled = ctx.pull(gradient.detach().cpu().numpy())
        return _tensor(pulled.transpose(0, 3, 1, 2), gradient), None


class TorchModule(torch.nn.Module):
    """See `infofeat_jax.adapters.pytorch`."""

    def __init__(self, forward: Forward):
        super().__init__()
        self._model = Padded(forward)
        # Attack libraries read the model's device off its first parameter.
        self.device_marker = torch.nn.Parameter(torch.empty(0), requires_grad=False)
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return _Call.apply(images, self._model)


def _tensor(array, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.array(array, order="C")).to(like)  # contiguous: callers use view
