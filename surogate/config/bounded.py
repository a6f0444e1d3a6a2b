"""Numbers with bounds, for the schemas: those that jsonargparse does not bring. Their words stand in keys.py."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from jsonargparse.typing import restricted_number_type

if TYPE_CHECKING:
    StepLimit = int
    PortNumber = int
    PartFraction = float
    PositiveFraction = float
    AtLeastOne = float
else:
    StepLimit = restricted_number_type("StepLimit", int, [(">", 0), ("==", -1)], join="or")
    PortNumber = restricted_number_type("PortNumber", int, [(">", 0), ("<", 65536)])
    PartFraction = restricted_number_type("PartFraction", float, [(">=", 0), ("<", 1)])
    PositiveFraction = restricted_number_type("PositiveFraction", float, [(">", 0), ("<=", 1)])
    AtLeastOne = restricted_number_type("AtLeastOne", float, (">=", 1))


@dataclass(frozen=True)
class PlainNumbers:
    """Base of a spec whose fields have bounds: its values are plain numbers.

    jsonargparse makes numbers of classes of their own, which msgspec, and with it vLLM's engine in another process,
    refuses.
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            for plain in (int, float):
                if isinstance(value, plain) and type(value) not in (plain, bool):
                    object.__setattr__(self, field.name, plain(value))
