// time limit: 120 s; long
/** What a dead daemon has left, taken up by the next; from outside, by the built file. */

import type { ChildProcess } from "node:child_process";
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { leaveAll, takeUp } from "../adoption.ts";
import { appendJournal, readJournal } from "../kept.ts";
import type { Processes } from "../processes.ts";
import { createProcesses, endAll, processMethods } from "../processes.ts";
import { engineSoon } from "../pty.ts";
import { identify, livingProcesses, readText } from "../record.ts";
import type { TestDaemon, Wire } from "./daemon.ts";
import {
  eventually,
  holdfast,
  isAlive,
  isRoot,
  lanesOf,
  namesBelow,
  openSocket,
  removeAll,
  sideBySide,
  sleep,
  stopWhen,
  withDaemon,
} from "./daemon.ts";

const test = suite("what a dead daemon has left");
const tests = sideBySide(test, lanesOf(2));

interface Left {
  daemon: TestDaemon;
  /** Of what is kept. */
  held: string;
  wire: Wire;
  /** /bin/sh -c. */
  start(id: string, script: string, more?: object): Promise<number>;
  /** The directory of a child. */
  directoryOf(id: string): string;
  /**
   * @param loud Where it says something all the time, but may not on a busy machine: in a moment when it has been read since all that was read is safe.
   * Or what is to be so in that moment.
   */
  kill(loud?: string | (() => boolean)): Promise<void>;
  /** Starts the next daemon. */
  serve(...args: string[]): Promise<void>;
  stop(...args: string[]): Promise<string>;
  entry(id: string): Promise<any>;
  /** All messages of a child from the beginning, until its exit or so many. */
  replay(id: string, count?: number): Promise<any[]>;
  text(id: string, stream?: string): Promise<string>;
}

function leaves(name: string, run: (left: Left) => Promise<void>, env: NodeJS.ProcessEnv = {}): void {
  tests(name, () =>
    withDaemon(async (daemon) => {
      const { directory, socket, token } = daemon;
      const tokenFile = join(directory, "tests.token");
      writeFileSync(tokenFile, token, { mode: 0o600 });
      const held = `${socket}.held`;
      const about = (path: string) => JSON.parse(readFileSync(join(held, path, "about"), "utf8"));
      const left: Left = {
        ...{ daemon, held, wire: openSocket(daemon).wire },
        start: async (id, script, more = {}) =>
          (await left.wire.request("process.spawn", { id, command: "/bin/sh", args: ["-c", script], ...more })).pid,
        directoryOf: (id) =>
          join(held, readdirSync(held).find((path) => existsSync(join(held, path, "about")) && about(path).id === id)!),
        async kill(loud) {
          const { pid } = await left.wire.request("server.status");
          const isRead = (id: string): boolean => statSync(join(left.directoryOf(id), "out")).atimeMs > 0;
          if (typeof loud === "string") await stopWhen(pid, () => isRead(loud), "something is read");
          if (typeof loud === "function") await stopWhen(pid, loud, "the moment");
          process.kill(pid, "SIGKILL");
          await left.wire.closed;
          await eventually(() => !isAlive(pid), "the daemon is dead");
        },
        async serve(...args) {
          const { code, stderr } = await holdfast(["--serve", "--socket", socket, "--token-file", tokenFile, ...args], {
            env,
          });
          assert.is(code, 0, stderr);
          left.wire = openSocket(daemon).wire;
        },
        async stop(...args) {
          const { stdout, stderr, code } = await holdfast(["--stop", "--socket", socket, ...args]);
          assert.is(code, 0, stderr);
          return stdout.toString().trim();
        },
        entry: async (id) => (await left.wire.request("process.list")).processes.find((entry: any) => entry.id === id),
        async replay(id, count = Infinity) {
          const { wire } = openSocket(daemon);
          await wire.request("process.reattach", { id, fromSeq: 0 });
          const isThere = () => wire.messages.length >= count || wire.messages.some(({ stream }) => stream === "exit");
          await eventually(isThere, `the messages of ${id}`);
          return wire.messages;
        },
        text: async (id, stream = "stdout") =>
          (await left.replay(id))
            .filter((message) => message.stream === stream)
            .map(({ data }) => Buffer.from(data, "base64").toString())
            .join(""),
      };
      await run(left);
    }, env),
  );
}

/** Pids of the holders and keepers of a daemon, by what /proc says. */
function holdersIn(held: string): number[] {
  const isHolder = (pid: number): boolean =>
    isAlive(pid) && (readText(`/proc/${pid}/cmdline`) ?? "").includes(`${held}/`);
  return readdirSync("/proc")
    .map(Number)
    .filter((pid) => pid > 0 && isHolder(pid));
}

