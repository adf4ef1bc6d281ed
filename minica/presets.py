"""How large is each notebook's run: in seconds for a test, on a laptop, on a GPU, or as in the paper?

``smoke`` shows that everything runs, its numbers mean nothing.  ``laptop`` is what the committed records were made with.
``gpu`` fits a Colab session.  ``paper`` is Table 8's recipe.
"""

from __future__ import annotations

PRESETS = ("smoke", "laptop", "gpu", "paper")

# The first notebook: solar cells, functional or defective.
QUICKSTART = {
    "smoke": dict(size=32, train_size=48, epochs=1, batch_size=16, seeds=1),
    "laptop": dict(size=96, train_size=None, epochs=6, batch_size=32, seeds=5),
    "gpu": dict(size=224, train_size=None, epochs=20, batch_size=32, seeds=5),
    "paper": dict(size=224, train_size=None, epochs=100, batch_size=64, seeds=5),
}

# Each method's learning rate is the best of its three on the validation part, seed 0 (results/quickstart_rates.json).
QUICKSTART_RATES = {
    "linear": (2e-3, 5e-3, 1e-2),
    "conv_adapter": (2e-3, 5e-3, 1e-2),
    "full": (5e-4, 1e-3, 2e-3),
}
QUICKSTART_METHODS = {
    "Linear probe": dict(method="linear", options={}, lr=2e-3),
    "Conv-Adapter": dict(
        method="conv_adapter", options=dict(scheme="residual_parallel", compression=2, init="identity"), lr=2e-3
    ),
    "Full fine-tuning": dict(method="full", options={}, lr=2e-3),
}
PUBLISHED_START = {
    "Conv-Adapter, published start": dict(
        method="conv_adapter", options=dict(scheme="residual_parallel", compression=2, init="published"), lr=5e-3
    )
}


def quickstart(preset: str, method: dict, seed: int, **changes) -> dict:
    """The configuration of one run of the first notebook, for :func:`minica.experiments.run`."""
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}.")
    sizes = {key: value for key, value in QUICKSTART[preset].items() if key != "seeds"}
    return (
        dict(
            data="solar-cells", task="defect", backbone="tf_efficientnet_lite0", **method, **sizes, weight_decay=1e-2, seed=seed
        )
        | changes
    )


def quickstart_seeds(preset: str, method: str) -> range:
    """The seeds of a method; three are enough for the start that is not the default."""
    seeds = QUICKSTART[preset]["seeds"]
    return range(min(seeds, 3) if method in PUBLISHED_START else seeds)


def quickstart_grid(preset: str = "laptop") -> list[dict]:
    """Every run behind the first notebook: all methods over their seeds."""
    methods = QUICKSTART_METHODS | PUBLISHED_START
    return [quickstart(preset, methods[name], seed) for name in methods for seed in quickstart_seeds(preset, name)]


def quickstart_rates_grid(preset: str = "laptop") -> list[dict]:
    """What the learning rates were chosen from: as many for each method, seed 0."""
    return [
        quickstart(preset, method, 0, lr=lr)
        for method in (QUICKSTART_METHODS | PUBLISHED_START).values()
        for lr in QUICKSTART_RATES[method["method"]]
    ]


# What ``python -m minica records`` makes, by the name of the file under results/.
GRIDS = {"quickstart_rates": quickstart_rates_grid, "quickstart": quickstart_grid}
