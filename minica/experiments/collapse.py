"""When training with frozen BatchNorm never leaves guessing: the trials that look for the cause and for a remedy.

**Collapse**, as it was defined before the first of these runs: the training loss of the last pass over the data is at least
0.98 ln C, for C classes of equal size, *and* the standard deviation of the classifier's input over images is below 1 % of what
it was before the first step.  Runs that learn pass through small deviations too, so neither half is enough.

Each trial changes one thing of a setting that often collapses: how long the rate rises, in steps and as a part of all steps;
how much rate that is in sum; how Adam counts its second moment; what BatchNorm normalises by; how the last activation
saturates; which tensors have the high rate.  The remedy is chosen on one task, confirmed on two others, and its price is
measured where nothing collapses.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from ..fast.layout import channels_last, in_channels_last
from ..fast.lean import lean
from ..profiling import modes_kept
from ..recipe import frozen_running_stats, plain
from ..tasks.classification import SAME, wilson_interval
from ..training import evaluate, learning_rate, parameter_groups
from .records import RESULTS, add_record, read_records, trial_key
from .runs import prepare, provenance
from .scores import Comparison, comparison
from .sweeps import locked
from .tables import markdown

LOSS, DEVIATION = 0.98, 0.01  # of the definition
EVERY = 5  # steps between two points of a trial's curves
SHOWN = 256  # images whose features are compared before and after

IMAGES = {"shapes": 800, "solar-cells": 1968}  # of a pass

LITE0 = dict(backbone="tf_efficientnet_lite0", size=64, batch_size=16, weight_decay=1e-2, method="conv_adapter")
TRUNK = LITE0 | dict(backbone="resnet50v2_c4")
RESIDUAL = LITE0 | dict(options=dict(scheme="residual_parallel", compression=1), lr=1e-2)
PARALLEL = LITE0 | dict(options=dict(scheme="conv_parallel", compression=64), lr=5e-3)
SEQUENTIAL = LITE0 | dict(options=dict(scheme="conv_sequential", compression=64), lr=2e-3)
BOTTLENECK = TRUNK | dict(options=dict(scheme="conv_parallel", compression=4), lr=1e-2)
POSITION, ORIENTATION, COUNT = (dict(data="shapes", task=task) for task in ("position", "orientation", "count"))
# 0.1, the paper's part of all steps, 0.3 and 0.5
SHORT, LONG, HALF = (dict(steps=300, warmup_steps=n) for n in (30, 90, 150))

# Name of a group -> what its cells change, and how many seeds each has.  Earlier groups decide what is run at all.
GROUPS = {
    "decisive": ([RESIDUAL | POSITION | SHORT, RESIDUAL | POSITION | LONG], 20),
    "confirmation": ([RESIDUAL | task | steps for task in (ORIENTATION, COUNT) for steps in (HALF, LONG, SHORT)], 10),
    "schemes": ([setting | POSITION | steps for setting in (PARALLEL, SEQUENTIAL) for steps in (SHORT, LONG)], 10),
    "price": (
        [
            setting | dict(lr=2e-3) | steps
            for setting in (
                RESIDUAL | COUNT,
                RESIDUAL | ORIENTATION,
                RESIDUAL | POSITION,
                RESIDUAL | dict(data="solar-cells", task="defect", size=96),
            )
            for steps in (SHORT, HALF, LONG)
        ],
        10,
    ),
    "steps": (
        [RESIDUAL | POSITION | dict(steps=total, warmup_steps=n) for total in (300, 900) for n in (10, 40, 120)]
        # The highest rate at which 10 steps of warm-up sum to as much rate within 120 steps as 120 steps of it do at 1e-2.
        + [RESIDUAL | POSITION | dict(steps=300, warmup_steps=10, lr=5.4e-3)],
        10,
    ),
    "causes": (
        [
            RESIDUAL | POSITION | SHORT | change
            for change in (
                dict(beta2=0.99),
                dict(optimizer="RAdam"),
                dict(batch_statistics="all"),
                dict(batch_statistics="last stage"),
                dict(last_activation="ReLU"),
                dict(classifier_rate=0.1),
                dict(adapter_rate=0.1),
            )
        ],
        10,
    ),
    "remedies": (
        [
            RESIDUAL | POSITION | change
            for change in (
                HALF,
                LONG | dict(classifier_rate=0.1),
                LONG | dict(optimizer="RAdam"),
            )
        ],
        10,
    ),
    "trunk": ([BOTTLENECK | POSITION | SHORT, BOTTLENECK | POSITION | LONG], 10),
}


def trials(group: str) -> list[dict]:
    """The configurations of a group; seed by seed, so that a part of a group is a part of every cell."""
    cells, seeds = GROUPS[group]
    return [cell | {"seed": seed} for seed in range(seeds) for cell in cells]


def cells(groups: list[str], found: dict[str, dict]) -> list[tuple[dict, list[dict]]]:
    """The cells of some groups: what all trials of one share, and the records there are of them."""
    return [
        (cell, [found[key] for seed in range(GROUPS[group][1]) if (key := trial_key(cell | {"seed": seed})) in found])
        for group in groups
        for cell in GROUPS[group][0]
    ]


def run_all(groups: list[str], place=RESULTS / "collapse.json") -> None:
    """Run what has no record yet, trial by trial, group by group."""
    if unknown := [name for name in groups if name not in GROUPS]:
        raise ValueError(f"unknown group {unknown[0]!r}; choose among {', '.join(GROUPS)}.")
    with locked(place):
        found = read_records(place)
        for group in groups or GROUPS:
            todo = [config for config in trials(group) if trial_key(config) not in found]
            for at, config in enumerate(todo):
                record = trial(config)
                found[trial_key(config)] = record
                add_record(place, record)
                what = "collapsed" if collapsed(record) else f"test {record['test']:.1%}"
                print(f"{group}: {at + 1} of {len(todo)}: {config}: {what}, {record['seconds']:.0f} s", flush=True)


def collapsed(record: dict) -> bool:
    """Whether a trial ended as the module's first lines define it."""
    return record["final_loss"] >= LOSS * math.log(record["classes"]) and record["deviation"] < DEVIATION


