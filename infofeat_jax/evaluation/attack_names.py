"""Attacks by name: the syntax of config.eval.attacks, parsed in this one place.

    NAME      = ATTACK [STEPS] [(OPTION=VALUE, ...)] [@RUN]
    clean     fgsm     noise     pgd20     cw20     infofeature7     autoattack     apgd-t     fab-t     square
    pgd20(step_size=1,random_start=false)     fgsm(step_size=4)     square(queries=1000)     pgd10@madry-seed0
    package.module:attack     package.module:attack20(step_size=1,restarts=5)@madry-seed0

STEPS is the number of iterations of an iterated attack; epsilon and step_size are in 8-bit levels; `@RUN` crafts the
attack on the model of another run. The name of an attack of one's own has no STEPS, and is imported by `create` only.
"""

import ast
import inspect
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from infofeat_jax import attacks, parts
from infofeat_jax import threat as threats
from infofeat_jax.attacks.inputs import as_forward, check_kind
from infofeat_jax.attacks.projected import projected_ascent
from infofeat_jax.attacks.stages import CHANGES, STAGES, VERSIONS
from infofeat_jax.threat import threat
from infofeat_jax.types import LEVELS, Attack, Forward, Images, InvalidInput, Labels, Outputs, PRNGKey, summary

MOST_STEPS = 100_000
IN_LEVELS = ("epsilon", "step_size")
COUNTS = ("num_steps", "num_queries", "restarts", "eot")
FLAGS = ("random_start", "clip_start")
# Attacks whose name is followed by the number of steps.
ITERATED = ("pgd", "cw", "infofeature", "kl", "feature_scatter", "adversarial_interpolation")
SINGLE = ("clean", "fgsm", "noise")
GRADIENT_FREE = ("clean", "noise", "square")
CASCADES = ("autoattack", *STAGES)  # they drop broken examples; see attacks.autoattack
# Parameters of an attack function that a name cannot set.
GIVEN = ("forward", "key", "images", "labels", "norm", "bounds")  # nor one of one's own
FIXED = (*GIVEN, "num_steps", "targeted", "objective", "start")
CASCADE_OPTIONS = {
    "autoattack": ("version",), "apgd": ("num_steps", "restarts", "eot"), "fab": ("num_steps", "restarts"),
    "square": ("num_queries", "restarts", "initial_share"),
}  # fmt: skip
SHORT = {"queries": "num_queries", "steps": "num_steps"}  # other spellings


class Budget(NamedTuple):
    """The threat model of an evaluation and the step size of its attacks, in the images' units."""

    norm: str
    epsilon: float
    step_size: float


class AttackSpec(NamedTuple):
    """A parsed name."""

    attack: str  # of SINGLE, ITERATED or CASCADES, or package.module:name
    steps: int | None = None  # of an iterated attack
    options: tuple[tuple[str, Any], ...] = ()
    source: str = ""  # the run whose model it is crafted on; "": the attacked run

    @property
    def base(self) -> str:
        """The attack and its number of steps: "pgd20" for "pgd20(step_size=1)@madry"."""
        return self.attack + ("" if self.steps is None else str(self.steps))

    @property
    def name(self) -> str:
        """The canonical spelling of the name, under which its outcomes are stored."""
        given = ",".join(f"{option}={value}" for option, value in sorted(self.options))
        return self.base + (f"({given})" if given else "") + (f"@{self.source}" if self.source else "")

    @property
    def file_name(self) -> str:
        """The name as part of a file's."""
        return re.sub(r"[^\w.+-]+", "_", self.name)

    @property
    def is_cascade(self) -> bool:
        """Whether it is AutoAttack or one of its stages."""
        return self.attack in CASCADES

    @property
    def whole(self) -> "AttackSpec | None":
        """AutoAttack, where this is its quick version, which leaves stages out; None for all else."""
        quick = ("version", "quick")
        rest = tuple(option for option in self.options if option != quick)
        return self._replace(options=rest) if quick in self.options and self.attack == "autoattack" else None

    @property
    def has_own_epsilon(self) -> bool:
        """Whether it departs from the evaluation's threat model."""
        return "epsilon" in dict(self.options)


