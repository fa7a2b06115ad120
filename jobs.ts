/**
 * For people and scripts: --run, and all that comes back to what it has started.
 *
 *     stdin ─▶ process.stdin ─▶ the process ─▶ stream messages ─▶ stdout and stderr
 *
 * A process is followed over any number of connections: by seq it is known where to go on, by offset which of stdin has arrived. A lost line ends us,
 * not the process.
 */

import type { Socket } from "node:net";
import { constants } from "node:os";
import type { Writable } from "node:stream";
import { isatty } from "node:tty";
import type { Client, Message } from "./client.ts";
import { createClient } from "./client.ts";
import type { StartOptions } from "./control.ts";
import { reachOtherwise, startServer } from "./control.ts";
import type { Listed } from "./doctor.ts";
import { listWords, unknownEndWords } from "./doctor.ts";
import { ownEnvironment } from "./environment.ts";
import {
  cannot,
  cleanText,
  defer,
  errnoOf,
  errorCodes,
  exitCodes,
  Failure,
  nearest,
  reasonOf,
  safely,
} from "./failure.ts";
import type { Lifetime } from "./lifetime.ts";
import { ancestors, areAlive } from "./program.ts";
import type { Size } from "./pty.ts";
import { answerMs, ownerKey, tryReach } from "./reach.ts";
import type { Identity } from "./record.ts";
import { readRecord, sleep } from "./record.ts";
import type { Places } from "./socket.ts";
import { maxPathBytes } from "./socket.ts";
import type { DetachKey, Screen, ScreenWorld, Tail } from "./terminal.ts";
import {
  besideScreen,
  closeScreen,
  createReplay,
  createTail,
  endOf,
  flush,
  hasTerminal,
  jsonLine,
  keepTail,
  noteModes,
  openOutput,
  openScreen,
  ownSize,
  print,
  redrawOn,
  requireTerminal,
  say,
} from "./terminal.ts";

/** Of one write to stdin: a daemon's queue has room for 256 of them. */
const inputBytes = 64 << 10;
/** What is printed of a process that somebody comes back to; and in how many messages these lines are looked for. */
const attachLines = 20;
const attachMessages = 500;
/** A TERM, and stdin's end, are looked at for so long: with SIGHUP, EPIPE or the end of an ancestor they are a lost line. */
const lostLineMs = 250;
/** Why we are not sent its output any more. */
const goneWords: Record<string, string> = {
  forgotten: "it was forgotten",
  backpressure: "another reads it, and was not held up any longer",
};
/** How often the ancestors are looked for. */
const ancestorsMs = 2000;
/** How often a full queue of stdin is tried. */
const queueMs = 50;

export interface RunRequest {
  command: string;
  args: string[];
  id: string | undefined;
  cwd: string | undefined;
  /** NAME=VALUE, or NAME of our own. */
  env: string[];
  isDetached: boolean;
  hasTerminal: boolean;
  /** What leaves its terminal. */
  detachKey: DetachKey | undefined;
  /** Also where a daemon runs: its verdict is measured again, and lingering switched on. */
  startsAlways: boolean;
  requiresSurvival: boolean;
}

export interface JobsWorld {
  places: Places;
  /** What starts a daemon. */
  start: Omit<StartOptions, "tokenHashes">;
  /** The token of a daemon that is started anew. */
  tokenHashes: () => string[];
  /** Words on stderr. */
  note(text: string): void;
  warn(text: string, hint: string | undefined): void;
}

/** A process that is followed. */
interface Job {
  world: JobsWorld;
  id: string;
  /** Other readers keep their streams; and its stdin is not ours alone, so that what was not answered is never sent again. */
  isShared: boolean;
  /** The process waits for us. */
  isLossless: boolean;
  client: Client;
  socket: Socket;
  /** Of the last message that was printed. */
  lastSeq: number;
  /** Of the last one that is wanted: what comes then is not printed. */
  stopSeq: number;
  /** Bytes of stdin that the daemon has accepted of us. */
  applied: number;
  outputs: { stdout: Writable; stderr: Writable };
  /** While it catches up: only the last lines are printed then. */
  tail: Tail | undefined;
  /** Resolves to our exit code. */
  done: Promise<number>;
  end(code: number): void;
  /** The connection that is being made in place of a lost one. */
  reconnecting: Promise<void> | undefined;
  hasEnded: boolean;
  /** Our terminal, where it is the process's. */
  screen: Screen | undefined;
  /** What is said when that is ours again. */
  farewell: string | undefined;
  /** Ours at the start: what the line hangs on. */
  chain: Identity[];
  isHungUp: boolean;
}

