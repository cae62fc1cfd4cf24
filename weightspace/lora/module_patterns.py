"""Module patterns of an adapter, with PEFT's semantics but in bounded time.

PEFT matches ``(.*\\.)?(KEY)$`` against module names with Python's backtracking, which can take exponential time. Here,
a key without operators is compared with the end of the name; any other is simulated in all branches at once (Thompson's
automaton), character by character, over memoised sets of states.

Source:
    Thompson 1968, https://doi.org/10.1145/363347.363387
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")

#: Python's own parser of regular expressions.
_PARSER: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")

#: Maximum characters of a pattern, states of its automaton, and total matching steps of an adapter.
_MAX_LENGTH = 2_000
_MAX_STATES = 5_000
_MAX_STEPS = 10_000_000

#: A key of letters, digits and other name characters; the dot is its only operator and matches one character.
_PLAIN = re.compile(r"[\w./:@ -]+")

_CATEGORIES: Mapping[str, Callable[[str], bool]] = {
    "CATEGORY_DIGIT": str.isdecimal,
    "CATEGORY_SPACE": str.isspace,
    "CATEGORY_WORD": lambda letter: letter.isalnum() or letter == "_",
}


class PatternError(ValueError):
    """A short reason why a pattern can't be used."""


class Patterns(Mapping[str, Value], Generic[Value]):
    """Patterns and their values, in matching order.

    Args:
        values: pattern -> value.

    Raises:
        PatternError: a pattern isn't a regular expression, or can't be matched in bounded time.
    """

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = dict(values)
        self._budget = _Budget()
        self._matchers = {key: _matcher(key, self._budget) for key in self._values}

    def __getitem__(self, key: str) -> Value:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle only the patterns; the other process recompiles them."""
        return type(self), (self._values,)

    def find(self, module: str, default: Value) -> Value:
        """Return the value of the first pattern that matches a module's name, or the default.

        Raises:
            PatternError: matching would take too long, given the number and length of patterns and names.
        """
        for key, matches in self._matchers.items():
            if matches(module):
                return self._values[key]
        return default


class _Budget:
    """Budget of matching steps."""

    def __init__(self) -> None:
        self.left = _MAX_STEPS

    def take(self, steps: int) -> None:
        """Use up some steps."""
        self.left -= steps
        if self.left < 0:
            raise PatternError(f"the patterns need more than {_MAX_STEPS:,} steps to match the module names")


def _matcher(key: str, budget: _Budget) -> Callable[[str], bool]:
    """Return a predicate for whether a module's name matches a key."""
    if len(key) > _MAX_LENGTH:
        raise PatternError(f"a pattern has {len(key):,} characters; expected at most {_MAX_LENGTH:,}")
    if _PLAIN.fullmatch(key):
        return _ending(key, budget)
    try:
        parsed = _PARSER.parse(rf"(.*\.)?({key})$")
    except (re.error, RecursionError, OverflowError) as error:
        raise PatternError(f"{key!r} isn't a regular expression ({error})") from error
    return _Automaton(key, parsed, budget).matches


def _ending(key: str, budget: _Budget) -> Callable[[str], bool]:
    """Return a predicate that compares a key of fixed length with the end of a name."""
    pattern, length = re.compile(key), len(key)

    def matches(module: str) -> bool:
        budget.take(1)
        start = len(module) - length
        return start >= 0 and (not start or module[start - 1] == ".") and bool(pattern.fullmatch(module, start))

    return matches


