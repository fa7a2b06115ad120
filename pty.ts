/**
 * Terminals: a command that is in one runs under an engine, script(1) of util-linux or python3, which holds the other side of a pty.
 *
 *     daemon ── in, out ── engine, the holder's child ══ pty ══ leader: the command; leads the session of the terminal
 *
 * The engine is a held child as any other (holders.ts): so the terminal, and what runs in it, outlive the daemon. What a client sees is the leader:
 * its pid, and signals, which go to every process group of its session. The engine itself is signalled last: what it does then is its own.
 *
 * An engine is taken by what it does, not by its name or version (probeEngines): older ones stop for ever when 80 KiB are typed that nobody reads,
 * others lose what is typed fast, or the exit code.
 */

import { spawn } from "node:child_process";
import { closeSync, constants, fstatSync, openSync, rmSync } from "node:fs";
import { cannot, errnoOf, errorCodes, quoteWord, reasonOf, safely, shorten } from "./failure.ts";
import type { Holders } from "./holders.ts";
import { addedNames, findProgram, shellFor, startHeld, takeDirectory } from "./holders.ts";
import type { Keeper, Mark, TerminalMark } from "./kept.ts";
import { holdersOf, writeMark } from "./kept.ts";
import type { Modes } from "./readers.ts";
import { allModes, alternateBits, modesText, trackModes } from "./readers.ts";
import { livingProcesses, now, sleep, soon, statOf, within } from "./record.ts";
import type { Params } from "./rpc.ts";
import { booleanParam, integerParam, invalidParam, isObject, knownParams, optionalStringParam } from "./rpc.ts";
import type { HolderRecord, Known, Running, Seen, Start } from "./running.ts";
import { stateOf, watchTrial } from "./running.ts";
import type { Spool } from "./spool.ts";
import { placeAt, readMessages } from "./spool.ts";

/** What makes a terminal. */
export interface Engine {
  name: "script" | "python3";
  /** Absolute. */
  path: string;
}

export interface Size {
  rows: number;
  columns: number;
}

/** `terminal` of process.spawn. */
export interface TerminalRequest {
  size: Size;
  term: string | undefined;
}

/** What a daemon knows of terminals. */
export interface TerminalKeeper extends Keeper {
  /** What makes them, or why nothing does: found out when it is first asked for. */
  engine: Promise<Engine | string> | undefined;
  /** It was found out that they can be made; and when: now(). */
  hasTerminals: boolean;
  triedAt: number;
}

/** The terminal of one child. */
export interface Terminal {
  readonly tty: string;
  readonly leader: Known;
  readonly engine: Known;
  /** What the next daemon is to know of it: with the mark of the child. */
  readonly kept: TerminalMark;
  readonly modes: Modes;
  /** What the mark on disk has at least. */
  writtenSeq: number;
  /** Sizes are set one after the other; and which was asked for last. */
  resizing: Promise<void>;
  wanted: Size | undefined;
}

const maxSize = 65_535;
/** Of a terminal whose mark is damaged. */
const usualSize = { rows: 24, columns: 80 };
/** After so many messages, of 32 KiB at most, what a terminal's output has set is noted, though it is not quiet. */
const markEvery = 128;
/** An engine has so long to show that it works. */
const trialMs = 5000;
const engineWaitMs = 4000;
/** A busy machine may have been too slow for a good one: where none was found, they are tried again, not sooner than after this. */
const retryMs = 60_000;
/** What is typed in a trial, read and not: more than a pty and a pipe take together. */
const pasteBytes = 64 << 10;
const floodBytes = 200_000;
/** What takes nothing more for so long is full. */
const fullMs = 100;
/** Between two sizes, for a program to see the first: what curses redraws is nothing, when it is set back at once. */
const redrawMs = 50;
/** From KILL to the session of a terminal to KILL to its engine. */
const engineKillMs = 500;

