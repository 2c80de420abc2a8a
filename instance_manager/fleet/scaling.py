"""How many replicas a model should have. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from instance_manager.fleet.profiles import ModelProfile


@dataclass(frozen=True, slots=True)
class ScalePolicy:
    """Samples are taken once a second: requests in flight plus waiting."""

    per_replica: int = 16  # requests that one replica serves well; the profile may set a limit of its own
    window_samples: int = 30
    up_samples: int = 3  # the latest ones, which decide on one replica more


def wanted_replicas(
    profile: ModelProfile, samples: Sequence[int], num_awake: int, policy: ScalePolicy
) -> int:
    """As many as are awake, one more or one less; within the profile's bounds.

    One more when all of the latest samples need it; one less only when a whole window did not need the last.
    """
    per_replica = profile.concurrency_limit or policy.per_replica
    wanted = num_awake
    latest = samples[-policy.up_samples :]
    if len(latest) == policy.up_samples and math.ceil(min(latest) / per_replica) > num_awake:
        wanted = num_awake + 1
    elif len(samples) >= policy.window_samples and math.ceil(max(samples) / per_replica) < num_awake:
        wanted = num_awake - 1
    least = profile.min_replicas
    if num_awake >= 1:
        least = max(least, 1)  # the last one ends by its idle time-out
    return min(max(wanted, least), max(profile.max_replicas, 1))
