"""``mmalign classifier train | evaluate-classifier | tune-mixing | export``."""

from mmalign.classifier.dual_head import load_dual_head
from mmalign.classifier.export import export_classifier
from mmalign.options.classifier import EvaluateClassifierOptions, ExportClassifierOptions, TrainClassifierOptions, TuneMixingOptions
from mmalign.runs.classifier_report import evaluate_folder, tune_folder
from mmalign.runs.dual_head_run import train_classifier


def run_train(options: TrainClassifierOptions) -> None:
    """Train a classifier."""
    train_classifier(options)


def run_evaluate(options: EvaluateClassifierOptions) -> None:
    """Print accuracy and calibration of each head, mixed, and the teacher."""
    evaluate_folder(options)


def run_tune(options: TuneMixingOptions) -> None:
    """Tune the mixing on validation images."""
    tune_folder(options)


def run_export(options: ExportClassifierOptions) -> None:
    """Export a classifier."""
    difference = export_classifier(load_dual_head(options.model), options.out, file_format=options.format)
    print(f"saved in {options.out}; largest difference from the checkpoint's probabilities: {difference:.1e}")
