// time limit: 150 s; long
/**
 * What is done to a daemon and its files, what is promised for it, and what happens: the fault table of README.
 *
 * Each test has a directory of its own, and must leave no process, socket, claim or lock. `npm run test:faults` does the full number of rounds
 * and prints the table; `npm test` does fewer.
 */

import type { ChildProcess, ChildProcessWithoutNullStreams } from "node:child_process";
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import {
  appendFileSync,
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  lutimesSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { readClaim } from "../record.ts";
import type { Outcome, Wire } from "./daemon.ts";
import {
  builtFile,
  builtWith,
  busyMs,
  canMount,
  commandLineOf,
  createWire,
  eventually,
  faultRow,
  holdfast,
  isAlive,
  outcomeOf,
  removeAll,
  rounds,
  runsAll,
  sideBySide,
  withoutForked,
} from "./daemon.ts";

/** npm test runs two files at once on what may be two processors: there a bound is only to catch what hangs. */
const withinMs = (ms: number): number => busyMs(runsAll ? ms : ms * 4);
const sleep = (ms: number): Promise<void> => new Promise((done) => setTimeout(done, ms));
const isRoot = process.getuid?.() === 0;

interface Place {
  directory: string;
  run: string;
  socket: string;
  record: string;
  log: string;
  /** Runs the built file with --socket; a token is put into a file for it. */
  serve(token?: string, ...args: string[]): Promise<Outcome>;
  spawnServe(token?: string, ...args: string[]): ChildProcessWithoutNullStreams;
  /** What spawnServe() runs: the built file, unless a test has another. */
  file: string;
  stop(...args: string[]): Promise<Outcome>;
  /** The pids of this socket's daemons, by /proc. */
  daemons(): number[];
  /** Asks one thing over a connection of its own. */
  ask(method: string, params?: unknown, token?: string): Promise<any>;
  open(token?: string): Promise<Wire>;
  readRecord(): any;
  /** Starts /bin/sh -c under the daemon. Returns its pid. */
  start(id: string, script: string): Promise<number>;
  /** Starts that the test has killed: a claim of theirs is there until the next start. */
  killed: Set<number>;
}

/** A socket of a test's own. Whatever the test did, its daemons are ended; and when it passed there is nothing left to end. */
async function withPlace(use: (place: Place) => Promise<string>): Promise<string> {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-fault-"));
  const run = join(directory, "run");
  const socket = join(run, "rpc.sock");
  const env = { SHELL: "/bin/sh", HOME: directory, XDG_STATE_HOME: join(directory, "state") };
  const tokenFile = (token: string): string => {
    const path = join(directory, `${token}.token`);
    if (!existsSync(path)) writeFileSync(path, token, { mode: 0o600 }); // another may be reading it
    return path;
  };
  const serveArgs = (token: string, args: string[]): string[] => [
    "--serve",
    "--socket",
    socket,
    "--token-file",
    tokenFile(token),
    ...args,
  ];
  const place: Place = {
    directory,
    run,
    socket,
    record: `${socket}.record`,
    log: join(run, "remote-server.log"),
    serve: (token = "t", ...args) => holdfast(serveArgs(token, args), { env, timeoutMs: 60_000 }),
    file: builtFile,
    killed: new Set(),
    spawnServe: (token = "t", ...args) =>
      spawn(process.execPath, [place.file, ...serveArgs(token, args)], { env: { ...process.env, ...env }, cwd: "/" }),
    stop: (...args) => holdfast(["--stop", "--socket", socket, ...args], { env, timeoutMs: 60_000 }),
    daemons: () => processesOf(`--launched --socket ${socket}`),
    async open(token = "t") {
      const connection = connect(socket);
      await new Promise<void>((done, fail) => connection.once("connect", done).once("error", fail));
      connections.push(() => connection.destroy());
      return createWire(connection, connection, token);
    },
    async ask(method, params, token) {
      return (await place.open(token)).request(method, params);
    },
    readRecord: () => JSON.parse(readFileSync(place.record, "utf8")),
    start: async (id, script) =>
      (await place.ask("process.spawn", { id, command: "/bin/sh", args: ["-c", script] })).pid,
  };
  const connections: (() => void)[] = [];
  try {
    const happened = await use(place);
    for (const close of connections) close();
    await place.stop("--now");
    await eventually(() => place.daemons().length === 0, `no daemon is left of ${place.daemons()}`);
    const left = existsSync(run)
      ? readdirSync(run)
          .filter((name) => /\.(claim|lock)|^\./.test(name) || lstatSync(join(run, name)).isSocket())
          .filter((name) => !isClaimOf(join(run, name), place.killed))
      : [];
    assert.equal(left, [], "files are left");
    return happened;
  } finally {
    for (const close of connections) close();
    for (const pid of processesOf(socket)) process.kill(pid, "SIGKILL");
    await removeAll(directory);
  }
}

/** Living processes whose arguments, joined by spaces, end with some words: a path of the test's own, so that they are its own. */
function processesOf(words: string): number[] {
  const pids = readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => commandLineOf(pid).replaceAll("\0", " ").trimEnd().endsWith(words));
  return withoutForked(pids);
}

const instanceOf = ({ stdout }: Outcome): string | undefined => /instance ([0-9a-f]{32})/.exec(stdout.toString())?.[1];

function isClaimOf(path: string, pids: Set<number>): boolean {
  const holder = readClaim(path);
  return typeof holder === "object" && pids.has(holder.pid);
}

/** Has a place serve from a file in which a function does something else first. */
function change(place: Place, head: string, first: string, before = ""): void {
  const [start, end, ...others] = readFileSync(builtFile, "utf8").split(head);
  assert.ok(end !== undefined && others.length === 0, `the built file has one ${head}`);
  place.file = join(place.directory, "server.cjs");
  writeFileSync(place.file, `${start}${before}\n${head}\n${first}\n${end}`);
}

function assertDone(outcome: Outcome): string {
  assert.is(outcome.code, 0, `exit code ${outcome.code}, ${outcome.signal}: ${outcome.stderr}`);
  return instanceOf(outcome)!;
}

/** One daemon, and its socket leads to it. */
async function assertOne(place: Place, instance?: string): Promise<void> {
  await eventually(() => place.daemons().length === 1, "exactly one daemon", withinMs(5000)).catch(() =>
    assert.is(place.daemons().length, 1, "daemons"),
  );
  const { instanceId } = await place.ask("server.capabilities");
  if (instance !== undefined) assert.is(instanceId, instance, "the instance");
}

const median = (values: number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1]!;

