"""Heuristics for overestimated robustness: signs of gradient masking and of attacks that are too weak.

After the checklists of Athalye et al. ("Obfuscated gradients give a false sense of security", 2018) and Carlini
et al. ("On evaluating adversarial robustness", 2019), and the warnings of AutoAttack (Croce & Hein, 2020).
The absence of flags does not prove a model robust; each flag names an evaluation that should not be trusted as it is.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np
from jaxtyping import Bool

from infofeat_jax.evaluation import attack_names
from infofeat_jax.evaluation.probes import MORE_STEPS, RESTARTS, STEPS, Probes

RANDOM = 1e-3  # relative difference of logits; rounding that depends on the position in the batch stays far below
# A difference counts if it is at least this many examples, and at least this share of them:
AT_LEAST = 3
PROBED = 0.05  # of the few that were probed
MEASURED = 0.005  # between attacks of which the first should not be the stronger
NOT_STANDARD, FOR_A_RESULT = "not standard AutoAttack", "measure autoattack for a result"
GAP = 0.1  # between PGD and AutoAttack; for sound models PGD-20 is up to 0.08 above


def flags(
    probes: Probes | None,
    outcomes: Mapping[str, np.ndarray] | None = None,
    stages: Mapping[str, np.ndarray] | None = None,
) -> list[str]:
    """One sentence for each heuristic that fires: what was observed, and what it means.

    Args:
      probes: the result of `probes.probe`, if it was run.
      outcomes: {attack: correct [n] bool}, named as in config.eval.attacks; shorter ones cover the first examples.
      stages: {AutoAttack's stage: still correct after it [n]}, in order.
    """
    outcomes = outcomes or {}
    found = [] if probes is None else [*_of_gradients(probes), *_of_outputs(probes), *_of_effort(probes)]
    found += [*_of_attacks(outcomes), *_of_black_boxes(outcomes), *_of_stages(stages or {})]
    return [*found, *(incomplete(name) for name in unconfirmed(outcomes))]


def unconfirmed(names: Collection[str]) -> dict[str, str]:
    """{quick AutoAttack: AutoAttack} of the names whose whole is not among them."""
    wholes = {name: spec.name for name in names if (spec := attack_names.parse(name).whole)}
    return {name: whole for name, whole in wholes.items() if whole not in names}


def suspected(flags: Iterable[str]) -> bool:
    """Whether flags are raised beyond the one that goes with quick AutoAttack."""
    return any(not flag.endswith(FOR_A_RESULT) for flag in flags)


def incomplete(name: str) -> str:
    """The flag of a quick AutoAttack without the whole."""
    return f"{NOT_STANDARD}: {name} is a part of it, for development; {FOR_A_RESULT}"


def _of_gradients(probes: Probes) -> Iterator[str]:
    count = len(probes.zero)
    if _many(probes.zero):
        yield (
            f"zero gradients: on {probes.zero.sum()} of {count} images the logits' gradient is zero or non-finite;"
            " gradient-based attacks cannot work there: only gradient-free ones (Square, transfer) are informative"
        )
    if _many(probes.saturated):
        yield (
            f"vanishing gradients: on {probes.saturated.sum()} of {count} images the softmax is saturated and the"
            " cross-entropy's gradient is lost to rounding; FGSM and PGD are blind there: rely on margin-based attacks"
            " (cw, autoattack) instead"
        )


def _of_outputs(probes: Probes) -> Iterator[str]:
    if _many(probes.noise > RANDOM):
        yield (
            f"randomised forward: the logits of an image differ by up to {probes.noise.max():.1%} of their size between"
            " two passes; attacks that see a single draw, or other neighbours in the batch, overestimate robustness:"
            " attack the average over many draws"
        )
    if probes.normalised.all():
        yield (
            "outputs are probabilities: they lie in [0, 1] and sum to 1; losses apply a second softmax to them,"
            " which flattens the gradients: return logits"
        )


def _of_effort(probes: Probes) -> Iterator[str]:
    correct, count = probes.correct, len(probes.zero)
    say = {name: f"{value.mean():.1%}" for name, value in correct.items()}
    if _beats(correct["one step"], correct["steps"], PROBED):
        yield (
            f"one step beats many: {say['one step']} of {count} images withstand a single step, {say['steps']}"
            f" {STEPS} steps within the same budget; the gradients mislead iterative attacks"
        )
    if _many(correct["large budget"]):
        yield (
            f"accuracy does not reach 0: {say['large budget']} of {count} images withstand PGD with a budget that lets"
            " any image turn grey; the attack fails for reasons other than robustness"
        )
    for name, change in (("more steps", f"{MORE_STEPS} steps"), ("restarts", f"{RESTARTS} more random starts")):
        if _beats(correct[name], correct["steps"], PROBED):
            yield (
                f"PGD has not converged: {say['steps']} of {count} images withstand {STEPS} steps, {say[name]} with"
                f" {change}; the reported accuracy would fall further with more effort"
            )


def _of_attacks(outcomes: Mapping[str, np.ndarray]) -> Iterator[str]:
    steps = {name: _pgd_steps(name) for name in outcomes if _pgd_steps(name)}
    longest = max(steps, key=lambda name: steps[name], default="")
    if longest and "fgsm" in outcomes and _beats(outcomes["fgsm"], outcomes[longest], MEASURED):
        yield (
            f"one step beats many: {_accuracies('fgsm', longest, outcomes)}; the gradients mislead iterative attacks"
        )
    for name in outcomes:
        spec = attack_names.parse(name)
        ours = spec.attack == "autoattack" and not spec.has_own_epsilon
        if longest and ours and _beats(outcomes[name], outcomes[longest], GAP):
            yield (
                f"large gap between PGD and AutoAttack: {_accuracies(name, longest, outcomes)};"
                " accuracy under PGD says little about this model"
            )
            return


def _of_black_boxes(outcomes: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Black-box attacks on this model against the strongest white-box one."""
    specs = {name: attack_names.parse(name) for name in outcomes}
    inside = {name: spec for name, spec in specs.items() if not spec.has_own_epsilon}
    white_box = [name for name, spec in inside.items() if spec.steps and not spec.source]
    for name, spec in inside.items():
        if white_box and (spec.source or spec.attack in ("noise", "square")):
            strongest = min(white_box, key=lambda other: outcomes[other].mean())
            if _beats(outcomes[name], outcomes[strongest], MEASURED):
                yield (
                    f"black-box beats white-box: {_accuracies(name, strongest, outcomes)}, although only the second"
                    " uses the gradients of this model: they are masked"
                )


def _of_stages(stages: Mapping[str, np.ndarray]) -> Iterator[str]:
    names = list(stages)
    if "square" not in names[1:]:
        return
    before, after = stages[names[names.index("square") - 1]], stages["square"]
    if _beats(after, before, MEASURED):
        yield (
            f"black-box beats white-box: Square lowers the accuracy from {before.mean():.1%} to {after.mean():.1%}"
            " after AutoAttack's gradient-based attacks: gradients are masked"
        )


def _pgd_steps(name: str) -> int:
    """The number of steps of PGD on the model itself in the evaluation's threat model; 0 for other attacks."""
    spec = attack_names.parse(name)
    return spec.steps or 0 if spec.attack == "pgd" and not spec.source and not spec.has_own_epsilon else 0


def _accuracies(first: str, second: str, outcomes: Mapping[str, np.ndarray]) -> str:
    count = min(len(outcomes[first]), len(outcomes[second]))
    shares = [f"{outcomes[name][:count].mean():.1%} under {name}" for name in (first, second)]
    return f"of {count} images {shares[0]} are correct and {shares[1]}"


def _beats(stronger: np.ndarray, weaker: np.ndarray, share: float) -> bool:
    """Whether the first leaves notably fewer examples correct than the second, among those that both saw."""
    count = min(len(stronger), len(weaker))
    more = int(weaker[:count].sum()) - int(stronger[:count].sum())
    return more >= max(AT_LEAST, share * count)


def _many(examples: Bool[np.ndarray, " n"]) -> bool:
    return bool(examples.sum() >= max(AT_LEAST, PROBED * len(examples)))
