/**
 * process.*: the daemon's children, from their start to their being forgotten.
 *
 *     spawn ─▶ starting ─▶ running ──its own end, or the grace after it──▶ over ──▶ kept ──7 days, 1000 others, or forget──▶ forgotten
 *                             │                                             │
 *                             └── output ─▶ spool.ts ─▶ readers.ts          └── what a grandchild says is held, too
 *
 * What becomes of one child is left to children.ts, what it is under to holders.ts, how much of its output is held to spool.ts, who reads it to
 * readers.ts.
 */

import { realpathSync } from "node:fs";
import { basename, dirname } from "node:path";
import type { Child, Shared } from "./children.ts";
import {
  acceptStdin,
  createChild,
  createEnds,
  defaultLimits,
  describeChild,
  describeState,
  finish,
  hasRoom,
  haveEnded,
  isGroupAlive,
  kill,
  killAndWait,
  killWaitMs,
  listArguments,
  maxListedText,
  pumpStdin,
  refuseClosedStdin,
  release,
  signalGroup,
} from "./children.ts";
import type { Environment } from "./environment.ts";
import {
  createEnvironment,
  findDirectory,
  makeEnvironment,
  refuseNul,
  requireAnswers,
  startFailure,
} from "./environment.ts";
import { cannot, cutText, defer, errorCodes, Failure, reasonOf, safely, shorten } from "./failure.ts";
import { droppedNames, startHeld, takeDirectory } from "./holders.ts";
import { closeKept, createMark, format, holdersOf, writeAbout, writeForgotten, writeMark } from "./kept.ts";
import type { Lanes, Starts } from "./lanes.ts";
import { createLanes, createStarts, hasFarMounts, startInTurn } from "./lanes.ts";
import type { TerminalKeeper, TerminalRequest } from "./pty.ts";
import {
  createTerminal,
  createTerminalMark,
  describeTerminal,
  engineOf,
  resize,
  setTerm,
  terminalParam,
  terminalStart,
} from "./pty.ts";
import type { Link } from "./readers.ts";
import { attach, detach, linkOf, mannerParams, serve } from "./readers.ts";
import { identify, now, soon, within } from "./record.ts";
import type { Caller, Method, Methods, Params, Peer } from "./rpc.ts";
import {
  booleanParam,
  decodeBase64,
  integerParam,
  invalidParam,
  knownParams,
  optionalStringParam,
  stringListParam,
  stringMapParam,
  stringParam,
} from "./rpc.ts";
import type { Running, Start } from "./running.ts";
import { createWatch, raiseOomScore, startWithPipes } from "./running.ts";
import { homeDirectory } from "./socket.ts";
import type { Room, Spool } from "./spool.ts";
import { createRoom, createSpool, emptySpool, enterRoom, removeSpool } from "./spool.ts";

/** From the end of a group to the end of its pipes, which somebody in another group may hold. */
const lastReadMs = 250;
/** As the daemon ends: for a child that is just being started to be there, and be ended with the others. */
const startingMs = 300;
/** Of all texts together that process.list repeats. */
const maxListedTexts = 8 << 20;
const maxIdLength = 256;

export interface ProcessWorld {
  /** The daemon's environment. */
  env: NodeJS.ProcessEnv;
  log(line: string): void;
  /** No child is alive any more. */
  onAllExited?(): void;
  limits?: Partial<typeof defaultLimits>;
  /** For what a start looks at. */
  lanes?: Lanes;
  /** Of this daemon. */
  instance?: string;
  /** Where children and their output are kept: adoption.ts. Without it all is in memory, and ends with the daemon. */
  keptPath?: string;
  /** Of one child's output on disk. */
  spoolBytes?: number | undefined;
  /** What children have for SSH_AUTH_SOCK; undefined: the daemon's own, as long as it lives. */
  agentLink?: string | undefined;
  /** In place of one made of these two. */
  room?: Room;
}

