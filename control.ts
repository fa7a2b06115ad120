/**
 * A daemon seen from outside: start one or join the one that runs, and stop it.
 *
 * A start, in order: join what answers; else claim the start; look again; clear away what is provably dead and ours; probe, choose,
 * launch, verify. Whoever finds the start claimed waits and joins the winner.
 */

import { readdirSync, readFileSync } from "node:fs";
import type { Socket } from "node:net";
import { dirname } from "node:path";
import { connectClient, createClient, tryConnect } from "./client.ts";
import type { Client, ConnectOutcome } from "./client.ts";
import { absenceFailure, explainAbsence, timeWords } from "./doctor.ts";
import { errnoOf, errorCodes, exitCodes, Failure, osFailure, reasonOf } from "./failure.ts";
import {
  chooseLaunch, describeVerdict, judgePlace, launchDaemon, moveIntoScope, placeOf, probeHost, realWorld, switchLingerOn,
} from "./lifetime.ts";
import type { Facts, Launch, Lifetime, World } from "./lifetime.ts";
import type { Daemon, Handover } from "./server.ts";
import {
  claimSoon, identify, isSame, livenessOf, lookAt, makeRunDirectory, notASocket, openLog, readRecord, retireName, tryClaim,
} from "./socket.ts";
import type { DaemonRecord, Identity, Places } from "./socket.ts";

/** A healthy daemon answers within a few ms; a busy host may take seconds. */
const answerMs = 5000;
/** How long a start waits for another one under way. Longer than the slowest start, with a wedged user manager. */
const startMs = 15_000;
/** How long a daemon that is ending, or was told to, is waited for. */
const deathMs = 6000;
/** From SIGTERM to SIGKILL, for a daemon that does not answer. */
const termMs = 3000;

export interface StartOptions {
  places: Places;
  /** SHA-256 in hex of the tokens that are to be good. */
  tokenHashes: string[];
  launch: "auto" | Launch;
  enableLinger: boolean;
  replace: boolean;
  /** Runtime, its flags, script, arguments: what runs a daemon that reads descriptor 3. */
  command: string[];
  version: string;
  /** Told what takes long, as it happens. */
  progress(line: string): void;
}

export interface Started {
  pid: number;
  instance: string;
  lifetime: Lifetime;
  facts: Facts;
  how: "started" | "joined" | "revived";
  /** The version of the daemon. */
  version: string;
}

/**
 * Starts a daemon, or joins the one that answers at the socket.
 *
 * @throws {Failure} Why neither is possible, with the exit code of the table.
 */
export async function startServer(options: StartOptions, world: World): Promise<Started> {
  return withClaim(options, async () => !options.replace && joinServer(options, world), async () => {
    const launched = await launch(options, world);
    if (launched !== undefined) return launched;
    const joined = await joinServer(options, world); // another one published first
    if (joined) return joined;
    throw new Failure(`Cannot start: another daemon published "${options.places.socket}" and does not answer`, { exit: exitCodes.busy });
  });
}

/**
 * Starts the daemon in this process, for a supervisor.
 *
 * @param startDaemon That of server.ts, handed in: all other ways in do without that module.
 * @throws {Failure} As startServer(); and with exit code 75 when a daemon answers already.
 */
export async function startHere(
  options: StartOptions, world: World, startDaemon: (handover: Handover, world: World) => Promise<Daemon>,
): Promise<{ started: Started; ended: Promise<number> }> {
  const { places } = options;
  const busyHere = async (): Promise<false> => {
    const reached = await reachServer(places);
    reached?.client.close();
    if (reached === undefined) return false;
    throw new Failure(`Cannot start in the foreground: a daemon (pid ${reached.record.pid}) answers at "${places.socket}"`, {
      exit: exitCodes.busy, hint: `end it with --stop, or choose another place with --socket`,
    });
  };
  return withClaim(options, busyHere, async () => {
    await clearDead(places);
    const facts = await probeHost(world);
    if (options.enableLinger) await switchLingerOn(facts, world);
    const { record, lifetime, ended } = await startDaemon(handoverOf(options, facts, undefined), world);
    return { started: { pid: record.pid, instance: record.instance, lifetime, facts, how: "started", version: options.version }, ended };
  });
}

