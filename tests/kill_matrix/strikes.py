"""Faults as they come over a device that is on its way from the old set to the new one."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import replace

from edge_agent.errors import AlreadyRunningError
from edge_agent.journal import replace_file
from edge_agent.state_dir import StateDir
from edge_agent.states import MAX_ATTEMPTS
from engine.strict_json import canonical_json
from tests.kill_matrix.agent import ForkedAgent
from tests.kill_matrix.cases import Case
from tests.kill_matrix.chunks import verified_spans
from tests.kill_matrix.faults import Act
from tests.kill_matrix.stage import PATIENCE_S, Client, Stage, WrongError, check_answers, until_last
from tests.simulators.fleet_server import policy_of

MOST_STARTS = 8
_MOST_STALE_S = 60


def strike(stage: Stage, case: Case) -> None:
    """From the old set towards the new one with the fault on the way, until the agent is gone."""
    if case.act is Act.METADATA_OUTLIVED:
        _let_nothing_run_when_stale(stage)
    stage.agent.start(stage.fault(case))
    client = Client(stage.agent)
    want_new(stage, client)
    _let_happen(stage, case, client)
    if case.act not in (Act.KILL, Act.POWER_LOSS):
        stage.until(stage.is_settled, "the end of the update")
        stage.agent.stop()
    answers = client.close()
    if case.act not in _SILENT:
        check_answers(stage, until_last(answers))
    stage.num_requests = len(stage.fleet.requests)
    stage.verified = verified_spans(stage.agent.state_dir, map(stage.fleet.index, stage.new))


_SILENT = (Act.BOOT_LOOP, Act.READ_ONLY_AT_START, Act.METADATA_OUTLIVED)
"""Nobody is home for some time, or nobody may answer."""


def _let_happen(stage: Stage, case: Case, client: Client) -> None:
    match case.act:
        case Act.KILL | Act.POWER_LOSS:
            _wait_for_kill(stage)
        case Act.BOOT_LOOP:
            _start_until_it_stays(stage, case)
        case Act.DISK_FULL | Act.READ_ONLY:
            stage.until_struck()
            stage.until_answered(client)
            (stage.notes / "over").touch()
        case Act.READ_ONLY_AT_START:
            _wait_for_kill(stage)
            _start_on_read_only_disk(stage, client)
        case Act.SERVER_GONE | Act.METADATA_EXPIRED | Act.METADATA_OUTLIVED | Act.SECOND_AGENT:
            stage.until(stage.agent.is_paused, "the fault")
            _while_paused(stage, case, client)
        case _:
            stage.until_struck()


def _while_paused(stage: Stage, case: Case, client: Client) -> None:
    """The agent is held at the point; what comes about it meanwhile, and what it does then."""
    match case.act:
        case Act.SERVER_GONE:
            stage.fleet.stop()
            stage.agent.signal(signal.SIGCONT)
            stage.until_answered(client)
            stage.fleet.start()
        case Act.METADATA_EXPIRED:
            stage.fleet.trust.let_expire()
            stage.agent.signal(signal.SIGCONT)
            _wait_for_fresh_metadata(stage)
            stage.until_answered(client)
            stage.fleet.trust.renew()
        case Act.METADATA_OUTLIVED:
            stage.fleet.trust.let_expire()
            stage.agent.signal(signal.SIGCONT)
            _outlive_metadata(stage, client)
            stage.fleet.trust.renew()
            stage.until_answered(client)
        case Act.SECOND_AGENT:
            _start_second(stage)
            stage.agent.signal(signal.SIGCONT)


def _wait_for_fresh_metadata(stage: Stage) -> None:
    """An update that needs metadata waits for it, however long that takes; one that has seen it goes on."""
    num_before = stage.fleet.count("GET", "/trust/metadata/timestamp")

    def has_waited() -> bool:
        return stage.fleet.count("GET", "/trust/metadata/timestamp") > num_before + MAX_ATTEMPTS + 1

    stage.until(lambda: stage.is_settled() or has_waited(), "tries to get metadata")
    if not stage.is_settled():
        stage.until(lambda: stage.reported_problem() == "metadata_expired", "a report of why it waits")


def _let_nothing_run_when_stale(stage: Stage) -> None:
    """The fleet's policy, which the device has heard before."""
    stage.fleet.trust.set_policy(policy_of(stage.fleet.desired_signer, max_stale_s=_MOST_STALE_S))
    heard = canonical_json({"revoked": [], "max_stale_s": _MOST_STALE_S})
    StateDir(stage.agent.state_dir).revocation.write_bytes(heard)
    stage.agent.settings["trust_interval_s"] = 0.2


def _outlive_metadata(stage: Stage, client: Client) -> None:
    """Time passes for what the device holds: nothing may answer any more, and the fleet hears why."""
    held = StateDir(stage.agent.state_dir).metadata / "timestamp.json"

    def is_silent() -> bool:
        replace_file(held, stage.fleet.trust.files["metadata/timestamp.json"])
        return bool(client.answers) and client.answers[-1] is None

    stage.until(is_silent, "an end of the answers")
    why = ("metadata_outlived", "metadata_expired")  # the latter of an update that needs fresh metadata
    stage.until(lambda: stage.reported_problem() in why, "a report of why nothing runs")


def _start_on_read_only_disk(stage: Stage, client: Client) -> None:
    """It serves what it served, on the port that was written down before, and says what is wrong."""
    address = json.loads(StateDir(stage.agent.state_dir).api.read_bytes())
    stage.agent.settings["api_port"] = address["port"]
    stage.agent.start(replace(stage.fault(), is_read_only=True), keeps_api=True)
    if stage.entry.served:
        stage.until_answered(client)
    stage.until(lambda: stage.reported_problem() == "disk_error", "a report of the disk")
    (stage.notes / "over").touch()


def _wait_for_kill(stage: Stage) -> None:
    while stage.agent.wait(0.05) is None:
        if stage.is_settled() and stage.has_reported() and not stage.is_struck:
            raise WrongError("the update has ended without the fault")
    if stage.agent.exit_code != -signal.SIGKILL:
        raise WrongError(f"exit code {stage.agent.exit_code} instead of a kill")


def _start_until_it_stays(stage: Stage, case: Case) -> None:
    """Started again after each kill, as an init system would."""
    for _ in range(MOST_STARTS):
        while stage.agent.wait(0.05) is None:
            if stage.is_settled():
                return
        stage.agent.start(stage.fault(case))
    raise WrongError(f"still killed after {MOST_STARTS} starts")


def _start_second(stage: Stage) -> None:
    second = ForkedAgent(stage.agent.state_dir, stage.fleet.url)
    log = stage.agent.log.read_text()
    second.start(stage.fault(), keeps_api=True)
    if second.wait(PATIENCE_S) != AlreadyRunningError.exit_code:
        raise WrongError(f"a second agent ended with {second.exit_code}")
    if f"process {stage.agent.process.pid}" not in stage.agent.log.read_text()[len(log) :]:
        raise WrongError("the second agent does not say who was first")


def want_new(stage: Stage, client: Client) -> None:
    """Roll the new set out once the old one is served, or once the fault has come: then it waits for what follows."""
    deadline_s = time.monotonic() + PATIENCE_S
    while stage.scenario.old and not any(client.answers) and stage.agent.exit_code is None:
        if stage.agent.is_paused():
            break
        if time.monotonic() > deadline_s:
            raise WrongError("the old set did not come up")
        time.sleep(0.01)
    stage.fleet.want(stage.new[0], *stage.new[1:])