interface Connected {
  client: Client;
  socket: Socket;
}

/** Connects as the owner; a daemon that has died unmeant is started again. */
async function connect({ places, start }: JobsWorld): Promise<Connected> {
  const attempt = await tryReach(places, answerMs);
  const reached = "socket" in attempt ? attempt.socket : await reachOtherwise(places, attempt, start);
  if (reached instanceof Failure) throw reached;
  const client = createClient(reached, places.socket);
  try {
    await client.request("server.authenticate", { token: ownerKey(places) }, undefined, answerMs);
  } catch (error) {
    client.close();
    throw error;
  }
  return { client, socket: reached };
}

/** --run: starts a process, and follows it. */
export async function run(world: JobsWorld, request: RunRequest): Promise<number> {
  return withRunCodes(async () => {
    if (request.hasTerminal && !request.isDetached)
      requireTerminal(
        `run "${request.command}" in a terminal`,
        "ssh -t HOST …; or start it and go: --detach --terminal",
      );
    const how = spawnParams(world, request);
    const connected = await connectOrStart(world, request);
    const { client } = connected;
    try {
      const before =
        request.id === undefined ? [] : (await listProcesses(client)).filter(({ id }) => id === request.id);
      const job = createJob(world, connected, request.id ?? "", { isShared: false, isLossless: true });
      const answer = (await client.request("process.spawn", how)) as {
        id?: string;
        pid: number;
        droppedEnv?: string[];
      };
      job.id = answer.id ?? request.id!;
      if (before.length > 0) world.note(`the process "${job.id}" that had ended is replaced, with its output`);
      if (answer.droppedEnv) world.note(`not passed on, no shell takes such names: ${answer.droppedEnv.join(", ")}`);
      if (request.hasTerminal && !request.isDetached) takeScreen(job, { key: request.detachKey, isWatching: false });
      if (!request.isDetached) return await follow(job, { hasInput: true, passes: true, isNew: true });
      const { lifetime } = (await client.request("server.capabilities", {})) as { lifetime: Lifetime };
      world.note(`"${job.id}" (pid ${answer.pid}) runs; survives logout: ${lifetime.words}`);
      print(1, `${job.id}\n`);
      return exitCodes.done;
    } catch (error) {
      throw asCommandFailure(error as Failure);
    } finally {
      client.close();
    }
  });
}

function spawnParams({ places }: JobsWorld, request: RunRequest): object {
  const { id, command, args, isDetached, hasTerminal } = request;
  const umask = process.umask(0o77);
  process.umask(umask);
  return {
    ...(id === undefined ? {} : { id }),
    ...{ command, args, cwd: resolveDirectory(request.cwd), umask, clearEnv: true },
    env: ownEnvironment(agentOf(places), request.env),
    stdin: isDetached && !hasTerminal ? "none" : "open",
    lossless: !isDetached,
    ...(hasTerminal ? { terminal: { ...ownSize(), term: process.env.TERM || undefined } } : {}),
  };
}

/** Starts the daemon where none runs, as --serve does, with its warnings. */
async function connectOrStart(world: JobsWorld, request: RunRequest): Promise<Connected> {
  if (!request.startsAlways) {
    const connected = await connect(world).catch((error: Failure) => error);
    if (!(connected instanceof Failure)) return connected;
    if (connected.code !== errorCodes.noDaemon) throw connected;
  }
  const progress = (line: string): unknown => isatty(2) && world.note(`${line} …`);
  const { lifetime, how } = await startServer({ ...world.start, progress, tokenHashes: world.tokenHashes() });
  if (how === "started") for (const { message, hint } of lifetime.warnings) world.warn(message, hint);
  if (request.requiresSurvival && lifetime.survivesLogout !== "yes")
    throw new Failure(`Cannot run it so that it is sure to survive logout: ${lifetime.words}`, {
      exit: exitCodes.willNotSurvive,
      hint: lifetime.warnings[0]?.hint ?? "see --doctor",
    });
  return connect(world);
}