// Many at once, each after the other: these keep all processors busy

const races = suite("races");
const race = (done: string, promised: string, body: () => Promise<string>): void => {
  const row = faultRow(done, promised);
  races(`${done}: ${promised}`, async () => row(await body()));
};

const crowd = rounds(50, 14);

race(
  `${crowd} \`--serve\` at once with ${crowd} tokens; from the second round on, a random one is killed with -9`,
  "one daemon, one instance, exit code 0 for all others, each token accepted",
  async () => {
    const times: number[] = [];
    for (let round = 0; round < rounds(30, 2); round++) {
      await withPlace(async (place) => {
        const start = Date.now();
        const victim = round === 0 ? -1 : Math.floor(Math.random() * crowd);
        const outcomes = await Promise.all(
          Array.from({ length: crowd }, (_, i) => {
            const child = place.spawnServe(`t${i}`);
            // the one that starts the daemon holds the claim for some 200 ms, somewhere in the first second of 50
            if (i === victim) {
              place.killed.add(child.pid!);
              setTimeout(() => child.kill("SIGKILL"), Math.random() * 30 * crowd);
            }
            return outcomeOf(child, "", 60_000);
          }),
        );
        times.push(Date.now() - start);
        const others = outcomes.filter(({ signal }, i) => i !== victim || signal === null);
        assert.equal(
          others.filter(({ code }) => code !== 0).map(({ stderr }) => stderr),
          [],
          `round ${round}`,
        );
        assert.is(new Set(others.map(instanceOf)).size, 1, `round ${round}: instances`);
        assert.is(place.daemons().length, 1, `round ${round}: daemons`);
        const wire = await place.open("none");
        for (const [i, outcome] of outcomes.entries())
          if (others.includes(outcome)) await wire.request("server.authenticate", { token: `t${i}` });
        return "";
      });
    }
    // the median: one round may meet something else that takes all processors
    assert.ok(median(times) < withinMs(5000), `a round took ${median(times)} ms, ${Math.max(...times)} ms at most`);
    return `so in ${times.length} rounds; ${median(times)} ms each, ${Math.max(...times)} ms at most`;
  },
);

race("serve, kill -9, serve", "a new daemon each time, never two, never a socket that leads nowhere", async () => {
  const count = rounds(50, 3);
  await withPlace(async (place) => {
    const seen = new Set<string>();
    for (let round = 0; round < count; round++) {
      seen.add(assertDone(await place.serve()));
      await assertOne(place);
      process.kill(place.daemons()[0]!, "SIGKILL");
    }
    assert.is(seen.size, count);
    return "";
  });
  return `so ${count} times`;
});

race(
  "`--stop` during a start, `--serve` during a stop, at random times",
  "one daemon or none, and no socket that leads nowhere; after a last `--serve` one",
  async () => {
    const count = rounds(50, 4);
    let [none, first] = [0, 0];
    await withPlace(async (place) => {
      for (let round = 0; round < count; round++) {
        const serving = place.serve();
        await sleep(Math.random() * 400);
        const stopping = place.stop();
        await sleep(Math.random() * 200);
        const again = place.serve();
        assertDone(await serving);
        assert.match(
          (await stopping).stdout.toString(),
          /^(none|stopped) 0\n$/,
          `round ${round}: ${(await stopping).stderr}`,
        );
        assertDone(await again);
        // in what order they came, nobody knows; but what is there is whole, and is what one of the two has said
        if (place.daemons().length === 0 && !existsSync(place.socket)) none++;
        else {
          await assertOne(place);
          const { instanceId } = await place.ask("server.capabilities");
          assert.ok(
            [instanceOf(await serving), instanceOf(await again)].includes(instanceId),
            `round ${round}: a third instance`,
          );
          if (instanceId !== instanceOf(await again)) first++;
        }
        assertDone(await place.serve());
        await assertOne(place);
      }
      return "";
    });
    return `so ${count} times; ${none} times none was left, ${first} times the first one was`;
  },
);

race(
  "`--replace` while a client connects as fast as it can",
  "no connection is refused, the old daemon ends, old and new tokens are good",
  async () => {
    const count = rounds(20, 2);
    let connects = 0;
    await withPlace(async (place) => {
      let instance = assertDone(await place.serve());
      let isOver = false;
      const refused: string[] = [];
      const client = (async () => {
        while (!isOver) {
          const connection = connect(place.socket);
          await new Promise<void>((done) =>
            connection.once("connect", done).once("error", (error: NodeJS.ErrnoException) => {
              if (error.code !== "EAGAIN") refused.push(error.message); // that is: its queue is full, as it gets no processor
              done();
            }),
          );
          connection.destroy();
          connects++;
          await sleep(1);
        }
      })();
      for (let round = 0; round < count; round++) {
        const next = assertDone(await place.serve(`t${round}`, "--replace"));
        assert.is.not(next, instance);
        instance = next;
        await assertOne(place, instance);
        await place.ask("server.ping", {}, "t");
        await place.ask("server.ping", {}, `t${round}`);
      }
      isOver = true;
      await client;
      assert.equal(refused, []);
      return "";
    });
    return `so ${count} times; ${connects} connects, none refused`;
  },
);

const counter = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done";

/** What a process that counts has written, from its first line on. */
async function readLines(place: Place, token: string): Promise<string[]> {
  const wire = await place.open(token);
  const { lastSeq } = await wire.request("process.reattach", { id: "counter", fromSeq: 0 });
  await wire.message(({ seq }) => seq >= lastSeq);
  const text = wire.messages
    .filter(({ stream }) => stream === "stdout")
    .map(({ data }) => Buffer.from(data, "base64").toString())
    .join("");
  return text.slice(0, text.lastIndexOf("\n")).split("\n");
}

race(
  "`--stop && --serve` with a new token each, while a process prints a numbered line every 10 ms",
  "one process, one instance, every line once, every token good",
  async () => {
    const count = rounds(100, 4);
    let lines = 0;
    await withPlace(async (place) => {
      const instance = assertDone(await place.serve());
      const pid = await place.start("counter", counter);
      for (let round = 0; round < count; round++) {
        assert.is((await place.stop()).stdout.toString(), "stopped 1\n");
        assert.is(assertDone(await place.serve(`t${round}`)), instance, `round ${round}`);
        assert.equal(await place.ask("server.ping", {}, `t${round}`), { pong: true });
        assert.ok(isAlive(pid));
      }
      await assertOne(place, instance).catch(() =>
        assertOne({ ...place, ask: (method) => place.ask(method, {}, `t${count - 1}`) }, instance),
      );
      const read = await readLines(place, `t${count - 1}`);
      assert.equal(
        read,
        read.map((_, i) => String(i)),
      );
      lines = read.length;
      return "";
    });
    return `so in ${count} rounds; ${lines} lines, none missing, none twice`;
  },
);