export interface Processes extends Shared, TerminalKeeper {
  readonly world: ProcessWorld;
  readonly lanes: Lanes;
  readonly environment: Environment;
  readonly children: Map<string, Child>;
  /** Settled when the child is there, or is not going to be. */
  readonly starting: Map<string, Promise<void>>;
  readonly starts: Starts;
  readonly links: Map<Peer, Link>;
  /** Children that have ended, in the order of their ends. */
  readonly ended: Set<Child>;
  /** Children that nobody can name any more, whose groups may live on with grandchildren, or whose pipes are held: endAll() ends those, too. */
  readonly forgotten: Set<Child>;
  readonly bornAt: number;
  readonly sweeper: NodeJS.Timeout;
  /** Nothing is started any more. */
  isEnding: boolean;
  /** At its end it removes what it keeps of those that have ended. */
  forgetsAll: boolean;
  readonly takenUp: TakenUp;
  /** Another daemon, on its way out, has it: settled when what it leaves has been taken up. */
  waiting: Promise<void> | undefined;
  /** What was begun and not noted is being removed: for --stop. */
  sweeping: Promise<void> | undefined;
}

/** What an earlier daemon had left, and was taken up: adoption.ts. */
export interface TakenUp {
  running: number;
  ended: number;
  /** What is left alone, and why. */
  problems: string[];
  /** Of the daemons that had started them. */
  instances: string[];
}

interface Request {
  id: string;
  command: string;
  args: string[];
  cwd: string | undefined;
  env: Record<string, string>;
  clearEnv: boolean;
  umask: number | undefined;
  hasNoStdin: boolean;
  lossless: boolean;
  terminal: TerminalRequest | undefined;
}

/** One child, for server.status. */
export interface ChildSummary {
  id: string;
  pid: number;
  command: string;
  running: boolean;
  /** Of output, ever. */
  bytes: number;
  ageMs: number;
}

export function createProcesses(world: ProcessWorld): Processes {
  const limits = { ...defaultLimits, ...world.limits };
  const lanes = world.lanes || createLanes();
  const home = (): string => safely(() => homeDirectory(world.env)) || "/";
  const processes: Processes = {
    world,
    env: world.env,
    limits,
    lanes,
    environment: createEnvironment(world.env, home, world.log, limits.loginPathMs, world.agentLink),
    room: world.room ?? roomOf(world, lanes),
    children: new Map(),
    starting: new Map(),
    starts: createStarts(),
    links: new Map(),
    ended: new Set(),
    forgotten: new Set(),
    bornAt: now(),
    sweeper: setInterval(() => dropExpired(processes), limits.sweepMs).unref(),
    isEnding: false,
    forgetsAll: false,
    holders: undefined,
    isHolding: false,
    notHeld: undefined,
    watch: createWatch(),
    takenUp: { running: 0, ended: 0, problems: [], instances: [] },
    claim: undefined,
    onClaimed: () => {},
    waiting: undefined,
    sweeping: undefined,
    engine: undefined,
    hasTerminals: false,
    triedAt: Infinity,
    queuedBytes: 0,
    ends: createEnds(),
    log: world.log,
    onOver: (child) => {
      if (!child.isForgotten) keep(processes, child);
      announceIdle(processes);
    },
  };
  return processes;
}

/** No output is written to a file system that may stop to answer. */
function roomOf({ log, keptPath, spoolBytes }: ProcessWorld, lanes: Lanes): Room {
  const real = keptPath && safely(() => realpathSync(dirname(keptPath)));
  const isFar =
    real && hasFarMounts(lanes) && [...lanes.far.keys()].some((mount) => `${real}/`.startsWith(`${mount}/`));
  return createRoom(log, { path: keptPath, spoolBytes: isFar ? 0 : spoolBytes });
}

