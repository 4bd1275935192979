"""The command ``buildbot-ec2ud``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from buildbot_ec2ud import __version__, descriptions, template_files

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
    print(template_files.directory() / "master.cfg")
    return 0


def _init(options: argparse.Namespace) -> int:
    """Make a master with its own copy of the template; what is there stays as it is."""
    directory = Path(options.directory)
    if options.diff:
        return _differences(directory)
    done = template_files.create_master(directory, db_url=options.db)
    print(done.stdout, end="")
    if done.returncode != 0:
        return done.returncode
    for line in template_files.copy(directory):
        print(line)
    print(f"edit {directory / 'platforms.toml'} and {directory / 'settings.toml'}, then: buildbot start {directory}")
    return 0


def _differences(directory: Path) -> int:
    if not (directory / "buildbot.tac").is_file():
        print(f"buildbot-ec2ud init: {directory} is not the directory of a master", file=sys.stderr)
        return 1
    try:
        lines = list(template_files.differences(directory))
    except (OSError, UnicodeDecodeError) as error:
        print(f"buildbot-ec2ud init: {error}", file=sys.stderr)
        return 1
    print("".join(lines), end="")
    return 3 if lines else 0


def _instances(options: argparse.Namespace) -> int:
    from buildbot_ec2ud.commands import instances  # takes a second: Buildbot's master, and EC2's model

    return instances.run(options.directory, lambda found: found.show(options.json, options.all_masters))


def _reap(options: argparse.Namespace) -> int:
    from buildbot_ec2ud.commands import instances

    return instances.run(options.directory, lambda found: found.reap(options.timeout, options.yes, options.force))


def _userdata(options: argparse.Namespace) -> int:
    from buildbot_ec2ud import commands
    from buildbot_ec2ud.commands import userdata

    return commands.run(
        options.directory,
        lambda reactor, path: userdata.show(reactor, path, options.worker, options.json, options.raw),
    )


def _check(options: argparse.Namespace) -> int:
    from buildbot_ec2ud import commands
    from buildbot_ec2ud.commands import check

    return commands.run(
        options.directory, lambda reactor, path: check.Check(reactor, path, options.workers).run(options.json)
    )


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
        description=descriptions.DEMO,
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

    init = commands.add_parser(
        "init",
        help="make a master with its own copy of the template",
        description=descriptions.INIT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    init.add_argument("directory", metavar="DIR")
    how = init.add_mutually_exclusive_group()
    how.add_argument(
        "--diff", action="store_true", help="change nothing, show what the packaged template has otherwise"
    )
    how.add_argument("--db", metavar="URL", help="the database, as db_url in settings.toml has to say then")
    init.set_defaults(function=_init)

    path = commands.add_parser(
        "template",
        help="print the path of the packaged master.cfg",
        description=descriptions.TEMPLATE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    path.set_defaults(function=_template)
    _add_looks(commands)
    _add_instances(commands)
    return parser


def _add_looks(commands: Any) -> None:
    userdata = commands.add_parser(
        "userdata",
        help="show what an instance of a worker would get",
        description=descriptions.USERDATA,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    userdata.add_argument("worker", metavar="WORKER", help="name of the worker")
    userdata.add_argument("--directory", metavar="DIR", default=".", help="the master's directory (default: .)")
    form = userdata.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a JSON object")
    form.add_argument("--raw", action="store_true", help="print the user-data only; problems go to stderr")
    userdata.set_defaults(function=_userdata)

    check = commands.add_parser(
        "check",
        help="ask AWS whether workers can be started",
        description=descriptions.CHECK,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("directory", metavar="DIR", nargs="?", default=".", help="the master's directory (default: .)")
    check.add_argument("workers", metavar="WORKER", nargs="*", help="names of workers (default: all)")
    check.add_argument("--json", action="store_true", help="print a JSON list of objects")
    check.set_defaults(function=_check)


def _add_instances(commands: Any) -> None:
    show = commands.add_parser(
        "instances",
        help="list what a master has on EC2",
        description=descriptions.INSTANCES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    show.add_argument("directory", metavar="DIR", nargs="?", default=".", help="the master's directory (default: .)")
    show.add_argument("--json", action="store_true", help="print a JSON list of objects; ages are in seconds")
    show.add_argument("--all-masters", action="store_true", help="also what other masters have in the same regions")
    show.set_defaults(function=_instances)

    reap = commands.add_parser(
        "reap",
        help="end what a master has left on EC2",
        description=descriptions.REAP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    reap.add_argument("directory", metavar="DIR", nargs="?", default=".", help="the master's directory (default: .)")
    reap.add_argument("--yes", action="store_true", help="end the instances; without it they are only listed")
    reap.add_argument("--force", action="store_true", help="even if the master runs: its builds lose their workers")
    reap.add_argument(
        "--timeout", type=_seconds, default=300.0, metavar="S", help="seconds to wait for their end (default: 300)"
    )
    reap.set_defaults(function=_reap)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    :param arguments: the command line, without the program's name; by default the process's own.
    :return: the exit status.
    """
    options = _parser().parse_args(arguments)
    return options.function(options)


if __name__ == "__main__":
    sys.exit(main())