def parse(name: str) -> AttackSpec:
    """Parses the name of an attack. Raises InvalidInput."""
    if match := re.fullmatch(rf"\s*({parts.NAME})\s*(?:\(([^()]*)\))?\s*(?:@(.+))?", str(name)):
        return AttackSpec(match[1], None, _parse_options(name, match[1], match[2] or ""), match[3] or "")
    match = re.fullmatch(r"\s*([a-z_]+(?:-[a-z]+)*(?:-\d+)?)(\d{0,12})\s*(?:\(([^()]*)\))?\s*(?:@(.+))?", str(name))
    if not isinstance(name, str) or not match:
        raise _unknown(name)
    attack, steps, options, source = match[1], match[2], match[3] or "", match[4] or ""
    if attack in ITERATED:
        if steps and not 1 <= int(steps) <= MOST_STEPS:
            raise InvalidInput(f"attack {name!r}: expected 1 to {MOST_STEPS} steps, as {attack}20")
    elif attack not in (*SINGLE, *CASCADES):
        raise _unknown(name)
    if bool(steps) != (attack in ITERATED):
        raise _unknown(name)
    if source and attack in CASCADES:
        raise InvalidInput(f"attack {name!r}: {attack} cannot be crafted on another run: choose pgdN, cwN, ...")
    return AttackSpec(attack, int(steps) if steps else None, _parse_options(name, attack, options), source)


def create(spec: AttackSpec, budget: Budget) -> Attack | None:
    """The attack function of a name that is not a cascade; None for "clean"."""
    if spec.attack == "clean":
        return None
    options = in_images_units(spec)
    common = {"norm": budget.norm, "epsilon": budget.epsilon}
    if spec.attack == "fgsm":
        return partial(attacks.fgsm, **common | options)
    if spec.attack == "noise":
        return partial(attacks.pgd, **common | {"num_steps": 0} | options)
    if parts.is_own(spec.attack):
        return _own(spec.attack, {**common, "step_size": budget.step_size, **options})
    defaults = common | {"step_size": budget.step_size, "num_steps": spec.steps}
    return partial(attacks.ATTACKS[spec.attack], **defaults | options)


def _own(name: str, options: dict[str, Any]) -> Attack:
    """An attack of one's own, whatever it returns projected onto the threat model: it cannot leave it."""
    function, allowed = parts.find("attack", name), threats.threat(options["norm"], options["epsilon"])
    parts.check_call("attack", name, function, None, None, None, None, **options)

    def attack(forward: Forward, key: PRNGKey, images: Images, labels: Labels) -> Images:
        perturbed = function(as_forward(forward), key, images, labels, **options)
        if getattr(perturbed, "shape", None) != images.shape:
            shape = getattr(perturbed, "shape", type(perturbed).__name__)
            raise InvalidInput(f"it returned {shape}: expected images of shape {images.shape}")
        found = jnp.asarray(perturbed, jnp.float32)
        return threats.project(allowed, images, jnp.where(jnp.isfinite(found), found, images))

    return attack


def check(spec: AttackSpec, budget: Budget, forward: Forward | None = None, shape: tuple[int, ...] = (8, 8, 1)) -> None:
    """Raises InvalidInput for options that the attack or the model refuses: it is traced for one image, not computed.

    `forward`: the model, of images of `shape` [h, w, c]; by default one of small images that returns everything.
    """
    options, (*size, _) = in_images_units(spec), shape
    try:
        if spec.is_cascade:
            check_kind(forward or _some_outputs, eot(spec))
        if spec.attack in STAGES:
            model = threat(budget.norm, options.pop("epsilon", budget.epsilon))
            STAGES[spec.attack](model, 10, tuple(size), **options)
        elif not spec.is_cascade and (attack := create(spec, budget)) is not None:
            key, images, labels = jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32)
            jax.eval_shape(partial(attack, forward or _some_outputs), key, images, labels)
    except InvalidInput as error:
        raise InvalidInput(f"attack {spec.name!r}: {error}") from None
    except Exception as error:
        if not parts.is_own(spec.attack):
            raise
        raise InvalidInput(f"attack {spec.name!r} failed: {summary(error)}") from error


