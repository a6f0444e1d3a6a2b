"""Every error that Surogate raises at a user, and nothing else.

    SurogateError
     |- ConfigError       a key, a value or a combination of keys         exit code 2
     |- DataError         a file, a row, a template, a tokenizer          exit code 3
     |- ModelError        a model or an adapter that cannot be used       exit code 4
     |- CheckpointError   a run folder or a checkpoint                    exit code 5
     |- HardwareError     something this machine cannot do                exit code 6
     |- GeneratorError    the rollout engine                              exit code 7
     `- TrainingError     a run whose steps no longer lead anywhere       exit code 8

    Stopped               no error: a signal ended the run between two steps    128 + its number

A message says what was got, what is allowed and what to do. The command line prints it without a traceback and
exits with the class's code; `assert` is for our own invariants.
"""


class SurogateError(Exception):
    """Base of all errors meant for the user."""

    exit_code = 1


class ConfigError(SurogateError, ValueError):
    """A configuration that cannot run; the message lists every problem found."""

    exit_code = 2


class DataError(SurogateError, ValueError):
    """A data source that cannot be read as described, with file and line where there is one."""

    exit_code = 3


class ModelError(SurogateError, ValueError):
    """A model or adapter that is missing, unreadable or does not fit."""

    exit_code = 4


class CheckpointError(SurogateError, ValueError):
    """A run folder or checkpoint that cannot be continued from."""

    exit_code = 5


class HardwareError(SurogateError, RuntimeError):
    """A request that this machine cannot serve."""

    exit_code = 6


class GeneratorError(SurogateError, RuntimeError):
    """The rollout engine failed or timed out."""

    exit_code = 7


class TrainingError(SurogateError, ArithmeticError):
    """A run that does not go on: its loss or gradients are not finite, or a rank has come to a standstill."""

    exit_code = 8


class Stopped(BaseException):
    """A signal ended the run where the same command continues it.

    No Exception, so that nothing on the way takes it for a failure that it could deal with.

    Args:
        signum: the signal's number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum
        self.exit_code = 128 + signum
        """As shells report a process that a signal ended."""