race("the same with `--stop --now`", "the process is gone each time", async () => {
  const count = rounds(100, 4);
  await withPlace(async (place) => {
    const seen = new Set([assertDone(await place.serve())]);
    for (let round = 0; round < count; round++) {
      const pid = await place.start("counter", counter);
      assert.is((await place.stop("--now")).stdout.toString(), "stopped 1\n");
      assert.not(isAlive(pid), `round ${round}: the process`);
      seen.add(assertDone(await place.serve()));
    }
    assert.is(seen.size, count + 1);
    return "";
  });
  return `so in ${count} rounds`;
});

// One fault each, most of whose time is waiting

let openGate: () => void;
const gate = new Promise<void>((done) => (openGate = done));
races("end", async () => openGate());

const faults = suite("faults");
const lanes = sideBySide(faults, 6);
const fault = (done: string, promised: string, body: (place: Place) => Promise<string>): void => {
  const row = faultRow(done, promised);
  lanes(`${done}: ${promised}`, () => gate.then(async () => row(await withPlace(body))));
};

fault("the socket is deleted", "found by its second name at once, published again within 30 s", async (place) => {
  const instance = assertDone(await place.serve());
  unlinkSync(place.socket);
  const start = Date.now();
  const bridged = await holdfast(["--bridge", "--socket", place.socket]);
  assert.is(bridged.code, 0, bridged.stderr);
  await eventually(() => existsSync(place.socket), "it is there again", 30_000 + busyMs(3000));
  await assertOne(place, instance);
  return `there again after ${((Date.now() - start) / 1000).toFixed(0)} s`;
});

fault("the whole run directory is deleted", "there again within 30 s", async (place) => {
  const instance = assertDone(await place.serve());
  await removeAll(place.run);
  const start = Date.now();
  await eventually(() => existsSync(place.socket), "it is there again", 30_000 + busyMs(3000));
  await assertOne(place, instance);
  return `there again after ${((Date.now() - start) / 1000).toFixed(0)} s`;
});

fault(
  "`--stop`, and no start after it",
  "the processes have the grace of 10 s, then all is gone within 15 s",
  async (place) => {
    assertDone(await place.serve());
    const pid = await place.start("counter", counter);
    const start = Date.now();
    assert.is((await place.stop()).stdout.toString(), "stopped 1\n");
    await eventually(() => !existsSync(place.socket), "the socket is gone");
    const { stoppingAt } = place.readRecord();
    assert.ok(stoppingAt - start >= 10_000, `its grace ends after ${stoppingAt - start} ms`);
    await eventually(() => !isAlive(pid), "its end", 60_000);
    assert.ok(Date.now() >= stoppingAt - 50, "it was not given its grace");
    await eventually(() => place.daemons().length === 0, "all is gone");
    const ms = Date.now() - start;
    const late = Date.now() - stoppingAt;
    assert.ok(late < withinMs(1250), `${late} ms after the grace`);
    assert.equal(readdirSync(place.run).sort(), ["remote-server.log", "rpc.sock.held", "rpc.sock.record"]);
    return `gone after ${(ms / 1000).toFixed(1)} s, but for log, record and what the processes have said`;
  },
);

fault(
  "`kill -STOP` of the daemon, then `--serve` and `--stop`",
  "“not answering”, never “dead”: left alone by the one; ended by the other, and its processes",
  async (place) => {
    assertDone(await place.serve());
    const seconds = `60.${process.pid}`; // a number of our own, to find them by
    const pid = await place.start(
      "a",
      `(setsid sleep ${seconds} & (sleep ${seconds} &) ; exec sleep ${seconds}) & trap '' TERM; while :; do sleep 0.1; done`,
    );
    await eventually(() => processesOf(`sleep ${seconds}`).length === 3, "its processes run");
    const [daemon] = place.daemons();
    process.kill(daemon!, "SIGSTOP");
    const served = await place.serve();
    assert.is(served.code, 69);
    assert.match(served.stderr, /is not answering: .* It is not known to be dead, and was left alone/);
    assert.ok(isAlive(daemon!));
    const stopping = place.stop();
    await eventually(() => !isAlive(daemon!), "the daemon's end", 60_000);
    await eventually(() => place.readRecord().ended?.reason === "stopped", "no bridge is to start it again");
    assert.ok(isAlive(pid), "its processes are yet to be ended");
    const stopped = await stopping;
    assert.is(stopped.stdout.toString(), "stopped 1\n", stopped.stderr);
    assert.match(stopped.stderr, /did not answer, and was ended by signal/);
    assert.not(isAlive(daemon!));
    assert.equal([isAlive(pid), processesOf(`sleep ${seconds}`)], [false, []]);
    return `so: “stopped 1” after ${(stopped.ms / 1000).toFixed(1)} s`;
  },
);

fault(
  "a new version that cannot start, with `--replace`",
  "the old daemon and its processes live on; the reason is told",
  async (place) => {
    const instance = assertDone(await place.serve());
    const pid = await place.start("a", "sleep 60");
    const broken = join(place.directory, "broken.js");
    writeFileSync(
      broken,
      `if (process.argv.includes("--launched")) { console.error("out of order"); process.exit(3); }\n${readFileSync(builtFile, "utf8").replace(/^#!.*\n/, "")}`,
    );
    const replaced = await outcomeOf(
      spawn(process.execPath, [broken, "--serve", "--replace", "--socket", place.socket], { cwd: "/" }),
    );
    assert.is(replaced.code, 1);
    assert.match(replaced.stderr, /ended with exit code 3: out of order/, replaced.stderr);
    await assertOne(place, instance);
    assert.ok(isAlive(pid));
    return "so: exit code 1, “ended with exit code 3: out of order”";
  },
);

fault(
  "a newer version, with `--serve` and with `--serve --replace`",
  "joins, with a warning that names both; then takes its place",
  async (place) => {
    const instance = assertDone(await place.serve());
    const newer = join(place.directory, "newer.js");
    const text = readFileSync(builtFile, "utf8");
    writeFileSync(newer, text.replace(/version: "[0-9.]+"/, 'version: "99.0.0"'));
    const run = (...args: string[]): Promise<Outcome> =>
      outcomeOf(
        spawn(
          process.execPath,
          [newer, "--serve", "--socket", place.socket, "--token-file", join(place.directory, "t.token"), ...args],
          { cwd: "/" },
        ),
      );
    const joined = await run();
    assert.is(assertDone(joined), instance);
    assert.match(joined.stderr, /warning: the daemon is of version [0-9.]+, this is 99\.0\.0\n.*--replace/);
    const replaced = await run("--replace");
    assert.is.not(assertDone(replaced), instance);
    assert.not.match(replaced.stderr, /warning/);
    assert.is((await place.ask("server.capabilities")).version, "99.0.0");
    return "so";
  },
);

