"""Errors that are the user's to mend. Each message is one line: what, where, expected, remedy.

The third of them, `ConfigError`, lives with the configuration mechanism in `allsight.config`.
"""


class DataError(ValueError):
    """A sample or a data set cannot be used as it is; the message names the sample or file."""

    def __init__(self, message: str, sample_id: str = "") -> None:
        super().__init__(message)
        self.sample_id = sample_id

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (str(self), self.sample_id)


class CheckpointError(RuntimeError):
    """Weights or a training state cannot be read, or do not fit what they are loaded into."""