/**
 * Finds another way to a daemon whose public name did not lead to one: by the name it was bound to, when only the public one was deleted; or
 * by starting one, with the tokens of the record, when the one that should be running provably ended and nobody meant it to.
 *
 * @param healing What to start; undefined when nothing is to be started (--no-start).
 * @returns A connection; or why there is none.
 */
export async function reachOtherwise(
  places: Places, outcome: Exclude<ConnectOutcome, { socket: Socket }>, healing: Omit<StartOptions, "tokenHashes"> | undefined,
): Promise<Socket | Failure> {
  const explanation = explainAbsence(places, outcome);
  const { record, reason, message } = explanation;
  if (record !== undefined && reason === "not-answering" && !("timedOut" in outcome)) {
    const second = await tryConnect(record.socket.bound, answerMs);
    if ("socket" in second) return second.socket;
  }
  if (record === undefined || !explanation.healable || healing === undefined) return absenceFailure(explanation);
  try {
    const started = await startServer({ ...healing, tokenHashes: record.tokenHashes, places: { ...places, log: record.log } }, realWorld());
    if (started.how === "started") {
      healing.progress(`${message}: started it again (pid ${started.pid}, ${started.lifetime.where}; survives logout: ${started.lifetime.words})`);
    }
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    return new Failure(`${absenceFailure(explanation).message}; and none could be started: ${error.message}`, {
      code: errorCodes.noDaemon, exit: exitCodes.unavailable, hint: error.hint ?? explanation.hint, data: { reason },
    });
  }
  const healed = await tryConnect(places.socket, answerMs);
  return "socket" in healed ? healed.socket : absenceFailure(explainAbsence(places, healed));
}

/** Says why a connection that was there has ended: from what the daemon could still note, as soon as it is known. */
export async function explainLoss(places: Places): Promise<Failure> {
  const found = readRecord(places.record);
  const record = found !== undefined && "record" in found ? found.record : undefined;
  if (record !== undefined && record.ended === undefined && record.stoppingAt === undefined && !(await isGoneWithin(record, 500))) {
    return new Failure(`The daemon (pid ${record.pid}, started ${timeWords(record.startedAt)}) closed the connection: see its log "${record.log}"`, {
      code: errorCodes.noDaemon, data: { reason: "closed" }, hint: "connect again",
    });
  }
  return absenceFailure(explainAbsence(places));
}

/** Runs `join` until it succeeds, or `start` with the start claimed. */
export async function withClaim<T>(options: StartOptions, join: () => Promise<T | false>, start: () => Promise<T>): Promise<T> {
  const { places } = options;
  makeRunDirectory(dirname(places.socket));
  makeRunDirectory(places.directory);
  for (const deadline = Date.now() + startMs; ; ) {
    let found = await join();
    if (found) return found;
    const claim = tryClaim(places.claim);
    if ("release" in claim) {
      try {
        found = await join(); // the one that held the claim may have started it meanwhile
        return found ? found : await start();
      } finally {
        claim.release();
      }
    }
    if (Date.now() > deadline) throw busy(places, claim.heldBy);
    await sleep(50);
  }
}

function busy(places: Places, holder: Identity | undefined): Failure {
  const who = holder === undefined ? "a file that is no claim of ours" : `process ${holder.pid} on ${holder.host}`;
  return new Failure(`Cannot start: another start is under way: "${places.claim}" is held by ${who}`, {
    exit: exitCodes.busy, hint: holder === undefined ? `rm '${places.claim}'` : "try again in a moment",
  });
}

/** A daemon that is there: connected to, with its record. */
interface Reached {
  client: Client;
  record: DaemonRecord;
}

/**
 * Connects to the daemon of a socket: by its public name; or, when that is gone (deleted, or retired within the grace of a --stop), by the
 * name it was bound to.
 *
 * @returns Undefined when there provably is none: then what it left can be cleared away.
 * @throws {Failure} There is something, and it cannot be used: why.
 */