fault("`--replace` of a daemon that takes 8 s to leave", "it is waited for, and the processes go on", async (place) => {
  change(place, "async function leaveAll(processes, { graceMs }) {", "await sleep(8000);");
  assertDone(await outcomeOf(place.spawnServe()));
  const pid = await place.start("a", "sleep 100");
  const [old] = place.daemons();
  const replaced = await place.serve("t", "--replace");
  assertDone(replaced);
  assert.equal([isAlive(old!), isAlive(pid), replaced.stderr.includes("SIGKILL")], [false, true, false]);
  const { processes } = await place.ask("process.list");
  assert.equal([processes[0].pid, processes[0].running], [pid, true]);
  return `so, after ${(replaced.ms / 1000).toFixed(1)} s`;
});

fault(
  "`--stop --grace 6`, and a `--serve --replace` within it that takes 9 s",
  "the processes go on: the grace does not end meanwhile",
  async (place) => {
    assertDone(await place.serve());
    const pid = await place.start("a", "sleep 100");
    change(
      place,
      "const daemon = createDaemon(handover, createLog(handover.places.log), world);",
      "await sleep(9000);",
    );
    assert.is((await place.stop("--grace", "6")).stdout.toString(), "stopped 1\n");
    const next = assertDone(await outcomeOf(place.spawnServe("t", "--replace")));
    const { processes } = await place.ask("process.list");
    assert.equal([processes[0].pid, processes[0].running, isAlive(pid)], [pid, true, true]);
    await assertOne(place, next);
    return "so";
  },
);

fault(
  "70 tokens more, and one from a client that is not the record's owner",
  "the newest 64 are good; the stranger's is refused, though its own token is good",
  async (place) => {
    assertDone(await place.serve());
    const hash = (token: string): string => createHash("sha256").update(token).digest("hex");
    const refused = await place
      .ask("server.admit", { key: "0".repeat(64), tokenHash: hash("stranger") })
      .catch((error: Error) => error.message);
    assert.is(refused, "Cannot admit: the key is not that of this daemon's record");
    const { key } = place.readRecord();
    const owner = await place.open(key);
    for (let i = 0; i < 70; i++) await owner.request("server.admit", { key, tokenHash: hash(`n${i}`) });
    const good = (token: string): Promise<boolean> =>
      place.ask("server.ping", {}, token).then(
        () => true,
        () => false,
      );
    assert.equal(await Promise.all(["t", "stranger", "n5", "n6", "n69"].map(good)), [false, false, false, true, true]);
    assert.is(place.readRecord().tokenHashes.length, 64);
    return "so";
  },
);

fault(
  "`--stop --grace 1`, and a process that ignores SIGTERM",
  "it has 1 s, SIGTERM, and SIGKILL 3 s later",
  async (place) => {
    assertDone(await place.serve());
    const pid = await place.start("a", "trap '' TERM; while :; do sleep 0.1; done");
    await sleep(200);
    const start = Date.now();
    assert.is((await place.stop("--grace", "1")).stdout.toString(), "stopped 1\n");
    await eventually(() => !isAlive(pid) && place.daemons().length === 0, "both are gone", withinMs(6000));
    const ms = Date.now() - start;
    assert.ok(ms > 3500, `after ${ms} ms`);
    return `gone after ${(ms / 1000).toFixed(1)} s`;
  },
);

fault(
  "`--stop --if-idle` while a process lives, and when it has ended",
  "exit code 75 and nothing done; then it stops",
  async (place) => {
    const instance = assertDone(await place.serve());
    await place.start("a", "sleep 60");
    const refused = await place.stop("--if-idle");
    assert.is(refused.code, 75);
    assert.match(refused.stderr, /1 process is alive/);
    await assertOne(place, instance);
    await place.ask("process.killAndWait", { id: "a" });
    await eventually(() => place.daemons().length === 1, "it is still there");
    await sleep(100);
    assert.is((await place.stop("--if-idle")).stdout.toString(), "stopped 0\n");
    assert.is(place.daemons().length, 0);
    return "so";
  },
);

fault(
  "`--stop` twice at once, and a `--serve` right after",
  "the processes are not lost: one daemon, the same instance",
  async (place) => {
    const instance = assertDone(await place.serve());
    const pid = await place.start("a", "sleep 60");
    const stops = await Promise.all([place.stop(), place.stop(), place.stop()]);
    for (const { stdout, stderr, code, signal } of stops)
      assert.is(stdout.toString(), "stopped 1\n", `it ended with ${code ?? signal}: ${stderr}`);
    assert.is(assertDone(await place.serve()), instance);
    assert.ok(isAlive(pid));
    return "so";
  },
);

fault(
  "`--stop`, and each time another is quicker, which closes all connections",
  "it asks again, and the processes have their grace",
  async (place) => {
    const lose = "if (quicker++ < 5) for (const { socket } of daemon.connections.open) socket.destroy();";
    change(place, "function shutdown(daemon, params) {", lose, "let quicker = 0;");
    const instance = assertDone(await outcomeOf(place.spawnServe()));
    const pid = await place.start("a", "sleep 60");
    const { stdout, stderr, code } = await place.stop();
    assert.equal([code, stdout.toString(), stderr], [0, "stopped 1\n", ""]);
    assert.is(assertDone(await place.serve()), instance);
    assert.ok(isAlive(pid));
    return "so, five times";
  },
);

fault("a daemon that dies as its start is verified", "`--serve` says so; the next one starts", async (place) => {
  change(place, "async function statusOf(daemon) {", 'process.kill(process.pid, "SIGKILL");');
  const { code, stderr } = await outcomeOf(place.spawnServe());
  assert.is(code, 69);
  assert.match(stderr, /^holdfast: error: Cannot verify the start: The connection .* ended before the answer came$/m);
  assertDone(await place.serve());
  return "so";
});

