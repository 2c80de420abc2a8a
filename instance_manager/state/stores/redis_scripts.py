"""The Lua scripts that run atomically inside Redis, and the names of the keys they use.

All keys share one hash tag, so that a Redis cluster keeps them on one server:
- `records`, `versions`: hashes, instance id → JSON, number
- `ports`: hash, [node, port] → instance id
- `usage`: hash, [owner, key id, model, counter] → number
- `events`: stream; its ids are our event ids with "-0"
- `changes`: stream that `watch` follows
- `counters`: hash, the last `event`, `change` and `fence`
- `leases`: hash, owner → JSON
- `epoch`: a random name of this data set; if it changes, Redis has lost its data
- `done:ID`: replies to recent writes, so that a write whose reply was lost can be repeated
- `key:NAME`: idempotency keys

Every script returns JSON: {"ok": …} or {"error": code, …}.
"""

from __future__ import annotations

# Shared by both writing scripts: `publish` appends to the stream of changes and returns its number;
# `lease_of` returns an owner's lease, or nil if it has no readable one.
_PRELUDE = """
local function publish(...)
  local n = redis.call('HINCRBY', KEYS[1], 'change', 1)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', 10000, '*', 'n', n, ...)
  return n
end
if redis.call('GET', KEYS[3]) ~= ARGV[1] then return cjson.encode({error = 'epoch'}) end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function lease_of(owner)
  local raw = redis.call('HGET', KEYS[4], owner)
  local ok, lease = pcall(cjson.decode, raw or '')
  if ok and type(lease) == 'table' and tonumber(lease.expires) and tonumber(lease.fence) then return lease end
end
"""

COMMIT_KEYS = ("counters", "changes", "epoch", "leases", "records", "versions", "ports", "usage", "events")

# KEYS[10]: done:ID. ARGV: epoch, the write as JSON (see redis_wire.py), events to keep, the reply's lifetime.
COMMIT = (
    _PRELUDE
    + """
local done = redis.call('GET', KEYS[10])
if done then return done end
local w = cjson.decode(ARGV[2])
if w.owner then
  local lease = lease_of(w.owner)
  if not lease or lease.session ~= w.session then
    local is_held = lease and lease.expires > now
    return cjson.encode({error = is_held and 'lease_lost' or 'lease_gone'})
  end
end
if w.instance then
  local found = tonumber(redis.call('HGET', KEYS[6], w.instance) or '0') or 0
  if found ~= w.expected then return cjson.encode({error = 'conflict', found = found}) end
end
if w.hold then
  local holder = redis.call('HGET', KEYS[7], w.hold.port)
  if holder and holder ~= w.hold.instance then return cjson.encode({error = 'port_held', holder = holder}) end
end
if w.put then
  redis.call('HSET', KEYS[5], w.instance, w.put)
  redis.call('HSET', KEYS[6], w.instance, string.format('%d', w.expected + 1))
elseif w.instance then
  redis.call('HDEL', KEYS[5], w.instance)
  redis.call('HDEL', KEYS[6], w.instance)
  local ports = redis.call('HGETALL', KEYS[7])
  for i = 1, #ports, 2 do
    if ports[i + 1] == w.instance then redis.call('HDEL', KEYS[7], ports[i]) end
  end
end
if w.release and redis.call('HGET', KEYS[7], w.release.port) == w.release.instance then
  redis.call('HDEL', KEYS[7], w.release.port)
end
if w.hold then redis.call('HSET', KEYS[7], w.hold.port, w.hold.instance) end
for _, used in ipairs(w.usage) do
  local sum = redis.pcall('HINCRBY', KEYS[8], used[1], used[2])  -- a full or non-numeric field stays as it is
  if type(sum) == 'table' and string.find(sum.err, 'WRONGTYPE') then return sum end
end
local first = 0
local last = tonumber(redis.call('HGET', KEYS[1], 'event') or '') or 0
if #w.events > 0 and w.first > last + 1 then
  redis.call('HSET', KEYS[1], 'event', string.format('%d', w.first - 1))
end
for i, body in ipairs(w.events) do
  local id = redis.call('HINCRBY', KEYS[1], 'event', 1)
  if i == 1 then first = id end
  redis.call('XADD', KEYS[9], 'MAXLEN', ARGV[3], string.format('%d-0', id), 'b', body)
end
local n = 0
local first_id = string.format('%d', first)
if w.instance or w.hold or w.release or #w.events > 0 then n = publish('first', first_id, 'w', ARGV[2]) end
local reply = cjson.encode({ok = true, n = n, first = first_id})
redis.call('SET', KEYS[10], reply, 'EX', ARGV[4])
return reply
"""
)

LEASE_KEYS = ("counters", "changes", "epoch", "leases")

