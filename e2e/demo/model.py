"""The demo model's folder: trained once, then found in the cache under the hash of the sources that define it.

`python -m demo.model` trains it when needed and prints the folder.
"""

import hashlib
from pathlib import Path

from cluster import cache

SOURCES = ("data.py", "model.py", "muon.py", "prompts.py", "tokenizer.py", "train.py")
NAME = "millrace-demo"
"""What clients call it."""


class TrainingFailed(RuntimeError):
    """After the last round too many held-out prompts were answered wrongly."""


def folder() -> Path:
    """The folder with config.json, generation_config.json, tokenizer.json, tokenizer_config.json and model.safetensors (fp32)."""
    return cache.folder(f"demo-model-{sources_hash()}", _train_into)


def sources_hash() -> str:
    digest = hashlib.sha256()
    for name in SOURCES:
        content = (Path(__file__).parent / name).read_bytes()
        digest.update(f"{name}:{len(content)}:".encode() + content)
    return digest.hexdigest()[:16]


def _train_into(target: Path) -> None:
    # PyTorch and transformers take seconds to import, which a cached model does not need.
    from demo import tokenizer, train
    from demo.data import lessons

    print("demo model: training (a minute and a half on two free cores, once)", flush=True)
    train.train(lessons()).save_pretrained(target)
    tokenizer.save(tokenizer.build(), target, max_length=train.MAX_LENGTH)


if __name__ == "__main__":
    print(folder())
