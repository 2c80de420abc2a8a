"""The results of a storm as a table, and the guarantees that it found violated."""

from __future__ import annotations

from tests.soak.accounting import Verdict
from tests.soak.client import Outcome
from tests.soak.report import counted, over_budget, quantile
from tests.soak.storm import Storm, failed_events_without_cause


def broken_in_storm(storm: Storm) -> list[str]:
    """The violated guarantees, one per line; empty = none."""
    answered = {one.request.model for one in storm.traffic.attempts if one.outcome is Outcome.ANSWERED}
    return [
        *(f"lost: {line}" for line in storm.accounts.lost),
        *storm.history.problems,
        *storm.events.problems,
        *failed_events_without_cause(storm),
        *storm.left,
        *storm.wrong_usage,
        *over_budget(storm.memory, storm.budget_bytes),
        *(f"in Berth's log: {line}" for line in storm.in_log),
        *(f"{name} has answered nothing" for name in storm.plan.models if name not in answered),
    ]


def storm_table(storm: Storm) -> str:
    """Lines of name and value."""
    plan, accounts, states = storm.plan, storm.accounts, storm.events.states
    waits = sorted(one.wait_s for one in storm.traffic.attempts if one.outcome is Outcome.ANSWERED)
    longest = max((one.ended - one.began for one in storm.traffic.attempts), default=0.0)
    rows = [
        ("storm", f"{plan.engine}, {plan.store}, {plan.seconds:.0f} s, seed {plan.seed}"),
        ("requests", f"{len(storm.traffic.attempts)} by {plan.num_clients} clients"),
        *((f"  {verdict}", f"{accounts.verdicts[verdict]}") for verdict in Verdict),
        ("retries", f"{accounts.num_retried} of these"),
        ("refusals", counted(accounts.refusals)),
        ("faults", counted(storm.history.counts)),
        ("Berths", f"{storm.num_berths}"),
        ("starts, stops", f"{states['health_checking']}, {states['stopped']}"),
        ("sleeps, failures", f"{states['sleeping']}, {states['failed']}"),
        ("evictions", counted(storm.events.evictions)),
        ("wait", f"median {quantile(waits, 0.5):.3f} s, 99 % {quantile(waits, 0.99):.1f} s"),
        ("longest attempt", f"{longest:.1f} s"),
        ("most held", f"{storm.memory.peak_bytes >> 20} of {storm.budget_bytes >> 20} MiB"),
        ("left over", "none" if not storm.left else "SOME"),
        ("usage", "correct" if not storm.wrong_usage else "WRONG"),
    ]
    return "\n".join(f"{name:<18} {value}" for name, value in rows)
