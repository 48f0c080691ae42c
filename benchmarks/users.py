"""Which test files use which module of a package, by what they import. See mutants.py."""

import ast
import re


def uses(tree, imports=None):
    """Dotted names that some code imports, or reaches from what `imports` (or it) imports."""
    names = {}
    for node in ast.walk(imports or tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Name | ast.Attribute):
            root, *rest = ast.unparse(node).split(".")
            if root in names:
                found.add(".".join([names[root], *rest]))
    return found


class Users:
    """Which test files use which module, by their imports."""

    def __init__(self, root, package):
        self.modules, self.exports = {}, {}
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            self.modules[name] = ast.parse(path.read_text())
            for node in self.modules[name].body if parts[-1] == "__init__" else ():
                if isinstance(node, ast.ImportFrom):
                    for alias in node.names:
                        exported = f"{name}.{alias.asname or alias.name}"
                        self.exports[exported] = f"{node.module}.{alias.name}"
        self.imports = {name: self.used(uses(tree)) for name, tree in self.modules.items()}
        self.files = {path: ast.parse(path.read_text()) for path in root.glob("tests/test_*.py")}
        direct = {path: self.used(uses(tree)) for path, tree in self.files.items()}
        fixtures = self.fixtures(root / "tests" / "conftest.py")
        self.users = {
            path: direct[path].union(*(fixtures.get(name, ()) for name in arguments(tree)))
            for path, tree in self.files.items()
        }
        self.direct = direct

    def owner(self, name):
        """The module that a dotted name is defined in, through what packages import from others."""
        module, *rest = name.split(".")
        for part in rest:
            full = f"{module}.{part}"
            target = self.exports.get(full, full)
            if target in self.modules:
                module = target
            elif target in self.exports:  # passed on twice
                return self.owner(target)
            else:
                return target.rpartition(".")[0]
        return module

    def used(self, names):
        return {self.owner(name) for name in names} & self.modules.keys()

    def fixtures(self, path):
        """Modules that each fixture of conftest.py uses, itself or through another."""
        tree = ast.parse(path.read_text()) if path.is_file() else ast.parse("")
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        found = {name: self.used(uses(node, imports=tree)) for name, node in functions.items()}
        for name, node in functions.items():
            found[name] = found[name].union(*(found.get(other, ()) for other in arguments(node)))
        return found

    def __call__(self, mutant, *, everything=False):
        """Test files for a mutant, most direct first."""
        module = mutant.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        seen = {module}
        levels = [
            {module}
        ]  # modules by their distance: those that import it, those that import these
        while levels[-1]:
            near = {name for name, used in self.imports.items() if used & levels[-1]} - seen
            seen |= near
            levels.append(near)
        found = {}
        for distance, near in enumerate(levels):
            for path, used in self.users.items():
                if used & near:
                    found.setdefault(path, distance)
            if found and (not everything or distance >= 1):
                break
        name = mutant.function.split(".")[-1] if "." not in mutant.function else ""
        named = re.compile(rf"\b{re.escape(name or mutant.function.split('.')[0])}\b")

        def rank(path):
            text, module_name = path.read_text(), module.split(".")[-1]
            through_fixture = found[path] == 0 and module not in self.direct[path]
            return (
                found[path], through_fixture, path.stem != f"test_{module_name}",
                named.search(text) is None, text.count("\n"), path.name,
            )  # fmt: skip

        return sorted(found, key=rank)


def arguments(tree):
    """Names of all arguments of functions: fixtures are among them."""
    return {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
