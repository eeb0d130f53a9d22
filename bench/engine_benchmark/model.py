"""The model that is measured: a Llama of 135 million parameters (SmolLM2's shape) with random, seeded weights, saved once.

Speed does not depend on what the weights say. `python -m engine_benchmark.model FOLDER` saves it, in bfloat16 where this CPU computes
that at speed, else in float32; config.json says which. In a process of its own, because the benchmark itself has no torch.
"""

import json
import subprocess
import sys
from pathlib import Path

from engine_benchmark.workload import VOCABULARY

PARAMETERS = "135M"
MAX_LENGTH = 16384
SEED = 0


def folder(build: Path) -> Path:
    """The saved model; takes seconds the first time."""
    saved = build / f"model-{PARAMETERS}"
    if not (saved / "config.json").is_file():
        subprocess.run([sys.executable, "-m", "engine_benchmark.model", str(saved)], check=True)
    return saved


def dtype(saved: Path) -> str:
    name = json.loads((saved / "config.json").read_bytes())["dtype"]
    return str(name)


def save(target: Path) -> None:
    """Under another name until it is complete: an interrupted run leaves nothing that looks saved."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(SEED)
    kind = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=kind)
    written = target.with_name(f"{target.name}.new")
    model.save_pretrained(written)
    written.rename(target)


if __name__ == "__main__":
    save(Path(sys.argv[1]))
