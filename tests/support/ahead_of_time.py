"""Compile kernels for GPUs that are not here, and read from the binary what would go wrong on them.

`compile_for(target, 90)` needs no driver: Triton brings its own ptxas and cuobjdump. As a script it prints a table of
all kernels for all architectures, with whichever Triton comes first on the path, and exits with 1 if one is wrong:

    PYTHONPATH=<folder with another triton>:.:tests python -m support.ahead_of_time [architecture ...]

Results lie in TRITON_CACHE_DIR (.cache/triton); what a binary holds lies there too, under the binary's hash.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from surogate.kernels._launch import Target

CACHE = Path(os.environ.setdefault("TRITON_CACHE_DIR", str(Path(__file__).resolve().parents[2] / ".cache" / "triton")))

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
KERNEL_MODULES = ("nf4", "fp8", "fp4", "rounding")
SHARED_BYTES = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory that one block may ask for (CUDA programming guide, table of compute capabilities)."""

_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TRITON_VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])


class Binary(NamedTuple):
    """What a compiled kernel is made of.

    Attributes:
        registers: a thread.
        shared: bytes a block.
        instructions: name -> how often; `LDL` and `STL` are spilled registers.
        ptx: the source that the assembler got.
    """

    registers: int
    shared: int
    instructions: dict[str, int]
    ptx: str

    @property
    def num_instructions(self) -> int:
        return sum(self.instructions.values())

    def matches(self, pattern: str) -> bool:
        return any(re.search(pattern, name) for name in self.instructions)

    @property
    def num_spills(self) -> int:
        return sum(count for name, count in self.instructions.items() if name.split(".")[0] in {"LDL", "STL"})


def all_targets() -> dict[str, Target]:
    """Every kernel that declares a target, by `module.name`, for this version of Triton."""
    targets = {}
    for module in KERNEL_MODULES:
        for name, target in importlib.import_module(f"surogate.kernels.{module}").TARGETS.items():
            if target.from_triton <= TRITON_VERSION:
                targets[f"{module}.{name}"] = target
    return targets


def with_ones(target: Target) -> Target:
    """The target as a launch compiles it where each whole number is 1: Triton makes a constant of that one value."""
    ones = {name for name, written in target.signature.items() if written.startswith("i")}
    signature = {name: written for name, written in target.signature.items() if name not in ones}
    return target._replace(signature=signature, constants=target.constants | dict.fromkeys(ones, 1))


def _source(target: Target) -> ASTSource:
    names = target.kernel.arg_names
    types, attributes = {}, {}
    for index, name in enumerate(names):
        written, _, divisor = target.signature.get(name, "constexpr").partition(":")
        types[name] = written
        if divisor:
            attributes[(index,)] = [["tt.divisibility", int(divisor)]]
    constants = {(names.index(name),): value for name, value in target.constants.items()}
    return ASTSource(fn=target.kernel, signature=types, constexprs=constants, attrs=attributes)


def lower(target: Target, architecture: int) -> str:
    """Return a kernel in Triton's own representation: what the compiler's front end refuses, fails here, and fast."""
    gpu = GPUTarget("cuda", architecture, 32)
    backend = make_backend(gpu)
    options = backend.parse_options(dict(target.options))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions, modules = backend.get_codegen_implementation(options), backend.get_module_map()
    return str(_source(target).make_ir(gpu, options, functions, modules, context))


def compile_for(target: Target, architecture: int) -> Binary:
    """Compile one kernel for one architecture, compute capability times ten."""
    compiled = triton.compile(_source(target), target=GPUTarget("cuda", architecture, 32), options=dict(target.options))
    registers, instructions = _disassemble(compiled.asm["cubin"])
    return Binary(registers, compiled.metadata.shared, instructions, compiled.asm["ptx"])


def _disassemble(cubin: bytes) -> tuple[int, dict[str, int]]:
    kept = CACHE / "disassembled" / f"{hashlib.sha256(cubin).hexdigest()}.json"
    if kept.exists():
        registers, instructions = json.loads(kept.read_text())
        return registers, instructions
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_CUOBJDUMP), "--dump-resource-usage", "--dump-sass", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    instructions = dict(Counter(name for name in _INSTRUCTION.findall(listing) if name != "NOP"))
    found = re.search(r"REG:(\d+)", listing)
    assert found and instructions, listing[:500]
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps([int(found.group(1)), instructions]))
    return int(found.group(1)), instructions


def violations(target: Target, architecture: int, binary: Binary) -> Iterator[str]:
    """Say what is wrong with a compiled kernel."""
    if binary.num_spills:
        yield f"{binary.num_spills} instructions spill registers"
    if binary.shared > SHARED_BYTES[architecture] * 1024:
        yield f"{binary.shared} bytes of shared memory, the chip has {SHARED_BYTES[architecture]} KiB"
    for expected in (target.expected.get(0), target.expected.get(architecture)):
        if expected and not binary.matches(expected):
            yield f"no instruction matches {expected}"
    if not target.options.get("enable_fp_fusion", True):
        for inexact in (r"\bfma\.rn\.f32", r"\.ftz", r"\bdiv\.full"):
            if re.search(inexact, binary.ptx):
                yield f"{inexact} would change bits"


def compile_all(target: Target, architectures: tuple[int, ...] = ARCHITECTURES) -> dict[int, Binary]:
    """Compile for all architectures that the target claims, two at a time: most of it runs outside Python."""
    claimed = [architecture for architecture in architectures if architecture >= target.first_architecture]
    with ThreadPoolExecutor(2) as pool:
        binaries = pool.map(lambda architecture: compile_for(target, architecture), claimed)
        return dict(zip(claimed, binaries, strict=True))


def main() -> int:
    architectures = tuple(int(argument) for argument in sys.argv[1:]) or ARCHITECTURES
    num_wrong = 0
    for name, target in all_targets().items():
        for architecture, binary in compile_all(target, architectures).items():
            wrong = "; ".join(violations(target, architecture, binary))
            num_wrong += bool(wrong)
            numbers = f"{binary.registers:4} registers {binary.shared:6} shared {binary.num_instructions:5} instr."
            print(f"{name:34} sm_{architecture:<4}{numbers}  {wrong or 'ok'}", flush=True)
    print(f"triton {triton.__version__}: {num_wrong} wrong")
    return min(num_wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
