-- wrk's side of the measurement over HTTP/1.1: every request names a key of its own among KEYS.
-- Arguments: snapshot_read or atomic_write, path, data token, database id, bytes of a value.

local method, path, value
local headers = {}
local made = 0
local KEYS = 10000

local function field(number, bytes)  -- length-delimited; lengths below 16,384
  local size = #bytes
  local length = size < 128 and string.char(size) or string.char(size % 128 + 128, math.floor(size / 128))
  return string.char(number * 8 + 2) .. length .. bytes
end

local function key(number)  -- the tuple ("bench", "<number>")
  return "\2bench\0\2" .. tostring(number) .. "\0"
end

local function read_of(number)
  local start = key(number)
  return field(1, field(1, start) .. field(2, start .. "\0") .. "\24\1")
end

local function write_of(number)
  return field(2, field(1, key(number)) .. field(2, field(1, value) .. "\16\3") .. "\24\1")
end

function init(args)
  method, path = args[1], args[2] .. "/" .. args[1]
  value = string.rep("v", tonumber(args[5]))
  headers["authorization"] = "Bearer " .. args[3]
  headers["content-type"] = "application/x-protobuf"
  headers["x-denokv-version"] = "3"
  headers["x-denokv-database-id"] = args[4]
  math.randomseed(42)
end

function request()
  made = made + 1
  local number = math.random(KEYS)
  return wrk.format("POST", path, headers, method == "atomic_write" and write_of(number) or read_of(number))
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'JSON {"requests": %d, "seconds": %.6f, "errors": %d, "p50_ms": %.3f, "p99_ms": %.3f}\n',
    summary.requests, summary.duration / 1e6,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
