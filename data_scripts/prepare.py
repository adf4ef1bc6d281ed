"""Fetches and unpacks the benchmarks into the layouts that minica.data reads.

python data_scripts/prepare.py NAME ... --root FOLDER [--archive FILE ...] [--regenerate]
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import nuclei
import regenerate
from fetch import Source, alone, built, download, members, unpack, verify_checksum
from verify import FOLDERS, check, chosen, there

from minica.data.catalogue import CATALOGUE
from minica.data.few_shot import SHOTS
from minica.data.named import NAMED

DOWNLOADS = "downloads"


_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"  # these, Food101 and CLEVR: addresses and MD5 as in torchvision 0.29
_DOGS = "http://vision.stanford.edu/aditya86/ImageNetDogs"
_NOAH = "https://raw.githubusercontent.com/ZhangYuanhan-AI/NOAH/10dd5150c50890871a8847f0940d21ca0803858f/data/few-shot"
_COCO = "http://images.cocodataset.org"
_CARS = "its site is gone since 2023; copies: https://github.com/pytorch/vision/issues/7545"

CARS = (
    Source("cars_train.tgz", None, by_hand=_CARS),
    Source("cars_test.tgz", None, by_hand=_CARS),
    Source("car_devkit.tgz", None, by_hand=_CARS),
    Source("cars_test_annos_withlabels.mat", None, into="devkit/cars_test_annos_withlabels.mat", by_hand=_CARS, plain=True),
)


def _shots(folder: str) -> tuple[Source, ...]:
    """NOAH's lists of one data set."""
    names = [f"train_meta.list.num_shot_{shots}.seed_{seed}" for shots in SHOTS for seed in range(3)]
    return tuple(
        Source(f"{folder}.{name}", f"{_NOAH}/{folder}/annotations/{name}", into=f"annotations/{name}", plain=True)
        for name in [*names, "val_meta.list", "test_meta.list"]
    )


def _archive(name: str, below: str = "") -> tuple[Source, ...]:
    """The pinned commit of a named set's repository, of which the folder ``below`` is taken."""
    address, commit = re.match(r"https://github\.com/([^,]+), commit ([0-9a-f]{40})", NAMED[name].source).groups()
    repository = address.rpartition("/")[2]
    top = f"{repository}-{commit}"
    url = f"https://codeload.github.com/{address}/tar.gz/{commit}"  # packed on demand, so that there is no checksum
    return (Source(f"{repository}-{commit[:8]}.tar.gz", url, below=f"{top}/{below}" if below else top),)


VTAB = Source("vtab-1k.zip", "https://huggingface.co/datasets/XiN0919/VTAB-1k/resolve/main/vtab-1k.zip")  # 4.66 GB, 19 tasks
SOURCES: dict[str, tuple[Source, ...]] = {
    "fgvc/cub200": (
        Source(
            "CUB_200_2011.tgz",
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            "md5:97eceeb196236b17998738112f37df78",
            below="CUB_200_2011",
        ),
    ),
    "fgvc/nabirds": (
        Source("nabirds.tar.gz", None, below="nabirds", by_hand="fill in the form at https://info.allaboutbirds.org/nabirds"),
    ),
    "fgvc/dogs": (Source("images.tar", f"{_DOGS}/images.tar"), Source("lists.tar", f"{_DOGS}/lists.tar")),
    "fgvc/cars": CARS,
    "few-shot/aircraft": (
        Source(
            "fgvc-aircraft-2013b.tar.gz",
            f"{_OXFORD}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
            below="fgvc-aircraft-2013b/data",
        ),
        *_shots("fgvc-aircraft"),
    ),
    "few-shot/food101": (
        Source(
            "food-101.tar.gz",
            "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
            "md5:85eeb15f3717b99a5da872d97d918f87",
            below="food-101",
        ),
        *_shots("food101"),
    ),
    "few-shot/flowers102": (
        Source("102flowers.tgz", f"{_OXFORD}/flowers/102/102flowers.tgz", "md5:52808999861908f626f3c1f4e79d11fa"),
        *_shots("oxford-flowers102"),
    ),
    "few-shot/pets": (
        Source("images.tar.gz", f"{_OXFORD}/pets/data/images.tar.gz", "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c"),
        *_shots("oxford-pets"),
    ),
    "few-shot/cars": (*CARS[:2], *_shots("standford-cars")),
    "coco": (  # 19 GB; MD5 as in several public download scripts
        Source("train2017.zip", f"{_COCO}/zips/train2017.zip", "md5:cced6f7f71b7629ddf16f17bbcfab6b2"),
        Source("val2017.zip", f"{_COCO}/zips/val2017.zip", "md5:442b8da7639aecaf257c1dceb8ba8c80"),
        Source(
            "annotations_trainval2017.zip",
            f"{_COCO}/annotations/annotations_trainval2017.zip",
            "md5:f4bbac642086de4f52a3fdda2de5fa2c",
        ),
    ),
    "ade20k": (
        Source(
            "ADEChallengeData2016.zip",
            "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
            "md5:7328b3957e407ddae1d3cbf487f149ef",
            below="ADEChallengeData2016",
        ),
    ),
    "nuclei": _archive("nuclei", "stage1_train"),
    "cards": _archive("cards", "images"),
    "clothing": _archive("clothing"),
    "sign-digits": _archive("sign-digits", "Dataset"),
}


