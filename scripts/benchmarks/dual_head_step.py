"""A DHO training step: the student alone, with cached teacher logits, with a live teacher, and the official way (live, PIL per image).

    python scripts/benchmarks/dual_head_step.py --write

All arms run the same student on the same JPEGs, labelled and unlabelled together, in turn and in several rounds, one thread, CPU seconds.
The student alone has the data path of ours and a plain cross-entropy on its labelled images.
"""

import argparse
import io
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from workload import write_section

from mmalign.data.image_cache import CachedImages, to_square
from mmalign.data.teacher_logits import TeacherLogits
from mmalign.losses.dual_head import label_cross_entropy, teacher_kl
from mmalign.methods.dual_head import DualHeadMethod, DualHeadObjective
from mmalign.models.dual_head import DualHead, DualHeadConfig, Preprocessing
from mmalign.models.teachers import TeacherOutput

CLASSES, IMAGES = 100, 128
Step = Callable[[], Tensor]


class VitTeacher:
    """A frozen random ViT: its cost counts, not its answers."""

    def __init__(self, architecture: str, side: int) -> None:
        """Build it."""
        self.side = side
        self.model = timm.create_model(architecture, img_size=side, num_classes=CLASSES).requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, views: Tensor) -> TeacherOutput:
        """Classify."""
        logits = self.model(views)
        return TeacherOutput(logits, logits)


def draw_photos(number: int) -> list[bytes]:
    """Make JPEGs of 500 x 375 pixels, the size of ImageNet's, of smooth noise."""
    rng = np.random.default_rng(0)
    photos = []
    for _ in range(number):
        file = io.BytesIO()
        coarse = Image.fromarray(rng.integers(0, 256, (25, 33, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(file, "jpeg", quality=90)
        photos.append(file.getvalue())
    return photos


def build_arms(options: argparse.Namespace) -> dict[str, Step]:
    """One training step of each arm, on the next images."""
    torch.manual_seed(0)
    side, batch = options.side, options.batch_size
    stored = round(side * 8 / 7)
    photos = draw_photos(IMAGES)
    pixels = np.stack([to_square(Image.open(io.BytesIO(photo)).convert("RGB"), stored) for photo in photos])
    labels = np.arange(IMAGES, dtype=np.int64) % CLASSES
    names = tuple(f"class {i}" for i in range(CLASSES))
    images = CachedImages(tuple(map(str, range(IMAGES))), labels, names, pixels, "noise")
    preprocessing = Preprocessing(image_size=side, resize_size=stored)
    config = DualHeadConfig(library="timm", architecture=options.student, classes=names, preprocessing=preprocessing)
    teacher = VitTeacher(options.teacher, side)
    cached = TeacherLogits(torch.randn(IMAGES, 1, CLASSES), None, "noise")
    objective = DualHeadObjective()
    rng = np.random.default_rng(1)

    def rows() -> list[dict[str, Any]]:
        return [{"labeled": [(int(i), 0)], "unlabeled": [(int(j), 0)]} for i, j in rng.integers(0, IMAGES, (batch, 2))]

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    def build(method: DualHeadMethod | None, compute: Callable[[nn.Module], Tensor]) -> Step:
        model = DualHead(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        return lambda: train(model, optimizer, compute(model))

    ours = DualHeadMethod(images, objective, preprocessing=preprocessing, cached=cached)
    live = DualHeadMethod(images, objective, preprocessing=preprocessing, teacher=teacher)

    def alone(model: nn.Module) -> Tensor:
        data = ours.collate(rows())
        numbers = torch.rand(len(data["images"]), 5)
        return label_cross_entropy(model(ours._student_views(data["images"], numbers)).ce_logits[:batch], data["labels"]).mean()

    augment = transforms.Compose(
        [transforms.RandomResizedCrop(side, scale=(0.5, 1.0)), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    )
    normalize = transforms.Normalize(preprocessing.mean, preprocessing.std)

    def official(model: nn.Module) -> Tensor:
        places = rng.integers(0, IMAGES, 2 * batch)
        views = torch.stack([augment(Image.open(io.BytesIO(photos[i])).convert("RGB")) for i in places])
        output, logits = model(normalize(views)), teacher(views).logits
        kd = teacher_kl(output.kd_logits, logits, temperature=2.0)
        ce = label_cross_entropy(output.ce_logits[:batch], torch.from_numpy(labels[places[:batch]]))
        return 0.5 * ce.mean() + 0.5 * (kd[:batch].mean() + kd[batch:].mean())

    return {
        "student alone": build(None, alone),
        "cached logits": build(ours, lambda model: ours.compute(model, ours.collate(rows())).loss_sum / batch),
        "live teacher": build(live, lambda model: live.compute(model, live.collate(rows())).loss_sum / batch),
        "official way": build(None, official),
    }


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """CPU seconds of a step, arm by arm in turn; the first round warms up."""
    arms = build_arms(options)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(options.rounds + 1):
        for name, step in arms.items():
            start = time.process_time()
            assert torch.isfinite(step())
            if number:
                seconds[name].append(time.process_time() - start)
    return seconds


def section(options: argparse.Namespace, seconds: dict[str, list[float]]) -> str:
    """Put the command and the machine above the table."""
    base = statistics.median(seconds["student alone"])
    lines = ["| arm | CPU s a step | quartiles | / student alone |", "|---|---:|---|---:|"]
    for name, values in seconds.items():
        middle = statistics.median(values)
        low, _, high = statistics.quantiles(values, n=4)
        lines.append(f"| {name} | {middle:.3f} | {low:.3f} to {high:.3f} | {middle / base:.2f} |")
    about = (
        f"{options.student} from {options.teacher} (random weights), {options.batch_size} + {options.batch_size} images of {options.side} "
        f"pixels, JPEGs of 500 x 375; one thread of {platform.machine()}, float32, {options.rounds} rounds; torch {torch.__version__}."
    )
    words = " ".join(["python scripts/benchmarks/dual_head_step.py", f"--side {options.side}", f"--rounds {options.rounds}"])
    table = "\n".join(lines)
    return f"### A step of train dual-head\n\n```\n{words}\n```\n\n{about}\n\n{table}\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--teacher", default="vit_small_patch16_224")
    parser.add_argument("--side", type=int, default=96, help="of the views")
    parser.add_argument("--batch-size", type=int, default=8, help="labelled images; as many unlabelled")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = section(options, measure(options))
    print(text)
    if options.write:
        write_section(text)


if __name__ == "__main__":
    main()
