/**
 * Holders: what keeps a child, its pipes and its exit status when the daemon is gone; and how the next daemon takes it up.
 *
 *     daemon ── reads out, err ──────────────────┐
 *     holder    sh, own session, STOPPED         │   3 = out (read)   4 = err (read)
 *      ├─ keeper   sh, STOPPED                   │   1 = in (write)
 *      └─ child    the command                   │   0 = in           1 = out (write)  2 = err (write); leads its session and group
 *
 * The holder is the child's parent, and is stopped before it can reap: so the kernel keeps the exact status of a child that has ended (a zombie,
 * to be read in /proc/<pid>/stat), its pid cannot be anyone else's, and the pipes have a reader while there is no daemon: nobody gets SIGPIPE.
 * The keeper keeps stdin from ending with a daemon; stdin ends when it is killed. Then, and continued, the holder reaps, writes the status as a
 * shell knows it (128 + signal) into `code`, and stops again, or ends when its FIFOs have been removed.
 *
 * One directory a child, 0700: `out`, `err`, and `start`, which says the pids, and by its end that the command was executed (its descriptor is
 * closed by that). `in` is a pipe between keeper and child: a FIFO whose writers have gone cannot be opened any more, as /dev/stdin is. The daemon
 * opens it in /proc/<keeper>/fd; and out and err in /proc/<holder>/fd, when somebody has removed the directory.
 *
 * What a running child offers, and how its end is seen, stands in running.ts.
 */

import type { ChildProcess } from "node:child_process";
import { execFile, spawn } from "node:child_process";
import {
  closeSync,
  constants,
  existsSync,
  fstatSync,
  mkdirSync,
  readlinkSync,
  readSync,
  realpathSync,
  rmSync,
  statSync,
} from "node:fs";
import { rm } from "node:fs/promises";
import { constants as osConstants } from "node:os";
import { basename, join } from "node:path";
import { promisify } from "node:util";
import { errnoError, reasonOf, safely } from "./failure.ts";
import { hasLeft, identify, livingProcesses, randomName, readText, soon, statOf, within } from "./record.ts";
import type { Ended, HeldTerminal, HolderRecord, Known, Running, Start, Watch } from "./running.ts";
import {
  armPipe,
  createWatch,
  dismissHolder,
  fifoNames,
  knownOf,
  openFifo,
  runningHeld,
  saidEnd,
  socketOf,
  stateOf,
  unknownEnd,
  unread,
  watchTrial,
} from "./running.ts";
import { makeDirectories } from "./socket.ts";

/** What holders are made of on this host. Absolute paths: the child's PATH may be any. */
export interface HolderTools {
  /** The words before `-c`: a shell that reads no start-up file and takes no function from the environment. */
  shell: string[];
  /** One that hands on variables whose names are no identifiers; undefined where there is none: they are dropped. */
  anyNameShell: string[] | undefined;
  setsid: string;
  mkfifo: string;
}

/** All that a daemon holds. */
export interface Holders {
  /** The directory of their directories, 0700. */
  readonly path: string;
  readonly tools: HolderTools;
  /** Directories with FIFOs, made ahead: one mkfifo(1) serves several. */
  readonly ready: string[];
  making: Promise<void> | undefined;
  readonly watch: Watch;
  /** As of a holder's record; found out by the trial. */
  notesReads: boolean;
  /** Nothing is begun any more. */
  isClosed: boolean;
  /** Children that are just being started. */
  readonly starting: Set<Promise<Running>>;
}

