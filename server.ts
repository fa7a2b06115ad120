/**
 * The daemon's life: starts, has a name, is revived, retires, ends.
 *
 *     starting ──publish──▶ serving ──shutdown, processes alive──▶ retired ──grace over, or all ended──▶ ending
 *                              ▲                                      │
 *                              └────────── admit (a --serve) ─────────┘
 *
 * A retired daemon has no public name and no connections, but still listens under the name it was bound to: there a --serve that comes in
 * time finds it, with its processes. Connections are left to connections.ts, what a method does to processes.ts and files.ts, how a request is
 * read to rpc.ts.
 *
 * Names, record and directory may be deleted at any time. Every 30 s, and on SIGCONT (harmless to whoever else gets it), the daemon looks after
 * them and makes them again: a --serve that finds none of them, but its process, sends that and joins.
 */

import { createHash, timingSafeEqual } from "node:crypto";
import type { FSWatcher } from "node:fs";
import { lutimesSync, readdirSync, stat as statSoon, watch } from "node:fs";
import type { Server } from "node:net";
import { createServer } from "node:net";
import { dirname } from "node:path";
import { canLeaveAll, leaveAll, takeUp } from "./adoption.ts";
import { proveAnswering } from "./client.ts";
import type { Connections } from "./connections.ts";
import {
  acceptConnection,
  closeAll,
  createConnections,
  isTurnOver,
  maxStrangers,
  noteShortage,
} from "./connections.ts";
import { cannot, defer, errorCodes, exitCodes, reasonOf, safely } from "./failure.ts";
import { createFiles } from "./files.ts";
import { maxBodyBytes, strangerBodyBytes } from "./frame.ts";
import type { Facts, Place, World } from "./host.ts";
import { placeOf, readLimit, realWorld } from "./host.ts";
import type { Lanes } from "./lanes.ts";
import { areHeld, createLanes } from "./lanes.ts";
import type { Lifetime, Logouts } from "./lifetime.ts";
import { describeVerdict, judgeEnd, judgePlace, judgeWork, readOomKills, watchLogouts } from "./lifetime.ts";
import type { Processes } from "./processes.ts";
import { createProcesses, endAll, featuresOf, liveCount, processMethods, summarise } from "./processes.ts";
import { childEnvironment } from "./program.ts";
import { engineSoon, holdersSoon } from "./pty.ts";
import type { DaemonRecord, EndReason, Log } from "./record.ts";
import { createLog, identify, livenessOf, now } from "./record.ts";
import type { Caller, Method, Params, Rpc } from "./rpc.ts";
import {
  booleanParam,
  handleBody,
  integerParam,
  knownParams,
  optionalStringParam,
  stringParam,
  unauthorized,
} from "./rpc.ts";
import type { BoundSocket, Places } from "./socket.ts";
import {
  hasRecord,
  homeDirectory,
  isSame,
  listenBeside,
  lookAt,
  makeRunDirectory,
  publishRecord,
  retireName,
  saveRecord,
  successorOf,
  unpublish,
} from "./socket.ts";

/** Tokens accepted side by side: one per --serve that joined, the newest this many. */
const maxTokens = 64;
/** Written to a connection, and not yet the kernel's: with more it is behind (readers.ts), and its processes stand still. */
const waitingBytes = 256 << 10;
/** How often the public name is looked after: it may be deleted, and /tmp is cleaned by age. */
const checkMs = 30_000;
/** From the first of its names being removed to a look at all of them: rm(1) is to be done with the directory. */
const watchMs = 100;
/** How long processes may go on after a --stop, before TERM; a --serve meanwhile finds them (--grace). */
const defaultGraceMs = 10_000;
/** From TERM to KILL for processes when the daemon is stopped; and when it was told to end by SIGTERM: it must be gone within 2 s. */
const killAfterMs = 3000;
const killAfterSignalMs = 1000;
/** SIGTERM, SIGCONT and SIGHUP of systemd come within a millisecond, in any order. */
const signalsMs = 50;
/** A signal counts among those that came together for so long. */
const togetherMs = 1000;
/** A person's, or a supervisor's, word to end. */
const endingSignals: NodeJS.Signals[] = ["SIGTERM", "SIGINT", "SIGQUIT"];
/** What would end a process that does not handle it, and is not meant for a daemon. Real-time signals are not for node to catch. */
const strayedSignals: NodeJS.Signals[] = [
  "SIGUSR1",
  "SIGUSR2",
  "SIGALRM",
  "SIGVTALRM",
  "SIGPROF",
  "SIGPIPE",
  "SIGIO",
  "SIGPWR",
  "SIGSTKFLT",
  "SIGXCPU",
  "SIGXFSZ",
];

