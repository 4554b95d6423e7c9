"""The shape of the code, read off its imports: layers, purity, one door to TLS, no sleeps, no giant modules."""

from __future__ import annotations

import ast
import graphlib
import io
import sys
import tokenize
import unittest
from collections.abc import Container, Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "nixfleet_agent"
NAME = "nixfleet_agent"

#: Lowest first; a part imports itself and the parts before it. `base` is the modules right under the package (not the
#: command line) and config.model; `top` is the command line.
LAYERS = (
    *("base", "state_machine", "proto", "trust", "config", "threads", "identity", "net"),
    *("telemetry", "journal", "artifacts", "operator", "probes", "activation"),
    *("prefetch", "hooks", "reboots", "certificates"),
    *("runtime", "local_cp", "demo", "conformance", "top"),
)
IMPURE = {"time", "threading", "queue", "os", "socket", "requests", "schedule", "OpenSSL", "logging", "subprocess"}
LONGEST_MODULE = 400
#: In lines of code: blank lines, comments and docstrings are not counted.
LONGEST_FUNCTION = 40
LONGEST_CLASS = 200
NO_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
}


def modules() -> Iterator[tuple[str, ast.Module, str]]:
    """(dotted name, tree, source) of every module of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = [NAME, *path.relative_to(PACKAGE).with_suffix("").parts]
        source = path.read_text(encoding="utf-8")
        yield ".".join(p for p in parts if p != "__init__"), ast.parse(source, str(path)), source


def imports(module: str, tree: ast.Module) -> Iterator[str]:
    """The dotted names that `module` imports anywhere, also inside functions and for type checking only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def named_modules(tree: ast.Module, known: Container[str]) -> Iterator[str]:
    """Of ``known``, those that an import names: the module of ``from package import module``, not the package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in known or node.module in known:
                    yield full if full in known else node.module


#: Calls that write a file whatever their arguments are.
WRITERS = {"write_text", "write_bytes", "touch", "truncate", "copy", "copy2", "copyfile", "copytree", "mkstemp"} | {
    "NamedTemporaryFile",
    "TemporaryFile",
    "SpooledTemporaryFile",
    "creat",
}
#: Of these the flags or the mode say it.
READ_FLAGS = {"O_RDONLY", "O_PATH", "O_DIRECTORY", "O_CLOEXEC", "O_NONBLOCK", "O_NOFOLLOW"}


def writes(tree: ast.AST) -> Iterator[str]:
    """The calls that may open a file for writing; a mode or flags that can't be read count as writing."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            if (
                (name in WRITERS and (name not in ("copy",) or owner == "shutil"))
                or (name == "open" and owner == "os" and not reads_only(node))
                or (
                    name in ("open", "fdopen")
                    and owner != "os"
                    and writing_mode(node, 0 if owner and name == "open" else 1)
                )
                or (name == "fdopen" and writing_mode(node, 1))
            ):
                yield ast.unparse(node)


def reads_only(call: ast.Call) -> bool:
    """Whether an ``os.open`` can't write: its flags are read off, or it is the null device."""
    if ast.unparse(call.args[0]) == "os.devnull":
        return True
    flags = [node for node in ast.walk(call.args[1]) if isinstance(node, (ast.Attribute, ast.Constant))]
    names = {node.attr for node in flags if isinstance(node, ast.Attribute)}
    return bool(flags) and names <= READ_FLAGS and not any(isinstance(node, ast.Constant) for node in flags)


def writing_mode(call: ast.Call, place: int) -> bool:
    """Whether the mode at ``place`` (or by its name) is another than one for reading."""
    if any(keyword.arg == "fileobj" for keyword in call.keywords) or len(call.args) > place + 1:
        return False  # an archive in memory; a method of ours that opens something else
    given = [keyword.value for keyword in call.keywords if keyword.arg == "mode"] or call.args[place : place + 1]
    return any(not isinstance(mode, ast.Constant) or not set(str(mode.value)) <= set("rbt") for mode in given)