/** The link that the daemon's other processes have, too. */
function agentOf({ agent, record }: Places): Record<string, string> {
  const hasNone = readRecord(record).record?.noAgent || Buffer.byteLength(agent) > maxPathBytes;
  return hasNone ? {} : { SSH_AUTH_SOCK: agent };
}

function resolveDirectory(given: string | undefined): string {
  const here = safely(() => process.cwd()) ?? "/";
  return given === undefined || given.startsWith("/") ? (given ?? here) : `${here}/${given}`;
}

/** As env(1) and docker have it. */
function asCommandFailure(error: Failure): Failure {
  const isCommand = /^Cannot start "[^"]*": /.test(error.message);
  const errno = error.errno;
  if (!isCommand || (errno !== "ENOENT" && errno !== "EACCES" && errno !== "ENOEXEC" && errno !== "EISDIR"))
    return error;
  const isAbsent = errno === "ENOENT" && !error.message.includes("interpreter");
  return new Failure(error.message, { exit: isAbsent ? 127 : 126, data: error.data, hint: error.hint });
}

/** A wrong command line is 64, an unknown id 1, a command's own 126 and 127; any other failure of ours is 125, with the table's code in words. */
async function withRunCodes(action: () => Promise<number>): Promise<number> {
  try {
    return await action();
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    const { message, exit, hint, data, code } = error;
    if (exit === exitCodes.usage || exit === 126 || exit === 127 || data.unknownId) throw error;
    throw new Failure(`${message} (exit code ${exit} of the table)`, { exit: 125, hint, data, code });
  }
}

/** --attach: the last lines, or the screen drawn again; then what comes, with stdin. */
export function attach(world: JobsWorld, id: string, hasInput: boolean, key: DetachKey | undefined): Promise<number> {
  return withRunCodes(() =>
    withJob(world, id, { isShared: true, isLossless: true }, async (job) => {
      const { lastSeq, terminal, running } = await takeUp(job, -attachMessages);
      job.tail = createTail(attachLines, lastSeq);
      if (terminal && running && hasInput)
        requireTerminal(`attach to "${id}" in its terminal`, `ssh -t HOST …; or read it: --attach ${id} --no-stdin`);
      if (terminal && hasTerminal()) job.tail = createReplay(lastSeq, running && terminal.alternate);
      if (terminal && running && hasTerminal()) takeScreen(job, { key, isWatching: !hasInput }, terminal);
      return follow(job, { hasInput, passes: true });
    }),
  );
}

/** --wait: its end, and nothing else. */
export function wait(world: JobsWorld, id: string): Promise<number> {
  return withRunCodes(() =>
    withJob(world, id, { isShared: true, isLossless: false }, async (job) => {
      job.tail = createTail(0, Infinity);
      await takeUp(job, -1);
      return follow(job);
    }),
  );
}

/** --logs: all that is held, or the last lines of it; and with `follows` what comes. */
export function printLogs(world: JobsWorld, id: string, lines: number | undefined, follows: boolean): Promise<number> {
  return withJob(world, id, { isShared: true, isLossless: false }, async (job) => {
    const { firstSeq, lastSeq, running } = await takeUp(job, 0);
    if (firstSeq > 1) world.note(`${firstSeq - 1} older messages are not held any more`);
    if (lines !== undefined) job.tail = createTail(lines, lastSeq);
    job.lastSeq = Math.max(0, firstSeq - 1);
    if (!follows && running) job.stopSeq = lastSeq;
    if (lastSeq === 0 && !follows) return exitCodes.done;
    await follow(job);
    return hasLost(job) ? exitCodes.failed : exitCodes.done;
  });
}