/** What of the record the launcher knows: instance and key are made by it, and verify the start. Tokens only as hashes: the daemon never knows them. */
type Given =
  | "tokenHashes"
  | "command"
  | "version"
  | "instance"
  | "key"
  | "returns"
  | "spoolBytes"
  | "noAgent"
  | "supervisor";

/** What the launcher hands over. */
export interface Handover extends Pick<DaemonRecord, Given> {
  places: Places;
  facts: Facts;
  /** Takes the public name over from the daemon that has it. */
  over: boolean;
  /** For whose place it is meant: standingOf(). */
  seen?: string;
}

export interface Daemon {
  phase: "starting" | "serving" | "retired" | "ending";
  record: DaemonRecord;
  places: Places;
  /** What was measured on the host, and what it makes of our place. */
  facts: Facts;
  lifetime: Lifetime;
  world: World;
  log: Log;
  /** What it was bound to last: it listens anew when its names are lost. */
  listener: Server | undefined;
  connections: Connections;
  processes: Processes;
  lanes: Lanes;
  methods: Map<string, Method>;
  /** By now(). */
  bornAt: number;
  checkTimer: NodeJS.Timeout | undefined;
  graceTimer: NodeJS.Timeout | undefined;
  /** Looking after the names, while it goes on; and what was wrong with them last time, so that it is said once. */
  looking: Promise<void> | undefined;
  lastProblem: string;
  logouts: Logouts | undefined;
  /** Of the socket's directory, where there is no /proc. */
  watcher: FSWatcher | undefined;
  /** Signals received, and when: now(). */
  signals: Map<string, number>;
  /** Connections whose first refusal is in the log: it stands for all, one frame may have a thousand. */
  refused: WeakSet<Caller>;
  /** Resolves when it has ended, to its exit code. */
  ended: Promise<number>;
  finish(code: number): void;
}

/**
 * Starts the daemon in this process.
 *
 * @param onNamed Called as soon as it has its public name, before it takes up what there is.
 * @returns When its socket is published.
 * @throws {Failure} Why it cannot start, with exit code 73 or 75. Nothing is left behind.
 */
export async function startDaemon(handover: Handover, world = realWorld(), onNamed = () => {}): Promise<Daemon> {
  const daemon = createDaemon(handover, createLog(handover.places.log), world);
  const { places, record } = daemon;
  makeThreads();
  listenToSignals(daemon);
  await listen(daemon);
  try {
    if (handover.over) await proveAnswering(record.socket.bound, 2000); // before it takes the name over
    await publish(daemon, handover.over, handover.seen);
  } catch (error) {
    daemon.listener?.close();
    retireName(record.socket.bound, record.socket);
    throw error;
  }
  onNamed();
  takeUp(daemon.processes);
  void whenTakenUp(daemon, () => judgeDaemon(daemon));
  daemon.phase = "serving";
  daemon.checkTimer = setInterval(() => void lookAfterNames(daemon), checkMs);
  if (record.startTime === "") watchNames(daemon);
  const { uid, stopDelayUs } = handover.facts;
  daemon.logouts = watchLogouts(uid, stopDelayUs === "infinity" ? 0 : stopDelayUs / 1000);
  const { where, words } = daemon.lifetime;
  const who = `pid ${record.pid}, instance ${record.instance}`;
  daemon.log(`Remote server listening on ${places.socket} (${who}, ${where}; survives logout: ${words})`);
  return daemon;
}

