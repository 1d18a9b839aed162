"""The command `swinv2-sweep`: results of a sweep's jobs, as tables, CSV, and figures; and the entry point of
`swinv2-train -m`, which runs them.

Exit status: 0 done; 1 the output cannot be written; 2 usage error; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from copy import deepcopy

from swinv2_train.cli.arguments import Parser
from swinv2_train.cli.completion import offer
from swinv2_train.cli.ending import end, run_command
from swinv2_train.cli.manual import manual
from swinv2_train.cli.values import file_path
from swinv2_train.config.errors import ConfigError
from swinv2_train.config.schema import Config
from swinv2_train.exit_codes import FINISHED

EXAMPLES = """\
examples:
  swinv2-train -m +sweep=lr_wd +experiment=simmim_demo
  swinv2-sweep status outputs/sweeps/lr_wd
  swinv2-sweep report outputs/sweeps/lr_wd

status shows the jobs; report compares the swept values, with mean and sample standard deviation over the
seeds, and writes report.csv and figures into DIR. Both only read the files of the jobs, even while they run."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; print help and exit if requested."""
    parser = Parser(
        prog="swinv2-sweep",
        description="Inspect a sweep: several runs that `swinv2-train -m` has started.",
        epilog=f"{EXAMPLES}\n\n{manual('conf')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("what", choices=("status", "report"), help="the jobs, or a comparison of the swept values")
    parser.add_argument("dir", type=file_path, metavar="DIR", help="the directory of the sweep")
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.add_argument("--metric", metavar="NAME", help="report another metric than the sweep's own")
    parser.add_argument("--direction", choices=("minimize", "maximize"), help="the better direction")
    offer(parser)
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `swinv2-sweep`."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    work = show_status if arguments.what == "status" else report
    end(run_command("swinv2-sweep", lambda: work(arguments)), whole_process=argv is None)


def show_status(arguments: argparse.Namespace) -> int:
    """Print the jobs of a sweep."""
    from swinv2_train.sweep.show import as_json, counts_text, jobs_text
    from swinv2_train.sweep.survey import survey

    if arguments.metric or arguments.direction:
        raise ConfigError("", "", "--metric and --direction require report")
    sweep, jobs = survey(arguments.dir)
    if arguments.json:
        print(as_json(arguments.dir, sweep, jobs))
        return FINISHED
    print(f"sweep {sweep.name} in {arguments.dir}: {sweep.metric}, {sweep.direction}")
    print(jobs_text(jobs, sweep.metric))
    print(counts_text(jobs))
    return FINISHED


def report(arguments: argparse.Namespace) -> int:
    """Print the combinations of swept values, and write report.csv and the figures."""
    from swinv2_train.sweep.report import as_json, make_report, report_text, write_csv, write_figures
    from swinv2_train.sweep.survey import survey

    sweep, jobs = survey(arguments.dir, arguments.metric, arguments.direction)
    found = make_report(sweep, jobs, arguments.dir)
    written = [write_csv(arguments.dir, found), *write_figures(arguments.dir, found)]
    if arguments.json:
        print(as_json(arguments.dir, found, written))
        return FINISHED
    print(report_text(found))
    for path in written:
        print(f"wrote {path}")
    return FINISHED


def run(arguments: argparse.Namespace) -> int:
    """Run the sweep of a `swinv2-train -m` command line and return the exit code.

    Raises:
        ConfigError, DataError, RunError: if it cannot be run.
    """
    from swinv2_train.launch.environment import joined
    from swinv2_train.sweep.call import run_sweep

    if arguments.cfg:
        raise ConfigError("", "", "--cfg shows the config of one run: omit -m, or use launch.dry_run=true")
    if arguments.info:
        raise ConfigError("", "", "--info shows the origin of the config of one run: omit -m")
    if arguments.config_dir and not arguments.config_dir.is_dir():
        raise ConfigError("", arguments.config_dir, f"--config-dir {arguments.config_dir}: no such directory")
    if joined():
        hint = "start swinv2-train -m once, without torchrun, deepspeed or srun; every job starts its own ranks"
        raise ConfigError("", "", hint)
    return run_sweep(arguments.overrides, arguments.config_dir, _check_start)


def _check_start(config: Config) -> None:
    """Check now that a job's shards, length, and memory are usable, and not only when the job starts."""
    from swinv2_train.cli.checks import check_memory, finish
    from swinv2_train.cli.samples import count_samples
    from swinv2_train.config.plan import make_plan

    samples = count_samples(config, required=not config.launch.dry_run)
    ranks = config.launch.nproc_per_node or 1
    make_plan(config, ranks, samples.count)
    if config.launch.gpu_memory_gib is not None:
        config = deepcopy(config)
        finish(config, samples.card, weights=False)
        check_memory(config, ranks, samples)


if __name__ == "__main__":
    main()