/**
 * As script(1), but that how the command ended is said by ending in the same way. Not pty.spawn(): it forgets what it has read when the command ends, and
 * up to 3.11.2 it stops when what is typed is not read.
 */
const pythonScript = `import os, pty, resource, select, signal, sys
pid, master = pty.fork()
if pid == 0:
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)
    os.execv(sys.argv[1], sys.argv[1:])
def read(file):
    try:
        return os.read(file, 65536)
    except OSError:
        return b""
def write(file, data):
    try:
        return data[os.write(file, data):]
    except BlockingIOError:
        return data
    except OSError:
        return b""
for file in (1, master):
    os.set_blocking(file, False)
typed, said, isOpen, lives = b"", b"", True, True
while lives or said:
    readers = [0] * (isOpen and len(typed) < 65536) + [master] * (lives and len(said) < 65536)
    ready, free, _ = select.select(readers, [master] * (len(typed) > 0 and lives) + [1] * (len(said) > 0), [])
    if master in ready:
        data = read(master)
        said, lives = said + data, data != b""
    if 0 in ready:
        data = read(0)
        typed, isOpen = typed + (data or b"\\4"), data != b""
    if master in free:
        typed = write(master, typed)
    if 1 in free:
        said = write(1, said)
how = os.waitpid(pid, 0)[1]
if os.WIFSIGNALED(how):
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.WTERMSIG(how) != signal.SIGKILL:
        signal.signal(os.WTERMSIG(how), signal.SIG_DFL)
    os.kill(os.getpid(), os.WTERMSIG(how))
sys.exit(os.WEXITSTATUS(how))`;

/** Finds out, once, what can make a terminal here, or why nothing can. That takes longer than a start: only who asks for it waits. */
export function engineOf(keeper: TerminalKeeper): Promise<Engine | string> {
  const find = async (): Promise<Engine | string> => {
    const holders = await holdersOf(keeper);
    const found = typeof holders === "string" ? holders : await probeEngines(holders, keeper.env);
    keeper.hasTerminals = typeof found !== "string";
    keeper.triedAt = now();
    keeper.log(`[Process] ${typeof found === "string" ? `No terminals: ${found}` : `Terminals are by ${found.path}`}`);
    return found;
  };
  const isOld = !keeper.hasTerminals && now() - keeper.triedAt > retryMs;
  if (isOld) Object.assign(keeper, { engine: undefined, triedAt: Infinity });
  keeper.engine ??= find().catch(reasonOf);
  return keeper.engine;
}

/**
 * For who asks what this daemon can do: on a host where one is tried that stops for ever, nobody waits for the end of that; nor for that of another
 * daemon, which has not left yet what it kept.
 */
export async function engineSoon(keeper: TerminalKeeper): Promise<void> {
  const engine = engineOf(keeper);
  if (keeper.claim) await holdersOf(keeper);
  await within(engine, engineWaitMs);
}

/** For who asks only whether what runs is held. */
export async function holdersSoon(keeper: TerminalKeeper): Promise<void> {
  await within(holdersOf(keeper), engineWaitMs);
}

/**
 * Finds the first engine that does all that is needed of it.
 *
 * @returns Why there is none, in words.
 */
export async function probeEngines(holders: Holders, env: NodeJS.ProcessEnv): Promise<Engine | string> {
  const missing = ["stty", "tty"].find((name) => findProgram(env, name) === undefined);
  if (missing !== undefined) return `there is no ${missing} in PATH`;
  const problems: string[] = [];
  for (const name of ["script", "python3"] as const) {
    const path = findProgram(env, name);
    if (path === undefined) continue;
    const engine = { name, path };
    const problem = await tryEngine(holders, engine, env);
    if (problem === undefined) return engine;
    problems.push(`${path} ${problem}`);
  }
  return problems.join("; ") || "there is neither script (of util-linux) nor python3 in PATH";
}