export function processMethods(processes: Processes): Methods {
  const whenTakenUp =
    (method: Method): Method =>
    (params, caller) =>
      processes.waiting ? processes.waiting.then(() => method(params, caller)) : method(params, caller);
  const none = { found: false, running: false, firstSeq: 0, lastSeq: 0, stdinApplied: 0 };
  const methods: [string, Method][] = [
    ["process.spawn", (params, caller) => spawnChild(processes, params, caller)],
    ["process.stdin", withChild(processes, ["id", "data", "offset", "end"], writeStdin)],
    ["process.kill", withChild(processes, ["id", "signal"], kill)],
    [
      "process.killAndWait",
      withChild(processes, ["id", "signal", "timeoutMs", "escalate"], killAndWait, { found: false, died: false }),
    ],
    ["process.reattach", withChild(processes, ["id", "fromSeq", "share", "lossless", "overtake"], reattach, none)],
    ["process.resize", withChild(processes, ["id", "rows", "columns", "redraw"], resize)],
    ["process.forget", withChild(processes, ["id"], forgetEnded)],
    ["process.list", (params) => listChildren(processes, params)],
  ];
  return new Map(methods.map(([name, method]) => [name, whenTakenUp(method)]));
}

/** Counts children that are being started, or have no exit message yet. */
export function liveCount({ starting, children }: Processes): number {
  return starting.size + [...children.values()].filter(({ isOver }) => !isOver).length;
}

/** What is told of them in server.status. */
export interface Summary {
  processes: ChildSummary[];
  /** Why they end with the daemon; undefined where they do not, or it is not known yet. */
  notHeld?: string | undefined;
  takenUp: TakenUp;
}

export function summarise({ children, notHeld, takenUp }: Processes): Summary {
  const processes = [...children.values()].map(({ about: { id, pid, command }, isOver, outputBytes, bornAt }) => {
    return { id, pid, command, running: !isOver, bytes: outputBytes, ageMs: Math.round(now() - bornAt) };
  });
  return { processes, notHeld, takenUp };
}

/** What clients may rely on. "held" and "terminal": after engineOf(). */
export function featuresOf({ isHolding, hasTerminals }: Processes): string[] {
  return ["reattach", "stdin-offset", "share", ...(isHolding ? ["held"] : []), ...(hasTerminals ? ["terminal"] : [])];
}

/**
 * Ends every process group: TERM, and after `graceMs` KILL to what is left. No child is started from then on.
 *
 * May be called again meanwhile, with less grace.
 *
 * @returns How many children were alive.
 */
export async function endAll(processes: Processes, { graceMs }: { graceMs: number }): Promise<number> {
  await startNoMore(processes);
  return endThese(processes, [...processes.children.values(), ...processes.forgotten], graceMs);
}

export async function startNoMore(processes: Processes, withinMs = startingMs): Promise<void> {
  processes.isEnding = true;
  clearInterval(processes.sweeper);
  processes.environment.closed.abort();
  await within(Promise.all(processes.starting.values()), withinMs); // one that waits for a dead mount is refused when that is told
}

export async function endThese(processes: Processes, children: Child[], graceMs: number): Promise<number> {
  const groups = children.filter((child) => isGroupAlive(processes.ends, child));
  const alive = groups.filter(({ exit }) => !exit).length;
  for (const child of groups) safely(() => signalGroup(processes, child, "SIGTERM", "shutdown")); // EPERM: a set-uid program
  for (const child of groups) if (child.terminal) safely(() => signalGroup(processes, child, "SIGHUP", "shutdown")); // a person's shell ignores TERM
  if (!(await haveEnded(processes, groups, graceMs))) {
    for (const child of groups) safely(() => signalGroup(processes, child, "SIGKILL", "shutdown"));
    await haveEnded(processes, groups, killWaitMs);
  }
  await soon(() => children.every(({ running }) => !running), lastReadMs); // what they have left in their pipes
  for (const child of children) if (child.exit) finish(processes, child);
  for (const child of children) release(child);
  if (processes.forgetsAll) for (const child of processes.ended) forget(processes, child, "forgotten");
  await closeKept(processes);
  return alive;
}

// Starting

