// time limit: 250 s; long
/**
 * Those who are not to be trusted, against a built daemon on this machine: where a token stands and how it is compared, what a connection without
 * one may cost, and what a client's own words (paths, arguments, variables, ids) may set going. What other users may do is in
 * tests/host/strangers.test.ts; SECURITY.md has the promises.
 */

import { randomBytes } from "node:crypto";
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import type { Socket } from "node:net";
import { connect } from "node:net";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Outcome, Peer, Site } from "./daemon.ts";
import {
  builtFile,
  builtWith,
  busyMs,
  frameOf,
  isAlive,
  isRoot,
  lanesOf,
  messagesIn,
  request,
  sideBySide,
  sleep,
  until,
  withDirectory,
} from "./daemon.ts";

const lanes = lanesOf(2);
const mib = 1 << 20;
const unauthorized = -32001;
const answerMs = 20_000;

/** One request over a connection that waits longer than most: the machine may be busy. */
async function ask(wire: Peer, method: string, params: unknown, auth?: string, id: unknown = 1): Promise<any> {
  wire.send(request(method, params, auth, id));
  return wire.next(answerMs);
}

/** With sh for a login shell: another reads start-up files of whoever runs the tests. */
const serve = (site: Site, env: NodeJS.ProcessEnv = {}): Promise<any> =>
  site.serve([], { env: { SHELL: "/bin/sh", ...env } });

const descriptorsOf = (pid: number): number => readdirSync(`/proc/${pid}/fd`).length;
const mebibytesOf = (pid: number): number =>
  Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))![1]) / 1024;
const statementOf = (pid: number, file: "cmdline" | "environ"): string => {
  try {
    return readFileSync(`/proc/${pid}/${file}`, "latin1");
  } catch {
    return ""; // it has ended, or is another user's
  }
};

// --- secrets

const secrets = suite("a token");
const secret = sideBySide(secrets, lanes);

/** Looks at what all processes were started with, until it is told to stop. */
function watchProcesses(needles: () => string[]): { stop(): { kinds: Set<string>; found: string[] } } {
  const kinds = new Set<string>();
  const found: string[] = [];
  const look = (): void => {
    for (const pid of readdirSync("/proc")
      .map(Number)
      .filter((pid) => pid > 0 && pid !== process.pid)) {
      const [words, environment] = [statementOf(pid, "cmdline"), statementOf(pid, "environ")];
      for (const kind of ["--serve", "--launched", "--bridge", "--call", "--stop", "sleep\x00987"])
        if (words.includes(kind)) kinds.add(kind);
      for (const needle of needles())
        if (words.includes(needle) || environment.includes(needle)) found.push(words.replaceAll("\0", " "));
    }
  };
  const timer = setInterval(look, 15);
  return {
    stop() {
      clearInterval(timer);
      look();
      return { kinds, found };
    },
  };
}

secret("stands in no argument and no variable of any process, in no file but its own, in no error and no answer", () =>
  withDirectory(async (site) => {
    const token = randomBytes(16).toString("hex");
    writeFileSync(site.tokenFile, token);
    const keys: string[] = [];
    const watched = watchProcesses(() => [token, ...keys]);
    await serve(site);
    const said: Buffer[] = [];
    const note = ({ stdout, stderr }: Outcome): void => void said.push(stdout, Buffer.from(stderr));
    const first = site.record();
    keys.push(first.key);
    const wire = await site.dial();
    assert.equal((await ask(wire, "server.authenticate", { token })).result, { authenticated: true });
    assert.ok((await ask(wire, "process.spawn", { id: "a", command: "sleep", args: ["987"] })).result);
    for (const method of ["server.status", "server.capabilities", "process.list"])
      said.push(Buffer.from(JSON.stringify(await ask(wire, method, {}))));
    writeFileSync(join(site.directory, "wrong"), `${token}x`);
    note(await site.run(["--call", "server.ping", "--token-file", join(site.directory, "wrong")]));
    note(await site.run(["--call", "server.ping", "--token-file", site.tokenFile]));
    said.push(Buffer.from(JSON.stringify(await ask(await site.dial(), "server.ping", {}, `${token}y`))));
    wire.close();
    // a bridge that starts a daemon anew, with the tokens that the record knows
    process.kill(first.pid, "SIGKILL");
    await until("the daemon's end", () => !isAlive(first.pid));
    for (const name of readdirSync("/proc"))
      if (
        /^sleep\x00987\0$/.test(statementOf(Number(name), "cmdline")) &&
        statementOf(Number(name), "environ").includes(site.directory)
      )
        process.kill(Number(name), "SIGKILL");
    const bridged = await site.run(["--bridge"], {
      stdin: frameOf(request("server.ping", {}, token)),
      timeoutMs: 30_000,
    });
    assert.equal(messagesIn(bridged.stdout)[0].result, { pong: true }, bridged.stderr);
    said.push(Buffer.from(bridged.stderr));
    keys.push(site.record().key);
    note(await site.run(["--stop"]));
    const { kinds, found } = watched.stop();
    assert.equal(found, [], "a process that had it");
    assert.equal(
      [...kinds].sort(),
      ["--bridge", "--call", "--launched", "--serve", "--stop", "sleep\x00987"],
      "what was seen at all",
    );

    const holders = (needle: string): string[] =>
      readdirSync(site.directory, { withFileTypes: true })
        .filter((entry) => entry.isFile() && readFileSync(join(site.directory, entry.name)).includes(needle))
        .map(({ name }) => name)
        .sort();
    assert.equal(holders(token), ["given.token", "wrong"]);
    assert.equal(holders(site.record().key), ["rpc.sock.record"]);
    const all = Buffer.concat(said).toString();
    for (const needle of [token, ...keys, ...site.record().tokenHashes])
      assert.not.ok(all.includes(needle), "an answer or an error has it");
    assert.match(all, "Unauthorized: invalid or missing auth token");
  }),
);