/** Our terminal becomes the process's; with one that it has had before, drawn again. */
function takeScreen(job: Job, manner: Pick<ScreenWorld, "key" | "isWatching">, before?: TerminalState): void {
  const { world, id, tail } = job;
  const leaving = manner.key ? `${manner.key.name} leaves it, as a lost line does` : "a lost line leaves it";
  if (isatty(2)) world.note(`${leaving}; --attach ${id} comes back`);
  const say = { note: besideScreen(() => job.screen, world.note), warn: besideScreen(() => job.screen, world.warn) };
  job.world = { ...world, ...say, start: { ...world.start, progress: say.note } };
  job.screen = openScreen({
    ...manner,
    type: (bytes) => writeInput(job, bytes),
    resize: (size, redraw) => void job.client.request("process.resize", { id, ...size, redraw }).catch(() => undefined), // it has just ended
    leave: () => leave(job, "left", exitCodes.done),
    lose: () => leave(job),
  });
  if (!tail || !before) return;
  tail.shown = () => {
    write(job, "stdout", Buffer.from(before.modes, "latin1"));
    redrawOn(job.screen!, before);
  };
  if (tail.untilSeq === 0) flushTail(job);
}

async function withJob(
  world: JobsWorld,
  id: string,
  manner: Pick<Job, "isShared" | "isLossless">,
  action: (job: Job) => Promise<number>,
): Promise<number> {
  const job = createJob(world, await connect(world), id, manner);
  try {
    return await action(job);
  } finally {
    job.hasEnded = true;
    job.client.close();
  }
}

function createJob(
  world: JobsWorld,
  connected: Connected,
  id: string,
  manner: Pick<Job, "isShared" | "isLossless">,
): Job {
  const { promise: done, resolve: end } = defer<number>();
  const outputs = { stdout: openOutput(1), stderr: openOutput(2) };
  return {
    ...{ world, id, ...manner, ...connected, outputs, done, end },
    ...{ lastSeq: 0, stopSeq: Infinity, applied: 0, tail: undefined, hasEnded: false },
    ...{ screen: undefined, farewell: undefined, reconnecting: undefined },
    ...{ chain: ancestors(), isHungUp: false },
  };
}

interface TerminalState extends Size {
  /** What sets what its program has set. */
  modes: string;
  alternate: boolean;
}

interface TakenUp {
  found: boolean;
  running: boolean;
  firstSeq: number;
  lastSeq: number;
  stdinApplied: number;
  terminal?: TerminalState;
}

/** @throws {Failure} There is no such process: exit code 1, naming the nearest. */
async function takeUp({ client, id, isShared, isLossless }: Job, fromSeq: number): Promise<TakenUp> {
  const overtake = isShared && isLossless ? { overtake: true } : {};
  const params = { id, fromSeq, share: isShared, lossless: isLossless, ...overtake };
  const answer = (await client.request("process.reattach", params)) as TakenUp;
  if (!answer.found) throw await unknownId(client, id);
  return answer;
}

async function unknownId(client: Client, id: string): Promise<Failure> {
  const ids = (await listProcesses(client)).map((entry) => entry.id);
  const near = nearest(id, ids);
  return cannot(`find process "${cleanText(id, 100)}": there is none with this id`, {
    data: { unknownId: true },
    hint: near === undefined ? "see --list" : `did you mean "${near}"? See --list`,
  });
}

/** @returns Our exit code, when it has ended, or we have left it. */
async function follow(
  job: Job,
  manner: { hasInput?: boolean; passes?: boolean; isNew?: boolean } = {},
): Promise<number> {
  const { hasInput, passes, isNew } = manner;
  const { world, outputs } = job;
  for (const [name, output] of Object.entries(outputs))
    output.on("error", (error: unknown) => {
      if (errnoOf(error) !== "EPIPE") world.warn(`cannot write to ${name}: ${reasonOf(error)}`, undefined);
      job.end(errnoOf(error) === "EPIPE" ? exitCodes.done : 125); // nobody reads: it goes on without us
    });
  setInterval(() => areAlive(job.chain) || leave(job), ancestorsMs).unref();
  if (passes) passSignals(job);
  listen(job);
  if (isNew && isatty(2) && !job.screen)
    world.note(`"${job.id}" runs; if the line is lost it goes on: --attach ${job.id}`);
  if (hasInput && !job.screen) void passInput(job);
  const code = await job.done;
  job.hasEnded = true;
  flushTail(job);
  await Promise.all(Object.values(outputs).map(flush));
  if (job.screen) closeScreen(job.screen, job.farewell !== undefined);
  if (job.farewell !== undefined) safely(() => job.world.note(job.farewell!));
  return code === exitCodes.done && hasLost(job) ? 125 : code;
}

