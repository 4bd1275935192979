"""EC2UserDataLatentWorker: Buildbot's side."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

from buildbot.config.errors import capture_config_errors
from buildbot.worker.latent import AbstractLatentWorker, States
from twisted.internet import defer

from buildbot_ec2ud import story
from buildbot_ec2ud.account import Account
from buildbot_ec2ud.connections import tell_of_loss
from buildbot_ec2ud.fleet.region import Fleet
from buildbot_ec2ud.losses import LossesMixin
from buildbot_ec2ud.passwords import new_password, replace_login
from buildbot_ec2ud.reporting import report, without_secrets
from buildbot_ec2ud.settings import Settings
from buildbot_ec2ud.sharing import SharingMixin
from buildbot_ec2ud.starts import StartsMixin
from buildbot_ec2ud.workarounds import WorkaroundsMixin

#: Seconds between two checks of a starting instance. They cost nothing: the fleet's watch has the answer.
CHECK_INTERVAL = 2
#: Seconds that a stop waits until EC2 has accepted the end of the instance; the fleet goes on trying after that.
STOP_PATIENCE = 60

#: Arguments that can be read right after construction, as in ``EC2LatentWorker``.
_READABLE = (
    *("instance_type", "ami", "valid_ami_owners", "valid_ami_location_regex", "keypair_name", "security_name"),
    *("spot_instance", "max_spot_price", "placement", "price_multiplier", "tags", "product_description", "subnet_id"),
    *("security_group_ids", "instance_profile_name", "block_device_map", "user_data", "volumes", "session"),
)


class EC2UserDataLatentWorker(StartsMixin, LossesMixin, SharingMixin, WorkaroundsMixin, AbstractLatentWorker):
    """A worker on an EC2 instance that its user-data makes of a vanilla image.

    The arguments are those of Buildbot's ``EC2LatentWorker``, in the same order and with the same meaning, and the ones
    after ``session``. Nothing here asks AWS anything: a configuration loads, and is checked, without it. ``docs/worker.md``
    has a table of them. Those that shape the instance may be renderables, or have some inside.

    :param name: the worker's name.
    :param password: None to make one for each start, which is good for one login. Else as in Buildbot.
    :param instance_type: an EC2 instance type, or a list in order of preference.
    :param ami: an image id, ``resolve:ssm:...``, a dict of owners and filters of which the newest image is taken
        (``{"owners": ["136693071363"], "name": "debian-12-amd64-*"}``), a renderable, or a callable that is given the worker
        and the build, and may return a Deferred.
    :param valid_ami_owners: account ids of owners whose images are considered; instead of *ami*.
    :param valid_ami_location_regex: a regular expression for the locations of images; a group in it sorts them.
    :param elastic_ip: an Elastic IP address, or its allocation id, that the instance gets when it runs.
    :param identifier: an AWS access key id; without it the AWS credential chain is used. May be a Secret.
    :param secret_identifier: the secret key of *identifier*. May be a Secret.
    :param aws_id_file_path: path of a file with both, a line each; ``~/.ec2/aws_id`` is read where it exists.
    :param user_data: user-data that is sent as it is; the worker has a *password* then.
    :param region: an AWS region; by default the session's, or what AWS's own settings say, else ``us-east-1``.
    :param keypair_name: name of an EC2 key pair for ssh; not needed.
    :param security_name: name of a security group of the default VPC.
    :param spot_instance: True means ``market="spot"``.
    :param max_spot_price: dollars that an hour of a spot instance may cost; by default, the price on demand.
    :param volumes: volumes that the instance gets when it runs: ``[("vol-...", "/dev/sdf")]``.
    :param placement: the letter of the availability zone, such as ``"a"``.
    :param price_multiplier: a spot instance may cost this many times the average of the last 24 hours.
    :param tags: a dict of tags for the instance, its volumes and network interfaces.
    :param product_description: of whose prices that average is; by default ``Linux/UNIX``.
    :param subnet_id: a subnet, or a list in order of preference.
    :param security_group_ids: ids of security groups.
    :param instance_profile_name: name or ARN of an IAM instance profile.
    :param block_device_map: as ``BlockDeviceMappings`` in the EC2 API; volumes are deleted with the instance unless
        ``DeleteOnTermination`` says otherwise.
    :param session: a ``boto3.Session`` whose credentials and region are used.
    :param bb_master: ``host:port`` that the instance connects to; by default, the host is this machine's fully qualified
        name, and the port that of Buildbot's PB protocol.
    :param bootstrap_script: the name of a packaged script (``"debian"``, ``"redhat"``, ``"suse"``, ``"alpine"``,
        ``"freebsd"``, ``"macos"``, ``"windows"``, ``"generic"``), an http(s) URL, the path of a file of the master (relative
        to its directory), or text that starts with ``#!``; by default the generic one, which finds out the system by itself.
        What starts with ``<powershell>`` or ``<script>``, or is in a file ``*.ps1``, is for Windows.
    :param bootstrap_sha256: checksum in hexadecimal of a script at a URL.
    :param bootstrap_env: a dict of further variables for the script. Renderable.
    :param bootstrap_insecure: True to take a script by plain http without a checksum.
    :param gzip_user_data: True to pack user-data that is larger than EC2 takes, for images whose cloud-init unpacks it.
    :param bb_www: where such user-data has the instance fetch its script from this master, with the plugin ``ec2_scripts``
        in ``c["www"]["plugins"]``: the URL of the master's web server, or True for ``c["buildbotURL"]``.
    :param bb_tls: TLS for the worker's connection: True to trust the certificates of the instance's system for the master,
        or the path of a PEM file (relative to the master's directory) with those to trust, which is read at each start.
    :param market: ``"on-demand"``, ``"spot"`` or ``"spot-then-on-demand"``.
    :param http_tokens: ``"optional"`` for images whose agent speaks only version 1 of the instance metadata service.
    :param encrypted_volumes: True to encrypt the root volume and those of *block_device_map*.
    :param launch_template: id or name of an EC2 launch template, or a dict as ``LaunchTemplate`` in the EC2 API.
    :param launch_options: a dict of further parameters of RunInstances, nested as in the EC2 API.
    :param capacity_memory: seconds for which an offer without capacity is not asked for again; by default 180.
    :param max_launch_failures: after this many failed starts in a row, the worker is paused; by default 10, 0 for no limit.
    :param owner: identity of this master, by which it knows its instances again: the same after each restart, and no
        other master's; by default, Buildbot's own name of the master: host and directory.
    :param max_lifetime: seconds after which the instance ends itself in any case; by default, never.
    :param orphan_timeout: seconds without a connection to the master after which the instance ends itself; by default 3600,
        and never less than ``missing_timeout``.
    :param endpoint_url: another EC2 endpoint.
    :param api_limits: a dict of EC2 actions, and the calls at once and per second that AWS takes of each from this account,
        where they are not what AWS documents: ``{"RunInstances": (20, 5)}``. Give all workers of an account the same:
        those who differ in it do not share their pacing.
    :param kwargs: the arguments of all of Buildbot's latent workers, such as ``build_wait_timeout`` (seconds).
    :raises buildbot.config.ConfigErrors: all that is wrong, in one go.
    """

    single_use_password = False

    def __init__(
        self,
        name: str,
        password: Any = None,
        instance_type: Any = None,
        ami: Any = None,
        valid_ami_owners: Any = None,
        valid_ami_location_regex: Any = None,
        elastic_ip: str | None = None,
        identifier: Any = None,
        secret_identifier: Any = None,
        aws_id_file_path: str | None = None,
        user_data: Any = None,
        region: str | None = None,
        keypair_name: str | None = None,
        security_name: str | None = None,
        spot_instance: bool = False,
        max_spot_price: float | None = None,
        volumes: Sequence[tuple[str, str]] | None = None,
        placement: str | None = None,
        price_multiplier: float | None = None,
        tags: Mapping[str, str] | None = None,
        product_description: str | None = None,
        subnet_id: Any = None,
        security_group_ids: Sequence[str] | None = None,
        instance_profile_name: str | None = None,
        block_device_map: Sequence[Mapping[str, Any]] | None = None,
        session: Any = None,
        *,
        bb_master: str | None = None,
        bootstrap_script: str | None = None,
        bootstrap_sha256: str | None = None,
        bootstrap_env: Any = None,
        bootstrap_insecure: bool | None = None,
        gzip_user_data: bool | None = None,
        bb_www: str | bool | None = None,
        bb_tls: str | bool | None = None,
        market: Any = None,
        http_tokens: Any = None,
        encrypted_volumes: Any = None,
        launch_template: Any = None,
        capacity_memory: float | None = None,
        max_launch_failures: int | None = None,
        owner: str | None = None,
        max_lifetime: int | None = None,
        orphan_timeout: int | None = None,
        launch_options: Mapping[str, Any] | None = None,
        endpoint_url: str | None = None,
        api_limits: Mapping[str, Sequence[float]] | None = None,
        **kwargs: Any,
    ) -> None:
        arguments = {**locals(), **kwargs}
        for local in ("self", "name", "password", "kwargs", "__class__"):
            arguments.pop(local, None)
        # Buildbot compares what it is given here to see whether a reconfig changes anything.
        super().__init__(name, password, **{key: value for key, value in arguments.items() if value is not None})

    def checkConfig(self, name: str, password: Any = None, **arguments: Any) -> None:
        self._adopt(Settings.parse(password, arguments))
        errors = [f"worker {name}: {line}" for line in self.settings.check(name)]
        with capture_config_errors() as buildbots:
            super().checkConfig(name, password, **self.settings.for_buildbots_check())
        report(errors + [f"worker {name}: {line}" for line in buildbots.errors])

    def _adopt(self, settings: Settings) -> None:
        self.settings = settings
        for name in _READABLE:
            setattr(self, name, getattr(settings.launch, name, getattr(settings, name, None)))

    @defer.inlineCallbacks
    def reconfigService(self, name: str, password: Any = None, **arguments: Any) -> Generator[Any, Any, None]:
        """Apply all arguments to the next start; an instance that runs is not disturbed."""
        settings = Settings.parse(password, arguments)
        self._adopt(settings)
        yield self._join_fleet(settings)
        was_single_use, self.single_use_password = self.single_use_password, password is None
        if self.single_use_password:
            # Nobody can log in before a start has made a password. Where there is one that was made here, it stays: an
            # instance may be about to use it, and if not, nobody knows it.
            idle = self.state in (States.NOT_SUBSTANTIATED, States.SHUT_DOWN)
            password = self.password if was_single_use or not idle else None
            password = password or new_password()
        buildbot = {"check_instance_interval": CHECK_INTERVAL, **settings.buildbot}
        yield super().reconfigService(name, password, **buildbot)
        story.mark(self.properties, self.rental)  # Buildbot has made new ones

    @defer.inlineCallbacks
    def _join_fleet(self, settings: Settings) -> Generator[Any, Any, None]:
        """Find the fleet of the region and the account. No call to AWS is made for it."""
        account = yield Account.of(settings, self.renderSecrets, self.master.reactor)
        self.region = account.region
        self.fleet = yield Fleet.getService(
            self.master,
            account.region,
            account.endpoint_url,
            account.access_key,
            account.secret_key,
            account.source,
            settings.limits,
            float(settings.capacity_memory),
            settings.owner,
        )

    def getConfigDict(self) -> dict[str, Any]:
        return without_secrets(super().getConfigDict())  # Buildbot logs it when a reconfig fails

    # What Buildbot calls while a build waits for the worker

    def render_shape(self, settings: Settings, properties: Any) -> defer.Deferred[Any]:
        return properties.render(settings.shape) if settings.depends_on_builds else defer.succeed(settings.shape)

    @defer.inlineCallbacks
    def attached(self, conn: Any) -> Generator[Any, Any, None]:
        tell_of_loss(conn, self.master.reactor)
        if self.state == States.SUBSTANTIATING_STARTING:
            yield self._void_password()
            if self.lifeline is not None:
                self.lifeline.life.attach("worker attached")
                # Not waited for: a connection that ends meanwhile would not be noticed.
                self.lifeline.page.finish()
            self._failures = 0
        yield super().attached(conn)

    @defer.inlineCallbacks
    def _void_password(self, ended: bool = False) -> Generator[Any, Any, None]:
        """Let nobody log in with the password of this start any more.

        An instance that is to live for ever may lose its connection and come back: it keeps its password until it ends.
        """
        if self.single_use_password and (ended or self.build_wait_timeout >= 0):
            yield replace_login(self, new_password())

    @defer.inlineCallbacks
    def stop_instance(self, fast: bool = False) -> Generator[Any, Any, bool]:
        rental, self.rental = self.rental, None
        lifeline, self.lifeline = self.lifeline, None
        # First of all, whatever happens after it. The fleet keeps it until EC2 has confirmed its end.
        accepted = defer.succeed(None) if rental is None else rental.fleet.terminate(rental)
        story.mark(self.properties, None)
        self.forget_shutdown()
        self.resetWorkerPropsOnStop()
        yield self._void_password(ended=True)
        if self.conn is not None:
            # With build_wait_timeout < 0, Buildbot would take it for that of the next instance's worker.
            self.conn.loseConnection()
        if lifeline is not None:
            yield lifeline.page.finish()
        accepted.addTimeout(STOP_PATIENCE, self.master.reactor, onTimeoutCancel=lambda *_: None)
        yield accepted
        return True

    def stopService(self) -> defer.Deferred[None]:
        self._cancel_start()
        self._be_patient()
        return super().stopService()


def ec2_fleet(name: str, count: int, **arguments: Any) -> list[EC2UserDataLatentWorker]:
    """Like workers from one entry: ``name-1`` to ``name-COUNT``.

    :param name: what the workers' names begin with.
    :param count: how many.
    :param arguments: the arguments of each :class:`EC2UserDataLatentWorker`.
    """
    return [EC2UserDataLatentWorker(f"{name}-{number}", **arguments) for number in range(1, count + 1)]