/** Counts some bytes in a process's memory. */
async function countInMemory(pid: number, needles: Buffer[]): Promise<number[]> {
  const counts = needles.map(() => 0);
  const memory = openSync(`/proc/${pid}/mem`, "r");
  const buffer = Buffer.alloc(16 * mib);
  try {
    for (const line of readFileSync(`/proc/${pid}/maps`, "latin1").split("\n")) {
      const [, from, to] = /^([0-9a-f]+)-([0-9a-f]+) r(?!.*\[v)/.exec(line) ?? [];
      for (let at = BigInt(`0x${from ?? 0}`), end = BigInt(`0x${to ?? 0}`); at < end; at += BigInt(buffer.length)) {
        let length = 0;
        try {
          length = readSync(memory, buffer, 0, Number(end - at < buffer.length ? end - at : BigInt(buffer.length)), at);
        } catch {
          break; // mapped, and not backed
        }
        const bytes = buffer.subarray(0, length);
        needles.forEach((needle, i) => {
          for (let found = bytes.indexOf(needle); found >= 0; found = bytes.indexOf(needle, found + 1)) counts[i]!++;
        });
        await new Promise(setImmediate); // others watch processes meanwhile
      }
    }
  } finally {
    closeSync(memory);
  }
  return counts;
}

const memory = isRoot ? secret : secrets.skip;
memory("is not in the daemon's memory, and so in no core, until a client sends it: only its hash is", () =>
  withDirectory(async (site) => {
    const token = randomBytes(16).toString("hex");
    writeFileSync(site.tokenFile, token);
    const { pid } = await serve(site);
    await serve(site); // joined: the running daemon is told of a token only by its hash
    const [hash] = site.record().tokenHashes;
    const counts = await countInMemory(pid, [Buffer.from(token), Buffer.from(token, "utf16le"), Buffer.from(hash)]);
    assert.ok(counts[2]! > 0, "the hash was not found: the search finds nothing");
    assert.equal(counts.slice(0, 2), [0, 0]);
  }),
);

secret(
  "is compared with every known one by its hash, and with the record's key, whatever it is: 65 comparisons of 32 bytes for 64 tokens",
  () =>
    withDirectory(async (site) => {
      const count = join(site.directory, "compared");
      const preload = join(site.directory, "preload.cjs");
      writeFileSync(
        preload,
        `
    const crypto = require("node:crypto"), { appendFileSync } = require("node:fs"), { timingSafeEqual } = crypto;
    crypto.timingSafeEqual = (a, b) => (appendFileSync(${JSON.stringify(count)}, a.length + " " + b.length + "\\n"), timingSafeEqual(a, b));`,
      );
      await serve(site, { NODE_OPTIONS: `--require ${preload}` });
      const { key } = site.record();
      const wire = await site.dial();
      const hashes = Array.from({ length: 63 }, () => randomBytes(32).toString("hex"));
      for (const tokenHash of hashes) assert.ok((await ask(wire, "server.admit", { key, tokenHash }, key)).result);
      assert.is(site.record().tokenHashes.length, 64);
      const compared = async (method: string, params: unknown, auth?: string): Promise<[string, number]> => {
        writeFileSync(count, "");
        const { error } = await ask(wire, method, params, auth);
        const lines = readFileSync(count, "utf8").split("\n").slice(0, -1);
        assert.ok(
          lines.every((line) => line === "32 32"),
          lines.join(),
        );
        return [error === undefined ? "good" : String(error.code), lines.length];
      };
      const [good, wrong] = [
        ["good", 65],
        [String(unauthorized), 65],
      ];
      assert.equal(await compared("server.ping", {}, site.token), good, "the oldest token");
      assert.equal(await compared("server.ping", {}, key), good, "the record's key");
      assert.equal(await compared("server.ping", {}, key.slice(0, -1)), wrong);
      assert.equal(await compared("server.ping", {}, `${key}0`), wrong);
      assert.equal(
        await compared(
          "server.ping",
          {},
          key.replace(/.$/, (digit: string) => (digit === "0" ? "1" : "0")),
        ),
        wrong,
      );
      assert.equal(await compared("server.authenticate", { token: site.token }), good);
      for (const auth of [`${site.token}x`, site.token.slice(0, -1), "", "x", hashes[0]!, "x".repeat(100_000)])
        assert.equal(await compared("server.ping", {}, auth), wrong, auth.slice(0, 20));
      assert.equal(await compared("server.authenticate", { token: "wrong" }), wrong);
    }),
);

// --- connections that have shown no token

const floods = suite("a connection without a token");
const flood = sideBySide(floods, lanes);

/** What a daemon has open beside one connection, once that of its --serve is closed. */
async function baselineOf(pid: number, wire: Peer): Promise<number> {
  const isAlone = async () => (await ask(wire, "server.status", {})).result.connections === 1;
  await until("only we are connected", isAlone, answerMs);
  return descriptorsOf(pid);
}

/** A daemon, an authenticated connection to it, and what it has open beside. */
async function withServed(
  run: (site: Site, known: Peer, pid: number, baseline: number) => Promise<void>,
  times?: Record<string, number>,
): Promise<void> {
  await withDirectory(async (site) => {
    const { pid, instance } = await site.serve(
      [],
      times === undefined ? {} : { file: builtWith(site.directory, times) },
    );
    const known = await site.dial();
    assert.equal((await ask(known, "server.authenticate", { token: site.token })).result, { authenticated: true });
    const baseline = await baselineOf(pid, known);
    await run(site, known, pid, baseline);
    await until("its descriptors are back", () => descriptorsOf(pid) === baseline, answerMs);
    assert.is((await ask(known, "server.capabilities", {})).result.instanceId, instance);
    known.close();
  });
}

/** A socket whose errors do not matter. */
function dial(site: Site): Socket {
  return connect(site.socket).on("error", () => {});
}

/** Asks again and again while something goes on: the longest wait for an answer. */
async function askMeanwhile(known: Peer, meanwhile: Promise<unknown>): Promise<number> {
  let [worstMs, isOver] = [0, false];
  void meanwhile.catch(() => {}).then(() => (isOver = true));
  do {
    const start = performance.now();
    assert.equal((await ask(known, "server.ping", {})).result, { pong: true });
    worstMs = Math.max(worstMs, performance.now() - start);
    await sleep(20);
  } while (!isOver);
  await meanwhile;
  return worstMs;
}

flood("is one of 64: 63 and 64 have a descriptor each, the 65th takes the oldest's", () =>
  withServed(async (site, known, pid, baseline) => {
    const peers: Socket[] = [];
    const open = (): number[] => peers.flatMap((peer, i) => (peer.destroyed ? [] : [i]));
    for (const [count, kept] of [
      [63, 0],
      [64, 0],
      [65, 1],
      [66, 2],
    ] as const) {
      while (peers.length < count) peers.push(dial(site).resume());
      await until(
        `${count} connections are ${Math.min(count, 64)}`,
        () => descriptorsOf(pid) === baseline + Math.min(count, 64) && open().length === Math.min(count, 64),
        answerMs,
      );
      assert.is(open()[0], kept, `of ${count} connections`);
    }
    assert.equal((await ask(known, "server.ping", {})).result, { pong: true });
    for (const peer of peers) peer.destroy();
  }),
);

flood("comes 2000 times at once: never more than 64 are held, and who is known is served meanwhile", () =>
  withServed(async (site, known, pid, baseline) => {
    let [most, came] = [0, 0];
    const peers: Socket[] = [];
    let isServed = false;
    const served = (async () => {
      for (let i = 0; i < 3; i++) assert.equal((await ask(known, "server.ping", {})).result, { pong: true });
    })().then(() => (isServed = true));
    for (let round = 0; (came < 2000 || !isServed) && round < 40; round++) {
      // where the daemon has not had its turn yet, the kernel refuses those that its backlog has no room for
      for (let i = 0; i < 500; i++)
        peers.push(
          dial(site)
            .once("connect", () => came++)
            .resume(),
        );
      for (let i = 0; i < 20; i++) {
        await sleep(10);
        most = Math.max(most, descriptorsOf(pid) - baseline);
      }
    }
    assert.ok(isServed, `3 pings were not answered while ${peers.length} came`);
    await served;
    assert.ok(most > 32, `${most} at most: the burst has not come`);
    assert.ok(most <= 66, `${most} descriptors at once`); // two may be on their way out
    for (const peer of peers) peer.destroy();
    assert.ok(came >= 2000, `${came} of ${peers.length} came`);
    const isLogged = (): boolean => (site.log().match(/New connection/g) ?? []).length >= came;
    await until("a line of the log for each", isLogged);
  }),
);

flood("that sends a byte now and then is let go in time all the same", () =>
  withServed(
    async (site) => {
      const start = performance.now();
      const ends = ["\0\0\x0f\xff{", '{"a":'].map(async (beginning) => {
        const peer = dial(site).resume();
        peer.write(Buffer.from(beginning, "latin1"));
        const timer = setInterval(() => peer.write("1"), 50);
        await Promise.race([new Promise((done) => peer.once("close", done)), sleep(answerMs)]);
        clearInterval(timer);
        assert.ok(peer.destroyed, "it is still connected");
        return performance.now() - start;
      });
      await sleep(300);
      const late = dial(site).resume(); // has its own time
      for (const ms of await Promise.all(ends)) assert.ok(ms > 950 && ms < 1000 + answerMs, `${ms} ms`);
      assert.not.ok(late.destroyed && performance.now() - start < 1200);
      late.destroy();
    },
    { strangerMs: 1000 },
  ),
);

flood("lives 60 s, and may be told 64 KiB", () => {
  const text = readFileSync(builtFile, "utf8");
  for (const [name, value] of [
    ["strangerMs", 60_000],
    ["maxStrangers", 64],
    ["strangerBodyBytes", mib],
    ["strangerAnswerBytes", 64 << 10],
  ] as const) {
    const found = new RegExp(`\\b${name}\\d* ?= ?([^,;\\n]+)`).exec(text)?.[1];
    assert.is(found === undefined ? undefined : Number(Function(`return ${found}`)()), value, name);
  }
  return Promise.resolve();
});

flood("gets 64 KiB of refusals and not one more: it is closed", () =>
  withServed(async (site, known) => {
    const refusal = JSON.stringify({
      jsonrpc: "2.0",
      id: 1,
      error: (await ask(known, "server.ping", {}, "wrong")).error,
    });
    const most = Math.floor((64 << 10) / (4 + refusal.length)) + 1; // with its length; the last one may go over it
    for (const [count, isOpen] of [
      [most - 1, true],
      [most, true],
      [most + 1, false],
    ] as const) {
      const peer = await site.dial();
      peer.write(Buffer.concat(Array.from({ length: count }, () => frameOf(request("server.ping")))));
      for (let i = 0; i < Math.min(count, most); i++)
        assert.is((await peer.next(answerMs)).error.code, unauthorized, `${i} of ${count}`);
      if (isOpen) {
        peer.send(request("server.ping", {}, site.token)); // whoever turns out to be known goes on
        const last = await Promise.race([
          peer.next(answerMs).then(({ result }) => result?.pong),
          peer.ended.then(() => "closed"),
        ]);
        assert.is(last, count === most ? "closed" : true, `after ${count}`);
      } else {
        assert.is((await peer.ended).length, 0);
      }
      peer.close();
    }
    for (let i = 0; i < most + 100; i++) known.send(request("server.ping", {}, "wrong", i));
    for (let i = 0; i < most + 100; i++)
      assert.is((await known.next(answerMs)).error.code, unauthorized, "who is known may be told more");
  }),
);

flood(
  "that sends empty frames, junk and batches as fast as it can, and reads nothing, costs neither memory nor time",
  () =>
    withServed(async (site, known, pid) => {
      const blobs = [
        Buffer.alloc(mib),
        Buffer.from("x\n".repeat(mib / 2)),
        Buffer.concat(Array.from({ length: 400 }, () => frameOf(Array(1000).fill(1)))),
        Buffer.concat(
          Array.from({ length: 20 }, () => frameOf(Array(1000).fill({ jsonrpc: "2.0", method: "process.spawn" }))),
        ),
      ];
      const before = mebibytesOf(pid);
      let most = 0;
      const attack = (async () => {
        const attackers = Array.from({ length: 64 }, async (_, i) => {
          const peer = dial(site).pause();
          const closed = new Promise((done) => peer.once("close", done));
          const blob = blobs[i % blobs.length]!;
          let left = 16;
          const push = (): void => void (left-- > 0 && !peer.destroyed && peer.write(blob, push));
          push();
          await Promise.race([closed, sleep(2000)]);
          peer.destroy();
        });
        const timer = setInterval(() => (most = Math.max(most, mebibytesOf(pid))), 50);
        await Promise.all(attackers);
        clearInterval(timer);
      })();
      const worstMs = await askMeanwhile(known, attack);
      assert.ok(most - before < 150, `it grew by ${Math.round(most - before)} MiB`);
      assert.ok(worstMs < busyMs(8000), `an answer took ${Math.round(worstMs)} ms`);
    }),
);

flood("is logged once for all its refusals: batches of a thousand, notifications, and server.authenticate", () =>
  withServed(async (site) => {
    const before = site.log().length;
    const peer = await site.dial();
    const batch = (id?: number): object[] =>
      Array.from({ length: 1000 }, () => ({
        jsonrpc: "2.0",
        method: "server.ping",
        ...(id === undefined ? {} : { id }),
      }));
    for (let i = 0; i < 20; i++) peer.send(batch());
    assert.is((await ask(peer, "server.authenticate", { token: "wrong" })).error.code, unauthorized);
    peer.send(batch(7));
    const answers = await peer.next(answerMs);
    assert.equal(
      [answers.length, new Set(answers.map(({ error }: any) => error.code))],
      [1000, new Set([unauthorized])],
    );
    peer.close();
    await until("its end is logged", () => /Connection closed/.test(site.log().slice(before)), answerMs);
    assert.is(
      site
        .log()
        .slice(before)
        .match(/Unauthorized request on c\d+/g)?.length,
      1,
    );
  }),
);

// --- paths

const paths = suite("files.*");
const tricked = sideBySide(paths, lanes);

/** What a path is in words, what is asked, and what is promised: parts of the result, or the code and errno of the error. */
const tricks: [what: string, method: string, params: Record<string, unknown>, promised: Record<string, unknown>][] = [
  [
    "`..` above the root stays at the root",
    "stat",
    { path: "/../../../dev/null" },
    { exists: true, mode: "crw-rw-rw-" },
  ],
  ["`..` after a link is where the kernel says", "read", { path: "~/link/../inner" }, { content: "inner" }],
  ["`..` out of the home is allowed: a client is the user", "stat", { path: "~/../../.." }, { isDir: true }],
  ["a loop of links", "stat", { path: "~/loop" }, { code: -32603, errno: "ELOOP" }],
  ["a loop of links", "read", { path: "~/loop" }, { code: -32603, errno: "ELOOP" }],
  ["a loop of links", "list", { path: "~/loop" }, { code: -32603, errno: "ELOOP" }],
  ["a loop of links", "write", { path: "~/loop", content: "x" }, { code: -32603, errno: "ELOOP" }],
  ["a loop of links", "validate", { path: "~/loop" }, { valid: false }],
  ["a link to a device", "read", { path: "~/to-zero" }, { code: -32603, errno: "EINVAL" }],
  ["a link to a device", "write", { path: "~/to-zero", content: "x" }, { code: -32603, errno: "EINVAL" }],
  ["a link to a FIFO", "read", { path: "~/to-fifo" }, { code: -32603, errno: "EINVAL" }],
  ["a link to a FIFO", "write", { path: "~/to-fifo", content: "x" }, { code: -32603, errno: "EINVAL" }],
  ["a link to a FIFO", "validate", { path: "~/to-fifo" }, { valid: false }],
  [
    "a link to a file is written through, and stays a link",
    "write",
    { path: "~/to-file", content: "new" },
    { written: 3 },
  ],
  ["the daemon's own standard input is a device", "read", { path: "/dev/stdin" }, { code: -32603, errno: "EINVAL" }],
  ["the daemon's own socket", "read", { path: "~/rpc.sock" }, { code: -32603, errno: "EINVAL" }],
  ["a terminal", "read", { path: "/dev/ptmx" }, { code: -32603, errno: "EINVAL" }],
  ["the daemon's memory, where nothing is mapped", "read", { path: "/proc/self/mem" }, { code: -32603, errno: "EIO" }],
  [
    "a file in /proc cannot be replaced: it is written in place",
    "write",
    { path: "/proc/self/oom_score_adj", content: "0" },
    { written: 1, inPlace: true },
  ],
  [
    "a magic link of /proc leads where it leads",
    "list",
    { path: "/proc/self/cwd/dev/shm/no" },
    { code: -32603, errno: "ENOENT" },
  ],
  ["a NUL", "stat", { path: "/dev/null\0/x" }, { code: -32602 }],
  ["half a character, which would be another file", "write", { path: "~/half\ud800", content: "x" }, { code: -32602 }],
  ["no path", "read", { path: "" }, { code: -32602 }],
  ["a path of 4095 bytes", "read", { path: `${"/".repeat(4090)}zzzzz` }, { exists: false }],
  ["a path of 4096 bytes", "read", { path: `${"/".repeat(4091)}zzzzz` }, { code: -32603, errno: "ENAMETOOLONG" }],
  ["a path of 4097 bytes", "list", { path: `${"/".repeat(4092)}zzzzz` }, { code: -32603, errno: "ENAMETOOLONG" }],
  [
    "a path of over 4096 bytes",
    "write",
    { path: `~/inside/${"a/".repeat(2500)}x`, content: "", createDirs: true },
    { code: -32603, errno: "ENAMETOOLONG" },
  ],
  ["a name of 255 bytes", "write", { path: `~/${"n".repeat(255)}`, content: "x" }, { written: 1 }],
  [
    "a name of 255 bytes of which each character has three",
    "write",
    { path: `~/${"€".repeat(85)}`, content: "x" },
    { written: 1 },
  ],
  [
    "a name of 256 bytes",
    "write",
    { path: `~/${"n".repeat(256)}`, content: "x" },
    { code: -32603, errno: "ENAMETOOLONG" },
  ],
  ["a name of 256 bytes", "stat", { path: `~/${"n".repeat(256)}` }, { code: -32603, errno: "ENAMETOOLONG" }],
  ["a file with a slash after it is none", "read", { path: "~/file/" }, { code: -32603, errno: "ENOTDIR" }],
  [
    "a file with a slash after it is no file to write",
    "write",
    { path: "~/file/", content: "x" },
    { code: -32603, errno: "EISDIR" },
  ],
  ["a directory", "write", { path: "~/inside/", content: "x" }, { code: -32603, errno: "EISDIR" }],
  ["a directory with two slashes after it is listed", "list", { path: "~/inside//" }, { entries: [] }],
  ["another user's ~ is no home, but a name", "stat", { path: "~root" }, { exists: false }],
  [
    "shell words are a name",
    "write",
    { path: "~/$(touch pwned)`touch pwned`;*?\n-rf ~", content: "x" },
    { written: 1 },
  ],
];

tricked("keeps to what it promises of each path, hangs on none, and goes on", () =>
  withDirectory(async (site) => {
    const at = (name: string): string => join(site.directory, name);
    for (const name of ["inside", "deep", "deep/down"]) mkdirSync(at(name));
    writeFileSync(at("file"), "old");
    writeFileSync(at("deep/inner"), "inner");
    for (const [name, to] of [
      ["link", "deep/down"],
      ["loop", "pool"],
      ["pool", "loop"],
      ["to-zero", "/dev/zero"],
      ["to-fifo", "fifo"],
      ["to-file", "file"],
    ] as const)
      symlinkSync(to, at(name));
    assert.is((await site.command(["mkfifo", at("fifo")])).code, 0);
    const { pid, instance } = await serve(site, { HOME: site.directory });
    const wire = await site.dial();
    await ask(wire, "server.authenticate", { token: site.token });
    const baseline = await baselineOf(pid, wire);
    for (const [what, method, params, promised] of tricks) {
      const { result, error } = await ask(wire, `files.${method}`, params);
      const label = `${what}: files.${method} ${JSON.stringify(params).slice(0, 80)}: ${JSON.stringify(result ?? error).slice(0, 300)}`;
      const happened: Record<string, unknown> = error === undefined ? result : { code: error.code, ...error.data };
      for (const [name, value] of Object.entries(promised)) assert.equal(happened[name], value, label);
      if (error?.code === -32603) assert.match(error.message, /^Cannot (stat|read|list|write) "/, label);
    }
    assert.is(readFileSync(at("file"), "utf8"), "new");
    assert.is(readlinkSync(at("to-file")), "file");
    assert.equal(
      readdirSync(site.directory).filter((name) => /pwned|half|tmp$/.test(name)),
      ["$(touch pwned)`touch pwned`;*?\n-rf ~"],
    );
    assert.is(descriptorsOf(pid), baseline, "descriptors");
    assert.is((await ask(wire, "server.capabilities", {})).result.instanceId, instance);
    wire.close();
  }),
);

// --- processes

const processes = suite("process.spawn");
const spawned = sideBySide(processes, lanes);

/** What no shell may get to see. */
const shellWords = [
  "$(touch pwned)",
  "`touch pwned`",
  "; touch pwned",
  "| touch pwned",
  "&& touch pwned",
  "> pwned",
  "*",
  "~",
  "$HOME",
  "'",
  '"',
  "\\",
  "a\nb",
  "--",
  "-c",
  "%s",
  " ",
  "",
  "é\u{1f600}",
  "\x1b[31m",
];

/** Runs a process to its end: its answer, output and exit code. */
async function runProcess(
  wire: Peer,
  params: Record<string, unknown>,
): Promise<{ error?: any; stdout: string; exitCode?: number }> {
  const id = randomBytes(4).toString("hex");
  const { error } = await ask(wire, "process.spawn", { id, ...params });
  if (error !== undefined) return { error, stdout: "" };
  const output: Buffer[] = [];
  for (;;) {
    const { stream, data, exitCode } = await wire.next(answerMs);
    if (stream === "exit") return { stdout: Buffer.concat(output).toString(), exitCode };
    output.push(Buffer.from(data, "base64"));
  }
}

spawned("passes command, arguments, directory and variables on as they are: no shell sees them", () =>
  withDirectory(async (site) => {
    const run = join(site.directory, "run");
    mkdirSync(run);
    await serve(site, { HOME: run });
    const wire = await site.dial();
    await ask(wire, "server.authenticate", { token: site.token });
    const printed = await runProcess(wire, { command: "/usr/bin/printf", args: ["%s\\0", ...shellWords], cwd: run });
    assert.equal(printed.stdout.split("\0").slice(0, -1), shellWords, "arguments");
    // a file without "#!", which execvp(3) hands to sh: its arguments are arguments all the same
    writeFileSync(join(run, "plain"), 'printf "%s\\0" "$@"\n', { mode: 0o700 });
    assert.equal(
      (await runProcess(wire, { command: join(run, "plain"), args: shellWords, cwd: run })).stdout
        .split("\0")
        .slice(0, -1),
      shellWords,
      "a script's",
    );
    const env = Object.fromEntries(shellWords.map((word, i) => [`HF${i} $(touch pwned)`, word]));
    const variables = (await runProcess(wire, { command: "/usr/bin/env", args: ["-0"], env, cwd: run })).stdout.split(
      "\0",
    );
    for (const [name, value] of Object.entries(env))
      assert.ok(variables.includes(`${name}=${value}`), `${name}=${value}`);
    for (const word of shellWords.filter((word) => word !== "")) {
      for (const params of [{ command: `${word}/x` }, { command: "/bin/pwd", cwd: `/nowhere/${word}` }]) {
        const { error } = await runProcess(wire, { cwd: run, ...params });
        assert.ok([-32603, -32602].includes(error?.code), `${JSON.stringify(params)}: ${JSON.stringify(error)}`);
      }
    }
    assert.equal(readdirSync(run), ["plain"]);
    wire.close();
  }),
);

spawned("gives a variable to the one process that it is for: LD_PRELOAD, BASH_ENV, NODE_OPTIONS, PATH", () =>
  withDirectory(async (site) => {
    const { pid, instance } = await serve(site);
    const wire = await site.dial();
    await ask(wire, "server.authenticate", { token: site.token });
    writeFileSync(join(site.directory, "rc"), "echo read\n");
    const env = {
      LD_PRELOAD: "",
      BASH_ENV: join(site.directory, "rc"),
      NODE_OPTIONS: "--no-such-option",
      PATH: "/nowhere",
    };
    const before = [statementOf(pid, "environ"), readFileSync(`/proc/${pid}/maps`, "latin1").includes("holdfast-no")];
    assert.is(
      (await runProcess(wire, { command: "/bin/bash", args: ["-c", "echo $PATH"], env })).stdout,
      "read\n/nowhere\n",
    );
    assert.is(
      (
        await runProcess(wire, {
          command: "/bin/bash",
          args: ["-c", "echo [$BASH_ENV]"],
          env: { ...env, BASH_ENV: "" },
        })
      ).stdout,
      "[]\n",
    );
    const preloaded = await runProcess(wire, { command: "/bin/true", env: { LD_PRELOAD: "/holdfast-no.so" } });
    assert.match(preloaded.stdout, "/holdfast-no.so", "ld.so names it on stderr");
    const next = await runProcess(wire, {
      command: "/bin/bash",
      args: ["-c", "echo [$BASH_ENV$LD_PRELOAD$NODE_OPTIONS]"],
    });
    assert.is(next.stdout, "[]\n", "the next process has none of them");
    assert.equal(
      [statementOf(pid, "environ"), readFileSync(`/proc/${pid}/maps`, "latin1").includes("holdfast-no")],
      before,
    );
    for (const bad of [{ "": "x" }, { "A=B": "x" }, { "=": "" }, { "A\0": "" }, { A: "\0" }]) {
      const { error } = await runProcess(wire, { command: "/usr/bin/env", env: bad });
      assert.is(error?.code, -32602, JSON.stringify(bad));
    }
    assert.is((await ask(wire, "server.capabilities", {})).result.instanceId, instance);
    wire.close();
  }),
);

spawned(
  "does not kill a login shell that is still starting as the daemon ends: it is told to, and takes its locks away",
  () =>
    withDirectory(async (site) => {
      const [shell, lock] = [join(site.directory, "shell"), join(site.directory, "lock")];
      writeFileSync(shell, `#!/bin/bash\ntrap 'rm "${lock}"' EXIT\ntouch "${lock}"\nsleep 30\n`, { mode: 0o700 });
      const { pid } = await serve(site, { SHELL: shell });
      const wire = await site.dial();
      await ask(wire, "server.authenticate", { token: site.token });
      assert.is((await runProcess(wire, { command: "/bin/true" })).exitCode, 0);
      await until("the shell has its lock", () => existsSync(lock), answerMs);
      wire.close();
      assert.is((await site.run(["--stop"])).code, 0);
      await until("the lock is gone", () => !existsSync(lock) && !isAlive(pid), answerMs);
    }),
);

// --- terminals

const terminals = suite("a terminal");
const shown = sideBySide(terminals, lanes);

/** A title, colours, 8-bit CSI, a bell, the other direction, a line of its own. */
const wild = "\x1b]0;t\x07\x1b[31m\u009b31m\x7f\u202eevil\u2066\nholdfast: forged\r";
/** What a terminal acts on, but for the ends of lines. */
const acting = /[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]|\r(?!\n)/;

/** Runs the built file with both outputs at a terminal. The pty's own "\r\n" is all that it adds. */
function atTerminal(site: Site, args: string[], env: NodeJS.ProcessEnv = {}): Promise<Outcome> {
  const quoted = [process.execPath, builtFile, ...args].map((word) => `'${word.replaceAll("'", "'\\''")}'`).join(" ");
  return site.command(["script", "--quiet", "--return", "--flush", "--command", quoted, "/dev/null"], {
    env: { NO_COLOR: "1", SHELL: "/bin/sh", TERM: "xterm", ...env },
    timeoutMs: 30_000,
  });
}

type Shown = [what: string, args: string[], words: RegExp];

/** Of a run directory where nothing has run, in this order; then of one where a daemon serves processes of wild names. */
const shownBefore = (run: string): Shown[] => [
  ["--status of none", ["--status"], /Cannot reach a daemon.*u001b/],
  ["--bridge of none", ["--bridge", "--no-start"], /Cannot reach a daemon.*u009b/],
  ["--serve, no token", ["--serve", "--token-file", join(run, "none")], /Cannot read the token file.*u202e/],
  ["--serve, no such lifetime", ["--serve", "--lifetime", wild], /--lifetime is "\\u001b/],
  ["an unknown option", ["--serve", `--x=${wild}`], /"--x=\\u001b.*is not an option/],
  ["--serve", ["--serve"], /listening on .*u001b.*\r\nholdfast: its token is in .*u001b/s],
  ["--serve --json", ["--serve", "--json"], /^\{"socket":.*u009b/],
];
const shownMeanwhile = (run: string): Shown[] => {
  const call = (what: string, method: string, params: object, words: RegExp): Shown => [
    `--call of ${what}`,
    ["--call", method, JSON.stringify(params)],
    words,
  ];
  return [
    ["--status", ["--status"], /processes +2 running.*u001b/s],
    ["--status --json", ["--status", "--json"], /u202e/],
    ["--doctor", ["--doctor"], /directory .*u001b/s],
    ["--doctor --json", ["--doctor", "--json"], /"name":"directory".*u009b/],
    ["--call process.list", ["--call", "process.list"], /^\{"processes":.*u009b/],
    ["--call of no method", ["--call", `process.${wild}`], /Unknown method: process\.\\u001b/],
    call("no file", "files.read", { path: `/dev/null/${wild}`, offset: -1 }, /Cannot use parameter/),
    call("a directory", "files.read", { path: run }, /Cannot read ".*u001b/),
    call("no process", "process.reattach", { id: `x${wild}` }, /no process has the id/),
    call("no command", "process.spawn", { id: "d", command: `/${wild}` }, /Cannot start/),
    ["--stop --if-idle", ["--stop", "--if-idle"], /Cannot stop: 2 processes/],
    // a process's own output is data, and passes as it is
    call(
      "output",
      "process.spawn",
      { id: "raw", command: "/usr/bin/printf", args: ["\\033[31mred"] },
      /^\x1b\[31mred$/,
    ),
    ["--stop", ["--stop", "--now"], /^stopped 2/],
  ];
};

async function expectShown(site: Site, run: string, rows: Shown[]): Promise<void> {
  for (const [what, args, words] of rows) {
    const all = [...args, "--socket", join(run, "rpc.sock")];
    const text = (await atTerminal(site, all, { HOME: homeOf(site) })).stdout.toString();
    assert.match(text, words, what);
    if (what === "--call of output") continue;
    assert.not.match(text, acting, `${what}: ${JSON.stringify(text)}`);
    const isForged = text.split("\r\n").some((line) => line.startsWith("holdfast: forged"));
    assert.not.ok(isForged, `${what}: a line is not its own`);
  }
}

shown("is shown words of ours in colour, but for a note, and where it has colours, and nobody has asked for none", () =>
  withDirectory(async (site) => {
    const rows: [env: NodeJS.ProcessEnv, error: string, ok: string][] = [
      [{ NO_COLOR: "" }, "\x1b[31merror\x1b[0m: ", "\x1b[32mok      \x1b[0m "],
      [{ NO_COLOR: "1" }, "error: ", "ok       "],
      [{ NO_COLOR: "", TERM: "dumb" }, "error: ", "ok       "],
    ];
    for (const [env, error, ok] of rows) {
      const textOf = async (args: string[]): Promise<string> => {
        const { stdout } = await atTerminal(site, [...args, "--socket", site.socket], { HOME: site.directory, ...env });
        return stdout.toString();
      };
      const what = JSON.stringify(env);
      assert.ok((await textOf(["--serve", "--x"])).startsWith(`holdfast: ${error}Cannot`), what);
      assert.ok((await textOf(["--doctor"])).startsWith(ok), what);
      assert.match(await textOf(["--serve"]), /\nholdfast: its token is in/, what);
    }
  }),
);

/** With a start-up file that says what is wild. */
function homeOf({ directory }: Site): string {
  const home = join(directory, `h${wild.slice(0, 20)}`);
  mkdirSync(home, { recursive: true });
  writeFileSync(join(home, ".bashrc"), `printf '${wild.replaceAll("\n", "\\n")}'\n`);
  return home;
}

/** Starts two processes, and asks for what there is not. */
async function askWildly(socket: string): Promise<void> {
  const token = readFileSync(`${socket}.token`, "utf8").trim();
  const connection = connect(socket);
  const answers: Buffer[] = [];
  connection.on("data", (chunk) => answers.push(chunk));
  const requests = [
    request("process.spawn", { id: wild, command: "/bin/sleep", args: ["60"] }, token, "spawned"),
    request("process.spawn", { id: "b", command: "/bin/sh", args: ["-c", "sleep 60", wild] }, token),
    request(wild, {}, token),
    request("process.spawn", { id: `c${wild}`, command: `/bin/${wild}` }, token),
    request("server.ping", {}, wild),
    request("server.ping", {}, token, "last"),
  ];
  connection.write(Buffer.concat(requests.map(frameOf)));
  const isAnswered = (id: string): boolean => Buffer.concat(answers).includes(`"${id}"`);
  await until("all is answered", () => isAnswered("last") && isAnswered("spawned"), answerMs);
  connection.destroy();
}

/** Its lines are its own. */
function checkLog(log: string): void {
  assert.match(log, /Started "\\u001b/);
  assert.not.match(log, acting);
  const isOwn = (line: string): boolean =>
    line === "" || /^\d{4}-\d\d-\d\dT[\d:.]+Z (Remote server|\[(Server|Process)\]) /.test(line);
  assert.ok(log.split("\n").every(isOwn), log);
}

shown(
  "gets no control character of a path, an id, a command, a host or a start-up file from any mode, nor does the log",
  () =>
    withDirectory(async (site) => {
      const run = join(site.directory, wild);
      const recordPath = join(run, "rpc.sock.record");
      mkdirSync(run, { mode: 0o700 });
      await expectShown(site, run, shownBefore(run));
      const record = JSON.parse(readFileSync(recordPath, "utf8"));
      await askWildly(join(run, "rpc.sock"));
      await expectShown(site, run, shownMeanwhile(run));
      checkLog(readFileSync(join(run, "remote-server.log"), "utf8"));
      // the record's text is another host's, or what a daemon noted at its end
      for (const change of [
        { host: wild },
        { ended: { at: 1, reason: "terminated", detail: wild } },
        { ended: { at: 1, reason: "crashed", detail: wild }, log: wild },
      ]) {
        writeFileSync(recordPath, JSON.stringify({ ...record, pid: 4_194_304, ...change }), { mode: 0o600 });
        const what = Object.keys(change)[0];
        await expectShown(site, run, [
          [`--status of ${what}`, ["--status"], /evil/],
          [`--doctor of ${what}`, ["--doctor"], /evil/],
        ]);
      }
      unlinkSync(recordPath);
      assert.not.ok(isAlive(record.pid));
    }),
);

for (const test of [secrets, floods, paths, processes, terminals]) test.run();
