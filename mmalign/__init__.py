"""Align and distil small multimodal LLMs: difficulty, preference training, distillation, hallucination evaluation."""

__version__ = "0.1.0"
