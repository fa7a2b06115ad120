/** client.ts against a peer of our own making: answers, messages in between, the end, and the words of a login shell before the first frame. */

import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import type { Socket } from "node:net";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Client } from "../client.ts";
import { connectClient } from "../client.ts";
import type { Failure } from "../failure.ts";
import { frameOf } from "./daemon.ts";

/** A server whose every connection is handed to `serve` after the first request has come, and a client of it. */
async function withPeer(serve: (socket: Socket) => void, use: (client: Client) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-client-"));
  const path = join(directory, "s");
  const server = createServer((socket) => socket.on("error", () => {}).once("data", () => serve(socket)));
  server.listen(path);
  await once(server, "listening");
  const client = await connectClient(path, 1000);
  try {
    await use(client);
  } finally {
    client.close();
    server.close();
    rmSync(directory, { recursive: true });
  }
}

const answer = (result: unknown, id = 1) => frameOf({ jsonrpc: "2.0", id, result });
const failureOf = (promise: Promise<unknown>): Promise<Failure> =>
  promise.then(
    () => assert.unreachable(),
    (error) => error,
  ) as Promise<Failure>;

const test = suite("connectClient()");

test("gives the answer, and the messages around it in order", () =>
  withPeer(
    (socket) => socket.write(Buffer.concat([frameOf({ type: "a" }), answer({ pong: true }), frameOf({ type: "b" })])),
    async (client) => {
      assert.equal(await client.request("server.ping", {}), { pong: true });
      const messages: unknown[] = [];
      client.onMessage((message) => messages.push(message.type));
      assert.equal(messages, ["a", "b"]);
    },
  ));

test("gives the peer's own error", () =>
  withPeer(
    (socket) =>
      socket.write(frameOf({ jsonrpc: "2.0", id: 1, error: { code: -32602, message: "no", data: { errno: "EX" } } })),
    async (client) => {
      const { code, message, data } = await failureOf(client.request("x.y", {}));
      assert.equal([code, message, data], [-32602, "no", { errno: "EX" }]);
    },
  ));

test("calls a peer that does not answer in time not answering, and never dead", () =>
  withPeer(
    () => {},
    async (client) => {
      const { code, message } = await failureOf(client.request("server.ping", {}, undefined, 50));
      assert.is(code, -32010);
      assert.match(message, /is not answering: no answer within 0\.05 s\. It is not known to be dead/);
    },
  ));

const maxNoise = 65_536;
for (const [name, noise] of [
  ["a banner", "Welcome!\n"],
  ["64 KiB less one", "x".repeat(maxNoise - 1)],
  ["64 KiB", "x".repeat(maxNoise)],
] as const) {
  test(`skips ${name} before the first frame, whole or a byte at a time`, async () => {
    const bytes = Buffer.concat([Buffer.from(noise), answer(7)]);
    await withPeer(
      (socket) => socket.write(bytes),
      async (client) => assert.is(await client.request("server.ping", {}), 7),
    );
    if (noise.length < 100)
      await withPeer(
        (socket) => {
          for (const byte of bytes) socket.write(Buffer.from([byte]));
        },
        async (client) => assert.is(await client.request("server.ping", {}), 7),
      );
  });
}

test("gives up after more, and shows what it was", () =>
  withPeer(
    (socket) => socket.write(`You have mail\n${"x".repeat(maxNoise)}`),
    async (client) => {
      const { message, hint } = await failureOf(client.request("server.ping", {}));
      assert.match(message, /it began with \d+ bytes that are not the daemon's: "You have mail\\nx/);
      assert.match(hint ?? "", /--doctor/);
    },
  ));

test("shows the words that came instead of a frame", () =>
  withPeer(
    (socket) => socket.end("bash: node: command not found\n"),
    async (client) => {
      assert.match(
        (await failureOf(client.request("server.ping", {}))).message,
        String.raw`it began with 30 bytes that are not the daemon's: "bash: node: command not found\n"`,
      );
    },
  ));

test("says so when the connection ends before the answer", () =>
  withPeer(
    (socket) => socket.end(frameOf({ type: "a" })),
    async (client) => {
      assert.match((await failureOf(client.request("server.ping", {}))).message, /ended before the answer came$/);
      assert.match(
        (await failureOf(client.request("server.ping", {}))).message,
        /ended before the answer came$/,
        "nor does a later one wait",
      );
    },
  ));

test.run();