/** Directories made ahead at a time, and how few of them are left when more are made. */
const readyCount = 8;
const readyLeft = 4;
/** From a shell's answer to the end of `start`. A bash runs a script without a first line `#!` itself, and keeps the descriptor. */
const executedMs = 2000;
/** For a holder to say that it has started its child: of a shell that does something else altogether. */
const startMs = 10_000;
const trialMs = 10_000;
/** For the directories made ahead to be removed, at the daemon's end. */
const closeMs = 2000;
/** For those that are just being started to be there, or to fail. */
const startingMs = 1000;
/** How often it is looked whether what is to make a terminal has ended instead. */
const engineLookMs = 20;
/** oom_score_adj: the kernel is to take the child that ate the memory, not the daemon. The raise of a child, and the most there is. */
const oomRaise = 200;
const oomMost = 1000;
/** What shells put into the environment by themselves. */
const shellNames = ["PWD", "OLDPWD", "SHLVL", "_"];

/**
 * $0: the directory; the rest: what becomes the child. No variable is set whose name a child might be given: HOLDFAST_* is for nobody.
 *
 * The keeper says its pid, and stops itself, again and again. The other part stops the holder, `$$`, waits until it has, and becomes the child: on
 * a busy machine the signal is seen late, and a child that has ended by then would be reaped first. One that was killed, and that nobody reaps, never stops.
 */
const holderScript = `
while :; do read -r HOLDFAST_PID HOLDFAST_REST </proc/self/stat; echo $HOLDFAST_PID; kill -STOP $HOLDFAST_PID; done | {
read -r HOLDFAST_PID
until read -r HOLDFAST_1 HOLDFAST_2 HOLDFAST_STATE HOLDFAST_REST </proc/$$/stat; [ "$HOLDFAST_STATE" = T ]; do [ "$HOLDFAST_STATE" != Z ] && kill -STOP $$ || exit; done
exec 3<&- 4<&- 9>"$0/start"; echo $HOLDFAST_PID >&9; exec "$@"; }
echo $? >"$0/code"; [ ! -e "$0/out" ] || kill -STOP $$`;

/**
 * Run in the new session: $0 the directory, $1 umask, $2 names to unset, $3 stdin, where it is another; the rest: the command.
 *
 * `9>&-` around exec: the shell's saved copy is close-on-exec, so the end of `start` says that the command was executed. `failed` says that it was not;
 * bash runs the trap then only with execfail. The shell's own words go to /dev/null, not into the child's stderr, until the command has its pipes.
 */
const childScript = `
echo $$ >&9; trap 'echo $? >"$0/failed"' EXIT; [ -z "$BASH_VERSION" ] || shopt -s execfail
{ read -r HOLDFAST_OOM </proc/self/oom_score_adj
echo $((HOLDFAST_OOM > ${oomMost - oomRaise} ? ${oomMost} : HOLDFAST_OOM + ${oomRaise})) >/proc/self/oom_score_adj; } 2>/dev/null
[ -z "$1" ] || umask "$1"; [ -z "$3" ] || exec <"$3"; unset $2; shift 3
{ exec "$@"; } >"$0/out" 2>"$0/err" 9>&-`;

/**
 * Finds out whether children can be held here: by a child that is held to its end.
 *
 * @param path The directory of the held, made where it is not there.
 * @param env For PATH.
 * @returns Why not, in words.
 */
export async function probeHolders(
  path: string,
  env: NodeJS.ProcessEnv,
  tools = findTools(env),
  watch = createWatch(),
): Promise<Holders | string> {
  if (process.versions.deno || process.versions.bun)
    return `${process.versions.deno ? "Deno" : "Bun"} cannot read the FIFOs that it opens`; // "EEXIST", and for ever
  if (typeof tools === "string") return tools;
  try {
    makeDirectories(path);
    const holders: Holders = {
      path,
      tools,
      ready: [],
      making: undefined,
      watch,
      notesReads: false,
      isClosed: false,
      starting: new Set(),
    };
    return (await tryHolder(holders, env)) ?? holders;
  } catch (error) {
    return `a child cannot be held: ${reasonOf(error)}`;
  }
}