/** Makes the value, and nothing else: it does not listen yet, and has no name. */
export function createDaemon(handover: Handover, log: Log, world: World): Daemon {
  const { places, facts, instance, spoolBytes, noAgent } = handover;
  const lanes = createLanes();
  const lifetime = describeVerdict(judgePlace(placeOf("self", world), facts)); // until it has taken up what there is
  const maxOpenFiles = readLimit("Max open files", world);
  const methods = new Map<string, Method>();
  const rpc: Rpc = {
    ...{ methods, tokenHint: tokenHint(places) },
    isToken: (token) => isToken(daemon.record, token),
    isTurnOver: () => isTurnOver(daemon.connections),
    onUnauthorized: (caller) => noteRefusal(daemon, caller),
    onFailure: ({ data, cause, message }) =>
      noteShortage(daemon.connections, data.errno, cause === undefined ? message : reasonOf(cause)),
  };
  const { promise: ended, resolve: finish } = defer<number>();
  const daemon: Daemon = {
    phase: "starting",
    record: {
      ...identify(),
      ...{ version: handover.version, instance, key: handover.key, command: handover.command },
      tokenHashes: handover.tokenHashes.slice(-maxTokens),
      socket: { path: places.socket, bound: "", dev: 0, ino: 0 },
      ...{ log: places.log, spoolBytes, noAgent, returns: handover.returns, supervisor: handover.supervisor },
      ...{ startedAt: Date.now(), lifetime },
    },
    ...{ places, facts, lifetime, world, log },
    listener: undefined,
    connections: createConnections((body, caller) => handleBody(rpc, body, caller), log, maxOpenFiles),
    processes: createProcesses({
      ...{ env: childEnvironment(process.env), log, lanes, instance, keptPath: places.held, spoolBytes },
      agentLink: noAgent ? undefined : places.agent,
      onAllExited: () => endWhenRetired(daemon),
    }),
    ...{ lanes, methods, bornAt: now() },
    checkTimer: undefined,
    graceTimer: undefined,
    looking: undefined,
    lastProblem: "",
    logouts: undefined,
    watcher: undefined,
    signals: new Map(),
    refused: new WeakSet(),
    ended,
    finish,
  };
  const files = createFiles(() => homeDirectory(), lanes);
  for (const [name, method] of [...serverMethods(daemon), ...processMethods(daemon.processes), ...files])
    methods.set(name, method);
  return daemon;
}

// Publication and the record

/** Listens under a new name of its own. Connections stay: they are the old listener's no more. */
export async function listen(daemon: Daemon): Promise<void> {
  const { connections, places, log } = daemon;
  const next = createServer({ allowHalfOpen: true, highWaterMark: waitingBytes }, (socket) =>
    acceptConnection(connections, socket),
  );
  next.on("error", (error) => log(`[Server] Cannot accept a connection: ${error.message}`));
  const bound: BoundSocket = await listenBeside(next, places.socket);
  daemon.record.socket = { path: places.socket, ...bound };
  daemon.listener?.close();
  daemon.listener = next;
}

export async function publish(daemon: Daemon, replace: boolean, seen?: string): Promise<void> {
  const { places, record } = daemon;
  record.oomKills = readOomKills(daemon.world.readFile);
  await publishRecord(places, record, replace, () => isIn(daemon, "starting") || isIn(daemon, "serving"), seen);
}

async function save({ places, record, log }: Daemon): Promise<void> {
  await saveRecord(places, record).catch((error: Error) => log(`[Server] ${error.message}`));
}

/** Makes sure that the names lead here and the record is there, and that those who clean /tmp by age see that they are in use. */
export function lookAfterNames(daemon: Daemon): Promise<void> {
  daemon.looking ??= mendNames(daemon)
    .catch((error: Error) => `cannot be mended: ${error.message}`)
    .then((problem = "") => {
      daemon.looking = undefined;
      if (problem !== "" && problem !== daemon.lastProblem)
        daemon.log(`[Server] Not reachable: "${daemon.places.socket}" ${problem}`);
      daemon.lastProblem = problem;
    });
  return daemon.looking;
}

/** @returns Why the daemon cannot be reached by its public name. */
async function mendNames(daemon: Daemon): Promise<string | undefined> {
  const { places, record, processes } = daemon;
  if (!isUp(daemon)) return undefined;
  makeRunDirectory(dirname(places.socket));
  makeRunDirectory(places.directory);
  const next = successorOf(places, record);
  const state = next && livenessOf(next).state;
  if (next && state !== "dead" && !isSame(places.socket, record.socket)) {
    const leaves = liveCount(processes) === 0 || (state === "alive" && canLeaveAll(processes)); // its caller may be gone, who was to say so
    if (leaves) void endDaemon(daemon, "replaced", `by instance ${next.instance}`, killAfterMs);
    return `belongs to instance ${next.instance} now`;
  }
  if (!isSame(places.socket, record.socket) && !isSame(record.socket.bound, record.socket)) await listen(daemon);
  await publishAgain(daemon);
  const date = new Date();
  for (const name of [places.socket, record.socket.bound])
    if (isSame(name, record.socket)) safely(() => lutimesSync(name, date, date));
  if (daemon.phase !== "serving" || isSame(places.socket, record.socket)) return undefined;
  const there = lookAt(places.socket);
  return `is ${there.kind === "other" ? there.what : "another's socket"} now`;
}

