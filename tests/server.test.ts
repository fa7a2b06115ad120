/** The daemon's parts as functions of its value: tokens, admission, publication, retirement and signals. Nothing here is another process. */

import { createHash } from "node:crypto";
import { existsSync, readFileSync, rmSync, unlinkSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Failure } from "../failure.ts";
import type { Facts } from "../host.ts";
import { realWorld } from "../host.ts";
import { readRecord, writeRecord } from "../record.ts";
import { handleBody } from "../rpc.ts";
import type { Daemon } from "../server.ts";
import { admit, createDaemon, isToken, listen, lookAfterNames, publish, retire, takeSignal } from "../server.ts";
import { isSame, placesOf, standingOf } from "../socket.ts";
import { request, until, withDirectory } from "./daemon.ts";

const hashOf = (token: string): string => createHash("sha256").update(token).digest("hex");
const key = "ab".repeat(32);
const facts: Facts = {
  ...{ uid: 1000, user: "ann", systemd: false, place: { kind: "none" }, killed: "no", policy: "" },
  ...{ stopDelayUs: 0, linger: "unknown", scope: "unknown" },
};

interface Made {
  daemon: Daemon;
  log: string[];
}

/** A daemon's value in a directory of its own; it listens only where a test lets it. */
const withDaemon =
  (run: (made: Made) => Promise<void>, changes: Partial<Parameters<typeof createDaemon>[0]> = {}) =>
  () =>
    withDirectory(async ({ socket }) => {
      const made = make(socket, changes);
      try {
        await run(made);
      } finally {
        made.daemon.listener?.close();
        clearTimeout(made.daemon.graceTimer);
      }
    });

function make(socket: string, changes: Partial<Parameters<typeof createDaemon>[0]> = {}): Made {
  const log: string[] = [];
  const places = placesOf({ socket });
  const handover = {
    ...{ places, tokenHashes: [hashOf("first")], facts, command: ["node", "holdfast.js", "--serve"], version: "1.2.3" },
    ...{ over: false, instance: "0123456789abcdef0123456789abcdef", key, ...changes },
  };
  return { daemon: createDaemon(handover, (line) => void log.push(line), realWorld()), log };
}

/** Calls a method as a client would that has shown no token yet. */
async function call({ daemon }: Made, method: string, params: object = {}): Promise<any> {
  const { methods, record } = daemon;
  const peer = { id: "c1", send: () => true, unsentBytes: 0, onDrain: () => () => {}, onClose: () => () => {} };
  const rpc = { methods, isToken: (token: string) => isToken(record, token) };
  const body = Buffer.from(JSON.stringify(request(method, params, key)));
  const answer = await handleBody(rpc, body, { peer, authenticated: false, known: false });
  return JSON.parse(String(answer));
}

async function failureOf(action: () => Promise<unknown>): Promise<Failure> {
  return action().then(
    () => assert.unreachable("it did not fail"),
    (error) => error,
  ) as Promise<Failure>;
}

async function serve({ daemon }: Made): Promise<void> {
  await listen(daemon);
  await publish(daemon, false);
  daemon.phase = "serving";
}

const tokens = suite("tokens");

tokens(
  "are good when their hash is known, and the record's key is one",
  withDaemon(async ({ daemon: { record } }) => {
    for (const good of ["first", key]) assert.ok(isToken(record, good));
    for (const bad of [
      "",
      "firs",
      "first ",
      "first\n",
      "First",
      hashOf("first"),
      key.slice(1),
      `${key}0`,
      "é",
      "x".repeat(1e6),
    ])
      assert.not.ok(isToken(record, bad), bad.slice(0, 20));
  }),
);

tokens(
  "are admitted by whoever has the record's key, the newest 64 of them, each once",
  withDaemon(async ({ daemon }) => {
    daemon.phase = "serving";
    await listen(daemon);
    for (let i = 0; i < 70; i++) await admit(daemon, { key, tokenHash: hashOf(`t${i}`) });
    await admit(daemon, { key, tokenHash: hashOf("t10") });
    assert.is(daemon.record.tokenHashes.length, 64);
    assert.is(daemon.record.tokenHashes.at(-1), hashOf("t10"));
    assert.equal(
      ["first", "t5", "t6", "t69", "t10"].map((token) => isToken(daemon.record, token)),
      [false, false, true, true, true],
    );
    assert.equal(readRecord(daemon.places.record).record?.tokenHashes, daemon.record.tokenHashes);
  }),
);

tokens(
  "are not admitted without the key, nor what is no hash, nor by a daemon that is ending",
  withDaemon(async ({ daemon }) => {
    daemon.phase = "serving";
    for (const wrong of [key.slice(1), `${key}0`, hashOf(key), "x"])
      assert.is((await failureOf(() => admit(daemon, { key: wrong, tokenHash: hashOf("new") }))).code, -32001);
    for (const hash of ["", "new", hashOf("new").toUpperCase(), `${hashOf("new")}0`])
      assert.is((await failureOf(() => admit(daemon, { key, tokenHash: hash }))).code, -32602);
    daemon.phase = "ending";
    assert.equal((await failureOf(() => admit(daemon, { key, tokenHash: hashOf("new") }))).data, { ending: true });
    assert.equal(daemon.record.tokenHashes, [hashOf("first")]);
  }),
);

