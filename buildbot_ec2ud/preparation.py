"""One start of a worker, prepared: everything rendered for the build, the image found, the password made -> offers."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from twisted.internet import defer

from buildbot_ec2ud.addresses import has_port
from buildbot_ec2ud.bootstrapping import make_user_data, server
from buildbot_ec2ud.fleet.attachments import Attachments
from buildbot_ec2ud.fleet.offer import Offer
from buildbot_ec2ud.launch import LOWEST_SPOT_PRICE, RESOLVED_BY_EC2, LaunchConfig, LaunchError, as_list
from buildbot_ec2ud.parameters import Names
from buildbot_ec2ud.passwords import new_password, replace_login
from buildbot_ec2ud.userdata.posix import UserDataError


@dataclass(frozen=True, repr=False)
class Start:
    """What a start asks the fleet for. There is a password in the offers: it has no ``repr``.

    :ivar offers: the ways to get the instance, in order of preference.
    :ivar attachments: what the instance gets when it runs.
    """

    offers: list[Offer]
    attachments: Attachments


@defer.inlineCallbacks
def prepare(worker: Any, fleet: Any, build: Any, launch_id: str) -> Generator[Any, Any, Start]:
    """Prepare a start of *worker* for *build*; its new password, if it has one for each start, is registered.

    :param fleet: the one that is to launch.
    :param launch_id: what only this launch has.

    :raises LaunchError: what was rendered cannot be launched.
    :raises UserDataError: the user-data cannot be made.
    :raises ScriptError: the bootstrap script cannot be used.
    :raises EC2CallError: the image cannot be found.
    """
    settings = worker.settings
    try:
        shape, environment, user_data = yield worker.renderWorkerPropsOnStart(build)
    except Exception as error:  # whatever a renderable of the configuration raises: the next start would raise it again
        reason: BaseException = error
        while isinstance(reason, defer.FirstError):  # Buildbot renders what is inside of something all at once
            reason = reason.subFailure.value
        raise LaunchError(f"the configuration cannot be rendered for this build: {reason!r}") from error
    launch = LaunchConfig(**{**shape, "region": fleet.region})
    if callable(launch.ami):
        launch = replace(launch, ami=(yield defer.maybeDeferred(launch.ami, worker, build)))
    if wrong := list(launch.check()):
        raise LaunchError("; ".join(wrong))
    launch, root_device = yield _with_image(fleet, launch)
    max_prices = yield _max_prices(fleet, launch)
    master = (yield _master_address(worker, fleet)) if settings.bootstraps else ""
    # Last of all that is waited for: many starts may have waited for the same.
    yield fleet.turns.wait()
    if settings.bootstraps:
        if worker.single_use_password:
            yield replace_login(worker, new_password())
        spot = "spot" in launch.markets
        basedir = (worker.master.basedir,)
        serve = server(settings, worker.master, master)
        text = make_user_data(settings, worker.name, master, worker.password, environment, basedir, spot, serve)
    else:
        text = _as_bytes(user_data)
    offers = launch.offers(text, Names(fleet.owner, worker.name, launch_id), max_prices, root_device)
    if build is not None and fleet.capacity.has_lost({request.id for request in build.requests}):
        # Not again, where there is another way.
        others = [offer for offer in offers if offer.market != "spot"]
        worker.lifeline.page.tell(
            "an earlier attempt at this build has lost its spot instance"
            + ("; on demand now" if others else ", and the configuration has no other market")
        )
        offers = others or offers
    return Start(offers, settings.attachments)


def _as_bytes(user_data: Any) -> bytes:
    if not isinstance(user_data, (str, bytes, type(None))):
        raise UserDataError(f"user_data: not a text: {type(user_data).__name__}")
    return user_data if isinstance(user_data, bytes) else (user_data or "").encode("utf-8")


@defer.inlineCallbacks
def _with_image(fleet: Any, launch: LaunchConfig) -> Generator[Any, Any, tuple[LaunchConfig, str | None]]:
    """Find the image, and if need be the name of its root device."""
    rule = launch.image_rule
    if rule is not None:
        image = yield fleet.images.find(rule)
    elif launch.encrypted_volumes and launch.ami and not launch.ami.startswith(RESOLVED_BY_EC2):
        image = yield fleet.images.by_id(launch.ami)
    else:
        return launch, None
    launch = replace(launch, ami=image.image_id, valid_ami_owners=None, valid_ami_location_regex=None)
    return launch, image.root_device_name if launch.encrypted_volumes else None


@defer.inlineCallbacks
def _max_prices(fleet: Any, launch: LaunchConfig) -> Generator[Any, Any, Mapping[str | None, float | None]]:
    """What an hour of each instance type may cost on the spot market."""
    types = as_list(launch.instance_type) or [None]
    prices: dict[str | None, float | None] = dict.fromkeys(types, launch.max_spot_price)
    if launch.price_multiplier is None or "spot" not in launch.markets:
        return prices
    zone = f"{launch.region}{launch.placement}" if launch.placement else None
    for kind in filter(None, types):
        average = yield fleet.prices.average(kind, launch.product_description or "Linux/UNIX", zone)
        if average is not None:
            price = max(average * launch.price_multiplier, LOWEST_SPOT_PRICE)
            prices[kind] = price if launch.max_spot_price is None else min(price, launch.max_spot_price)
    return prices


@defer.inlineCallbacks
def _master_address(worker: Any, fleet: Any) -> Generator[Any, Any, str]:
    """``host:port`` for the instance to connect to."""
    configured = worker.settings.bb_master
    if configured is not None and has_port(configured):
        return configured
    if worker.registration.pbReg is None:
        raise UserDataError("bb_master: c['protocols'] has no pb port for workers to connect to")
    hostname = configured or (yield fleet.hostname())
    return f"{hostname}:{worker.registration.getPBPort()}"