/** Finds a program as a shell does, and where it is usual: an absolute path. */
export function findProgram(env: NodeJS.ProcessEnv, name: string): string | undefined {
  const directories = [...(env.PATH || "").split(":"), "/usr/local/bin", "/usr/bin", "/bin"];
  return directories
    .filter((path) => path.startsWith("/"))
    .map((path) => join(path, name))
    .find((path) => existsSync(path));
}

/** Finds what holders are made of; or says what is missing. */
export function findTools(env: NodeJS.ProcessEnv): HolderTools | string {
  const [setsid, mkfifo, bash] = ["setsid", "mkfifo", "bash"].map((name) => findProgram(env, name));
  if (!setsid || !mkfifo) return `there is no ${setsid ? "mkfifo" : "setsid"} in PATH`;
  const anyNameShell = bash ? [bash, "-p"] : undefined;
  const sh = safely(() => realpathSync("/bin/sh"));
  if (!sh) return "there is no /bin/sh";
  return { shell: basename(sh) === "bash" ? [sh, "-p"] : ["/bin/sh"], anyNameShell, setsid, mkfifo };
}

/** Holds a child to its end, and compares what is seen of it. @returns What is not as it must be. */
async function tryHolder(holders: Holders, env: NodeJS.ProcessEnv): Promise<string | undefined> {
  const directory = await takeDirectory(holders);
  const args = ["-c", "echo said; exit 143"];
  const start = { command: "/bin/sh", args, cwd: "/", env: { PATH: env.PATH }, hasNoStdin: true };
  const running = await startHeld(holders, directory, start);
  const { holder } = running.holder as HolderRecord;
  const wasArmed = isArmed(join(directory, "out")); // it is not read before the next line
  const seen = watchTrial(running);
  try {
    if (!(await soon(() => seen.how && seen.isClosed, trialMs, 1)))
      return "the end of a child that is held is not seen";
    const state = stateOf(holder);
    if (state !== "T") return `a holder that has stopped itself is in state "${state}", not "T"`;
    if (saidEnd(directory)) return "a holder that has stopped itself reaps its child";
    const { said, how } = seen;
    if (said !== "said\n" || how?.code !== 143)
      return `a child that said "said" and ended with 143 reads ${JSON.stringify([said, how])}`;
    holders.notesReads = wasArmed && !isArmed(join(directory, "out"));
    process.kill(holder.pid, "SIGCONT");
    if (!(await soon(() => saidEnd(directory)?.code === 143, trialMs, 1)))
      return "a holder does not say how its child ended";
    return undefined;
  } finally {
    running.release();
    rmSync(directory, { recursive: true, force: true });
  }
}

/** Nothing was read of it since it was armed. */
function isArmed(path: string): boolean {
  return safely(() => statSync(path).atimeMs) === unread;
}

/** Takes a directory with FIFOs, for one child. */
export async function takeDirectory(holders: Holders): Promise<string> {
  let taken = holders.ready.pop();
  if (holders.isClosed) throw new Error("the daemon is ending");
  while (!taken || !existsSync(join(taken, "start"))) {
    // somebody may have tidied up here
    if (!taken) await makeReady(holders);
    taken = holders.ready.pop();
  }
  if (holders.ready.length < readyLeft) void makeReady(holders).catch(() => {}); // told when there is none left
  return taken;
}

function makeReady(holders: Holders): Promise<void> {
  const make = async () => {
    const made = Array.from({ length: readyCount }, () => join(holders.path, randomName(12)));
    makeDirectories(holders.path);
    for (const directory of made) mkdirSync(directory, { mode: 0o700 });
    const fifos = made.flatMap((directory) => fifoNames.map((name) => join(directory, name)));
    await promisify(execFile)(holders.tools.mkfifo, ["-m", "600", ...fifos]);
    holders.ready.push(...made);
  };
  holders.making ??= make().finally(() => {
    holders.making = undefined;
  });
  return holders.making;
}

