"""Ways in which an engine fails as a whole: what it cannot serve, and what it cannot go on with."""

from millrace_server.engine.messages import Failed

EXIT_CANNOT_SERVE = 3
"""The engine process said Failed: starting it again with the same model and settings ends the same way."""
EXIT_DEVICE_LOST = 70
"""The device or the weights in its memory are broken for this process (EX_SOFTWARE of sysexits.h): another process may serve."""


class CannotServe(Exception):
    """The engine gives up for good. `cause` is one CamelCase word, `hint` a sentence with the next step."""

    def __init__(self, stage: str, cause: str, hint: str) -> None:
        super().__init__(f"{cause} while {stage}: {hint}")
        self.failed = Failed(stage=stage, cause=cause, hint=hint)


def unsupported(why: str) -> CannotServe:
    return CannotServe("inspect", "UnsupportedArchitecture", f"{why}; choose a decoder-only model such as Llama, Qwen, Mistral or GPT-2")


class StepOutOfMemory(Exception):
    """The device's memory did not suffice for a step. What the KV cache holds is not to be trusted any more."""


class DeviceLost(Exception):
    """No step can be computed in this process any more, whoever is in it."""