/** Not all could be written: a disk is full. Who has stopped reading has all they want. */
function hasLost({ outputs }: Job): boolean {
  return Object.values(outputs).some(({ errored }) => errored && errnoOf(errored) !== "EPIPE");
}

/** Takes the messages of a connection, and makes another when it is lost. */
function listen(job: Job): void {
  const { client } = job;
  client.onMessage((message) => takeMessage(job, message));
  void client.closed.then(() => {
    if (job.hasEnded || job.client !== client) return;
    job.reconnecting = reconnect(job).catch((error: Failure) => {
      job.world.warn(error.message, error.hint);
      job.end(125);
    });
  });
}

async function reconnect(job: Job): Promise<void> {
  await sleep(0);
  Object.assign(job, await connect(job.world));
  const { firstSeq, lastSeq, stdinApplied, terminal } = await takeUp(job, job.lastSeq);
  const missed = Math.min(firstSeq, lastSeq + 1) - job.lastSeq - 1;
  if (missed > 0) job.world.note(`${missed} messages are not held any more`);
  if (!job.isShared && stdinApplied < job.applied)
    job.world.note(`${job.applied - stdinApplied} bytes of its stdin were lost with the daemon`);
  job.applied = stdinApplied;
  job.reconnecting = undefined;
  listen(job);
  if (job.screen) redrawOn(job.screen, terminal);
}

function takeMessage(job: Job, message: Message): void {
  const { type, stream: name, seq } = message as { type?: string; stream?: string; seq?: number };
  if (type === "detached") {
    job.world.note(`"${job.id}" goes on: ${goneWords[message.by as string] ?? "another has taken its output over"}`);
    job.end(125);
    return;
  }
  if (type !== "stream" || seq === undefined || seq <= job.lastSeq || job.lastSeq >= job.stopSeq) return;
  if (job.tail && seq > job.tail.untilSeq) flushTail(job);
  job.lastSeq = seq;
  if (name === "stdout" || name === "stderr") write(job, name, Buffer.from(message.data as string, "base64"));
  else if (name === "gap" && job.screen) redrawOn(job.screen);
  else if (name === "gap") job.world.note(`at most ${message.maxBytes} bytes of its output were lost here`);
  else if (name === "exit") job.end(exitCodeOf(job, message));
  if (job.tail && seq >= job.tail.untilSeq) flushTail(job);
  if (seq >= job.stopSeq) job.end(exitCodes.done);
}

/** Its own, as far as anybody knows it. */
function exitCodeOf(job: Job, message: Message): number {
  const { exitCode, signal, unknown } = message as { exitCode?: number; signal?: string; unknown?: string };
  if (unknown !== undefined) job.farewell = unknownEndWords(job.id, unknown);
  const own = unknown === undefined ? (exitCode ?? exitCodes.failed) : 125;
  const number = signal ? (constants.signals as Record<string, number>)[signal] : undefined;
  return number === undefined ? own : 128 + number;
}

/** The daemon is not read from while nobody reads us. */
function write(job: Job, name: "stdout" | "stderr", bytes: Buffer): void {
  const { tail, outputs, socket } = job;
  if (tail) keepTail(tail, name, bytes);
  else if (job.screen) noteModes(job.screen.modes, bytes);
  const output = outputs[name];
  if (tail || output.write(bytes)) return;
  socket.pause();
  // one chunk may have many messages
  if (output.listenerCount("drain") === 0) output.once("drain", () => job.socket.resume());
}