# ARGV: epoch, "acquire" | "renew" | "release", owner, session, ttl in ms, "1" to take over, its URL.
# A lease that is gone, or that another process let expire, is acquired `again`; a live holder prevents it.
LEASE = (
    _PRELUDE
    + """
local verb, owner, session = ARGV[2], ARGV[3], ARGV[4]
local lease = lease_of(owner)
local mine = lease and lease.session == session
local alive = lease and lease.expires > now
if verb == 'release' then
  if mine then
    redis.call('HDEL', KEYS[4], owner)
    publish('lost', owner)
  end
  return cjson.encode({ok = true})
end
if verb == 'renew' and not mine and alive then return cjson.encode({error = 'lease_lost'}) end
if not mine and alive and ARGV[6] ~= '1' then
  return cjson.encode({error = 'in_use', expires_in_ms = lease.expires - now})
end
local fence = mine and lease.fence or redis.call('HINCRBY', KEYS[1], 'fence', 1)
redis.call('HSET', KEYS[4], owner,
  cjson.encode({session = session, fence = fence, expires = now + tonumber(ARGV[5]), url = ARGV[7]}))
if not (mine and alive) then publish('joined', owner) end
return cjson.encode({ok = true, fence = fence, again = verb == 'renew' and not mine})
"""
)

RESTORE_KEYS = ("counters", "changes", "epoch", "records", "versions", "ports", "usage", "events")

# Redis has lost some or all of its data: restore what one node still has, wherever it is missing.
# ARGV: the epoch to set if there is none, the known data as JSON, events to keep, the prefix of `key:`.
RESTORE = """
local known = cjson.decode(ARGV[2])
local put = 0
local function is_json(text) return (pcall(cjson.decode, text or '')) end
redis.call('SET', KEYS[3], ARGV[1], 'NX')
for _, item in ipairs(known.records) do
  local is_done = known.in_doubt.id == item.id and redis.call('EXISTS', known.in_doubt.key) == 1
  local body = redis.call('HGET', KEYS[4], item.id)
  local version = tonumber(redis.call('HGET', KEYS[5], item.id) or '')
  if not is_done and not (body and version and is_json(body)) then
    redis.call('HSET', KEYS[4], item.id, item.body)
    redis.call('HSET', KEYS[5], item.id, string.format('%d', item.version))
    put = put + 1
  end
end
for _, item in ipairs(known.ports) do put = put + redis.call('HSETNX', KEYS[6], item[1], item[2]) end
for _, item in ipairs(known.usage) do put = put + redis.call('HSETNX', KEYS[7], item[1], item[2]) end
for _, item in ipairs(known.keys) do
  redis.call('SET', ARGV[4] .. item.key, item.value, 'NX', 'PX', item.ttl_ms)
end
local newest = redis.call('XREVRANGE', KEYS[8], '+', '-', 'COUNT', 1)[1]
local last = newest and tonumber(string.match(newest[1], '^%d+')) or 0
for _, item in ipairs(known.events) do
  if item.id > last then
    redis.pcall('XADD', KEYS[8], 'MAXLEN', ARGV[3], string.format('%d-0', item.id), 'b', item.body)
    put = put + 1
  end
end
for name, least in pairs({event = math.max(known.event, last), fence = known.fence}) do
  local now = tonumber(redis.call('HGET', KEYS[1], name) or '0') or 0
  if least > now then
    redis.call('HSET', KEYS[1], name, string.format('%d', least))
    put = put + 1
  end
end
if put > 0 then
  redis.call('XADD', KEYS[2], '*', 'n', redis.call('HINCRBY', KEYS[1], 'change', 1), 'restored', '1')
end
return {redis.call('GET', KEYS[3]), put}
"""

MEND_KEYS = (*RESTORE_KEYS, "leases")
MEND_TYPES = ("hash", "stream", "string", "hash", "hash", "hash", "hash", "stream", "hash")

# Foreign values under our key names are renamed, never deleted; counters that aren't numbers are reset.
# ARGV: the suffix of the new names, then the type of each key. Returns the new names.
MEND = """
local moved = {}
for i, key in ipairs(KEYS) do
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'none' and kind ~= ARGV[i + 1] then
    redis.call('RENAME', key, key .. ARGV[1])
    moved[#moved + 1] = key .. ARGV[1]
  end
end
for _, name in ipairs({'event', 'change', 'fence'}) do
  local value = redis.call('HGET', KEYS[1], name)
  if value and not string.match(value, '^%d+$') then redis.call('HDEL', KEYS[1], name) end
end
return moved
"""

KEY_KEYS = ("epoch",)

# KEYS[2]: key:NAME. ARGV: epoch, the claim as JSON, its lifetime in ms.
CLAIM = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return cjson.encode({error = 'epoch'}) end
local held = redis.call('GET', KEYS[2])
if held then return cjson.encode({ok = true, held = held}) end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return cjson.encode({ok = true, held = ARGV[2]})
"""

# KEYS[2]: key:NAME. ARGV: epoch, the instance whose claim is released.
FORGET = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return cjson.encode({error = 'epoch'}) end
local held = redis.call('GET', KEYS[2])
if held and cjson.decode(held).instance == ARGV[2] then redis.call('DEL', KEYS[2]) end
return cjson.encode({ok = true})
"""