/** Ends and removes what was begun and is not noted, and what was made ahead. It does not wait for a slow disk: the next daemon sweeps what is left. */
export async function closeHolders(holders: Holders, begun = (): string[] => []): Promise<void> {
  holders.isClosed = true;
  await holders.making?.catch(() => {});
  await within(Promise.allSettled(holders.starting), startingMs); // of one that is only half there a part would be left
  const ready = holders.ready.splice(0); // nobody is in these
  const removals = ready.map((directory) => rm(directory, { recursive: true, force: true }));
  await within(Promise.allSettled([...removals, sweepHeld(begun().filter((path) => !ready.includes(path)))]), closeMs);
}

/** Names of the environment that a holder cannot hand on here: they are dropped. */
export function droppedNames({ shell, anyNameShell }: HolderTools, env: NodeJS.ProcessEnv): string[] {
  return anyNameShell || shell.includes("-p") ? [] : Object.keys(env).filter(isOddName);
}

/** The words before `-c` of a shell that hands on this environment, as far as there is one. */
export function shellFor({ shell, anyNameShell }: HolderTools, env: NodeJS.ProcessEnv): string[] {
  return (Object.keys(env).some(isOddName) && anyNameShell) || shell;
}

/** What a shell is to unset before it becomes a command. */
export function addedNames(env: NodeJS.ProcessEnv): string {
  return shellNames.filter((name) => env[name] === undefined).join(" ");
}

function isOddName(name: string): boolean {
  return !/^[A-Za-z_][A-Za-z0-9_]*$/.test(name);
}

/**
 * Starts a child under a holder.
 *
 * @param directory From takeDirectory(). After a failure it can be removed.
 * @throws {Error} With the errno of execve(2), as the shell tells it: the command, its interpreter, its mode; and fork(2)'s.
 */
export function startHeld(holders: Holders, directory: string, start: Start): Promise<Running> {
  const started = startUnder(holders, directory, start);
  holders.starting.add(started);
  return started.finally(() => holders.starting.delete(started));
}

async function startUnder(holders: Holders, directory: string, start: Start): Promise<Running> {
  const pipes = openPipes(directory);
  const begun: Begun = { handle: undefined, keeper: undefined, child: undefined };
  try {
    begun.handle = await spawnHolder(holders, directory, start, pipes);
    const record = { ...(await readHolder(directory, start, begun, pipes)), notesReads: holders.notesReads };
    const stdin = openFifo(`/proc/${record.keeper.pid}/fd/1`, constants.O_WRONLY);
    const running = runningHeld(holders.watch, directory, record, [pipes.out, pipes.err], stdin);
    if (start.hasNoStdin) running.endStdin();
    return running;
  } catch (error) {
    for (const descriptor of [pipes.out, pipes.err, ...(begun.handle ? [] : [pipes.start])]) closeSync(descriptor);
    await giveUp(directory, begun);
    throw error;
  }
}

/** What there is of a child that is being started. */
interface Begun {
  handle: ChildProcess | undefined;
  keeper: Known | undefined;
  child: Known | undefined;
}

async function readHolder(directory: string, start: Start, begun: Begun, pipes: Pipes): Promise<HolderRecord> {
  const { hasTerminal } = start;
  const path = hasTerminal ? join(directory, "start") : undefined;
  const lines = await readStart(pipes.start, begun.handle!, start.startMs ?? startMs, path);
  const [keeper, child] = lines.slice(0, 2).map((line) => knownOf(Number(line))) as [Known, Known | undefined];
  Object.assign(begun, { keeper, child });
  const terminal = hasTerminal ? terminalOf(lines[2]) : undefined;
  const failed = readText(join(directory, "failed"));
  if (child && hasTerminal && (failed !== undefined || !terminal))
    await soon(() => stateOf(child) === undefined, executedMs, 1); // it passes on what was said
  if (failed !== undefined || !child || (hasTerminal && !terminal)) {
    const words = wordsIn(pipes.err, pipes.out);
    throw hasTerminal && !terminal
      ? new Error(`there is no terminal${words && `: ${words}`}`)
      : startError(failed, words);
  }
  const { dev, ino } = fstatSync(pipes.out);
  const { bootId, pidNamespace } = identify();
  const holder = knownOf(begun.handle!.pid!);
  return { bootId, pidNamespace, child, holder, keeper, out: { dev, ino }, ...(terminal ? { terminal } : {}) };
}