def eot(spec: AttackSpec) -> int:
    """The draws of a randomised model for each gradient; 0 for an attack on a model that is not randomised."""
    options = dict(spec.options)
    if spec.attack == "autoattack":
        return max((stage.get("eot", 0) for stage in CHANGES.get(options.get("version"), {}).values()), default=0)
    return options.get("eot", 0)


def _some_outputs(images: Images) -> Outputs:
    """What any attack may read, for `check`."""
    maps = jnp.broadcast_to(images[:, :2, :2], (len(images), 2, 2, 3))
    cam = jnp.broadcast_to(images[:, :2, :2], (len(images), 2, 2, 10))
    return Outputs(cam.mean((1, 2)), maps.mean((1, 2)), maps, cam)


def in_images_units(spec: AttackSpec) -> dict[str, Any]:
    """The options, with those in 8-bit levels converted to the images' units."""
    return {name: value / LEVELS if name in IN_LEVELS else value for name, value in spec.options}


def allowed_options(attack: str) -> tuple[str, ...]:
    """The options that may be given in parentheses after an attack."""
    if attack in CASCADES:
        return ("epsilon", *CASCADE_OPTIONS[attack.partition("-")[0]])
    if attack in ("clean", "noise"):
        return () if attack == "clean" else ("epsilon",)
    parameters = {**inspect.signature(projected_ascent).parameters, **_parameters(attack)}
    fixed = (*FIXED, "random_start") if attack == "kl" else FIXED
    return tuple(name for name, one in parameters.items() if name not in fixed and one.kind != one.VAR_KEYWORD)


def _parameters(attack: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(attacks.ATTACKS[attack]).parameters


def _parse_options(name: str, attack: str, text: str) -> tuple[tuple[str, Any], ...]:
    options, allowed = {}, ("NAME",) if parts.is_own(attack) else allowed_options(attack)
    for part in filter(None, (part.strip() for part in text.split(","))):
        option, _, value = (piece.strip() for piece in part.partition("="))
        option = SHORT.get(option, option) if attack in CASCADES else option
        known = option.isidentifier() and option not in GIVEN if parts.is_own(attack) else option in allowed
        if not known or not value or option in options:
            choices = f"expected OPTION=VALUE of {', '.join(allowed)}" if allowed else "it takes no options"
            raise InvalidInput(f"attack {name!r}: {part!r}: {choices}")
        options[option] = _literal(value)
    for option in IN_LEVELS:
        value = options.get(option, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise InvalidInput(f"attack {name!r}: {option}={value}: expected 0 or more 8-bit levels")
    for option in COUNTS:
        value = options.get(option, 1)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_STEPS:
            raise InvalidInput(f"attack {name!r}: {option}={value}: expected a whole number, at most {MOST_STEPS}")
    for option in FLAGS:
        if not isinstance(value := options.get(option, True), bool):
            raise InvalidInput(f"attack {name!r}: {option}={value}: expected true or false")
    if "version" in options and options["version"] not in VERSIONS:
        raise InvalidInput(f"attack {name!r}: version={options['version']}: choose one of {', '.join(VERSIONS)}")
    if attack == "autoattack" and options.get("version") == "standard":
        del options["version"]  # the default: one name for it
    return tuple(sorted(options.items()))


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text.title() if text.lower() in ("true", "false") else text)
    except (SyntaxError, ValueError):
        return text


def _unknown(name: object) -> InvalidInput:
    choices = ", ".join([*SINGLE, *(f"{attack}N" for attack in ITERATED), *CASCADES, "package.module:name"])
    return InvalidInput(
        f"unknown attack {name!r}: choose one of {choices}"
        " (N steps, as pgd20; pgd20(step_size=1): with options; pgd20@RUN: crafted on another run)"
    )
