"""QuantisedCheckpoint: the tensors of a quantised checkpoint under the names of the model's own parameters.

A library stores a weight as several tensors (`X.weight_packed`, `X.weight_scale`); here they are one parameter
(`X.weight`), as it is stored or dequantised. What is not here: how each library lays them out (one file a library,
listed in methods.py), and files (the caller passes a reader of plain tensors).

The one idea: a `Method` names the parts of a weight by the endings of their names and makes a StoredWeight of them,
over the checkpoint's own bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from surogate.errors import ModelError
from surogate.quant.experts import StoredExperts
from surogate.quant.stored import StoredWeight

CODES = "codes"
"""The part of a weight that is there in any case; alone and in a float dtype, it is a weight that is not quantised."""
UNUSED = "unused"
"""Parts that say how to quantise activations, which this program does not do."""

_FLOATS = {torch.float64, torch.float32, torch.bfloat16, torch.float16}


class TensorFiles(Protocol):
    """The tensors of a folder's files, by their own names."""

    def names(self) -> set[str]:
        """Every tensor."""
        ...

    def read(self, name: str) -> Tensor:
        """Return one on the CPU; memory-mapped, so that asking for its dtype costs nothing."""
        ...


class Method(Protocol):
    """How one library lays a quantised weight out."""

    @property
    def name(self) -> str:
        """As its `quantization_config` calls it."""
        ...

    @property
    def endings(self) -> Mapping[str, tuple[str, str]]:
        """End of a tensor's name -> (end of its parameter's name, which part of it the tensor is)."""
        ...

    def store(self, parts: Parts) -> StoredWeight | StoredExperts:
        """Make a stored weight of its parts.

        Raises:
            ModelError: a part is missing or broken.
        """
        ...


class Parts:
    """The tensors that make one weight.

    Args:
        parameter: its name.
        names: name of each tensor by the part it is.
        expected: name that a tensor would have, by the part it is; for messages.
        read: gives a tensor by name.
    """

    def __init__(
        self, parameter: str, names: Mapping[str, str], expected: Mapping[str, str], read: Callable[[str], Tensor]
    ) -> None:
        self.parameter, self._names, self._expected, self._read = parameter, names, expected, read

    def __contains__(self, part: str) -> bool:
        return part in self._names

    def __getitem__(self, part: str) -> Tensor:
        if part not in self._names:
            raise ModelError(
                f"The checkpoint is incomplete: {self.parameter} is quantised, but there is no {self._expected[part]}."
            )
        return self._read(self._names[part])

    def name(self, part: str) -> str:
        """Name of the tensor that is a part."""
        return self._names[part]

    def matrix(self, part: str = CODES) -> Tensor:
        """Return a part that must have two dimensions."""
        tensor = self[part]
        if tensor.dim() != 2:
            raise ModelError(f"{self._names[part]} has shape {tuple(tensor.shape)}; a matrix was expected.")
        return tensor

    def numbers(self, part: str) -> Tensor:
        """Return scales in float32; powers of two that are stored as exponents become numbers.

        Raises:
            ModelError: they hold NaN or infinity.
        """
        tensor = self[part]
        if tensor.dtype == torch.uint8:
            tensor = tensor.view(torch.float8_e8m0fnu)
        values = tensor.float()
        self.check(bool(values.isfinite().all()), part, "holds NaN or infinity")
        return values

    def byte_codes(self, part: str, dtype: torch.dtype, nan: int) -> Tensor:
        """Return a part of one byte each, as uint8.

        Args:
            part: which.
            dtype: what it must be, if it is not uint8.
            nan: bits, all of which are set in what is not a number.

        Raises:
            ModelError: it has another dtype, or holds NaN.
        """
        tensor = self[part]
        self.check(tensor.dtype in (torch.uint8, dtype), part, f"is {_short(tensor.dtype)}, not {_short(dtype)}")
        codes = tensor.view(torch.uint8)
        self.check(not bool(((codes & nan) == nan).any()), part, "holds NaN")
        return codes

    def check(self, is_right: bool, part: str, problem: str) -> None:
        """Refuse a part that is wrong.

        Raises:
            ModelError: naming the tensor.
        """
        if not is_right:
            raise ModelError(f"The checkpoint is broken: {self._names[part]} {problem}.")


class QuantisedCheckpoint:
    """Reads parameters of a quantised checkpoint; see models.weights.TensorReader.

    Args:
        files: its tensors.
        method: how they are laid out.
    """

    def __init__(self, files: TensorFiles, method: Method) -> None:
        self._files, self._method = files, method
        self._parts: dict[str, dict[str, str]] = defaultdict(dict)
        for name in files.names():
            parameter, part = self._place(name)
            self._parts[parameter][part] = name

    def _place(self, name: str) -> tuple[str, str]:
        for ending, (parameter_ending, part) in self._method.endings.items():
            if name.endswith(ending):
                return name.removesuffix(ending) + parameter_ending, part
        return name, CODES

    def names(self) -> set[str]:
        return {name for name, parts in self._parts.items() if parts.keys() - {UNUSED}}

    def stores(self, name: str) -> bool:
        parts = self._parts[name]
        if parts.keys() - {UNUSED} != {CODES}:
            return True
        return self._files.read(parts[CODES]).dtype not in _FLOATS

    def read(self, name: str) -> Tensor:
        stored = self.read_stored(name)
        return self._files.read(self._parts[name][CODES]) if stored is None else stored.dequantize(torch.float32)

    def read_stored(self, name: str) -> StoredWeight | StoredExperts | None:
        if not self.stores(name):
            return None
        return self._method.store(Parts(name, self._parts[name], self._expected(name), self._files.read))

    def _expected(self, parameter: str) -> dict[str, str]:
        """Return the names that the tensors of a parameter would have."""
        expected = {CODES: parameter}
        for ending, (parameter_ending, part) in self._method.endings.items():
            if parameter.endswith(parameter_ending):
                expected.setdefault(part, parameter.removesuffix(parameter_ending) + ending)
        return expected


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
