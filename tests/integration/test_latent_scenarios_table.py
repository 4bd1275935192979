"""Which of Buildbot's own scenarios for latent workers is which test here.

The names are those of Buildbot's ``test/integration/worker/test_latent.py``, which is in its repository and not in its
distributions.
"""

from __future__ import annotations

import importlib
import inspect

from twisted.trial.unittest import SynchronousTestCase

STARTS = "test_latent_scenarios"
STOPS = "test_latent_scenarios_stops"
#: Why the scenarios of Buildbot's latent machines do not apply.
MACHINE = (
    "A latent machine is hardware that Buildbot wakes up and suspends, with several workers on it. An EC2 instance is a "
    "machine of one worker's own, and ends with it: what is tested of machines' starts and stops here is that of instances."
)

#: By name of Buildbot's test: the tests here, as ``module.Class.test``; or why it does not apply.
SCENARIOS: dict[str, tuple[str, ...] | str] = {
    "test_latent_workers_start_in_parallel": (
        f"{STARTS}.Starts.test_parallel",
        "test_first_run.FirstRun.test_many_at_once",
    ),
    # No start of ours gives False: those that are refused say why.
    "test_refused_substantiations_get_requeued": (f"{STARTS}.Starts.test_refused",),
    "test_failed_substantiations_get_requeued": (
        f"{STARTS}.Starts.test_mistake",
        f"{STARTS}.Unanswered.test_lost",
        "test_bad_days.BadDays.test_nobody_listens",
    ),
    "test_failed_substantiations_get_exception": (
        "test_bad_days.BadDays.test_ec2_error",
        "test_bad_days.BadDays.test_image_that_is_none",
    ),
    "test_worker_accepts_builds_after_failure": (f"{STARTS}.Starts.test_quarantine",),
    "test_worker_multiple_substantiations_succeed": (f"{STARTS}.Starts.test_two_builders",),
    "test_very_late_detached_after_substantiation": (f"{STOPS}.Stops.test_connection_ends_late",),
    "test_substantiation_during_stop_instance": (f"{STOPS}.Stops.test_build_comes",),
    "test_substantiation_during_stop_instance_canStartBuild_race": (f"{STOPS}.Stops.test_build_comes_late",),
    "test_insubstantiation_during_substantiation_refuses_substantiation": (f"{STARTS}.Starts.test_insubstantiated",),
    "test_stopservice_during_insubstantiation_completes": (f"{STOPS}.Reconfigs.test_removed_while_it_is_ended",),
    # Buildbot's own waits for the start; ours is given up, and its instance ended.
    "test_stopservice_during_substantiation_completes": (
        f"{STOPS}.Reconfigs.test_removed_while_it_starts",
        f"{STOPS}.Reconfigs.test_removed_before_it_fails",
        "test_life_cycle.Reconfigs.test_removed_while_it_boots",
        "test_life_cycle.Reconfigs.test_removed_while_it_builds",
        "test_bad_days.BadDays.test_master_stops_while_a_launch_is_pending",
    ),
    "test_substantiation_is_cancelled_by_build_stop": ("test_bad_days.BadDays.test_cancel_while_it_boots",),
    "test_reconfigservice_during_substantiation_clean_shutdown_after": (
        f"{STOPS}.Reconfigs.test_changed_before_the_answer",
        f"{STOPS}.Reconfigs.test_changed_after_the_answer",
        f"{STOPS}.Reconfigs.test_changed_before_the_answer_and_connects",
        f"{STOPS}.Reconfigs.test_changed_after_the_answer_and_connects",
    ),
    "test_substantiation_cancelled_by_insubstantiation_when_waiting_for_insubstantiation": (
        f"{STOPS}.Stops.test_build_comes_and_goes",
    ),
    "test_stalled_substantiation_then_timeout_get_requeued": (
        f"{STARTS}.Starts.test_missing",
        "test_bad_days.BadDays.test_never_attaches",
    ),
    "test_stalled_substantiation_then_check_instance_fails_get_requeued": (
        "test_bad_days.BadDays.test_bootstrap_fails",
        "test_bad_days.BadDays.test_instance_is_ended_by_somebody",
    ),
    "test_sever_connection_before_ping_then_timeout_get_requeued": (
        f"{STARTS}.BadWorkers.test_severed_before_the_ping",
    ),
    "test_failed_sendBuilderList_get_requeued": (f"{STARTS}.BadWorkers.test_builders",),
    "test_failed_ping_get_requeued": (f"{STARTS}.BadWorkers.test_ping",),
    "test_worker_close_connection_while_building": (
        f"{STARTS}.BadWorkers.test_goes_while_it_builds",
        "test_sharing.Spot.test_retried_on_demand",
    ),
    "test_negative_build_timeout_reattach_substantiated": (
        "test_first_run.FirstRun.test_reconnects_where_it_never_stops",
    ),
    "test_sever_connection_while_building": (f"{STARTS}.BadWorkers.test_severed_while_it_builds",),
    "test_sever_connection_during_insubstantiation": (f"{STOPS}.Stops.test_severed",),
    "test_sever_connection_during_insubstantiation_and_buildrequest": (f"{STOPS}.Stops.test_severed_and_build_comes",),
    # A worker of ours does not get in again once its instance is being ended.
    "test_negative_build_timeout_reattach_insubstantiating": (
        f"{STOPS}.NeverStopping.test_comes_back_while_it_is_ended",
    ),
    # Buildbot's own goes on with the connection; behind ours, there is no instance any more.
    "test_negative_build_timeout_no_disconnect_insubstantiating": (f"{STOPS}.NeverStopping.test_stays_connected",),
    "test_negative_build_timeout_insubstantiates_on_master_shutdown": (
        "test_first_run.FirstRun.test_reconnects_where_it_never_stops",
    ),
    "test_stop_instance_synchronous_exception": (
        f"{STOPS}.Stops.test_mistake",
        "test_bad_days.BadDays.test_terminate_is_repeated",
    ),
    "test_build_stop_with_cancelled_during_substantiation": (
        f"{STARTS}.Starts.test_cancelled",
        "test_bad_days.BadDays.test_cancel_while_ec2_is_silent",
    ),
    "test_build_stop_with_retry_during_substantiation": (f"{STARTS}.Starts.test_stopped_to_be_retried",),
    "test_rejects_build_on_instance_with_different_type_timeout_zero": (f"{STOPS}.Kinds.test_at_once",),
    "test_rejects_build_on_instance_with_different_type_timeout_nonzero": (
        f"{STOPS}.Kinds.test_kept",
        "test_sharing.Sharing.test_other_shape",
    ),
    "test_supports_no_build_for_substantiation": (f"{STARTS}.NoBuild.test_starts_and_stops",),
    "test_supports_no_build_for_substantiation_accepts_build_later": (f"{STARTS}.NoBuild.test_build_comes_later",),
    "test_1worker_starts_and_stops_after_single_build_success": MACHINE,
    "test_1worker_starts_and_stops_after_single_build_failure": MACHINE,
    "test_1worker_stops_machine_after_timeout": MACHINE,
    "test_1worker_does_not_stop_machine_machine_after_timeout_during_build": MACHINE,
    "test_1worker_insubstantiated_after_start_failure": MACHINE,
    "test_1worker_eats_exception_from_start_machine": MACHINE,
    "test_1worker_eats_exception_from_stop_machine": MACHINE,
    "test_2workers_build_substantiates_insubstantiates_both_workers": MACHINE,
    "test_2workers_two_builds_start_machine_concurrently": MACHINE,
    "test_2workers_insubstantiated_after_one_start_failure": MACHINE,
}


class Table(SynchronousTestCase):
    def test_all(self):
        """Buildbot has 45 of them."""
        self.assertEqual(len(SCENARIOS), 45)
        self.assertEqual([name for name, tests in SCENARIOS.items() if not tests], [])

    def test_exist(self):
        """Every test that is named can be run."""
        named = {test for tests in SCENARIOS.values() if not isinstance(tests, str) for test in tests}
        self.assertEqual([name for name in sorted(named) if not self.can_run(name)], [])

    def can_run(self, name: str) -> bool:
        module, case, test = name.split(".")
        found = getattr(importlib.import_module(f"tests.integration.{module}"), case, None)
        return callable(getattr(found, test, None)) and not hasattr(getattr(found, test), "skip")

    def test_named(self):
        """Every test of the scenarios is in the table."""
        named = {test for tests in SCENARIOS.values() if not isinstance(tests, str) for test in tests}
        here = {
            f"{module}.{case.__name__}.{test}"
            for module in (STARTS, STOPS)
            for case in vars(importlib.import_module(f"tests.integration.{module}")).values()
            if inspect.isclass(case) and case.__module__ == f"tests.integration.{module}"
            for test in vars(case)
            if test.startswith("test_")
        }
        self.assertEqual(here - named, set())
