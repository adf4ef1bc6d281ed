"""The command line, ``python -m minica COMMAND``; the work is in the module that each command imports."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path


def _course(args: argparse.Namespace) -> int:
    from .course.runner import run_course

    return run_course(args.names, preset=args.preset, out=args.out, retrain=args.retrain, notebooks=args.notebooks)


def _publish(args: argparse.Namespace) -> int:
    from .course.publish import publish

    return publish(args.names, out=args.out, notebooks=args.notebooks)


def _frame(args: argparse.Namespace) -> int:
    from .course.frame import write_frames

    changed = write_frames(args.notebooks)
    print(f"changed: {', '.join(path.stem for path in changed) or 'no notebook'}")
    return 0


def _lab(args: argparse.Namespace) -> int:
    from .course.runner import lab

    return lab(args.notebooks, args.arguments)


def _student(args: argparse.Namespace) -> int:
    from .course.student import write_student_copies

    written = write_student_copies(args.out, args.notebooks)
    print(f"{len(written)} notebooks without solutions and outputs: {args.out}")
    return 0


def _explorer(args: argparse.Namespace) -> int:
    from .course.explorer import DOCS, write

    print(write(args.out or DOCS))
    return 0


def _pages(args: argparse.Namespace) -> int:
    from .course.site import FOLDER, write_pages

    written = write_pages(args.out or FOLDER, args.notebooks)
    print(f"{len(written)} pages: {written[0].parent}")
    return 0


def _records(args: argparse.Namespace) -> int:
    from .experiments import CONFIGS, KNOBS, RECORDED, RESULTS, sweep

    if unknown := [name for name in args.names if name not in (*RECORDED, *KNOBS)]:
        raise ValueError(f"unknown records {unknown[0]!r}; choose among {', '.join((*RECORDED, *KNOBS))}.")
    for name in args.names or RECORDED:
        sweep(CONFIGS / f"{name}.toml", RESULTS / f"{name}.json")
    return 0


def _sweep(args: argparse.Namespace) -> int:
    from .experiments import sweep

    options = {key: getattr(args, key) for key in ("ray", "jobs", "cpus", "gpus", "retry")}
    return 0 if sweep(args.config, args.out, **options) else 1


def _table(args: argparse.Namespace) -> int:
    from .experiments import read_records
    from .experiments.comparison import paper_table

    print(paper_table(args.number, read_records(args.records).values()))
    return 0


def _survey(args: argparse.Namespace) -> int:
    import timm

    from .experiments.survey import examine_all, summary

    chosen = [name for pattern in args.patterns or ["*"] for name in timm.list_models(pattern)]
    if not chosen:
        raise ValueError(f"no architecture of timm matches {' '.join(args.patterns)}.")
    print(summary(examine_all(chosen)))
    return 0


def _collapse(args: argparse.Namespace) -> int:
    from .experiments import RESULTS, read_records
    from .experiments.collapse import run_all, summary

    run_all(args.groups)
    print(summary(read_records(RESULTS / "collapse.json")))
    return 0


def _train(args: argparse.Namespace) -> int:
    from .app.run import train_folder
    from .training import TrainingDiverged

    try:
        train_folder(args.data, args.out, preset=args.preset, backbone=args.backbone, skip_broken=args.skip_broken)
    except TrainingDiverged as error:
        raise ValueError(f"{error}") from error
    return 0


def _predict(args: argparse.Namespace) -> int:
    from .app.prediction import about, as_csv, load_run, predict
    from .atomic import write_atomically
    from .data.images import has_image_ending

    if args.csv:
        table = Path(args.csv).expanduser()
        if not table.parent.is_dir() or table.is_dir():
            raise ValueError(
                f"{table} cannot be written: {'it is a folder' if table.is_dir() else 'its folder does not exist'}."
            )
        if has_image_ending(table.name):  # which the shell made of "--csv new/*.jpg", say
            raise ValueError(f"{table} is called like a picture; after --csv comes the name of the table, such as found.csv.")
    model = load_run(args.run)
    records = predict(model, args.images)
    text = as_csv(records, about(model)["classes"])
    if args.csv:
        write_atomically(Path(args.csv).expanduser(), text.encode("utf-8", "backslashreplace"))
    else:
        print(text, end="")
    failed = [record for record in records if record["error"]]
    for record in failed:
        print(f"{record['file']}: {record['error']}", file=sys.stderr)
    print(f"{len(records) - len(failed)} pictures predicted, {len(failed)} failed", file=sys.stderr)
    return 1 if failed else 0


def _export(args: argparse.Namespace) -> int:
    from .app.onnx_file import export_run

    described = export_run(args.run, args.file)
    print(f"{args.file} and {args.file}.json; {described['checked']}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m minica", description="Conv-Adapter: the course and its tools.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    course = commands.add_parser("course", help="run the notebooks and end with a table of their results")
    course.add_argument("names", nargs="*", metavar="NAME", help="a notebook: 00_quickstart, or 00 (default: all)")
    course.add_argument("--preset", default="laptop", help="smoke, laptop (default), gpu or paper")
    course.add_argument("--out", default="build/course", help="where executed notebooks go (default: %(default)s)")
    course.add_argument("--retrain", action="store_true", help="train every point instead of reading recorded ones")
    course.set_defaults(work=_course)

    publish = commands.add_parser("publish", help="run notebooks and write what they show into the committed ones")
    publish.add_argument("names", nargs="*", metavar="NAME", help="a notebook: 00_quickstart, or 00 (default: all)")
    publish.add_argument("--out", default="build/published", help="where executed copies go (default: %(default)s)")
    publish.set_defaults(work=_publish)

    frame = commands.add_parser("frame", help="write badges, set-up cells and links into the notebooks")
    frame.set_defaults(work=_frame)

    lab = commands.add_parser("lab", help="open copies of the notebooks in JupyterLab; options it knows are passed on")
    lab.set_defaults(work=_lab)

    student = commands.add_parser("student", help="copy the notebooks without solutions and outputs")
    student.add_argument("--out", default="build/student", help="where the copies go (default: %(default)s)")
    student.set_defaults(work=_student)

    explorer = commands.add_parser("explorer", help="write what docs/index.html shows, from the records there are")
    explorer.add_argument("--out", metavar="DIR", help="the page's folder (default: docs)")
    explorer.set_defaults(work=_explorer)

    pages = commands.add_parser(
        "pages", help="write the notebooks, with the outputs that they hold, as HTML pages; runs nothing"
    )
    pages.add_argument("--out", metavar="DIR", help="where the pages go (default: docs/notebooks)")
    pages.set_defaults(work=_pages)

    records = commands.add_parser("records", help="make the committed records again, or what is missing of them")
    records.add_argument("names", nargs="*", metavar="NAME", help="a file under minica/results (default: all but the knobs')")
    records.set_defaults(work=_records)

    sweep = commands.add_parser("sweep", help="tune every method of a config alike and test the best of each; it resumes")
    sweep.add_argument("config", metavar="CONFIG", help="a TOML file, such as configs/packaged.toml")
    sweep.add_argument("--out", metavar="DIR", help="where its records are, or a .json file (default: build/sweeps/NAME)")
    sweep.add_argument("--ray", metavar="ADDRESS", help="run on Ray: local, auto or a cluster's address (default: in process)")
    sweep.add_argument("--jobs", type=int, metavar="N", help="on Ray, at most N trials at a time (default: as many as fit)")
    sweep.add_argument("--cpus", type=int, metavar="N", help="cores a trial (default: on Ray one, in process PyTorch's choice)")
    sweep.add_argument("--gpus", type=float, metavar="N", help="on Ray, GPUs a trial (default: one if there are any)")
    sweep.add_argument("--retry", action="store_true", help="run again what has failed")
    sweep.set_defaults(work=_sweep)

    table = commands.add_parser("table", help="one of the paper's tables, with what sweeps recorded beside its numbers")
    table.add_argument("number", type=int, metavar="NUMBER", help="1, 2, 3, 11, 12, 13 or 14")
    table.add_argument("--records", default="build/sweeps", metavar="DIR", help="of one sweep or more (default: %(default)s)")
    table.set_defaults(work=_table)

    survey = commands.add_parser("survey", help="adapt every architecture of timm and check each (hours; it resumes)")
    survey.add_argument("patterns", nargs="*", metavar="PATTERN", help="only these, such as 'resnet*' (default: all)")
    survey.set_defaults(work=_survey)

    collapse = commands.add_parser("collapse", help="trials of why training collapses, and of the remedy (hours; it resumes)")
    collapse.add_argument("groups", nargs="*", metavar="GROUP", help="only these, such as decisive (default: all)")
    collapse.set_defaults(work=_collapse)

    train = commands.add_parser("train", help="train on your own pictures: class folders, or a CSV path,label[,group,split]")
    train.add_argument("data", metavar="DATA", help="the folder, split into train, val and test or not; or the CSV")
    train.add_argument("--out", required=True, metavar="RUN", help="a new folder for adapter, run.json and report.html")
    train.add_argument("--preset", default="laptop", help="smoke, laptop (default) or gpu")
    train.add_argument("--backbone", default="tf_efficientnet_lite0", metavar="NAME", help="of timm (default: %(default)s)")
    train.add_argument("--skip-broken", action="store_true", help="leave out pictures that do not decode")
    train.set_defaults(work=_train)

    predict = commands.add_parser("predict", help="what a run says of new pictures; exit status 1 if some failed")
    predict.add_argument("run", metavar="RUN", help="the folder that train filled, or that of an adapter")
    predict.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders or globs")
    predict.add_argument("--csv", metavar="OUT", help="where the table goes (default: to the screen)")
    predict.set_defaults(work=_predict)

    export = commands.add_parser("export", help="write a run as ONNX, with what must happen to its pictures")
    export.add_argument("run", metavar="RUN", help="the folder that train filled, or that of an adapter")
    export.add_argument("file", metavar="FILE", help="such as model.onnx")
    export.set_defaults(work=_export)

    for command in (course, publish, frame, lab, student, pages):
        command.add_argument("--notebooks", metavar="DIR", help="their folder (default: the repository's)")
    return parser


def _warning(message: Warning | str, *where) -> None:
    print(f"warning: {message}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.  Bad input is one line on stderr and status 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a console that lacks a character shows "?" and goes on
    parser = _parser()
    args, args.arguments = parser.parse_known_args(argv)
    if args.arguments and args.work is not _lab:
        parser.error(f"unrecognized arguments: {' '.join(args.arguments)}")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warning
            return args.work(args)
    except ModuleNotFoundError as error:
        course = dict.fromkeys(("papermill", "jupyterlab", "latex2mathml"), "course")
        extra = (course | {"ray": "sweep", "matplotlib": "app"}).get(error.name)
        problem = f"{error.name} is not installed; install the extra it is in: pip install 'minica[{extra}]'"
        if extra is None:  # what raised it says more than its name does, such as who needs it and what to install
            problem = str(error)
    except (ValueError, OSError) as error:
        problem = str(error)
    except KeyboardInterrupt:
        return 130
    print(f"error: {problem}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
