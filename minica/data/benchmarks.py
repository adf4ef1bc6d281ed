"""Which benchmarks does the paper use, and what must be true of a copy of them?

Sizes and classes are those of the published splits (the paper's Table 6 and the splits' own lists).  Where the two differ
(NABirds has 555 classes, not 700; FGVC-Aircraft 100, not 102) this table has the data's.
"""

from __future__ import annotations

from dataclasses import dataclass

from .transforms import Recipe

# What is cut from a training picture, and whether it is mirrored.
_RESIZE, _RESIZE_FLIP = Recipe(None, False), Recipe(None, True)
_SHIFT, _SHIFT_FLIP = Recipe("shift", False), Recipe("shift", True)
_ZOOM, _ZOOM_FLIP = Recipe(0.08, False), Recipe(0.08, True)


@dataclass(frozen=True)
class Benchmark:
    """What is known of one data set."""

    paper: str  # its name in the paper's Tables 11 to 14; of few-shot tasks, in Table 6
    group: str  # "FGVC", "Natural", "Specialized", "Structured" or "Few-Shot"
    classes: int
    train: int  # images; of few-shot tasks, those that the shots are drawn from
    val: int
    test: int
    folders: tuple[str, ...]  # what its folder is called: here first, then in other people's copies
    paper_recipe: Recipe  # the augmentation that the paper names
    published_recipe: Recipe  # the one that its published code carries out
    names: tuple[str, ...] | None = None  # of the classes, where a rule gives them

    @property
    def sizes(self) -> dict[str, int]:
        """Images by split, as far as no choice of shots is in them."""
        return {"val": self.val, "test": self.test} | ({} if self.group == "Few-Shot" else {"train": self.train})

    def recipe(self, augment: str) -> Recipe:
        """``"paper"``, ``"published"`` or ``"none"``."""
        return {"paper": self.paper_recipe, "published": self.published_recipe, "none": _RESIZE}[augment]


def _vtab(group: str, paper: str, classes: int, test: int, folders: str, *recipes: Recipe, names=None) -> Benchmark:
    return Benchmark(paper, group, classes, 800, 200, test, tuple(folders.split()), *recipes, names)


def _photographs(group: str, paper: str, classes: int, train: int, val: int, test: int, folders: str) -> Benchmark:
    # Section A.3: RandomResizedCrop from a fifth of the area and a flip.  The code has 0.22.
    return Benchmark(paper, group, classes, train, val, test, tuple(folders.split()), Recipe(0.2, True), Recipe(0.22, True))


