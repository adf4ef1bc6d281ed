"""Draws the scenes of minica.data.scenes into a folder, in the layouts of COCO and of ADE20K.

python data_scripts/draw_scenes.py --root FOLDER [--seed 0]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fetch import alone, built

from minica.data.scenes import IMAGES, draw_scenes


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", required=True, type=Path, help="they go into FOLDER/scenes; nothing is written elsewhere")
    parser.add_argument("--seed", type=int, default=0, help="draws them (default: 0, as load_boxes('scenes') has them)")
    for split, count in IMAGES.items():
        parser.add_argument(f"--{split}", type=int, default=count, help=f"number of pictures (default: {count})")
    args = parser.parse_args(argv)
    place = args.root / "scenes"
    try:
        if place.exists():
            raise ValueError(f"{place} is there already; remove it first, or choose another --root.")
        args.root.mkdir(parents=True, exist_ok=True)
        with alone(args.root), built(args.root, "scenes") as unfinished:
            draw_scenes(unfinished / "scenes", args.seed, {split: getattr(args, split) for split in IMAGES})
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"load_boxes({str(place / 'coco')!r}) and load_masks({str(place / 'ade20k')!r}, size=...) read them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
