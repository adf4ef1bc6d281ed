"""The sizes of each notebook's runs: in seconds for a test, on a laptop, on a GPU, or as in the paper.

``smoke`` shows that everything runs, its numbers mean nothing.  ``laptop`` is what the committed records were made with, by
the config of the same name.  ``gpu`` fits a Colab session.  ``paper`` is Table 8's recipe.
"""

from __future__ import annotations

from ..data.dense import MASK_PRESETS

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
# Notebooks 08 and 09: what is trained live, on ``images`` of the training images (None: all of them).  ``load`` is of
# load_boxes() and load_masks(), ``network`` of faster_rcnn() and upernet(), ``adapt`` of adapt(), ``fit`` of fit().
PACKAGED = dict(backbone="tf_efficientnet_lite0", adapt=dict(scheme="residual_parallel", compression=1))
RESNET50 = dict(backbone="resnet50.tv2_in1k", adapt=dict(scheme="residual_parallel", compression=1))
_FEWER = dict(box_batch_size_per_image=64, rpn_pre_nms_top_n_train=500, rpn_post_nms_top_n_train=300)
_FEWER |= dict(rpn_pre_nms_top_n_test=300, rpn_post_nms_top_n_test=100)
DETECTION = {
    "smoke": PACKAGED
    | dict(data="scenes", load=dict(size=96), images=8, scored=6)
    | dict(network=dict(channels=16, min_size=64, max_size=64, **_FEWER), fit=dict(epochs=1, batch_size=4, lr=5e-3)),
    "laptop": PACKAGED
    | dict(data="scenes", load=dict(size=128), images=None, scored=None)
    | dict(network=dict(channels=64, min_size=128, max_size=128, **_FEWER), fit=dict(epochs=3, batch_size=8, lr=5e-3)),
    # 5,000 of COCO's images at a quarter of the paper's pixels.
    "gpu": RESNET50
    | dict(data="coco", load=dict(size=667), images=5000, scored=500)
    | dict(network=dict(min_size=400, max_size=667), fit=dict(epochs=2, batch_size=8, lr=2e-4)),
    # Section A.4, but for the rate's fall: a cosine after the warm-up, not a tenth at epochs 8 and 11.
    "paper": RESNET50
    | dict(data="coco", load=dict(size=None), images=None, scored=None)
    | dict(network=dict(min_size=800, max_size=1333), fit=dict(epochs=12, batch_size=16, lr=2e-4)),
}
_AS_THE_PAPER = dict(scheme="residual_sequential", compression=8)  # whose count is nearest to the paper's
SEGMENTATION = {
    "smoke": PACKAGED
    | dict(data="scenes", load=dict(size=64, augment="flip"), images=8, scored=6)
    | dict(network=dict(channels=16, auxiliary_channels=8), fit=dict(epochs=1, batch_size=4, lr=5e-3)),
    "laptop": PACKAGED
    | dict(data="scenes", load=dict(size=128, augment="flip"), images=None, scored=None)
    | dict(network=dict(channels=64, auxiliary_channels=32), fit=dict(epochs=3, batch_size=8, lr=5e-3)),
    # 5,000 of ADE20K's images, at a quarter of the paper's pixels.
    "gpu": RESNET50
    | dict(adapt=_AS_THE_PAPER)
    | dict(data="ade20k", load=dict(size=256, augment="crop"), images=5000, scored=500)
    | dict(network=dict(channels=512), fit=dict(epochs=3, batch_size=16, lr=2e-4)),
    # Section A.4: 80,000 steps on crops of 512 pixels; 16 images a step, as MMSegmentation has them, are 63 epochs.
    "paper": RESNET50
    | dict(adapt=_AS_THE_PAPER)
    | dict(data="ade20k", load=MASK_PRESETS["paper"], images=None, scored=None)
    | dict(network=dict(channels=512), fit=dict(epochs=63, batch_size=16, lr=1e-4)),
}
