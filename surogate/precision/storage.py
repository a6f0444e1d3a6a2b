"""Storage plugins: frozen linear weights in NF4, FP8 or NVFP4, adapters on top in their own dtype.

Each takes a recipe as well, since Lightning knows one Precision plugin a run: how weights are stored and how products
are computed are two axes, and this is where they meet. In a nested configuration:

    trainer:
      plugins:
        - class_path: surogate.precision.Nf4Precision
          init_args: {block_size: 64}
"""

from __future__ import annotations

from typing import Any, Literal

from jsonargparse.typing import NonNegativeInt

from surogate.precision.base import RecipePrecision
from surogate.quant.convert import Skip
from surogate.quant.fp4 import Nvfp4Format
from surogate.quant.fp8 import Fp8Format
from surogate.quant.nf4 import Nf4Format
from surogate.quant.stored import StorageFormat


class StoragePrecision(RecipePrecision):
    """What the storage plugins share.

    Args:
        storage: the format.
        skip_first_layers: decoder layers at the front that stay as they are.
        skip_last_layers: decoder layers at the end that stay as they are.
        skip_modules: further layers that stay: names, ends of names or regular expressions.
        recipe: name or path of a recipe (recipes/).
        recipe_options: fields of the recipe that differ from the file's.
    """

    defers_loading = True

    def __init__(
        self,
        storage: StorageFormat,
        skip_first_layers: int,
        skip_last_layers: int,
        skip_modules: list[str] | None,
        recipe: str,
        recipe_options: dict[str, Any] | None,
    ) -> None:
        super().__init__(recipe, recipe_options)
        self.storage = storage
        self.skip = Skip(
            first_layers=skip_first_layers, last_layers=skip_last_layers, modules=tuple(skip_modules or ())
        )


class Nf4Precision(StoragePrecision):
    """Store frozen linear weights in bitsandbytes' NF4.

    Args:
        block_size: elements that share a scale.
        double_quant: store the scales in 8 bits too.
        skip_first_layers: decoder layers at the front that stay as they are.
        skip_last_layers: decoder layers at the end that stay as they are.
        skip_modules: further layers that stay: names, ends of names or regular expressions.
        recipe: name or path of a recipe (recipes/).
        recipe_options: fields of the recipe that differ from the file's.
    """

    def __init__(
        self,
        block_size: Literal[64, 128, 256, 512] = 64,
        double_quant: bool = True,
        skip_first_layers: NonNegativeInt = 0,
        skip_last_layers: NonNegativeInt = 0,
        skip_modules: list[str] | None = None,
        recipe: str = "bf16",
        recipe_options: dict[str, Any] | None = None,
    ) -> None:
        storage = Nf4Format(block_size=block_size, double_quant=double_quant)
        super().__init__(storage, skip_first_layers, skip_last_layers, skip_modules, recipe, recipe_options)


class Fp8Precision(StoragePrecision):
    """Store frozen linear weights in FP8 (E4M3), a float32 scale for each square tile.

    Args:
        block_size: rows and columns of a tile.
        skip_first_layers: decoder layers at the front that stay as they are.
        skip_last_layers: decoder layers at the end that stay as they are.
        skip_modules: further layers that stay: names, ends of names or regular expressions.
        recipe: name or path of a recipe (recipes/).
        recipe_options: fields of the recipe that differ from the file's.
    """

    def __init__(
        self,
        block_size: Literal[64, 128, 256] = 128,
        skip_first_layers: NonNegativeInt = 0,
        skip_last_layers: NonNegativeInt = 0,
        skip_modules: list[str] | None = None,
        recipe: str = "bf16",
        recipe_options: dict[str, Any] | None = None,
    ) -> None:
        storage = Fp8Format(block_size=block_size)
        super().__init__(storage, skip_first_layers, skip_last_layers, skip_modules, recipe, recipe_options)


class Nvfp4Precision(StoragePrecision):
    """Store frozen linear weights in NVFP4, on any device: where the chip lacks the type, it is storage only.

    Args:
        four_over_six: let each block of 16 end at 4 or at 6, whichever errs less.
        skip_first_layers: decoder layers at the front that stay as they are.
        skip_last_layers: decoder layers at the end that stay as they are.
        skip_modules: further layers that stay: names, ends of names or regular expressions.
        recipe: name or path of a recipe (recipes/).
        recipe_options: fields of the recipe that differ from the file's.
    """

    def __init__(
        self,
        four_over_six: bool = True,
        skip_first_layers: NonNegativeInt = 0,
        skip_last_layers: NonNegativeInt = 0,
        skip_modules: list[str] | None = None,
        recipe: str = "bf16",
        recipe_options: dict[str, Any] | None = None,
    ) -> None:
        storage = Nvfp4Format(four_over_six=four_over_six)
        super().__init__(storage, skip_first_layers, skip_last_layers, skip_modules, recipe, recipe_options)
