// time limit: 90 s
/** The daemon's socket, spoken by hand: authentication, limits, both framings, and strangers, who must not be able to hurt anyone. */

import { connect } from "node:net";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Peer, Site } from "./daemon.ts";
import {
  builtWith,
  busyMs,
  frameOf,
  isAlive,
  lanesOf,
  request,
  sideBySide,
  sleep,
  until,
  withDirectory,
} from "./daemon.ts";

const lanes = lanesOf(2);
const unauthorized = { code: -32001, message: "Unauthorized: invalid or missing auth token" };
/** Without its hint. */
const bare = ({ code, message }: typeof unauthorized) => ({ code, message });
const pong = (id: unknown = 1) => ({ jsonrpc: "2.0", id, result: { pong: true } });

/** Runs a test with a daemon that must be the same, and answer, in the end. */
function withDaemon(run: (site: Site, wire: Peer) => Promise<void>, times?: Record<string, number>): Promise<void> {
  return withDirectory(async (site) => {
    const { pid } = await site.serve([], times === undefined ? {} : { file: builtWith(site.directory, times) });
    const wire = await site.dial();
    try {
      await run(site, wire);
      const last = await site.dial();
      assert.equal(await last.ask("server.ping", {}, site.token), pong());
      last.close();
      assert.ok(isAlive(pid));
    } finally {
      wire.close();
    }
  });
}

const bodyOf = (bytes: number, auth?: string): Buffer => {
  const empty = Buffer.byteLength(JSON.stringify(request("server.ping", { pad: "" }, auth)));
  return frameOf(request("server.ping", { pad: "x".repeat(bytes - empty) }, auth));
};
const header = (bytes: number): Buffer => {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(bytes);
  return length;
};

const wires = suite("the wire");
const wired = sideBySide(wires, lanes);

/** A body, and its error's code; each check before those that would fail too. */
const order: [what: string, body: (token: string) => unknown, id: unknown, code: number, message?: RegExp][] = [
  ["parse", () => "{", null, -32700, /^Parse error$/],
  ["parse: an empty body", () => "", null, -32700],
  ["parse: no UTF-8", () => Buffer.from([0x22, 0xff, 0x22]), null, -32700],
  ["an object", () => 5, null, -32600],
  ["auth, before version, method and params", () => ({ jsonrpc: "1.0", id: 1, method: "no", params: 5 }), 1, -32001],
  ["auth, wrong", () => ({ jsonrpc: "1.0", id: 1, method: "no", params: 5, auth: "bad" }), 1, -32001],
  ["auth, not a string", () => ({ jsonrpc: "2.0", id: 1, method: "server.ping", auth: 5 }), 1, -32001],
  [
    "version, before method and params",
    (auth) => ({ jsonrpc: "1.0", id: 1, method: "no", params: 5, auth }),
    1,
    -32600,
    /^Invalid JSON-RPC version$/,
  ],
  ["version, absent", (auth) => ({ id: 1, method: "no", params: 5, auth }), 1, -32600, /^Invalid JSON-RPC version$/],
  [
    "method, before params",
    (auth) => ({ jsonrpc: "2.0", id: 1, method: "no", params: 5, auth }),
    1,
    -32601,
    /^Invalid method format: no$/,
  ],
  [
    "namespace",
    (auth) => ({ jsonrpc: "2.0", id: 1, method: "git.clone", params: 5, auth }),
    1,
    -32601,
    /^Unknown namespace: git$/,
  ],
  [
    "method of a namespace",
    (auth) => ({ jsonrpc: "2.0", id: 1, method: "server.no", params: 5, auth }),
    1,
    -32601,
    /^Unknown method: server\.no$/,
  ],
  ["params", (auth) => ({ jsonrpc: "2.0", id: 1, method: "files.stat", params: [], auth }), 1, -32602],
  [
    "one of the params",
    (auth) => ({ jsonrpc: "2.0", id: 1, method: "files.stat", params: { path: 5 }, auth }),
    1,
    -32602,
    /path/,
  ],
];
wired("checks in the order of the specification, and lives on", () =>
  withDaemon(async ({ token }, wire) => {
    for (const [what, make, id, code, message] of order) {
      const body = make(token);
      wire.write(
        typeof body === "string" || Buffer.isBuffer(body)
          ? Buffer.concat([header(Buffer.byteLength(body)), Buffer.from(body as string)])
          : frameOf(body),
      );
      const answer = await wire.next();
      assert.equal(
        [answer.jsonrpc, answer.id, answer.error?.code],
        ["2.0", id, code],
        `${what}: ${JSON.stringify(answer)}`,
      );
      if (message) assert.match(answer.error.message, message);
      assert.equal(await wire.ask("server.ping", {}, token), pong(), `after ${what}`);
    }
  }),
);

