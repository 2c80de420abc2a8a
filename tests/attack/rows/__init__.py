"""All attacks, by the Berth that they are made on. A new one goes into the tuple of its file."""

from __future__ import annotations

from tests.attack.attack import Field
from tests.attack.rows import bodies, connections, engines, tenants, work
from tests.attack.rows import access as doors
from tests.attack.rows import admins as operators

FIELDS: tuple[Field, ...] = (
    Field("tenants", tenants.ATTACKS),
    Field("doors", doors.ATTACKS),
    Field("connections", connections.ATTACKS),
    Field("few places", connections.FEW_PLACES, {"MAX_CONNECTIONS": "250"}),
    Field("without keys", connections.WITHOUT_KEYS, has_keys=False),
    Field("engines", engines.ATTACKS),
    Field("operators", (*operators.ATTACKS, *operators.REDIS)),
    Field("bodies", bodies.ATTACKS),
    Field("work", work.ATTACKS),
)
