r"""Compiled programs: one for all scores that compute alike, and none that is kept for ever.

`jax.jit` keys what it has compiled by the function object, or by the structure of a pytree that
holds one. Both go wrong for what users write first, `trace(lambda x: -x * a, x)` in a loop: every
lambda is a function of its own, so each is compiled, and the programs of all of them are kept.
And a bound method or a module's function, compiled once, would be answered from a stale program
when what it reads has changed.

So a score that is a plain callable is *traced* at each call, which costs as much Python as running
it, and what is compiled is keyed by what it computes (`as_pytree`): the arrays and the real
numbers that it closes over are arguments of the program, whatever else it does is its identity.
And programs are kept for a limited number of structures, the latest used (`compiled`).
"""

import collections
import functools
import inspect
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from sharpjax._types import Array, Score

_KEPT = 16  # structures whose programs a function keeps: 1 to 5 MB each


def compiled(
    function: Callable[..., Any] | None = None, *, static_argnames: tuple[str, ...] = ()
) -> Callable[..., Any]:
    """`jax.jit`, which forgets the structures of arguments that were not used lately.

    The structure of a Jacobian or of a score holds the function that it came from. A `jax.jit` of
    its own for each structure and each set of static arguments is given up as a whole, and JAX
    frees what it had compiled.
    """
    if function is None:
        return functools.partial(compiled, static_argnames=static_argnames)
    names = tuple(inspect.signature(function).parameters)
    kept: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()

    def program(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given = dict(zip(names, args, strict=False)) | kwargs
        static = {name: given.pop(name) for name in static_argnames if name in given}
        key = (jax.tree.structure(given), tuple(static.items()))
        if key not in kept:
            # What is static is held by this function object alone, which goes with the program.
            kept[key] = jax.jit(functools.wraps(function)(lambda **k: function(**k, **static)))
        kept.move_to_end(key)
        if len(kept) > _KEPT:
            kept.popitem(last=False)
        return kept[key], given

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        run, given = program(args, kwargs)
        return run(**given)

    def lower(*args: Any, **kwargs: Any) -> Any:
        run, given = program(args, kwargs)
        return run.lower(**given)

    call.lower = lower  # type: ignore[attr-defined]
    return call


def as_pytree(score: Any, x: Array) -> Any:
    """The score as a pytree callable, which crosses `jit` as an argument.

    One that is a pytree already (`jax.tree_util.Partial`, a module) is returned as it is. A plain
    callable is traced at `x`: two that compute alike have the same structure, and differ in their
    leaves.

    Raises:
        ValueError: no function, or one that NumPy computes.
    """
    if not callable(score):
        raise ValueError(
            f"A score is a function of one point, got {type(score).__name__}: pass the .score of a "
            "density, the .conditional or .unconditional of a pair"
        )
    if not jax.tree_util.all_leaves([score]):
        return score
    # A function object of its own, as JAX keeps the traces of one that it has met.
    try:
        traced, shape = jax.make_jaxpr(lambda x: score(x), return_shape=True)(x)
    except jax.errors.TracerArrayConversionError as error:
        raise ValueError(
            "The score makes NumPy arrays of what JAX traces and differentiates: write its "
            "operations with jax.numpy"
        ) from error
    program = _Program(
        traced.jaxpr, jax.tree.structure(shape), functools.partial(_derivative, score, x)
    )
    return jax.tree_util.Partial(program, traced.consts, program.numbers())


def _derivative(score: Score, x: Array) -> jex.ClosedJaxpr:
    """`v -> J v`, traced."""
    return jax.make_jaxpr(lambda x, v: jax.jvp(score, (x,), (v,)))(x, jnp.zeros_like(x))


class _Program:
    """What a score computes, less the arrays and numbers that it takes from elsewhere.

    Equal to another with the same operations, and so are the structures that hold them.
    """

    def __init__(self, jaxpr: jex.Jaxpr, structure: Any, derivative: Callable[[], jex.ClosedJaxpr]):
        self._jaxpr, self._structure = jaxpr, structure
        signature = _Signature()
        self._key = (signature.of(jaxpr, lifts=True), structure, signature.rules(derivative))
        self._hash = hash(self._key)

    def __call__(self, constants: list[Array], numbers: list[Array], x: Array) -> Any:
        given = iter(numbers)

        def read(literal: jex.Literal) -> Any:
            return next(given) if _is_number(literal) else literal.val

        return self._structure.unflatten(evaluate(self._jaxpr, constants, [x], read=read))

    def numbers(self) -> list[Array]:
        """The real numbers among the operands, in order: 0.5 in `0.5 * x`."""
        kept: list[Any] = [v for v in _literals(self._jaxpr) if _is_number(v)]
        return [jnp.asarray(v.val, v.aval.dtype) for v in kept]

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _Program) and self._key == other._key)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"a score of {len(self._jaxpr.eqns)} operations"


