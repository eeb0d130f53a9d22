"""Why an engine cannot serve: one exception that travels to the front as a Failed message."""

from millrace_server.engine.messages import Failed

EXIT_CANNOT_SERVE = 3
"""The engine process said Failed: starting it again with the same model and settings ends the same way."""


class CannotServe(Exception):
    """The engine gives up for good. `cause` is one CamelCase word, `hint` a sentence with the next step."""

    def __init__(self, stage: str, cause: str, hint: str) -> None:
        super().__init__(f"{cause} while {stage}: {hint}")
        self.failed = Failed(stage=stage, cause=cause, hint=hint)
