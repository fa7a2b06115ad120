// time limit: 120 s; long
/**
 * Held children, on each shell that a host may have as its sh: read to their ends by the one that started them, and by another after its death.
 *
 * Run with arguments, this file is the daemon of the second: it starts children, says what it knows of them, and waits to be killed.
 */

import { spawn, spawnSync } from "node:child_process";
import {
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { reasonOf, safely } from "../failure.ts";
import type { Holders, HolderTools } from "../holders.ts";
import {
  adoptHeld,
  closeHolders,
  droppedNames,
  findTools,
  probeHolders,
  startHeld,
  sweepHeld,
  takeDirectory,
} from "../holders.ts";
import { soon } from "../record.ts";
import type { Ended, HolderRecord, Running, Start } from "../running.ts";
import { dismissHolder, knownOf } from "../running.ts";
import { isAlive, isRoot, removeAll, statOf } from "./daemon.ts";

type Shell = [name: string, words: string[]];

const shells: Shell[] = [
  ["dash", ["/bin/dash"]],
  ["bash", ["/bin/bash", "-p"]],
  ["busybox ash", ["/bin/busybox", "ash"]],
];

const thisFile = fileURLToPath(import.meta.url);
const tools = findTools(process.env) as HolderTools;

/** What one child shows to the one who reads it. */
interface Seen {
  running: Running;
  directory: string;
  stdout: string;
  stderr: string;
  how: Ended | undefined;
  isClosed: boolean;
  writable: number;
}

function see(running: Running, directory: string): Seen {
  const seen: Seen = { running, directory, stdout: "", stderr: "", how: undefined, isClosed: false, writable: 0 };
  running.listen({
    output(stream, chunk) {
      seen[stream] += chunk;
    },
    writable() {
      seen.writable++;
    },
    stdinBroken() {},
    ended(how) {
      assert.is(seen.how, undefined, "it ended twice");
      seen.how = how;
    },
    closed() {
      seen.isClosed = true;
    },
  });
  return seen;
}

const startOf = (command: string, args: string[] = [], more: Partial<Start> = {}): Start => ({
  ...{ command, args, cwd: "/", env: { PATH: process.env.PATH }, hasNoStdin: false },
  ...more,
});

async function until(isSo: () => unknown, what: string): Promise<void> {
  assert.ok(await soon(isSo, 20_000, 2), `not within 20 s: ${what}`);
}

async function holdersOf(path: string, words: string[], anyNameShell = tools.anyNameShell): Promise<Holders> {
  const holders = await probeHolders(path, process.env, { ...tools, shell: words, anyNameShell });
  assert.type(holders, "object", String(holders));
  return holders as Holders;
}

/** Runs a test with holders of its own. In the end no process and no FIFO of theirs is left. */
async function withHolders(
  words: string[],
  run: (holders: Holders, directory: string) => Promise<void>,
): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-holders-"));
  try {
    const holders = await holdersOf(join(directory, "held"), words);
    await run(holders, directory);
    await closeHolders(holders);
    await until(() => processesIn(directory).length === 0, `left: ${processesIn(directory)}`);
  } finally {
    for (const pid of processesIn(directory)) safely(() => process.kill(pid, "SIGKILL"));
    await removeAll(directory);
  }
}

/** Whoever has a descriptor or an argument in the directory: holders, keepers, children by their pipes. They may be killed, so that nobody else is to be among them. */
function processesIn(directory: string): number[] {
  const linkOf = (path: string): string => safely(() => readlinkSync(path)) ?? "";
  const isIn = (pid: number): boolean => {
    const links = (safely(() => readdirSync(`/proc/${pid}/fd`)) ?? []).map((name) => linkOf(`/proc/${pid}/fd/${name}`));
    const words = safely(() => readFileSync(`/proc/${pid}/cmdline`, "latin1")) ?? "";
    return [words, ...links].some((text) => text.includes(directory));
  };
  const pids = readdirSync("/proc").map(Number);
  return pids.filter((pid) => pid > 0 && pid !== process.pid && isAlive(pid) && isIn(pid));
}

/** What a daemon that was started by another process of this file knows. */
interface Known {
  directory: string;
  holder: any;
}