fault("a mode waits for what never comes", "it says so, with exit code 1: none ends in silence", async (place) => {
  change(place, "async function main() {", "await new Promise(() => {});");
  const { code, stdout, stderr } = await outcomeOf(place.spawnServe());
  assert.equal([code, stdout.toString()], [1, ""]);
  assert.match(stderr, /^holdfast: error: Internal error: the mode waits, and nothing is left to wait for\n$/);
  return "so";
});

fault(
  "`server.shutdown` from a client, with three processes of two members each",
  "answered with the number; SIGTERM to each group, all of it gone",
  async (place) => {
    assertDone(await place.serve());
    const seconds = `61.${process.pid}`; // a number of our own, to find them by
    for (const id of ["a", "b", "c"]) await place.start(id, `sleep ${seconds} & wait`);
    await eventually(() => processesOf(`sleep ${seconds}`).length === 3, "they run");
    assert.equal(await place.ask("server.shutdown", { graceMs: 0 }), { ok: true, processes: 3 });
    await eventually(() => place.daemons().length === 0, "the daemon has ended");
    assert.equal(processesOf(`sleep ${seconds}`), []);
    assert.match(readFileSync(place.log, "utf8"), /Ended, with 3 processes\n/);
    return "so; “Ended, with 3 processes” in the log";
  },
);

fault(
  "SIGTERM",
  "the daemon and its processes end within 2 s, those that ignore SIGTERM too; the record says who",
  async (place) => {
    assertDone(await place.serve());
    const pid = await place.start("a", "trap '' TERM; while :; do sleep 0.1; done");
    await sleep(200);
    const start = Date.now();
    process.kill(place.daemons()[0]!, "SIGTERM");
    await eventually(() => !isAlive(pid) && place.daemons().length === 0, "both have ended", withinMs(2000));
    assert.is(place.readRecord().ended.reason, "terminated");
    return `ended after ${Date.now() - start} ms`;
  },
);

fault("SIGTERM twice, 200 ms apart", "the second does not wait for processes: SIGKILL at once", async (place) => {
  place.file = builtWith(place.directory, { killAfterSignalMs: 5000 }); // by itself it would kill later
  assertDone(await outcomeOf(place.spawnServe()));
  const said = join(place.directory, "said");
  const pid = await place.start("a", `trap '' TERM; echo >'${said}'; while :; do sleep 0.1; done`);
  await eventually(() => existsSync(said), "it is deaf to SIGTERM");
  const [daemon] = place.daemons();
  process.kill(daemon!, "SIGTERM");
  await sleep(200);
  const start = Date.now();
  process.kill(daemon!, "SIGTERM");
  await eventually(() => !isAlive(pid) && place.daemons().length === 0, "both have ended", withinMs(700));
  return `ended ${Date.now() - start} ms after the second`;
});

fault(
  "SIGTERM to a daemon that is just starting, at a random time",
  "none is left, or a whole one; no half socket",
  async (place) => {
    const count = rounds(30, 3);
    let started = 0;
    for (let round = 0; round < count; round++) {
      const serving = place.serve();
      await eventually(() => place.daemons().length > 0, "it is launched", 20_000);
      await sleep(Math.random() * 200);
      for (const pid of place.daemons()) process.kill(pid, "SIGTERM");
      const { code, stderr } = await serving;
      if (code === 0) started++;
      else assert.match(stderr, /^holdfast: error: Cannot /, stderr);
      await eventually(() => place.daemons().length === 0, "it has ended");
      assert.equal(
        existsSync(place.run)
          ? readdirSync(place.run).filter((name) => lstatSync(join(place.run, name)).isSocket())
          : [],
        [],
        `round ${round}: ${stderr}`,
      );
    }
    return `so ${count} times; ${started} had started by then`;
  },
);

fault(
  "SIGTERM to a daemon that has bound its socket, and is about to publish it",
  "refused in words; nothing is left",
  async (place) => {
    mkdirSync(place.run, { mode: 0o700 });
    writeFileSync(`${place.record}.lock`, "held", { mode: 0o600 });
    place.file = builtWith(place.directory, { lockMs: 20_000 });
    const serving = outcomeOf(place.spawnServe(), "", 60_000);
    await eventually(
      () => readdirSync(place.run, { withFileTypes: true }).some((entry) => entry.isSocket()),
      "it has bound its socket",
      20_000,
    );
    for (const pid of place.daemons()) process.kill(pid, "SIGTERM");
    await eventually(() => readFileSync(place.log, "utf8").includes("Received SIGTERM"), "it knows");
    unlinkSync(`${place.record}.lock`);
    const { code, stderr } = await serving;
    assert.is(code, 1, stderr);
    assert.match(stderr, /Cannot publish the socket ".*": the daemon was told to end/);
    assert.equal(readdirSync(place.run), ["remote-server.log"]);
    return "so";
  },
);

fault(
  "SIGTERM while a `--serve` revives it",
  "it ends; the `--serve` had revived it, or starts another: nothing half",
  async (place) => {
    const count = rounds(20, 2);
    for (let round = 0; round < count; round++) {
      assertDone(await place.serve());
      await place.start("a", "sleep 60");
      const [daemon] = place.daemons();
      await place.stop();
      const serving = place.serve();
      await sleep(Math.random() * 150);
      process.kill(daemon!, "SIGTERM");
      const outcome = await serving;
      assertDone(outcome);
      await eventually(() => !isAlive(daemon!), "the first has ended");
      // it may have been revived, and ended after that
      if (place.daemons().length > 0) await assertOne(place);
      assert.ok(place.daemons().length > 0 || !existsSync(place.socket));
    }
    return `so ${count} times`;
  },
);

fault("SIGHUP", "no reason to end", async (place) => {
  const instance = assertDone(await place.serve());
  process.kill(place.daemons()[0]!, "SIGHUP");
  await sleep(200);
  await assertOne(place, instance);
  return "so";
});

// Whose it is

fault("an old daemon ends after a new one has published", "it removes nothing", async (place) => {
  // in the foreground: --serve does not find it by its arguments, and starts a second one
  const old = place.spawnServe("t", "--lifetime", "foreground");
  const ended = outcomeOf(old, "", 60_000);
  await eventually(() => existsSync(place.socket), "it serves", 20_000);
  const wire = await place.open();
  await wire.request("process.spawn", { id: "a", command: "sleep", args: ["60"] });
  await removeAll(place.run);
  const instance = assertDone(await place.serve());
  const names = readdirSync(place.run).sort();
  const record = readFileSync(place.record, "utf8");
  old.kill("SIGTERM");
  assert.is((await ended).code, 0);
  assert.equal(readdirSync(place.run).sort(), names);
  assert.is(readFileSync(place.record, "utf8"), record);
  await assertOne(place, instance);
  return "so: socket, record and log are the new one's, and it answers";
});