# The paper takes VTAB's "recommended optimal data augmentations" and does not list them; "paper" are those of the most
# complete public list, the plain-ViT configuration of Google's Scenic.
VTAB = {
    "caltech101": _vtab("Natural", "Caltech101", 102, 6084, "caltech101", _SHIFT_FLIP, _ZOOM_FLIP),
    "cifar100": _vtab("Natural", "Cifar100", 100, 10000, "cifar100 cifar", _SHIFT_FLIP, _ZOOM_FLIP),
    "dtd": _vtab("Natural", "DTD", 47, 1880, "dtd", _SHIFT_FLIP, _ZOOM_FLIP),
    "flowers102": _vtab("Natural", "Flowers102", 102, 6149, "flowers102 oxford_flowers102", _SHIFT_FLIP, _ZOOM_FLIP),
    "pets": _vtab("Natural", "Pets", 37, 3669, "pets oxford_iiit_pet oxford_pet", _SHIFT_FLIP, _ZOOM_FLIP),
    "svhn": _vtab("Natural", "SVHN", 10, 26032, "svhn", _SHIFT_FLIP, _ZOOM_FLIP),
    "sun397": _vtab("Natural", "Sun397", 397, 21750, "sun397", _SHIFT_FLIP, _ZOOM_FLIP),
    "patch_camelyon": _vtab("Specialized", "Patch Camelyon", 2, 32768, "patch_camelyon", _SHIFT_FLIP, _ZOOM_FLIP),
    "eurosat": _vtab("Specialized", "EuroSAT", 10, 5400, "eurosat", _SHIFT_FLIP, _ZOOM_FLIP),
    "resisc45": _vtab("Specialized", "Resisc45", 45, 6300, "resisc45", _SHIFT_FLIP, _ZOOM_FLIP),
    "retinopathy": _vtab(
        "Specialized", "Diabetic Retinopathy", 5, 42670, "retinopathy diabetic_retinopathy", _SHIFT_FLIP, _ZOOM_FLIP
    ),
    "clevr_count": _vtab(
        "Structured", "Clevr/count", 8, 15000, "clevr_count", _RESIZE_FLIP, _SHIFT,
        names=tuple(f"{number} objects" for number in range(3, 11)),
    ),
    "clevr_dist": _vtab(
        "Structured", "Clevr/dist", 6, 15000, "clevr_dist", _RESIZE_FLIP, _ZOOM,  # a typing error in the code: not _SHIFT
        names=("to 8", "8 to 8.5", "8.5 to 9", "9 to 9.5", "9.5 to 10", "above 10"),
    ),
    "dmlab": _vtab("Structured", "Dmlab", 6, 22735, "dmlab", _RESIZE_FLIP, _SHIFT),
    "kitti": _vtab(
        "Structured", "Kitti", 4, 711, "kitti", _RESIZE_FLIP, _SHIFT_FLIP,
        names=("to 8 m", "8 to 20 m", "above 20 m", "no vehicle"),
    ),
    "dsprites_loc": _vtab(
        "Structured", "Dsprites/loc", 16, 73728, "dsprites_loc", _RESIZE, _RESIZE,
        names=tuple(f"x {2 * i}-{2 * i + 1}" for i in range(16)),
    ),
    "dsprites_ori": _vtab("Structured", "Dsprites/ori", 16, 73728, "dsprites_ori", _SHIFT, _ZOOM),
    "smallnorb_azi": _vtab(
        "Structured", "Smallnorb/azi", 18, 12150, "smallnorb_azi", _SHIFT, _SHIFT,
        names=tuple(f"{20 * i} degrees" for i in range(18)),
    ),
    "smallnorb_ele": _vtab(
        "Structured", "Smallnorb/ele", 9, 12150, "smallnorb_ele", _SHIFT_FLIP, _ZOOM_FLIP,
        names=tuple(f"{30 + 5 * i} degrees" for i in range(9)),
    ),
}  # fmt: skip

FGVC = {
    "cub200": _photographs("FGVC", "CUB200", 200, 5394, 600, 5794, "cub200 CUB_200_2011 cub"),
    "nabirds": _photographs("FGVC", "NABirds", 555, 21536, 2393, 24633, "nabirds"),
    "dogs": _photographs("FGVC", "Stanford Dogs", 120, 10800, 1200, 8580, "dogs stanford_dogs stanforddogs"),
    "cars": _photographs("FGVC", "Stanford Cars", 196, 7329, 815, 8041, "cars stanford_cars stanfordcars"),
}

FEW_SHOT = {
    "aircraft": _photographs(
        "Few-Shot", "FGVCAirCraft", 100, 3334, 3333, 3333, "aircraft fgvc-aircraft fgvc_aircraft fgvc-aircraft-2013b/data"
    ),
    "food101": _photographs("Few-Shot", "Food101", 101, 50500, 20200, 30300, "food101 food-101"),
    "flowers102": _photographs(
        "Few-Shot", "Flowers102", 102, 4093, 1633, 2463, "flowers102 oxford-flowers102 oxford_flowers flowers-102"
    ),
    "pets": _photographs("Few-Shot", "Pets", 37, 2944, 736, 3669, "pets oxford-pets oxford_pets oxford-iiit-pet"),
    "cars": _photographs("Few-Shot", "Stanford Cars", 196, 6509, 1635, 8041, "cars standford-cars stanford_cars"),
}

BENCHMARKS = {
    f"{family}/{name}": benchmark
    for family, table in (("vtab", VTAB), ("fgvc", FGVC), ("few-shot", FEW_SHOT))
    for name, benchmark in table.items()
}