/** Where there is no /proc, a --serve cannot find a daemon that has lost its names: it makes them again as soon as they are gone. */
function watchNames(daemon: Daemon): void {
  const { places } = daemon;
  let isNoted = false;
  daemon.watcher?.close();
  if (!isUp(daemon)) return;
  const look = (): Promise<void> => lookAfterNames(daemon).then(() => watchNames(daemon)); // the directory may be another one
  const start = (): FSWatcher =>
    watch(dirname(places.socket), { persistent: false }, (event) => {
      if (event !== "rename" || isNoted) return; // made, removed or renamed
      isNoted = true;
      setTimeout(look, watchMs);
    });
  daemon.watcher = safely(start)?.on("error", () => {});
}

function isUp({ phase }: Daemon): boolean {
  return phase === "serving" || phase === "retired";
}

async function publishAgain(daemon: Daemon): Promise<void> {
  const { places, phase, record, log } = daemon;
  const kills = readOomKills(daemon.world.readFile);
  if (phase === "serving" && lookAt(places.socket).kind === "absent") {
    await publish(daemon, false);
    log(`[Server] The socket "${places.socket}" was deleted: published again`);
  } else if (kills !== record.oomKills || !hasRecord(places, record)) {
    record.oomKills = kills; // what the kernel kills later is to be told from what it has killed before
    await save(daemon);
  }
}

// Methods

function serverMethods(daemon: Daemon): [string, Method][] {
  const table: [name: string, params: string[], method: Method][] = [
    ["server.version", [], () => ({ version: daemon.record.version })],
    ["server.authenticate", ["token"], (params, caller) => authenticate(daemon, params, caller)],
    ["server.capabilities", [], () => engineSoon(daemon.processes).then(() => capabilitiesOf(daemon))],
    ["server.status", [], () => whenTakenUp(daemon, () => statusOf(daemon))],
    ["server.shutdown", ["ifIdle", "graceMs", "forget", "handOver"], (params) => shutdownSoon(daemon, params)],
    ["server.admit", ["key", "tokenHash", "facts"], (params) => admit(daemon, params)],
  ];
  const ping: [string, Method] = ["server.ping", () => ({ pong: true })]; // with whatever a client pads it
  const others = table.map(([name, names, method]): [string, Method] => [
    name,
    (params, caller) => {
      knownParams(params, names);
      return method(params, caller);
    },
  ]);
  return [ping, ...others];
}

/** Compares with every hash, each in constant time. The record's key is its owner's token. */
export function isToken({ key, tokenHashes }: DaemonRecord, token: string): boolean {
  const hash = hashOf(token);
  let found = timingSafeEqual(hash, hashOf(key));
  for (const known of tokenHashes) found = timingSafeEqual(hash, Buffer.from(known, "hex")) || found;
  return found;
}

/** Of equal length, whatever was sent. */
function hashOf(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}

function authenticate(daemon: Daemon, params: Params, caller: Caller): object {
  if (!isToken(daemon.record, stringParam(params, "token"))) {
    noteRefusal(daemon, caller);
    throw unauthorized(tokenHint(daemon.places));
  }
  caller.authenticated = caller.known = true;
  return { authenticated: true };
}

function tokenHint({ token }: Places): string {
  return `the token is the one that --serve was given, or else in '${token}'; --bridge --as-owner needs none`;
}

function noteRefusal({ refused, log }: Daemon, caller: Caller): void {
  if (!refused.has(caller)) log(`[Server] Unauthorized request on ${caller.peer.id}`);
  refused.add(caller);
}

function capabilitiesOf({ record, methods, lifetime, processes }: Daemon): Record<string, unknown> {
  return {
    version: record.version,
    methods: [...methods.keys()].sort(),
    features: ["native", "lines", "batch", "lifetime", "grace", ...featuresOf(processes)],
    instanceId: record.instance,
    startedAt: record.startedAt,
    lifetime,
  };
}

/** What tells of processes waits for those that another daemon, on its way out, is yet to leave. */
function whenTakenUp<T>({ processes }: Daemon, tell: () => T): T | Promise<T> {
  return processes.waiting ? processes.waiting.then(tell) : tell();
}