wired("takes the token per request, or once per connection", () =>
  withDaemon(async (site, wire) => {
    assert.equal(bare((await wire.ask("server.ping")).error), unauthorized);
    assert.equal(await wire.ask("server.ping", {}, site.token), pong());
    assert.equal(
      bare((await wire.ask("server.ping")).error),
      unauthorized,
      "a token of one request is not of the next",
    );
    for (const token of [
      "bad",
      "",
      site.token.toUpperCase(),
      `${site.token} `,
      site.token.slice(1),
      "x".repeat(100_000),
    ]) {
      assert.equal((await wire.ask("server.authenticate", { token })).error.code, token === "" ? -32602 : -32001);
      assert.equal(bare((await wire.ask("server.ping", {}, token)).error), unauthorized);
    }
    assert.equal((await wire.ask("server.authenticate", { token: site.token })).result, { authenticated: true });
    assert.equal(await wire.ask("server.ping"), pong());
    assert.equal(
      bare((await wire.ask("server.ping", {}, "bad")).error),
      unauthorized,
      "a wrong token is refused all the same",
    );
    const other = await site.dial();
    const { error } = await other.ask("server.ping");
    assert.equal(bare(error), unauthorized, "it is this connection's");
    assert.match(
      error.data.hint,
      /^the token is the one that --serve was given, or else in '.*\.token'; --bridge --as-owner needs none$/,
    );
    other.close();
  }),
);

wired("answers ids as they came, batches as one, and notifications not at all", () =>
  withDaemon(async ({ token }, wire) => {
    await wire.ask("server.authenticate", { token });
    for (const id of [0, -1, 1.5, 2 ** 53 - 1, "", "a", 'é\n"', null])
      assert.equal(await wire.ask("server.ping", {}, undefined, id), pong(id));
    for (const id of [{}, [], true, 2 ** 53])
      assert.equal((await wire.ask("server.ping", {}, undefined, id)).error.code, -32600);
    const notification = { jsonrpc: "2.0", method: "server.ping" };
    wire.send(notification);
    wire.send({ jsonrpc: "2.0", method: "no.such" });
    wire.send([notification, notification]);
    wire.send([request("server.ping", {}, undefined, "a"), notification, request("no", {}, undefined, "b"), 5]);
    const batch = await wire.next();
    assert.equal(
      batch.map((answer: any) => [answer.id, answer.error?.code]),
      [
        ["a", undefined],
        ["b", -32601],
        [null, -32600],
      ],
    );
    wire.send([]);
    assert.is((await wire.next()).error.code, -32600);
    assert.equal(await wire.ask("server.ping"), pong(), "nothing else came");
  }),
);

wired("tells capabilities and status in the shape of the specification, and the truth", () =>
  withDaemon(async (site, wire) => {
    const { result } = await wire.ask("server.capabilities", {}, site.token);
    assert.equal(Object.keys(result).sort(), ["features", "instanceId", "lifetime", "methods", "startedAt", "version"]);
    assert.match(result.version, /^\d+\.\d+\.\d+/);
    assert.equal(result.instanceId, site.record().instance);
    assert.ok(Math.abs(Date.now() - result.startedAt) < 20_000);
    for (const method of [
      "server.ping",
      "server.authenticate",
      "server.capabilities",
      "server.status",
      "server.shutdown",
      "process.spawn",
      "process.stdin",
      "process.kill",
      "process.killAndWait",
      "process.reattach",
      "process.list",
      "files.stat",
      "files.list",
      "files.read",
      "files.write",
      "files.validate",
    ])
      assert.ok(result.methods.includes(method), method);
    for (const method of result.methods) assert.is.not((await wire.ask(method, {}, "bad")).error.code, -32601, method);
    assert.ok(
      Array.isArray(result.features) && result.features.every((feature: unknown) => typeof feature === "string"),
    );
    assert.equal(
      ["placement", "survivesLogout", "where", "words", "warnings"].filter((name) => !(name in result.lifetime)),
      [],
    );
    const status = (await wire.ask("server.status", {}, site.token)).result;
    for (const name of [
      ...Object.keys(result),
      "pid",
      "uptimeMs",
      "rssBytes",
      "connections",
      "processes",
      "limits",
      "log",
    ])
      assert.ok(name in status, name);
    assert.equal([status.pid, status.connections, status.processes], [site.record().pid, 1, []]);
  }),
);

