"""How quantised weights are written so that transformers and vLLM load them: tensors, configuration, files.

What is not here: which layers are quantised, and the rest of a model folder (models/quantize.py).

The one idea: a `Layout` belongs to one library that already reads the format, and takes its names from there; what that
library gets wrong stays unquantised.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from surogate.kernels import reference
from surogate.quant.checkpoints.bnb import STATE_ENDING
from surogate.quant.fp4 import Fp4Weight, Nvfp4Format
from surogate.quant.fp8 import Fp8Format, Fp8Weight
from surogate.quant.nf4 import Nf4Format, Nf4Weight
from surogate.quant.stored import StorageFormat, StoredWeight


class Layout(Protocol):
    """A format and the library whose names its tensors get."""

    @property
    def storage(self) -> StorageFormat:
        """The format."""
        ...

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Return why the library would not read a matrix of this shape, or None."""
        ...

    def quantize(self, weights_RC: Sequence[Tensor]) -> Sequence[StoredWeight]:
        """Store matrices that vLLM joins to one."""
        ...

    def tensors(self, stored: Any, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the tensors of a weight, by what comes after the name of its layer.

        Args:
            stored: the weight.
            dtype: that it had before.
        """
        ...

    def config(self, kept: list[str], dtype: torch.dtype) -> dict[str, Any]:
        """Return the quantization_config.

        Args:
            kept: names of the linear layers that are not quantised.
            dtype: that the model computes in.
        """
        ...


@dataclass(frozen=True)
class BitsAndBytesLayout:
    """NF4 as bitsandbytes saves it (functional.py QuantState.as_dict(packed=True))."""

    storage: Nf4Format

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """See Layout."""
        return self.storage.misfit(shape)

    def quantize(self, weights_RC: Sequence[Tensor]) -> list[Nf4Weight]:
        """See Layout."""
        return [self.storage.quantize(weight) for weight in weights_RC]

    def tensors(self, stored: Any, dtype: torch.dtype) -> dict[str, Tensor]:
        """See Layout."""
        state: dict[str, Any] = {
            "quant_type": "nf4",
            "blocksize": stored.block_size,
            "dtype": _name(dtype),
            "shape": list(stored.shape),
        }
        tensors = {
            ".weight": stored.codes,
            ".weight.absmax": stored.absmax,
            ".weight.quant_map": stored.levels,
        }
        if stored.nested_absmax is not None:
            nested = {"nested_blocksize": reference.NESTED_BLOCK, "nested_dtype": "float32"}
            state |= {**nested, "nested_offset": stored.offset.item()}
            tensors[".weight.nested_absmax"] = stored.nested_absmax
            tensors[".weight.nested_quant_map"] = stored.nested_levels
        tensors[f"{STATE_ENDING}nf4"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        return tensors

    def config(self, kept: list[str], dtype: torch.dtype) -> dict[str, Any]:
        """See Layout."""
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": self.storage.double_quant,
            "bnb_4bit_compute_dtype": _name(dtype),
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": kept,
        }


@dataclass(frozen=True)
class FineGrainedFp8Layout:
    """FP8 as transformers' fine-grained FP8 has it, and DeepSeek and Qwen publish it.

    transformers (5.19) reads weights wrong whose dimensions are not multiples of the tile, so they stay unquantised.
    """

    storage: Fp8Format

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """See Layout."""
        size = self.storage.block_size
        if odd := [number for number in shape if number % size]:
            return f"{odd[0]} is not a multiple of {size}"
        return None

    def quantize(self, weights_RC: Sequence[Tensor]) -> list[Fp8Weight]:
        """See Layout."""
        return [self.storage.quantize(weight) for weight in weights_RC]

    def tensors(self, stored: Any, dtype: torch.dtype) -> dict[str, Tensor]:
        """See Layout."""
        return {".weight": stored.codes.view(torch.float8_e4m3fn), ".weight_scale_inv": stored.scale}

    def config(self, kept: list[str], dtype: torch.dtype) -> dict[str, Any]:
        """See Layout."""
        return {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [self.storage.block_size, self.storage.block_size],
            "modules_to_not_convert": kept,
        }


@dataclass(frozen=True)
class CompressedTensorsLayout:
    """NVFP4 as compressed-tensors packs it, weights only (its preset NVFP4A16).

    vLLM takes one tensor scale for the layers that it joins, the largest; so they share it, as llm-compressor's do.
    """

    storage: Nvfp4Format

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """See Layout."""
        return self.storage.misfit(shape)

    def quantize(self, weights_RC: Sequence[Tensor]) -> list[Fp4Weight]:
        """See Layout."""
        scales = [reference.nvfp4_global_scale(weight, self.storage.four_over_six) for weight in weights_RC]
        shared = torch.stack(scales).amin(0)
        return [self.storage.quantize(weight, shared) for weight in weights_RC]

    def tensors(self, stored: Any, dtype: torch.dtype) -> dict[str, Tensor]:
        """See Layout."""
        return {
            ".weight_packed": stored.codes,
            ".weight_scale": stored.scale.view(torch.float8_e4m3fn),
            ".weight_global_scale": stored.tensor_scale.clone(),  # a file holds no tensor twice
        }

    def config(self, kept: list[str], dtype: torch.dtype) -> dict[str, Any]:
        """See Layout."""
        weights = {
            "num_bits": 4,
            "type": "float",
            "strategy": "tensor_group",
            "group_size": reference.NVFP4_BLOCK,
            "symmetric": True,
            "dynamic": False,
            "scale_dtype": "torch.float8_e4m3fn",
            "zp_dtype": "torch.float8_e4m3fn",
        }
        group = {"targets": ["Linear"], "weights": weights, "format": "nvfp4-pack-quantized"}
        return {
            "quant_method": "compressed-tensors",
            "format": "nvfp4-pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": kept,
        }


MAX_SHARD_BYTES = 5_000_000_000


@dataclass
class ShardWriter:
    """Writes tensors to `model.safetensors`, or to several files and their index where there are too many for one.

    Args:
        folder: an empty one.
        max_bytes: of a file; a tensor is never cut.
    """

    folder: Path
    max_bytes: int = MAX_SHARD_BYTES
    num_bytes: int = 0
    _waiting: dict[str, Tensor] = field(default_factory=dict)
    _waiting_bytes: int = 0
    _shards: list[list[str]] = field(default_factory=list)

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Take tensors; they reach the disk when a file is full, or at the end."""
        for name, tensor in tensors.items():
            if self._waiting and self._waiting_bytes + tensor.nbytes > self.max_bytes:
                self._flush()
            self._waiting[name] = tensor.detach().cpu().contiguous()
            self._waiting_bytes += tensor.nbytes
            self.num_bytes += tensor.nbytes

    def close(self) -> None:
        """Write what is left, and the index."""
        self._flush()
        if len(self._shards) == 1:
            self._file(0).rename(self.folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for index, names in enumerate(self._shards):
            name = f"model-{index + 1:05}-of-{len(self._shards):05}.safetensors"
            self._file(index).rename(self.folder / name)
            weight_map |= dict.fromkeys(names, name)
        content = {"metadata": {"total_size": self.num_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2) + "\n")

    def _flush(self) -> None:
        from safetensors.torch import save_file

        save_file(self._waiting, self._file(len(self._shards)), metadata={"format": "pt"})
        self._shards.append(list(self._waiting))
        self._waiting, self._waiting_bytes = {}, 0

    def _file(self, index: int) -> Path:
        return self.folder / f"model-{index + 1:05}.safetensors"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