async function giveUp(directory: string, { handle, keeper, child }: Begun): Promise<void> {
  if (child && stateOf(child)) safely(() => process.kill(-child.pid, "SIGKILL")); // an engine that has made no terminal
  if (!handle || handle.exitCode !== null || handle.signalCode !== null) return;
  const gone = new Promise((done) => handle.once("exit", done));
  if (keeper) dismissHolder(directory, knownOf(handle.pid!), keeper);
  else safely(() => process.kill(-handle.pid!, "SIGKILL")); // it has done what no shell does
  await gone;
}

interface Pipes {
  out: number;
  err: number;
  start: number;
}

/** Opened before the child does: poll(2) tells the end of a FIFO only of writers that came after us. */
function openPipes(directory: string): Pipes {
  const opened: number[] = [];
  try {
    for (const name of fifoNames) opened.push(openFifo(join(directory, name), constants.O_RDONLY));
    const [out, err, start] = opened as [number, number, number];
    for (const pipe of [out, err]) armPipe(pipe);
    return { out, err, start };
  } catch (error) {
    for (const descriptor of opened) closeSync(descriptor);
    throw error;
  }
}

function spawnHolder(
  { tools }: Holders,
  directory: string,
  { command, args, cwd, env, umask, hasNoStdin }: Start,
  pipes: { out: number; err: number },
): Promise<ChildProcess> {
  const shell = shellFor(tools, env);
  const unset = addedNames(env);
  const stdin = hasNoStdin ? "/dev/null" : "";
  const mode = umask === undefined ? "" : umask.toString(8).padStart(4, "0");
  const child = [tools.setsid, ...shell, "-c", childScript, directory, mode, unset, stdin, command, ...args];
  return new Promise((resolve, reject) => {
    const stdio = ["ignore", "ignore", "ignore", pipes.out, pipes.err] as const;
    const [program, ...options] = shell as [string, ...string[]];
    const handle = spawn(program, [...options, "-c", holderScript, directory, ...child], {
      ...{ cwd, env, detached: true, stdio: [...stdio] },
    });
    handle.on("error", reject);
    if (handle.pid) resolve(handle);
  });
}

/**
 * Reads the pids of keeper and child, until the child's command is executed, or never will be.
 *
 * @param path Of one in a terminal, whose leader comes between the two and its command, and opens it anew: it is held open until that has.
 */
function readStart(descriptor: number, handle: ChildProcess, withinMs: number, path?: string): Promise<string[]> {
  return new Promise((resolve, reject) => {
    let writer = path === undefined ? undefined : openFifo(path, constants.O_WRONLY);
    const socket = socketOf(descriptor);
    let text = "";
    const release = () => {
      if (writer !== undefined) closeSync(writer);
      writer = undefined;
    };
    const finish = () => {
      for (const each of timers) clearTimeout(each);
      handle.off("exit", finish);
      release();
      socket.destroy();
      const lines = text.split("\n").slice(0, -1);
      if (lines.length > 0) return resolve(lines);
      // a shell that cannot fork ends
      const errno = handle.exitCode === null ? "ETIMEDOUT" : "EAGAIN";
      reject(errnoError(errno, "its holder does not start it, spawn", { syscall: "spawn" }));
    };
    const timers = [setTimeout(finish, withinMs)];
    /** Whoever is to make the terminal may end before there is one. */
    const look = () => {
      const [, pid] = text.split("\n").slice(0, -1);
      if (pid && writer !== undefined && hasLeft(statOf(Number(pid)))) release();
    };
    if (path !== undefined) timers.push(setInterval(look, engineLookMs));
    socket.on("data", (chunk: Buffer) => {
      text += chunk;
      if (text.split("\n").length < (path === undefined ? 3 : 4)) return;
      release();
      timers.push(setTimeout(finish, executedMs));
    });
    socket.on("end", finish).on("error", finish);
    handle.once("exit", finish);
  });
}