leaves("has its id, pid, seqs, stdin and exit code, and what it said before and since", async (left) => {
  const pid = await left.start("a", "echo before; read x; echo $x; read x; echo $x; exit 7");
  await eventually(async () => (await left.entry("a")).lastSeq === 1, "its first line");
  const write = (data: string, offset: number, end = false) =>
    left.wire.request("process.stdin", { id: "a", data: Buffer.from(data).toString("base64"), offset, end });
  assert.is((await write("one\n", 0)).applied, 4);
  await eventually(async () => (await left.entry("a")).lastSeq === 2, "its second line");
  const directory = left.directoryOf("a");
  const isSettled = () => statSync(join(directory, "out")).atimeMs === 0;
  await eventually(isSettled, "it is quiet, and known to be");
  await left.kill();
  await left.serve();
  const entry = await left.entry("a");
  assert.equal([entry.pid, entry.running, entry.firstSeq, entry.lastSeq, entry.stdinApplied], [pid, true, 1, 2, 4]);
  assert.equal(await write("one\n", 0), { success: true, applied: 4, duplicate: true });
  await write("two\n", 4);
  assert.is(await left.text("a"), "before\none\ntwo\n");
  const messages = await left.replay("a");
  assert.equal(
    messages.map(({ seq, stream }) => [seq, stream]),
    [
      [1, "stdout"],
      [2, "stdout"],
      [3, "stdout"],
      [4, "exit"],
    ],
  );
  assert.is(messages.at(-1).exitCode, 7);
});
leaves("has what it said, and how it ended, while there was no daemon", async (left) => {
  const go = join(left.daemon.directory, "go");
  await left.start("code", `while [ ! -e ${go} ]; do sleep 0.1; done; echo late; echo err >&2; exit 143`);
  await left.start("signal", `while [ ! -e ${go} ]; do sleep 0.1; done; kill -SEGV $$`);
  await sleep(100);
  await left.kill();
  const pids = ["code", "signal"].map(
    (id) => JSON.parse(readFileSync(join(left.directoryOf(id), "about"), "utf8")).pid,
  );
  writeFileSync(go, "");
  await eventually(() => !pids.some(isAlive), "they have ended");
  await left.serve();
  assert.is(await left.text("code"), "late\n");
  assert.is(await left.text("code", "stderr"), "err\n");
  const [code, signal] = await Promise.all(["code", "signal"].map((id) => left.replay(id)));
  assert.equal([code!.at(-1).exitCode, code!.at(-1).signal], [143, undefined]);
  assert.equal([signal!.at(-1).exitCode, signal!.at(-1).signal], [139, "SIGSEGV"]);
});
/** Which of three has a gap named, when their daemon was killed while one of them was loud, which had been quiet before. */
async function gapsOf(left: Left, isNoted = true): Promise<string[]> {
  await left.start("quiet", "echo 1; sleep 0.1; echo 2; read x");
  await left.start("silent", "read x");
  await left.start("loud", "echo 1; sleep 0.1; echo 2; sleep 0.1; while :; do echo x; sleep 0.001; done");
  await eventually(async () => (await left.entry("loud")).lastSeq > 100, "it is loud");
  const isSettled = async () =>
    (await left.entry("quiet")).bytes === 4 && statSync(join(left.directoryOf("quiet"), "out")).atimeMs === 0;
  await eventually(isSettled, "the other is quiet, and known to be");
  await left.kill(isNoted ? "loud" : undefined);
  await left.serve();
  const named: string[] = [];
  for (const id of ["quiet", "silent", "loud"]) {
    await left.wire.request("process.kill", { id });
    const gaps = (await left.replay(id)).filter(({ stream }) => stream === "gap");
    for (const { maxBytes } of gaps) assert.ok(maxBytes > 0 && maxBytes <= 131_072, `${id}: ${maxBytes}`);
    if (gaps.length > 0) named.push(id);
  }
  return named;
}

leaves("names what may be missing of a child that was not quiet, and only of that", async (left) => {
  assert.equal(await gapsOf(left), ["loud"]);
});

leaves(
  "names what may be missing in the middle of one large write, of which the file tells nothing yet",
  async (left) => {
    await left.stop("--now");
    await left.serve("--spool", "512M"); // of all that it says nothing is dropped: it may say hundreds of MiB before the next one is asked
    await left.start("a", "echo 1; sleep 0.2; exec dd if=/dev/zero bs=256M count=1 iflag=fullblock status=none");
    await eventually(async () => (await left.entry("a")).bytes > 1 << 20, "its write has begun");
    const { lastSeq: fromSeq } = await left.entry("a");
    await left.kill("a");
    await left.serve("--spool", "512M");
    await left.wire.request("process.reattach", { id: "a", fromSeq });
    const gap = await left.wire.message(({ stream }) => stream === "gap" || stream === "exit");
    assert.is(gap.stream, "gap");
  },
);

leaves("names what may be missing of a grandchild that has its pipes, and only then", async (left) => {
  await left.start("loud", "while :; do echo x; sleep 0.001; done & exit 3");
  await left.start("quiet", "sleep 100 & exit 3");
  await eventually(async () => (await left.entry("loud")).lastSeq > 100, "it is loud");
  await eventually(
    async () => !(await left.entry("loud")).running && !(await left.entry("quiet")).running,
    "both ends",
  );
  await left.kill("loud");
  await left.serve();
  const streamsOf = async (id: string): Promise<string[]> => {
    const said = await left.replay(id);
    const { wire } = openSocket(left.daemon);
    const { lastSeq } = await wire.request("process.reattach", { id, fromSeq: said.at(-1).seq });
    if (lastSeq > said.at(-1).seq) await wire.message(({ seq }) => seq === lastSeq);
    return [...new Set([...said, ...wire.messages].map(({ stream }) => stream))];
  };
  assert.equal(await streamsOf("loud"), ["stdout", "exit", "gap"]);
  assert.equal(await streamsOf("quiet"), ["exit"]);
});

