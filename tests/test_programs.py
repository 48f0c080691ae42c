"""What is compiled for a score, how often, and that it is given up again."""

import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from resident import IS_TOLD, child

from sharpjax import Gaussian, ScorePair, curvature
from sharpjax.curvature.programs import as_pytree, compiled

KEY = jax.random.key(0)


def cubic(x):
    return -(x**3)


class Model:
    """A user's own: its method is the score, and its attributes may change."""

    def __init__(self, weights):
        self.weights = weights

    def score(self, x):
        return -jnp.tanh(self.weights @ x)


ESTIMATORS = [
    lambda score, x: curvature.trace(score, x, key=KEY).value,
    lambda score, x: curvature.lanczos(score, x, key=KEY, num_matvecs=2).values,
    lambda score, x: curvature.p_laplacian(score, x, method="flux", radius=0.1, key=KEY).value,
    lambda score, x: curvature.at_points(curvature.hessian, score, x[None]),
]


@pytest.mark.fast_cases("<lambda>1")
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_what_was_met_before_compiles_nothing(estimator, compilations):
    x, rng = jnp.array([1.0, 2.0, 3.0]), np.random.default_rng(0)
    model = Model(rng.normal(size=(3, 3)).astype(np.float32))
    scores = [cubic, model.score, lambda x: -2.0 * x, lambda x: -jax.nn.relu(x) * model.weights[0]]
    for score in scores:
        estimator(score, x)
    scores[2] = lambda x: -3.0 * x  # another function that computes alike
    with compilations() as count:
        for score in scores:
            estimator(score, x)
    assert count == [0]


def test_what_a_score_reads_is_read_at_each_call():
    """Attributes, arrays changed in place, numbers, branches: whatever jit would not look at."""
    x, held = jnp.array([1.0, 2.0]), {"power": 2, "factor": 1.0, "weights": np.ones(2, np.float32)}
    model = Model(np.eye(2, dtype=np.float32))

    def score(x):
        return held["factor"] * held["weights"] * x ** held["power"]

    def exact(score):
        return float(curvature.trace(score, x, method="exact").value)

    assert exact(score) == pytest.approx(2 * 1 + 2 * 2)
    held["factor"] = -0.5
    assert exact(score) == pytest.approx(-0.5 * 6)
    held["weights"][0] = 3
    assert exact(score) == pytest.approx(-0.5 * (6 + 4))
    held["power"] = 3
    assert exact(score) == pytest.approx(-0.5 * (9 + 12))

    slope = 1 - np.tanh(np.array([1.0, 2.0])) ** 2
    assert exact(model.score) == pytest.approx(-slope.sum(), rel=1e-5)
    model.weights = 2 * model.weights
    slope = 1 - np.tanh(np.array([2.0, 4.0])) ** 2
    assert exact(model.score) == pytest.approx(-2 * slope.sum(), rel=1e-5)


def test_zero_is_not_minus_zero_and_one_is_not_true():
    """Numbers inside an inner program are part of what it is, to the last bit."""

    def scale_of(number):
        return lambda x: x * jax.jit(lambda y: jnp.copysign(1.0, number) + 0 * y)(x)

    x = jnp.ones(2)
    values = [curvature.trace(scale_of(n), x, method="exact").value for n in (0.0, -0.0)]
    assert [float(v) for v in values] == [2.0, -2.0]


def test_arrays_inside_an_inner_program_are_told_apart():
    def score_of(weights):
        return jax.jit(lambda x: -weights * x)

    x = jnp.ones(2)
    for weights in ([1.0, 2.0], [5.0, 2.0]):
        traces = curvature.trace(score_of(jnp.array(weights)), x, method="exact").value
        assert float(traces) == -sum(weights)


def test_a_derivative_that_somebody_wrote_is_kept():
    @jax.custom_jvp
    def twice(x):
        return 2 * x

    @twice.defjvp
    def _(primals, tangents):
        return twice(*primals), 10 * tangents[0]  # wrong on purpose: it is seen to be used

    @jax.custom_vjp
    def thrice(x):
        return 3 * x

    thrice.defvjp(lambda x: (3 * x, None), lambda _, g: (20 * g,))
    x = jnp.ones(2)
    assert float(curvature.trace(lambda x: twice(x), x, method="exact").value) == 20.0
    with pytest.raises(TypeError, match="custom_vjp"):  # which has no tangents: JAX says so
        curvature.trace(lambda x: thrice(x), x, method="exact")


