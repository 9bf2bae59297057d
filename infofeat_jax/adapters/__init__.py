"""Our models in the hands of other libraries: PyTorch code, foolbox, ART. Each imports its library when called.

Every function takes a `forward`, as the attacks do: images [b, h, w, c] -> Outputs, logits, a tuple or list that
starts with them, or an object with `logits`. It must classify each example by itself, as networks do when evaluated:
batches are padded to powers of two, so that attacks which drop broken examples do not compile for every number left.
"""

from infofeat_jax.types import Forward


def pytorch(forward: Forward):
    """A torch.nn.Module: images [b, c, h, w] -> logits [b, k], differentiable with respect to the images.

    For code that calls a PyTorch model: the official AutoAttack, RobustBench's `benchmark`, torchattacks.
    It has no trainable parameters, computes in float32 where JAX computes, and answers on the images' device.
    Second derivatives are not offered.
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
    """A classifier of the Adversarial Robustness Toolbox with gradients of losses and of logits.

    For its white-box attacks (FGM, PGD, AutoPGD, DeepFool, Carlini & Wagner ...) and its black-box ones alike.
    `image_shape` is (h, w, c).
    """
    from infofeat_jax.adapters.art_classifier import ArtClassifier

    return ArtClassifier(forward, image_shape, num_classes, bounds)