async function statusOf(daemon: Daemon): Promise<Record<string, unknown>> {
  const { places, phase, logouts, connections, processes, bornAt } = daemon;
  if (liveCount(processes) > 0) await holdersSoon(processes); // it may have taken over all that runs, and not looked yet
  return {
    ...capabilitiesOf(daemon),
    pid: process.pid,
    uptimeMs: Math.round(now() - bornAt),
    rssBytes: safely(() => process.memoryUsage().rss), // read from /proc
    connections: connections.open.size,
    ...summarise(processes),
    log: places.log,
    socket: places.socket,
    phase,
    logoutsOutlived: logouts?.outlived(),
    limits: {
      maxBodyBytes,
      strangerBodyBytes,
      maxStrangers,
      maxTokens,
      openFiles: safely(() => readdirSync("/dev/fd").length),
      maxOpenFiles: connections.maxOpenFiles,
    },
  };
}

/** What is to be ended, or to forbid that, may be yet to come. What is only left is left as it is. */
function shutdownSoon(daemon: Daemon, params: Params): object {
  return params.handOver === true ? shutdown(daemon, params) : whenTakenUp(daemon, () => shutdown(daemon, params));
}

function shutdown(daemon: Daemon, params: Params): object {
  const graceMs = integerParam(params, "graceMs", { min: 0, max: 86_400_000, default: defaultGraceMs });
  const alive = liveCount(daemon.processes);
  if (booleanParam(params, "ifIdle", false) && alive > 0) {
    throw cannot(
      `stop: ${alive} ${alive === 1 ? "process is" : "processes are"} alive, and it was to be stopped only if idle`,
      { data: { processes: alive } },
    );
  }
  daemon.processes.forgetsAll = booleanParam(params, "forget", false);
  const isReplaced = booleanParam(params, "handOver", false);
  const end = () =>
    isReplaced ? endDaemon(daemon, "replaced", "all goes on in another", killAfterMs) : retire(daemon, graceMs);
  setImmediate(() => void end()); // once the answer is written
  return { ok: true, processes: alive };
}

/** For the owner of the record: one more token, a new verdict; and a retired daemon serves again. */
export async function admit(daemon: Daemon, params: Params): Promise<object> {
  const { record, processes } = daemon;
  if (!timingSafeEqual(hashOf(stringParam(params, "key")), hashOf(record.key)))
    throw cannot("admit: the key is not that of this daemon's record", { code: errorCodes.unauthorized });
  if (daemon.phase === "ending") throw cannot("admit: the daemon is ending", { data: { ending: true } });
  const hash = optionalStringParam(params, "tokenHash");
  if (hash !== undefined) admitToken(record, hash);
  if (params.facts !== undefined) {
    Object.assign(daemon.facts, params.facts);
    judgeDaemon(daemon);
  }
  const revived = daemon.phase === "retired";
  if (revived) await revive(daemon);
  else await lookAfterNames(daemon).then(() => save(daemon));
  const { instance: instanceId, version, lifetime } = record;
  return { instanceId, pid: process.pid, version, revived, processes: liveCount(processes), lifetime };
}

/** By where it and its processes really are. */
function judgeDaemon(daemon: Daemon): void {
  const { processes, facts, world } = daemon;
  const work = summarise(processes).processes.filter(({ running }) => running);
  const places = work.map(({ id, pid }): [string, Place] => [id, placeOf(pid, world)]);
  daemon.record.lifetime = daemon.lifetime = describeVerdict(judgeWork(placeOf("self", world), places, facts));
}

function admitToken(record: DaemonRecord, hash: string): void {
  if (!/^[0-9a-f]{64}$/.test(hash))
    throw cannot("admit: tokenHash must be 64 hex digits", { code: errorCodes.invalidParams });
  record.tokenHashes = [...record.tokenHashes.filter((known) => known !== hash), hash].slice(-maxTokens);
}

async function revive(daemon: Daemon): Promise<void> {
  const { record, processes, log } = daemon;
  const { stoppingAt = 0 } = record;
  clearTimeout(daemon.graceTimer);
  daemon.phase = "serving";
  delete record.stoppingAt;
  await publish(daemon, false).catch((error: Error) => {
    void retire(daemon, Math.max(1, stoppingAt - Date.now())); // as it was told
    throw error;
  });
  log(`[Server] Revived with ${liveCount(processes)} processes: a --serve came within the grace`);
}

// The end