fault(
  "a daemon without processes finds another in its place",
  "it ends by itself, and removes nothing",
  async (place) => {
    const old = place.spawnServe("t", "--lifetime", "foreground");
    const ended = outcomeOf(old, "", 60_000);
    await eventually(() => existsSync(place.socket), "it serves", 20_000);
    await sleep(100);
    await removeAll(place.run);
    const instance = assertDone(await place.serve());
    old.kill("SIGCONT"); // it would look by itself within 30 s
    assert.is((await ended).code, 0);
    await assertOne(place, instance);
    return "so";
  },
);

/** Forges the record of a daemon that was stopped, with the pid of a process that has nothing to do with it. */
interface Forgery {
  what: string;
  forge(record: any, stranger: number): string | object;
  /** In the words of --serve, or "" where it starts a new daemon; and of --stop. */
  serve: RegExp;
  stop: RegExp;
  after?(path: string): void;
}

const startTime = (pid: number): string => {
  const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
  return stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19]!;
};

const forgeries: Forgery[] = [
  {
    what: "a living stranger's pid and start time",
    forge: (record, pid) => ({ ...record, pid, startTime: startTime(pid) }),
    serve: /^$/,
    stop: /^$/,
  },
  {
    what: "a pid that was used again",
    forge: (record, pid) => ({ ...record, pid, startTime: "1" }),
    serve: /^$/,
    stop: /^$/,
  },
  {
    what: "another host's name, boot and machine",
    forge: (record, pid) => ({ ...record, pid, host: "elsewhere", bootId: "another", machineId: "0".repeat(32) }),
    serve: /was started on host "elsewhere", this is "/,
    stop: /was started on host "elsewhere"/,
  },
  {
    what: "another boot",
    forge: (record, pid) => ({
      ...record,
      pid,
      startTime: startTime(pid),
      bootId: "11111111-1111-1111-1111-111111111111",
    }),
    serve: /^$/,
    stop: /^$/,
  },
  {
    what: "broken JSON",
    forge: (record) => JSON.stringify(record).slice(0, 500),
    serve: /it holds 500 bytes that are not JSON/,
    stop: /it holds 500 bytes that are not JSON/,
  },
  {
    what: "10 MiB",
    forge: () => "x".repeat(10 << 20),
    serve: /it has 10485760 bytes, at most 1048576 are read/,
    stop: /it has 10485760 bytes/,
  },
  ...(isRoot
    ? [
        {
          what: "another owner",
          forge: (record: any, pid: number) => ({ ...record, pid, startTime: startTime(pid) }),
          after: (path: string) => chownSync(path, 65534, 65534),
          serve: /it belongs to user 65534, it must belong to user 0/,
          stop: /it belongs to user 65534/,
        },
      ]
    : []),
  {
    what: "a symbolic link in its place",
    forge: (record) => record,
    after: (path) => {
      renameSync(path, `${path}.target`);
      symlinkSync(`${path}.target`, path);
    },
    serve: /it is a symbolic link/,
    stop: /it is a symbolic link/,
  },
];

for (const { what, forge, serve, stop, after } of forgeries) {
  fault(
    `a record with ${what}`,
    serve.test("")
      ? "nobody is signalled; a new daemon is started"
      : "nobody is signalled; refused, with what was found",
    async (place) => {
      const stranger = spawn("sleep", ["60"], { stdio: "ignore" });
      try {
        assertDone(await place.serve());
        await place.stop("--now");
        const { ended, ...record } = place.readRecord();
        const forged = forge(record, stranger.pid!);
        writeFileSync(place.record, typeof forged === "string" ? forged : JSON.stringify(forged), { mode: 0o600 });
        after?.(place.record);
        const stopped = await place.stop();
        assert.match(stopped.stderr, stop);
        if (stopped.code === 0) assert.is(stopped.stdout.toString(), "none 0\n");
        assert.ok(isAlive(stranger.pid!), "--stop has signalled a stranger");
        writeFileSync(place.record, typeof forged === "string" ? forged : JSON.stringify(forged));
        const served = await place.serve();
        assert.match(served.stderr, serve);
        assert.is(served.code === 0, serve.test(""), served.stderr);
        assert.ok(isAlive(stranger.pid!), "--serve has signalled a stranger");
        const words = /holdfast: error: ([^\n]*)/.exec(served.stderr)?.[1];
        if (served.code !== 0) rmSync(place.record); // withPlace() stops what there is
        return words === undefined ? "so" : `“${words.replaceAll(place.run, "…")}”`;
      } finally {
        stranger.kill("SIGKILL");
      }
    },
  );
}

// The file system

fault("the socket is deleted, then `--serve`", "joins, and it is there again at once", async (place) => {
  const instance = assertDone(await place.serve());
  unlinkSync(place.socket);
  assert.is(assertDone(await place.serve("u")), instance);
  await assertOne(place, instance);
  return "so";
});

fault("both names of the socket are deleted, then `--serve`", "joins the same instance", async (place) => {
  const instance = assertDone(await place.serve());
  for (const name of readdirSync(place.run))
    if (lstatSync(join(place.run, name)).isSocket()) unlinkSync(join(place.run, name));
  const joined = await place.serve("u");
  assert.is(assertDone(joined), instance);
  await assertOne(place, instance);
  return `joined after ${joined.ms} ms`;
});

fault("the socket is deleted, then `--stop`", "stops it", async (place) => {
  assertDone(await place.serve());
  const pid = await place.start("a", "sleep 60");
  unlinkSync(place.socket);
  assert.is((await place.stop("--now")).stdout.toString(), "stopped 1\n");
  assert.equal([isAlive(pid), place.daemons()], [false, []]);
  return "so";
});

fault(
  "the whole run directory is deleted, then `--serve`",
  "the same daemon and its processes, with a directory of 0700, a record and a log again",
  async (place) => {
    const instance = assertDone(await place.serve());
    const pid = await place.start("a", "sleep 60");
    await removeAll(place.run);
    const joined = await place.serve("u");
    assert.is(assertDone(joined), instance, joined.stderr);
    await assertOne(place, instance);
    assert.ok(isAlive(pid));
    assert.is(statSync(place.run).mode & 0o777, 0o700);
    assert.ok(statSync(place.log).size > 0);
    assert.is(assertDone(await place.serve("v")), instance);
    return `joined after ${joined.ms} ms`;
  },
);

