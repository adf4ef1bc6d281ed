"""What a config asks for: every method tuned alike on validation images, then the best of each over seeds on test images.

For every task, backbone and method, each point of the method's grid trains once a tuning seed and is scored on val.  The best
(of equals, the first in the grid's order) then trains once a seed and is scored on test.  What is to be run follows from the
config and the records there are, so a sweep that was stopped goes on with what is missing.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..data import CATALOGUE, PACKAGED, PHOTOGRAPHS
from ..data.named import NAMED
from ..training import PRECISIONS
from .records import RESULTS, read_records, trial_key
from .runs import LOADING, NETWORKS, tuned_classifier, tuned_network
from .scores import collapsed

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "ap", "ap50", "miou")
NUMBERS = {  # key -> type, least value
    "size": (int, 1),
    "epochs": (int, 1),
    "batch_size": (int, 1),
    "labels": (int, 1),
    "warmup": (float, 0),
    "workers": (int, 0),
    "finalists": (int, 1),
    "seeds": (int, 0),
    "repeats": (int, 1),
    "tuning_seeds": (int, 0),
    "lr": (float, 0),
    "weight_decay": (float, 0),
}
GRID = ("lr", "weight_decay")  # of which all pairs are tried
LISTED = (*GRID, "seeds", "tuning_seeds")
SWITCHES = ("cache", "wrong", "weight_cka", "phases", "control", "resplit", "widen")
NORMALIZATIONS = ("backbone", "imagenet")
OF_RUNS = ("seeds", "repeats", "then", "rate_of")  # of a method: which runs it has; all else are its options
SIZES = ("size", "epochs", "batch_size")  # of every run, as
SETTINGS = ("warmup", "workers", "precision", "normalization", "cache", "wrong", "weight_cka", "reference", "network")
REQUIRED = ("backbones", "tasks", "methods", "seeds", *SIZES)
OPTIONAL = (*GRID, *SETTINGS, "tuning_seeds", "finalists", "metric", "phases", "widen", "then")


@dataclass(frozen=True)
class Cell:
    """One number of a table, and all that is tried for it."""

    task: str
    backbone: str
    method: str  # what the config calls it
    grid: dict[str, list]  # what is tuned -> the values tried
    points: list[dict]  # every combination of them, as the configuration of a tuning run but for its seed
    seeds: list[int]  # of the final runs
    widen: bool = False  # whether a rate beyond the grid's edge is tried if the best one lies there
    then: dict[str, list] = field(default_factory=dict)  # key -> values that are tried after that, at the best point so far
    rate_of: str | None = None  # the method whose chosen rate and decay this one has; its own points only say what they may be
    final: dict = field(default_factory=dict)  # what a final run has in the place of the entries that its task tunes with
    repeats: int = 1  # how often a final run of each seed is made, from other initial weights


@dataclass(frozen=True)
class Plan:
    """A config, read and checked."""

    name: str
    seeds: list[int]  # of a method that has none of its own
    tuning_seeds: list[int]
    finalists: int | None  # how many points go on after the first tuning seed; None: all
    metric: str  # that chooses on val and is reported on test
    phases: bool  # whether final runs train on train and val, and only they see the test images
    cells: list[Cell]


# ---------------------------------------------------------------- the config


def read_plan(path: str | os.PathLike, rehearse: bool = True) -> Plan:
    """The plan that a TOML file asks for; ``configs/`` has examples.

    Wherever a list stands, each of its values is meant: of a task's options all combinations are tasks, of a method's options
    all combinations are tried.  With ``resplit = true`` a task's data are split by the seed of each run; with ``labels = n`` a
    run trains on n images, drawn by its seed.

    A task may have its own ``epochs``, and ``tuned = { labels = 100, epochs = 60 }`` what its tuning runs have in the place
    of its own entries: tasks that are tuned alike share these runs.

    A method may have its own ``seeds``, ``lr`` or ``weight_decay``, but not fewer or more pairs of the two than the others,
    unless it says ``control = true``: not tuned, and compared with at a rate that it is given.  With ``rate_of`` = another
    method it has the rate and the decay that were chosen for that one.

    With ``repeats = n`` the final run of each of a method's seeds is made n times, from other initial weights, and counts with
    its mean scores: for methods whose result on few images says little if it is made once.

    With ``widen = true`` a rate beyond the edge is tried once if the best one lies there, as far off as the next one inside.
    ``then = { weight_decay = [0.0], ... }`` tries each of these values after that, key after key, at the best point so far; a
    method may have ``then`` for options of its own, which come last.

    With ``finalists = n`` only the best n points after the first tuning seed are tried with the others.  With
    ``phases = false`` every run trains on train and is scored on val and on test; the choice looks at val alone.

    Args:
        rehearse: build every method once, without numbers; who only looks at records need not.

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
    for key in [key for key in config if key in NUMBERS]:
        _check_numbers(path, key, config[key])
    _check_switches(path, "", config)
    for key, known in (("metric", METRICS), ("normalization", NORMALIZATIONS), ("precision", PRECISIONS)):
        if config.get(key, known[0]) not in known:
            raise ValueError(f"{path}: {key} is {config[key]!r}; choose one of {', '.join(known)}.")
    if config.get("warmup", 0) > 1:
        raise ValueError(f"{path}: warmup is the part of all steps that warms up, from 0 to 1, got {config['warmup']!r}.")
    seeds, tasks, backbones = (_list(config[key]) for key in ("seeds", "tasks", "backbones"))
    tuning_seeds = _list(config.get("tuning_seeds", seeds[0]))
    if "finalists" in config and len(tuning_seeds) == 1:
        raise ValueError(f"{path}: finalists go on to further tuning_seeds, but {tuning_seeds[0]} is the only one; add some.")
    if "finalists" in config and ("then" in config or config.get("widen")):
        raise ValueError(f"{path}: finalists are of one grid; leave them out, or widen and then.")
    if "reference" in config and config["reference"] not in (*PACKAGED, *PHOTOGRAPHS, *CATALOGUE):
        raise ValueError(f"{path}: reference is {config['reference']!r}, and no data set has that name.")
    for task in tasks:
        _check_keys(path, "[[tasks]]: ", task, ("data",), [*(key for key in LOADING if key != "size"), "epochs", "tuned"])
        _check_switches(path, " in [[tasks]]", task)
        _check_tuned(path, task, config.get("phases", True))
        known = (*NAMED, "scenes") if "network" in config else (*PACKAGED, *PHOTOGRAPHS, *CATALOGUE)
        for name in _list(task["data"]):
            if name not in known and not Path(str(name)).expanduser().is_dir():
                raise ValueError(f"{path}: [[tasks]]: there is no data set {name!r}, and no such folder of class folders.")
    if not all(isinstance(backbone, str) for backbone in backbones):
        raise ValueError(f'{path}: backbones must be names, such as "resnet50"; got {config["backbones"]!r}.')
    methods = _methods(path, config)
    if "network" in config and not (isinstance(config["network"], dict) and config["network"].get("name") in NETWORKS):
        raise ValueError(
            f'{path}: network must be such as {{ name = "faster_rcnn", channels = 64 }}, name one of {", ".join(NETWORKS)}.'
        )
    if rehearse:
        _rehearse(path, backbones, methods, config["size"], config.get("network"))
    phases, metric = config.get("phases", True), config.get("metric", METRICS[0])
    fixed = {key: config[key] for key in (*SIZES, *SETTINGS) if key in config} | ({"phase": "tune"} if phases else {})
    cells = [
        _cell(task, backbone, name, dict(method), fixed, config.get("widen", False))
        for table in tasks
        for task in _combinations(table)
        for backbone in backbones
        for name, method in methods.items()
    ]
    return Plan(path.stem, seeds, tuning_seeds, config.get("finalists"), metric, phases, cells)