tokens.run();

const methods = suite("server.*");

methods(
  "tell of processes when those of the daemon before have been taken up, and of all else at once",
  withDaemon(async (made) => {
    let isTaken = false;
    const { processes } = made.daemon;
    processes.waiting = new Promise<void>((done) => {
      setTimeout(() => {
        isTaken = true;
        processes.waiting = undefined;
        done();
      }, 50);
    });
    const status = call(made, "server.status").then(() => isTaken);
    assert.equal((await call(made, "server.ping")).result, { pong: true });
    assert.not.ok(isTaken);
    assert.ok(await status);
  }),
);

methods(
  "say what they are asked, and nothing of a secret",
  withDaemon(async (made) => {
    assert.equal((await call(made, "server.ping", { padding: "x" })).result, { pong: true });
    assert.equal((await call(made, "server.version")).result, { version: "1.2.3" });
    const { result } = await call(made, "server.status");
    assert.equal([result.version, result.phase, result.connections, result.pid], ["1.2.3", "starting", 0, process.pid]);
    assert.ok(result.methods.includes("server.version") && result.methods.includes("process.spawn"));
    assert.not.ok(JSON.stringify(result).includes(key) || JSON.stringify(result).includes(hashOf("first")));
  }),
);

methods(
  "refuse what they do not know",
  withDaemon(async (made) => {
    for (const [method, params] of [
      ["server.version", { a: 1 }],
      ["server.authenticate", { token: "first", user: "ann" }],
      ["server.capabilities", { launcher: "x" }],
      ["server.status", { full: true }],
      ["server.shutdown", { ifIdel: true }],
      ["server.admit", { key, hash: "" }],
    ] as const) {
      const { error } = await call(made, method, params);
      assert.is(error?.code, -32602, method);
      assert.match(error.message, /^Cannot use parameter ".*": this method does not know it, it takes /);
    }
    assert.is(made.daemon.phase, "starting");
  }),
);

methods.run();

const publication = suite("publication");

publication(
  "gives the socket its name and the record its place",
  withDaemon(async (made) => {
    const { daemon } = made;
    await serve(made);
    assert.ok(isSame(daemon.places.socket, daemon.record.socket));
    assert.is(readRecord(daemon.places.record).record?.instance, daemon.record.instance);
    assert.not.ok(existsSync(`${daemon.places.record}.lock`));
  }),
);

publication(
  "is refused over another daemon's name, but where it is to be taken over, and to one that was told to end",
  withDaemon(async (made) => {
    await serve(made);
    const second = make(made.daemon.places.socket, { instance: "f".repeat(32) }).daemon;
    await listen(second);
    try {
      assert.is((await failureOf(() => publish(second, false))).exit, 75);
      assert.ok(isSame(second.places.socket, made.daemon.record.socket));
      second.phase = "ending";
      assert.match((await failureOf(() => publish(second, true))).message, /the daemon was told to end/);
      assert.is(readRecord(second.places.record).record?.instance, made.daemon.record.instance);
      second.phase = "starting";
      await publish(second, true);
      assert.ok(isSame(second.places.socket, second.record.socket));
      assert.is(readRecord(second.places.record).record?.instance, second.record.instance);
    } finally {
      second.listener?.close();
    }
  }),
);

const losses: [what: string, lose: (daemon: Daemon) => void, said: boolean][] = [
  ["the public name", ({ places }) => unlinkSync(places.socket), true],
  ["the record", ({ places }) => unlinkSync(places.record), false],
  ["the name it was bound to", ({ record }) => unlinkSync(record.socket.bound), false],
  ["a record that is garbage now", ({ places }) => writeFileSync(places.record, "{", { mode: 0o600 }), false],
  ["the whole directory", ({ places }) => rmSync(dirname(places.socket), { recursive: true }), true],
];
for (const [what, lose, said] of losses) {
  publication(
    `is made again of what was lost: ${what}`,
    withDaemon(async (made) => {
      const { daemon, log } = made;
      await serve(made);
      lose(daemon);
      await lookAfterNames(daemon);
      assert.ok(isSame(daemon.places.socket, daemon.record.socket));
      assert.is(readRecord(daemon.places.record).record?.socket.ino, daemon.record.socket.ino);
      assert.is(
        log.some((line) => line.includes("was deleted: published again")),
        said,
        log.join(),
      );
    }),
  );
}

publication(
  "is left to who has taken the name, which is said once",
  withDaemon(async (made) => {
    const { daemon, log } = made;
    await serve(made);
    unlinkSync(daemon.places.socket);
    writeFileSync(daemon.places.socket, "somebody's file");
    for (let i = 0; i < 3; i++) await lookAfterNames(daemon);
    assert.is(readFileSync(daemon.places.socket, "utf8"), "somebody's file");
    assert.is(log.filter((line) => /Not reachable: ".*" is a regular file now/.test(line)).length, 1, log.join());
  }),
);

