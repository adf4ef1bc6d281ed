"""The sizes of each notebook's runs: in seconds for a test, on a laptop, on a GPU, or as in the paper.

``smoke`` shows that everything runs, its numbers mean nothing.  ``laptop`` is what the committed records were made with, by
the config of the same name.  ``gpu`` fits a Colab session.  ``paper`` is Table 8's recipe.
"""

from __future__ import annotations

PRESETS = ("smoke", "laptop", "gpu", "paper")

# ``seeds`` is how many; the rest are entries of a run's configuration.
LARGE = {
    "gpu": dict(size=224, train_size=None, epochs=20, batch_size=32, seeds=5),
    "paper": dict(size=224, train_size=None, epochs=100, batch_size=64, seeds=5),
}
# Notebook 00, for configs/quickstart.toml.
QUICKSTART = {
    "smoke": dict(size=32, train_size=48, epochs=1, batch_size=16, seeds=1),
    "laptop": dict(size=96, train_size=None, epochs=6, batch_size=32, seeds=5),
    **LARGE,
}
# Notebooks 01 and 03, for configs/position.toml.
POSITION = {
    "smoke": dict(size=32, train_size=32, epochs=1, batch_size=16, seeds=1),
    "laptop": dict(size=64, train_size=None, epochs=6, batch_size=16, seeds=5),
    **LARGE,
}
# Notebook 04's live run, for configs/knobs_position.toml.
KNOBS = {
    "smoke": dict(size=32, train_size=32, epochs=1, batch_size=16, seeds=1),
    "laptop": dict(size=64, train_size=None, epochs=6, batch_size=16, seeds=3),
    **LARGE,
}