def evaluate(
    jaxpr: jex.Jaxpr,
    constants: list[Any],
    arguments: list[Any],
    *,
    read: Callable[[jex.Literal], Any] = lambda literal: literal.val,
    bind: Callable[[jex.JaxprEqn, list[Any]], Any] | None = None,
) -> list[Any]:
    """Run a traced function, operation by operation, in the mesh around this call.

    Args:
        jaxpr: of the function.
        constants: the values of its `constvars`.
        arguments: those of its `invars`.
        read: what a literal operand stands for; they are met in the order of `_literals`.
        bind: an equation's results from its operands, or None to let it run as it is.
    """
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))

    def value(atom: Any) -> Any:
        return read(atom) if isinstance(atom, jex.Literal) else known[atom]

    for equation in jaxpr.eqns:
        inputs = [value(atom) for atom in equation.invars]
        outputs = None if bind is None else bind(equation, inputs)
        if outputs is None:
            params = equation.primitive.get_bind_params(equation.params)
            outputs = equation.primitive.bind(*inputs, **params)
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        known.update(zip(equation.outvars, outputs, strict=True))
    return [value(atom) for atom in jaxpr.outvars]


def _literals(jaxpr: jex.Jaxpr) -> Iterator[jex.Literal]:
    for atoms in [*(equation.invars for equation in jaxpr.eqns), jaxpr.outvars]:
        yield from (atom for atom in atoms if isinstance(atom, jex.Literal))


def _is_number(literal: jex.Literal) -> bool:
    """A real number; whole ones are left in the program, as XLA makes use of known indices."""
    kind: Any = literal.aval
    return kind.shape == () and jnp.issubdtype(kind.dtype, jnp.floating)


class _Identity:
    """Equal to itself alone; holds on to the object, whose id is then not given to another."""

    def __init__(self, held: Any):
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.held is other.held

    def __hash__(self) -> int:
        return id(self.held)


class _Signature:
    """What is computed, as a value with an equality."""

    _RULES = ("custom_jvp_call", "custom_vjp_call")  # whose derivative is a function of Python

    def __init__(self) -> None:
        self._has_rules = False

    def rules(self, derivative: Callable[[], jex.ClosedJaxpr]) -> Hashable:
        """What derivatives compute that somebody wrote (`jax.custom_jvp`), as in `jax.nn.relu`.

        Such a rule is a function made anew at each trace, and may read what has changed: so it is
        known by the operations, arrays and numbers that it comes to.
        """
        if not self._has_rules:
            return None
        try:
            return self._value(derivative())
        except TypeError:  # custom_vjp has no tangents, of which JAX will tell
            return _Identity(derivative)

    def of(self, jaxpr: jex.Jaxpr, *, lifts: bool = False) -> Hashable:
        """`lifts`: real numbers among the operands are arguments, so any will do."""
        names: dict[Any, int] = {}

        def atom(it: Any) -> Hashable:
            if not isinstance(it, jex.Literal):
                return names.setdefault(it, len(names)), it.aval
            if lifts and _is_number(it):
                return "number", it.aval
            return it.aval, np.asarray(it.val).tobytes()

        def row(atoms: Any) -> Hashable:
            return tuple(map(atom, atoms))

        arguments = row([*jaxpr.constvars, *jaxpr.invars])
        equations = tuple(
            (e.primitive, row(e.invars), row(e.outvars), self._params(e.primitive.name, e.params))
            for e in jaxpr.eqns
        )
        return arguments, equations, row(jaxpr.outvars)

    def _params(self, name: str, params: dict[str, Any]) -> Hashable:
        if name in self._RULES:
            self._has_rules = True
            told = jex.ClosedJaxpr | bool | int | str
            params = {k: v for k, v in params.items() if isinstance(v, told)}
        return tuple((k, self._value(v)) for k, v in sorted(params.items()))

    def _constant(self, value: Any) -> Hashable:
        """An array by itself, or by its numbers if these may change."""
        return _Identity(value) if isinstance(value, jax.Array) else self._value(np.asarray(value))

    def _value(self, value: Any) -> Hashable:
        if isinstance(value, jex.ClosedJaxpr):
            return self.of(value.jaxpr), tuple(map(self._constant, value.consts))
        if isinstance(value, jex.Jaxpr):
            return self.of(value)
        if isinstance(value, tuple | list):
            return type(value), tuple(map(self._value, value))
        if isinstance(value, dict):
            return tuple((k, self._value(v)) for k, v in value.items())
        if isinstance(value, np.ndarray | np.generic | float | complex):  # 0. == -0., True == 1
            return str(np.asarray(value).dtype), np.shape(value), np.asarray(value).tobytes()
        try:
            hash(value)
        except TypeError:
            return _Identity(value)
        return type(value), value
