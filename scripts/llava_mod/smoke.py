"""Configs of the smoke size: a tower, a student, and a teacher twice as wide. ``run.sh`` composes random models from them."""

import argparse
import json
from pathlib import Path

TOWER = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWER |= {"image_size": 56, "patch_size": 14, "projection_dim": 32}


def language_model(width: int) -> dict[str, object]:
    """A Qwen2 of four layers, as Qwen2.5-0.5B is one of 24."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 4, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": 2048, "max_position_embeddings": 2048}
    return {"model_type": "qwen2", "tie_word_embeddings": True, **sizes}


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of vision.json, student.json and teacher.json")
    out = parser.parse_args().out
    for name, values in (("vision", TOWER), ("student", language_model(64)), ("teacher", language_model(128))):
        (out / f"{name}.json").write_text(json.dumps(values))


if __name__ == "__main__":
    main()
