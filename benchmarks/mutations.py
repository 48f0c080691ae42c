"""Mutants: small changes of one function each, found in a source and drawn by a seed.

A comparison, an operation, a constant, a default, `min` for `max`, a negated condition or result, a
check left out. Not changed: docstrings, annotations, f-strings, what an error says, logging, and
how a table looks. See mutants.py.
"""

import ast
import collections
import dataclasses
import itertools
import random
import re

OPERATORS = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.And: ("and", "or"), ast.Or: ("or", "and"),
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"),
    ast.Pow: ("**", "*"),
}  # fmt: skip
PAIRS = ("min max", "minimum maximum", "any all", "argmin argmax", "floor ceil", "sum mean")
CALLS = {a: b for pair in PAIRS for a, b in (pair.split(), pair.split()[::-1])}
LOOKS = {"dpi", "figsize", "fontsize", "indent", "no_wrap", "stacklevel", "strict"}
NUMBERS = {"Any", "Array", "ArrayLike", "float", "int", "np.ndarray"}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A change of the bytes `start` to `end` of a file."""

    file: str
    function: str
    line: int
    kind: str
    start: int
    end: int
    before: str
    after: str

    def __str__(self):
        change = " -> ".join(" ".join(text.split()) or "(nothing)" for text in self.change())
        return f"{self.file}:{self.line} {self.function}: {change}"

    def change(self):
        return self.before, self.after

    def apply(self, source):
        source = source.encode()
        if source[self.start : self.end] != self.before.encode():
            raise ValueError(f"{self.file} has changed since: {self}")
        return (source[: self.start] + self.after.encode() + source[self.end :]).decode()


class Finder(ast.NodeVisitor):
    """Every mutant of a source, by function; `found` maps a qualified name to them."""

    def __init__(self, file, source):
        self.file, self.source = file, source.encode()
        lines = self.source.splitlines(keepends=True)
        self.offsets = list(itertools.accumulate(map(len, lines), initial=0))
        self.names, self.returns, self.inside = [], "", False
        self.found = collections.defaultdict(list)
        self.visit(ast.parse(source))

    def span(self, node):
        lines = self.offsets
        start, end = lines[node.lineno - 1], lines[node.end_lineno - 1]
        return start + node.col_offset, end + node.end_col_offset

    def text(self, node):
        return self.source[slice(*self.span(node))].decode()

    def add(self, kind, start, end, after):
        if not self.inside:
            return
        before = self.source[start:end].decode()
        lost = "\n" * (before.count("\n") - after.count("\n"))  # line numbers stay
        after = after[:-1] + lost + ")" if after.endswith(")") else after + lost
        line = self.source.count(b"\n", 0, start) + 1
        name = ".".join(self.names)
        mutant = Mutant(self.file, name, line, kind, start, end, before, after)
        self.found[name].append(mutant)

    def operator(self, kind, operation, left, right):
        """The operator has no position of its own: it stands between its operands."""
        symbol, other = OPERATORS.get(type(operation), ("", ""))
        start, end = self.span(left)[1], self.span(right)[0]
        between = self.source[start:end].decode()
        if symbol and between.count(symbol) == 1:
            start += len(between[: between.index(symbol)].encode())
            self.add(kind, start, start + len(symbol), other)

    def visit_ClassDef(self, node):
        saved, self.inside = self.inside, False
        self.names.append(node.name)
        for each in node.body:
            self.visit(each)
        self.names.pop()
        self.inside = saved

    def visit_FunctionDef(self, node):
        if node.name == "__repr__":
            return
        saved = self.inside, self.returns
        self.inside, self.returns = True, node.returns and ast.unparse(node.returns)
        self.names.append(node.name)
        defaults = [each for each in node.args.defaults + node.args.kw_defaults if each]
        for each in node.decorator_list + defaults + node.body:
            self.visit(each)
        self.names.pop()
        self.inside, self.returns = saved

    def visit_AnnAssign(self, node):
        if node.value:
            self.visit(node.value)

    def visit_JoinedStr(self, node):
        """Text; before Python 3.12 its parts have no positions either."""

    def visit_Raise(self, node):
        """What an error says."""

    def visit_Expr(self, node):
        call = isinstance(node.value, ast.Call)
        if call and not ast.unparse(node.value.func).startswith(("logger.", "logging.")):
            self.add("statement", *self.span(node), "pass")
            self.generic_visit(node)

    def visit_Compare(self, node):
        for left, operation, right in zip(
            [node.left, *node.comparators], node.ops, node.comparators, strict=False
        ):
            self.operator("comparison", operation, left, right)
        self.generic_visit(node)

    def visit_BoolOp(self, node):
        for left, right in itertools.pairwise(node.values):
            self.operator("logic", node.op, left, right)
        self.generic_visit(node)

    def visit_BinOp(self, node):
        if not any(isinstance(each, ast.JoinedStr | ast.List) for each in (node.left, node.right)):
            self.operator("arithmetic", node.op, node.left, node.right)
        self.generic_visit(node)

    def visit_AugAssign(self, node):
        self.operator("arithmetic", node.op, node.target, node.value)
        self.generic_visit(node)

    def visit_UnaryOp(self, node):
        start, after = self.span(node)[0], self.span(node.operand)[0]
        if isinstance(node.op, ast.Not):
            self.add("not", start, after, "")
        elif isinstance(node.op, ast.USub):
            self.add("sign", start, start + 1, "+")
        self.generic_visit(node)

    def visit_Constant(self, node):
        value, options = node.value, []
        if isinstance(value, bool):
            options = [not value]
        elif isinstance(value, int):
            options = [{0: 1, 1: 0}.get(value, value + 1)]
        elif isinstance(value, float):
            options = [value * 2, value / 2] if value else [1.0]
        for other in options:
            self.add("constant", *self.span(node), repr(other))

    def visit_keyword(self, node):
        if node.arg in LOOKS:
            return
        if node.arg and isinstance(node.value, ast.Constant):
            start, end = self.span(node)
            rest = re.match(rb"\s*,[ ]?", self.source[end:])
            self.add("keyword", start, end + (len(rest[0]) if rest else 0), "")
        self.visit(node.value)

    def visit_Call(self, node):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in CALLS and (isinstance(node.func, ast.Attribute) or name not in ("sum", "mean")):
            end = self.span(node.func)[1]
            self.add("call", end - len(name), end, CALLS[name])
        self.generic_visit(node)

    def condition(self, node):
        twin = isinstance(node.test, ast.Compare) and isinstance(node.test.ops[0], ast.Eq)
        if not twin and not (isinstance(node.test, ast.UnaryOp)):
            self.add("condition", *self.span(node.test), f"not ({self.text(node.test)})")
        self.generic_visit(node)

    visit_If = visit_IfExp = condition

    def visit_Return(self, node):
        value = node.value
        if value and self.returns in NUMBERS and not isinstance(value, ast.Constant | ast.Tuple):
            self.add("return", *self.span(value), f"-({self.text(value)})")
        if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Mult | ast.Div):
            self.add("return", *self.span(value), f"({self.text(value.left)})")
        self.generic_visit(node)


def is_change(mutant, source):
    """Whether the result compiles, and to something else."""
    try:
        return ast.dump(ast.parse(mutant.apply(source))) != ast.dump(ast.parse(source))
    except SyntaxError:
        return False


def draw(root, packages, count, seed):
    """`count` mutants without repetition: functions first, then one of the function's changes."""
    sources, functions = {}, {}
    for path in sorted(p for package in packages for p in (root / package).rglob("*.py")):
        file = path.relative_to(root).as_posix()
        sources[file] = path.read_text()
        for name, mutants in Finder(file, sources[file]).found.items():
            functions[file, name] = mutants
    names, rng = sorted(functions), random.Random(seed)
    chosen, tried, total = [], set(), sum(map(len, functions.values()))
    while len(chosen) < count and len(tried) < total:
        mutant = rng.choice(functions[rng.choice(names)])
        if mutant not in tried and is_change(mutant, sources[mutant.file]):
            chosen.append(mutant)
        tried.add(mutant)
    return chosen
