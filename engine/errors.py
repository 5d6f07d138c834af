"""Errors a person can act on, each with the exit code the command line returns for it.

A message is one line: what was wrong, where, and what to do next. Anything that is not an
`EngineError` is a defect of the program and exits with 1.
"""


class EngineError(Exception):
    """Base of every error that is reported as one line instead of a traceback."""

    exit_code = 1


class ConfigError(EngineError):
    """Bad usage or configuration."""

    exit_code = 2


class DataError(EngineError):
    """Bad data: a dataset, an input file or a text."""

    exit_code = 3


class MemoryBudgetError(EngineError):
    """The device or the host has too little memory for what was asked."""

    exit_code = 4


class EnvironmentProblem(EngineError):
    """The machine lacks something: a library, a driver, disk space."""

    exit_code = 5


class StopRequested(EngineError):
    """The run was asked to stop, has saved itself and can be resumed.

    what: what happened, which is all that others than the command line show · command: goes on with it.
    """

    exit_code = 75

    def __init__(self, what: str, command: str = "") -> None:
        super().__init__(f"{what}; go on with `{command}`" if command else what)
        self.what = what


def reason(error: BaseException) -> str:
    """What an error of a library says, on one line that is not too long; its name where it says nothing."""
    first = next(iter(str(error).splitlines()), "").strip() or type(error).__name__
    return first if len(first) <= 200 else first[:199] + "…"
