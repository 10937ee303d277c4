"""``python -m tests.fuzz``: attack a cluster of three real nodes at both ports, from a seed."""

from __future__ import annotations

import argparse
import random
import sys

from tests.fuzz.run import KINDS, fuzz


def main() -> int:
    """Run; the exit status is 1 when something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    parser.add_argument("--kind", choices=KINDS, help="one port only")
    parser.add_argument("--session", type=int, help="one session of that kind only, without the others")
    arguments = parser.parse_args()
    if arguments.session is not None and arguments.kind is None:
        parser.error("--session needs --kind")
    kinds = KINDS if arguments.kind is None else (arguments.kind,)
    chosen = "" if arguments.kind is None else f" --kind {arguments.kind}"
    print(f"python -m tests.fuzz --seed {arguments.seed} --seconds {arguments.seconds:g}{chosen}", flush=True)
    findings = fuzz(arguments.seed, arguments.seconds, kinds, arguments.session)
    for finding in findings[:10]:
        print(f"FOUND {finding}", flush=True)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
