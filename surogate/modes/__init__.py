"""Training modes: one LightningModule each, all with the same step."""

from surogate.modes.base import CausalLMModule
from surogate.modes.grpo import GrpoModule
from surogate.modes.pt import PtModule
from surogate.modes.rollout_data import RolloutDataModule
from surogate.modes.sft import SftModule
from surogate.modes.sharding import ShardedStrategy

__all__ = ["CausalLMModule", "GrpoModule", "PtModule", "RolloutDataModule", "SftModule", "ShardedStrategy"]
