"""``python -m tests.simulation``: run seeds, and say how to run a failing one again."""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections import Counter
from dataclasses import fields, replace
from datetime import date
from pathlib import Path

from raftkv.consensus.guard import ALL_GUARDS, Guards
from tests.simulation.faults import FAULTS, WIRED_FAULTS
from tests.simulation.shrink import shrink
from tests.simulation.world import Outcome, Plan, run_plan

_SEEDS_A_DAY = 100_000

GUARDS = tuple(field.name for field in fields(Guards))


def main() -> int:
    """Run what the command line asks for; the exit status is 1 after a violation."""
    arguments = _parse()
    # What the modules hold need not be looked at in every collection.
    gc.freeze()
    plan = Plan(
        0,
        arguments.nodes,
        arguments.seconds,
        frozenset(arguments.faults) if not arguments.wired else WIRED_FAULTS & {*arguments.faults, "garbage"},
        replace(ALL_GUARDS, **dict.fromkeys(arguments.ablate, False)),
        is_wired=arguments.wired,
    )
    first, last = arguments.seeds
    if arguments.today is not None:
        first = date.today().toordinal() * _SEEDS_A_DAY  # noqa: DTZ011 - any day will do
        last = first + arguments.today - 1
        print(f"today's seeds: {first}..{last}", flush=True)
    began = time.monotonic()
    virtual, operations, violations = 0.0, 0, 0
    counts: Counter[str] = Counter()
    others: Counter[str] = Counter()
    runs = 0
    for seed in range(first, last + 1):
        if arguments.minutes and time.monotonic() - began > 60 * arguments.minutes:
            break
        runs += 1
        outcome = run_plan(replace(plan, seed=seed))
        if arguments.strikes is not None:
            outcome = run_plan(outcome.plan, [outcome.strikes[number] for number in arguments.strikes])
        virtual += outcome.virtual_seconds
        operations += outcome.operations
        counts.update(outcome.faults)
        others.update(outcome.counts)
        if arguments.trace:
            print("\n".join(outcome.events))
        if arguments.digest:
            print(f"seed {seed}: {outcome.digest}")
        if outcome.violation is not None:
            violations += 1
            print(f"seed {seed}: VIOLATION at {outcome.virtual_seconds:.3f} s: {outcome.violation}")
            print(f"    again: {command_of(outcome)}", flush=True)
            if arguments.shrink:
                _tell_shrunk(outcome, shrink(outcome, arguments.shrink))
            if arguments.first:
                break
    elapsed = time.monotonic() - began
    print(
        f"seeds {first}..{first + runs - 1}, {plan.nodes} nodes: {runs} runs, {violations} violations, "
        f"{operations} operations, "
        f"{virtual / 3600:.2f} virtual hours in {elapsed:.1f} s ({virtual / max(elapsed, 1e-9):.0f} times real time)"
    )
    if arguments.summary is not None:
        figures = {"runs": runs, "violations": violations, "operations": operations, "virtual hours": virtual / 3600}
        arguments.summary.write_text(json.dumps(figures))
    print("faults: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    print("also: " + ", ".join(f"{name} {count}" for name, count in sorted(others.items())))
    return 1 if violations else 0


def command_of(outcome: Outcome) -> str:
    """Return the command that runs a plan again, with everything that happens."""
    plan = outcome.plan
    command = f"python -m tests.simulation --seeds {plan.seed} --nodes {plan.nodes} --seconds {plan.seconds:g}"
    if plan.is_wired:
        command += " --wired"
    if plan.faults != (WIRED_FAULTS if plan.is_wired else frozenset(FAULTS)):
        command += f" --faults {','.join(sorted(plan.faults - {'garbage'}))}"
    for guard in GUARDS:
        if not getattr(plan.guards, guard):
            command += f" --ablate {guard}"
    return f"{command} --trace"


def _tell_shrunk(failed: Outcome, shrunk: Outcome) -> None:
    print(f"    {len(shrunk.strikes)} of its {len(failed.strikes)} faults are enough: {shrunk.violation}")
    for strike in shrunk.strikes:
        print(f"        {strike.time:9.3f} s  {strike.fault}")
    numbers = ",".join(str(strike.number) for strike in shrunk.strikes)
    print(f"    again: {command_of(failed)} --strikes {numbers}", flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=_seeds, default=(0, 99), metavar="A..B", help="seeds, both ends included")
    parser.add_argument("--today", type=int, metavar="N", help="N seeds that change with the day, instead of --seeds")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after this time (default: run all seeds)")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0, help="virtual time of faults in each run")
    parser.add_argument("--faults", type=_names(FAULTS), default=FAULTS, help=f"some of: {', '.join(FAULTS)}")
    parser.add_argument("--ablate", action="append", default=[], choices=GUARDS, help="switch a guard off")
    parser.add_argument("--wired", action="store_true", help="real transport and HTTP front-end over virtual streams")
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    parser.add_argument("--digest", action="store_true", help="print a digest of everything that happens")
    parser.add_argument("--shrink", type=float, default=30.0, metavar="SECONDS", help="time to shrink a failed run")
    parser.add_argument("--strikes", type=_numbers, metavar="N,N,…", help="repeat these faults of the seed alone")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="write the totals there as JSON")
    parser.add_argument("--first", action="store_true", help="stop at the first violation")
    return parser.parse_args()


def _seeds(text: str) -> tuple[int, int]:
    first, _dots, last = text.partition("..")
    return int(first), int(last or first)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _names(allowed: tuple[str, ...]):
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        unknown = set(names) - set(allowed)
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
        return names

    return parse


if __name__ == "__main__":
    sys.exit(main())
