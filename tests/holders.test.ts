// time limit: 120 s
/**
 * Held children, on each shell that a host may have as its sh: read to their ends by the one that started them, and by another after its death.
 *
 * Run with arguments, this file is the daemon of the second: it starts children, says what it knows of them, and waits to be killed.
 */

import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { safely } from "../failure.ts";
import type { Holders, HolderTools } from "../holders.ts";
import { adoptHeld, closeHolders, findTools, probeHolders, startHeld, takeDirectory } from "../holders.ts";
import { soon } from "../record.ts";
import type { Ended, HolderRecord, Running, Start } from "../running.ts";
import { isAlive, statOf } from "./daemon.ts";

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
    rmSync(directory, { recursive: true, force: true });
  }
}

/** Whoever has a descriptor or an argument in the directory: holders, keepers, children by their pipes. */
function processesIn(directory: string): number[] {
  const { stdout } = spawnSync(
    "sh",
    ["-c", 'ls -l /proc/[0-9]*/fd 2>/dev/null; grep -l "$1" -a /proc/[0-9]*/cmdline', "sh", directory],
    {
      encoding: "utf8",
    },
  );
  const owners = stdout.split("/proc/").flatMap((part) => {
    const pid = Number(/^\d+/.exec(part));
    return part.includes(directory) || /\/cmdline/.test(part) ? [pid] : [];
  });
  return [...new Set(owners)].filter((pid) => pid > 0 && pid !== process.pid && isAlive(pid));
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
    ...{ name: "a grandchild holds the pipe", start: sh("(sleep 1; echo late) & exit 8"), how: code(8), word: 8 },
    ...{ act: (seen: Seen) => until(() => seen.how && !seen.isClosed, "an end before the pipe's"), stdout: "late\n" },
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

for (const [name, words] of shells) {
  const test = suite(`A held child, ${name}`);
  for (const isDead of [false, true]) {
    test(`ends as it does${isDead ? ", read by another daemon" : ""}`, () =>
      withHolders(words, async (holders) => {
        await Promise.all(table.map((row) => tryRow(holders, isDead, row)));
      }));
  }
  test.run();
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