/** A request that comes while its child is being started waits for that: clients need not wait for the answer to process.spawn. */
function withChild(
  processes: Processes,
  names: readonly string[],
  run: (processes: Processes, child: Child, params: Params, caller: Caller) => unknown,
  absent?: object,
): Method {
  return (params, caller) => {
    knownParams(params, names);
    const id = stringParam(params, "id");
    const act = (): unknown => {
      const child = processes.children.get(id);
      if (child) return run(processes, child, params, caller);
      if (absent !== undefined) return absent;
      throw cannot(`find process "${shorten(id)}": no process has this id`, { code: errorCodes.invalidParams });
    };
    const start = processes.starting.get(id);
    return start ? start.then(act) : act();
  };
}

async function spawnChild(processes: Processes, params: Params, { peer }: Caller): Promise<object> {
  const { children, starting, links, limits } = processes;
  const request = readRequest(processes, params);
  const { id, lossless } = request;
  const old = children.get(id);
  if (starting.has(id) || (old && !(old.isOver && ![...old.readers].some(({ place }) => place.holds))))
    throw cannot(`start process "${shorten(id)}": a process with this id is alive`, { code: errorCodes.invalidParams });
  const link = linkOf(links, peer, limits); // now: it may close while we wait
  const started = defer<void>();
  starting.set(id, started.promise);
  try {
    const { child, dropped } = await startChild(processes, request, peer);
    const before = children.get(id);
    if (before) forget(processes, before, peer.id);
    children.set(id, child);
    if (!link.isClosed) attach(child, link, 1, { share: false, lossless, overtake: false });
    // names that are no identifiers, where no shell can pass them on
    return {
      success: true,
      pid: child.about.pid,
      ...(params.id === id ? {} : { id }),
      ...(dropped.length > 0 ? { droppedEnv: dropped } : {}),
    };
  } finally {
    starting.delete(id);
    started.resolve();
    announceIdle(processes);
  }
}

function readRequest(processes: Processes, params: Params): Request {
  const names = ["id", "command", "args", "cwd", "env", "clearEnv", "umask", "stdin", "lossless", "terminal"];
  knownParams(params, names);
  const { umask = null } = params;
  const command = stringParam(params, "command");
  const stdin = optionalStringParam(params, "stdin") ?? "open";
  if (stdin !== "open" && stdin !== "none") throw invalidParam("stdin", stdin, '"open" or "none"');
  const terminal = terminalParam(params, "terminal");
  if (terminal && stdin === "none") throw invalidParam("stdin", stdin, '"open" for a process in a terminal');
  const request: Request = {
    id: params.id === undefined || params.id === null ? commandId(processes, command) : stringParam(params, "id"),
    command,
    args: stringListParam(params, "args"),
    cwd: optionalStringParam(params, "cwd"),
    env: stringMapParam(params, "env"),
    clearEnv: booleanParam(params, "clearEnv", false),
    umask: umask === null ? undefined : integerParam(params, "umask", { min: 0, max: 0o777 }),
    hasNoStdin: stdin === "none",
    lossless: booleanParam(params, "lossless", false),
    terminal,
  };
  if (request.id.length > maxIdLength)
    throw invalidParam("id", request.id, `at most ${maxIdLength} characters, it has ${request.id.length}`);
  refuseNul(request);
  return request;
}

function commandId(processes: Processes, command: string): string {
  const name = basename(command).replace(/[^A-Za-z0-9._-]/g, "");
  return freeId(processes, name.slice(0, 200) || "process");
}

/** The name, or the next that is not taken: "make", "make-2". */
export function freeId({ children, starting }: Processes, name: string): string {
  for (let count = 1; ; count++) {
    const id = count === 1 ? name : `${name}-${count}`;
    if (!children.has(id) && !starting.has(id)) return id;
  }
}

