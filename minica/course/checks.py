"""Predictions and checks of the exercises: what was expected beside what the reader gave.

A notebook asks ``guess = predict("How many ...?", None)`` before it measures and shows ``guess.reveal(measured)`` after.  An
exercise ends with ``check("its name", answer)``, whose expected answer is in :mod:`minica.course.exercises`.  Neither raises on
any answer, so that a notebook with untouched exercises runs from top to bottom; with ``MINICA_STRICT=1`` in the environment
``check`` raises unless the answer passes, for graders.
"""

from __future__ import annotations

import copy
import math
import os
import reprlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch

from ..counting import check_choice
from .exercises import EXERCISES, Exercise

_REPR = reprlib.Repr()
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = 8
_REPR.maxstring = _REPR.maxother = 60

UNTOUCHED = "put your answer in place of `None` and run the cell again"


class NotPassed(AssertionError):
    """An exercise that was not passed, under ``MINICA_STRICT=1``."""


@dataclass(frozen=True)
class Verdict:
    """What is said of one answer: shown by Jupyter as Markdown, elsewhere as text."""

    passed: bool
    message: str

    def __repr__(self) -> str:
        return self.message.replace("`", "")

    def _repr_markdown_(self) -> str:
        head, colon, rest = self.message.partition(":")
        return f"{'✓' if self.passed else '○' if head.startswith('not attempted') else '✗'} **{head}{colon}**{rest}"


@dataclass(frozen=True)
class Prediction:
    """A question and the number that the reader stored before the answer was measured; None if there is none."""

    question: str
    answer: float | None
    unit: str
    message: str

    def __repr__(self) -> str:
        return f"{self.question}\n{self.message}"

    def _repr_markdown_(self) -> str:
        return f"**Predict, then run.** {self.question}\n\n*{self.message}*"

    def reveal(self, measured: float) -> Revealed:
        """The stored answer beside the measured number."""
        said = f"measured: {self._in_unit(measured)}"
        if self.answer is None:
            return Revealed(f"{said}; you predicted nothing")
        off = self.answer - measured
        side = "as you predicted" if _shown(off) == "0" else f"{_shown(abs(off), digits=3)} too {'high' if off > 0 else 'low'}"
        return Revealed(f"you predicted {self._in_unit(self.answer)}; {said}" + (f"; {side}" if math.isfinite(off) else ""))

    def _in_unit(self, number: float) -> str:
        return f"{_shown(number, digits=3)} {self.unit}".rstrip()


@dataclass(frozen=True)
class Revealed:
    """A prediction beside what was measured, in one line."""

    message: str

    def __repr__(self) -> str:
        return self.message

    def _repr_markdown_(self) -> str:
        return f"**{self.message[:1].upper()}{self.message[1:]}.**"


def predict(question: str, answer: Any = None, unit: str = "") -> Prediction:
    """Store a number for a question before its answer is known; never raises.

    Args:
        answer: a finite number of Python, NumPy or torch; None: not attempted.
        unit: what the number is in, such as ``"%"``.
    """
    number = _number(answer)
    if answer is None:
        message = "not attempted: put a number in place of None before you go on, a guess will do"
    elif number is None or not math.isfinite(number):
        message, number = f"not stored: expected a number, got {_shown(answer)}", None
    else:
        message = f"stored: {_shown(number)} {unit}".rstrip() + "; it is compared below"
    return Prediction(question, number, unit, message)


