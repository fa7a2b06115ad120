// time limit: 120 s
/** Which process a record means, what a record may be, who holds a claim, and what is never written through. */

import { spawn, spawnSync } from "node:child_process";
import {
  chmodSync,
  chownSync,
  closeSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readlinkSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { createServer } from "node:net";
import { join, resolve } from "node:path";
import { build } from "esbuild";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { stopServer } from "../control.ts";
import { Failure } from "../failure.ts";
import type { DaemonRecord, Identity, Proc } from "../record.ts";
import {
  claimSoon,
  identify,
  livenessOf,
  openLog,
  readRecord,
  tryClaim,
  writeOwnFile,
  writeRecord,
} from "../record.ts";
import { hashToken, isSame, listenBeside, placesOf } from "../socket.ts";
import { busyMs, eventually, failureOf, filesIn, isAlive, isRoot, modeOf, until, withDirectory } from "./daemon.ts";

const identity = suite("livenessOf()");

const statText = (pid: number, command: string, state: string, start: string, threads: number, flags: number): string =>
  `${pid} (${command}) ${state} 1 ${pid} ${pid} 0 -1 ${flags} 1 2 3 4 5 6 7 8 20 0 ${threads} 0 ${start} 1234 567 18446744073709551615\n`;

/** A host with one process, 77. */
function procOf({
  command = "node",
  state = "S",
  threads = 1,
  flags = 4194560,
  start = "5000",
  words = "node\0holdfast.js\0--serve\0",
  boot = "boot-1",
  namespace = "pid:[1]",
  host = "h",
  machineId = machine,
  error = "ENOENT",
} = {}): Proc {
  return {
    host,
    link: () => namespace,
    read: (path) => {
      if (path === "/proc/sys/kernel/random/boot_id") return `${boot}\n`;
      if (path === "/etc/machine-id") return `${machineId}\n`;
      if (path === "/proc/77/stat" && state !== "") return statText(77, command, state, start, threads, flags);
      if (path === "/proc/77/cmdline") return words;
      throw Object.assign(new Error(), { code: path === "/proc/77/stat" ? error : "ENOENT" });
    },
  };
}

const machine = "0123456789abcdef0123456789abcdef";
const process77: Identity = {
  pid: 77,
  startTime: "5000",
  bootId: "boot-1",
  pidNamespace: "pid:[1]",
  host: "h",
  machineId: machine,
};
const fates: [what: string, proc: Parameters<typeof procOf>[0], state: string, isEnding?: boolean][] = [
  ["the same process", {}, "alive"],
  ["one that runs at the moment", { state: "R" }, "alive"],
  ["one that was stopped", { state: "T" }, "alive"],
  ["one in uninterruptible sleep", { state: "D" }, "alive"],
  ["a zombie", { state: "Z" }, "dead"],
  ["one whose other threads have yet to end, or never will", { state: "Z", threads: 2 }, "dead", true],
  ["one that is exiting", { state: "R", flags: 4194560 + 0x4 }, "dead", true],
  ["one that is exiting, and waits for a disk as it does", { state: "D", flags: 4194560 + 0x4 }, "dead", true],
  ["one that dumps its core", { state: "D", flags: 4194560 + 0x200 }, "dead", true],
  ["another one with its pid that is exiting", { start: "5001", flags: 4194560 + 0x4 }, "dead"],
  ["one that is gone", { state: "" }, "dead"],
  ["one that goes as it is read", { state: "", error: "ESRCH" }, "dead"],
  ["one that may not be read", { state: "", error: "EACCES" }, "unknown"],
  ["another one with its pid", { start: "5001" }, "dead"],
  ["one on another machine", { machineId: "f".repeat(32), boot: "boot-2" }, "unknown"],
  [
    "one on another machine of the same name that has gone here",
    { machineId: "f".repeat(32), boot: "boot-2", state: "" },
    "unknown",
  ],
  [
    "one on another host by its name, where there is no number",
    { machineId: "", host: "g", boot: "boot-2" },
    "unknown",
  ],
  ["one on this host by its name, where there is no number", { machineId: "", boot: "boot-2" }, "dead"],
  ["one on this host, which was given another name", { host: "g" }, "alive"],
  ["one that has gone on this host, which was given another name", { host: "g", state: "" }, "dead"],
  [
    "one on a machine of this number and another name: a copy of it, or renamed",
    { host: "g", boot: "boot-2" },
    "unknown",
  ],
  ["one of this boot in a container with a number of its own", { machineId: "f".repeat(32), host: "g" }, "alive"],
  ["one before the last boot", { boot: "boot-2" }, "dead"],
  ["one in another pid namespace", { namespace: "pid:[2]" }, "unknown"],
  ["one in another pid namespace, before the last boot", { namespace: "pid:[2]", boot: "boot-2" }, "dead"],
  ["one whose name has spaces", { command: "my own node" }, "alive"],
  ["one whose name has parentheses", { command: "a) S 1 (b" }, "alive"],
  ["one that is named like a zombie", { command: "x) Z 1 2 3 (" }, "alive"],
  ["one whose name has a newline", { command: "a\n) Z" }, "alive"],
];
for (const [what, proc, state, isEnding] of fates) {
  identity(`is "${state}" for ${what}`, () => {
    const found = livenessOf(process77, procOf(proc));
    assert.equal([found.state, found.isEnding], [state, isEnding]);
    assert.ok(found.why.length > 8);
    const { host = "h", machineId = machine } = proc!;
    if (state === "alive") assert.equal(identify(77, procOf(proc)), { ...process77, host, machineId });
  });
}

const nobody = 2 ** 31 - 2;
for (const [what, pid, theirs, ours, state] of [
  ["a pid that somebody has", process.pid, "pid:[1]", "pid:[1]", "unknown"],
  ["a pid that somebody has, on a system without namespaces", process.pid, "", "", "unknown"],
  ["a pid that nobody has", nobody, "pid:[1]", "pid:[1]", "dead"],
  ["a pid that nobody has, on a system without namespaces", nobody, "", "", "dead"],
  ["a pid that nobody has here, in another pid namespace", nobody, "pid:[2]", "pid:[1]", "unknown"],
  ["a pid that nobody has here, when it could not tell its namespace", nobody, "", "pid:[1]", "unknown"],
  ["a pid that nobody has here, when we cannot tell ours", nobody, "pid:[1]", "", "unknown"],
] as const) {
  for (const [whose, bootId, boot] of [
    ["in its record", "", "boot-1"],
    ["here", "boot-1", ""],
    ["anywhere", "", ""],
  ] as const)
    identity(`is "${state}" for ${what}, without a boot id ${whose}`, () => {
      const found = livenessOf({ ...process77, pid, bootId, pidNamespace: theirs }, procOf({ boot, namespace: ours }));
      assert.is(found.state, state);
      assert.is(/another pid namespace/.test(found.why), theirs !== ours && theirs !== "" && ours !== "");
    });
}

for (const [what, words, state] of [
  ["serves", "node\0holdfast.js\0--serve\0", "alive"],
  ["is just ending, and has no words any more", "", "alive"],
  ["does something else", "vi\0", "dead"],
] as const) {
  identity(`is "${state}" for a daemon's process that ${what}`, () => {
    assert.is(livenessOf({ ...process77, command: [] } as unknown as DaemonRecord, procOf({ words })).state, state);
  });
}

identity("follows a real process to its end by SIGKILL, as a zombie and after", async () => {
  const child = spawn("sleep", ["100"], { stdio: "ignore" });
  const found = identify(child.pid);
  assert.is(found.bootId, readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim());
  assert.is(found.pidNamespace, readlinkSync("/proc/self/ns/pid"));
  assert.match(found.startTime, /^\d+$/);
  assert.is(livenessOf(found).state, "alive");
  child.kill("SIGSTOP");
  await until("it is stopped", () => readFileSync(`/proc/${child.pid}/stat`, "latin1").includes(") T "));
  assert.is(livenessOf(found).state, "alive");
  child.kill("SIGKILL");
  await new Promise((done) => child.once("exit", done));
  assert.is(livenessOf(found).state, "dead");
  const parent = spawn("sh", ["-c", "sleep 0.05 & echo $!; exec sleep 100"], { stdio: ["ignore", "pipe", "ignore"] }); // never reaps
  const zombie = Number(await new Promise((done) => parent.stdout.once("data", done)));
  const itself = identify(zombie);
  await until("it is a zombie", () => readFileSync(`/proc/${zombie}/stat`, "latin1").includes(") Z "));
  assert.is(livenessOf(itself).state, "dead");
  parent.kill("SIGKILL");
});

const recordSuite = suite("readRecord()");

const record: DaemonRecord = {
  ...identify(),
  version: "1.0.0",
  instance: "0123456789abcdef0123456789abcdef",
  key: "k",
  tokenHashes: [hashToken("t")],
  socket: { path: "/s", bound: "/.s", dev: 1, ino: 2 },
  log: "/l",
  startedAt: 1,
  command: ["node", "x"],
  lifetime: {},
};

recordSuite("returns what writeRecord() wrote, 0600", () =>
  withDirectory(async ({ directory }) => {
    const path = join(directory, "r");
    const umask = process.umask(0);
    writeRecord(path, record);
    process.umask(umask);
    assert.equal(readRecord(path), { record });
    assert.is(modeOf(path), "600");
    assert.equal(filesIn(directory), ["given.token", "r"]);
    assert.equal(readRecord(join(directory, "none")), {});
    assert.equal(readRecord(join(directory, "none/r")), {});
  }),
);

/** What stands under a record's name, and what is said of it. */
const oddRecords: [what: string, make: (path: string) => unknown, words: RegExp, exit?: number][] = [
  [
    "half a record",
    (path) => writeFileSync(path, JSON.stringify(record).slice(0, 100)),
    /it holds 100 bytes that are not JSON$/,
  ],
  ["null", (path) => writeFileSync(path, "null"), /its JSON is not a holdfast record$/],
  ["an array", (path) => writeFileSync(path, "[]"), /its JSON is not a holdfast record$/],
  ["a string", (path) => writeFileSync(path, '"x"'), /its JSON is not a holdfast record$/],
  [
    "10 MiB",
    (path) => {
      writeFileSync(path, "{");
      truncateSync(path, 10 << 20);
    },
    /it has 10485760 bytes, at most 1048576 are read$/,
  ],
  [
    "a symbolic link to a record",
    (path) => {
      writeRecord(`${path}.real`, record);
      symlinkSync(`${path}.real`, path);
    },
    /ELOOP|symbolic link/,
  ],
  ["a dangling symbolic link", (path) => symlinkSync("nowhere", path), /ELOOP|symbolic link/],
  ["a FIFO", (path) => spawnSync("mkfifo", [path]), /it is a FIFO, a regular file is needed$/, 77],
  ["a directory", (path) => mkdirSync(path), /it is a directory, a regular file is needed$/, 77],
  [
    "a record that others may write",
    (path) => {
      writeRecord(path, record);
      chmodSync(path, 0o666);
    },
    /its mode is 666, others must not be able to write to it$/,
    77,
  ],
  [
    "a record that the group may write",
    (path) => {
      writeRecord(path, record);
      chmodSync(path, 0o660);
    },
    /its mode is 660, others must not be able to write to it$/,
    77,
  ],
  ...(isRoot
    ? [
        [
          "another's record",
          (path: string) => {
            writeRecord(path, record);
            chownSync(path, 65534, 65534);
          },
          /it belongs to user 65534, it must belong to user 0$/,
          77,
        ] as (typeof oddRecords)[number],
      ]
    : []),
  ...(
    [
      { pid: 0 },
      { pid: -1 },
      { pid: 1.5 },
      { pid: "1" },
      { startTime: 5 },
      { key: undefined },
      { tokenHashes: ["a", 1] },
      { tokenHashes: "a" },
      { command: undefined },
      { socket: null },
      { socket: { path: "/s", bound: "/b", dev: 1 } },
      { socket: { path: "/s", dev: 1, ino: 1 } },
      { startedAt: "now" },
      { host: null },
      // Date threw at these, and so did all that tells why there is no daemon
      { startedAt: 8.64e15 + 1 },
      { stoppingAt: "now" },
      { stoppingAt: 1e300 },
      { ended: null },
      { ended: 5 },
      { ended: { at: "now", reason: "stopped", detail: "" } },
      { ended: { at: 1, reason: "stopped" } },
      // timingSafeEqual() threw at these, and a daemon that had them could admit nobody
      { tokenHashes: ["ab"] },
      { tokenHashes: [hashToken("t").toUpperCase()] },
      { tokenHashes: [hashToken("t"), ""] },
    ] as object[]
  ).map((changes): (typeof oddRecords)[number] => [
    `a record with ${JSON.stringify(changes)}`,
    (path) => writeFileSync(path, JSON.stringify({ ...record, ...changes })),
    /its JSON is not a holdfast record$/,
  ]),
];
for (const [what, make, words, exit] of oddRecords) {
  recordSuite(`tells in words what it finds, at once: ${what}`, () =>
    withDirectory(async ({ directory }) => {
      const path = join(directory, "r");
      make(path);
      const start = Date.now();
      const { record, problem } = readRecord(path);
      assert.is(record, undefined);
      assert.ok(problem instanceof Failure);
      assert.ok(problem.message.includes(`"${path}"`));
      assert.match(problem.message, words);
      assert.is(problem.exit, exit ?? problem.exit);
      assert.ok(Date.now() - start < busyMs(500));
    }),
  );
}

// A socket was removed by the record's word alone, when the record was of an earlier boot, or its inode had been given to another.
recordSuite("is not believed about a socket at which somebody listens", () =>
  withDirectory(async ({ directory }) => {
    const places = placesOf({ socket: join(directory, "rpc.sock") });
    const other = createServer((connection) => connection.destroy());
    const bound = await listenBeside(other, join(directory, "other"));
    try {
      for (const changes of [{ bootId: "00000000-0000-0000-0000-000000000000" }, { pid: 4_000_000, startTime: "1" }]) {
        writeRecord(places.record, { ...record, ...changes, socket: { path: places.socket, ...bound } });
        assert.equal(await stopServer(places, { graceMs: 0, ifIdle: false }), { word: "none", count: 0 });
        assert.ok(isSame(bound.bound, bound));
      }
    } finally {
      await new Promise((done) => other.close(done));
    }
  }),
);

const claims = suite("tryClaim()");
const wins = (claim: ReturnType<typeof tryClaim>): claim is { release(): void } => "release" in claim;
/** An identity that nobody has: of this boot, and gone. */
const deadIdentity = { ...identify(), pid: 4_000_000, startTime: "1" };
const claimFile = (path: string, id: string, changes: object = {}): void =>
  writeFileSync(path, JSON.stringify({ id, ...identify(), ...changes }), { mode: 0o600 });

claims("is held by one at a time, and leaves nothing when it is released", () =>
  withDirectory(async ({ directory }) => {
    const path = join(directory, "claim");
    const first = tryClaim(path);
    assert.ok(wins(first));
    assert.is(modeOf(path), "600");
    const second = tryClaim(path);
    assert.not.ok(wins(second));
    assert.is((second as { heldBy: Identity }).heldBy.pid, process.pid);
    (first as { release(): void }).release();
    assert.equal(filesIn(directory), ["given.token"]);
    const third = tryClaim(path);
    assert.ok(wins(third));
    (first as { release(): void }).release(); // a second time: it is the third's now
    assert.ok(existsSync(path));
    (third as { release(): void }).release();
    assert.equal(filesIn(directory), ["given.token"]);
  }),
);

const holders: [what: string, changes: object, taken: boolean][] = [
  ["of a process that is gone", deadIdentity, true],
  ["of another process with its pid", { startTime: "1" }, true],
  ["of the time before the last boot", { bootId: "another" }, true],
  ["of a process that lives", {}, false],
  ["of another host", { ...deadIdentity, bootId: "another", host: "another", machineId: "f".repeat(32) }, false],
  ["of a process that is gone, from before the host was renamed", { ...deadIdentity, host: "another" }, true],
  ["of another pid namespace", { ...deadIdentity, pidNamespace: "pid:[1]" }, false],
];
for (const [what, changes, taken] of holders) {
  claims(`${taken ? "takes over" : "leaves"} the claim ${what}`, () =>
    withDirectory(async ({ directory }) => {
      const path = join(directory, "claim");
      claimFile(path, "0123456789ab", changes);
      const claim = tryClaim(path);
      assert.is(wins(claim), taken);
      if (wins(claim)) claim.release();
      assert.equal(filesIn(directory), taken ? ["given.token"] : ["claim", "given.token"]);
    }),
  );
}

claims("takes over what a pid namespace has left that is gone: nobody touches it", () =>
  withDirectory(async ({ directory }) => {
    const path = join(directory, "claim");
    claimFile(path, "0123456789ab", { pidNamespace: "pid:[1]" });
    assert.not.ok(wins(tryClaim(path)));
    const started = Date.now();
    const claim = await claimSoon(path, 5000);
    assert.ok(claim, "it is taken over");
    assert.ok(Date.now() - started > 500, "its holder had time to touch it");
    // one who lives touches his own, so long as it takes
    const old = new Date(Date.now() - 60_000);
    utimesSync(path, old, old);
    await eventually(() => Date.now() - lstatSync(path).mtimeMs < 30_000, "a touch");
    claim?.release();
    assert.equal(filesIn(directory), ["given.token"]);
  }),
);

claims("takes over what a loss of power has left: an empty file", () =>
  withDirectory(async ({ directory }) => {
    const path = join(directory, "claim");
    writeFileSync(path, "", { mode: 0o600 });
    const claim = tryClaim(path);
    assert.ok(wins(claim));
    if (wins(claim)) claim.release();
    assert.equal(filesIn(directory), ["given.token"]);
    writeFileSync(join(directory, "record"), "", { mode: 0o600 });
    assert.equal(readRecord(join(directory, "record")), {});
  }),
);

claims("takes over from one who died as it took over", () =>
  withDirectory(async ({ directory }) => {
    const path = join(directory, "claim");
    claimFile(path, "0123456789ab", deadIdentity);
    claimFile(`${path}-0123456789ab`, "ba9876543210", deadIdentity);
    const claim = tryClaim(path);
    assert.ok(wins(claim));
    if (wins(claim)) claim.release();
    assert.equal(filesIn(directory), ["given.token"]);
  }),
);

const garbage: [what: string, make: (path: string) => unknown][] = [
  ["text", (path) => writeFileSync(path, "hello", { mode: 0o600 })],
  ["other JSON", (path) => writeFileSync(path, "null", { mode: 0o600 })],
  ["a FIFO", (path) => spawnSync("mkfifo", [path])],
  ["a directory", (path) => mkdirSync(path)],
  ["a symbolic link", (path) => symlinkSync("nowhere", path)],
  [
    "what others may write",
    (path) => {
      claimFile(path, "0123456789ab", deadIdentity);
      chmodSync(path, 0o666);
    },
  ],
];
for (const [what, make] of garbage) {
  claims(`leaves what is no claim, and says so at once: ${what}`, () =>
    withDirectory(async ({ directory }) => {
      const path = join(directory, "claim");
      make(path);
      assert.equal(tryClaim(path), { heldBy: undefined });
      assert.equal(filesIn(directory), ["claim", "given.token"]);
    }),
  );
}

claims("fails with exit code 73 where it cannot write", async () => {
  const { exit, message } = await failureOf(() => tryClaim("/proc/claim"));
  assert.is(exit, 73);
  assert.match(message, /^Cannot claim .*"\/proc\/claim/);
});

/** The claim alone, as a program: told "go" through a file, it tries once and holds until its stdin ends. */
async function buildRacer(directory: string): Promise<string> {
  const outfile = join(directory, "racer.cjs");
  const contents = `import { tryClaim } from ${JSON.stringify(resolve("record.ts"))}; import { existsSync } from "node:fs";
    const [path, go] = process.argv.slice(2);
    process.stdout.write("ready\\n");
    const clock = new Int32Array(new SharedArrayBuffer(4));
    while (!existsSync(go)) Atomics.wait(clock, 0, 0, 1); // 30 that never rest leave nothing of two processors
    const claim = tryClaim(path);
    process.stdout.write("release" in claim ? "won\\n" : "lost\\n");
    process.stdin.resume().on("end", () => { if ("release" in claim && path.indexOf("abandon") < 0) claim.release(); process.exit(); });`;
  await build({
    stdin: { contents, resolveDir: process.cwd(), loader: "ts" },
    outfile,
    bundle: true,
    platform: "node",
    format: "cjs",
    target: "node18",
    logLevel: "silent",
  });
  return outfile;
}

claims(
  "is won by exactly one of 30 processes at once: over nothing, over a dead claim, and over a dead removal of it",
  () =>
    withDirectory(async (site) => {
      const racer = await buildRacer(site.directory);
      const before = filesIn(site.directory);
      for (const [round, prepare] of [
        ["nothing", () => {}],
        ["dead", (path: string) => claimFile(path, "0123456789ab", deadIdentity)],
        [
          "deadremoval",
          (path: string) => {
            claimFile(path, "0123456789ab", deadIdentity);
            claimFile(`${path}-0123456789ab`, "ba9876543210", deadIdentity);
          },
        ],
      ] as const) {
        const path = join(site.directory, round);
        prepare(path);
        const children = Array.from({ length: 30 }, () =>
          spawn(process.execPath, [racer, path, `${path}.go`], { env: site.env, stdio: ["pipe", "pipe", "inherit"] }),
        );
        const words = children.map(() => "");
        for (const [at, child] of children.entries()) child.stdout.on("data", (chunk) => (words[at] += chunk));
        await until(
          "all are ready",
          () =>
            words.filter((word) => word.startsWith("ready")).length >= 30 ||
            children.some(({ exitCode }) => exitCode !== null),
          20_000,
        );
        writeFileSync(`${path}.go`, "");
        await until("all have tried", () => words.every((word) => /won|lost/.test(word)), 10_000);
        assert.is(words.filter((word) => word.includes("won")).length, 1, `over ${round}`);
        for (const child of children) child.stdin.end();
        await Promise.all(children.map((child) => child.exitCode ?? new Promise((done) => child.once("exit", done))));
        assert.equal(
          filesIn(site.directory).filter((name) => !name.endsWith(".go")),
          before,
          `over ${round}`,
        );
      }
    }),
);

const files = suite("writeOwnFile()");

files("replaces what was planted under the name instead of following it", () =>
  withDirectory(async ({ directory }) => {
    const [path, victim] = [join(directory, "f"), join(directory, "victim")];
    for (const plant of [
      () => symlinkSync(victim, path),
      () => spawnSync("mkfifo", [path]),
      () => writeFileSync(path, "old", { mode: 0o666 }),
    ]) {
      writeFileSync(victim, "untouched");
      plant();
      writeOwnFile(path, "new");
      assert.equal(
        [readFileSync(path, "utf8"), readFileSync(victim, "utf8"), modeOf(path)],
        ["new", "untouched", "600"],
      );
      assert.ok(lstatSync(path).isFile());
    }
    mkdirSync(join(directory, "dir"));
    assert.is((await failureOf(() => writeOwnFile(join(directory, "dir"), "x"))).exit, 73);
    assert.equal(filesIn(directory), ["dir", "f", "given.token", "victim"]);
  }),
);

const log = suite("openLog()");

log("appends to a file of ours, 0600 when it makes it", () =>
  withDirectory(async ({ directory }) => {
    const path = join(directory, "l");
    const umask = process.umask(0);
    for (const text of ["one\n", "two\n"]) {
      const descriptor = openLog(path);
      writeSync(descriptor, text);
      closeSync(descriptor);
    }
    process.umask(umask);
    assert.equal([readFileSync(path, "utf8"), modeOf(path)], ["one\ntwo\n", "600"]);
  }),
);

const oddLogs: [what: string, make: (path: string) => unknown, exit: number, words: RegExp][] = [
  [
    "a symbolic link",
    (path) => {
      writeFileSync(`${path}.real`, "untouched");
      symlinkSync(`${path}.real`, path);
    },
    77,
    /it is a symbolic link, a regular file is needed$/,
  ],
  ["a dangling symbolic link", (path) => symlinkSync(`${path}.real`, path), 77, /it is a symbolic link/],
  ["a FIFO that nobody reads", (path) => spawnSync("mkfifo", [path]), 77, /it is a FIFO/],
  ["a directory", (path) => mkdirSync(path), 73, /\(EISDIR\)$/],
  [
    "a file that others may write",
    (path) => {
      writeFileSync(path, "");
      chmodSync(path, 0o666);
    },
    77,
    /its mode is 666/,
  ],
  ...(isRoot
    ? [
        [
          "another's file",
          (path: string) => {
            writeFileSync(path, "");
            chownSync(path, 65534, 65534);
          },
          77,
          /it belongs to user 65534/,
        ] as (typeof oddLogs)[number],
      ]
    : []),
];
for (const [what, make, exit, words] of oddLogs) {
  log(`refuses ${what}, at once`, () =>
    withDirectory(async ({ directory }) => {
      const path = join(directory, "l");
      make(path);
      const failure = await failureOf(() => openLog(path));
      assert.is(failure.exit, exit);
      assert.match(failure.message, words);
      assert.ok(failure.message.includes(`"${path}"`));
      if (existsSync(`${path}.real`)) assert.is(readFileSync(`${path}.real`, "utf8"), "untouched");
    }),
  );
}

log("refuses a FIFO that somebody reads", () =>
  withDirectory(async ({ directory }) => {
    const path = join(directory, "l");
    spawnSync("mkfifo", [path]);
    const reader = spawn("sh", ["-c", `exec sleep 100 < '${path}'`], { stdio: "ignore" });
    const writer = spawn("sh", ["-c", `exec 3> '${path}'; exec sleep 100`], { stdio: "ignore" }); // so that the reader is past its open
    await until("both are open", () =>
      [reader, writer].every(({ pid }) => readFileSync(`/proc/${pid}/cmdline`, "latin1").startsWith("sleep")),
    );
    assert.is((await failureOf(() => openLog(path))).exit, 77);
    reader.kill("SIGKILL");
    writer.kill("SIGKILL");
    await until("both have ended", () => !isAlive(reader.pid!) && !isAlive(writer.pid!));
  }),
);

for (const test of [identity, recordSuite, claims, files, log]) test.run();
