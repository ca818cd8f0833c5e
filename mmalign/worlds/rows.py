"""Scenes to rows of data: drawn and described in one place, so that processes can share the work."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmalign.options.world import WorldOptions
from mmalign.worlds.contrast import Asked, Contrast, ask_either, ask_question, make_contrast, possible_kinds
from mmalign.worlds.drawings import DRAWN_ROWS
from mmalign.worlds.pairs import make_pair
from mmalign.worlds.render import draw_mosaic, draw_mosaic_twice, draw_shapes, draw_shapes_twice, to_png
from mmalign.worlds.scenes import SHAPES, Scene, imagined_item, likely_absent, sample_scene, scene_rng, with_item, without_colours
from mmalign.worlds.text import Speaker, Turn

# Share of chats that are one description; the others are questions.
DESCRIPTION_SHARE = 0.65
# Share of the contrastive scorer's texts that name colours.
COLOURED_SHARE = 0.35


@dataclass(frozen=True)
class SceneMaker:
    """Makes rows from (split, index) alone. ``photos`` holds the split's photographs, or None for drawn shapes."""

    options: WorldOptions
    names: tuple[str, ...] = SHAPES
    photos: dict[int, list[bytes]] | None = None

    def scene(self, split: str, index: int) -> tuple[Scene, np.random.Generator]:
        """Draw a scene, and return the generator to go on with."""
        rng = scene_rng(self.options.seed, split, index)
        return self._sample(rng), rng

    def _sample(self, rng: np.random.Generator) -> Scene:
        return sample_scene(
            rng, num_kinds=len(self.names), max_objects=self.options.max_objects, with_colour=self.options.source == "shapes"
        )

    def contrast(self, split: str, index: int) -> tuple[Contrast, np.random.Generator]:
        """Draw two scenes that differ in one object: the kinds of change take turns. Return the generator to go on with."""
        rng = scene_rng(self.options.seed, split, index)
        kinds = possible_kinds(max_objects=self.options.max_objects, with_colour=self.options.source == "shapes")
        return make_contrast(rng, kinds[index % len(kinds)], lambda: self._sample(rng), num_kinds=len(self.names)), rng

    def image(self, scene: Scene, rng: np.random.Generator) -> bytes:
        """Render to PNG."""
        size = self.options.image_size
        drawn = draw_shapes(scene, rng, size) if self.photos is None else draw_mosaic(scene, rng, size, self.photos)
        return to_png(drawn)

    def rows(self, split: str, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Make the rows of some scenes."""
        if split in ("contrast", "contrast_eval"):
            return [self._contrast_row(split, index) for index in indices]
        if split in DRAWN_ROWS:
            return [{"id": f"{split}-{index}", **self._drawn_row(split, index)} for index in indices]
        make = {"sft": self._sft_row, "captions": self._caption_row, "pairs": self._pair_row, "eval": self._eval_row}[split]
        rows = []
        for index in indices:
            scene, rng = self.scene(split, index)
            rows.append({"id": f"{split}-{index}", "images": [self.image(scene, rng)], **make(scene, rng)})
        return rows

    def _sft_row(self, scene: Scene, rng: np.random.Generator) -> dict[str, Any]:
        """A description, or a chat of six questions. Apart, because answers that can be copied from a description teach no seeing."""
        speaker, noise = Speaker(self.names), self.options.existence_noise
        if rng.random() < DESCRIPTION_SHARE:
            turns = [self._caption_turn(scene, rng)]
        else:
            other = [speaker.attribute, speaker.relation, speaker.count, speaker.place][int(rng.integers(4))]
            turns = [speaker.existence(rng, scene, noise=noise) for _ in range(5)] + [other(rng, scene)]
            turns = [turns[i] for i in rng.permutation(len(turns))]
        messages = []
        for turn in turns:
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
        return {"messages": messages, "kind": "+".join(turn.kind for turn in turns)}

    def _caption_turn(self, scene: Scene, rng: np.random.Generator) -> Turn:
        """A description; ``caption_noise`` of them name one likely but absent object as if it were there."""
        prompt, describe, kind = Speaker(self.names).caption(rng)
        likely = likely_absent(scene)
        noisy = bool(likely) and rng.random() < self.options.caption_noise
        if noisy:
            scene = with_item(scene, imagined_item(rng, scene, likely[int(rng.integers(len(likely)))]))
        return Turn(prompt, describe(scene), kind + ("-noisy" if noisy else ""))

    def _caption_row(self, scene: Scene, rng: np.random.Generator) -> dict[str, Any]:
        """A true text for the contrastive scorer. Most name no colours: else it tells scenes apart by them and learns no kinds."""
        speaker = Speaker(self.names)
        said = scene if rng.random() < COLOURED_SHARE else without_colours(scene)
        choice = rng.random()
        if choice < 0.25:
            return {"text": speaker.short(said)}
        if choice < 0.25 + 0.5:
            return {"text": speaker.detailed(said)}
        return {"text": speaker.detailed(Scene((said.items[int(rng.integers(len(said.items)))],)))}

    def _pair_row(self, scene: Scene, rng: np.random.Generator) -> dict[str, Any]:
        speaker = Speaker(self.names)
        pair = make_pair(rng, scene, speaker, easy_share=self.options.easy_share, label_noise=self.options.label_noise)
        return {
            "prompt": [{"role": "user", "content": pair.prompt}],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
            "source": "world",
            "truth_kind": pair.kind,
            "truth_difficulty": pair.difficulty,
            "truth_flipped": pair.flipped,
        }

    def _contrast_row(self, split: str, index: int) -> dict[str, Any]:
        """A pair of answers with both images; of a held-out one also what an evaluation asks, which is never a description."""
        contrast, rng = self.contrast(split, index)
        size, speaker = self.options.image_size, Speaker(self.names)
        twice = draw_shapes_twice(contrast, rng, size) if self.photos is None else draw_mosaic_twice(contrast, rng, size, self.photos)
        own, other = map(to_png, twice)
        row = {
            "id": f"{split}-{index}",
            "images": [own],
            "images_other": [other],
            **_contrast_texts(ask_either(rng, contrast, speaker)),
            "source": "world",
            "contrast_kind": contrast.kind,
            "contrast_objects": [self.names[kind] for kind in contrast.changed],
            "contrast_likely": contrast.is_likely,
        }
        return row if split == "contrast" else {**row, "evaluated": ask_question(rng, contrast, speaker)}

    def _drawn_row(self, split: str, index: int) -> dict[str, Any]:
        scene, rng = self.scene(split, index)
        return DRAWN_ROWS[split](scene, rng, Speaker(self.names), self.options.image_size)

    def _eval_row(self, scene: Scene, rng: np.random.Generator) -> dict[str, Any]:
        speaker = Speaker(self.names)
        caption = speaker.caption(rng)[0]
        questions = [ask(rng, scene) for ask in (speaker.attribute, speaker.relation, speaker.count)]
        return {
            "kinds": sorted(scene.kinds),
            "likely": likely_absent(scene),
            "caption_prompt": caption,
            "questions": [(turn.question, turn.answer, turn.kind) for turn in questions],
        }


def _contrast_texts(asked: Asked) -> dict[str, Any]:
    """What is wrong for the own image is right for the other one."""
    own, other = ([{"role": "assistant", "content": text}] for text in (asked.own, asked.other))
    prompt = [{"role": "user", "content": asked.prompt}]
    return {"prompt": prompt, "chosen": own, "rejected": other, "chosen_other": other, "contrast_asked": asked.kind}
