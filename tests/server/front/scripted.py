"""An engine in whatever state a test says: for what no real one can be brought to do on purpose."""

from millrace_server.engine.handle import EngineHandle, Loading, Serving, State
from millrace_server.engine.messages import Ready, Submit
from millrace_server.engine.stream import RequestStream
from millrace_server.inference import Inference
from millrace_server.lifecycle import Lifecycle
from millrace_server.settings import ServerSettings

READY = Ready(device="cpu", dtype="float32", slots=2, max_length=64, vocabulary=259, eos_token_ids=[256], revision="r", digest="r")


class ScriptedEngine(EngineHandle):
    scripted: State = Loading("spawn", 0, 1, 0)
    surprise: Exception | None = None
    """What `submit` raises."""

    def __init__(self, settings: ServerSettings) -> None:
        super().__init__(settings, {})
        self.submitted: list[Submit] = []

    @property
    def state(self) -> State:
        return self.scripted

    def submit(self, request: Submit) -> RequestStream:
        self.submitted.append(request)
        if self.surprise is not None:
            raise self.surprise
        return RequestStream(request)


def inference(state: State | None = None, **settings: object) -> tuple[Inference, ScriptedEngine]:
    """Everything but HTTP and a real engine."""
    read = ServerSettings.model_validate({"MODEL_NAME": "tiny", **settings})
    engine = ScriptedEngine(read)
    engine.scripted = state or Serving(READY)
    return Lifecycle.inference(read, engine), engine
