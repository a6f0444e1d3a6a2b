"""Limits that keep a file readable; past one of them a noun is usually missing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CODE = sorted((REPOSITORY / "surogate").rglob("*.py"))
TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))

MAX_LINES = {"surogate": 400, "kernels": 500, "tests": 500}
MAX_FUNCTION_LINES = 60
MAX_CLASS_LINES = 300
MAX_PARAMETERS = 8
MAX_KERNEL_LINES = 100
MAX_KERNEL_PARAMETERS = 20
"""Of a Triton kernel, whose pointers, shapes and tile sizes are parameters of their own."""
MAX_CONFIG_LINES = 40
VAGUE = {"util", "utils", "common", "helper", "helpers", "misc", "tools", "stuff"}

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def definitions(path: Path) -> Iterator[Definition]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Definition):
            yield node


def lines_of(node: Definition) -> int:
    """Lines from the signature to the end, the docstring not counted."""
    lines = node.end_lineno - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node, clean=False) is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def parameters_of(node: Definition) -> list[str]:
    if isinstance(node, ast.ClassDef):
        return []
    arguments = node.args
    names = [argument.arg for argument in arguments.posonlyargs + arguments.args + arguments.kwonlyargs]
    return [name for name in names if name not in {"self", "cls"}]


def is_kernel(node: Definition) -> bool:
    return any(ast.unparse(decorator) == "triton.jit" for decorator in node.decorator_list)


def max_lines(node: Definition) -> int:
    if isinstance(node, ast.ClassDef):
        return MAX_CLASS_LINES
    return MAX_KERNEL_LINES if is_kernel(node) else MAX_FUNCTION_LINES


def test_no_file_is_too_long():
    too_long = {}
    for path in CODE + TESTS:
        limit = MAX_LINES["kernels"] if "kernels" in path.parts else MAX_LINES[path.relative_to(REPOSITORY).parts[0]]
        lines = len(path.read_text().splitlines())
        if lines > limit:
            too_long[name_of(path)] = lines
    assert not too_long


def test_no_function_or_class_is_too_long():
    too_long = {
        f"{name_of(path)}:{node.name}": lines_of(node)
        for path in CODE
        for node in definitions(path)
        if lines_of(node) > max_lines(node)
    }
    assert not too_long


def test_no_function_takes_too_many_parameters():
    too_many = {
        f"{name_of(path)}:{node.name}": parameters_of(node)
        for path in CODE
        for node in definitions(path)
        if len(parameters_of(node)) > (MAX_KERNEL_PARAMETERS if is_kernel(node) else MAX_PARAMETERS)
    }
    assert not too_many


def test_no_module_has_a_vague_name():
    for path in CODE + TESTS:
        assert not VAGUE & {part.removesuffix(".py") for part in path.relative_to(REPOSITORY).parts}, name_of(path)


def test_no_bare_or_blanket_except():
    blanket = []
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                caught = node.type.id if isinstance(node.type, ast.Name) else node.type
                if caught in (None, "Exception", "BaseException"):
                    blanket.append(f"{name_of(path)}:{node.lineno}")
    assert not blanket


def test_a_config_fits_a_screen():
    for path in (REPOSITORY / "configs").rglob("*.yaml"):
        assert len(path.read_text().splitlines()) <= MAX_CONFIG_LINES, name_of(path)


def test_tests_are_plain_functions():
    classes = [node.name for path in TESTS for node in definitions(path) if isinstance(node, ast.ClassDef)]
    assert not [name for name in classes if name.startswith("Test")]
