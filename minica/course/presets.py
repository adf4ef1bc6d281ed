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


def _config(data: str, task: str, scales: dict, preset: str, method: dict, seed: int) -> dict:
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}.")
    sizes = {key: value for key, value in scales[preset].items() if key != "seeds"}
    return dict(data=data, task=task, backbone="tf_efficientnet_lite0", **method, **sizes, weight_decay=1e-2, seed=seed)


def quickstart(preset: str, method: dict, seed: int, **changes) -> dict:
    """The configuration of one run of the first notebook, for :func:`minica.experiments.run`."""
    return _config("solar-cells", "defect", QUICKSTART, preset, method, seed) | changes


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


# Notebooks 01 and 03: in which of sixteen columns is the shape?  The four schemes at the compressions that give them about as
# many parameters each (8 to 10 % of the backbone), and the residual-parallel one again with kernels of one pixel.
POSITION = {
    "smoke": dict(size=32, train_size=32, epochs=1, batch_size=16, seeds=1),
    "laptop": dict(size=64, train_size=None, epochs=6, batch_size=16, seeds=5),
    "gpu": dict(size=224, train_size=None, epochs=20, batch_size=32, seeds=5),
    "paper": dict(size=224, train_size=None, epochs=100, batch_size=64, seeds=5),
}
POSITION_RATES = {"linear": (1e-2, 2e-2, 5e-2), "conv_adapter": (2e-3, 5e-3, 1e-2), "full": (1e-3, 2e-3, 5e-3)}
# The two better ones of each are tried with a second seed; the best mean on the validation part is chosen.  One seed is not
# enough here: at 5e-3 the k x k adapters are best with the first, and never leave guessing with the second.
POSITION_FINALISTS = {"linear": (1e-2, 2e-2), "conv_adapter": (2e-3, 5e-3), "full": (2e-3, 5e-3)}


def _adapter(scheme: str, compression: int, lr: float, **options) -> dict:
    return dict(method="conv_adapter", options=dict(scheme=scheme, compression=compression, **options), lr=lr)


SCHEME_METHODS = {
    "conv_parallel": _adapter("conv_parallel", 64, lr=2e-3),
    "conv_sequential": _adapter("conv_sequential", 64, lr=2e-3),
    "residual_parallel": _adapter("residual_parallel", 1, lr=2e-3),
    "residual_sequential": _adapter("residual_sequential", 1, lr=2e-3),
}
LOCALITY_METHODS = {
    "Linear probe": dict(method="linear", options={}, lr=2e-2),
    "Adapters, 1 x 1": _adapter("residual_parallel", 1, kernel_size=1, lr=5e-3),
    "Adapters, k x k": SCHEME_METHODS["residual_parallel"],
    "Full fine-tuning": dict(method="full", options={}, lr=5e-3),
}
# The chosen rate of the 1 x 1 adapters fails with one of the five seeds; at this one none does.
SAME_RATE = {"1 x 1, same rate": _adapter("residual_parallel", 1, kernel_size=1, lr=2e-3)}


def position(preset: str, method: dict, seed: int, **changes) -> dict:
    """The configuration of one run on the position task, for :func:`minica.experiments.run`."""
    return _config("shapes", "position", POSITION, preset, method, seed) | changes


def position_grid(preset: str = "laptop") -> list[dict]:
    """Every run behind notebooks 01 and 03: each method at its three rates, two of them again, and the chosen one on."""
    runs, seeds = [], POSITION[preset]["seeds"]
    for method in {str(method): method for method in (*LOCALITY_METHODS.values(), *SCHEME_METHODS.values())}.values():
        runs += [position(preset, method, 0, lr=lr) for lr in POSITION_RATES[method["method"]]]
        runs += [position(preset, method, 1, lr=lr) for lr in POSITION_FINALISTS[method["method"]]]
        runs += [position(preset, method, seed) for seed in range(2, seeds)]
    return runs + [position(preset, method, seed) for method in SAME_RATE.values() for seed in range(2, seeds)]


# What ``python -m minica records`` makes, by the name of the file under results/.
GRIDS = {"quickstart_rates": quickstart_rates_grid, "quickstart": quickstart_grid, "position": position_grid}
