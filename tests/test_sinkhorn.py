"""Optimal transport against recorded runs of Feature Scattering's code, and where its formulas may break."""

from functools import partial

import golden_methods
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infofeat_jax import sinkhorn

CASES = ("b8_k10_small", "b8_k10_large", "b60_k10_large", "b60_k10_indep", "real_b60_k10", "b60_k100_indep")
RNG = np.random.default_rng(0)


# Compiles in a third of the time.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@quick_jit
def transport(clean, perturbed):
    """((sum of plan * cost, (cost, Transport)), its gradient with respect to `perturbed`)."""

    def total(perturbed):
        cost = sinkhorn.cosine_cost(clean, perturbed)
        found = sinkhorn.sinkhorn(cost)
        return (found.plan * cost).sum(), (cost, found)

    return jax.value_and_grad(total, has_aux=True)(perturbed)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_recorded_run(case):
    golden = golden_methods.group(case)
    (value, (cost, found)), gradient = transport(golden["logits_nat"], golden["logits_adv"])
    assert found.iterations == golden["n_iter"]
    np.testing.assert_allclose(value, golden["ot_loss"], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(gradient, golden["grad_adv"], atol=5e-5 * abs(golden["grad_adv"]).max())
    if "plan" in golden:
        np.testing.assert_allclose(found.plan, golden["plan"], atol=1e-5)
    if "cost" in golden:
        np.testing.assert_allclose(cost, golden["cost"], atol=1e-6)


@pytest.mark.parametrize("perturbation", [0.02, 0.2, 1.0])
def test_plan_and_gradient_are_those_of_a_plain_loop(perturbation):
    """Differentiated by JAX through a Python loop, in which every iteration stands for itself."""
    clean = 1 + 0.2 * jnp.asarray(RNG.normal(size=(12, 10)), jnp.float32)  # alike: every entry of the plan counts
    perturbed = clean + 0.2 * perturbation * jnp.asarray(RNG.normal(size=(12, 10)), jnp.float32)
    weights = jnp.asarray(RNG.normal(size=(12, 12)), jnp.float32)

    def loop(cost):
        log_mass, u, v = -np.log(12.0), jnp.zeros(12), jnp.zeros(12)
        change = np.inf
        while change >= sinkhorn.TOLERANCE:
            kernel = lambda u, v: jnp.exp((u[:, None] - cost + v[None]) / 0.01)  # noqa: E731
            moved = u + 0.01 * (log_mass - jnp.log(kernel(u, v).sum(1) + 1e-6))
            v = v + 0.01 * (log_mass - jnp.log(kernel(moved, v).sum(0) + 1e-6))
            change, u = float(jax.lax.stop_gradient(jnp.abs(moved - u).sum())), moved
        return kernel(u, v)

    cost = sinkhorn.cosine_cost(clean, perturbed)
    plan, pull = jax.vjp(loop, cost)
    found, ours = quick_jit(lambda c: jax.value_and_grad(lambda c: (sinkhorn.sinkhorn(c).plan * weights).sum())(c))(
        cost
    )
    np.testing.assert_allclose(found, (plan * weights).sum(), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(ours, pull(weights)[0], rtol=1e-2, atol=1e-4 * abs(ours).max())


def test_only_the_iterations_that_are_made_are_in_the_program():
    cost = jnp.asarray(RNG.uniform(0, 0.1, (7, 5)), jnp.float32)
    program = str(jax.make_jaxpr(jax.grad(lambda c: sinkhorn.sinkhorn(c).plan.sum()))(cost))
    assert "while" in program
    assert "scan" not in program


def test_the_gradient_runs_through_the_plan():
    golden = golden_methods.group("b60_k10_large")
    clean, perturbed, plan = (jnp.asarray(golden[name]) for name in ("logits_nat", "logits_adv", "plan"))
    detached = quick_jit(jax.grad(lambda z: (plan * sinkhorn.cosine_cost(clean, z)).sum()))(perturbed)
    difference = abs(detached - golden["grad_adv"]).max()
    assert difference > 0.05 * abs(golden["grad_adv"]).max()


def test_the_plan_has_the_columns_masses():
    found = sinkhorn.sinkhorn(jnp.asarray(RNG.uniform(0, 0.1, (7, 5)), jnp.float32))
    np.testing.assert_allclose(found.plan.sum(0), 1 / 5, rtol=1e-4)
    np.testing.assert_allclose(found.plan.sum(), 1, rtol=1e-4)
    assert (found.plan >= 0).all()


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e6])
@pytest.mark.parametrize("relation", ["equal", "opposite", "other"])
def test_is_finite_for_degenerate_batches(scale, relation):
    clean = jnp.asarray(scale * RNG.normal(size=(8, 5)), jnp.float32)
    perturbed = {"equal": clean, "opposite": -jnp.ones_like(clean), "other": clean[::-1] + 1}[relation]
    if relation == "opposite":
        clean = jnp.ones_like(clean)  # every cost is 2: the whole kernel underflows
    (value, (_, found)), gradient = transport(clean, perturbed)
    assert found.iterations <= 100
    for array in (value, gradient, found.plan, found.u, found.v):
        assert jnp.isfinite(array).all()


def test_distance_is_the_diagonal_of_the_cost():
    a, b = (jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32) for _ in range(2))
    np.testing.assert_allclose(sinkhorn.cosine_distance(a, b), jnp.diag(sinkhorn.cosine_cost(a, b)), atol=1e-6)