export async function reachServer(places: Places): Promise<Reached | undefined> {
  const { socket } = places;
  const there = lookAt(socket);
  if (there.kind === "other") throw notASocket(socket, there.what);
  const found = readRecord(places.record);
  const record = found !== undefined && "record" in found ? found.record : undefined;
  if (there.kind === "socket") {
    const outcome = await tryConnect(socket, answerMs);
    if ("timedOut" in outcome) throw notAnswering(socket, record);
    if ("socket" in outcome) {
      if (record !== undefined && isSame(socket, record.socket)) return { client: createClient(outcome.socket, socket), record };
      outcome.socket.destroy();
      throw new Failure(`Cannot use the socket "${socket}": a server answers there, but ${describeFound(found, places)}`, {
        exit: exitCodes.noPermission, hint: "choose another place with --socket, or end that server",
      });
    }
    if (errnoOf(outcome.error) === "EACCES") {
      throw osFailure(`connect to "${socket}"`, outcome.error, { exit: exitCodes.noPermission, hint: `it belongs to user ${there.uid}: choose another place with --socket` });
    }
    if (errnoOf(outcome.error) === "EAGAIN") throw notAnswering(socket, record); // its backlog is full: unix(7)
    if (errnoOf(outcome.error) !== "ECONNREFUSED" && errnoOf(outcome.error) !== "ENOENT") throw osFailure(`connect to "${socket}"`, outcome.error);
    if (record === undefined || !isSame(socket, record.socket)) {
      throw new Failure(`Cannot use the socket "${socket}": nothing listens there, and it is not provably ours: ${describeFound(found, places)}`, {
        exit: exitCodes.cannotCreate, hint: `rm '${socket}'`,
      });
    }
  } else if (found !== undefined && "problem" in found) {
    throw new Failure(found.problem, { exit: found.exit ?? exitCodes.noPermission, hint: `rm '${places.record}'` });
  }
  if (record === undefined) return undefined;
  const life = livenessOf(record);
  if (record.host !== identify().host) {
    throw new Failure(`Cannot use "${socket}": its daemon was started on host "${record.host}", this is "${identify().host}"`, {
      exit: exitCodes.unavailable, hint: `log in to ${record.host}, or choose another place with --socket`,
    });
  }
  // Where it runs in another pid namespace, the refused connection has said all: it is the same kernel's.
  if (life.state !== "alive") return undefined;
  if (record.ended === undefined) {
    const outcome = await tryConnect(record.socket.bound, answerMs);
    if ("socket" in outcome) return { client: createClient(outcome.socket, record.socket.bound), record };
    if (await isGoneWithin(record, 1000)) return undefined; // it was just ending
    throw notAnswering(record.socket.bound, record, "error" in outcome ? reasonOf(outcome.error) : undefined);
  }
  if (await isGoneWithin(record, deathMs)) return undefined;
  throw notAnswering(socket, record, "it is ending, and has not ended yet");
}

function describeFound(found: ReturnType<typeof readRecord>, places: Places): string {
  if (found === undefined) return `there is no record "${places.record}"`;
  return "problem" in found ? found.problem : `the record "${places.record}" is of another socket`;
}

export function notAnswering(path: string, record: DaemonRecord | undefined, why = `no answer within ${answerMs / 1000} s`): Failure {
  const who = record === undefined ? "The daemon" : `The daemon (pid ${record.pid})`;
  return new Failure(`${who} at "${path}" is not answering: ${why}. It is not known to be dead, and was left alone`, {
    exit: exitCodes.unavailable, code: errorCodes.noDaemon, hint: "try again; or end it with --stop, and its processes with it",
    data: { reason: "not-answering" },
  });
}

async function isGoneWithin(record: Identity, timeoutMs: number): Promise<boolean> {
  for (const deadline = Date.now() + timeoutMs; livenessOf(record).state !== "dead"; await sleep(20)) if (Date.now() > deadline) return false;
  return true;
}

/**
 * Joins the daemon that answers: its tokens are joined by ours, its verdict is measured again, and what can be mended is: lingering, when that is
 * asked for, and a daemon that would be killed is moved into a scope as it is.
 */
