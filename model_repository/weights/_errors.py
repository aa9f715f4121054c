"""What can go wrong with weights."""


class WeightsError(RuntimeError):
    """Base of every error here; its text is one line for a person."""


class WeightsMissing(WeightsError):
    """The cache holds no valid file of this set; the text says how to fetch it."""


class WeightsCorrupt(WeightsError):
    """A file is not what the registry says. The text names the file, what was expected and what was found."""

    def __init__(self, file: object, what: str, expected: object, actual: object) -> None:
        super().__init__(f"{file}: wrong {what}: expected {expected}, found {actual}")


class SourceUnavailable(WeightsError):
    """A source is not configured, not reachable or does not have the file: the next one is tried."""
