"""Injects faults into runs of the programs, and counts which were found, survived or lost.

    python experiments/faults.py --flips=200 --kills=20 --disks --writers=5 --peers --scale

* --flips: a bit of a random file of a workdir and its artifact is flipped; then the artifact and the workdir are loaded
  as evaluation, export, scoring and serving do, and training is resumed and completed. Found: an error of one line or a
  warning. Without effect: everything that was read is as before, bit for bit. Wrong: anything else, or a traceback.
* --kills: `rmjax.train` is killed by SIGKILL again and again, every second time while a checkpoint is being written, by
  one and by two processes. The completed run must have the metrics and the weights of one that was not killed.
* --disks: training, evaluation, scoring and export write to a small file system that becomes full, each time after more
  bytes. Found: one line with path, reason and remedy. The same command must go on after space is freed, and
  give what it gives without a fault.
* --writers: two programs write one target at the same time. One must write what it writes alone, the other name the
  first.
* --peers: of two processes one is killed, is absent, or fails. The other must end within a minute, with one line that
  names it.
* --scale: runs of four, two and one processes are killed by SIGKILL, or stopped by SIGTERM to one process, and resumed
  by another number of processes on another mesh. The losses must be those of one process, to rounding.

Prints a table for each kind of fault, and exits with 1 if anything was wrong or lost.
"""

import argparse
import os
import pathlib
import sys
import tempfile

from faults_common import BAD, Counts, print_table
from faults_disks import inject_full_disks
from faults_flips import inject_flips
from faults_kills import inject_kills
from faults_peers import inject_dead_peers
from faults_scale import inject_rescaling
from faults_writers import inject_writers


def main() -> None:
    """Injects the faults that the flags ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=0, help="number of flipped bits")
    parser.add_argument("--kills", type=int, default=0, help="number of kills, for each number of processes")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2], help="of the runs that are killed")
    parser.add_argument("--disks", action="store_true", help="full disks (Linux, as root)")
    parser.add_argument("--writers", type=int, default=0, help="number of pairs of writers, for each program")
    parser.add_argument("--peers", action="store_true", help="dead, absent and failing processes")
    parser.add_argument("--scale", action="store_true", help="other numbers of processes on resuming")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tables: dict[str, Counts] = {}
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        directory = pathlib.Path(temporary)
        os.environ["RMJAX_CACHE"] = str(directory / "cache")
        if options.flips:
            tables["flipped bits"] = inject_flips(options.flips, options.seed, directory)
        if options.kills:
            kills = [inject_kills(options.kills, options.seed, n, directory / str(n)) for n in options.processes]
            tables["kill -9"] = {name: counter for counts in kills for name, counter in counts.items()}
        if options.disks:
            tables["full disks"] = inject_full_disks(directory / "disks")
        if options.writers:
            tables["two writers"] = inject_writers(directory / "writers", options.writers)
        if options.peers:
            tables["peers"] = inject_dead_peers(directory / "peers")
        if options.scale:
            tables["other numbers of processes"] = inject_rescaling(options.seed, directory / "scale")
    for title, counts in tables.items():
        print_table(title, counts)
    bad = sum(counter[outcome] for counts in tables.values() for counter in counts.values() for outcome in BAD)
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
