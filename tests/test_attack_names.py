"""Attacks by name: what is parsed, what is rejected, and what the attack then does."""

import pytest

from infofeat_jax import attacks
from infofeat_jax.evaluation.attack_names import (
    CASCADES,
    ITERATED,
    AttackSpec,
    Budget,
    allowed_options,
    check,
    create,
    parse,
)
from infofeat_jax.types import InvalidInput

BUDGET = Budget("linf", 8 / 255, 2 / 255)


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("clean", AttackSpec("clean")),
        ("pgd20", AttackSpec("pgd", 20)),
        ("feature_scatter1", AttackSpec("feature_scatter", 1)),
        ("pgd20( restarts=5, step_size = 1 )", AttackSpec("pgd", 20, (("restarts", 5), ("step_size", 1)))),
        ("pgd10@../table1/madry-seed0", AttackSpec("pgd", 10, (), "../table1/madry-seed0")),
        ("cw5(confidence=0.5)@a", AttackSpec("cw", 5, (("confidence", 0.5),), "a")),
        ("apgd-t", AttackSpec("apgd-t")),
        ("apgd-ce-5", AttackSpec("apgd-ce-5")),
        ("fab-5", AttackSpec("fab-5")),
        ("square(num_queries=100)", AttackSpec("square", None, (("num_queries", 100),))),
        ("autoattack(version=plus)", AttackSpec("autoattack", None, (("version", "plus"),))),
        ("apgd-ce(eot=20)", AttackSpec("apgd-ce", None, (("eot", 20),))),
    ],
)
def test_names(name, spec):
    assert parse(name) == spec
    assert parse(spec.name) == spec  # the one spelling under which outcomes are kept


def test_budgets_are_in_levels_and_options_reach_the_attack():
    assert create(parse("clean"), BUDGET) is None
    pgd = create(parse("pgd20"), BUDGET)
    assert pgd.func is attacks.pgd
    assert pgd.keywords == {"norm": "linf", "epsilon": 8 / 255, "step_size": 2 / 255, "num_steps": 20}
    changed = create(parse("pgd7(step_size=1,epsilon=4,restarts=3)"), BUDGET).keywords
    assert changed == pgd.keywords | {"step_size": 1 / 255, "epsilon": 4 / 255, "restarts": 3, "num_steps": 7}
    assert create(parse("fgsm"), BUDGET).keywords == {"norm": "linf", "epsilon": 8 / 255}
    assert create(parse("fgsm(step_size=4)"), BUDGET).keywords["step_size"] == 4 / 255
    for value in ("false", "False"):
        assert create(parse(f"pgd7(random_start={value})"), BUDGET).keywords["random_start"] is False
    noise = create(parse("noise"), BUDGET)
    assert (noise.func, noise.keywords["num_steps"]) == (attacks.pgd, 0)
    infofeature = create(parse("infofeature7(weight=0.5,distance=l1)"), BUDGET)
    assert infofeature.func is attacks.infofeature
    assert (infofeature.keywords["weight"], infofeature.keywords["distance"]) == (0.5, "l1")


@pytest.mark.parametrize("value", ["no", "0", "1", "'false'"])
def test_a_flag_is_true_or_false(value):
    with pytest.raises(InvalidInput, match=r"random_start=.*: expected true or false"):
        parse(f"pgd7(random_start={value})")


def test_every_attack_of_the_library_has_a_name():
    for name in attacks.ATTACKS:
        base = {"apgd": "apgd-ce", "fab": "fab-t"}.get(name, name)
        try:
            parse(base)
        except InvalidInput:
            parse(base + "3")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pgd", "unknown attack 'pgd'"),
        ("pgd0", "expected 1 to 100000 steps"),
        ("pgd3000000000", "expected 1 to 100000 steps"),
        ("fgsm5", "unknown attack 'fgsm5': choose one of clean"),
        ("magic20", "unknown attack"),
        ("pgd20(", "unknown attack"),
        ("", "unknown attack ''"),
        ("pgd20(size=1)", r"'size=1': expected OPTION=VALUE of epsilon, step_size"),
        ("pgd20(step_size)", "'step_size': expected OPTION=VALUE"),
        ("pgd20(norm=l2)", "'norm=l2': expected OPTION=VALUE"),
        ("pgd20(step_size=1,step_size=2)", "expected OPTION=VALUE"),
        ("pgd20(epsilon=-1)", "epsilon=-1: expected 0 or more 8-bit levels"),
        ("pgd20(step_size=many)", "step_size=many: expected 0 or more 8-bit levels"),
        ("pgd20(epsilon=1e999)", "epsilon=inf: expected 0 or more"),
        ("square(num_queries=10000000000000)", "expected a whole number, at most 100000"),
        ("pgd2(restarts=1.5)", "restarts=1.5: expected a whole number"),
        ("clean(epsilon=1)", "it takes no options"),
        ("autoattack(version=none)", "version=none: choose one of standard, plus, rand, quick"),
        ("own:sign_noise(norm=linf)", "'norm=linf': expected OPTION=VALUE"),
        ("kl20(random_start=false)", "'random_start=false': expected OPTION=VALUE"),
        ("autoattack@madry", "cannot be crafted on another run"),
    ],
)
def test_mistakes(name, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        parse(name)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("unchecked")
def test_a_name_is_a_text():
    with pytest.raises(InvalidInput, match="unknown attack 3: choose"):
        parse(3)


def test_the_default_version_has_one_name():
    assert parse("autoattack(version=standard)").name == "autoattack"
    assert parse("autoattack(version=plus)").name == "autoattack(version=plus)"


def test_options_are_those_of_the_attack():
    assert "confidence" in allowed_options("cw")
    assert "confidence" not in allowed_options("pgd")
    assert "weight" in allowed_options("infofeature")


@pytest.mark.parametrize(
    "name",
    [
        "pgd2(keep=foo)", "pgd2(restarts=0)", "square(initial_share=7)", "cw2(confidence=-1)", "infofeature2(weight=x)",
        "infofeature2(distance=nosuch)", "apgd-t(restarts=0)", "pgd2(epsilon=1e30)", "feature_scatter1(space=x)",
    ],
)  # fmt: skip
@pytest.mark.usefixtures("unchecked")  # as for a user, whom no annotation stops
def test_options_that_the_attack_refuses_are_found_before_anything_runs(name):
    with pytest.raises(InvalidInput, match=r"attack '.*\)': "):
        check(parse(name), BUDGET)


@pytest.mark.parametrize("name", ["clean", "fgsm", "noise", *(f"{one}2" for one in ITERATED), *CASCADES])
def test_every_attack_can_be_checked(name):
    check(parse(name), BUDGET)
