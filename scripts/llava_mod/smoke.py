"""What the smoke size starts from: configs of a tower, a student, and a teacher twice as wide; the world's chats as LLaVA's JSON."""

import argparse
import json
from pathlib import Path

from mmalign.data.datasets import load_rows

ROLES = {"user": "human", "assistant": "gpt"}
TOWER = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWER |= {"image_size": 56, "patch_size": 14, "projection_dim": 32}


def language_model(width: int) -> dict[str, object]:
    """A Qwen2 of four layers, as Qwen2.5-0.5B is one of 24."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 4, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": 2048, "max_position_embeddings": 2048}
    return {"model_type": "qwen2", "tie_word_embeddings": True, **sizes}


def write_llava(world: Path, out: Path) -> None:
    """Write the world's chats as LLaVA publishes its own: ``llava.json``, and the images that it names."""
    (out / "images").mkdir(exist_ok=True)
    records = []
    for number, row in enumerate(load_rows(world / "sft")):
        names = [f"{number}-{i}.png" for i in range(len(row["images"]))]
        for name, cell in zip(names, row["images"], strict=True):
            (out / "images" / name).write_bytes(cell["bytes"])
        turns = [{"from": ROLES[message["role"]], "value": message["content"]} for message in row["messages"]]
        turns[0]["value"] = "<image>\n" * len(names) + turns[0]["value"]
        records.append({"id": row["id"], "image": names, "conversations": turns})
    (out / "llava.json").write_text(json.dumps(records))


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", type=Path, required=True, help="folder that mmalign world build wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of vision.json, student.json, teacher.json, llava.json and images/")
    options = parser.parse_args()
    out = options.out
    for name, values in (("vision", TOWER), ("student", language_model(64)), ("teacher", language_model(128))):
        (out / f"{name}.json").write_text(json.dumps(values))
    write_llava(options.world, out)


if __name__ == "__main__":
    main()
