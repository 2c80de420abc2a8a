"""All attacks, grouped by the settings of the attacked Berth. Add a new one to the tuple of its file."""

from __future__ import annotations

from tests.attack.attack import AttackGroup
from tests.attack.rows import access, admins, bodies, connections, engines, tenants, work

GROUPS: tuple[AttackGroup, ...] = (
    AttackGroup("tenants", tenants.ATTACKS),
    AttackGroup("access", access.ATTACKS),
    AttackGroup("connections", connections.ATTACKS),
    AttackGroup("few connections", connections.FEW_CONNECTIONS, {"MAX_CONNECTIONS": "250"}),
    AttackGroup("without keys", connections.WITHOUT_KEYS, has_keys=False),
    AttackGroup("engines", engines.ATTACKS),
    AttackGroup("admins", (*admins.ATTACKS, *admins.REDIS)),
    AttackGroup("bodies", bodies.ATTACKS),
    AttackGroup("work", work.ATTACKS),
)
