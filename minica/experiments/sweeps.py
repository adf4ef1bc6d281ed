"""How is a whole grid run, with every method tuned alike, nothing run twice, and no kill that costs more than one trial?

For every task, backbone and method of a config, each point of the method's grid trains on train, once a tuning seed, and is
scored on val.  The best (of equals, the first in the grid's order) then trains once a seed on train and val together and is
scored on test.  A trial is one JSON file, written when it is complete and named by its configuration: the folder is all that
a sweep knows, so starting it again goes on with what is not there.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
import tomllib
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from ..backbones import create_backbone
from ..data import BENCHMARKS, PACKAGED
from ..training import wilson_interval
from ..tuning import tune
from .runs import LOADING, describe, run, trial_key, trials, where, write_records, write_trial
from .tables import spread_text

FOLDER = Path("build/sweeps")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECORDED = ("few_shot_solar_cells", "vtab_packaged", "solar_cells")  # the configs whose records are committed
METRICS = ("accuracy", "balanced_accuracy", "macro_f1")
NUMBERS = {  # key -> type, least value; those of GRID are lists of which all pairs are tried
    "size": (int, 1),
    "epochs": (int, 1),
    "batch_size": (int, 1),
    "warmup": (float, 0),
    "workers": (int, 0),
    "seeds": (int, 0),
    "tuning_seeds": (int, 0),
    "lr": (float, 0),
    "weight_decay": (float, 0),
}
GRID = ("lr", "weight_decay")
REQUIRED = ("backbones", "tasks", "methods", "seeds", "size", "epochs", "batch_size")
SWITCHES = ("cache", "wrong")
NORMALIZATIONS = ("backbone", "imagenet")
OPTIONAL = (*GRID, "warmup", "workers", "tuning_seeds", "metric", "normalization", *SWITCHES)


@dataclass(frozen=True)
class Cell:
    """One number of a table, and all that is tried for it."""

    task: str
    backbone: str
    method: str  # what the config calls it
    grid: dict[str, list]  # what is tuned -> the values tried
    points: list[dict]  # every combination of them, as the configuration of a tuning run but for its seed


@dataclass(frozen=True)
class Plan:
    name: str
    seeds: list[int]
    tuning_seeds: list[int]
    metric: str  # that chooses on val and is reported on test
    cells: list[Cell]


# ---------------------------------------------------------------- the config


def read_plan(path: str | os.PathLike) -> Plan:
    """The plan that a TOML file asks for; ``configs/`` has examples.

    Wherever a list stands, each of its values is meant: of a task's options all combinations are tasks, of a method's options
    all combinations are tried.  A method may have its own ``lr`` or ``weight_decay``, but not fewer or more pairs of them than
    the others.

    Raises:
        ValueError: naming file and key, for what is unknown, missing, of the wrong kind, or tuned less than the rest; also if
            a backbone or a method cannot be built.
    """
    path = Path(path)
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as TOML: {getattr(error, 'strerror', None) or error}.") from error
    _check_keys(path, "", config, REQUIRED, OPTIONAL)
    recipe = {key: _numbers(path, key, config[key]) for key in config if key in NUMBERS}
    seeds = _list(recipe.pop("seeds"))
    tuning_seeds = _list(recipe.pop("tuning_seeds", seeds[0]))
    metric = config.get("metric", "accuracy")
    if metric not in METRICS:
        raise ValueError(f"{path}: metric is {metric!r}; choose one of {', '.join(METRICS)}.")
    if config.get("normalization", "backbone") not in NORMALIZATIONS:
        raise ValueError(f"{path}: normalization is {config['normalization']!r}; choose one of {', '.join(NORMALIZATIONS)}.")
    if recipe.get("warmup", 0) > 1:
        raise ValueError(f"{path}: warmup is the part of all steps that warms up, from 0 to 1, got {config['warmup']!r}.")
    for key in SWITCHES:
        if not isinstance(config.get(key, False), bool):
            raise ValueError(f"{path}: {key} must be true or false, got {config[key]!r}.")
    tasks, methods = _list(config["tasks"]), config["methods"]
    for task in tasks:
        _check_keys(path, "[[tasks]]: ", task, ("data",), [key for key in LOADING if key != "size"])
        for name in _list(task["data"]):
            if name not in (*PACKAGED, *BENCHMARKS) and not Path(str(name)).expanduser().is_dir():
                raise ValueError(f"{path}: [[tasks]]: there is no data set {name!r}, and no such folder of class folders.")
    if not (isinstance(methods, dict) and methods and all(isinstance(method, dict) for method in methods.values())):
        raise ValueError(f'{path}: methods must be tables, such as [methods.FT] with method = "full"; got {methods!r}.')
    pairs = {}
    for name, method in methods.items():
        if "method" not in method:
            raise ValueError(f"{path}: [methods.{name}]: 'method' is missing, such as \"full\".")
        for key in GRID:
            if key not in method and key not in recipe:
                raise ValueError(f"{path}: {key!r} is missing: give it once for all methods, or in [methods.{name}] too.")
        own = {key: _list(_numbers(path, f"{key} in [methods.{name}]", method.get(key, recipe.get(key)))) for key in GRID}
        methods[name] = {**method, **own}
        pairs[name] = len(own["lr"]) * len(own["weight_decay"])
    if len(set(pairs.values())) > 1:
        raise ValueError(f"{path}: no method may be tuned less than another, but the pairs of lr and weight_decay are {pairs}.")
    if not all(isinstance(backbone, str) for backbone in _list(config["backbones"])):
        raise ValueError(f'{path}: backbones must be names, such as "resnet50"; got {config["backbones"]!r}.')
    _rehearse(path, _list(config["backbones"]), methods)

    fixed = {key: config[key] for key in config if key in ("normalization", *SWITCHES) or key in recipe and key not in GRID}
    cells = [
        _cell(task, backbone, name, method, fixed)
        for table in tasks
        for task in _combinations(table)
        for backbone in _list(config["backbones"])
        for name, method in methods.items()
    ]
    return Plan(path.stem, seeds, tuning_seeds, metric, cells)


def _cell(task: dict, backbone: str, name: str, method: dict, fixed: dict) -> Cell:
    points = []
    for point in _combinations(method):
        options = {key: value for key, value in point.items() if key not in ("method", *GRID)}
        chosen = {"method": point["method"], "options": options, **{key: float(point[key]) for key in GRID}}
        points.append({**task, "backbone": backbone, **chosen, **fixed, "phase": "tune"})
    label = ", ".join([task["data"], *(f"{key} {value}" for key, value in task.items() if key != "data")])
    return Cell(label, backbone, name, {key: value for key, value in method.items() if isinstance(value, list)}, points)


def _list(value) -> list:
    return value if isinstance(value, list) else [value]


def _combinations(table: dict) -> Iterator[dict]:
    """One table for each combination of what its lists hold; the first key changes slowest."""
    for values in itertools.product(*map(_list, table.values())):
        yield dict(zip(table, values, strict=True))


def _check_keys(path: Path, place: str, given: dict, required, optional) -> None:
    if not isinstance(given, dict):
        raise ValueError(f"{path}: {place}expected a table of {', '.join([*required, *optional])}; got {given!r}.")
    if unknown := sorted(given.keys() - {*required, *optional}):
        raise ValueError(f"{path}: {place}unknown key {unknown[0]!r}; the keys are {', '.join([*required, *optional])}.")
    if missing := [key for key in required if given.get(key) in (None, [], {})]:
        raise ValueError(f"{path}: {place}{missing[0]!r} is missing.")


def _numbers(path: Path, key: str, given):
    kind, least = NUMBERS[key.split()[0]]
    listed = key.split()[0] in (*GRID, "seeds", "tuning_seeds")
    wanted = f"{'whole ' if kind is int else ''}number{'s' if listed else ''}"
    for value in _list(given) or [None]:
        right = isinstance(value, (int, kind)) and not isinstance(value, bool) and value >= least
        if not right or (isinstance(given, list) and not listed):
            raise ValueError(f"{path}: {key} must be {'' if listed else 'a '}{wanted} from {least}, got {given!r}.")
    return given


def _rehearse(path: Path, backbones: list[str], methods: dict[str, dict]) -> None:
    """Build, without numbers, every method on the first backbone and the methods' first options on the others: before hours
    are spent, and before any weights are there."""
    for backbone in backbones:
        for name, method in methods.items():
            points = _combinations({key: value for key, value in method.items() if key not in GRID})
            for point in points if backbone == backbones[0] else itertools.islice(points, 1):
                try:
                    with torch.device("meta"), warnings.catch_warnings(action="ignore"):
                        model = create_backbone(backbone, num_classes=2, pretrained=False)
                        tune(model, point.pop("method"), **point)
                except (ValueError, TypeError) as error:
                    raise ValueError(f"{path}: [methods.{name}] on {backbone}: {error}") from error


# ---------------------------------------------------------------- what is to be done


def chosen(cell: Cell, found: dict[str, dict], plan: Plan) -> tuple[dict, float] | None:
    """The point that is best on val, and its mean there over the tuning seeds; None while a run is missing or has failed.

    A point with a run that diverged was tried and has lost.  Any other failure says nothing about its point of the grid, and
    choosing without it would tune the method less than the others.
    """
    scores = []
    for point in cell.points:
        records = [found.get(trial_key(run)) for run in _tuning_runs(point, plan)]
        errors = ["not run yet" if record is None else record.get("error") for record in records]
        if any(error and not error.startswith("TrainingDiverged") for error in errors):
            return None
        if not any(errors):
            scores.append((point, statistics.mean(record["val"][plan.metric] for record in records)))
    return max(scores, key=lambda pair: pair[1], default=None)


def _tuning_runs(point: dict, plan: Plan) -> list[dict]:
    return [point | {"seed": seed} for seed in plan.tuning_seeds]


def final_jobs(cell: Cell, found: dict[str, dict], plan: Plan) -> list[dict]:
    """The last runs of a cell, one a seed, each with how it was chosen; none before that is settled."""
    best = chosen(cell, found, plan)
    if best is None:
        return []
    tried = {"grid": cell.grid, "tried": len(cell.points), "seeds": plan.tuning_seeds}
    selection = tried | {"metric": plan.metric, "val": best[1]}
    return [{"config": best[0] | {"phase": "final", "seed": seed}, "selection": selection} for seed in plan.seeds]


def known_jobs(plan: Plan, found: dict[str, dict]) -> dict[str, dict]:
    """What can be run by now, whether it was or not, by key: tuning runs, and the final ones of cells that are tuned."""
    jobs = [{"config": run} for cell in plan.cells for point in cell.points for run in _tuning_runs(point, plan)]
    jobs += [job for cell in plan.cells for job in final_jobs(cell, found, plan)]
    return {trial_key(job["config"]): job for job in jobs}


def pending(plan: Plan, found: dict[str, dict]) -> dict[str, dict]:
    """Of those, what has no record."""
    return {key: job for key, job in known_jobs(plan, found).items() if key not in found}


# ---------------------------------------------------------------- doing it


def sweep(
    path: str | os.PathLike,
    folder: str | os.PathLike | None = None,
    *,
    ray: str | None = None,
    jobs: int | None = None,
    cpus: int | None = None,
    gpus: float | None = None,
    retry: bool = False,
) -> bool:
    """Run what a config asks for and ``folder`` has no record of, then print the table.

    Args:
        path: the config; see :func:`read_plan`.
        folder: of the records, by default ``build/sweeps/<name of the config>``; or a file, ``records.json``, for all of them.
        ray: None runs trial by trial in this process; ``"local"`` on Ray over this machine's cores and GPUs, or the address
            of a cluster (``"auto"``: the one this machine belongs to), whose machines need this package and the data.
        jobs: at most so many trials at a time on Ray.
        cpus: cores a trial, by default PyTorch's choice in this process, and one on Ray.  The last bits depend on it.
        gpus: of Ray, GPUs a trial, or a part of one; by default one if the cluster has any.
        retry: run again what has failed.

    Returns:
        Whether every final run of the plan has a record.

    Raises:
        ValueError: for a config that :func:`read_plan` refuses, a file among the records that is none, another sweep that
            is running on the same records, or an address of Ray that cannot bring them back.
    """
    plan = read_plan(path)
    folder = FOLDER / plan.name if folder is None else Path(folder)
    if ray is not None and ray.startswith("ray://"):
        raise ValueError(
            f"through Ray's client ({ray}) records do not come back; start it on a machine of the cluster: --ray auto."
        )
    with _locked(folder):
        return _sweep(plan, folder, ray, jobs, cpus, gpus, retry)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two sweeps on the same records would run each other's trials, and in one file undo each other's writing.

    A killed process leaves the file and not the lock.
    """
    place = folder.with_name(f".{folder.name}.lock")
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(place, timeout=0):
            yield
    except Timeout:
        raise ValueError(
            f"another sweep is writing to {folder}; wait until it ends, or choose another place with --out."
        ) from None


