"""Runs what a config asks for and is not recorded yet, in this process or on Ray; a kill costs one trial."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch
from filelock import FileLock, Timeout

from ..atomic import write_atomically
from .plans import Plan, is_complete, pending, read_plan
from .records import add_record, read_records, trial_key
from .runs import describe, provenance, run
from .tables import sweep_table

FOLDER = Path("build/sweeps")
DEATHS = 2  # of a trial's process, after which the trial has failed and the sweep goes on without it
# The configs whose records are committed, each in the file of its name below records.RESULTS.
RECORDED = ("quickstart", "position", "few_shot_solar_cells", "vtab_packaged", "solar_cells")
KNOBS = ("knobs_position", "knobs_solar_cells", "knobs_signs")  # notebook 04's; the last one's data are below MINICA_DATA


def sweep(
    config: Plan | str | os.PathLike,
    place: str | os.PathLike | None = None,
    *,
    ray: str | None = None,
    jobs: int | None = None,
    cpus: int | None = None,
    gpus: float | None = None,
    retry: bool = False,
) -> bool:
    """Run what a config asks for and ``place`` has no record of, then print the table.

    Args:
        config: a TOML file, see :func:`~minica.experiments.read_plan`, or the plan that was read from one.
        place: of the records, a folder or a ``.json`` file; by default the folder ``build/sweeps/<name of the config>``.
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
    plan = config if isinstance(config, Plan) else read_plan(config)
    given = FOLDER / plan.name if place is None else Path(place)
    place = given.resolve()  # through a link two sweeps would be one
    if ray is not None and ray.startswith("ray://"):
        raise ValueError(
            f"through Ray's client ({ray}) records do not come back; start it on a machine of the cluster: --ray auto."
        )
    with locked(place):
        found = {key: record for key, record in read_records(place).items() if not (retry and "error" in record)}
        todo = pending(plan, found)
        recorded = f"{len(found)} trials recorded in {given}"
        print(f"{plan.name}: {len(plan.cells)} cells, {recorded}, {len(todo)} to run now", flush=True)

        def finished(record: dict) -> None:
            if todo.pop(key := trial_key(record["config"]), None) is None:
                return  # recorded already: its process died after it had sent the record
            found[key] = record
            add_record(place, record)
            scores = [f"{split} {plan.metric} {record[split][plan.metric]:.1%}" for split in ("val", "test") if split in record]
            what = f"{record['config'].get('phase', 'run')}, {len(todo)} to go: {describe(record['config'])}"
            print(f"{what}: {record.get('error') or ', '.join(scores)}", flush=True)

        while todo:  # first the tuning runs, then what follows from their records
            if ray is None:
                _in_process([*todo.values()], finished, cpus, place)
            else:
                _on_ray([*todo.values()], finished, ray, jobs, cpus or 1, gpus)
            if todo:
                first = describe(next(iter(todo.values()))["config"])
                lost = f"{len(todo)} trials ended without a record, the first of them {first}"
                raise RuntimeError(f"{lost}; start the sweep again to go on with them.")
            todo = pending(plan, found)
    print(sweep_table(plan, found))
    return is_complete(plan, found)


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """Refuse a second sweep on the same records: it would run the same trials, and in one file overwrite the other's records.

    The lock is beside what all links to the records lead to.  A killed process leaves the lock's file, but not the lock.
    """
    place = place.resolve()
    file = place.with_name(f".{place.name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(file, timeout=0):
            yield
    except Timeout:
        raise ValueError(
            f"another sweep is writing to {place}; wait until it ends, or choose another place with --out."
        ) from None


def trial(job: dict, cpus: int | None) -> dict:
    """A job's record.  Whatever goes wrong becomes a record too, so that the other trials go on."""
    if cpus is not None:
        torch.set_num_threads(cpus)
    started = time.perf_counter()
    try:
        return job | run(job["config"], progress=False)
    except Exception as error:
        seconds = round(time.perf_counter() - started, 1)
        return job | {"error": f"{type(error).__name__}: {_one_line(error)}", "seconds": seconds, **provenance()}


def _one_line(error: Exception | str) -> str:
    return " ".join(str(error).split())[:500]


def _in_process(todo: list[dict], finished: Callable[[dict], None], cpus: int | None, place: Path) -> None:
    """Trial by trial.  What is begun is noted beside the records: of a trial that kills this process nobody else could tell."""
    threads, begun = torch.get_num_threads(), place.with_name(f".{place.name}.begun")
    try:
        for job in todo:
            key, before = trial_key(job["config"]), _begun(begun)
            if before.get(key, 0) >= DEATHS:
                error = f"the trial's process died {DEATHS} times, as if killed or out of memory; --retry tries again"
                finished(job | {"error": error, **provenance()})
            else:
                write_atomically(begun, json.dumps(before | {key: before.get(key, 0) + 1}).encode())
                try:
                    finished(trial(job, cpus))
                except KeyboardInterrupt:  # it was not the trial's fault
                    write_atomically(begun, json.dumps(before).encode())
                    raise
            write_atomically(begun, json.dumps({other: count for other, count in before.items() if other != key}).encode())
        begun.unlink(missing_ok=True)
    finally:
        torch.set_num_threads(threads)


def _begun(file: Path) -> dict[str, int]:
    """How often trials without a record were begun, by key."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {key: count for key, count in found.items() if isinstance(count, int)}
    except (OSError, ValueError, AttributeError):
        return {}


def _on_ray(
    todo: list[dict], finished: Callable[[dict], None], address: str, jobs: int | None, cpus: int, gpus: float | None
) -> None:
    # By default Ray reports usage, draws boxes, changes the folder, writes three logs a trial and handles Ctrl-C itself.
    settings = dict.fromkeys(("RAY_USAGE_STATS_ENABLED", "RAY_AIR_NEW_OUTPUT", "RAY_CHDIR_TO_TRIAL_DIR"), "0")
    settings |= dict.fromkeys(("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "TUNE_DISABLE_SIGINT_HANDLER"), "1")
    os.environ.update(settings | os.environ)
    import ray
    from ray import tune as ray_tune

    class Record(ray_tune.Callback):
        """Records are written here, where the sweep was started; the machines of a cluster share no folder."""

        def on_trial_result(self, iteration, trials, trial, result, **info):
            finished(result["record"])

        def on_trial_error(self, iteration, trials, trial, **info):  # the process died; exceptions are records, see trial()
            error = _one_line(str(trial.get_error()).rpartition("ray.exceptions.")[2])  # without the traceback before it
            error = error or type(trial.get_error()).__name__
            finished({**trial.config["job"], "error": f"the trial's process died {DEATHS} times: {error}", **provenance()})

    here = dict(num_cpus=jobs and jobs * cpus, include_dashboard=False, object_store_memory=10**8) if address == "local" else {}
    _start_ray(address, here)
    try:
        if gpus is None:
            gpus = 1 if ray.cluster_resources().get("GPU") else 0
        with tempfile.TemporaryDirectory() as scratch:
            ray_tune.Tuner(
                ray_tune.with_resources(_ray_trial, {"cpu": cpus, "gpu": gpus}),
                param_space={"job": ray_tune.grid_search(todo), "cpus": cpus},
                tune_config=ray_tune.TuneConfig(max_concurrent_trials=jobs, reuse_actors=True),
                run_config=ray_tune.RunConfig(
                    storage_path=scratch,
                    callbacks=[Record()],
                    verbose=0,
                    failure_config=ray_tune.FailureConfig(max_failures=DEATHS - 1),
                ),
            ).fit()
    finally:
        ray.shutdown()


def _start_ray(address: str, options: dict) -> None:
    """Start or join Ray.  It gives its own processes 15 seconds, which no option changes: on a busy machine, try again."""
    import ray

    before = psutil.Process().children(recursive=True)
    for retries in range(9, -1, -1):
        try:
            ray.init(address, log_to_driver=False, logging_level="error", **options)
            return
        except Exception as error:
            if not retries or "timed out during startup" not in str(error):
                raise
        for process in set(psutil.Process().children(recursive=True)).difference(before):
            with suppress(psutil.Error):
                process.kill()


def _ray_trial(config: dict) -> dict:
    return {"record": trial(config["job"], config["cpus"])}