async function joinServer(options: StartOptions, world: World): Promise<Started | false> {
  const reached = await reachServer(options.places);
  if (reached === undefined) return false;
  const { client, record } = reached;
  try {
    const admit = async (params: object): Promise<Admitted> =>
      (await client.request("server.admit", { key: record.key, ...params }, record.key, answerMs)) as Admitted;
    let answer: Admitted | undefined;
    for (const tokenHash of options.tokenHashes) answer = await admit({ tokenHash });
    const facts = await probeHost(world, { pid: record.pid });
    await mend(record.pid, facts, options, world);
    answer = { ...(await admit({ facts })), revived: answer?.revived ?? false };
    return {
      pid: answer.pid, instance: answer.instanceId, lifetime: answer.lifetime, facts, how: answer.revived ? "revived" : "joined", version: answer.version,
    };
  } catch (error) {
    if (!(error instanceof Failure) || (error.data?.ending !== true && error.code !== errorCodes.noDaemon)) throw error;
    if (await isGoneWithin(record, deathMs)) return false; // it was ending as we came
    throw notAnswering(options.places.socket, record, error.message);
  } finally {
    client.close();
  }
}

interface Admitted {
  instanceId: string;
  pid: number;
  version: string;
  revived: boolean;
  lifetime: Lifetime;
}

async function mend(pid: number, facts: Facts, options: StartOptions, world: World): Promise<void> {
  if (options.enableLinger) await switchLingerOn(facts, world);
  if (options.launch === "detach" || chooseLaunch(facts).launch !== "scope") return;
  const problem = await moveIntoScope([pid, ...descendantsOf(pid)], world);
  if (problem !== undefined) facts.scopeProblem = `the running daemon could not be moved: ${problem}`;
  facts.place = placeOf(pid, world);
}

/** Clears away the names of a dead daemon. Only with the start claimed, and only what its record proves to be its own. */
async function clearDead(places: Places): Promise<void> {
  const found = readRecord(places.record);
  if (found === undefined || !("record" in found)) return;
  const claim = await claimSoon(`${places.record}.lock`, 1000);
  if (claim === undefined) return;
  retireName(places.socket, found.record.socket);
  retireName(found.record.socket.bound, found.record.socket);
  claim.release();
}

/** @returns Undefined when another daemon published before ours. */
async function launch(options: StartOptions, world: World): Promise<Started | undefined> {
  const { places } = options;
  const old = options.replace ? await reachServer(places) : undefined;
  if (old === undefined) await clearDead(places);
  const logDescriptor = openLog(places.log);
  const facts = await probeHost(world);
  if (options.enableLinger) {
    options.progress("asking for lingering");
    await switchLingerOn(facts, world);
  }
  const handover = (measured: Facts): string => JSON.stringify(handoverOf(options, measured, old?.record));
  let started;
  try {
    started = await launchDaemon({ command: options.command, handover, log: places.log, logDescriptor }, facts, options.launch === "auto" ? undefined : options.launch);
  } catch (error) {
    old?.client.close();
    if (error instanceof Failure && error.exit === exitCodes.busy) return undefined;
    throw error;
  }
  if (old !== undefined) await endReplaced(old);
  return { ...started, ...(await verify(places, started, facts, world)), facts, how: "started" };
}

export function handoverOf(options: StartOptions, facts: Facts, old: DaemonRecord | undefined): Handover {
  return {
    places: options.places, tokenHashes: [...(old?.tokenHashes ?? []), ...options.tokenHashes], facts, command: options.command, version: options.version,
    over: old !== undefined,
  };
}

