// Just enough of KV Connect to look at stored bytes from beside a client: one read and one set over plain fetch.

const text = new TextEncoder();

function concat(parts) {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

function varint(number) {
  const bytes = [];
  for (; number > 127; number = Math.floor(number / 128)) bytes.push((number % 128) | 128);
  return Uint8Array.from([...bytes, number]);
}

const bytesField = (field, bytes) => concat([varint(field * 8 + 2), varint(bytes.length), bytes]);
const numberField = (field, number) => concat([varint(field * 8), varint(number)]);

/** The fields of a message: [number, bytes or number]. */
function* fieldsOf(message) {
  let at = 0;
  const next = () => {
    let [value, scale] = [0, 1];
    for (;; scale *= 128) {
      const byte = message[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < message.length) {
    const tag = next();
    if (tag % 8 === 0) yield [Math.floor(tag / 8), next()];
    else {
      const length = next();
      yield [Math.floor(tag / 8), message.subarray(at, at + length)];
      at += length;
    }
  }
}

const fieldOf = (message, wanted) => {
  for (const [field, value] of fieldsOf(message)) if (field === wanted) return value;
  return undefined;
};

/** The packed form of a key of strings and numbers. */
export function packKey(key) {
  return concat(key.map((part) => {
    if (typeof part === "string") return concat([[2], text.encode(part), [0]]);
    const bytes = new Uint8Array(9);
    const view = new DataView(bytes.buffer);
    view.setFloat64(1, part);
    bytes[0] = 0x21;
    for (let at = part < 0 ? 1 : 9; at < 9; at++) bytes[at] ^= 255;
    if (part >= 0) bytes[1] ^= 128;
    return bytes;
  }));
}

/** Opens a database for raw access. */
export async function openRaw(url, token) {
  const answer = await fetch(url, {
    method: "POST",
    headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
    body: '{"supportedVersions":[1,2,3]}',
  });
  const metadata = await answer.json();
  const strong = metadata.endpoints.find((endpoint) => endpoint.consistency === "strong");
  const call = async (method, body) => {
    const response = await fetch(`${new URL(strong.url, url).href}/${method}`, {
      method: "POST",
      headers: {
        authorization: `Bearer ${metadata.token}`,
        "content-type": "application/x-protobuf",
        "x-denokv-version": "3",
        "x-denokv-database-id": metadata.databaseId,
      },
      body,
    });
    const bytes = new Uint8Array(await response.arrayBuffer());
    if (response.status !== 200) throw new Error(`${response.status} ${new TextDecoder().decode(bytes)}`);
    return bytes;
  };
  return {
    /** {data, encoding} of a key; undefined when it is missing. */
    async get(key) {
      const start = packKey(key);
      const range = concat([bytesField(1, start), bytesField(2, concat([start, [0]])), numberField(3, 1)]);
      const output = await call("snapshot_read", bytesField(1, range));
      const entry = fieldOf(fieldOf(output, 1) ?? new Uint8Array(), 1);
      return entry && { data: fieldOf(entry, 2) ?? new Uint8Array(), encoding: fieldOf(entry, 3) };
    },
    async set(key, data, encoding) {
      const value = concat([bytesField(1, data), numberField(2, encoding)]);
      const mutation = concat([bytesField(1, packKey(key)), bytesField(2, value), numberField(3, 1)]);
      await call("atomic_write", bytesField(2, mutation));
    },
  };
}

export const [V8, LE64, BYTES] = [1, 2, 3];