def _sweep(
    plan: Plan, folder: Path, ray: str | None, jobs: int | None, cpus: int | None, gpus: float | None, retry: bool
) -> bool:
    found = {key: record for key, record in trials(folder).items() if not (retry and "error" in record)}
    todo = pending(plan, found)
    print(f"{plan.name}: {len(plan.cells)} cells, {len(found)} trials recorded in {folder}, {len(todo)} to run now", flush=True)

    def finished(record: dict) -> None:
        key = trial_key(record["config"])
        if todo.pop(key, None) is None:  # its process died when the record was here already
            return
        found[key] = record
        if folder.suffix == ".json":
            write_records(folder, [*found.values()])
        else:
            write_trial(folder, record)
        score = record.get("error") or ", ".join(
            f"{split} {plan.metric} {record[split][plan.metric]:.1%}" for split in ("val", "test") if split in record
        )
        print(f"{record['config']['phase']}, {len(todo)} to go: {describe(record['config'])}: {score}", flush=True)

    while todo:  # first all tuning, then the final runs of what could be tuned
        if ray is None:
            _in_process([*todo.values()], finished, cpus)
        else:
            _on_ray([*todo.values()], finished, ray, jobs, cpus or 1, gpus)
        if todo:
            raise RuntimeError(f"{len(todo)} trials ended without a word; start the sweep again, and it goes on with them.")
        todo = pending(plan, found)
    print(sweep_table(plan, found))
    return all(len(final_records(cell, found, plan)) == len(plan.seeds) for cell in plan.cells)