/** Prints the last lines, and then all that comes. */
function flushTail(job: Job): void {
  const { tail } = job;
  if (!tail) return;
  job.tail = undefined;
  for (const { stream: name, bytes } of endOf(tail)) write(job, name, bytes);
  tail.shown?.();
}

// stdin, signals, and the line

async function passInput(job: Job): Promise<void> {
  try {
    for await (const chunk of process.stdin)
      for (let at = 0; at < chunk.length; at += inputBytes) await writeInput(job, chunk.subarray(at, at + inputBytes));
  } catch {
    return; // it cannot be read: the process keeps its stdin
  }
  if (await isLineLost(job)) return leave(job);
  await writeInput(job, Buffer.alloc(0), true);
}

/**
 * What was not answered is sent again by offset, so that nothing arrives twice; not to another's process, to which others write, too. Before a line is
 * lost there is no need of offsets: they would count what others have written for ours.
 */
async function writeInput(job: Job, bytes: Buffer, end = false): Promise<void> {
  const before = job.applied;
  for (let again = {}; !job.hasEnded; ) {
    const sentBy = job.client;
    try {
      const params = { id: job.id, data: bytes.toString("base64"), end, ...again };
      job.applied = ((await job.client.request("process.stdin", params)) as { applied: number }).applied;
      return;
    } catch (error) {
      const { code } = error as Failure;
      if (code === errorCodes.stdinFull) await sleep(queueMs);
      else if (code !== errorCodes.noDaemon)
        return; // it has ended, or its stdin has
      else {
        await sentBy.closed;
        await sleep(0);
        await job.reconnecting;
        if (job.isShared)
          return job.world.note(
            `${bytes.length} bytes of stdin may not have arrived: the daemon died as they were sent`,
          );
        again = { offset: Math.min(before, job.applied) };
      }
    }
  }
}

/** INT, QUIT and a TERM that is none of a lost line are the process's; where our terminal is its own, keys are that send it signals. */
function passSignals(job: Job): void {
  const send = (signal: string): void =>
    job.screen
      ? leave(job, "left")
      : void job.client.request("process.kill", { id: job.id, signal }).catch(() => undefined);
  process.on("SIGINT", () => send("SIGINT"));
  process.on("SIGQUIT", () => send("SIGQUIT"));
  process.on("SIGTERM", async () => ((await isLineLost(job)) ? leave(job) : send("SIGTERM")));
  process.on("SIGHUP", () => {
    job.isHungUp = true;
    leave(job);
  });
}

async function isLineLost(job: Job): Promise<boolean> {
  await sleep(lostLineMs);
  return job.isHungUp || !areAlive(job.chain);
}

function leave(job: Job, why = "the line is lost", code = 125): void {
  const words = `${why}, "${job.id}" goes on: --attach ${job.id}`;
  if (job.screen) job.farewell ??= words;
  else safely(() => job.world.note(words));
  job.end(code);
}

async function listProcesses(client: Client): Promise<Listed[]> {
  return ((await client.request("process.list", {})) as { processes: Listed[] }).processes;
}

// --list, --kill, --forget

/** Empty where no daemon was ever started, or it was stopped. */
export async function printList(world: JobsWorld, json: boolean): Promise<number> {
  const connected = await connect(world).catch((error: Failure) => error);
  if (connected instanceof Failure && !["never-started", "stopped"].includes(String(connected.data.reason)))
    throw connected;
  const processes = connected instanceof Failure ? [] : await listProcesses(connected.client);
  if (!(connected instanceof Failure)) connected.client.close();
  return say(json ? jsonLine({ processes }) : listWords(processes));
}

/** --kill and --forget: one request about a process. */
export async function ask(
  world: JobsWorld,
  method: string,
  params: { id: string; signal?: string | number },
): Promise<number> {
  const { client } = await connect(world);
  try {
    await client.request(method, params);
    return exitCodes.done;
  } catch (error) {
    if (/no process has this id/.test((error as Error).message)) throw await unknownId(client, params.id);
    throw error;
  } finally {
    client.close();
  }
}