def _methods(path: Path, config: dict) -> dict[str, dict]:
    """The methods, each with the seeds and the lists of rates and decays that are meant for it, and without ``control``."""
    methods = config["methods"]
    if not (isinstance(methods, dict) and methods and all(isinstance(method, dict) for method in methods.values())):
        raise ValueError(f'{path}: methods must be tables, such as [methods.FT] with method = "full"; got {methods!r}.')
    found, pairs = {}, {}
    for name, method in methods.items():
        if "method" not in method:
            raise ValueError(f"{path}: [methods.{name}]: 'method' is missing, such as \"full\".")
        _check_switches(path, f" in [methods.{name}]", method)
        rates = _leader(path, name, methods) if "rate_of" in method else method
        own = {key: rates.get(key, config.get(key)) for key in GRID} | {"seeds": method.get("seeds", config.get("seeds"))}
        for key, value in own.items():
            if value is None:
                raise ValueError(f"{path}: {key!r} is missing: give it once for all methods, or in [methods.{name}] too.")
            _check_numbers(path, f"{key} in [methods.{name}]", value)
        found[name] = {key: value for key, value in method.items() if key not in ("control", "then")}
        found[name] |= {key: _list(value) for key, value in own.items()}
        _check_numbers(path, f"repeats in [methods.{name}]", method.get("repeats", 1))
        found[name]["then"] = _then(path, "", config) | _then(path, f" in [methods.{name}]", method)
        if method.get("control", False) or "rate_of" in method:
            found[name]["then"] = {}
        else:
            pairs[name] = len(found[name]["lr"]) * len(found[name]["weight_decay"])
    if len(set(pairs.values())) > 1:
        raise ValueError(f"{path}: no method may be tuned less than another, but the pairs of lr and weight_decay are {pairs}.")
    return found