/** Starts a child by a daemon that is then killed. */
async function startByDead(words: string[], path: string, start: Start): Promise<Known> {
  const daemon = spawn(process.execPath, [thisFile, "daemon", JSON.stringify({ words, path, start })], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  let text = "";
  daemon.stdout.on("data", (chunk) => {
    text += chunk;
  });
  await until(() => text.endsWith("\n"), "the daemon's child");
  const gone = new Promise((done) => daemon.once("exit", done));
  daemon.kill("SIGKILL");
  await gone;
  return JSON.parse(text);
}

async function beDaemon(argument: string): Promise<never> {
  const { words, path, start } = JSON.parse(argument);
  const holders = await holdersOf(path, words);
  const directory = await takeDirectory(holders);
  const running = await startHeld(holders, directory, start);
  process.stdout.write(`${JSON.stringify({ directory, holder: running.holder })}\n`);
  return new Promise(() => setInterval(() => {}, 1000));
}

/** Starts a child, here or by a daemon that is dead by now, and reads it. */
async function startSeen(holders: Holders, isDead: boolean, start: Start): Promise<Seen> {
  if (!isDead) {
    const directory = await takeDirectory(holders);
    return see(await startHeld(holders, directory, start), directory);
  }
  const { directory, holder } = await startByDead(holders.tools.shell, holders.path, start);
  const adopted = adoptHeld(holders, directory, holder);
  if (!("running" in adopted)) throw new Error(JSON.stringify(adopted));
  return see(adopted.running, directory);
}

interface Row {
  name: string;
  start: Start;
  act?(seen: Seen): unknown;
  how: Ended;
  /** What its holder says: what a shell knows. */
  word: number;
  stdout?: string;
  stderr?: string;
}

const code = (value: number): Ended => ({ code: value, signal: null });
const signalled = (signal: NodeJS.Signals): Ended => ({ code: null, signal });
const sh = (script: string) => startOf("sh", ["-c", script]);
const kill = (signal: NodeJS.Signals) => (seen: Seen) => process.kill(-seen.running.pid, signal);
const says = (text: string) => (seen: Seen) => until(() => seen.stdout.includes(text), `"${text}"`);

const table: Row[] = [
  { name: "exit 0", start: startOf("true"), how: code(0), word: 0 },
  { name: "exit 3", start: sh("echo a; echo b >&2; exit 3"), how: code(3), word: 3, stdout: "a\n", stderr: "b\n" },
  { name: "exit 143", start: sh("exit 143"), how: code(143), word: 143 },
  { name: "SIGTERM by itself", start: sh("kill -TERM $$"), how: signalled("SIGTERM"), word: 143 },
  {
    name: "SIGTERM to its group",
    start: startOf("sleep", ["100"]),
    act: kill("SIGTERM"),
    how: signalled("SIGTERM"),
    word: 143,
  },
  {
    name: "SIGINT to its group",
    start: startOf("sleep", ["100"]),
    act: kill("SIGINT"),
    how: signalled("SIGINT"),
    word: 130,
  },
  {
    name: "SIGQUIT to its group",
    start: startOf("sleep", ["100"]),
    act: kill("SIGQUIT"),
    how: signalled("SIGQUIT"),
    word: 131,
  },
  {
    name: "SIGSEGV, a core if it may",
    start: sh("ulimit -c unlimited; kill -SEGV $$"),
    how: signalled("SIGSEGV"),
    word: 139,
  },
  { name: "SIGPIPE", start: sh("kill -PIPE $$"), how: signalled("SIGPIPE"), word: 141 },
  { name: "a signal without a name", start: sh("kill -40 $$"), how: code(168), word: 168 },
  {
    ...{ name: "SIGKILL to its group, with a grandchild", start: sh("sleep 100 & echo ready; wait") },
    ...{
      act: (seen: Seen) => says("ready")(seen).then(() => kill("SIGKILL")(seen)),
      how: signalled("SIGKILL"),
      word: 137,
      stdout: "ready\n",
    },
  },
  {
    ...{ name: "stopped, continued, exit 5", start: sh("kill -STOP $$; exit 5"), how: code(5), word: 5 },
    async act({ running: { pid }, how }) {
      await until(() => statOf(pid)?.[0] === "T", "its stop");
      assert.is(how, undefined);
      process.kill(pid, "SIGCONT");
    },
  },
  { name: "closes stdout and stderr, goes on", start: sh("exec >&- 2>&-; sleep 0.4; exit 6"), how: code(6), word: 6 },
  {
    ...{ name: "daemonizes a grandchild, exit 7", how: code(7), word: 7 },
    start: sh("setsid sleep 1 </dev/null >/dev/null 2>&1 & exit 7"),
  },
  {
    ...{ name: "a grandchild holds the pipe", how: code(8), word: 8, stdout: "late\n" },
    start: sh("exec 3<&0; (read -r x <&3; echo late) & exit 8"), // what is put into the background has /dev/null for stdin
    async act(seen) {
      await until(() => seen.how && !seen.isClosed, "an end before the pipe's");
      seen.running.write(Buffer.from("\n"));
    },
  },
  {
    ...{ name: "cat, stdin ended", start: startOf("cat"), how: code(0), word: 0, stdout: "hello" },
    act({ running }) {
      assert.is(running.write(Buffer.from("hello")), 5);
      running.endStdin();
    },
  },
  {
    ...{ name: "no stdin", start: startOf("cat", [], { hasNoStdin: true }), how: code(0), word: 0 },
  },
  {
    ...{ name: "the pipes by their names", how: code(0), word: 0, stdout: "in\nhello", stderr: "err\nin\n" },
    start: sh("echo err > /dev/stderr; echo in | tee /dev/stderr; cat /dev/stdin"),
    act({ running }) {
      running.write(Buffer.from("hello"));
      running.endStdin();
    },
  },
];
if (process.argv[2] === "daemon") await beDaemon(process.argv[3]!);
if (process.argv[2] === "reader") await beReader(process.argv[3]!);

/** What a child is, seen by itself and from outside. */
async function tryChild(holders: Holders): Promise<void> {
  const env = { PATH: process.env.PATH, EMPTY: "", QUOTES: "a'b\"c$d\ne", IFS_: "x" };
  const seen = await startSeen(holders, false, startOf("cat", ["-"], { cwd: tmpdir(), env, umask: 0o027 }));
  const { pid } = seen.running;
  const read = (name: string) => readFileSync(`/proc/${pid}/${name}`, "utf8");
  const plain = spawn("cat"); // whoever runs the tests may have left descriptors open for all
  const descriptorsOf = (of: number) => readdirSync(`/proc/${of}/fd`).join();
  await until(() => descriptorsOf(pid) === descriptorsOf(plain.pid!), "the descriptors of a child with plain pipes");
  plain.kill();
  assert.match(read("status"), /^SigBlk:\t0+\nSigIgn:\t0+$/m);
  assert.match(read("status"), /^Umask:\t0027$/m);
  assert.equal(statOf(pid)!.slice(2, 4).map(Number), [pid, pid], "its group and session");
  assert.is(realpathSync(`/proc/${pid}/cwd`), realpathSync(tmpdir()));
  const given = read("environ").split("\0").slice(0, -1).sort();
  const own = given.filter((line) => !/^(_|SHLVL)=/.test(line)); // what bash cannot leave out
  assert.equal(
    own,
    Object.entries(env)
      .map(([name, value]) => `${name}=${value}`)
      .sort(),
  );
  const ours = Number(readFileSync("/proc/self/oom_score_adj", "utf8"));
  assert.is(Number(read("oom_score_adj")), Math.min(1000, ours + 200));
  const { holder, keeper } = seen.running.holder as HolderRecord;
  for (const { pid } of [holder, keeper]) {
    await until(() => statOf(pid)?.[0] === "T", "it stands still"); // the keeper has said its pid just before
    assert.is(Number(readFileSync(`/proc/${pid}/oom_score_adj`, "utf8")), ours);
    assert.not.match(readFileSync(`/proc/${pid}/cmdline`, "utf8"), "QUOTES", "values stand in no argv");
  }
  await end(seen);
}

/** Ends a child by the end of its stdin. */
async function end(seen: Seen): Promise<void> {
  seen.running.endStdin();
  await until(() => seen.how && seen.isClosed, "its end");
  seen.running.release();
}

/** @returns The errno of a start that fails. */
async function failureOf(holders: Holders, start: Start): Promise<string> {
  const directory = await takeDirectory(holders);
  const before = readdirSync("/proc/self/fd").length;
  const error = await startHeld(holders, directory, start).then(
    () => new Error("it was started"),
    (error) => error,
  );
  await until(() => readdirSync("/proc/self/fd").length <= before, "its descriptors are closed");
  await until(() => processesIn(directory).length === 0, "its holder is gone");
  assert.not.match(reasonOf(error), directory, "what is the holder's own is not told");
  return (error as NodeJS.ErrnoException).code ?? String(error);
}

async function tryFailures(holders: Holders, directory: string): Promise<void> {
  const file = (name: string, text: string, mode: number) => {
    writeFileSync(join(directory, name), text, { mode });
    return join(directory, name);
  };
  assert.is(await failureOf(holders, startOf("no-such-command")), "ENOENT");
  assert.is(await failureOf(holders, startOf("/no/such/file")), "ENOENT");
  assert.is(await failureOf(holders, startOf(file("plain", "#!/bin/sh\n", 0o600))), "EACCES");
  assert.is(await failureOf(holders, startOf(directory)), "EACCES");
  assert.is(await failureOf(holders, startOf(file("lost", "#!/no/such/interpreter\n", 0o700))), "ENOENT");
  assert.is(await failureOf(holders, startOf("true", [], { cwd: "/no/such/directory" })), "ENOENT");
  assert.is(await failureOf(holders, startOf("true", ["x".repeat(200_000)])), "E2BIG");
  if (holders.tools.shell.join().includes("busybox")) return; // it takes anything for a script
  assert.is(await failureOf(holders, startOf(file("elf", `\x7fELF${"\0".repeat(100)}`, 0o700))), "ENOEXEC");
}

/** 3 MiB into a child that reads late: all of it, once, in order; and its stdin stays open while there is no daemon. */
async function tryStdin(holders: Holders): Promise<void> {
  const known = await startByDead(holders.tools.shell, holders.path, sh("sleep 0.2; cksum; echo done >&2"));
  await new Promise((done) => setTimeout(done, 300)); // it reads by now, and must not see an end
  const adopted = adoptHeld(holders, known.directory, known.holder);
  assert.ok("running" in adopted, JSON.stringify(adopted));
  const seen = see(adopted.running, known.directory);
  assert.is(seen.how, undefined);
  const data = Buffer.from(Array.from({ length: 3 << 20 }, (_, at) => (at * 7 + (at >> 9)) & 255));
  for (let at = 0; at < data.length; ) {
    const { writable } = seen;
    const taken = seen.running.write(data.subarray(at));
    at += taken;
    if (at < data.length) await until(() => seen.writable > writable, `room after ${at} bytes`);
  }
  seen.running.endStdin();
  await until(() => seen.how && seen.isClosed, "its end");
  const { stdout } = spawnSync("cksum", { input: data, encoding: "utf8" });
  assert.equal([seen.stdout, seen.stderr, seen.how], [stdout, "done\n", code(0)]);
  seen.running.release();
}

/** A directory that somebody has removed, a holder and a keeper that somebody has killed. */
async function tryLosses(holders: Holders): Promise<void> {
  const start = sh("echo before; read -r line; echo $line; exit 4");
  const lost = await startByDead(holders.tools.shell, holders.path, start);
  rmSync(lost.directory, { recursive: true });
  const said = `${holders.path}.said`;
  const saying = sh(`echo before; : >'${said}'; read -r line; echo $line; exit 4`);
  const headless = await startByDead(holders.tools.shell, holders.path, saying);
  await until(() => existsSync(said), "its word is in the pipe"); // which nobody has open once the holder is dead
  process.kill(headless.holder.holder.pid, "SIGKILL");
  const closed = await startByDead(holders.tools.shell, holders.path, start);
  process.kill(closed.holder.keeper.pid, "SIGKILL");
  await until(() => !isAlive(headless.holder.holder.pid) && !isAlive(closed.holder.keeper.pid), "their ends");
  const seen = [lost, headless, closed].map(({ directory, holder }) => {
    const adopted = adoptHeld(holders, directory, holder);
    assert.ok("running" in adopted, JSON.stringify(adopted));
    return see(adopted.running, directory);
  });
  for (const { running } of seen.slice(0, 2)) assert.is(running.write(Buffer.from("line\n")), 5);
  await until(() => seen.every(({ how, isClosed }) => how && isClosed), "all ends");
  assert.equal(
    seen.map(({ stdout }) => stdout),
    ["before\nline\n", "before\nline\n", "before\n\n"],
  );
  assert.equal([seen[0]!.how, seen[2]!.how], [code(4), code(4)]);
  const { how } = seen[1]!; // its parent is another now, which may reap it later, or never
  assert.ok(how!.code === 4 || how!.unknown === "its holder was killed", JSON.stringify(how));
  assert.throws(
    () => seen[2]!.running.write(Buffer.from("x")),
    (error: NodeJS.ErrnoException) => error.code === "EPIPE",
  );
  for (const { running } of seen) running.release();
}

/** Handing over in a flood: what one has read is told before it leaves, and the other reads on from there. */
async function tryLeaving(holders: Holders): Promise<void> {
  const count = 200_000;
  const first = await startSeen(holders, false, startOf("seq", [String(count)]));
  let { stdout } = first;
  let seen = first;
  for (let i = 0; i < 20 && !seen.how; i++) {
    await until(() => seen.how || seen.stdout.length > 20_000, "output");
    seen.running.setFlow(false);
    if (i % 2 === 0) await new Promise((done) => setTimeout(done, 5)); // node reads one chunk more
    seen.running.leave!();
    stdout = i === 0 ? seen.stdout : stdout + seen.stdout;
    const adopted = adoptHeld(holders, seen.directory, JSON.parse(JSON.stringify(seen.running.holder)));
    assert.ok("running" in adopted, JSON.stringify(adopted));
    seen = see(adopted.running, seen.directory);
  }
  await until(() => seen.how && seen.isClosed, "its end");
  stdout += seen.stdout;
  assert.is(stdout.length, spawnSync("seq", [String(count)], { maxBuffer: 1 << 30 }).stdout.length);
  assert.is(
    stdout.split("\n").findIndex((line, at) => line !== String(at + 1)),
    count,
  );
  seen.running.release();
}

async function tryNames(holders: Holders): Promise<void> {
  const env = {
    PATH: process.env.PATH,
    "A-B": "1",
    "BASH_FUNC_kill%%": "() { echo no;\n}",
    BASH_ENV: "/no/such/file",
    PWD: "/x",
  };
  const seen = await startSeen(holders, false, startOf("cat", [], { env }));
  const given = readFileSync(`/proc/${seen.running.pid}/environ`, "utf8").split("\0");
  for (const name of ["A-B", "BASH_FUNC_kill%%", "BASH_ENV"] as const)
    assert.ok(given.includes(`${name}=${env[name]}`), name);
  assert.is(seen.stderr, "");
  await end(seen);
  assert.equal(droppedNames({ ...tools, shell: ["/bin/sh"], anyNameShell: undefined }, env), [
    "A-B",
    "BASH_FUNC_kill%%",
  ]);
  assert.equal(droppedNames(holders.tools, env), []);
}

/** The status of a set-uid program cannot be read by who started it: the holder's word counts. */
async function trySetUid(words: string[]): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-setuid-"));
  try {
    chmodSync(directory, 0o755);
    copyFileSync(realpathSync("/usr/bin/awk"), join(directory, "awk"));
    chmodSync(join(directory, "awk"), 0o4755);
    mkdirSync(join(directory, "home"));
    chownSync(join(directory, "home"), 65534, 65534);
    const start = startOf(join(directory, "awk"), ["BEGIN { print ARGV[1]; exit 7 }", "said"]);
    const argument = JSON.stringify({ words, path: join(directory, "home/held"), start });
    const { stdout, stderr } = spawnSync(process.execPath, [thisFile, "reader", argument], { encoding: "utf8" });
    assert.equal([stdout, stderr], [`${JSON.stringify({ how: code(7), stdout: "said\n", left: [] })}\n`, ""]);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

/** Starts a child, reads it to its end, and says what it saw; as another user, who may not be able to read this file. */
async function beReader(argument: string): Promise<never> {
  process.setgroups!([]);
  process.setgid!(65534);
  process.setuid!(65534);
  const { words, path, start } = JSON.parse(argument);
  const holders = await holdersOf(path, words);
  const seen = await startSeen(holders, false, start);
  await until(() => seen.how && seen.isClosed, "its end");
  seen.running.release();
  const { holder } = seen.running.holder as HolderRecord;
  await until(() => !isAlive(holder.pid), "its holder's end");
  console.log(JSON.stringify({ how: seen.how, stdout: seen.stdout, left: processesIn(path) }));
  process.exit();
}

for (const [name, words] of shells) {
  const held = suite(`A held child, ${name}`);
  const test = existsSync(words[0]!) ? held : held.skip;
  for (const isDead of [false, true]) {
    test(`ends as it does${isDead ? ", read by another daemon" : ""}`, () =>
      withHolders(words, async (holders) => {
        await Promise.all(table.map((row) => tryRow(holders, isDead, row)));
      }));
  }
  test("is what it was asked to be", () => withHolders(words, tryChild));
  test("that cannot be started is refused, and leaves nothing", () => withHolders(words, tryFailures));
  test("keeps its stdin, and is given all that it is sent", () => withHolders(words, tryStdin));
  test("lives without its directory, its holder and its keeper", () => withHolders(words, tryLosses));
  test("is handed over in a flood", () => withHolders(words, tryLeaving));
  test("has variables of any name, none of which does anything to its holder", () => withHolders(words, tryNames));
  (isRoot ? test : held.skip)("with another's rights is believed by its holder's word", () => trySetUid(words));
  held.run();
}

async function tryRow(
  holders: Holders,
  isDead: boolean,
  { name, start, act, how, word, stdout = "", stderr = "" }: Row,
): Promise<void> {
  const seen = await startSeen(holders, isDead, start);
  await act?.(seen);
  await until(() => seen.how && seen.isClosed, `the end of "${name}"`);
  assert.equal({ name, how: seen.how, stdout: seen.stdout, stderr: seen.stderr }, { name, how, stdout, stderr });
  const { holder, keeper } = seen.running.holder as HolderRecord;
  safely(() => process.kill(keeper.pid, "SIGKILL"));
  process.kill(holder.pid, "SIGCONT");
  const said = () => readFileSync(join(seen.directory, "code"), "utf8");
  await until(
    () => existsSync(join(seen.directory, "code")) && said().endsWith("\n"),
    `what the holder of "${name}" says`,
  );
  assert.is(`${name}: ${said()}`, `${name}: ${word}\n`);
  seen.running.release();
}

const test = suite("adoptHeld()");

test("leaves alone what is not provably the child's, and says why", () =>
  withHolders(tools.shell, async (holders) => {
    const seen = await startSeen(holders, false, startOf("cat"));
    const record = seen.running.holder as HolderRecord;
    const stranger = spawn("sleep", ["100"]);
    const other = { pid: stranger.pid!, startTime: statOf(stranger.pid!)![19]! };
    const ways: [value: unknown, expected: object][] = [
      [undefined, { problem: "its holder is not described as it must be" }],
      ["text", { problem: "its holder is not described as it must be" }],
      [{ ...record, child: { pid: -1, startTime: "5" } }, { problem: "its holder is not described as it must be" }],
      [
        { ...record, child: { ...record.child, startTime: "no" } },
        { problem: "its holder is not described as it must be" },
      ],
      [{ ...record, out: {} }, { problem: "its holder is not described as it must be" }],
      [{ ...record, holder: other }, { problem: `process ${other.pid} is not its holder` }],
      [{ ...record, child: other }, { problem: `process ${other.pid} is not its holder's child` }],
      [{ ...record, out: { dev: 1, ino: 2 } }, { problem: `process ${record.holder.pid} is not its holder` }],
      [{ ...record, bootId: "another" }, { ended: { code: null, signal: null, unknown: "the host was booted again" } }],
      [{ ...record, pidNamespace: "pid:[1]" }, { problem: "it runs in another pid namespace (a container)" }],
    ];
    for (const [value, expected] of ways) assert.equal(adoptHeld(holders, seen.directory, value), expected);
    assert.is(seen.how, undefined);
    assert.ok(isAlive(other.pid) && isAlive(record.child.pid) && isAlive(record.keeper.pid));
    stranger.kill();
    await end(seen);
    await until(() => !isAlive(record.holder.pid), "its holder's end");
    assert.equal(adoptHeld(holders, seen.directory, record), { ended: code(0) }); // what the holder has said
    rmSync(join(seen.directory, "code"));
    const unknown = { ended: { code: null, signal: null, unknown: "it and its holder were killed" } };
    assert.equal(adoptHeld(holders, seen.directory, record), unknown);
    const gone = { ended: { code: null, signal: null, unknown: "the container that it ran in has ended" } };
    assert.equal(adoptHeld(holders, seen.directory, { ...record, pidNamespace: "pid:[1]" }), gone);
  }));

test("sweepHeld() ends what a dead daemon had begun to start", () =>
  withHolders(tools.shell, async (holders) => {
    const { directory, holder } = await startByDead(tools.shell, holders.path, sh("trap '' TERM; sleep 100 & wait"));
    const unused = await takeDirectory(holders);
    await sweepHeld([directory, unused]);
    await until(() => [holder.holder, holder.keeper, holder.child].every(({ pid }) => !isAlive(pid)), "all ends");
    assert.equal([directory, unused].filter(existsSync), []);
  }));

test("takeDirectory() gives one that is there, though somebody has removed those made ahead, or all", () =>
  withHolders(tools.shell, async (holders) => {
    for (const gone of [holders.ready.slice(1), [holders.path]]) {
      for (const path of gone) rmSync(path, { recursive: true });
      const directory = await takeDirectory(holders);
      assert.is(existsSync(join(directory, "start")), true);
      await until(() => holders.making === undefined, "those made ahead are there");
    }
  }));

test("probeHolders() says why there are none", async () => {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-probe-"));
  try {
    const tool = (name: string, script: string) => {
      writeFileSync(join(directory, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
      return join(directory, name);
    };
    const probe = (changed: Partial<HolderTools>) =>
      probeHolders(join(directory, "held"), process.env, { ...tools, ...changed }).then(String);
    assert.match(
      await probe({ mkfifo: tool("mkfifo", "echo 'mkfifo: Operation not permitted' >&2; exit 1") }),
      /Operation not permitted/,
    );
    assert.match(await probe({ setsid: "/no/such/setsid" }), /^a child cannot be held: its holder cannot start it/);
    assert.match(await probe({ shell: ["/no/such/sh"] }), /^a child cannot be held: .*ENOENT/);
    const reaping = tool("sh", 'script=$(echo "$2" | sed "s/^until .*/:/"); shift 2; exec /bin/sh -c "$script" "$@"');
    assert.match(await probe({ shell: [reaping] }), /^a holder that has stopped itself (is in state|reaps its child)/);
    assert.is(findTools({ PATH: "" }) instanceof Object, true, "the usual places are looked at");
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
});

test("dismissHolder() ends one that has told its word, and is about to stop again", async () => {
  const directory = mkdtempSync(join(tmpdir(), "holdfast-holders-"));
  const script = 'echo 5 >"$0/code"; sleep 0.5; kill -STOP $$; sleep 60';
  const holder = spawn("sh", ["-c", script, directory], { stdio: "ignore" });
  try {
    await until(() => existsSync(join(directory, "code")), "its word");
    await until(() => readFileSync(join(directory, "code"), "utf8") === "5\n", "all of it");
    dismissHolder(directory, knownOf(holder.pid!), undefined);
    await until(() => holder.signalCode !== null, "its end");
  } finally {
    holder.kill("SIGKILL");
    rmSync(directory, { recursive: true, force: true });
  }
});

test.run();