def check(name: str, answer: Any, *given: Any) -> Verdict:
    """Compare the answer to an exercise, or what a reader's function returns, with what is expected.

    Args:
        name: of the exercise, a key of :data:`minica.course.exercises.EXERCISES`.
        answer: a number, text, sequence, set, mapping or tensor; or a function, which is called with the exercise's cases.
            None, or a function that returns None: not attempted.
        given: the data of the exercise, where the expected answer follows from data in the notebook.

    Raises:
        ValueError: for an exercise that does not exist.
        NotPassed: under ``MINICA_STRICT=1``, unless the answer passes.
    """
    exercise, done = EXERCISES[check_choice(name, "exercise", EXERCISES)], ""
    try:
        with torch.random.fork_rng(devices=[]):  # what the notebook draws next must not depend on its exercises
            if _untouched(answer):
                problem = UNTOUCHED
            elif exercise.cases is None:
                expected = exercise.expected(*given)
                problem = difference(answer, expected, exercise.tolerance)
                done = f"passed ({name}): as expected"  # not what: a solution's source is folded, and its output is not
            else:
                cases = exercise.cases()
                problem = _try_cases(answer, cases, exercise)
                done = f"passed ({name}): {len(cases)} cases"
    except Exception as error:  # an answer that cannot even be compared must not stop the notebook
        problem = f"your answer cannot be compared, {_raised(error)}"
    untouched = problem == UNTOUCHED
    message = done if problem is None else f"{'not attempted' if untouched else 'not yet'} ({name}): {problem}"
    verdict = Verdict(problem is None, message)
    if not verdict.passed and os.environ.get("MINICA_STRICT") == "1":
        raise NotPassed(repr(verdict))
    return verdict


def _untouched(answer: Any) -> bool:
    return answer is None or (isinstance(answer, Mapping) and all(value is None for value in answer.values()))


def _try_cases(function: Any, cases: Mapping[str, tuple], exercise: Exercise) -> str | None:
    """The first case for which a reader's function fails, in words; None if there is none."""
    if not callable(function):
        return f"expected a function, got {_shown(function)}"
    for label, arguments in cases.items():
        try:
            got = function(*copy.deepcopy(arguments))
        except Exception as error:
            return f"for {label}: expected {_shown(exercise.expected(*arguments))}, got {_raised(error)}"
        if got is None:
            return UNTOUCHED
        if problem := difference(got, exercise.expected(*arguments), exercise.tolerance):
            return f"for {label}: {problem}"
    return None


# ---------------------------------------------------------------- expected against got


def difference(got: Any, expected: Any, tolerance: float = 1e-4) -> str | None:
    """What is wrong with ``got``, as one sentence ``expected ..., got ...``; None if nothing is.

    Whole numbers, texts and truth values must be equal, other numbers and tensors within ``tolerance``, an absolute one.  A
    number may be Python's, NumPy's or a tensor without dimensions; a sequence a list, a tuple or a vector; a tensor an array.
    """
    against = f"expected {_shown(expected)}, got {_shown(got)}"
    if isinstance(expected, torch.Tensor):
        return _tensor_difference(got, expected, tolerance)
    if isinstance(expected, (bool, str)):
        if isinstance(expected, bool) and isinstance(got, (np.bool_, torch.Tensor)) and got.ndim == 0:
            got = got.item()
        return None if type(got) is type(expected) and got == expected else against
    if isinstance(expected, Real):
        return _number_difference(got, expected, tolerance, against)
    if isinstance(expected, Mapping):
        return _mapping_difference(got, expected, tolerance, against)
    if isinstance(expected, Set):
        if isinstance(got, (list, tuple)) and all(isinstance(item, str) for item in got):
            got = set(got)
        if not isinstance(got, Set):
            return f"{against}: a set is needed, such as {{'a', 'b'}}"
        return None if got == expected else against
    return _sequence_difference(got, expected, tolerance, against)


def _number(value: Any) -> float | None:
    """A number of Python, or of NumPy or torch without dimensions; None for all else, truth values included."""
    if isinstance(value, (np.generic, np.ndarray, torch.Tensor)) and value.ndim == 0 and not getattr(value, "is_meta", False):
        value = value.item()
    return value if isinstance(value, Real) and not isinstance(value, bool) else None


def _number_difference(got: Any, expected: float, tolerance: float, against: str) -> str | None:
    number = _number(got)
    if number is None:
        return f"{against}: a number is needed"
    if isinstance(expected, int):
        if number == expected:
            return None
        return against + {1: ", one too many", -1: ", one too few"}.get(number - expected, "")
    if abs(number - expected) <= tolerance:
        return None
    per_cent = abs(number / 100 - expected) <= max(tolerance, 1e-3 * abs(expected))
    return against + (": a part of 1 is needed, not per cent" if per_cent else "")


