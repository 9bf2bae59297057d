"""Adapters that present our models to other libraries: PyTorch code, foolbox, ART, each imported only when called.

The way back is in `given` and `calling`: models of other libraries as functions that can be attacked.

Every function takes a `forward`, as the attacks do: images [b, h, w, c] -> Outputs, logits, a tuple or list that starts
with them, or a dictionary or object with `logits`. It must classify each example independently, as in evaluation mode:
batches are padded to powers of two, so that attacks that drop broken examples do not trigger endless recompilation.
"""

from infofeat_jax.types import Forward


def pytorch(forward: Forward):
    """A torch.nn.Module: images [b, c, h, w] -> logits [b, k], differentiable with respect to the images.

    For code that calls a PyTorch model: the official AutoAttack, RobustBench's `benchmark`, torchattacks.
    It has no trainable parameters, computes in float32 on JAX's device, and returns logits on the images' device.
    Second derivatives are not supported.
    """
    from infofeat_jax.adapters.torch_module import TorchModule

    return TorchModule(forward)


def foolbox(forward: Forward, bounds: tuple[float, float] = (0.0, 1.0)):
    """A foolbox.JAXModel: images [b, h, w, c] within `bounds` -> logits."""
    import foolbox

    from infofeat_jax.adapters.padded import Padded

    return foolbox.JAXModel(Padded(forward).logits, bounds=bounds, data_format="channels_last")


def art(
    forward: Forward, image_shape: tuple[int, int, int], num_classes: int, bounds: tuple[float, float] = (0.0, 1.0)
):
    """A classifier for the Adversarial Robustness Toolbox, with gradients of losses and of logits.

    It serves both its white-box (FGM, PGD, AutoPGD, DeepFool, Carlini & Wagner ...) and its black-box attacks.
    `image_shape` is (h, w, c).
    """
    from infofeat_jax.adapters.art_classifier import ArtClassifier

    return ArtClassifier(forward, image_shape, num_classes, bounds)