async function startChild(
  processes: Processes,
  request: Request,
  peer: Peer,
): Promise<{ child: Child; dropped: string[] }> {
  const { environment, lanes } = processes;
  const { id, command, args, hasNoStdin, umask } = request;
  const env = request.clearEnv
    ? { ...request.env }
    : await makeEnvironment(environment, request.env, !command.includes("/"));
  if (request.terminal) setTerm(env, request.env, request.terminal);
  const cwd = await findDirectory(request.cwd, environment.home, lanes);
  const path = env.PATH || "";
  await requireAnswers(command, cwd, path, lanes);
  const { running, spool, dropped } = await startInTurn(processes.starts, peer, () => {
    if (processes.isEnding) throw cannot(`start "${shorten(command)}": the daemon is ending`);
    return start(processes, request, { command, args, cwd, env, hasNoStdin, umask });
  });
  const about = { id, command, args: listArguments(args), cwd, pid: running.pid, startedAt: Date.now() };
  const rots = { path: path || null, home: env.HOME || null, sshAuthSock: env.SSH_AUTH_SOCK || null };
  const mark = running.holder && createMark();
  const terminal = request.terminal && createTerminal(running.holder, mark, createTerminalMark(request.terminal.size));
  const child = createChild(processes, {
    about,
    rots,
    spool,
    running,
    mark,
    terminal,
    stdin: { state: hasNoStdin ? "ended" : "open" },
  });
  if (spool.directory !== undefined) keepAbout(processes, child, spool.directory, Object.keys(env));
  processes.log(`[Process] Started "${shorten(id)}": pid ${running.pid}, ${shorten(basename(command))}`);
  return { child, dropped };
}

/** Starts a child under a holder where that is possible, else with plain pipes. */
async function start(
  processes: Processes,
  { id, terminal }: Request,
  what: Start,
): Promise<{ running: Running; spool: Spool; dropped: string[] }> {
  const { room, log } = processes;
  const holders = await holdersOf(processes);
  const engine = terminal && (await engineOf(processes));
  if (typeof engine === "string")
    throw cannot(`start "${shorten(what.command)}" in a terminal: ${engine}`, { hint: "see --doctor" });
  const directory =
    typeof holders === "string"
      ? undefined
      : await takeDirectory(holders).catch((error: unknown) => {
          if (engine) throw error;
          log(`[Process] "${shorten(id)}" cannot be held: ${reasonOf(error)}`);
        });
  const spool = (processes.claim ? createSpool : enterRoom)(room, shorten(id), directory || undefined);
  try {
    if (typeof holders !== "string" && directory) {
      const held = engine ? terminalStart(holders, engine, directory, what, terminal!.size) : what;
      const running = await startHeld(holders, directory, held);
      return { running, spool, dropped: droppedNames(holders.tools, what.env) };
    }
    const running = await startWithPipes(what);
    raiseOomScore(running.pid);
    return { running, spool, dropped: [] };
  } catch (error) {
    removeSpool(spool);
    throw await startFailure(what.command, what.cwd, what.env.PATH || "", error);
  }
}

/** Without it the next daemon would not know it: the answer to process.spawn waits for this. */
function keepAbout(
  { world, log }: Processes,
  { about, mark, running }: Child,
  directory: string,
  environment: string[],
): void {
  const holder = running?.holder;
  try {
    writeAbout(directory, {
      ...about,
      format,
      environment,
      instance: world.instance ?? "",
      holder,
      process: identify(about.pid),
    });
    if (mark) writeMark(directory, mark);
  } catch (error) {
    log(`[Process] "${shorten(about.id)}" ends with this daemon: ${reasonOf(error)}`);
  }
}

/** Takes the data before it returns: writes are applied in the order in which they arrive. */
function writeStdin(processes: Processes, child: Child, params: Params): object {
  const { stdin, terminal } = child;
  const given = decodeBase64(optionalStringParam(params, "data") || "", "data");
  const offset = integerParam(params, "offset", { min: 0, max: Number.MAX_SAFE_INTEGER, default: stdin.applied });
  const isEnd = booleanParam(params, "end", false) && !terminal;
  const bytes = terminal && params.end ? Buffer.concat([given, Buffer.from([4])]) : given; // Ctrl-D
  const data = { applied: stdin.applied };
  if (offset > stdin.applied)
    throw new Failure("stdin offset gap: offset ahead of applied bytes", { code: errorCodes.stdinGap, data });
  const fresh = bytes.subarray(stdin.applied - offset);
  if (fresh.length > 0) {
    refuseClosedStdin(child);
    if (!hasRoom(processes, child, fresh.length))
      throw new Failure("stdin backpressure: queue full", { code: errorCodes.stdinFull, data });
    acceptStdin(processes, child, fresh);
  }
  const endsNow = isEnd && stdin.state === "open";
  if (endsNow) stdin.state = "ended";
  pumpStdin(processes, child);
  const isDuplicate = fresh.length === 0 && (bytes.length > 0 || (isEnd && !endsNow));
  return { success: true, applied: stdin.applied, ...(isDuplicate ? { duplicate: true } : {}) };
}

