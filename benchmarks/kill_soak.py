"""How a run takes being killed: SIGKILL at random moments, each followed by the same command.

    PYTHONPATH=.:tests python benchmarks/kill_soak.py [--kills 50] [--seed 0] [--folder FOLDER]

A tiny model trains for 200 steps with a checkpoint every five. 15 % of the kills fall before the first step of a start,
the rest after a random number of its steps. After each one every checkpoint on the disk must be whole; at the end
losses and weights must be those of an undisturbed run, bit for bit. Where a run gets to its end before all kills are
used up, another one begins. What a kill costs is the training since the newest checkpoint, done again, and the start
up to the next step. Results belong in RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from pathlib import Path
from statistics import mean

from support.kills import (
    Death,
    Subject,
    check_same_end,
    kill_again_and_again,
    run_to_the_end,
    run_undisturbed,
    save_material,
    subject,
)

NUM_STEPS = 200


def soak(folder: Path, num_kills: int, seed: int) -> list[Death]:
    """Kill until all kills are used up, and compare every run's end.

    Raises:
        AssertionError: something was half written, or a run ended otherwise.
    """
    save_material(folder)
    whole = subject(folder, "whole", NUM_STEPS)
    pace = run_undisturbed(whole)
    print(f"undisturbed: {pace.seconds:.1f} s, of which {pace.start_seconds:.1f} s up to the first step", flush=True)
    rng, ends = random.Random(seed), 0
    deaths: list[Death] = []
    while len(deaths) < num_kills:
        run: Subject = subject(folder, f"killed-{ends}", NUM_STEPS)
        for death in kill_again_and_again(run, num_kills - len(deaths), pace, rng):
            deaths.append(death)
            print(f"kill {len(deaths)}: after step {death.after_step}, kept {death.kept_step}", flush=True)
        run_to_the_end(run)
        check_same_end(run, whole)
        ends += 1
        print(f"run {ends}: {len(deaths)} kills so far; its end is bit for bit that of the undisturbed run", flush=True)
    return deaths


def main() -> None:
    """Print what the kills cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        os.environ["SUROGATE_CACHE"] = str(Path(name) / "cache")
        deaths = soak(Path(name), options.kills, options.seed)
    early = sum(death.redone_seconds == 0 for death in deaths)
    print(f"\n{len(deaths)} kills, {early} of them before the first step of a start; no checkpoint was half written")
    for title, values in {
        "steps done again": [death.after_step - death.kept_step for death in deaths],
        "seconds of training done again": [death.redone_seconds for death in deaths],
        "seconds up to the next step": [death.restart_seconds for death in deaths[:-1]],
        "seconds lost": [death.lost_seconds for death in deaths[:-1]],
    }.items():
        print(f"{title:<32} mean {mean(values):6.2f}   max {max(values):6.2f}")


if __name__ == "__main__":
    main()