fault(
  "the whole run directory is deleted, then `--stop` and `--serve`",
  "stopped, and revived with its processes",
  async (place) => {
    const instance = assertDone(await place.serve());
    const pid = await place.start("a", "sleep 60");
    await removeAll(place.run);
    assert.is((await place.stop()).stdout.toString(), "stopped 1\n");
    await removeAll(place.run); // once more, within the grace
    assert.is(assertDone(await place.serve()), instance);
    assert.ok(isAlive(pid));
    return "so";
  },
);

fault("the record is deleted, then broken", "written again: the daemon is joined", async (place) => {
  const instance = assertDone(await place.serve());
  unlinkSync(place.record);
  assert.is(assertDone(await place.serve("u")), instance);
  writeFileSync(place.record, "{");
  assert.is(assertDone(await place.serve("v")), instance);
  return "so";
});

for (const [what, plant, words] of [
  ["a file", (path: string) => writeFileSync(path, "mine"), /there is a regular file/],
  ["a directory", (path: string) => mkdirSync(path), /there is a directory/],
  ["a symbolic link", (path: string) => symlinkSync("/dev/null", path), /there is a symbolic link/],
] as const) {
  fault(
    `the socket is replaced by ${what}`,
    "refused in words, and left there; when it is gone, the socket is there again",
    async (place) => {
      const instance = assertDone(await place.serve());
      unlinkSync(place.socket);
      plant(place.socket);
      const served = await place.serve("u");
      assert.is(served.code, 73);
      assert.match(served.stderr, words);
      assert.not(lstatSync(place.socket).isSocket());
      rmSync(place.socket, { recursive: true });
      process.kill(place.daemons()[0]!, "SIGCONT"); // it would look by itself within 30 s
      await eventually(() => existsSync(place.socket), "it is there again");
      await assertOne(place, instance);
      return `“${/error: ([^,]*)/.exec(served.stderr)![1]!.replaceAll(place.run, "…")}”`;
    },
  );
}

fault("the socket is replaced by another server's", "refused in words; that server is not touched", async (place) => {
  const instance = assertDone(await place.serve());
  unlinkSync(place.socket);
  const server = createServer((connection) => connection.end());
  await new Promise<void>((done) => server.listen(place.socket, done));
  const served = await place.serve("u");
  assert.is(served.code, 77);
  assert.match(served.stderr, /a server answers there, but the record .* is of another socket/);
  const stopped = await place.stop();
  assert.is(stopped.code, 77);
  assert.ok(lstatSync(place.socket).isSocket());
  await new Promise((done) => server.close(done));
  process.kill(place.daemons()[0]!, "SIGCONT");
  await eventually(() => existsSync(place.socket), "it is there again");
  await assertOne(place, instance);
  return "so, by `--serve` and by `--stop`";
});

fault("a dead socket that no record tells to be ours", "refused in words, and left there", async (place) => {
  mkdirSync(place.run, { mode: 0o700 });
  const owner = spawn(process.execPath, [
    "-e",
    `require("net").createServer().listen(${JSON.stringify(place.socket)}, () => process.kill(process.pid, 9))`,
  ]);
  await new Promise((done) => owner.once("close", done));
  const served = await place.serve();
  assert.is(served.code, 73);
  assert.match(served.stderr, /nothing listens there, and it is not provably ours: there is no record/);
  assert.ok(lstatSync(place.socket).isSocket());
  unlinkSync(place.socket);
  return "so";
});

fault("those who clean /tmp by age", "both names of the socket are kept young", async (place) => {
  assertDone(await place.serve());
  const old = new Date(Date.now() - 40 * 86_400_000);
  const sockets = readdirSync(place.run)
    .map((name) => join(place.run, name))
    .filter((path) => lstatSync(path).isSocket());
  for (const path of sockets) lutimesSync(path, old, old);
  process.kill(place.daemons()[0]!, "SIGCONT");
  await eventually(() => sockets.every((path) => lstatSync(path).mtimeMs > Date.now() - 60_000), "both are young");
  assert.is(sockets.length, 2);
  return "so";
});

fault(
  "symbolic links and a FIFO planted as the log",
  "refused in words; where they lead nothing is written",
  async (place) => {
    const shared = join(place.directory, "shared");
    mkdirSync(shared);
    chmodSync(shared, 0o1777);
    const [target, link, fifo] = [join(place.directory, "precious"), join(shared, "link"), join(shared, "fifo")];
    writeFileSync(target, "precious");
    symlinkSync(target, link);
    await new Promise((done) => spawn("mkfifo", [fifo]).once("close", done));
    const linked = await place.serve("t", "--log", link);
    assert.is(linked.code, 77);
    assert.match(linked.stderr, /Cannot use ".*": it is a symbolic link/);
    const piped = await place.serve("t", "--log", fifo);
    assert.is(piped.code, 77);
    assert.match(piped.stderr, /it is a FIFO/);
    assert.is(readFileSync(target, "utf8"), "precious");
    return "so, for both";
  },
);

fault(
  "a socket in a directory that others may write to, as /tmp",
  "record and log are in the state directory; nothing planted beside the socket is used",
  async (place) => {
    const shared = join(place.directory, "shared");
    mkdirSync(shared);
    chmodSync(shared, 0o1777);
    const socket = join(shared, "v.sock");
    for (const name of ["v.sock.record", "v.sock.log", "v.sock.claim"])
      symlinkSync(join(place.directory, "precious"), join(shared, name));
    const env = { SHELL: "/bin/sh", XDG_STATE_HOME: join(place.directory, "state") };
    assertDone(await holdfast(["--serve", "--socket", socket], { env }));
    assert.equal(
      readdirSync(shared).filter((name) => !lstatSync(join(shared, name)).isSocket()),
      ["v.sock.claim", "v.sock.log", "v.sock.record"],
    );
    assert.not(existsSync(join(place.directory, "precious")));
    assert.is((await holdfast(["--stop", "--socket", socket], { env })).stdout.toString(), "stopped 0\n");
    assert.equal(readdirSync(shared).length, 3);
    return "so";
  },
);

// A file system of its own