const layers = "lowerdir=/mnt,upperdir=/mnt/upper,workdir=/mnt/work";
const tryMounts = `mount -t tmpfs none /mnt && mkdir /mnt/upper /mnt/work && mount -t overlay -o ${layers} none /mnt/upper`;
const canMount = isRoot && spawnSync("unshare", ["--mount", "sh", "-c", tryMounts]).status === 0;
for (const [what, named, type, options] of [
  ["on an overlay, which notes no writing", ["loud"], "overlay", "relatime"],
  ["where no reading is noted: of all that run", ["quiet", "silent", "loud"], "tmpfs", "mode=700,noatime"],
] as const)
  (canMount ? leaves : (name: string) => test.skip(name))(`names what may be missing ${what}`, async (left) => {
    const base = join(left.daemon.directory, "base");
    const paths = ["lower", "upper", "work"].map((name) => join(base, name));
    mkdirSync(left.held, { mode: 0o700 });
    mkdirSync(base);
    execFileSync("mount", ["-t", "tmpfs", "none", base]);
    for (const path of paths) mkdirSync(path, { mode: 0o700 });
    const [lower, upper, work] = paths;
    try {
      const more = type === "overlay" ? `,lowerdir=${lower},upperdir=${upper},workdir=${work}` : "";
      execFileSync("mount", ["-t", type, "-o", `${options}${more}`, "none", left.held]);
      assert.equal(await gapsOf(left, options === "relatime"), named);
      const pid = await left.start("left", "echo 1; read x");
      await eventually(async () => (await left.entry("left")).lastSeq === 1, "its line");
      await left.serve("--replace");
      await left.serve("--replace");
      assert.equal([(await left.entry("left")).pid, (await left.entry("left")).lastSeq], [pid, 1]);
      await left.stop("--now");
    } finally {
      for (const path of [left.held, base]) spawnSync("umount", ["--lazy", path]);
    }
  });
leaves("has what was accepted of a stdin that is not read, each byte once", async (left) => {
  const go = join(left.daemon.directory, "go");
  await left.start("a", `while [ ! -e ${go} ]; do sleep 0.1; done; sha256sum; wc -c </dev/null`);
  const bytes = Buffer.alloc(3_000_000, "0123456789\n");
  for (let at = 0; at < bytes.length; at += 500_000) {
    const data = bytes.subarray(at, at + 500_000).toString("base64");
    await left.wire.request("process.stdin", { id: "a", data, offset: at, end: at + 500_000 === bytes.length });
  }
  const journal = join(left.directoryOf("a"), "stdin");
  assert.is(statSync(journal).mode & 0o777, 0o600);
  assert.ok(statSync(journal).size > 2_900_000, `${statSync(journal).size} bytes`);
  const mark = join(left.directoryOf("a"), "mark");
  const isWriting = (): boolean => readFileSync(mark).readDoubleBE(24) !== 0; // its intent: one that dies just then has that named, as in the next test
  for (let round = 0; round < 3; round++) {
    await left.kill(() => !isWriting());
    await left.serve();
    const { stdinApplied, stdinUnsure } = await left.entry("a");
    assert.equal([stdinApplied, stdinUnsure], [bytes.length, undefined]);
  }
  writeFileSync(go, "");
  assert.match(await left.text("a"), createHash("sha256").update(bytes).digest("hex"));
  assert.is(statSync(journal).size, 0, "what was delivered is not kept");
});
leaves("has what was accepted of a stdin; what a daemon died writing is named, and not sent twice", async (left) => {
  const go = join(left.daemon.directory, "go");
  await left.start("a", `while [ ! -e ${go} ]; do sleep 0.1; done; wc -c`);
  const data = Buffer.alloc(300_000, "x").toString("base64");
  await left.wire.request("process.stdin", { id: "a", data, end: true });
  const directory = left.directoryOf("a");
  await left.kill();
  await sleep(50); // a pipe that has not been written to since may have been, all the same
  const mark = readFileSync(join(directory, "mark"));
  const delivered = mark.readDoubleBE(16);
  mark.writeDoubleBE(1000, 24); // its intent
  writeFileSync(join(directory, "mark"), mark);
  await left.serve();
  const { stdinApplied, stdinUnsure } = await left.wire.request("process.reattach", { id: "a", fromSeq: 0 });
  assert.is(stdinApplied, 300_000);
  assert.equal(stdinUnsure, { from: delivered, to: delivered + 1000 });
  writeFileSync(go, "");
  assert.is(Number(await left.text("a")), 299_000);
});
leaves("writes nothing of a stdin that is taken at once", async (left) => {
  await left.start("a", "cat >/dev/null; sleep 100");
  await left.wire.request("process.stdin", {
    id: "a",
    data: Buffer.from("a password\n").toString("base64"),
    end: true,
  });
  for (const file of readdirSync(left.directoryOf("a"))) {
    const path = join(left.directoryOf("a"), file);
    if (lstatSync(path).isFile()) assert.not.ok(readFileSync(path).includes("password"), file);
  }
});
leaves(
  "is listed with output and exit when it had ended before, also after --stop and --serve; and forgotten",
  async (left) => {
    await left.start("a", "echo said; exit 3");
    await left.start("b", "echo said; sleep 100");
    await eventually(async () => !(await left.entry("a")).running && (await left.entry("b")).lastSeq > 0, "its end");
    assert.is(await left.stop("--now"), "stopped 1");
    assert.is(await left.stop(), "none 0");
    await left.serve();
    assert.is(await left.text("a"), "said\n");
    assert.equal([(await left.entry("a")).exitCode, (await left.entry("b")).signal], [3, "SIGTERM"]);
    await left.wire.request("process.forget", { id: "a" });
    assert.is(await left.entry("a"), undefined);
    await left.stop("--now");
    await left.serve();
    assert.equal([(await left.entry("a")) === undefined, (await left.entry("b")).running], [true, false]);
    await left.stop("--forget");
    await eventually(() => !existsSync(left.held), "nothing is kept");
    await left.serve();
    assert.equal((await left.wire.request("process.list")).processes, []);
  },
);
leaves("has all of 40 MiB that it said while nobody was connected, through --stop and --serve", async (left) => {
  await left.start("a", "head -c 41943040 /dev/zero | tr '\\0' x; exit 9");
  left.wire = openSocket(left.daemon).wire;
  await eventually(async () => !(await left.entry("a")).running, "its end", 60_000);
  // six days later
  const path = join(left.directoryOf("a"), "exit");
  await left.stop("--now");
  const kept = JSON.parse(readFileSync(path, "utf8"));
  writeFileSync(path, JSON.stringify({ ...kept, endedAt: kept.endedAt - 6 * 86_400_000 }));
  await left.serve();
  const { wire } = openSocket(left.daemon);
  let bytes = 0;
  let next = 1;
  let exit: any;
  wire.onMessage = ({ seq, stream, data, exitCode }) => {
    assert.is(seq, next++);
    if (stream === "exit") exit = exitCode;
    else {
      const chunk = Buffer.from(data, "base64");
      assert.ok(chunk.equals(Buffer.alloc(chunk.length, "x")));
      bytes += chunk.length;
    }
    return true;
  };
  const { firstSeq } = await wire.request("process.reattach", { id: "a", fromSeq: 0 });
  await eventually(() => exit !== undefined, "its exit", 30_000);
  assert.equal([firstSeq, bytes, exit], [1, 41_943_040, 9]);
});
leaves("is ended by --stop, with its holder and its FIFOs, and counted; its exit is kept", async (left) => {
  const pids = [
    await left.start("a", "echo a; sleep 100"),
    await left.start("b", "trap '' TERM; echo b; sleep 100 & wait"),
  ];
  await eventually(async () => (await left.entry("b")).lastSeq > 0 && (await left.entry("a")).lastSeq > 0, "they run");
  const parents = pids.map((pid) => Number(readFileSync(`/proc/${pid}/stat`, "utf8").split(" ")[3]));
  await left.kill();
  const refused = await holdfast(["--stop", "--if-idle", "--socket", left.daemon.socket]);
  assert.is(refused.code, 75, refused.stderr);
  assert.match(refused.stderr, /a dead daemon left 2 of its processes alive, and it/);
  assert.ok(pids.every(isAlive));
  assert.is(await left.stop(), "stopped 2");
  assert.equal([...pids, ...parents].filter(isAlive), []);
  const fifos = namesBelow(left.held).filter((name) => lstatSync(join(left.held, name)).isFIFO());
  assert.equal(fifos, []);
  await left.serve();
  const ends = await Promise.all(["a", "b"].map(async (id) => (await left.entry(id)).signal));
  assert.equal(ends, ["SIGTERM", "SIGKILL"]);
});
for (const [what, words, isEnded] of [
  ["its group", "", true],
  ["another group", "setsid ", false],
] as const)
  leaves(`has no holder after --stop, forgotten while a grandchild in ${what} had its pipes`, async (left) => {
    await left.start("a", `${words}sleep 100 & echo $!`);
    await eventually(async () => (await left.entry("a")).lastSeq > 1, "its exit");
    const grandchild = Number(await left.text("a"));
    const holders = holdersIn(left.held);
    assert.ok(isAlive(grandchild) && holders.length > 0);
    await left.wire.request("process.forget", { id: "a" });
    await left.wire.request("process.spawn", { id: "next", command: "true" });
    await eventually(async () => !(await left.entry("next")).running, "the end of the next");
    assert.is(await left.stop("--now"), "stopped 0");
    await eventually(() => !holders.some(isAlive), "its holder has ended");
    assert.is(!isAlive(grandchild), isEnded);
    if (!isEnded) process.kill(grandchild, "SIGKILL");
  });