def prepare(name: str, root: Path, archives: Sequence[Path] = (), again: bool = False) -> None:
    """Make one set below ``root``, or nothing at all.

    Args:
        archives: files that need not be fetched, known by their names.
        again: of six VTAB tasks, draw the images anew from the original data instead of the published thousand.

    Raises:
        ValueError: if something cannot be fetched, is damaged, or does not have the published counts.
    """
    family, _, short = name.partition("/")
    place = name if name in NAMED else f"{FOLDERS[family]}/{short}"
    if folder := there(name, root):
        print(f"{name} is there already: {folder}. Is it whole? python data_scripts/verify.py {name} --root {root}")
        return
    if again and short not in regenerate.TASKS:
        raise ValueError(f"{name} cannot be regenerated, only vtab/{', vtab/'.join(regenerate.TASKS)}; leave --regenerate out.")
    sources = regenerate.sources(short) if again else (VTAB,) if family == "vtab" else SOURCES[name]
    files = _get(name, sources, root / DOWNLOADS, archives)
    with built(root, place) as unfinished:
        if again:
            regenerate.regenerate(short, files, unfinished / place)
        elif family == "vtab":
            archive = files[VTAB.name]
            unpack(archive, unfinished / place, _vtab_folder(archive, CATALOGUE[name].folders))
        elif name == "nuclei":
            unpack(files[sources[0].name], unfinished / "raw", sources[0].below)
            nuclei.convert(unfinished / "raw", unfinished / place)
        else:
            for source in sources:
                target = unfinished / place / source.into
                if source.plain:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(files[source.name], target)
                else:
                    unpack(files[source.name], target, source.below)
        for holds, what in check(name, unfinished):
            print(f"{'OK  ' if holds else 'FAIL'}  {name}: {what}", flush=True)
            if not holds:
                raise ValueError(f"{name} is not what was published, so nothing was kept: {what}")
    print(f"{name} is in {root / place}" + (f" (licence: {NAMED[name].licence})" if name in NAMED else ""))


def _get(name: str, sources: Sequence[Source], downloads: Path, archives: Sequence[Path]) -> dict[str, Path]:
    """Name -> file of each source: given, fetched before, or fetched now."""
    here = {path.name: path for path in [*downloads.glob("*"), *archives]}
    if missing := [source for source in sources if source.url is None and source.name not in here]:
        names = ", ".join(source.name for source in missing)
        raise ValueError(
            f"{name} needs {names}, which only a person can get ({missing[0].by_hand}). Then put them into {downloads}, or "
            f"name each: --archive {missing[0].name}"
        )
    files = {}
    for source in sources:
        if source.name in here:
            files[source.name] = here[source.name]
            verify_checksum(files[source.name], source.checksum)
        else:
            print(f"{name}: fetching {source.url}", flush=True)
            files[source.name] = download(source.url, downloads / source.name, source.checksum)
    return files


def _vtab_folder(archive: Path, folders: Sequence[str]) -> str:
    """Where a task lies in an archive of many: the folder of one of these names that has a test list."""
    with members(archive) as found:
        for name, _ in found:
            parts = name.split("/")
            if len(parts) > 1 and parts[-1] == "test.txt" and parts[-2] in folders:
                return "/".join(parts[:-1])
    raise ValueError(f"{archive} has no folder {' or '.join(folders)} with a test.txt; is it VTAB-1k in NOAH's layout?")


def _what_is_fetched() -> str:
    lines = [f"vtab/...: {VTAB.name} (all 19 tasks, 4.66 GB), fetched from {VTAB.url}"]
    for name, sources in SOURCES.items():
        files = [source for source in sources if not source.into.startswith("annotations/")]
        how = f"by hand: {files[0].by_hand}" if files[0].by_hand else f"fetched from {files[0].url}"
        lists = ", and NOAH's lists from GitHub" if len(files) < len(sources) else ""
        lines.append(f"{name}: {', '.join(source.name for source in files)}, {how}{lists}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog="What a set needs:\n" + _what_is_fetched(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help="vtab/dtd, fgvc/cub200, few-shot/pets, nuclei, or a family: vtab"
    )
    parser.add_argument("--root", required=True, type=Path, help="the folder of all benchmarks; nothing is written elsewhere")
    parser.add_argument("--archive", action="append", default=[], type=Path, help="a file that is here already")
    parser.add_argument("--regenerate", action="store_true", help="of VTAB's clevr, dsprites and smallnorb: other images")
    args = parser.parse_args(argv)
    failed = False
    try:
        names = chosen(args.names)
        for path in args.archive:
            if not path.is_file():
                raise ValueError(f"--archive {path}: there is no such file.")
        args.root.mkdir(parents=True, exist_ok=True)
        # Where all is there already, nothing is written: the folder may be one that is only read.
        with nullcontext() if all(there(name, args.root) for name in names) else alone(args.root):
            for name in names:
                try:
                    prepare(name, args.root, args.archive, args.regenerate)
                except (ValueError, OSError, ModuleNotFoundError) as error:
                    print(f"error: {error}", file=sys.stderr)
                    failed = True
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
