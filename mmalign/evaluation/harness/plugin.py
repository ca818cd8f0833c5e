"""What lmms-eval finds through the entry point ``lmms_eval.models``; it is imported by lmms-eval alone."""

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest(model_id="mmalign", simple_class_path="mmalign.evaluation.harness.model.HarnessModel")
