"""Conv-Adapter: parameter-efficient transfer learning for ConvNets.

    model = minica.create_backbone("tf_efficientnet_lite0", num_classes=2)  # or any network of timm
    minica.adapt(model, scheme="residual_parallel", compression=2)  # frozen, adapted, in place
    task = minica.data.load("solar-cells", size=96, **minica.normalization(model))
    minica.fit(model, task.train, task.val, epochs=6, lr=1e-2)
    print(minica.evaluate(model, task.test)["accuracy"])
    minica.save_adapter(model, "my-adapter")

Each function's docstring has its arguments; the README has the map.
"""

from . import data
from .adapter import ConvAdapter
from .adapter_files import load_adapter, save_adapter
from .app.prediction import predict
from .backbones import create_backbone, normalization
from .fast.folding import fold
from .fast.lean import lean
from .profiling import count
from .recipe import adapters, detach, plain, switch, switched
from .schemes import SCHEMES, adapt
from .training import evaluate, fit
from .tuning import METHODS, tune

__version__ = "0.1.0"
__all__ = [
    "METHODS",
    "SCHEMES",
    "ConvAdapter",
    "adapt",
    "adapters",
    "count",
    "create_backbone",
    "data",
    "detach",
    "evaluate",
    "fit",
    "fold",
    "lean",
    "load_adapter",
    "normalization",
    "plain",
    "predict",
    "save_adapter",
    "switch",
    "switched",
    "train_folder",
    "tune",
]


def __getattr__(name: str):
    if name == "train_folder":  # found when it is asked for: it loads matplotlib, for its report
        from .app.run import train_folder

        return train_folder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