wired("speaks lines and frames to whoever began with them, at the same time", () =>
  withDaemon(async (site, wire) => {
    const lines = await site.dial("lines");
    for (let i = 0; i < 3; i++) {
      assert.equal(await lines.ask("server.ping", {}, site.token, i), pong(i));
      assert.equal(await wire.ask("server.ping", {}, site.token, i), pong(i));
    }
    lines.write(`\r\n\n${JSON.stringify(request("server.ping", {}, site.token, "crlf"))}\r\nnonsense\n`);
    assert.equal(await lines.next(), pong("crlf"));
    assert.is((await lines.next()).error.code, -32700);
    lines.write(frameOf(request("server.ping"))); // of no use there: its zeros are no JSON
    lines.write("\n");
    assert.is((await lines.next()).error.code, -32700);
    lines.close();
  }),
);

wired("answers a peer that has closed its half, also the last line without a newline, and then closes", () =>
  withDaemon(async (site) => {
    for (const framing of ["native", "lines"] as const) {
      const wire = await site.dial(framing);
      for (let i = 0; i < 100; i++) wire.send(request("files.stat", { path: "/" }, site.token, i));
      if (framing === "lines") wire.write(JSON.stringify(request("server.ping", {}, site.token, 100)));
      wire.socket.end();
      const ids = new Set<number>();
      while (ids.size < (framing === "lines" ? 101 : 100)) ids.add((await wire.next()).id);
      assert.is((await wire.ended).length, 0);
    }
  }),
);

const limits = suite("a frame's size");
const limited = sideBySide(limits, lanes);
const mib = 1 << 20;

limited("is at most 1 MiB for strangers, and the connection lives on", () =>
  withDaemon(async (_, wire) => {
    for (const bytes of [mib - 1, mib]) {
      wire.write(bodyOf(bytes));
      assert.equal(bare((await wire.next()).error), unauthorized, `${bytes}`);
    }
    for (const bytes of [mib + 1, 16 * mib - 1, 16 * mib, 17 * mib]) {
      wire.write(Buffer.concat([header(bytes), Buffer.alloc(bytes, "x")]));
      const { id, error } = await wire.next(10_000);
      assert.equal([id, error.code], [null, -32600]);
      assert.match(error.message, new RegExp(`its body has ${bytes} bytes, at most ${mib} are accepted`));
      assert.equal(bare((await wire.ask("server.ping")).error), unauthorized);
    }
  }),
);

limited("is at most 2^24 - 1 bytes for one who has shown a token", () =>
  withDaemon(async ({ token }, wire) => {
    await wire.ask("server.authenticate", { token });
    for (const bytes of [mib + 1, 16 * mib - 2, 16 * mib - 1]) {
      wire.write(bodyOf(bytes));
      assert.equal(await wire.next(10_000), pong(), `${bytes}`);
    }
    for (const bytes of [16 * mib, 64 * mib]) {
      wire.write(header(bytes));
      for (let sent = 0; sent < bytes; sent += 16 * mib) wire.write(Buffer.alloc(16 * mib, "x"));
      const { id, error } = await wire.next(10_000);
      assert.equal([id, error.code], [null, -32600]);
      assert.match(error.message, new RegExp(`its body has ${bytes} bytes, at most ${16 * mib - 1} are accepted`));
      assert.equal(await wire.ask("server.ping"), pong(), "it lives on");
    }
  }),
);

limited("over 64 MiB closes the connection, on both sides", () =>
  withDaemon(async (site, wire) => {
    for (const bytes of [64 * mib + 1, 2 ** 32 - 1]) {
      const greedy = await site.dial();
      await greedy.ask("server.authenticate", { token: site.token });
      greedy.write(header(bytes));
      // at the latest with its body's first bytes
      greedy.write(Buffer.alloc(1000));
      const { error } = await greedy.next();
      assert.is(error.code, -32600);
      assert.match(error.message, new RegExp(`its body has ${bytes} bytes`));
      assert.is((await greedy.ended).length, 0);
      // it goes on writing, and keeps its half open: the daemon must not read on for ever
      await until(
        "the daemon has closed it",
        async () => (await wire.ask("server.status", {}, site.token)).result.connections === 1,
        busyMs(3000),
      );
      greedy.close();
    }
  }),
);

