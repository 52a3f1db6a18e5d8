"""Print a Slurm script that computes a screening in many jobs."""

from __future__ import annotations

import argparse
import shlex
import sys

from dpa3sim.cli.options import Parser
from dpa3sim.common.errors import InputError

_SCRIPT = """\
#!/bin/bash
# A screening in {shards} jobs: sbatch THIS_FILE. Submit it again to continue unfinished jobs.
#SBATCH --job-name=dpa3sim
#SBATCH --array=1-{shards}
#SBATCH --cpus-per-task={cpus}
#SBATCH --time={time}
{more}#SBATCH --output=dpa3sim-%A-%a.log
# Interrupts the job a minute before its time limit; finished results are saved in any case.
#SBATCH --signal=INT@60

export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
exec {command} --shard "$SLURM_ARRAY_TASK_ID/{shards}"
"""

EXAMPLES = """\
dpa3sim shard-script 8 -- relax 'in/*.cif' --cell full --screen run > job.sh
dpa3sim shard-script 4 --gpus 1 --time 12:00:00 -- sp frames.extxyz --screen run > job.sh
"""


def configure(parser: Parser) -> None:
    """Arguments of the command."""
    parser.add_argument("shards", type=int, metavar="N", help="number of jobs")
    parser.add_argument(
        "words",
        nargs="+",
        metavar="COMMAND",
        help="the command of the screening after --, such as: relax 'in/*.cif' --screen RUN",
    )
    parser.add_argument("--time", default="24:00:00", help="time limit of each job [24:00:00]")
    parser.add_argument(
        "--cpus", type=int, default=8, metavar="N", help="CPU cores for each job [8]"
    )
    parser.add_argument(
        "--gpus", type=int, default=0, metavar="N", help="GPUs for each job, 0 or 1 [0]"
    )
    parser.add_argument("--partition", help="name of the Slurm partition")


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    words = args.words[1:] if args.words[0] == "dpa3sim" else args.words
    if args.shards < 1:
        raise InputError(f"{args.shards} jobs: there must be at least one")
    if not any(word == "--screen" or word.startswith("--screen=") for word in words):
        raise InputError("the command needs --screen RUN, so that its jobs share one run")
    if any(word == "--shard" or word.startswith("--shard=") for word in words):
        raise InputError("leave out --shard: the script sets it for each job")
    more = f"#SBATCH --gpus-per-task={args.gpus}\n" if args.gpus else ""
    more += f"#SBATCH --partition={args.partition}\n" if args.partition else ""
    command = shlex.join(["dpa3sim", *words])
    sys.stdout.write(
        _SCRIPT.format(
            shards=args.shards, cpus=args.cpus, time=args.time, more=more, command=command
        )
    )
    return 0