def remedy(found: dict[str, dict]) -> str:
    """Whether longer warm-ups are a remedy where they were looked for: a sentence each, for any outcome."""
    (short, before), *longer = cells(["decisive"], found) + cells(["remedies"], found)[:1]
    lines = []
    for long, after in longer:
        if not before or not after:
            lines.append(f"With {long['warmup_steps']} steps of warm-up out of {long['steps']}: not run.")
            continue
        shares = [(sum(map(collapsed, records)), len(records)) for records in (before, after)]
        (low, high), (low_after, high_after) = (wilson_interval(*share) for share in shares)
        what = "less often" if high_after < low else "more often" if low_after > high else "not certainly less often"
        (old, new) = (
            f"{dead} of {n} ({100 * a:.0f} to {100 * b:.0f} %)"
            for (dead, n), (a, b) in zip(shares, ((low, high), (low_after, high_after)), strict=True)
        )
        lines.append(
            f"With {long['warmup_steps']} steps of warm-up out of {long['steps']} runs collapse {what} than with "
            f"{short['warmup_steps']}: {new} against {old}."
        )
    return "\n".join(lines)


def summary(found: dict[str, dict]) -> str:
    """How many runs collapse by task and warm-up, what the longest one costs, how often the warning is right; as Markdown."""
    rows = []
    for task in (POSITION, ORIENTATION, COUNT):
        row = [task["task"]]
        for steps in (SHORT, LONG, HALF):
            keys = (trial_key(RESIDUAL | task | steps | {"seed": seed}) for seed in range(20))
            runs = [found[key] for key in keys if key in found]
            dead = sum(map(collapsed, runs))
            low, high = wilson_interval(dead, len(runs)) if runs else (0, 1)
            row.append(f"{dead} of {len(runs)} ({100 * low:.0f} to {100 * high:.0f} %)" if runs else "not run")
        rows.append(row)
    table = markdown(["task", *(f"{steps['warmup_steps']} of {steps['steps']} steps" for steps in (SHORT, LONG, HALF))], rows)
    cost, right = price(found), alarms(found.values())
    mean, low, high = (f"{100 * value:+.1f}" for value in cost[1:])
    short, half = SHORT["warmup_steps"], HALF["warmup_steps"]
    shares = [(right["missed"], right["collapsed"]), (right["false"], right["others"])]
    missed, false = (
        f"{count} ({100 * a:.0f} to {100 * b:.0f} %)" for count, n in shares for a, b in [wilson_interval(count, n)]
    )
    default = [record for record in found.values() if record["config"].items() >= HALF.items()]
    dead = sum(map(collapsed, default))
    first, last = wilson_interval(dead, len(default))
    said = (
        f"With the default, {half} of {HALF['steps']} steps, {dead} of {len(default)} runs collapsed over all tasks and rates "
        f"({100 * first:.0f} to {100 * last:.0f} %).\n"
        f"At a rate of 2e-3, where nothing collapses, {half} steps against {short} change the test accuracy by "
        f"{mean} points (95 % interval {low} to {high}, {len(cost.differences)} pairs of runs on shapes and solar cells).\n"
        f"Of {right['collapsed']} runs that collapsed the warning missed {missed}; of {right['others']} others it was wrong "
        f"about {false}."
    )
    return f"{table}\n\n{said}"