class _Automaton:
    """A regular expression as a nondeterministic automaton."""

    def __init__(self, key: str, parsed: Any, budget: _Budget) -> None:
        self.key = key
        self.budget = budget
        self.by_character: list[tuple[Callable[[str], bool], int] | None] = []
        self.at_once: list[list[tuple[str, int]]] = []
        self.known: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        self.final = self._state()
        self.by_character[self.final] = (lambda _: True, self.final)  # a match need not reach the end: ``a)|(b``
        self.first = self._sequence(parsed, self.final)

    def matches(self, module: str) -> bool:
        """Return whether the whole name matches."""
        states = frozenset((self.first,))
        for position, letter in enumerate(module):
            key = (states, letter)
            following = self.known.get(key) if position else None
            if following is None:
                following = self._after(states, letter, start=not position)
                if position:
                    self.known[key] = following
            states = following
            if not states:
                break
        self.budget.take(len(module) + 1)
        return self.final in self._reached(states, start=not module, end=True)

    def _after(self, states: frozenset[int], letter: str, *, start: bool) -> frozenset[int]:
        """Return the states after a character."""
        following = set()
        for state in self._reached(states, start=start, end=False):
            leads = self.by_character[state]
            if leads is not None and leads[0](letter):
                following.add(leads[1])
        return frozenset(following)

    def _reached(self, states: frozenset[int], *, start: bool, end: bool) -> set[int]:
        """Return the states reachable without consuming a character."""
        reached, queue = set(states), list(states)
        for state in queue:
            for condition, target in self.at_once[state]:
                holds = {"": True, "start": start, "end": end}[condition]
                if holds and target not in reached:
                    reached.add(target)
                    queue.append(target)
        self.budget.take(len(queue))
        return reached

    def _state(self) -> int:
        """Add a state."""
        if len(self.at_once) >= _MAX_STATES:
            raise PatternError(f"{self.key!r} repeats too much")
        self.by_character.append(None)
        self.at_once.append([])
        return len(self.at_once) - 1

    def _sequence(self, items: Any, target: int) -> int:
        """Return the start state of a sequence that leads to a target."""
        for operator, argument in reversed(list(items)):
            target = self._item(str(operator), argument, target)
        return target

    def _item(self, operator: str, argument: Any, target: int) -> int:
        """Return the start state of one item that leads to a target."""
        if operator in ("MAX_REPEAT", "MIN_REPEAT"):
            low, high, items = argument
            return self._repeat(low, high, items, target)
        state = self._state()
        if operator == "SUBPATTERN" and not argument[1] and not argument[2]:
            self.at_once[state].append(("", self._sequence(argument[3], target)))
        elif operator == "BRANCH":
            self.at_once[state] += [("", self._sequence(branch, target)) for branch in argument[1]]
        elif operator == "AT" and str(argument) in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
            self.at_once[state].append(("start", target))
        elif operator == "AT" and str(argument) in ("AT_END", "AT_END_STRING"):
            self.at_once[state].append(("end", target))
        else:
            self.by_character[state] = (self._test(operator, argument), target)
        return state

    def _repeat(self, low: int, high: Any, items: Any, target: int) -> int:
        """Return the start state of a repetition."""
        if high is _PARSER.MAXREPEAT or high >= _PARSER.MAXREPEAT:
            loop = self._state()
            self.at_once[loop] += [("", self._sequence(items, loop)), ("", target)]
            target = loop
        else:
            behind = target
            for _ in range(high - low):
                state = self._state()
                self.at_once[state] += [("", self._sequence(items, target)), ("", behind)]
                target = state
        for _ in range(low):
            state = self._state()  # so that empty repeats are counted too
            self.at_once[state].append(("", self._sequence(items, target)))
            target = state
        return target

    def _test(self, operator: str, argument: Any) -> Callable[[str], bool]:
        """Return the predicate of a single character."""
        if operator == "LITERAL":
            return lambda letter: ord(letter) == argument
        if operator == "NOT_LITERAL":
            return lambda letter: ord(letter) != argument
        if operator == "ANY":
            return lambda letter: letter != "\n"
        if operator == "IN":
            return self._class(argument)
        if operator == "CATEGORY":
            name = str(argument)
            test = _CATEGORIES.get(name.replace("_NOT_", "_"))
            if test is not None:
                return (lambda letter: not test(letter)) if "_NOT_" in name else test
        if operator == "RANGE":
            low, high = argument
            return lambda letter: low <= ord(letter) <= high
        raise PatternError(f"{self.key!r} has an operator ({operator.lower()}) that is not supported")

    def _class(self, items: Any) -> Callable[[str], bool]:
        """Return the predicate of a character class, ``[a-z]`` or ``[^.]``."""
        negated = str(items[0][0]) == "NEGATE"
        tests = [self._test(str(operator), argument) for operator, argument in items[negated:]]
        return lambda letter: any(test(letter) for test in tests) != negated
