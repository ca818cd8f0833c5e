"""One training of the objectives study, and what is measured of it."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate.utils import send_to_device

from data_tools.sampling import ResponseSampler
from mmalign.data.encode import encode_responses
from mmalign.data.images import load_image
from mmalign.data.rows import Message
from mmalign.engine.batch import collate_prompts
from mmalign.engine.choosing import Sampling
from mmalign.engine.divergence import TeacherStates, linear_divergence
from mmalign.engine.hidden_states import compute_response_states, read_output_head
from mmalign.evaluation.chair import load_chair
from mmalign.files import read_json
from mmalign.models.load import best_device, load_mllm
from mmalign.options.methods import DivergenceOptions
from scripts.studies.objectives_grid import WITHOUT_REFERENCE, Objective
from scripts.studies.world import BATCH, measure, run

KL_PROMPTS = 64


class Training(NamedTuple):
    """What is trained, with what, from where."""

    objective: Objective
    value: str
    """Of the objective's strength."""
    learning_rate: str
    seed: int
    start: Path
    """Folder of the model."""
    data: Path
    """With the start's reference in it."""


def train_and_measure(training: Training, out: Path, world: Path, *, steps: int, parts: Sequence[str]) -> dict[str, float]:
    """Train a model, and measure it on a held-out world; its weights are deleted.

    Args:
        training: What is trained.
        out: Folder of the study.
        world: The held-out world.
        steps: Of the training.
        parts: Of ``measure``; the divergence from the start is measured where yes-or-no questions are among them.
    """
    objective, model = training.objective, out / "models" / f"{os.getpid()}-{training.objective.name}"
    shutil.rmtree(model, ignore_errors=True)
    reference = [] if objective.name in WITHOUT_REFERENCE else ["--reference", "cached"]
    run(["train", objective.method, "--model", training.start, "--data", training.data, "--out", model,
         "--objective", objective.words(training.value), *reference, "--batch-size", BATCH, "--max-steps", steps,
         "--learning-rate", training.learning_rate, "--warmup-ratio", 0.1, "--logging-steps", steps, "--seed", training.seed])  # fmt: skip
    metrics = measure(model, world, parts=parts)
    seconds = next(entry["train_runtime"] for entry in reversed(read_json(model / "train_log.json")) if "train_runtime" in entry)
    metrics |= {
        "seconds a step": seconds / steps,
        "learning rate": float(training.learning_rate),
        objective.parameter: float(training.value),
    }
    if "pope" in parts:
        metrics["KL"] = divergence_from_start(model, training.start, world)
    shutil.rmtree(model)
    return metrics


@torch.no_grad()
def divergence_from_start(model: Path, start: Path, world: Path) -> float:
    """KL(policy || start) of whole captions, in nats: each next token's exact divergence, summed along captions that the policy samples."""
    questions = load_chair(world / "eval").questions()[:KL_PROMPTS]
    images = [load_image(question.image, root=world / "eval" / "images") for question in questions]
    (policy, processor), (reference, _) = (load_mllm(str(folder)) for folder in (model, start))
    policy, reference = policy.to(best_device()), reference.to(best_device())
    sampler = ResponseSampler(policy, processor, sampling=Sampling(), max_new_tokens=64)
    asked = [sampler.read(question.prompt, image) for question, image in zip(questions, images, strict=True)]
    texts = sampler(asked, seeds=range(len(questions)))
    encoded = [
        encode_responses(processor, images=[image], prompt=[Message(role="user", content=_asked(question.prompt))], responses=text)
        for question, image, text in zip(questions, images, texts, strict=True)
        if text[0]
    ]
    if not encoded:
        return float("nan")
    batch = send_to_device(collate_prompts(encoded, pad_token_id=processor.tokenizer.pad_token_id), next(policy.parameters()).device)
    mine, theirs = compute_response_states(policy, batch), compute_response_states(reference, batch)
    heads = read_output_head(policy).head, read_output_head(reference).head
    by_token = linear_divergence(mine.final, heads[0], TeacherStates(theirs.final, heads[1]), DivergenceOptions(divergence="reverse-kl"))
    return float(by_token.sum()) / len(encoded)


def _asked(prompt: str) -> list[dict[str, str]]:
    return [{"type": "image"}, {"type": "text", "text": prompt}]