def price(found: dict[str, dict], before: dict = SHORT, after: dict = HALF) -> Comparison:
    """What another warm-up costs where nothing collapses: test accuracy ``after`` minus ``before``.

    All pairs of trials of the group ``"price"`` that differ in nothing else, over its cells and seeds together.

    Raises:
        ValueError: for fewer than two such pairs.
    """
    differences = {}
    for config in trials("price"):
        pair = [found.get(trial_key(config | steps)) for steps in (before, after)]
        if config.items() >= before.items() and all(pair):
            differences[len(differences)] = pair[1]["test"] - pair[0]["test"]
    if len(differences) < 2:
        raise ValueError(f"the records have {len(differences)} pairs of trials to compare; run the group price.")
    return comparison(differences)


def alarmed(record: dict) -> bool:
    """Whether :func:`minica.fit` would have warned in this trial, at the end of a pass from the second on, within two steps.

    The curve has differences of probabilities.  Where all answers are alike these are near 1 / C, and the differences of their
    logarithms, which ``fit`` looks at, C times as large.
    """
    a_pass = IMAGES[record["config"]["data"]] // record["config"]["batch_size"]
    ends = range(2 * a_pass, record["config"]["steps"], a_pass)
    return any(row[4] * record["classes"] < SAME for row in record["curve"] if any(abs(row[0] - end) <= 2 for end in ends))


def alarms(records: Iterable[dict]) -> dict[str, int]:
    """How often the warning is right: of trials that ``collapsed`` how many it ``missed``, of all others the ``false`` alarms.

    Trials whose curves do not hold what the warning looks at are not counted; those set its limit.
    """
    counted = [(collapsed(record), alarmed(record)) for record in records if len(record["curve"][0]) == 5]
    return {
        "collapsed": sum(dead for dead, _ in counted),
        "missed": sum(dead and not said for dead, said in counted),
        "others": sum(not dead for dead, _ in counted),
        "false": sum(said and not dead for dead, said in counted),
    }