/** What has been said before a command was: by a shell, and what makes the terminal. */
function wordsIn(...descriptors: number[]): string {
  const buffer = Buffer.alloc(4096);
  const words = (descriptor: number) => buffer.toString("utf8", 0, safely(() => readSync(descriptor, buffer)) ?? 0);
  return descriptors.map(words).join("").trim();
}

/** Makes of a shell's exit code and words the error that execve(2) gave it. */
function startError(code: string | undefined, words: string): Error {
  if (code === undefined) return new Error(`its holder cannot start it: ${words || "it ended"}`);
  const texts = {
    ENOEXEC: /format/i,
    ETXTBSY: /busy/i,
    E2BIG: /too long/i,
    ELOOP: /symbolic/i,
    ENAMETOOLONG: /name too long/i,
  };
  const found = Object.entries(texts).find(([, text]) => text.test(words))?.[0];
  const errno = code === "127\n" ? "ENOENT" : (found ?? "EACCES");
  const number = -osConstants.errno[errno as keyof typeof osConstants.errno];
  return errnoError(errno, words, { errno: number, syscall: "execve" });
}

/** Its leader has said the name of the terminal, and what is in /proc/<pid>/stat of it. */
function terminalOf(line: string | undefined): HeldTerminal | undefined {
  const [, tty, pid, stat] = /^(\/dev\/\S+) (\d+) \(.*\) (.*)$/.exec(line ?? "") ?? [];
  const startTime = stat?.split(" ")[19];
  return startTime === undefined ? undefined : { tty: tty!, leader: { pid: Number(pid), startTime } };
}

/** What became of a child whose daemon is dead: it goes on, or has ended meanwhile; or it is not to be told, and left alone. */
export type Adopted = { running: Running; isArmed: boolean } | { ended: Ended } | { problem: string };

/**
 * Takes up a child that another daemon started. Only when that is provably dead: two readers would share the output between them.
 *
 * @param value Of `about`: what Running.holder was.
 * @returns `isArmed`: nothing was read of its pipes since what was read is safe.
 */
export function adoptHeld({ watch }: Pick<Holders, "watch">, directory: string, value: unknown): Adopted {
  if (!isHolderRecord(value)) return { problem: "its holder is not described as it must be" };
  const { bootId, pidNamespace, child, holder, keeper, notesReads = false } = value;
  const here = identify();
  if (bootId !== here.bootId) return { ended: unknownEnd("the host was booted again") };
  if (pidNamespace !== here.pidNamespace) {
    return isRead(join(directory, "out"))
      ? { problem: "it runs in another pid namespace (a container)" }
      : { ended: unknownEnd("the container that it ran in has ended") };
  }
  const isHeld = stateOf(holder) !== undefined;
  if (isHeld && !isSameFile(`/proc/${holder.pid}/fd/3`, value.out))
    return { problem: `process ${holder.pid} is not its holder` };
  const stat = statOf(child.pid);
  const isThere = stat[19] === child.startTime;
  if (isHeld && isThere && Number(stat[1]) !== holder.pid)
    return { problem: `process ${child.pid} is not its holder's child` };
  if (isThere && isStrange(value)) return { problem: `process ${value.terminal!.leader.pid} is not in its terminal` };
  if (!isHeld && !isThere) return { ended: saidEnd(directory) ?? unknownEnd("it and its holder were killed") };
  const [stdout, stderr] = [3, 4].map((at) =>
    isHeld ? `/proc/${holder.pid}/fd/${at}` : join(directory, at === 3 ? "out" : "err"),
  );
  const areArmed = notesReads && [stdout, stderr].every((path) => isArmed(path!));
  const pipes = [stdout, stderr].map((path) => safely(() => openReader(path!)));
  const stdin =
    stateOf(keeper) === undefined ? undefined : safely(() => openFifo(`/proc/${keeper.pid}/fd/1`, constants.O_WRONLY)); // ENXIO: the child has closed it
  const running = runningHeld(watch, directory, value, pipes, stdin);
  return { running, isArmed: areArmed };
}

