/** The least that speaks native frames: for load, not for people. */

import { connect } from "node:net";

export function encodeFrame(message) {
  const body = Buffer.from(JSON.stringify(message));
  const frame = Buffer.allocUnsafe(4 + body.length);
  frame.writeUInt32BE(body.length);
  body.copy(frame, 4);
  return frame;
}

/** A frame of so many bytes in all: `messageOf(data)` with as much data as it takes. */
export function frameOf(length, messageOf) {
  return encodeFrame(messageOf("x".repeat(length - encodeFrame(messageOf("")).length)));
}

/** @returns Takes chunks, cut anywhere; calls `take` with each body. */
export function createDecoder(take) {
  let rest = [];
  let length = 0;
  return (chunk) => {
    rest.push(chunk);
    length += chunk.length;
    if (length < 4) return;
    if (rest[0].length < 4) rest = [Buffer.concat(rest)];
    if (length < 4 + rest[0].readUInt32BE()) return; // so that a large frame is put together once
    const bytes = rest.length === 1 ? rest[0] : Buffer.concat(rest);
    let at = 0;
    while (bytes.length - at >= 4 && bytes.length - at - 4 >= bytes.readUInt32BE(at)) {
      const end = at + 4 + bytes.readUInt32BE(at);
      take(bytes.subarray(at + 4, end));
      at = end;
    }
    rest = at === bytes.length ? [] : [bytes.subarray(at)];
    length = bytes.length - at;
  };
}

/** @returns `request(method, params)`, `socket`, and `onBody(body)`, which may return true to keep a body from being parsed. */
export function createClient(socket, token) {
  const waiting = new Map();
  let lastId = 0;
  const client = {
    socket,
    onBody: () => false,
    onMessage: () => {},
    request(method, params = {}) {
      const id = ++lastId;
      return new Promise((resolve, reject) => {
        waiting.set(id, { resolve, reject });
        socket.write(
          encodeFrame({ jsonrpc: "2.0", id, method, params, ...(token === undefined ? {} : { auth: token }) }),
        );
      });
    },
  };
  socket
    .on("error", () => {})
    .on(
      "data",
      createDecoder((body) => {
        if (client.onBody(body)) return;
        const message = JSON.parse(body.toString());
        const entry = message.type === undefined ? waiting.get(message.id) : undefined;
        if (entry === undefined) return client.onMessage(message);
        waiting.delete(message.id);
        if (message.error === undefined) entry.resolve(message.result);
        else entry.reject(new Error(message.error.message));
      }),
    );
  return client;
}

/** A connection that has authenticated. */
export async function openClient(path, token) {
  const socket = connect(path);
  await new Promise((done, fail) => socket.once("connect", done).once("error", fail));
  const client = createClient(socket);
  await client.request("server.authenticate", { token });
  return client;
}
