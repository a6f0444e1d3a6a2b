"""Names for tensors that travel together; plain torch, so that whatever handles stored weights can import it.

Not here: what the numbers in them mean (reference.py).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Nf4Scales(NamedTuple):
    """The scales of 4-bit blocks, as bitsandbytes stores them; the last three only in double quantisation.

    Attributes:
        absmax: float32, one a block; or uint8 codes of it.
        levels: float32 (16,), what the 4-bit codes stand for.
        nested_absmax: float32, one for 256 absmax codes.
        nested_levels: float32 (256,), what the absmax codes stand for.
        offset: float32 scalar, added to each absmax.
    """

    absmax: Tensor
    levels: Tensor
    nested_absmax: Tensor | None = None
    nested_levels: Tensor | None = None
    offset: Tensor | None = None