def _sequence_difference(got: Any, expected: Sequence, tolerance: float, against: str) -> str | None:
    if isinstance(got, (np.ndarray, torch.Tensor)) and got.ndim == 1:
        got = got.tolist()
    if not isinstance(got, (list, tuple)):
        return f"{against}: a list or a tuple of {len(expected)} is needed"
    if len(got) != len(expected):
        return f"{against}: {len(expected)} entries are needed, not {len(got)}"
    for place, (one, wanted) in enumerate(zip(got, expected, strict=True), 1):
        if problem := difference(one, wanted, tolerance):
            return f"entry {place} of {len(expected)}: {problem}"
    return None


def _mapping_difference(got: Any, expected: Mapping, tolerance: float, against: str) -> str | None:
    if not isinstance(got, Mapping):
        return f"{against}: a dictionary is needed"
    if got.keys() != expected.keys():
        return f"expected the keys {', '.join(map(repr, expected))}, got {', '.join(map(repr, got))}"
    for key, wanted in expected.items():
        if problem := difference(got[key], wanted, tolerance):
            return f"at `{key}`: {problem}"
    return None


def _tensor_difference(got: Any, expected: torch.Tensor, tolerance: float) -> str | None:
    """The first of type, shape, dtype, NaN and values that is wrong; of an array only the kind of its dtype counts."""
    if isinstance(got, np.ndarray):
        got = torch.from_numpy(got)
        got = got.to(expected.dtype) if got.is_floating_point() == expected.is_floating_point() else got
    if not isinstance(got, torch.Tensor):
        return f"expected a tensor `{tuple(expected.shape)}`, got {_shown(got)}"
    if got.shape != expected.shape:
        return f"expected the shape `{tuple(expected.shape)}`, got `{tuple(got.shape)}`"
    if got.dtype != expected.dtype:
        return f"expected `{expected.dtype}`, got `{got.dtype}`"
    if got.is_meta:
        return f"expected numbers of the shape `{tuple(expected.shape)}`, got a tensor on the meta device, which has none"
    got, expected = got.detach().cpu(), expected.detach()
    if bad := int((~got.isfinite()).sum()):
        return f"expected finite numbers, got NaN or infinity in {bad:,} of {got.numel():,} entries"
    off = (got - expected).abs().flatten()
    if off.numel() == 0 or off.max() <= tolerance:
        return None
    at = int(off.argmax())
    place = tuple(int(i) for i in np.unravel_index(at, tuple(expected.shape)))
    wanted, there = expected.flatten()[at].item(), got.flatten()[at].item()
    return f"of the right shape and type; at `{place}`, where it is worst, expected {_shown(wanted)}, got {_shown(there)}"


def _raised(error: Exception) -> str:
    return f"`{_in_a_line(f'{type(error).__name__}: {error}')}`"


def _in_a_line(text: str) -> str:
    """Text that can stand in code quotes."""
    return " ".join(text.replace("`", "'").split())


def _shown(value: Any, digits: int = 6) -> str:
    """A value in a sentence, short and in Markdown's code quotes where it is no plain number."""
    number = _number(value)
    if number is not None:
        if isinstance(number, int):
            return f"{number:,}"
        return "NaN" if math.isnan(number) else f"{float(number):.{digits}g}" if abs(number) < 1e6 else f"{float(number):,.0f}"
    if isinstance(value, (torch.Tensor, np.ndarray)):
        kind = "a tensor" if isinstance(value, torch.Tensor) else "an array"
        return f"{kind} of shape `{tuple(value.shape)}`, `{value.dtype}`"
    if isinstance(value, Set):
        return f"`{_in_a_line('{' + ', '.join(sorted(map(_REPR.repr, value))) + '}')}`"
    if isinstance(value, (list, tuple)) and len(value) <= 8 and all(_number(one) is not None for one in value):
        return f"({', '.join(_shown(one, digits) for one in value)}{',' * (len(value) == 1)})"
    text = _in_a_line(_REPR.repr(value))
    return f"`{text}`" if isinstance(value, (list, tuple, Mapping, str)) else f"`{text}` (`{type(value).__name__}`)"
