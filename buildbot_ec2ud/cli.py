"""The command ``buildbot-ec2ud``."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from buildbot_ec2ud import __version__, template

#: What is said where the demo's libraries are not installed.
_MISSING = "{}; pip install 'buildbot-ec2ud[embedded]'"


def _demo(options: argparse.Namespace) -> int:
    try:
        from buildbot_ec2ud.demo import Demo
    except ModuleNotFoundError as error:
        print(f"buildbot-ec2ud demo: {_MISSING.format(error)}", file=sys.stderr)
        return 1
    from twisted.internet import reactor

    return Demo(reactor, options.workers, options.port, options.once, options.faults, options.market).run()


def _template(options: argparse.Namespace) -> int:
    print(template.directory() / "master.cfg")
    return 0


def _init(options: argparse.Namespace) -> int:
    """Make a master with its own copy of the template; what is there stays as it is."""
    directory = Path(options.directory)
    done = template.create_master(directory)
    print(done.stdout, end="")
    if done.returncode != 0:
        return done.returncode
    for name in template.FILES:
        target = directory / name
        if target.exists():
            print(f"keeping {target}")
        else:
            shutil.copyfile(template.directory() / name, target)
            print(f"creating {target}")
    print(f"edit {directory / 'platforms.toml'} and {directory / 'settings.toml'}, then: buildbot start {directory}")
    return 0


def _instances(options: argparse.Namespace) -> int:
    from buildbot_ec2ud import instances  # takes a second: Buildbot's master, and EC2's model

    return instances.run(options.directory, lambda found: found.show(options.json, options.all_masters))


def _reap(options: argparse.Namespace) -> int:
    from buildbot_ec2ud import instances

    return instances.run(options.directory, lambda found: found.reap(options.timeout, options.yes, options.force))


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"not a number above 0: {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"not seconds: {text!r}")
    return float(text)


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"not a TCP port: {text!r}")
    return int(text)


def _faults(text: str) -> Any:
    try:
        from buildbot_ec2ud.embedded import Faults

        return Faults.parse(text)
    except ModuleNotFoundError as error:
        raise argparse.ArgumentTypeError(_MISSING.format(error)) from None
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class _DemoHelp(argparse.Action):
    """``--help`` with the faults, whose names are known only where the demo's libraries are installed."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        try:
            from buildbot_ec2ud.embedded.faults import describe

            parser.epilog = describe()
        except ModuleNotFoundError as error:
            parser.epilog = f"faults: {_MISSING.format(error)}"
        parser.print_help()
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="buildbot-ec2ud", description="Buildbot workers on EC2, without images to keep."
    )
    parser.add_argument("--version", action="version", version=f"buildbot-ec2ud {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo",
        help="a master, an EC2 and its instances on this machine",
        description=_DEMO,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    demo.add_argument("-h", "--help", action=_DemoHelp, nargs=0, help="show this help message and exit")
    demo.add_argument("--once", action="store_true", help="run one build on each worker, then end")
    demo.add_argument("--workers", type=_count, default=1, metavar="N", help="how many workers (default: 1)")
    demo.add_argument(
        "--port", type=_port, metavar="P", help="port of the web UI (default: 8010, with --once any free one)"
    )
    demo.add_argument("--faults", type=_faults, metavar="LIST", help="what goes wrong in EC2: see below")
    demo.add_argument(
        "--market",
        choices=("on-demand", "spot", "spot-then-on-demand"),
        default="on-demand",
        help="how the instances are rented (default: %(default)s); EC2 takes back only spot instances",
    )
    demo.set_defaults(function=_demo)

    init = commands.add_parser("init", help="make a master with its own copy of the template")
    init.add_argument("directory", metavar="DIR")
    init.set_defaults(function=_init)

    path = commands.add_parser("template", help="print the path of the packaged master.cfg")
    path.set_defaults(function=_template)
    _add_instances(commands)
    return parser


def _add_instances(commands: Any) -> None:
    show = commands.add_parser(
        "instances",
        help="list what a master has on EC2",
        description=_INSTANCES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    show.add_argument("directory", metavar="DIR", nargs="?", default=".", help="the master's directory (default: .)")
    show.add_argument("--json", action="store_true", help="print a JSON list of objects; ages are in seconds")
    show.add_argument("--all-masters", action="store_true", help="also what other masters have in the same regions")
    show.set_defaults(function=_instances)

    reap = commands.add_parser(
        "reap",
        help="end what a master has left on EC2",
        description=_REAP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    reap.add_argument("directory", metavar="DIR", nargs="?", default=".", help="the master's directory (default: .)")
    reap.add_argument("--yes", action="store_true", help="end the instances; without it they are only listed")
    reap.add_argument("--force", action="store_true", help="even if the master runs: its builds lose their workers")
    reap.add_argument(
        "--timeout", type=_seconds, default=300.0, metavar="S", help="seconds to wait for their end (default: 300)"
    )
    reap.set_defaults(function=_reap)


_DEMO = """\
Creates a Buildbot master from the packaged template, starts it together with
an embedded EC2 whose instances really run their user-data, and prints a line
for each thing that happens. Exit status with --once: 0 only if every build
succeeded and no instance is left. Nothing stays behind."""

_INSTANCES = """\
Lists the instances of the master in DIR that EC2 has not ended, in all regions
and accounts that its configuration uses. The master need not run. Exit status:
0 if all could be asked, 1 if not, or if the configuration cannot be loaded,
2 for a wrong command line."""

_REAP = """\
Ends what a master has left behind: all instances with its tag, in all regions
and accounts that its configuration uses; never those of another master. Without
--yes they are only listed. A running master ends by itself what it does not
need, so this refuses to run beside one. It looks for DIR/twistd.pid: a master
that was started with --nodaemon has none, and its instances would be ended.
Exit status: 0 if nothing is left, or EC2 has confirmed the end of all; 1 if
something went wrong; 2 for a wrong command line; 3 if, without --yes, there is
something to end."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    :param arguments: the command line, without the program's name; by default the process's own.
    :return: the exit status.
    """
    options = _parser().parse_args(arguments)
    return options.function(options)


if __name__ == "__main__":
    sys.exit(main())
