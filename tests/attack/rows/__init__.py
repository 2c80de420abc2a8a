"""All attacks, by the Berth that they are made on. A new one goes into the tuple of its file."""

from __future__ import annotations

from tests.attack.attack import Field
from tests.attack.rows import bodies, doors, tenants, work

FIELDS: tuple[Field, ...] = (
    Field("tenants", tenants.ATTACKS),
    Field("doors", doors.ATTACKS),
    Field("bodies", bodies.ATTACKS),
    Field("work", work.ATTACKS),
)
