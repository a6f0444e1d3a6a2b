"""FP8 weights of every library: E4M3 codes and a scale for the tensor, each row, or each tile.

Also transformers' fine-grained FP8 (`quant_method: fp8`), which DeepSeek, Qwen and others publish in. The tile is what
the configuration says it is: transformers (5.19, integrations/finegrained_fp8.py Fp8Dequantize) divides the shape of
the weight by that of the scales instead, and gets 192 rows in tiles of 128 wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from surogate.errors import ModelError
from surogate.quant.checkpoints.reading import CODES, UNUSED, Parts
from surogate.quant.fp8 import Fp8Weight

Tile = tuple[int, int]

E4M3_NAN = 0x7F
SCALE = "scale"


@dataclass(frozen=True)
class FineGrainedFp8:
    """See reading.Method.

    Attributes:
        tile: weight_block_size; None is a scale for the tensor.
    """

    tile: Tile | None
    name: ClassVar[str] = "fp8"
    endings: ClassVar[Mapping[str, tuple[str, str]]] = {
        "_scale_inv": ("", SCALE),
        ".activation_scale": (".weight", UNUSED),
        ".input_scale": (".weight", UNUSED),
    }

    @classmethod
    def of(cls, config: dict[str, Any]) -> FineGrainedFp8:
        """Read a quantization_config.

        Raises:
            ModelError: its tiles are no tiles.
        """
        return cls(as_tile(config.get("weight_block_size"), "weight_block_size"))

    def store(self, parts: Parts) -> Fp8Weight:
        """See reading.Method."""
        return fp8_weight(parts, [self.tile] if self.tile else [])


def as_tile(value: Any, key: str) -> Tile | None:
    """Read the size of a tile from a configuration.

    Raises:
        ModelError: it is not a pair of positive whole numbers.
    """
    if value is None:
        return None
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(n, int) and n > 0 for n in value):
        return value[0], value[1]
    raise ModelError(f"its {key} is {value!r}, and not a pair of whole numbers")


def fp8_weight(parts: Parts, tiles: Iterable[Tile]) -> Fp8Weight:
    """Make a stored weight of codes and scales.

    Args:
        parts: with CODES, E4M3, and SCALE: one number, one for each row, or one for each tile.
        tiles: sizes that a tile may have.

    Raises:
        ModelError: a part is missing or broken.
    """
    parts.matrix()
    codes = parts.byte_codes(CODES, torch.float8_e4m3fn, E4M3_NAN)
    parts.check(parts[CODES].dtype == torch.float8_e4m3fn, CODES, "is uint8, not float8_e4m3fn")
    rows, columns = codes.shape
    scale = parts.numbers(SCALE)
    if scale.numel() == 1:
        return Fp8Weight(codes, scale.reshape(1, 1), (rows, columns))
    for tile in (*tiles, (1, columns)):
        grid = (-(-rows // tile[0]), -(-columns // tile[1]))
        if tuple(scale.shape) == grid or (grid[1] == 1 and tuple(scale.shape) == grid[:1]):
            return Fp8Weight(codes, scale.reshape(grid), tile)
    known = ", ".join(f"{tile[0]} x {tile[1]}" for tile in tiles) or "none"
    raise ModelError(
        f"The checkpoint is broken: {parts.name(SCALE)} has shape {tuple(scale.shape)}, which is neither one scale, "
        f"nor one for each of {rows} rows, nor one for each tile ({known}) of a weight of {rows} x {columns}."
    )