def trial(job: dict, cpus: int | None) -> dict:
    """A job's record.  Whatever goes wrong becomes a record too, so that the other trials go on."""
    if cpus is not None:
        torch.set_num_threads(cpus)
    started = time.perf_counter()
    try:
        return job | run(job["config"], progress=False)
    except Exception as error:
        seconds = round(time.perf_counter() - started, 1)
        return job | {"error": f"{type(error).__name__}: {_one_line(error)}", "seconds": seconds, **where()}


def _one_line(error: Exception | str) -> str:
    return " ".join(str(error).split())[:500]


def _in_process(todo: list[dict], finished: Callable[[dict], None], cpus: int | None) -> None:
    threads = torch.get_num_threads()
    try:
        for job in todo:
            finished(trial(job, cpus))
    finally:
        torch.set_num_threads(threads)


def _on_ray(
    todo: list[dict], finished: Callable[[dict], None], address: str, jobs: int | None, cpus: int, gpus: float | None
) -> None:
    # What Ray would do unasked: report usage, draw boxes, move to another folder, write three logs a trial, take over Ctrl-C.
    for key in ("RAY_USAGE_STATS_ENABLED", "RAY_AIR_NEW_OUTPUT", "RAY_CHDIR_TO_TRIAL_DIR"):
        os.environ.setdefault(key, "0")
    for key in ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "TUNE_DISABLE_SIGINT_HANDLER"):
        os.environ.setdefault(key, "1")
    import ray
    from ray import tune as ray_tune

    class Record(ray_tune.Callback):
        """Records are written here, where the sweep was started; the machines of a cluster share no folder."""

        def on_trial_result(self, iteration, trials, trial, result, **info):
            finished(result["record"])

        def on_trial_error(self, iteration, trials, trial, **info):  # what only went wrong in a process has its record
            error = _one_line(str(trial.get_error()).rpartition("ray.exceptions.")[2])  # without the traceback before it
            finished({**trial.config["job"], "error": f"the trial's process died: {error}", **where()})

    here = dict(num_cpus=jobs and jobs * cpus, include_dashboard=False, object_store_memory=10**8) if address == "local" else {}
    ray.init(address, log_to_driver=False, logging_level="error", **here)
    try:
        if gpus is None:
            gpus = 1 if ray.cluster_resources().get("GPU") else 0
        with tempfile.TemporaryDirectory() as scratch:
            ray_tune.Tuner(
                ray_tune.with_resources(_ray_trial, {"cpu": cpus, "gpu": gpus}),
                param_space={"job": ray_tune.grid_search(todo), "cpus": cpus},
                tune_config=ray_tune.TuneConfig(max_concurrent_trials=jobs, reuse_actors=True),
                run_config=ray_tune.RunConfig(storage_path=scratch, callbacks=[Record()], verbose=0),
            ).fit()
    finally:
        ray.shutdown()


