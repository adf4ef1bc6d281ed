"""Experiments: one run and its record, sweeps over configs, and their records as tables."""

from .plans import CONFIGS, final_records, known_jobs, read_plan
from .records import RESULTS, add_record, read_records, trial_key
from .runs import load_task, prepare, provenance, run, training_options
from .scores import bootstrap_interval, collapsed, learned, per_image_accuracy, spread
from .sweeps import KNOBS, RECORDED, sweep
from .tables import markdown

__all__ = [
    "CONFIGS",
    "KNOBS",
    "RECORDED",
    "RESULTS",
    "add_record",
    "bootstrap_interval",
    "collapsed",
    "final_records",
    "known_jobs",
    "learned",
    "load_task",
]
__all__ += ["markdown", "per_image_accuracy", "prepare", "provenance", "read_plan", "read_records", "run", "spread", "sweep"]
__all__ += ["training_options", "trial_key"]
