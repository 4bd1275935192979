"""What ``--help`` says of each command, and of its exit status."""

DEMO = """\
Creates a Buildbot master from the packaged template, starts it together with
an embedded EC2 whose instances really run their user-data, and prints a line
for each thing that happens. Exit status with --once: 0 only if every build
succeeded and no instance is left. Nothing stays behind."""

INIT = """\
Makes a master in DIR, as 'buildbot create-master' does, with its own copy of
the packaged template: master.cfg, settings.toml, platforms.toml, and the
bootstrap scripts. What is there already stays as it is. After an upgrade,
--diff shows what the packaged files have otherwise than the copy, as a unified
diff: take from it what you want. Exit status: 0 if all is there now, or if
there is no difference; 1 if something went wrong; 2 for a wrong command line;
3 if there are differences."""

TEMPLATE = """\
Prints the path of the packaged master.cfg, for
buildbot create-master -r --config "$(buildbot-ec2ud template)" DIR
Exit status: 0, or 2 for a wrong command line."""

USERDATA = """\
Prints the user-data that an instance of WORKER would get, with its password
masked; how it gets there, and its size; and what the shell itself, and
ShellCheck where it is installed, find wrong with it. Values that only a build
has are left open. The master need not run, and AWS is not asked. Exit status:
0 if nothing is wrong, 1 if something is, or if the configuration cannot be
loaded or has no such worker, 2 for a wrong command line."""

CHECK = """\
Asks AWS whether the workers of the master in DIR can be started as they are
configured: credentials, clock, image, subnets, security groups, instance types
in their zones, key pair, launch template, volumes, Elastic IP address, and a
dry run of each launch. Nothing is launched or changed. Each line says what was
found and, of a problem, what to do; workers that share something share its
line. What is known only when a build starts is told, and does not count. Exit
status: 0 if all is fine; 1 if there is a problem, or the configuration cannot
be loaded or has no such worker; 2 for a wrong command line; 3 if there is no
problem, but something could not be asked."""

INSTANCES = """\
Lists the instances of the master in DIR that EC2 has not ended, in all regions
and accounts that its configuration uses. The master need not run. Exit status:
0 if all could be asked, 1 if not, or if the configuration cannot be loaded,
2 for a wrong command line."""

REAP = """\
Ends what a master has left behind: all instances with its tag, in all regions
and accounts that its configuration uses; never those of another master. Without
--yes they are only listed. A running master ends by itself what it does not
need, so this refuses to run beside one. It looks for DIR/twistd.pid: a master
that was started with --nodaemon has none, and its instances would be ended.
Exit status: 0 if nothing is left, or EC2 has confirmed the end of all; 1 if
something went wrong; 2 for a wrong command line; 3 if, without --yes, there is
something to end."""