async function tryEngine(holders: Holders, engine: Engine, env: NodeJS.ProcessEnv): Promise<string | undefined> {
  const trials = [tryPaste, tryFlood].map(async (trial) => {
    const directory = await takeDirectory(holders);
    try {
      return await trial({ holders, engine, env, directory });
    } catch (error) {
      return `does not start a command: ${reasonOf(error)}`;
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  });
  const problems = (await Promise.all(trials)).filter((problem) => problem !== undefined);
  return problems.length > 0 ? [...new Set(problems)].join(", and ") : undefined;
}

/** What is tried, and where. */
interface Tried {
  holders: Holders;
  engine: Engine;
  env: NodeJS.ProcessEnv;
  directory: string;
}

/** What is seen of a trial, and was typed in it. */
interface Trial extends Seen {
  running: Running;
  typed: number;
  typedAt: number;
}

async function startTrial(tried: Tried, script: string, input: Buffer): Promise<Trial> {
  const { holders, engine, directory } = tried;
  const env = { PATH: tried.env.PATH, TERM: "dumb" };
  const start = { command: "/bin/sh", args: ["-c", script], cwd: "/", env, hasNoStdin: false, startMs: trialMs };
  const size = { rows: 41, columns: 137 };
  const running = await startHeld(holders, directory, terminalStart(holders, engine, directory, start, size));
  const type = (): void => {
    const taken = safely(() => running.write(input.subarray(trial.typed))) ?? 0;
    if (taken > 0) Object.assign(trial, { typed: trial.typed + taken, typedAt: now() });
  };
  const hear = () => trial.typedAt === 0 && trial.said.includes("ready\n") && type();
  const trial: Trial = Object.assign(watchTrial(running, hear, type), { running, typed: 0, typedAt: 0 });
  return trial;
}

/** It is typed 64 KiB, says them again, and ends with 7. */
async function tryPaste(tried: Tried): Promise<string | undefined> {
  const input = Buffer.from(Array.from({ length: pasteBytes }, (_, at) => (at * 31 + (at >> 8)) & 0xff));
  const script = `stty size; stty raw -echo; echo ready; head -c ${pasteBytes}; exit 7`;
  const trial = await startTrial(tried, script, input);
  try {
    const isOver = await soon(() => trial.how && trial.isClosed, trialMs, 5);
    if (!trial.said.startsWith("41 137\r\n")) return `does not give it its size, 41 137: ${wordsOf(trial.said)}`;
    if (trial.typedAt === 0) return `does not give it a terminal that stty can set: ${wordsOf(trial.said)}`;
    const came = Buffer.from(trial.said, "latin1").subarray("41 137\r\nready\n".length);
    if (!came.equals(input)) return `loses what is typed: of ${pasteBytes} bytes at once ${came.length} came back`;
    if (!isOver) return "does not end with its command";
    return trial.how!.code === 7 ? undefined : `makes of exit code 7 ${trial.how!.code ?? trial.how!.signal}`;
  } finally {
    await endTrial(trial);
  }
}

/** It is typed what it never reads, and is heard nevertheless. */
async function tryFlood(tried: Tried): Promise<string | undefined> {
  const input = Buffer.alloc(floodBytes, "x");
  const script = "stty raw -echo; echo ready; while :; do echo tick; sleep 0.02; done";
  const trial = await startTrial(tried, script, input);
  try {
    const isFull = (): boolean => trial.typedAt > 0 && (trial.typed === floodBytes || now() - trial.typedAt > fullMs);
    if (!(await soon(isFull, trialMs, 5))) return "does not take what is typed";
    const heard = trial.said.length;
    // the third has been said after the first was heard
    if (await soon(() => trial.said.length >= heard + "tick\n".repeat(3).length, trialMs, 5)) return undefined;
    return `stops when ${floodBytes} bytes are typed that its command does not read`;
  } finally {
    await endTrial(trial);
  }
}

async function endTrial({ running, how }: Trial): Promise<void> {
  const { child, terminal } = running.holder as HolderRecord;
  if (!how) {
    signalSession({ leader: terminal!.leader, engine: child }, "SIGKILL");
    await soon(() => stateOf(child) === undefined, 2 * engineKillMs, 5);
  }
  running.release();
}

function wordsOf(said: string): string {
  return said === "" ? "it says nothing" : `it says ${JSON.stringify(said.slice(0, 100))}`;
}

export function terminalParam(params: Params, name: string): TerminalRequest | undefined {
  const value = params[name] ?? undefined;
  if (value === undefined) return undefined;
  if (!isObject(value)) throw invalidParam(name, value, "an object with rows and columns");
  knownParams(value, ["rows", "columns", "term"]);
  const term = optionalStringParam(value, "term");
  if (term?.includes("\0")) throw invalidParam("term", term, "without NUL");
  return { size: sizeParam(value), term };
}

export function sizeParam(params: Params): Size {
  const [rows, columns] = ["rows", "columns"].map((name) => integerParam(params, name, { min: 1, max: maxSize }));
  return { rows: rows!, columns: columns! };
}

/** What tells of the daemon's own terminal, if it had one, is not this one's. */
export function setTerm(env: NodeJS.ProcessEnv, given: NodeJS.ProcessEnv, { term }: TerminalRequest): void {
  for (const name of ["LINES", "COLUMNS"]) if (given[name] === undefined) delete env[name];
  env.TERM = term ?? (env.TERM || "xterm-256color");
}

/**
 * What a holder starts in place of a command that is to have a terminal: the engine, in it a shell that says who it is, sets the size, and becomes
 * the command. Values of the environment stand in no argument: what the engine has to have otherwise is kept under another name.
 */
export function terminalStart(
  { tools }: Pick<Holders, "tools">,
  engine: Engine,
  directory: string,
  start: Start,
  { rows, columns }: Size,
): Start {
  const { command, args, env } = start;
  const shell = shellFor(tools, env);
  const moved: NodeJS.ProcessEnv = { ...env };
  const restored: string[] = [];
  for (const name of ["SHELL", "BASH_ENV"]) {
    delete moved[name];
    if (env[name] === undefined) restored.push(`unset ${name}`);
    else {
      moved[`HOLDFAST_${name}`] = env[name];
      restored.push(`${name}=$HOLDFAST_${name}; export ${name}; unset HOLDFAST_${name}`);
    }
  }
  moved.SHELL = shell[0];
  const [tty, stty] = ["tty", "stty"].map((name) => quoteWord(findProgram(process.env, name) ?? name));
  const inner = `exec 9>${quoteWord(`${directory}/start`)}
read -r HOLDFAST_STAT </proc/$$/stat; echo "$(${tty}) $HOLDFAST_STAT" >&9
HOLDFAST_FAILED=${quoteWord(`${directory}/failed`)}; trap 'echo $? >"$HOLDFAST_FAILED"' EXIT; [ -z "$BASH_VERSION" ] || shopt -s execfail
${stty} rows ${rows} cols ${columns} 2>/dev/null
${restored.join("\n")}
unset ${addedNames(env)}
{ exec ${[command, ...args].map(quoteWord).join(" ")}; } 9>&-`;
  const words =
    engine.name === "script" ? ["-qefc", inner, "/dev/null"] : ["-IS", "-c", pythonScript, ...shell, "-c", inner];
  return { ...start, command: engine.path, args: words, env: moved, hasTerminal: true };
}

/** @param kept What is known of it: it becomes a part of the child's mark. */
export function createTerminal(
  holder: object | undefined,
  mark: Mark | undefined,
  kept: TerminalMark,
): Terminal | undefined {
  const { terminal, child } = Object(holder) as HolderRecord;
  if (!terminal) return undefined;
  if (mark) mark.terminal = kept;
  return {
    ...terminal,
    engine: child,
    kept,
    modes: { bits: kept.modes, part: undefined },
    writtenSeq: kept.seq,
    resizing: Promise.resolve(),
    wanted: undefined,
  };
}

export function createTerminalMark({ rows, columns }: Size): TerminalMark {
  return { rows, columns, modes: 0, seq: 0 };
}

/**
 * Takes up what an earlier daemon has known of a terminal, and what it has spooled since it noted that.
 *
 * @param mark Of the child, as it goes on. @param found As it was found; what is damaged in it is not believed.
 */
export function adoptTerminal(
  holder: object | undefined,
  mark: Mark | undefined,
  found: TerminalMark | undefined,
  spool: Spool,
): Terminal | undefined {
  const isSize = (value: number): boolean => Number.isInteger(value) && value >= 1 && value <= maxSize;
  const isRight = found && isSize(found.rows) && isSize(found.columns) && found.modes <= allModes;
  const kept = isRight && Number.isInteger(found.modes) ? { ...found } : createTerminalMark(usualSize);
  const terminal = createTerminal(holder, mark, kept);
  if (!terminal) return undefined;
  const from = Math.max(kept.seq + 1, spool.firstSeq, spool.lastSeq + 1 - 2 * markEvery);
  const place = placeAt(spool, from, false);
  for (let messages = readMessages(spool, place); messages.length > 0; messages = readMessages(spool, place))
    for (const { seq, stream, data } of messages)
      if (stream === "stdout" || stream === "stderr") noteOutput(terminal, data, seq);
  spool.places.delete(place);
  return terminal;
}

/** As process.reattach answers it. */
export function describeTerminal({ terminal }: { terminal: Terminal | undefined }): object {
  if (!terminal) return {};
  const { rows, columns } = terminal.kept;
  const { bits } = terminal.modes;
  return { terminal: { rows, columns, modes: modesText(bits), alternate: (bits & alternateBits) !== 0 } };
}

/**
 * Follows what its output sets.
 *
 * @param seq Of the message that ends with it.
 * @returns Whether the mark is to be written: what is not noted in it the next daemon reads in the spool, but not all of that.
 */
export function noteOutput(terminal: Terminal, chunk: Buffer, seq: number): boolean {
  const { modes, kept, writtenSeq } = terminal;
  trackModes(modes, chunk);
  if (modes.part !== undefined) return false; // it is read from before this sequence on
  Object.assign(kept, { modes: modes.bits, seq });
  if (seq - writtenSeq < markEvery) return false;
  terminal.writtenSeq = seq;
  return true;
}

// Its size

/** What is resized: a child (children.ts). */
interface Resized {
  readonly id: string;
  readonly exit?: object;
  readonly terminal: Terminal | undefined;
  readonly mark: Mark | undefined;
  readonly spool: { readonly directory: string | undefined };
}

/**
 * Sets the size of a child's terminal, when those asked for before are set.
 *
 * `redraw` has a program that looks at its size draw again, also where that is what it was: it is another for a moment.
 *
 * @throws {Failure} It has no terminal, or has ended; or stty(1) says why not.
 */
export async function resize({ env }: TerminalKeeper, child: Resized, params: Params): Promise<object> {
  const { terminal, mark, spool } = child;
  const size = sizeParam(params);
  const redraw = booleanParam(params, "redraw", false);
  const act = async (): Promise<void> => {
    refuseEnded(child);
    if (terminal!.wanted !== size && !redraw) return; // another was asked for meanwhile
    const { rows, columns } = size;
    const other = { rows, columns: columns > 1 ? columns - 1 : 2 };
    if (redraw) await setSize(terminal!, other, env);
    if (redraw) await sleep(redrawMs);
    await setSize(terminal!, size, env);
    Object.assign(terminal!.kept, size);
    if (mark) writeMark(spool.directory!, mark);
  };
  refuseEnded(child);
  terminal!.wanted = size;
  const resized = terminal!.resizing.then(act);
  terminal!.resizing = resized.catch(() => {});
  await resized;
  return { success: true };
}

function refuseEnded({ id, terminal, exit }: Resized): void {
  const why = terminal ? "the process has ended" : "it has no terminal";
  if (!terminal || exit || stateOf(terminal.leader) === undefined)
    throw cannot(`resize process "${shorten(id)}": ${why}`, { code: errorCodes.invalidParams });
}

async function setSize(terminal: Terminal, { rows, columns }: Size, env: NodeJS.ProcessEnv): Promise<void> {
  const { tty, leader } = terminal;
  const doing = `set the size of "${tty}"`;
  // whatever the path leads to by now, it is to be the terminal of this leader
  const descriptor = openTty(terminal, doing);
  try {
    const handle = spawn(findProgram(env, "stty") ?? "stty", ["rows", String(rows), "cols", String(columns)], {
      stdio: [descriptor, "ignore", "pipe"],
    });
    let words = "";
    handle.stderr!.on("data", (chunk: Buffer) => (words += chunk));
    const code = await new Promise((done, fail) => handle.on("close", done).on("error", fail));
    if (code !== 0 && stateOf(leader) !== undefined)
      throw cannot(`${doing}: ${words.trim() || `stty exits with ${code}`}`);
  } finally {
    closeSync(descriptor);
  }
}

/** Opens it without taking it for our own, and without waiting. */
function openTty({ tty, leader }: Terminal, doing: string): number {
  const { O_RDWR, O_NOCTTY, O_NONBLOCK, O_NOFOLLOW } = constants;
  let descriptor: number;
  try {
    descriptor = openSync(tty, O_RDWR | O_NOCTTY | O_NONBLOCK | O_NOFOLLOW);
  } catch (error) {
    throw cannot(`${doing}: ${reasonOf(error)}`, { cause: error });
  }
  const stats = fstatSync(descriptor);
  const device = stateOf(leader) && statOf(leader.pid)[4];
  if (stats.isCharacterDevice() && String(stats.rdev) === device) return descriptor;
  closeSync(descriptor);
  throw cannot(`${doing}: it is not the terminal of process ${leader.pid}`);
}

// Signals

/**
 * Signals every process group of a terminal's session. The engine is continued with it: it stops itself when the leader stops; and is killed when it
 * outlives a KILL to all of these.
 *
 * @param known Members that are left of the session: "pid start-time", where its leader has ended.
 * @returns false if there is nobody left to signal.
 * @throws EPERM None of them may be signalled.
 */
export function signalSession(
  { leader, engine }: Pick<Terminal, "leader" | "engine">,
  signal: NodeJS.Signals,
  known?: Set<string>,
): boolean {
  const members = livingProcesses().filter(({ session }) => session === leader.pid);
  const isOurs =
    statOf(leader.pid)[19] === leader.startTime ||
    members.some(({ pid, startTime }) => known?.has(`${pid} ${startTime}`));
  const groups = isOurs ? [...new Set(members.map(({ group }) => group))] : [];
  const errors: unknown[] = [];
  for (const group of groups) {
    try {
      process.kill(-group, signal);
    } catch (error) {
      errors.push(error);
    }
  }
  if (signal === "SIGCONT" || signal === "SIGKILL") signalEngine(engine, "SIGCONT");
  if (signal === "SIGKILL") setTimeout(signalEngine, engineKillMs, engine, "SIGKILL");
  const refused = errors.find((error) => errnoOf(error) !== "ESRCH");
  if (refused !== undefined && errors.length === groups.length) throw refused;
  return groups.length > errors.length || stateOf(engine) !== undefined;
}

/** It is the holder's child: until that reaps it, its pid is nobody else's. */
function signalEngine(engine: Known, signal: NodeJS.Signals): void {
  if (stateOf(engine) !== undefined) safely(() => process.kill(engine.pid, signal));
}