def test_a_written_derivative_that_reads_what_changes_is_read_again():
    """It was answered from the program of the first call: 3, 3, 3 for 3, 6, 9."""
    held, weights = {"slope": 1.0}, np.ones(3, np.float32)

    @jax.custom_jvp
    def sine(x):
        return jnp.sin(x)

    @sine.defjvp
    def _(primals, tangents):
        return sine(*primals), held["slope"] * weights * tangents[0]

    def score(x):
        return sine(x)

    class Method:
        def score(self, x):
            return sine(x)

    method, x = Method(), jnp.array([0.5, -1.2, 2.0])
    for slope in (1.0, 2.0, 3.0, 1.0):
        held["slope"] = slope
        for function in (score, method.score):
            assert float(curvature.trace(function, x, method="exact").value) == 3 * slope
    weights[:] = 2
    assert float(curvature.trace(score, x, method="exact").value) == 6.0


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (3, "a function of one point, got int"),
        (Gaussian([0.0, 0.0], np.eye(2)), "got Gaussian: pass the .score of a density"),
        (ScorePair(Partial(jnp.sin), Partial(jnp.cos), 0.6, 0.8), r"\.conditional or .uncond"),
        (lambda x: np.sin(x), "with jax.numpy"),
    ],
)
def test_what_is_no_score(score, message):
    for call in ESTIMATORS:
        with pytest.raises(ValueError, match=message):
            call(score, jnp.ones(2))


def test_scores_of_equal_operations_are_equal_structures():
    x = jnp.ones(3)

    def structure(score):
        return jax.tree.structure(as_pytree(score, x))

    assert structure(lambda x: 2.0 * x) == structure(lambda y: -7.0 * y)
    different = [lambda x: 2.0 * x, lambda x: 2.0 + x, lambda x: x**2, lambda x: x**3,
                 lambda x: x[::-1], lambda x: jnp.roll(x, 1), lambda x: jnp.roll(x, 2),
                 lambda x: x @ jnp.ones((3, 3)), lambda x: x.sum() * jnp.ones(3)]  # fmt: skip
    assert len({structure(score) for score in different}) == len(different)
    score = Partial(jnp.multiply, 2.0)
    assert as_pytree(score, x) is score


def test_programs_of_old_structures_are_given_up():
    traced = []

    @compiled(static_argnames=("scale",))
    def apply(score, x, *, scale):
        traced.append(scale)
        return scale * score(x)

    x = jnp.ones(2)

    def run(i):
        return float(apply(Partial(lambda w, x: w * x, float(i)), x, scale=2)[0])

    assert [run(i) for i in range(20)] == [2.0 * i for i in range(20)]
    assert len(traced) == 20
    shared = Partial(jnp.multiply, 3.0)
    apply(shared, x, scale=2)
    count = len(traced)
    for i in range(40):  # the one in use stays, however many others come
        run(i)
        assert float(apply(Partial(jnp.multiply, 5.0), x, scale=2)[0]) == 10.0
    assert len(traced) == count + 40


LOOP = """
import gc, sys
import jax, jax.numpy as jnp
from jax.tree_util import Partial
from resident import growth
from sharpjax import Gaussian, ScorePair, curvature

key, x = jax.random.key(0), jnp.ones(3)
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: compiled.append(name) if name.endswith("backend_compile_duration") else 0
)
for i in range(20 + int(sys.argv[1])):
    score = {score}
    curvature.trace(score, x, key=key)
    curvature.lanczos(score, x, key=key, num_matvecs=2)
    if i == 19:
        gc.collect()
        grown, before = growth(), len(compiled)
print(grown(), len(compiled) - before)
"""


@pytest.mark.skipif(not IS_TOLD, reason="needs Linux")
@pytest.mark.parametrize(
    ("score", "calls", "compiles"),
    [
        pytest.param("lambda y: -y * (i + 1)", 1000, False, marks=pytest.mark.slow),
        pytest.param("lambda y: -y ** (i + 2)", 60, True, marks=pytest.mark.slow),
        pytest.param("Partial(lambda w, y: -w * y, 1.0)", 60, True, marks=pytest.mark.slow),
    ],
)
def test_memory_is_flat(score, calls, compiles):
    """Peak memory from call 20 on; 2.8 to 4.5 MB a call were kept for ever."""
    found = child(textwrap.dedent(LOOP.replace("{score}", score)), calls).stdout
    megabytes, programs = map(float, found.split())
    assert megabytes < 100
    assert (programs > 0) == compiles