def _leader(path: Path, name: str, methods: dict[str, dict]) -> dict:
    """The method whose rate and decay the method called ``name`` shall have."""
    leader = methods[name]["rate_of"]
    if leader == name or not isinstance(leader, str) or leader not in methods or "rate_of" in methods[leader]:
        raise ValueError(f"{path}: rate_of in [methods.{name}] must name another method, one that is tuned, got {leader!r}.")
    if own := [key for key in (*GRID, "control", "then") if key in methods[name]]:
        raise ValueError(f"{path}: [methods.{name}] has the rate and the decay of {leader!r}; leave out {own[0]!r}.")
    return methods[leader]


def _then(path: Path, where: str, table: dict) -> dict[str, list]:
    """What is tried after the grid, key by key; for all methods only rates and decays, for one only its own options."""
    then = table.get("then", {})
    if not isinstance(then, dict) or not all(isinstance(values, list) and values for values in then.values()):
        raise ValueError(f"{path}: then{where} must be lists by key, such as {{ weight_decay = [0.0] }}, got {then!r}.")
    if wrong := [key for key in then if (key in GRID) == bool(where) or key in ("method", "seeds", "repeats")]:
        remedy = "give it to all methods alike" if where else "give options to the method that has them"
        raise ValueError(f"{path}: then{where} has {wrong[0]!r}; {remedy}.")
    for key in then if not where else ():
        _check_numbers(path, key, then[key])
    return then


def _check_tuned(path: Path, task: dict, phases: bool) -> None:
    """The entries of a task that are numbers of its runs, and what its tuning runs have instead."""
    tuned = task.get("tuned", {})
    if not isinstance(tuned, dict) or not tuned.keys() <= task.keys() - {"tuned", "data"}:
        own = ", ".join(key for key in task if key not in ("tuned", "data")) or "nothing"
        raise ValueError(f"{path}: tuned in [[tasks]] must be a table with other values for some of {own}; got {tuned!r}.")
    if tuned and not phases:
        raise ValueError(f"{path}: with phases = false there are no runs that only tune; leave tuned out of [[tasks]].")
    for key, value in [*task.items(), *tuned.items()]:
        for number in _list(value) if key == "labels" else ():
            _check_numbers(path, f"{key} in [[tasks]]", number)
        if key == "epochs":
            _check_numbers(path, f"{key} in [[tasks]]", value)


def _cell(task: dict, backbone: str, name: str, method: dict, fixed: dict, widen: bool) -> Cell:
    seeds, then, rate_of, points = method.pop("seeds"), method.pop("then"), method.pop("rate_of", None), []
    repeats = method.pop("repeats", 1)
    own = {key: value for key, value in task.items() if key != "tuned"}
    tried = own | task.get("tuned", {})
    fixed = {key: value for key, value in fixed.items() if key not in own}
    then = {key: [float(value) for value in values] if key in GRID else values for key, values in then.items()}
    for point in _combinations(method):
        options = {key: value for key, value in point.items() if key not in ("method", *GRID)}
        chosen = {"method": point["method"], "options": options, **{key: float(point[key]) for key in GRID}}
        points.append({**tried, "backbone": backbone, **chosen, **fixed})
    label = ", ".join([task["data"], *(f"{key} {value}" for key, value in own.items() if key not in ("data", "epochs"))])
    grid = {key: value for key, value in method.items() if isinstance(value, list)}
    grid |= {key: [*grid.get(key, ()), *values] for key, values in then.items()}
    final = {key: own[key] for key in task.get("tuned", ())}
    widen = widen and len(points) > 1 and not rate_of
    return Cell(label, backbone, name, grid, points, seeds, widen, then, rate_of, final, repeats)


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