/** A real request over the socket, and the place where the process really is. */
async function verify(places: Places, started: { pid: number; instance: string }, facts: Facts, world: World): Promise<{ lifetime: Lifetime; version: string }> {
  const found = readRecord(places.record);
  if (found === undefined || !("record" in found) || found.record.instance !== started.instance) {
    throw new Failure(`Cannot verify the start: ${found !== undefined && "problem" in found ? found.problem : `"${places.record}" is not this daemon's record`}`);
  }
  const client = await connectClient(places.socket, answerMs);
  try {
    const { instanceId, version } = (await client.request("server.capabilities", {}, found.record.key, answerMs)) as { instanceId: string; version: string };
    if (instanceId !== started.instance) throw new Failure(`Cannot verify the start: instance ${instanceId} answers, ${started.instance} was started`);
    return { lifetime: describeVerdict(judgePlace(placeOf(started.pid, world), facts)), version };
  } finally {
    client.close();
  }
}

/** The old daemon ends, by its bound name; its public one is the new daemon's already. */
async function endReplaced({ client, record }: Reached): Promise<void> {
  await client.request("server.shutdown", { graceMs: 0 }, record.key, answerMs).catch(() => undefined);
  client.close();
  await isGoneWithin(record, deathMs);
}

export interface Stopped {
  word: "stopped" | "none";
  /** Processes that were alive, and now have the grace or are ended. */
  count: number;
  note?: string;
}

/**
 * Stops the daemon of a socket: asked over it when it answers; else, when the record proves which process it is, by SIGTERM and then SIGKILL.
 *
 * @throws {Failure} It could not be stopped; or it is not idle (exit code 75).
 */
export async function stopServer(places: Places, options: { graceMs: number; ifIdle: boolean }): Promise<Stopped> {
  let reached: Reached | undefined;
  try {
    reached = await reachServer(places);
  } catch (error) {
    const found = readRecord(places.record);
    const record = found !== undefined && "record" in found ? found.record : undefined;
    if ((error as Failure).data?.reason === "not-answering" && record !== undefined && !options.ifIdle) return killServer(places, record);
    if (record !== undefined && record.host !== identify().host) return { word: "none", count: 0, note: (error as Failure).message };
    throw error;
  }
  if (reached === undefined) {
    await clearDead(places);
    return { word: "none", count: 0 };
  }
  const { client, record } = reached;
  let count: number;
  try {
    count = ((await client.request("server.shutdown", options, record.key, answerMs)) as { processes: number }).processes;
  } catch (error) {
    const failure = error as Failure;
    if (failure.data?.processes !== undefined) throw new Failure(failure.message, { exit: exitCodes.busy });
    if (failure.code !== errorCodes.noDaemon) throw failure;
    if (await isGoneWithin(record, 0)) return { word: "stopped", count: 0 };
    if (options.ifIdle) throw notAnswering(places.socket, record);
    return killServer(places, record);
  } finally {
    client.close();
  }
  if (count > 0 && options.graceMs > 0) {
    for (let i = 0; i < 100 && isSame(places.socket, record.socket); i++) await sleep(20);
  } else if (!(await isGoneWithin(record, deathMs))) {
    return killServer(places, record);
  }
  return { word: "stopped", count };
}

/** Ends a daemon that does not answer, and its processes: each identified before, and again before each signal. */
async function killServer(places: Places, record: DaemonRecord): Promise<Stopped> {
  const life = livenessOf(record);
  if (life.state === "unknown") {
    throw new Failure(`Cannot stop the daemon (pid ${record.pid}): it does not answer, and ${life.why}`, { exit: exitCodes.unavailable });
  }
  const family = life.state === "alive" ? descendantsOf(record.pid).map((pid) => identify(pid)) : [];
  signalIfSame(record, "SIGTERM");
  if (!(await isGoneWithin(record, termMs))) signalIfSame(record, "SIGKILL");
  if (!(await isGoneWithin(record, deathMs))) throw new Failure(`Cannot stop the daemon (pid ${record.pid}): it is still there after SIGKILL`);
  const left = family.filter((identity) => identity.startTime !== "" && livenessOf(identity).state === "alive");
  for (const identity of left) signalIfSame(identity, "SIGTERM");
  for (const identity of left) if (!(await isGoneWithin(identity, termMs))) signalIfSame(identity, "SIGKILL");
  await clearDead(places);
  return { word: "stopped", count: left.length, note: `it did not answer, and was ended by signal` };
}

function signalIfSame(identity: Identity, signal: NodeJS.Signals): void {
  if (livenessOf(identity).state !== "alive") return;
  try {
    process.kill(identity.pid, signal);
  } catch (error) {
    if (errnoOf(error) !== "ESRCH") throw osFailure(`send ${signal} to process ${identity.pid}`, error, { exit: exitCodes.noPermission });
  }
}

/** The pids of a process's children, and theirs. */
export function descendantsOf(pid: number): number[] {
  const parents = new Map<number, number[]>();
  for (const name of readdirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const parent = parentOf(Number(name));
    if (parent !== undefined) parents.set(parent, [...(parents.get(parent) ?? []), Number(name)]);
  }
  const found: number[] = [];
  for (const queue = [pid]; queue.length > 0; ) {
    const children = parents.get(queue.pop()!) ?? [];
    found.push(...children);
    queue.push(...children);
  }
  return found;
}

function parentOf(pid: number): number | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]);
  } catch {
    return undefined;
  }
}

function sleep(ms: number): Promise<void> {
  return new Promise((done) => setTimeout(done, ms));
}
