"""Who may import whom: the drawing of the house, as a table.

A module is matched by its longest prefix in the table; what is not in the table fails, so that a new module has to find
its place first.
"""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "surogate"

SPECS = {"errors", "foreign", "locations", "config", "chips", "disk_space", "ranks", "stop_signals"}
"""What every part may read: errors, how foreign code is run, where things lie, the specs, what chips can do, what fits
on a disk, which process this is, and who was told to stop."""

ALLOWED = {
    "": set(),
    "errors": set(),
    "batches": set(),
    "locations": {"errors"},
    "chips": set(),
    "disk_space": set(),
    "ranks": set(),
    "stop_signals": {"errors", "ranks"},
    "run_lock": {"errors", "ranks"},
    "run_folder": {"errors", "run_lock"},
    "foreign": set(),
    "metrics": set(),
    "report": {"errors", "run_folder", "metrics", "visible_text", "html_page"},
    "config": {"errors", "foreign", "locations"},
    "kernels": {"errors", "chips"},
    "quant": SPECS | {"kernels"},
    "losses": SPECS | {"batches", "kernels"},
    "data": SPECS | {"batches"},
    "visible_text": set(),
    "html_page": {"visible_text"},
    "inspection": SPECS | {"batches", "data", "visible_text", "html_page"},
    "models": SPECS | {"batches", "run_folder", "quant"},
    "precision": SPECS | {"kernels", "quant", "models.weights"},
    "rl": SPECS | {"batches", "losses"},
    "rl.environments": SPECS | {"rl", "data.sources", "data.files"},
    "modes": SPECS | {"batches", "losses", "models", "precision", "rl"},
    "modes.rollout_data": SPECS | {"rl", "modes", "data.tokenizers"},
    "callbacks": SPECS
    | {"run_folder", "metrics", "batches", "modes", "quant", "models.originals", "rl.types", "machine.host"},
    "machine": SPECS | {"rl.generators.checks"},
    "verification": SPECS | {"batches", "run_folder", "metrics", "models", "modes", "callbacks"},
    "quickstart": SPECS | {"run_folder", "data", "models"},
    "cli": {"*"},
    "__main__": {"cli"},
}
"""Part of the package -> parts that it may import, besides itself."""

ONLY_IN = {
    "lightning": {"precision", "modes", "callbacks", "verification", "data.datamodule", "cli"},
    "peft": {"models.lora"},
    "bitsandbytes": {"quant.nf4", "modes.optimizers"},
    "datasets": {"data.sources"},
    "vllm": {"rl.generators"},
    "verifiers": {"rl.environments.verifiers_env", "rl.environments.verifiers_settings"},
    "renderers": {"rl.environments.verifiers_settings", "rl.environments.verifiers_renderer"},
    "wandb": {"callbacks.wandb_run", "cli.dashboard"},
    "wandb_workspaces": {"report.workspace"},
}
"""Library -> the parts that may import it."""

WITHOUT_TORCH = {
    *(
        "",
        "errors",
        "foreign",
        "locations",
        "chips",
        "ranks",
        "visible_text",
        "html_page",
        "run_lock",
        "run_folder",
        "config",
        "machine",
        "metrics",
        "report",
        "cli.main",
    ),
}
"""Parts that a login node must be able to run."""
TORCH_FAMILY = {"torch", "lightning", "transformers", "peft", "torchmetrics", "accelerate", "datasets", "numpy"}


def module_name(path: Path) -> str:
    """`surogate/data/packing.py` -> `data.packing`; the package itself -> ``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, *, at_import_time: bool = False) -> set[str]:
    """Full names that a file imports, anywhere in it or only when it is loaded."""
    found = set()
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_type_checking(node)
        if not (at_import_time and lazy):
            todo.extend(ast.iter_child_nodes(node))
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def within(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def allowed_for(name: str) -> set[str]:
    own = [part for part in ALLOWED if (within(name, part) if part else name == "")]
    assert own, f"surogate.{name} is in no part of the table: give it a place"
    part = max(own, key=len)
    return ALLOWED[part] | {part}


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def test_a_module_imports_only_what_lies_below_it():
    wrong = []
    for name, path in MODULES.items():
        allowed = allowed_for(name)
        for imported in imports_of(path):
            target = imported.removeprefix("surogate.")
            if target == imported or "*" in allowed:
                continue
            if not any(within(target, part) for part in allowed if part):
                wrong.append(f"surogate.{name} imports surogate.{target}; it may import {sorted(allowed)}")
    assert not wrong


def test_a_library_is_imported_only_where_it_belongs():
    wrong = []
    for name, path in MODULES.items():
        for library in {imported.split(".")[0] for imported in imports_of(path)} & ONLY_IN.keys():
            if not any(within(name, part) for part in ONLY_IN[library]):
                wrong.append(f"surogate.{name} imports {library}, which belongs in {sorted(ONLY_IN[library])}")
    assert not wrong


def test_light_modules_load_no_torch():
    for name, path in MODULES.items():
        if any(within(name, part) if part else name == "" for part in WITHOUT_TORCH):
            heavy = {imported.split(".")[0] for imported in imports_of(path, at_import_time=True)} & TORCH_FAMILY
            assert not heavy, f"surogate.{name} loads {sorted(heavy)} when it is imported"


def test_every_part_of_the_table_exists():
    assert not {part for part in ALLOWED if part and not any(within(name, part) for name in MODULES)}