def _check_switches(path: Path, place: str, given: dict) -> None:
    for key in SWITCHES:
        if not isinstance(given.get(key, False), bool):
            raise ValueError(f"{path}: {key}{place} must be true or false, got {given[key]!r}.")


def _check_numbers(path: Path, key: str, given) -> None:
    kind, least = NUMBERS[key.split()[0]]
    listed = key.split()[0] in LISTED
    wanted = f"{'whole ' if kind is int else ''}number{'s' if listed else ''}"
    for value in _list(given) or [None]:
        right = isinstance(value, (int, kind)) and not isinstance(value, bool) and value >= least
        if not right or (isinstance(given, list) and not listed):
            raise ValueError(f"{path}: {key} must be {'' if listed else 'a '}{wanted} from {least}, got {given!r}.")


def _rehearse(path: Path, backbones: list[str], methods: dict[str, dict], size: int, network: dict | None) -> None:
    """Build, without numbers, every method on the first backbone and the methods' first options on the others: before hours
    are spent, and before any weights are there."""
    for backbone in backbones:
        for name, method in methods.items():
            points = [*_combinations({key: value for key, value in method.items() if key not in (*GRID, *OF_RUNS)})]
            points += [
                points[0] | {key: value} for key, values in method["then"].items() if key not in GRID for value in values
            ]
            for point in points if backbone == backbones[0] else points[:1]:
                try:
                    with torch.device("meta"), warnings.catch_warnings(action="ignore"):
                        config = {"backbone": backbone, "method": point.pop("method"), "options": point, "size": size}
                        if network:
                            tuned_network(config | {"network": network}, 2, pretrained=False)
                        else:
                            tuned_classifier(config, 2, pretrained=False)
                except (ValueError, TypeError) as error:
                    raise ValueError(f"{path}: [methods.{name}] on {backbone}: {error}") from error


# ---------------------------------------------------------------- what is to be done


def chosen(cell: Cell, found: dict[str, dict], plan: Plan) -> tuple[dict, float] | None:
    """The point that is best on val, and its mean there over the tuning seeds; None while a run is missing or has failed."""
    ranked = _ranked(_finalists(cell, found, plan), plan.tuning_seeds, found, plan.metric)
    return ranked[0] if ranked else None


def _ranked(points: list[dict], seeds: list[int], found: dict[str, dict], metric: str) -> list[tuple[dict, float]] | None:
    """Points with their means on val over these seeds, the best first; None while a run is missing or has failed.

    A point with a run that diverged was tried and has lost.  Any other failure says nothing about its point of the grid, and
    choosing without it would tune the method less than the others.
    """
    scores = []
    for point in points:
        records = [found.get(trial_key(point | {"seed": seed})) for seed in seeds]
        errors = ["not run yet" if record is None else record.get("error") for record in records]
        if any(error and not error.startswith("TrainingDiverged") for error in errors):
            return None
        if not any(errors):
            scores.append((point, statistics.mean(record["val"][metric] for record in records)))
    return sorted(scores, key=lambda pair: -pair[1])


def known_points(cell: Cell, found: dict[str, dict], plan: Plan) -> list[dict]:
    """The points to be tried, as far as that is known: the grid, a rate beyond its edge, and what is tried after that."""

    def best() -> dict | None:
        ranked = _ranked(points, plan.tuning_seeds, found, plan.metric)
        return ranked[0][0] if ranked else None

    points = list(cell.points)
    if cell.rate_of:
        (leader,) = [
            other
            for other in plan.cells
            if (other.task, other.backbone, other.method) == (cell.task, cell.backbone, cell.rate_of)
        ]
        if (settled := chosen(leader, found, plan)) is None:
            return []
        pair = {key: settled[0][key] for key in GRID}
        return [point | pair for point in points if all(point[key] == points[0][key] for key in GRID)]
    if cell.widen:
        if (here := best()) is None:
            return points
        rates = sorted({point["lr"] for point in points})
        if len(rates) > 1 and here["lr"] in (rates[0], rates[-1]):
            inside = rates[1] if here["lr"] == rates[0] else rates[-2]
            points.append(here | {"lr": float(f"{here['lr'] ** 2 / inside:.6g}")})
    for key, values in cell.then.items():
        if (here := best()) is None:
            return points
        tried = [here | ({key: value} if key in GRID else {"options": here["options"] | {key: value}}) for value in values]
        points += [point for point in tried if point not in points]
    return points