W = jnp.array([[1.0, -0.5, 0.2], [0.3, 2.0, 0.1], [-0.4, 0.6, 1.5]])
BATTERY = {
    "scan from a number": lambda x: jax.lax.scan(lambda c, y: (c + y * 0.5, c * y), 0.0, x)[1],
    "scan over captured arrays": lambda x: jax.lax.scan(
        lambda c, w: (jnp.tanh(w @ c), 0), x, W[None])[0],
    "while": lambda x: jax.lax.while_loop(
        lambda c: c[1] < 3, lambda c: (c[0] * 0.9, c[1] + 1), (x, 0))[0],
    "while on a number": lambda x: jax.lax.while_loop(
        lambda c: c[1] < 2.5, lambda c: (jnp.sin(c[0]), c[1] + 1.0), (x, 0.0))[0],
    "fori": lambda x: jax.lax.fori_loop(0, 3, lambda i, c: c + W[i] * c * 0.1, x),
    "cond": lambda x: jax.lax.cond(x.sum() > 0.5, lambda y: y * 2.0, lambda y: y - 1.0, x),
    "cond with numbers": lambda x: x * jax.lax.cond(
        x[0] > 0.0, lambda a: a * 2.0, lambda a: a, 3.0),
    "switch": lambda x: jax.lax.switch(1, [lambda y: y, lambda y: y**2, jnp.cos], x),
    "where": lambda x: jnp.where(x > 0.5, 1.5 * x, 0.0),
    "clip": lambda x: jnp.clip(x, -0.5, 0.7),
    "powers": lambda x: x**2 + jnp.abs(x) ** 1.5 + 2.0**x,
    "logaddexp": lambda x: jnp.logaddexp(x, 0.3),
    "softplus, gelu, elu": lambda x: jax.nn.softplus(x) + jax.nn.gelu(x) + jax.nn.elu(x, 0.7),
    "norms": lambda x: x / jnp.linalg.norm(x) * jnp.sqrt(2.0),
    "solve": lambda x: jnp.linalg.solve(W, x) * 0.5,
    "gather": lambda x: x[jnp.array([2, 0, 1])] * 3.0,
    "dynamic slice": lambda x: jnp.concatenate([jax.lax.dynamic_slice(x, (1,), (2,)), x[:1]]),
    "set": lambda x: x.at[1].set(0.25).at[0].multiply(2.0),
    "fft": lambda x: jnp.fft.irfft(jnp.fft.rfft(x) * 0.5, 3),
    "random": lambda x: x * jax.random.normal(jax.random.key(3), (3,)),
    "inner jit": lambda x: jax.jit(lambda y, a: y * a)(x, 0.7) @ W,
    "vmap": lambda x: jax.vmap(lambda a, b: jnp.sin(a) * b * 0.3)(x, W[0]),
    "remat": lambda x: jax.checkpoint(lambda y: jnp.sin(y) * 0.5)(x),
    "gradient": lambda x: jax.grad(lambda y: jnp.sum(jnp.cos(y) * 0.5) ** 2)(x),
    "matrix exponential": lambda x: jax.scipy.linalg.expm(0.1 * W) @ x,
    "itself": lambda x: x,
    "constant": lambda x: jnp.ones(3),
    "infinite": lambda x: jnp.minimum(x, jnp.inf) * 1.0,
    "argsort": lambda x: x[jnp.argsort(x)],
    "einsum": lambda x: jnp.einsum("ij,j->i", W, x, precision="highest") * 0.5,
    "two numbers": lambda x: jax.lax.fori_loop(
        0, 2, lambda i, c: (c[0] * 0.5 + c[1], 0.1), (x, 0.2))[0],
}  # fmt: skip


@pytest.mark.fast_cases("fori", "cond", "scan from a number", "while")
@pytest.mark.parametrize("name", BATTERY)
def test_a_traced_function_is_the_function(name):
    """Value, tangents and, unless a loop of unknown length forbids them, cotangents."""
    score, x = BATTERY[name], jnp.array([0.3, 1.2, -0.4])
    traced, v = as_pytree(score, x), jnp.array([1.0, -2.0, 0.5])
    expected = jax.jvp(score, (x,), (v,))
    for found in (
        jax.jvp(traced, (x,), (v,)),
        jax.jit(lambda s: jax.jvp(s, (x,), (v,)))(traced),
    ):
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    J = curvature.jacobian(score, x)
    np.testing.assert_allclose(J.mv(v), expected[1], rtol=1e-6, atol=1e-6)
    dense = jax.jacfwd(score)(x)
    if "while" not in name:
        np.testing.assert_allclose(J.rmv(v), dense.T @ v, rtol=1e-5, atol=1e-6)
    batch = jnp.stack([x, 2 * x])
    found = jax.vmap(lambda x: curvature.jacobian(score, x).mv(v))(batch)
    np.testing.assert_allclose(found[0], expected[1], rtol=1e-6, atol=1e-6)