/** Its leader lives, but leads no session, or is not the child of its engine, as it is as long as that lives. */
function isStrange({ child, terminal }: HolderRecord): boolean {
  if (!terminal || stateOf(terminal.leader) === undefined) return false;
  const [, parent, , session] = statOf(terminal.leader.pid);
  return Number(session) !== terminal.leader.pid || (stateOf(child) !== undefined && Number(parent) !== child.pid);
}

function isHolderRecord(value: unknown): value is HolderRecord {
  const { bootId, pidNamespace, out, notesReads = false, terminal, ...processes } = Object(value) as HolderRecord;
  const isKnown = (known: Known) =>
    Number.isSafeInteger(Object(known).pid) &&
    known.pid > 1 &&
    typeof known.startTime === "string" &&
    /^\d+$/.test(known.startTime);
  return (
    typeof bootId === "string" &&
    typeof pidNamespace === "string" &&
    [processes.child, processes.holder, processes.keeper].every(isKnown) &&
    (terminal === undefined || (isKnown(Object(terminal).leader) && /^\/dev\/pts\/\d+$/.test(String(terminal.tty)))) &&
    typeof notesReads === "boolean" &&
    [Object(out).dev, Object(out).ino].every(Number.isSafeInteger)
  );
}

function isSameFile(path: string, { dev, ino }: { dev: number; ino: number }): boolean {
  const stats = safely(() => statSync(path));
  return stats?.isFIFO() === true && stats.dev === dev && stats.ino === ino;
}

/** Somebody has it open for reading, in whatever container of this host. */
function isRead(path: string): boolean {
  const descriptor = safely(() => openFifo(path, constants.O_WRONLY));
  if (descriptor !== undefined) closeSync(descriptor);
  return descriptor !== undefined;
}

/** A writer that comes and goes: where there is no other, the end is told, which it is not of writers that went before we came. */
function openReader(path: string): number {
  const descriptor = openFifo(path, constants.O_RDONLY);
  safely(() => closeSync(openFifo(path, constants.O_WRONLY)));
  return descriptor;
}

/**
 * Ends what a dead daemon had begun to start, and had not noted, so that nobody knows of it.
 *
 * @param directories Those of the held that have no `about`.
 * @returns When they are removed: it may be a slow disk.
 */
export async function sweepHeld(directories: string[]): Promise<void> {
  const processes = directories.length > 0 ? livingProcesses() : [];
  const byPath = new Map(directories.map((directory) => [join(directory, "out"), directory]));
  for (const holder of processes) {
    const directory = byPath.get(safely(() => readlinkSync(`/proc/${holder.pid}/fd/3`)) ?? "");
    if (directory === undefined) continue;
    for (const { pid, group } of processes.filter(({ parent }) => parent === holder.pid)) {
      const leaders = processes.filter((process) => process.parent === pid && process.session === process.pid); // in its terminal
      for (const { session } of leaders)
        for (const member of processes.filter((process) => process.session === session))
          safely(() => process.kill(member.pid, "SIGKILL"));
      safely(() => process.kill(group === pid ? -pid : pid, "SIGKILL")); // child and keeper
    }
    dismissHolder(directory, holder, undefined);
  }
  await Promise.allSettled(directories.map((directory) => rm(directory, { recursive: true, force: true })));
}