publication(
  "is not for a daemon that comes late: whose place it was to take was stopped since, or is another's",
  withDaemon(async (made) => {
    const { daemon } = made;
    const { places, record } = daemon;
    const last = { ...record, instance: "f".repeat(32) };
    const seen = standingOf(last);
    for (const now of [
      { ...last, stoppingAt: Date.now() + 1000 },
      { ...last, instance: "e".repeat(32) },
    ]) {
      await listen(daemon);
      writeRecord(places.record, now);
      for (const over of [false, true]) {
        const { exit, message } = await failureOf(() => publish(daemon, over, seen));
        assert.equal([exit, /another daemon has just done so$/.test(message)], [75, true], message);
      }
      const { instance, stoppingAt } = readRecord(places.record).record!;
      assert.equal([instance, stoppingAt, existsSync(places.socket)], [now.instance, now.stoppingAt, false]);
    }
    writeRecord(places.record, last);
    await publish(daemon, false, seen);
    assert.ok(isSame(places.socket, record.socket));
  }),
);

publication.run();

const ends = suite("the end");

ends(
  "is at once without processes: the record says why, and only record and directory are left",
  withDaemon(async (made) => {
    const { daemon } = made;
    await serve(made);
    await retire(daemon, 10_000);
    assert.is(await daemon.ended, 0);
    assert.equal([daemon.phase, readRecord(daemon.places.record).record?.ended?.reason], ["ending", "stopped"]);
    assert.not.ok(existsSync(daemon.places.socket) || existsSync(daemon.record.socket.bound));
    await retire(daemon, 0); // a second stop changes nothing
  }),
);

ends(
  "waits for processes, and a --serve within the grace revives it with them",
  withDaemon(async (made) => {
    const { daemon } = made;
    await serve(made);
    await call(made, "process.spawn", { id: "a", command: "/bin/sleep", args: ["100"], cwd: "/" });
    await retire(daemon, 100_000);
    assert.is(daemon.phase, "retired");
    assert.ok(readRecord(daemon.places.record).record!.stoppingAt! > Date.now() + 90_000);
    assert.equal([existsSync(daemon.places.socket), existsSync(daemon.record.socket.bound)], [false, true]);
    const answer: any = await admit(daemon, { key, tokenHash: hashOf("new") });
    assert.equal([answer.revived, answer.processes, daemon.phase], [true, 1, "serving"]);
    assert.ok(isSame(daemon.places.socket, daemon.record.socket));
    assert.is(readRecord(daemon.places.record).record?.stoppingAt, undefined);
    await retire(daemon, 0);
    assert.is(await daemon.ended, 0);
  }),
);

ends(
  "comes when it was to, though a --serve tried to revive it in vain",
  withDaemon(async (made) => {
    const { daemon } = made;
    const { places } = daemon;
    await serve(made);
    await call(made, "process.spawn", { id: "a", command: "/bin/sleep", args: ["100"], cwd: "/" });
    await retire(daemon, 100_000);
    writeFileSync(places.socket, "somebody's file");
    await failureOf(() => admit(daemon, { key }));
    await until("it is retired again", () => readRecord(places.record).record!.stoppingAt !== undefined);
    const leftMs = readRecord(places.record).record!.stoppingAt! - Date.now();
    assert.ok(leftMs > 60_000 && leftMs <= 100_000, `its processes have ${leftMs} ms`);
    unlinkSync(places.socket);
    await retire(daemon, 0);
    await daemon.ended;
  }),
);

ends(
  "does not come of a signal that nobody means, and comes of a person's, once",
  withDaemon(async (made) => {
    const { daemon, log } = made;
    await serve(made);
    for (const signal of ["SIGUSR1", "SIGUSR2", "SIGALRM", "SIGPIPE", "SIGXFSZ", "SIGHUP", "SIGCONT"] as const)
      takeSignal(daemon, signal);
    assert.equal([daemon.phase, log.filter((line) => line.includes("Received SIG")).length], ["serving", 7]);
    assert.equal([...daemon.signals.keys()], ["SIGHUP", "SIGCONT"], "what may belong to an end");
    daemon.signals.clear();
    takeSignal(daemon, "SIGINT");
    takeSignal(daemon, "SIGINT");
    await until("it has ended", () => daemon.phase === "ending");
    assert.is(await daemon.ended, 0);
    assert.is(readRecord(daemon.places.record).record?.ended?.reason, "terminated");
    assert.is(log.filter((line) => line.includes("Ending: ")).length, 1);
  }),
);

ends(
  "before it has begun undoes the start",
  withDaemon(async ({ daemon }) => {
    await listen(daemon);
    takeSignal(daemon, "SIGTERM");
    assert.match((await failureOf(() => publish(daemon, false))).message, /the daemon was told to end/);
    assert.not.ok(existsSync(daemon.places.socket) || existsSync(daemon.places.record));
  }),
);

ends.run();
