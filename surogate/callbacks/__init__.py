"""What happens around the steps: checkpoints, progress, metrics, and what a run leaves behind."""

from surogate.callbacks.adapter_export import AdapterExport
from surogate.callbacks.checkpoints import StepCheckpoints
from surogate.callbacks.early_stop import EarlyStop
from surogate.callbacks.environment import EnvironmentRecord
from surogate.callbacks.final_validation import FinalValidation
from surogate.callbacks.gpu_telemetry import GpuTelemetry
from surogate.callbacks.health import StepHealth
from surogate.callbacks.log_file import LogFile
from surogate.callbacks.loss_plot import LossPlot
from surogate.callbacks.memory_breakdown import MemoryBreakdown
from surogate.callbacks.metrics import MetricsWriter
from surogate.callbacks.model_export import ModelExport
from surogate.callbacks.precision_canary import PrecisionCanary
from surogate.callbacks.preemption import Preemption
from surogate.callbacks.progress import ProgressLine
from surogate.callbacks.reward_plot import RewardPlot
from surogate.callbacks.rollout_metrics import RolloutMetrics, RolloutProgress
from surogate.callbacks.rollout_records import RolloutRecords
from surogate.callbacks.sample_answers import SampleAnswers
from surogate.callbacks.text_samples import TextSamples
from surogate.callbacks.time_breakdown import TimeBreakdown
from surogate.callbacks.token_budget import TokenBudget
from surogate.callbacks.wandb_run import WandbRun
from surogate.callbacks.watchdog import Watchdog

__all__ = [
    "AdapterExport",
    "EarlyStop",
    "EnvironmentRecord",
    "FinalValidation",
    "GpuTelemetry",
    "LogFile",
    "LossPlot",
    "MemoryBreakdown",
    "MetricsWriter",
    "ModelExport",
    "PrecisionCanary",
    "Preemption",
    "ProgressLine",
    "RewardPlot",
    "RolloutMetrics",
    "RolloutProgress",
    "RolloutRecords",
    "SampleAnswers",
    "StepCheckpoints",
    "StepHealth",
    "TextSamples",
    "TimeBreakdown",
    "TokenBudget",
    "WandbRun",
    "Watchdog",
]
