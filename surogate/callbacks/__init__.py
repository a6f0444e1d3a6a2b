"""What happens around the steps: checkpoints, progress, metrics, and what a run leaves behind."""

from surogate.callbacks.adapter_export import AdapterExport
from surogate.callbacks.checkpoints import StepCheckpoints
from surogate.callbacks.environment import EnvironmentRecord
from surogate.callbacks.final_validation import FinalValidation
from surogate.callbacks.loss_plot import LossPlot
from surogate.callbacks.metrics import MetricsWriter
from surogate.callbacks.model_export import ModelExport
from surogate.callbacks.precision_canary import PrecisionCanary
from surogate.callbacks.preemption import Preemption
from surogate.callbacks.progress import ProgressLine
from surogate.callbacks.reward_plot import RewardPlot
from surogate.callbacks.rollout_metrics import RolloutMetrics, RolloutProgress
from surogate.callbacks.rollout_records import RolloutRecords
from surogate.callbacks.text_samples import TextSamples

__all__ = [
    "AdapterExport",
    "EnvironmentRecord",
    "FinalValidation",
    "LossPlot",
    "MetricsWriter",
    "ModelExport",
    "PrecisionCanary",
    "Preemption",
    "ProgressLine",
    "RewardPlot",
    "RolloutMetrics",
    "RolloutProgress",
    "RolloutRecords",
    "StepCheckpoints",
    "TextSamples",
]