for (const isReplaced of [false, true])
  leaves(
    `stays forgotten when it was ${isReplaced ? "replaced" : "killed"}, and has no holder when the grandchild that has its pipes has ended`,
    async (left) => {
      await left.start("a", "echo secret; sleep 100 & echo $! >&2");
      await eventually(async () => (await left.entry("a")).lastSeq > 2, "its exit");
      const grandchild = Number(await left.text("a", "stderr"));
      const holders = holdersIn(left.held);
      const directory = left.directoryOf("a");
      await left.wire.request("process.forget", { id: "a" });
      for (const name of readdirSync(directory)) {
        const path = join(directory, name);
        assert.not.ok(lstatSync(path).isFile() && name !== "about" && readFileSync(path).includes("secret"), name);
      }
      if (!isReplaced) await left.kill();
      await left.serve(...(isReplaced ? ["--replace"] : []));
      assert.equal((await left.wire.request("process.list")).processes, []);
      assert.ok(isAlive(grandchild) && holders.some(isAlive));
      process.kill(grandchild, "SIGKILL");
      await eventually(() => !holders.some(isAlive) && !existsSync(directory), "its holder has ended");
    },
  );
leaves("has no holder when its grandchild has ended, forgotten before", async (left) => {
  await left.start("a", "setsid sleep 100 & echo $!");
  await eventually(async () => (await left.entry("a")).lastSeq > 1, "its exit");
  const grandchild = Number(await left.text("a"));
  const holders = holdersIn(left.held);
  await left.wire.request("process.spawn", { id: "a", command: "true" });
  assert.ok(holders.some(isAlive), "what has the pipes lives");
  process.kill(grandchild, "SIGKILL");
  await eventually(() => !holders.some(isAlive), "its holder has ended");
});
leaves("has an end that is not known, and its output, when the host was booted since", async (left) => {
  const pid = await left.start("a", "echo said; sleep 100");
  await eventually(async () => (await left.entry("a")).lastSeq > 0, "it runs");
  await left.kill();
  const path = join(left.directoryOf("a"), "about");
  const about = JSON.parse(readFileSync(path, "utf8"));
  writeFileSync(path, JSON.stringify({ ...about, holder: { ...about.holder, bootId: "another" } }));
  await left.serve();
  const [said, gap, exit] = await left.replay("a");
  assert.equal([said.stream, gap.stream, exit.stream], ["stdout", "gap", "exit"]);
  assert.equal([exit.exitCode, exit.unknown], [-1, "the host was booted again"]);
  assert.equal((await left.wire.request("process.kill", { id: "a", signal: "KILL" })).alreadyExited, true);
  assert.ok(isAlive(pid), "a pid of another boot is nobody of ours");
  process.kill(-pid, "SIGKILL");
  process.kill(about.holder.holder.pid, "SIGKILL");
});
leaves("that has plain pipes is found, and signalled while it is provably the same", async (left) => {
  await left.start("a", "trap '' PIPE; echo said; while :; do sleep 0.1; done");
  await eventually(async () => (await left.entry("a")).lastSeq > 0, "it runs");
  const path = join(left.directoryOf("a"), "about");
  const { holder, ...about } = JSON.parse(readFileSync(path, "utf8"));
  await left.kill();
  writeFileSync(path, JSON.stringify(about)); // as where there are no holders
  await left.serve();
  const entry = await left.entry("a");
  assert.equal([entry.running, entry.pid], [true, about.pid]);
  assert.equal(await left.wire.request("process.killAndWait", { id: "a", signal: "KILL" }), {
    found: true,
    died: true,
  });
  await eventually(async () => !(await left.entry("a")).running, "its exit is told");
  assert.match((await left.entry("a")).unknown, "nobody was told");
  for (const pid of [holder.keeper.pid, holder.holder.pid]) process.kill(pid, "SIGKILL");
});
for (const [what, file, change, words] of [
  [
    "another format",
    "about",
    (text: string) => text.replace('"format":1', '"format":2'),
    /its format is 2, this version knows 1/,
  ],
  ["an about that is cut", "about", (text: string) => text.slice(0, 50), /about" *: it is damaged|it is damaged/],
  ["an about of somebody's own making", "about", () => '{"format":1,"id":7}', /its about is damaged/],
  [
    "a holder that is none",
    "about",
    (text: string) => text.replace(/"holder":\{"pid":\d+/, '"holder":{"pid":1'),
    /holder/,
  ],
] as const) {
  leaves(`with ${what} is left alone, and said; the others are taken up`, async (left) => {
    const pid = await left.start("odd", "read x");
    await left.start("other", "read x");
    const path = join(left.directoryOf("odd"), file);
    const { holder } = JSON.parse(readFileSync(path, "utf8"));
    await left.kill();
    const text = change(readFileSync(path, "utf8"));
    writeFileSync(path, text);
    await left.serve();
    assert.equal([(await left.entry("odd"))?.id, (await left.entry("other")).running], [undefined, true]);
    assert.ok(isAlive(pid), "nobody is signalled");
    assert.match(left.daemon.log(), words);
    assert.is(readFileSync(path, "utf8"), text);
    process.kill(-pid, "SIGKILL");
    for (const known of [holder.keeper, holder.holder]) process.kill(known.pid, "SIGKILL");
  });
}
leaves("with a damaged mark, journal and exit has what is left, and a reason in words", async (left) => {
  await left.start("mark", "echo said; read x");
  await left.start("exit", "echo said; exit 4");
  await eventually(async () => !(await left.entry("exit")).running && (await left.entry("mark")).lastSeq > 0, "both");
  const [mark, exit] = [left.directoryOf("mark"), left.directoryOf("exit")];
  await left.kill();
  truncateSync(join(mark, "mark"), 10);
  writeFileSync(join(mark, "stdin"), "x");
  writeFileSync(join(exit, "exit"), "{");
  await left.serve();
  assert.is((await left.entry("exit")).exitCode, 4, "it is in the output, too");
  const { message } = await left.wire.request("process.stdin", { id: "mark", data: "eA==" }).catch((error) => error);
  assert.match(message, "closed");
  await left.wire.request("process.kill", { id: "mark" });
  assert.is(await left.text("mark"), "said\n");
});
/** Of a file, what nobody may have changed. */
function fingerprint(path: string): string {
  const { ino, mode, uid, size } = lstatSync(path);
  return [path, ino, mode.toString(8), uid, size].join(" ");
}

const nobody = 65_534;
/** In one child's directory, as another user or an open parent would have it; and what is said of it. Without words it is taken up, and the file is not believed. */
const planted: [id: string, plant: (directory: string, precious: string) => void, says?: RegExp][] = [
  ["directory-of-another", (directory) => chownSync(directory, nobody, nobody), /is a directory of user 65534/],
  ["directory-for-all", (directory) => chmodSync(directory, 0o777), /is a directory of user 0, mode 777/],
  ["about-of-another", (directory) => chownSync(join(directory, "about"), nobody, nobody), /it belongs to user 65534/],
  ["about-for-all", (directory) => chmodSync(join(directory, "about"), 0o666), /its mode is 666, others must not/],
  [
    "about-is-a-link",
    (directory) => replaceBy(directory, "about", (path) => symlinkSync(`${path}.away`, path)),
    /it is a symbolic link/,
  ],
  [
    "about-is-a-fifo",
    (directory) => replaceBy(directory, "about", (path) => execFileSync("mkfifo", [path])),
    /is a FIFO/,
  ],
  ["exit-of-another", (directory) => plantExit(directory)],
  ["exit-is-a-link", (directory, precious) => symlinkSync(precious, join(directory, "exit"))],
  ["mark-is-a-link", (directory, precious) => replaceBy(directory, "mark", (path) => symlinkSync(precious, path))],
  ["mark-is-a-fifo", (directory) => replaceBy(directory, "mark", (path) => execFileSync("mkfifo", [path]))],
  [
    "segment-is-a-link",
    (directory, precious) => replaceBy(directory, "0", (path) => symlinkSync(precious, path)),
    /Cannot take up "[^"]*": too many symbolic links/,
  ],
  [
    "segment-is-a-fifo",
    (directory) => replaceBy(directory, "0", (path) => execFileSync("mkfifo", [path])),
    /\/0" *: it is a FIFO, a regular file/,
  ],
  ["stdin-is-a-link", (directory, precious) => replaceBy(directory, "stdin", (path) => symlinkSync(precious, path))],
];

function replaceBy(directory: string, name: string, make: (path: string) => void): void {
  const path = join(directory, name);
  if (existsSync(path)) renameSync(path, `${path}.away`);
  make(path);
}

function plantExit(directory: string): void {
  const path = join(directory, "exit");
  writeFileSync(path, JSON.stringify({ exit: { exitCode: 0 }, endedAt: Date.now() }));
  chownSync(path, nobody, nobody);
}

const asRoot = isRoot ? leaves : (name: string) => test.skip(name);

asRoot(
  "is not taken from another user, who has planted or linked each of its names, and nothing is written there",
  async (left) => {
    const precious = join(left.daemon.directory, "precious");
    writeFileSync(precious, "x".repeat(5000), { mode: 0o600 });
    const ids = [...planted.map(([id]) => id), "other"];
    const pids = await Promise.all(ids.map((id) => left.start(id, "echo said; read x; echo $x")));
    await eventually(
      async () => (await left.wire.request("process.list")).processes.every((it: any) => it.lastSeq > 0),
      "their words",
    );
    const directories = ids.map((id) => left.directoryOf(id));
    const known = directories.map((directory) => JSON.parse(readFileSync(join(directory, "about"), "utf8")).holder);
    await left.kill();
    for (const [at, [, plant]] of planted.entries()) plant(directories[at]!, precious);
    const refused = planted.flatMap(([, , says], at) =>
      says ? [directories[at]!, join(directories[at]!, "about")] : [],
    );
    const before = [precious, ...refused].map(fingerprint);
    await left.serve();
    const { processes } = await left.wire.request("process.list");
    const running = processes.filter((it: any) => it.running).map(({ id }: any) => id);
    const expected = ids.filter((_, at) => !planted[at]?.[2]);
    assert.equal(running.sort(), expected.sort());
    for (const [, , says] of planted) if (says) assert.match(left.daemon.log(), says);
    for (const id of expected) {
      const data = Buffer.from("more\n").toString("base64");
      await left.wire.request("process.stdin", { id, data }).catch(() => {}); // what its mark says is not believed
      await left.wire.request("process.reattach", { id, fromSeq: 0 });
    }
    assert.ok(
      pids.every((pid, at) => isAlive(pid) || expected.includes(ids[at]!)),
      "nobody is signalled",
    );
    assert.equal([precious, ...refused].map(fingerprint), before);
    assert.is(readFileSync(precious, "utf8"), "x".repeat(5000));
    await left.stop("--now");
    assert.equal([precious, ...refused].map(fingerprint), before);
    for (const { child, keeper, holder } of known)
      for (const { pid } of [child, keeper, holder]) if (isAlive(pid)) process.kill(pid, "SIGKILL");
  },
);

/** At the name of all that is kept. */
const plantedHeld: [what: string, plant: (path: string) => void, says: RegExp][] = [
  [
    "another's directory",
    (path) => {
      mkdirSync(path, { mode: 0o700 });
      chownSync(path, nobody, nobody);
    },
    /a directory of user 65534/,
  ],
  [
    "a directory for all",
    (path) => {
      mkdirSync(path);
      chmodSync(path, 0o777);
    },
    /a directory of our own is needed, mode 700/,
  ],
  ["a file", (path) => writeFileSync(path, ""), /EEXIST|a regular file/],
  ["a FIFO", (path) => execFileSync("mkfifo", [path]), /EEXIST|a FIFO/],
  [
    "a link",
    (path) => {
      mkdirSync(`${path}-elsewhere`, { mode: 0o700 });
      symlinkSync(`${path}-elsewhere`, path);
    },
    /a symbolic link/,
  ],
];

asRoot("is not kept where another user has put something: processes run without, and it is said", async (left) => {
  for (const [what, plant, says] of plantedHeld) {
    await left.stop("--now", "--forget");
    rmSync(left.held, { recursive: true, force: true });
    plant(left.held);
    const before = fingerprint(left.held);
    await left.serve();
    await left.start("a", "echo said; exit 3");
    await eventually(async () => (await left.entry("a")).running === false, `${what}: its end`);
    assert.is(await left.text("a"), "said\n", what);
    assert.match((await left.wire.request("server.status")).notHeld, says, what);
    assert.is(fingerprint(left.held), before, what);
  }
  assert.equal(readdirSync(`${left.held}-elsewhere`), [], "nothing is written where a link leads");
  await left.stop("--now");
  rmSync(left.held, { recursive: true, force: true });
});

leaves(
  "cannot go on without its daemon where it is not held: --replace says so before, and --if-idle refuses",
  async (left) => {
    await left.stop("--now", "--forget");
    rmSync(left.held, { recursive: true, force: true });
    writeFileSync(left.held, ""); // no room for holders
    await left.serve();
    const pid = await left.start("a", "sleep 100");
    const { socket, tokenFile } = left.daemon;
    const replace = (...args: string[]) =>
      holdfast(["--serve", "--replace", "--socket", socket, "--token-file", tokenFile, ...args]);
    const { instanceId } = await left.wire.request("server.capabilities");
    const refused = await replace("--if-idle");
    const words = /1 process of the daemon \(version \S+\) cannot go on without it, and/;
    assert.equal([refused.code, words.test(refused.stderr), isAlive(pid)], [75, true, true], refused.stderr);
    assert.is((await left.wire.request("server.capabilities")).instanceId, instanceId);
    const done = await replace();
    assert.equal([done.code, words.test(done.stderr), isAlive(pid)], [0, true, false], done.stderr);
    rmSync(left.held);
  },
);
/** Of one daemon after another in one directory, without their names. */
async function withDirectory(run: (create: () => Processes) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-left-"));
  const all: Processes[] = [];
  const create = (): Processes => {
    const world = { env: { PATH: process.env.PATH }, log: () => {}, keptPath: join(directory, "held") };
    all.push(createProcesses(world));
    return all.at(-1)!;
  };
  try {
    await run(create);
  } finally {
    for (const one of all) await endAll(one, { graceMs: 0 });
    await removeAll(directory); // a holder may be just leaving
  }
}
const caller = {
  peer: { id: "test", unsentBytes: 0, send: () => true, onDrain: () => () => {}, onClose: () => () => {} },
  authenticated: true,
  known: true,
};
const call = async (processes: Processes, name: string, params: object): Promise<any> =>
  new Map(processMethods(processes)).get(`process.${name}`)!(params as never, caller);

tests(
  "takes nothing more from a request that comes when it is left: what it was given before is all that the next one knows",
  () =>
    withDirectory(async (create) => {
      const write = (processes: Processes, text: string) =>
        call(processes, "stdin", { id: "a", data: Buffer.from(text).toString("base64") });
      const first = create();
      await call(first, "spawn", { id: "a", command: "cat" });
      await write(first, "one\n");
      await leaveAll(first, { graceMs: 0 });
      await write(first, "late\n").catch(() => {});
      const next = create();
      takeUp(next);
      assert.is((await write(next, "two\n")).applied, 8);
    }),
);
tests("is not ended by the daemon that has left it, though that is told once more to end", () =>
  withDirectory(async (create) => {
    const first = create();
    const { pid } = await call(first, "spawn", { id: "a", command: "cat" });
    await leaveAll(first, { graceMs: 0 });
    const next = create();
    takeUp(next);
    await endAll(first, { graceMs: 0 }); // as by a second SIGTERM
    await sleep(100);
    const { processes } = await call(next, "list", {});
    assert.equal([processes[0].running, isAlive(pid)], [true, true]);
  }),
);
tests("is not what the next daemon itself begins, whatever that is asked before it has all", () =>
  withDirectory(async (create) => {
    const first = create();
    await call(first, "spawn", { id: "a", command: "cat" });
    const next = create();
    takeUp(next, 500);
    const asked = engineSoon(next); // as by server.capabilities
    await sleep(500); // it would have tried a holder by then
    await leaveAll(first, { graceMs: 0 });
    await next.waiting;
    const { pid } = await call(next, "spawn", { id: "b", command: "cat" });
    await sleep(1000); // what had been begun and not noted is ended by then
    const { processes } = await call(next, "list", {});
    assert.equal(
      [...processes.map(({ id, running }: any) => [id, running]), isAlive(pid)],
      [["a", true], ["b", true], true],
    );
    await asked;
    assert.ok(next.isHolding);
  }),
);
tests("is found by the next daemon also where nothing was there as that came, since the first was not gone yet", () =>
  withDirectory(async (create) => {
    const [first, next] = [create(), create()];
    takeUp(next);
    const { pid } = await call(first, "spawn", { id: "a", command: "cat" });
    await leaveAll(first, { graceMs: 0 });
    const list = async () => (await call(next, "list", {})).processes;
    await eventually(async () => (await list()).length === 1, "the next one has it");
    assert.equal([(await list())[0].pid, (await list())[0].running], [pid, true]);
  }),
);
tests("has nothing that was only begun: a trial, or what was made ahead", () =>
  withDirectory(async (create) => {
    for (const ms of [0, 30, 100, 300]) {
      const first = create();
      takeUp(first);
      void engineSoon(first);
      await sleep(ms);
      await endAll(first, { graceMs: 0 });
      const path = first.room.path!;
      assert.not.ok(existsSync(path), `after ${ms} ms`);
      const left = () =>
        livingProcesses()
          .map(({ pid }) => readText(`/proc/${pid}/cmdline`))
          .filter((words) => words?.includes(path));
      await eventually(() => left().length === 0, `the end of its trials, after ${ms} ms`, 5000).catch((error) =>
        assert.unreachable(`${error.message}: ${left()}`),
      ); // what a terminal's leader is told by its end
    }
  }),
);
tests("is not waited for by a daemon that is told to end before it has it", () =>
  withDirectory(async (create) => {
    const first = create();
    const { pid } = await call(first, "spawn", { id: "a", command: "cat" });
    const next = create();
    takeUp(next);
    void engineSoon(next);
    await sleep(100);
    const before = Date.now();
    await endAll(next, { graceMs: 0 });
    assert.ok(Date.now() - before < 5000, `it took ${Date.now() - before} ms`);
    assert.ok(isAlive(pid));
  }),
);

leaves("is not looked for where somebody has planted something", async (left) => {
  await left.start("a", "read x");
  const elsewhere = join(left.daemon.directory, "elsewhere");
  mkdirSync(elsewhere, { mode: 0o700 });
  writeFileSync(join(elsewhere, "keep"), "");
  await left.kill();
  symlinkSync(elsewhere, join(left.held, "abcdefghijkl"));
  mkdirSync(join(left.held, "bcdefghijklm"), { mode: 0o755 });
  writeFileSync(join(left.held, "bcdefghijklm", "keep"), "");
  await left.serve();
  assert.is((await left.entry("a")).running, true);
  assert.match(left.daemon.log(), /Not taken up: "[^"]*abcdefghijkl" is a symbolic link/);
  assert.match(left.daemon.log(), /Not taken up: "[^"]*bcdefghijklm" is a directory of user \d+, mode 755/);
  assert.ok(existsSync(join(elsewhere, "keep")) && existsSync(join(left.held, "bcdefghijklm", "keep")));
  await left.wire.request("process.kill", { id: "a" });
});
leaves("goes on over --replace: nothing is missing, nothing is said twice, nothing is named", async (left) => {
  const lines = "i=0; while :; do i=$((i+1)); echo $i; done";
  const pids = [await left.start("loud", lines), await left.start("echo", "cat"), await left.start("ended", "exit 5")];
  const bytes = Buffer.alloc(1_000_000, "0123456789\n");
  const data = bytes.toString("base64");
  assert.is(
    (await left.wire.request("process.stdin", { id: "echo", data, offset: 0, end: true })).applied,
    bytes.length,
  );
  for (let round = 0; round < 3; round++) {
    const { pid } = await left.wire.request("server.status");
    await left.serve("--replace");
    assert.not.ok(isAlive(pid));
    const entries = (await left.wire.request("process.list")).processes;
    assert.equal(
      entries.map((entry: any) => [entry.id, entry.pid]),
      ["loud", "echo", "ended"].map((id, at) => [id, pids[at]]),
    );
    assert.equal([entries[0].running, entries[2].exitCode], [true, 5]);
  }
  assert.ok(Buffer.from(await left.text("echo")).equals(bytes));
  await left.wire.request("process.kill", { id: "loud" });
  const messages = [...(await left.replay("loud")), ...(await left.replay("echo"))];
  assert.not.ok(messages.some(({ stream }) => stream === "gap"));
  const text = await left.text("loud");
  const numbers = text
    .slice(text.indexOf("\n") + 1, text.lastIndexOf("\n"))
    .split("\n")
    .map(Number);
  assert.ok(numbers.every((number, at) => number === numbers[0]! + at));
  assert.match(left.daemon.log(), "Ending: replaced");
});
/** As an old daemon has it that takes its time to leave: until it is asked to by SIGCONT; or killed. */
function ownedByAnother({ held }: Left, whenAsked: "exit" | "true"): ChildProcess {
  const owner = spawn("/bin/sh", ["-c", `trap ${whenAsked} CONT; while :; do sleep 0.1; done`]);
  writeFileSync(join(held, "owner"), JSON.stringify({ id: "old", ...identify(owner.pid) }));
  return owner;
}
leaves("is waited for by a --stop, too", async (left) => {
  const pid = await left.start("a", "sleep 1000");
  await left.kill();
  ownedByAnother(left, "exit");
  assert.is(await left.stop(), "stopped 1");
  assert.not.ok(isAlive(pid));
});
leaves("is waited for by all who ask the next daemon for it, which has the name before that has gone", async (left) => {
  const { socket, tokenFile } = left.daemon;
  const pid = await left.start("a", "sleep 1000");
  await left.kill();
  const record = () => JSON.parse(readFileSync(`${socket}.record`, "utf8"));
  const { instance } = record();
  const owner = ownedByAnother(left, "true");
  const serving = holdfast(["--serve", "--socket", socket, "--token-file", tokenFile]);
  await eventually(() => record().instance !== instance && existsSync(socket), "the next daemon has the name");
  const { wire } = openSocket(left.daemon);
  const answers: string[] = [];
  const ask = async (method: string, params: object = {}): Promise<any> => {
    const answer = await wire.request(method, params).catch((error) => error);
    answers.push(method);
    return answer;
  };
  const asked = [
    ask("server.shutdown", { ifIdle: true }),
    ask("process.list"),
    ask("process.reattach", { id: "a" }),
    ask("process.spawn", { id: "a", command: "true" }),
    ask("server.status"),
  ];
  await ask("server.capabilities");
  assert.equal(answers, ["server.capabilities"], "before it has the work");
  owner.kill("SIGKILL");
  const [stop, list, stream, spawned, status] = await Promise.all(asked);
  assert.match(stop.message, /1 process is alive, and it was to be stopped only if idle/);
  assert.equal([list.processes[0].id, list.processes[0].pid, list.processes[0].running], ["a", pid, true]);
  assert.equal([stream.found, stream.running], [true, true]);
  assert.match(spawned.message, /"a"/);
  assert.is(status.processes[0].pid, pid);
  assert.ok(isAlive(pid));
  await serving;
});
leaves("is not taken up by a second daemon: what is kept is one's at a time", async (left) => {
  const pid = await left.start("a", "while :; do echo x; sleep 0.1; done");
  const record = `${left.daemon.socket}.record`;
  const { pid: daemon } = await left.wire.request("server.status");
  renameSync(record, `${record}.away`);
  const other = `${left.daemon.socket}2`;
  const tokenFile = join(left.daemon.directory, "tests.token");
  // a socket of its own, and the first one's directory
  symlinkSync(left.held, `${other}.held`);
  const { code } = await holdfast(["--serve", "--socket", other, "--token-file", tokenFile]);
  assert.is(code, 0);
  const { stdout } = await holdfast(["--call", "process.list", "--socket", other, "--token-file", tokenFile]);
  assert.equal(JSON.parse(stdout.toString()).processes, []);
  await holdfast(["--stop", "--now", "--socket", other]);
  renameSync(`${record}.away`, record);
  assert.ok(isAlive(pid) && isAlive(daemon));
});
test.run();

const journals = suite("the journal of a stdin");

for (const [what, from] of [
  ["goes on where it ended", 103],
  ["begins anew where more than it has was delivered", 150],
] as const) {
  journals(what, () => {
    const directory = mkdtempSync(join(tmpdir(), "holdfast-journal-"));
    try {
      appendJournal(directory, Buffer.from("old"), 100);
      appendJournal(directory, Buffer.from("next"), from);
      assert.is(readJournal(directory, from, from + 4).toString(), "next");
      assert.is(readJournal(directory, 100, 103).toString(), from === 103 ? "old" : "");
    } finally {
      rmSync(directory, { recursive: true });
    }
  });
}
journals.run();