/** Keeps the processes for a while, for a --serve that comes in time. */
export async function retire(daemon: Daemon, graceMs: number): Promise<void> {
  const { processes, record, log } = daemon;
  if (isIn(daemon, "ending")) return;
  clearTimeout(daemon.graceTimer); // of an earlier stop, when this is the second
  const alive = liveCount(processes);
  log(`[Server] Told to stop: ${alive} processes are alive${alive > 0 ? `, they have ${graceMs / 1000} s` : ""}`);
  if (alive === 0 || graceMs === 0) return endDaemon(daemon, "stopped", "told to stop", killAfterMs);
  daemon.phase = "retired";
  record.stoppingAt = Date.now() + graceMs;
  // not through endDaemon(): a --serve that comes now must find all of it
  daemon.graceTimer = setTimeout(
    () => void endDaemon(daemon, "stopped", "told to stop, and the grace is over", killAfterMs),
    graceMs,
  );
  await save(daemon);
  if (!isIn(daemon, "retired")) return;
  await retirePublicName(daemon, "retired");
  if (isIn(daemon, "retired")) closeAll(daemon.connections);
}

function isIn(daemon: Daemon, phase: Daemon["phase"]): boolean {
  return daemon.phase === phase;
}

/** @param expected The phase in which that is right: a --serve may have come meanwhile. */
async function retirePublicName(daemon: Daemon, expected: Daemon["phase"]): Promise<void> {
  const { places, record, log } = daemon;
  if (!(await unpublish(places, record, () => isIn(daemon, expected))))
    log(`[Server] "${places.socket}" is not retired: its lock is held by another`);
}

function endWhenRetired(daemon: Daemon): void {
  if (isIn(daemon, "retired")) void endDaemon(daemon, "stopped", "no process was left", killAfterMs);
}

async function endDaemon(daemon: Daemon, reason: EndReason, detail: string, killMs: number): Promise<void> {
  if (isIn(daemon, "ending")) return;
  daemon.phase = "ending";
  clearTimeout(daemon.graceTimer);
  clearInterval(daemon.checkTimer);
  daemon.logouts?.close();
  daemon.watcher?.close();
  const { connections, record, processes, lanes, log } = daemon;
  log(`[Server] Ending: ${reason} (${detail})`);
  record.ended = { at: Date.now(), reason, detail };
  delete record.stoppingAt;
  await save(daemon); // first: systemd may not leave us the time
  await retirePublicName(daemon, "ending");
  closeAll(connections);
  const killed = await (reason === "replaced" ? leaveAll : endAll)(processes, { graceMs: killMs });
  retireName(record.socket.bound, record.socket);
  daemon.listener?.close();
  log(`[Server] Ended, with ${killed} processes`);
  if (areHeld(lanes)) process.kill(process.pid, "SIGKILL");
  daemon.finish(0);
}

function listenToSignals(daemon: Daemon): void {
  for (const signal of [...endingSignals, "SIGCONT", "SIGHUP", ...strayedSignals] as const)
    safely(() => process.on(signal, () => takeSignal(daemon, signal))); // not every system has every signal
  process.on("uncaughtException", (error: Error) => {
    if (isIn(daemon, "starting")) throw error;
    daemon.log(`[Server] Internal error: ${error.stack || error.message}`);
    daemon.record.ended = { at: Date.now(), reason: "crashed", detail: error.message };
    void save(daemon).then(() => daemon.finish(exitCodes.failed));
  });
}

/** SIGHUP alone is no reason to end: a terminal went away. A second SIGTERM does not wait for processes. */
export function takeSignal(daemon: Daemon, signal: NodeJS.Signals): void {
  const { log, signals, processes, facts, world } = daemon;
  log(`[Server] Received ${signal}`);
  if (strayedSignals.includes(signal)) return;
  signals.set(signal, now());
  if (signal === "SIGCONT") setTimeout(() => void lookAfterNames(daemon), signalsMs); // unless it came with SIGTERM
  if (!endingSignals.includes(signal)) return;
  if (isIn(daemon, "ending"))
    return void (daemon.record.ended?.reason !== "replaced" && endAll(processes, { graceMs: 0 })); // the next one's
  if (isIn(daemon, "starting")) {
    daemon.phase = "ending"; // publish() refuses then, and the start is undone
    return;
  }
  setTimeout(() => {
    const together = new Set([...signals].filter(([, at]) => now() - at < togetherMs).map(([name]) => name));
    const end = judgeEnd(together, placeOf("self", world), facts, world);
    void end.then(({ reason, detail }) => endDaemon(daemon, reason, detail, killAfterSignalMs));
  }, signalsMs);
}

/** libuv would make its threads when they are first needed, and abort when the user may have no more by then (ulimit -u). */
function makeThreads(): void {
  statSoon("/", () => {});
}