/** The answer goes first, the messages follow. */
function reattach(processes: Processes, child: Child, params: Params, { peer }: Caller): object {
  const { spool, readers } = child;
  const max = Number.MAX_SAFE_INTEGER;
  const given = integerParam(params, "fromSeq", { min: -max, max, default: 0 });
  const manner = mannerParams(params);
  const fromSeq = given < 0 ? Math.max(0, spool.lastSeq + given) : given;
  if (fromSeq > spool.lastSeq)
    throw invalidParam("fromSeq", fromSeq, `at most ${spool.lastSeq}, the last that this process has`);
  const link = linkOf(processes.links, peer, processes.limits);
  for (const reader of readers) {
    if (reader.link === link) detach(reader);
    else if (!manner.share && !reader.share) detach(reader, peer.id);
  }
  if (!child.isDone || fromSeq < spool.lastSeq) attach(child, link, Math.max(fromSeq + 1, spool.firstSeq), manner);
  setImmediate(serve, link);
  const { firstSeq, lastSeq } = spool;
  const told = { ...describeState(child), ...describeTerminal(child) };
  return { found: true, running: !child.isOver, firstSeq, lastSeq, ...told };
}

// Ended

export function keep(processes: Processes, child: Child): void {
  const { ended, limits } = processes;
  ended.add(child);
  for (const first of ended) if (ended.size > limits.keepExits) forget(processes, first, "expired");
}

/** Forgets those that ended long ago. Not by a clock that was set back, and not while it may yet be set: in the first hour. */
export function dropExpired(processes: Processes, clock: number = Date.now()): void {
  const { ended, limits, bornAt } = processes;
  if (now() - bornAt < limits.sweepMs) return;
  for (const child of ended) {
    if (clock < child.endedAt!) continue;
    if (clock - child.endedAt! > limits.keepMs) forget(processes, child, "expired");
  }
}

function forgetEnded(processes: Processes, child: Child): object {
  const { id, isOver } = child;
  if (!isOver)
    throw cannot(`forget process "${shorten(id)}": it is alive, it must have ended`, {
      code: errorCodes.invalidParams,
    });
  forget(processes, child, "forgotten");
  return { success: true };
}

/** @param by Told to those who still read it. */
export function forget({ children, ended, forgotten, ends }: Processes, child: Child, by: string): void {
  for (const reader of child.readers) detach(reader, by);
  child.isForgotten = true;
  if (child.running?.holder) forgetHeld(child);
  else removeSpool(child.spool);
  ended.delete(child);
  children.delete(child.id);
  if (child.running || child.survivors?.size !== 0) forgotten.add(child);
  for (const first of [...forgotten].slice(0, 2))
    if (forgotten.delete(first) && (first.running || isGroupAlive(ends, first))) forgotten.add(first); // looked at in turn
}

/** While a grandchild has its pipes, the next daemon is to find its holder. */
function forgetHeld({ spool }: Child): void {
  safely(() => writeForgotten(spool.directory!));
  emptySpool(spool);
}

function announceIdle(processes: Processes): void {
  if (liveCount(processes) === 0) processes.world.onAllExited?.();
}

// What there is

/** Long texts are cut, and with many children those of the later ones left out: the answer fits into a frame. */
function listChildren({ children }: Processes, params: Params): object {
  knownParams(params, []);
  let room = maxListedTexts;
  const take = (text: string): string => {
    const cut = cutText(text, maxListedText);
    room -= cut.length;
    return room < 0 ? "…" : cut;
  };
  return { processes: [...children.values()].map((child) => describeChild(child, take)) };
}