def trial(config: dict) -> dict:
    """One training run: :func:`minica.fit`'s steps, with what a trial changes and with a look at the features at each step.

    Returns:
        ``config``, ``classes``, ``final_loss`` (mean over the last pass), ``deviation`` of the classifier's input over images
        at the end as a part of that at the start, ``test`` accuracy, and ``curve``: rows of (step, mean training loss since
        the row before, deviation over the batch's images, share of the last activation that passes a gradient, and how far
        the probability of a class differs at most between two images of the batch).
    """
    started = time.perf_counter()
    model, task = prepare(config)
    last = _last_activation(model)
    if config.get("last_activation") == "ReLU":
        last.act = nn.ReLU(inplace=True)
    learning = list(_learning_norms(model, config.get("batch_statistics")))
    seen: dict[str, Tensor] = {}
    hooks = [norm.register_forward_pre_hook(partial(_follow, model)) for norm in learning]
    hooks += [
        model.get_classifier().register_forward_pre_hook(lambda module, args: seen.update(features=args[0].detach())),
        last.register_forward_hook(lambda module, args, output: seen.update(map=output.detach())),
    ]
    images = channels_last(torch.stack([task.train[i][0] for i in range(min(SHOWN, len(task.train)))]))
    before = _deviation_of(model.eval(), images, seen)

    optimizer, factors = _optimizer(model, config)
    steps, batch_size = config["steps"], config["batch_size"]
    looked_at = config.get("until", steps) * batch_size  # images; the rate rises and falls as if all steps were made
    a_pass, order = len(task.train) // batch_size, torch.Generator().manual_seed(config["seed"])
    sampler = RandomSampler(task.train, num_samples=looked_at, generator=order)
    torch.manual_seed(config["seed"] + 1)  # augmentation
    with in_channels_last(model):
        if not learning:
            lean(model.eval())
        model.train()
        losses, curve = [], []
        for step, (batch, labels) in enumerate(DataLoader(task.train, batch_size, sampler=sampler)):
            logits = model(channels_last(batch))
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            rate = learning_rate(step, steps, config["lr"], config["warmup_steps"] / steps)
            for group, factor in zip(optimizer.param_groups, factors, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if step % EVERY == 0:
                live = (seen["map"] > 0) & (seen["map"] < (6 if isinstance(last.act, nn.ReLU6) else math.inf))
                since = losses[-EVERY:] if step else losses
                guesses = logits.detach().softmax(1)
                spread = (guesses.amax(0) - guesses.amin(0)).max().item()
                row = sum(since) / len(since), _deviation(seen["features"]), live.float().mean().item(), spread
                curve.append([step, *(float(f"{value:.3g}") for value in row)])
        plain(model)
    seconds = time.perf_counter() - started
    after = _deviation_of(model.eval(), images, seen)
    for hook in hooks:
        hook.remove()
    return {
        "config": config,
        "classes": len(task.classes),
        "final_loss": round(sum(losses[-a_pass:]) / a_pass, 4),
        "deviation": float(f"{after / before:.3g}"),
        "test": evaluate(model, task.test)["accuracy"],
        "curve": curve,
        "seconds": round(seconds, 1),
        **provenance(),
    }


def _last_activation(model: nn.Module) -> nn.Module:
    """The norm with activation before the pooling; EfficientNet and the pre-activation ResNet end with one."""
    return model.bn2 if hasattr(model, "bn2") else model.norm


def _follow(model: nn.Module, norm: nn.Module, args: tuple) -> None:
    norm.train(model.training)


def _learning_norms(model: nn.Module, which: str | None) -> Iterator[nn.Module]:
    """The norms that normalise by the batch instead of by the frozen statistics."""
    first = {None: math.inf, "all": 0, "last stage": len(list(model.blocks)) - 1 if hasattr(model, "blocks") else 0}[which]
    inside = {id(part): at for at, stage in enumerate(getattr(model, "blocks", ())) for part in stage.modules()}
    for norm in list(frozen_running_stats(model)):
        if inside.get(id(norm), math.inf if which == "last stage" and norm is _last_activation(model) else 0) >= first:
            yield norm


def _optimizer(model: nn.Module, config: dict) -> tuple[torch.optim.Optimizer, list[float]]:
    """The optimiser, and the factor on the rate of each of its groups."""
    own = {id(weight) for weight in model.get_classifier().parameters()}
    groups, factors = [], []
    for group in parameter_groups(model, config["weight_decay"]):
        for part, key in ((True, "classifier_rate"), (False, "adapter_rate")):
            groups.append(group | {"params": [weight for weight in group["params"] if (id(weight) in own) == part]})
            factors.append(config.get(key, 1.0))
    if config.get("optimizer") == "RAdam":
        return torch.optim.RAdam(groups, lr=config["lr"], decoupled_weight_decay=True), factors
    return torch.optim.AdamW(groups, lr=config["lr"], betas=(0.9, config.get("beta2", 0.999))), factors


@torch.no_grad()
def _deviation_of(model: nn.Module, images: Tensor, seen: dict[str, Tensor]) -> float:
    with modes_kept(model):
        model.eval()(images)
    return _deviation(seen["features"])


def _deviation(features: Tensor) -> float:
    """Standard deviation over images (N, C), mean over features."""
    return features.std(0).mean().item()