def _ray_trial(config: dict) -> dict:
    return {"record": trial(config["job"], config["cpus"])}


# ---------------------------------------------------------------- what came out


def final_records(cell: Cell, found: dict[str, dict], plan: Plan) -> list[dict]:
    """The final runs of a cell among the records found by :func:`~minica.experiments.trials`, one a seed."""
    records = [found.get(trial_key(job["config"])) for job in final_jobs(cell, found, plan)]
    return [record for record in records if record is not None and "error" not in record]


def sweep_table(plan: Plan, found: dict[str, dict]) -> str:
    """What the sweep found so far, as Markdown; below it each failure once, how many trials it cost, and the first of them."""
    metric = plan.metric.replace("_", " ")
    lines = [
        "| task | backbone | method | tried | chosen | trained parameters "
        f"| test {metric} (%): mean ± standard deviation over seeds ({len(plan.seeds)}) | 95 % interval of one run |",
        "|" + "---|" * 8,
    ]
    for cell in plan.cells:
        tried = sum(all(trial_key(run) in found for run in _tuning_runs(point, plan)) for point in cell.points)
        row = [cell.task, cell.backbone, cell.method, f"{tried} of {len(cell.points)}"]
        finals = final_records(cell, found, plan)
        if len(finals) < len(plan.seeds):
            lines.append(f"| {' | '.join(row)} | - | - | - | - |")
            continue
        config = finals[0]["config"]
        values = {key: (config | config["options"])[key] for key, tried in cell.grid.items() if len(tried) > 1}
        scores = [100 * record["test"][plan.metric] for record in finals]
        row.append(", ".join(f"{key} {value}" for key, value in values.items()))
        row += [f"{finals[0]['trainable']:,}", spread_text(scores, digits=1)]
        lines.append(f"| {' | '.join(row)} | {_interval(finals, plan.metric)} |")
    failures = defaultdict(list)
    for key in known_jobs(plan, found):
        if "error" in found.get(key, ()):
            failures[found[key]["error"]].append(describe(found[key]["config"]))
    return "\n".join([*lines, *(f"Failed ({len(those)}): {error} First: {those[0]}" for error, those in failures.items())])


def grid_table(plan: Plan, found: dict[str, dict]) -> str:
    """The same in short, as Markdown: a row a task, a column a method, each the test metric in %."""
    scores: dict[str, dict[str, str]] = defaultdict(dict)
    for cell in plan.cells:
        finals = [100 * record["test"][plan.metric] for record in final_records(cell, found, plan)]
        scores[cell.task][cell.method] = spread_text(finals, digits=1) if len(finals) == len(plan.seeds) else "-"
    methods = list(dict.fromkeys(cell.method for cell in plan.cells))
    lines = [
        "| " + " | ".join([f"test {plan.metric.replace('_', ' ')} (%)", *methods]) + " |",
        "|" + "---|" * (len(methods) + 1),
    ]
    return "\n".join([*lines, *(f"| {task} | {' | '.join(row[m] for m in methods)} |" for task, row in scores.items())])


def _interval(finals: list[dict], metric: str) -> str:
    """How far one run's number may be off because the test images are few."""
    if metric != "accuracy":
        return ""
    n = finals[0]["test"]["n"]
    mean = sum(record["test"]["accuracy"] for record in finals) / len(finals)
    low, high = wilson_interval(round(mean * n), n)
    return f"{low:.1%} to {high:.1%} of {n:,} images"