limited("over the limit in lines is answered when the line ends, and beyond 64 MiB at once", () =>
  withDaemon(async (site) => {
    const wire = await site.dial("lines");
    wire.write("x".repeat(mib + 1));
    wire.write("\n");
    assert.match((await wire.next()).error.message, new RegExp(`its body has ${mib + 1} bytes, at most ${mib}`));
    assert.equal(await wire.ask("server.ping", {}, site.token), pong());
    for (let i = 0; i < 5; i++) wire.write("x".repeat(16 * mib));
    assert.is((await wire.next(10_000)).error.code, -32600);
    await wire.ended;
    wire.close();
  }),
);

const strangers = suite("strangers");
const strange = sideBySide(strangers, lanes);

strange("who send garbage get errors, and nobody else notices", () =>
  withDaemon(async (site, wire) => {
    await wire.ask("server.authenticate", { token: site.token });
    const garbage = Array.from({ length: 40 }, (_, seed) =>
      Buffer.from(Array.from({ length: 5000 }, (_, i) => ((i * 2654435761 * (seed + 1)) >>> 13) & 0xff)),
    );
    const peers = await Promise.all(garbage.map(() => site.dial()));
    const start = Date.now();
    peers.forEach((peer, at) => {
      peer.write(at % 2 === 0 ? garbage[at]! : Buffer.concat([header(at), garbage[at]!]));
      if (at % 3 === 0) peer.socket.destroy();
      if (at % 3 === 1) peer.socket.end();
    });
    for (let i = 0; i < 50; i++) assert.equal(await wire.ask("server.ping", {}, undefined, i), pong(i));
    assert.ok(Date.now() - start < busyMs(3000), `50 pings took ${Date.now() - start} ms`);
    for (const peer of peers) peer.close();
  }),
);

strange("are 64 at most: the oldest makes room, and none who has shown a token", () =>
  withDaemon(async (site, wire) => {
    assert.equal(await wire.ask("server.ping", {}, site.token), pong());
    const peers: Peer[] = [];
    for (let i = 0; i < 64; i++) peers.push(await site.dial());
    for (const peer of [peers[0]!, peers[63]!]) assert.equal(bare((await peer.ask("server.ping")).error), unauthorized);
    const extra = await site.dial();
    assert.equal(bare((await extra.ask("server.ping")).error), unauthorized);
    await Promise.race([
      peers[0]!.ended,
      sleep(2000).then(() => {
        throw new Error("The oldest stranger is still connected");
      }),
    ]);
    for (const peer of [peers[1]!, peers[63]!]) assert.equal(bare((await peer.ask("server.ping")).error), unauthorized);
    assert.equal(await wire.ask("server.ping", {}, site.token), pong());
    for (const peer of [...peers, extra]) peer.close();
  }),
);

strange("are let go after a while, and those who have shown a token are not", () =>
  withDaemon(
    async (site, wire) => {
      assert.equal(await wire.ask("server.ping", {}, site.token), pong());
      const silent = await site.dial();
      const bad = await site.dial();
      assert.equal(bare((await bad.ask("server.ping", {}, "bad")).error), unauthorized);
      let areGone = false;
      void Promise.all([silent.ended, bad.ended]).then(() => {
        areGone = true;
      });
      await until("no stranger is connected", () => areGone);
      assert.equal(await wire.ask("server.ping", {}, site.token), pong());
    },
    { strangerMs: 2000 },
  ),
);

strange("who never read do not hold the daemon up, nor make it grow", () =>
  withDaemon(async (site, wire) => {
    const flood = connect(site.socket);
    flood.on("error", () => {}).pause();
    const chunk = Buffer.concat(
      Array.from({ length: 2000 }, () => frameOf(request("server.capabilities", {}, site.token))),
    );
    for (let i = 0; i < 150; i++) flood.write(chunk); // 30 MB, and ten times that in answers
    const start = Date.now();
    for (let i = 0; i < 20; i++) {
      assert.equal(await wire.ask("server.ping", {}, site.token, i), pong(i));
      await sleep(50);
    }
    assert.ok(Date.now() - start < busyMs(5000), `20 pings took ${Date.now() - start} ms`);
    const { result } = await wire.ask("server.status", {}, site.token);
    assert.ok(result.rssBytes < 200 * mib, `the daemon has ${Math.round(result.rssBytes / mib)} MiB`);
    flood.destroy();
  }),
);

for (const test of [wires, limits, strangers]) test.run();