def _finalists(cell: Cell, found: dict[str, dict], plan: Plan) -> list[dict]:
    """The points that are tried with every tuning seed, as far as that is known."""
    points = known_points(cell, found, plan)
    if plan.finalists is None or len(points) <= plan.finalists:
        return points
    ranked = _ranked(points, plan.tuning_seeds[:1], found, plan.metric) or []
    return [point for point, _ in ranked[: plan.finalists]]


def tuning_runs(cell: Cell, found: dict[str, dict], plan: Plan) -> list[list[dict]]:
    """Of each point of a cell, the runs that the choice is made by."""
    finalists = _finalists(cell, found, plan)
    points = known_points(cell, found, plan)
    seeds = [plan.tuning_seeds if point in finalists else plan.tuning_seeds[:1] for point in points]
    return [[point | {"seed": seed} for seed in own] for point, own in zip(points, seeds, strict=True)]


def at_edge(cell: Cell, found: dict[str, dict], plan: Plan) -> list[str]:
    """Which of the chosen ``"lr"`` and ``"compression"`` are the lowest or the highest of several that were tried.

    Beyond it another might have done better.
    """
    if (best := chosen(cell, found, plan)) is None:
        return []
    points, edges = known_points(cell, found, plan), []
    for name in ("lr", "compression"):
        of_point = [(point | point["options"]).get(name) for point in (best[0], *points)]
        tried = {value for value in of_point if value is not None}
        if len(tried) > 1 and of_point[0] in (min(tried), max(tried)):
            edges.append(name)
    return edges


def final_jobs(cell: Cell, found: dict[str, dict], plan: Plan) -> list[dict]:
    """The last runs of a cell, one a seed and repeat, each with how it was chosen; none before that is settled."""
    best = chosen(cell, found, plan)
    if best is None:
        return []
    drawn = [{"seed": seed} | ({"repeat": n} if n else {}) for seed in cell.seeds for n in range(cell.repeats)]
    if not plan.phases:
        return [{"config": best[0] | own} for own in drawn]
    tried = {"grid": cell.grid, "tried": len(known_points(cell, found, plan)), "seeds": plan.tuning_seeds}
    selection = tried | {"metric": plan.metric, "val": best[1]}
    settled = best[0] | cell.final | {"phase": "final"}
    return [{"config": settled | own, "selection": selection} for own in drawn]


def known_jobs(plan: Plan, found: dict[str, dict]) -> dict[str, dict]:
    """What can be run by now, whether it was or not, by key: tuning runs, and the final ones of cells that are tuned."""
    jobs = [{"config": run} for cell in plan.cells for runs in tuning_runs(cell, found, plan) for run in runs]
    jobs += [job for cell in plan.cells for job in final_jobs(cell, found, plan)]
    return {trial_key(job["config"]): job for job in jobs}


def pending(plan: Plan, found: dict[str, dict]) -> dict[str, dict]:
    """Of those, what has no record."""
    return {key: job for key, job in known_jobs(plan, found).items() if key not in found}


def recorded(name: str) -> tuple[Plan, dict[str, dict]]:
    """The plan ``configs/<name>.toml`` and the committed records there are of it: all, some, or none yet."""
    return read_plan(CONFIGS / f"{name}.toml", rehearse=False), read_records(RESULTS / f"{name}.json")


def final_records(cell: Cell, found: dict[str, dict], plan: Plan) -> list[dict]:
    """The final runs of a cell among the records that were found, one a seed; of repeated runs the first with their means."""
    records = [found.get(trial_key(job["config"])) for job in final_jobs(cell, found, plan)]
    whole = [record for record in records if record is not None and "error" not in record]
    if cell.repeats == 1:
        return whole
    by_seed = [[record for record in whole if record["config"]["seed"] == seed] for seed in cell.seeds]
    return [_mean_of(runs) for runs in by_seed if len(runs) == cell.repeats]


def _mean_of(runs: list[dict]) -> dict:
    """The record of the first of several runs with the mean of all as its test scores, and each one's as ``repeats``.

    One that collapsed is not hidden by the others: then all of them count as collapsed.
    """
    scores = [run["test"] for run in runs]
    means = {key: statistics.mean(score[key] for score in scores) for key, value in scores[0].items() if type(value) is float}
    failed = {"constant": any(collapsed(run) for run in runs)} if "constant" in scores[0] else {}
    return runs[0] | {"test": scores[0] | means | failed, "repeats": scores}


def is_complete(plan: Plan, found: dict[str, dict]) -> bool:
    """Whether every final run has its record."""
    return all(len(final_records(cell, found, plan)) == len(cell.seeds) for cell in plan.cells)