def lines_of_code(tree: ast.Module, source: str) -> set[int]:
    """Lines with a token of the language on them: no blank lines, comments and docstrings."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return lines


def part(module: str) -> str:
    """The layer that a module of the package belongs to; "top" for the command line."""
    rest = module.split(".")[1:]
    if not rest:
        return "base"
    if rest[0] in ("cli", "commands") or rest[-1] == "__main__":
        return "top"
    if not (PACKAGE / rest[0]).is_dir():
        return "base"
    return "base" if rest[:2] == ["config", "model"] else rest[0]


def imported_parts(module: str, tree: ast.Module) -> set[str]:
    return {part(name) for name in imports(module, tree) if name.split(".")[0] == NAME and name != NAME}


class Layers(unittest.TestCase):
    def test_every_part_imports_only_what_lies_below_it(self) -> None:
        for module, tree, _ in modules():
            mine = part(module)
            with self.subTest(module=module):
                self.assertIn(mine, LAYERS, f"{module} belongs to no layer")
                allowed = set(LAYERS[: LAYERS.index(mine) + 1])
                self.assertLessEqual(imported_parts(module, tree), allowed, f"{module} reaches up")

    def test_no_module_imports_itself_through_others(self) -> None:
        """Also not inside functions or for type checking: a cycle means that two modules are one."""
        known = {module: tree for module, tree, _ in modules()}
        graph = {module: set(named_modules(tree, known)) - {module} for module, tree in known.items()}
        try:
            list(graphlib.TopologicalSorter(graph).static_order())
        except graphlib.CycleError as error:
            self.fail(f"an import cycle: {' <- '.join(error.args[1])}")

    def test_the_state_machine_is_pure_and_uses_the_standard_library_only(self) -> None:
        for module, tree, _ in modules():
            if part(module) == "state_machine":
                with self.subTest(module=module):
                    tops = {name.split(".")[0] for name in imports(module, tree)}
                    self.assertLessEqual(tops - {NAME}, sys.stdlib_module_names)
                    self.assertFalse(tops & IMPURE)

    def test_trust_is_pure(self) -> None:
        for module, tree, _ in modules():
            if part(module) == "trust":
                with self.subTest(module=module):
                    self.assertFalse({name.split(".")[0] for name in imports(module, tree)} & IMPURE)
                    calls = {
                        n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
                    }
                    self.assertNotIn("open", calls)

    def test_only_one_module_knows_openssl(self) -> None:
        users = {m for m, tree, _ in modules() if any(n.split(".")[0] == "OpenSSL" for n in imports(m, tree))}
        self.assertLessEqual(users, {f"{NAME}.net.tls", f"{NAME}.local_cp.tls"})

    def test_nothing_sleeps(self) -> None:
        """A sleep is a wait that shutdown can't interrupt."""
        for module, tree, _ in modules():
            named = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
            with self.subTest(module=module):
                self.assertNotIn("sleep", named)
                self.assertNotIn("time.sleep", set(imports(module, tree)))

    def test_one_module_opens_files_for_writing(self) -> None:
        """What root writes into a folder of somebody else's must not be led astray: the care is taken in one place.

        The demo and the control plane for tests run as who tries them, in folders of their own.
        """
        for module, tree, _ in modules():
            if module != f"{NAME}.durable" and part(module) not in ("local_cp", "demo"):
                with self.subTest(module=module):
                    self.assertEqual(sorted(set(writes(tree))), [])

    def test_each_way_to_write_a_file_is_seen(self) -> None:
        for source in (
            "open(p, 'w')",
            "p.open('ab')",
            "p.open(mode='x')",
            "open(p, mode)",
            "os.open(p, os.O_WRONLY | os.O_CREAT)",
            "os.open(p, os.O_RDWR)",
            "os.open(p, flags)",
            "p.write_text('x')",
            "p.write_bytes(b'x')",
            "p.touch()",
            "os.fdopen(d, 'w')",
            "tempfile.NamedTemporaryFile()",
            "tempfile.mkstemp()",
            "shutil.copyfile(a, b)",
            "os.truncate(p, 0)",
        ):
            with self.subTest(source):
                self.assertEqual(len(list(writes(ast.parse(source)))), 1)
        for source in ("open(p)", "p.open('rb')", "os.open(p, os.O_RDONLY | os.O_CLOEXEC)", "os.open(os.devnull, 1)"):
            with self.subTest(source):
                self.assertEqual(list(writes(ast.parse(source))), [])

    def test_no_module_is_a_giant(self) -> None:
        for module, _, source in modules():
            with self.subTest(module=module):
                self.assertLessEqual(source.count("\n"), LONGEST_MODULE)

    def test_no_file_of_the_tests_is_one_either(self) -> None:
        for path in sorted(Path(__file__).parent.rglob("*.py")):
            with self.subTest(path.name):
                self.assertLessEqual(path.read_text(encoding="utf-8").count("\n"), LONGEST_MODULE)

    def test_no_function_and_no_class_is_a_giant(self) -> None:
        for module, tree, source in modules():
            code = lines_of_code(tree, source)
            for node in ast.walk(tree):
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    most = LONGEST_FUNCTION if isinstance(node, ast.FunctionDef) else LONGEST_CLASS
                    last = node.end_lineno or 0
                    with self.subTest(module=module, name=node.name):
                        self.assertLessEqual(sum(node.lineno <= line <= last for line in code), most)


def catches_all(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(
        kind is None or (isinstance(kind, ast.Name) and kind.id in ("Exception", "BaseException")) for kind in kinds
    )


def raises_again(handler: ast.ExceptHandler) -> bool:
    """Cleaning up and passing the exception on is no catching."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


class Errors(unittest.TestCase):
    def test_only_the_worker_base_catches_everything(self) -> None:
        """An exception of a kind that nobody expected must be seen, not swallowed."""
        catching = set()
        for module, tree, _ in modules():
            for node in ast.walk(tree):
                if isinstance(node, ast.ExceptHandler) and catches_all(node) and not raises_again(node):
                    catching.add(module)
        self.assertLessEqual(catching, {f"{NAME}.threads.supervisor", f"{NAME}.cli"})


if __name__ == "__main__":
    unittest.main()