/** Runs with a tmpfs of 64 KiB as run directory, in a mount namespace that ends with the test. */
async function withDisk(
  place: Place,
  use: (
    inside: (...args: string[]) => Promise<Outcome>,
    run: string,
    enter: (program: string, ...args: string[]) => Promise<void>,
  ) => Promise<string>,
): Promise<string> {
  mkdirSync(place.run, { mode: 0o700 });
  const script = `mount -t tmpfs -o size=64k,mode=700 holdfast "${place.run}" && echo ready && exec sleep 120`;
  const holder = spawn("unshare", ["--mount", "--propagation", "private", "sh", "-c", script], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const enter = (program: string, ...args: string[]): Promise<Outcome> =>
    outcomeOf(
      spawn("nsenter", ["-t", String(holder.pid), "-m", program, ...args], {
        env: { ...process.env, SHELL: "/bin/sh" },
      }),
    );
  try {
    await new Promise((done) => holder.stdout!.once("data", done));
    writeFileSync(join(place.directory, "t"), "t", { mode: 0o600 });
    const inside = (...args: string[]): Promise<Outcome> =>
      enter(
        process.execPath,
        builtFile,
        ...args,
        "--socket",
        place.socket,
        ...(args[0] === "--serve" ? ["--token-file", join(place.directory, "t")] : []),
      );
    const happened = await use(inside, `/proc/${holder.pid}/root${place.run}`, async (...args) =>
      assert.is((await enter(...args)).code, 0),
    );
    await inside("--stop", "--now");
    return happened;
  } finally {
    await endChild(holder);
  }
}

function endChild(child: ChildProcess): Promise<void> {
  return new Promise((done) => {
    child.once("close", () => done());
    child.kill("SIGKILL");
  });
}

function fill(directory: string): void {
  try {
    for (;;) appendFileSync(join(directory, "ballast"), Buffer.alloc(4096));
  } catch (error) {
    assert.is((error as NodeJS.ErrnoException).code, "ENOSPC");
  }
}

const rootFault = canMount() ? fault : (done: string) => faults.skip(`${done}: needs root that may mount`);

rootFault("the disk is full before the start", "refused in words; nothing is left", (place) =>
  withDisk(place, async (inside, run) => {
    fill(run);
    const served = await inside("--serve");
    assert.is(served.code, 73);
    assert.match(served.stderr, /no space left on device \(ENOSPC\)/);
    unlinkSync(join(run, "ballast"));
    assert.equal(
      readdirSync(run).filter((name) => name !== "remote-server.log"),
      [],
    );
    assert.is((await inside("--serve")).code, 0);
    return `“${/error: ([^\n]*)/
      .exec(served.stderr)![1]!
      .replaceAll(place.run, "…")
      .replace(/claim\.\w+/, "claim")}”`;
  }),
);

rootFault(
  "the disk becomes full while it runs",
  "joined, used and stopped all the same; the log misses lines, nothing ends",
  (place) =>
    withDisk(place, async (inside, run) => {
      const instance = assertDone(await inside("--serve"));
      fill(run);
      assert.is(assertDone(await inside("--serve")), instance);
      const listed = await inside("--call", "process.list");
      assert.is(listed.code, 0, listed.stderr);
      const stopped = await inside("--stop");
      assert.is(stopped.stdout.toString(), "stopped 0\n", stopped.stderr);
      assert.is(place.daemons().length, 0);
      assert.equal(
        readdirSync(run).filter((name) => lstatSync(join(run, name)).isSocket()),
        [],
      );
      unlinkSync(join(run, "ballast"));
      assert.is.not(assertDone(await inside("--serve")), instance);
      return "so";
    }),
);

rootFault(
  "the run directory becomes read-only while it runs",
  "joined, used and stopped all the same; a start is refused in words",
  (place) =>
    withDisk(place, async (inside, _run, enter) => {
      const instance = assertDone(await inside("--serve"));
      await enter("mount", "--bind", "-o", "ro", place.run, place.run); // over it: the daemon's log is open below
      assert.is(assertDone(await inside("--serve")), instance);
      const stopped = await inside("--stop");
      assert.is(stopped.stdout.toString(), "stopped 0\n", stopped.stderr);
      assert.is(place.daemons().length, 0);
      const served = await inside("--serve");
      assert.is(served.code, 73);
      assert.match(served.stderr, /read-only file system \(EROFS\)/);
      assert.is((await inside("--stop")).stdout.toString(), "none 0\n");
      await enter("umount", place.run);
      assert.is.not(assertDone(await inside("--serve")), instance);
      return `“${/error: ([^\n]*)/
        .exec(served.stderr)![1]!
        .replaceAll(place.run, "…")
        .replace(/claim\.\w+/, "claim")}”`;
    }),
);

// The log

fault("the log reaches 4 MiB", "it becomes “.1”, in the place of the one before, and is begun anew", async (place) => {
  mkdirSync(place.run, { mode: 0o700 });
  writeFileSync(`${place.log}.1`, "older");
  writeFileSync(place.log, "old\n".repeat((4 << 20) / 4 + 1), { mode: 0o600 });
  assertDone(await place.serve());
  assert.match(readFileSync(`${place.log}.1`, "utf8").slice(0, 10), /^old\nold\n/);
  assert.match(readFileSync(place.log, "utf8"), /Remote server listening on/);
  assert.equal(
    readdirSync(place.run).filter((name) => name.includes("log")),
    ["remote-server.log", "remote-server.log.1"],
  );
  assert.is(statSync(place.log).mode & 0o777, 0o600);
  return "so; two files, no more";
});

fault(
  "a client with control characters in what it sends, and a wrong token",
  "none of them in the log; no token, no payload",
  async (place) => {
    assertDone(await place.serve("secret-token"));
    const wire = await place.open("secret-token");
    await wire.request("process.spawn", {
      id: "a\x1b[31m\nforged line\u202e",
      command: "/bin/sh",
      args: ["-c", "cat", "secret-argument"],
      env: { PASSWORD: "secret-variable" },
    });
    await wire.request("process.stdin", {
      id: "a\x1b[31m\nforged line\u202e",
      data: Buffer.from("secret-input").toString("base64"),
      end: true,
    });
    await wire.message(({ stream }) => stream === "exit");
    const refusals = [
      place.ask("server.ping", {}, "secret-wrong\x07"),
      place.ask("no\x1bsuch.method", {}, "secret-token"),
    ].map((asked) =>
      asked.then(
        () => "",
        (error: Error) => error.message,
      ),
    );
    assert.match((await Promise.all(refusals)).join("; "), /^Unauthorized.*; Unknown/);
    await place.stop("--now");
    const log = readFileSync(place.log, "utf8");
    assert.not.match(log, /secret|c2VjcmV0/);
    assert.not.match(log, /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u202e]/);
    assert.ok(
      log.split("\n").every((line) => line === "" || /^\d{4}-\d\d-\d\dT/.test(line)),
      "a line is not the daemon's own",
    );
    assert.match(log, /Unauthorized request on c\d+/);
    return "so";
  },
);

races.run();
faults.run();
