/**
 * A daemon seen from outside: start one or join the one that runs, and stop it.
 *
 * A start, in order: join what answers; else claim the start; look again, also for a daemon that has lost all its names; clear away what is
 * provably dead and ours; probe, choose, launch, verify. Whoever finds the start claimed waits and joins the winner.
 */

import { randomBytes } from "node:crypto";
import type { Socket } from "node:net";
import { dirname } from "node:path";
import { endLeft, forgetLeft } from "./adoption.ts";
import type { ConnectFailure } from "./client.ts";
import { connectClient, tryConnect } from "./client.ts";
import { cannot, elsewhere, errnoOf, errorCodes, exitCodes, Failure, osFailure, safely } from "./failure.ts";
import type { Facts, World } from "./host.ts";
import { placeOf, probeHost, realWorld } from "./host.ts";
import { ownerMs } from "./kept.ts";
import type { Work } from "./launch.ts";
import { childrenOf, familyOf, holdersOf, launchDaemon, moveRunning, moveWork, placesOf } from "./launch.ts";
import type { Launch, Lifetime } from "./lifetime.ts";
import { chooseLaunch, describeVerdict, judgeWork, switchLingerOn } from "./lifetime.ts";
import type { Reached } from "./reach.ts";
import {
  absenceFailure,
  answerMs,
  clearDead,
  deathMs,
  endingMs,
  explainAbsence,
  isAlive,
  isGoneWithin,
  maxReturns,
  notAnswering,
  reachServer,
  recallServer,
  returnsMs,
  tryReach,
} from "./reach.ts";
import type { DaemonRecord, Identity } from "./record.ts";
import {
  claimSoon,
  createLog,
  identify,
  isOtherHost,
  livenessOf,
  now,
  readRecord,
  sleep,
  soon,
  tryClaim,
} from "./record.ts";
import type { Daemon, Handover } from "./server.ts";
import type { Places } from "./socket.ts";
import { isSame, makeRunDirectory, standingOf } from "./socket.ts";

/** How long a start waits for another one under way. Longer than the slowest start, with a wedged user manager. */
const startMs = 15_000;
/** How long one with processes takes to retire its name. */
const retireMs = 2000;
/** For a supervisor to start its daemon again: systemd waits for 100 ms, or as RestartSec= says. */
const supervisorMs = 3000;
/** From a return that has failed to the next. */
const againMs = 100;
/** From SIGTERM to SIGKILL, for a daemon that does not answer; and from that to giving up. */
const termMs = 3000;

export interface StartOptions {
  places: Places;
  /** SHA-256 in hex of the tokens that are to be good. */
  tokenHashes: string[];
  /** Of one process's output on disk: see spool.ts. */
  spoolBytes?: number | undefined;
  /** Processes get no link to an SSH agent. */
  noAgent?: boolean | undefined;
  /** Of the daemon's record: when it was brought back by itself before. */
  returns?: number[] | undefined;
  /** Told what an existing daemon's end will cost, before it. */
  warn?(line: string): void;
  launch: "auto" | Launch;
  enableLinger?: boolean;
  replace?: boolean;
  /** Refuses to replace a daemon whose processes would end. */
  ifIdle?: boolean;
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
export async function startServer(options: StartOptions): Promise<Started> {
  const world = realWorld();
  return withClaim(
    options,
    async () => !options.replace && joinServer(options, world),
    async () => {
      for (let attempt = 1; attempt <= 3; attempt++) {
        const started = (await launch(options, world)) || (await joinServer(options, world)); // another one published first
        if (started) return started;
      }
      throw cannot(`start: another daemon published "${options.places.socket}" and does not answer`, {
        exit: exitCodes.busy,
      });
    },
  );
}

/**
 * Starts the daemon in this process, for a supervisor.
 *
 * @param startDaemon That of server.ts, handed in: all other ways in do without that module.
 * @throws {Failure} As startServer(); and with exit code 75 when a daemon answers already.
 */
export async function startHere(
  options: StartOptions,
  startDaemon: (handover: Handover, world: World) => Promise<Daemon>,
): Promise<{ started: Started; ended: Promise<number> }> {
  const { places } = options;
  const world = realWorld();
  const reachOld = async (): Promise<Reached | undefined> => {
    const reached = await reachServer(places);
    if (!reached || options.replace || reached.record.supervisor === "awaited") return reached;
    reached.client.close();
    throw cannot(`start in the foreground: a daemon (pid ${reached.record.pid}) answers at "${places.socket}"`, {
      exit: exitCodes.busy,
      hint: `end it with --stop, take its place with --replace, or ${elsewhere}`,
    });
  };
  const isBusy = async (): Promise<false> => {
    (await reachOld())?.client.close();
    return false;
  };
  return withClaim(options, isBusy, async () => {
    const old = await reachOld();
    if (old) await warnOfReplaced(old, options);
    else await clearDead(places);
    const facts = await probeHost(world);
    if (options.enableLinger) await switchLingerOn(facts, world);
    const { record: dead } = readRecord(places.record);
    const last = old?.record ?? (dead?.ended?.reason === "stopped" ? undefined : dead); // as a bridge goes on with its tokens
    const seen = standingOf(old?.record ?? dead);
    const handover: Handover = { ...handoverOf(options, last), over: Boolean(old), facts, supervisor: "runs", seen };
    const { record, lifetime, ended } = await startDaemon(handover, world);
    if (old) await endReplaced(old, options);
    const { pid, instance } = record;
    return { started: { pid, instance, lifetime, facts, how: "started", version: options.version }, ended };
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
  places: Places,
  outcome: ConnectFailure,
  healing: Omit<StartOptions, "tokenHashes"> | undefined,
): Promise<Socket | Failure> {
  let explanation = explainAbsence(places, outcome);
  const { record } = explanation;
  if (!record && (await recallServer(places).catch(() => undefined))) {
    const second = await tryConnect(places.socket, answerMs);
    if ("socket" in second) return second.socket;
  }
  if (record && explanation.reason === "not-answering" && !("timedOut" in outcome)) {
    const second = await tryConnect(record.socket.bound, answerMs);
    if ("socket" in second) return second.socket;
    explanation = explainAbsence(places, second); // it may have died in the middle of the first attempt: ECONNRESET
  }
  const { message, reason } = explanation;
  if (!record || !explanation.healable || !healing) return absenceFailure(explanation);
  const supervised = record.supervisor && (await awaitSupervisor(places));
  if (supervised) return supervised;
  try {
    const started = await startServer({
      ...healing,
      tokenHashes: record.tokenHashes,
      spoolBytes: record.spoolBytes,
      noAgent: record.noAgent,
      places: { ...places, log: record.log },
    });
    if (started.how === "started") {
      healing.progress(
        `${message}: started it again (pid ${started.pid}, ${started.lifetime.where}; survives logout: ${started.lifetime.words})`,
      );
    }
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    return new Failure(`${absenceFailure(explanation).message}; and none could be started: ${error.message}`, {
      code: errorCodes.noDaemon,
      exit: exitCodes.unavailable,
      hint: error.hint || explanation.hint,
      data: { reason },
    });
  }
  const healed = await tryConnect(places.socket, answerMs);
  return "socket" in healed ? healed.socket : absenceFailure(explainAbsence(places, healed));
}

/** A daemon in the foreground is its supervisor's to start again. Where that takes long, another one stands in for it, and gives way when it comes. */
async function awaitSupervisor(places: Places): Promise<Socket | undefined> {
  for (const deadline = now() + supervisorMs; now() < deadline; await sleep(50)) {
    const outcome = await tryReach(places, answerMs);
    if ("socket" in outcome) return outcome.socket;
  }
  return undefined;
}

/**
 * Starts a daemon again that has died, unless it was stopped, or somebody was quicker; and again when that one dies before it has a name. What there is
 * to say goes to its log.
 */
export async function revive(places: Places, healing: Omit<StartOptions, "tokenHashes">): Promise<void> {
  for (let known: number[] = []; ; await sleep(againMs)) {
    const { record } = readRecord(places.record);
    if (!record || !(await isGoneWithin(record, deathMs))) return;
    const say = safely(() => createLog(record.log)) || (() => {});
    const returns = recent([...(record.returns ?? []), ...known]);
    if (returns.length >= maxReturns) {
      return say(
        `[Watchdog] The daemon is dead again, after ${returns.length} returns within ${returnsMs / 1000} s: now --serve or --bridge is to start it`,
      );
    }
    const outcome = await tryReach(places, answerMs);
    if ("socket" in outcome) return void outcome.socket.destroy();
    known = [...returns, Date.now()];
    const progress = (line: string) => say(`[Watchdog] ${line}`);
    const reached = await reachOtherwise(places, outcome, { ...healing, progress, returns: known });
    if ("destroy" in reached) return void reached.destroy();
    progress(reached.message);
    if (!explainAbsence(places, outcome).healable) return;
  }
}

/** Each once: the record has what is known, when the one that was started got so far. */
function recent(returns: number[]): number[] {
  return [...new Set(returns)].filter((at) => Math.abs(Date.now() - at) < returnsMs);
}

/** Runs `join` until it succeeds, or `start` with the start claimed. */
async function withClaim<T>(
  { places }: StartOptions,
  join: () => Promise<T | false>,
  start: () => Promise<T>,
): Promise<T> {
  for (const directory of new Set([dirname(places.socket), places.directory])) makeRunDirectory(directory);
  for (const deadline = now() + startMs; ; await sleep(50)) {
    let found = await join();
    if (found) return found;
    const claim = tryClaim(places.claim);
    if ("release" in claim) {
      try {
        found = await join(); // the one that held the claim may have started it meanwhile
        const lost = found ? undefined : await recallServer(places);
        if (lost) found = await join();
        lost?.client.close();
        return found || (await start());
      } finally {
        claim.release();
      }
    }
    if (now() > deadline) throw busy(places, claim.heldBy);
  }
}

function busy(places: Places, holder: Identity | undefined): Failure {
  const remove = `rm '${places.claim}'`;
  const who = holder ? `process ${holder.pid} on ${holder.host}` : "a file that is no claim of ours";
  const again = "try again in a moment";
  const wait = holder && isOtherHost(holder) ? `${again}; or, when no ${holder.host} starts one: ${remove}` : again;
  const message = `start: another start is under way: "${places.claim}" is held by ${who}`;
  return cannot(message, { exit: exitCodes.busy, hint: holder ? wait : remove });
}

/**
 * Joins the daemon that answers: its tokens are joined by ours, its verdict is measured again, and what can be mended is: lingering, when that is
 * asked for, and a daemon that would be killed is moved into a scope as it is.
 */
async function joinServer(options: StartOptions, world: World): Promise<Started | false> {
  for (let attempt = 1; ; attempt++) {
    const reached = await reachServer(options.places);
    if (!reached) return false;
    try {
      return await joinReached(reached, options, world);
    } catch (error) {
      if (await isGoneAfter(error, reached.record)) return false;
      if (attempt === 3 || (error as Failure).data.timedOut)
        throw notAnswering(options.places.socket, reached.record, (error as Failure).message);
    } finally {
      reached.client.close();
    }
  }
}

/**
 * It was ending as we came; or it was told to stop, closed all connections, and can be revived.
 *
 * @throws What says neither.
 */
async function isGoneAfter(error: unknown, record: DaemonRecord): Promise<boolean> {
  if (!(error instanceof Failure) || (!error.data.ending && error.code !== errorCodes.noDaemon)) throw error;
  return isGoneWithin(record, error.data.ending ? deathMs : 100);
}

async function joinReached({ client, record }: Reached, options: StartOptions, world: World): Promise<Started> {
  const admit = async (params: object): Promise<Admitted> =>
    (await client.request("server.admit", { key: record.key, ...params }, record.key, answerMs)) as Admitted;
  let answer: Admitted | undefined;
  for (const tokenHash of options.tokenHashes) answer = await admit({ tokenHash });
  // in another pid namespace its pid means somebody else
  const isHere = isAlive(record);
  const facts = await probeHost(world, isHere ? { pid: record.pid } : {});
  if (isHere) {
    const { processes } = (await client.request("server.status", {}, record.key, answerMs)) as Status;
    await mend(record.pid, processes, facts, options, world);
  }
  const { pid, instanceId, version, lifetime } = !answer || isHere ? await admit({ facts }) : answer;
  return { pid, instance: instanceId, lifetime, facts, how: answer?.revived ? "revived" : "joined", version };
}

interface Admitted {
  instanceId: string;
  pid: number;
  version: string;
  revived: boolean;
  lifetime: Lifetime;
}

/** @param work Of holders that are the daemon's children, and of others. */
async function mend(pid: number, work: Work[], facts: Facts, options: StartOptions, world: World): Promise<void> {
  const { enableLinger, launch, places } = options;
  if (enableLinger) await switchLingerOn(facts, world);
  if (launch !== "detach" && chooseLaunch(facts).launch === "scope")
    await moveRunning([pid, ...familyOf([...childrenOf(pid), ...holdersOf(work, places)])], facts, world);
  await moveWork(facts.place, work, places, facts, world);
}

/** @returns Undefined when another daemon published before ours. */
async function launch(options: StartOptions, world: World): Promise<Started | undefined> {
  const { places, command } = options;
  const old = options.replace ? await reachServer(places) : undefined;
  if (old) await warnOfReplaced(old, options);
  else await clearDead(places);
  const { record: last } = readRecord(places.record);
  const isAwaited = last?.supervisor && last.ended?.reason !== "stopped";
  const seen = standingOf(old?.record ?? last);
  const handover = { ...handoverOf(options, old?.record), seen, ...(isAwaited && { supervisor: "awaited" as const }) };
  const facts = await probeHost(world);
  if (options.enableLinger) {
    options.progress("asking for lingering");
    await switchLingerOn(facts, world);
  }
  const only = options.launch === "auto" ? undefined : options.launch;
  try {
    const started = await launchDaemon({ command, handover, log: places.log }, facts, only, world);
    if (old) await endReplaced(old, options);
    const verified = await verify(places, { ...handover, pid: started.pid }, facts, world);
    return { ...started, ...verified, facts, how: "started" };
  } catch (error) {
    old?.client.close();
    if (old) (await recallServer(places).catch(() => undefined))?.client.close(); // it is to have its name again
    if (error instanceof Failure && error.exit === exitCodes.busy) return undefined;
    throw error;
  }
}

function handoverOf(
  { places, tokenHashes, command, version, spoolBytes, noAgent, returns }: StartOptions,
  old?: DaemonRecord,
): Omit<Handover, "facts"> {
  return {
    places,
    tokenHashes: [...(old ? old.tokenHashes : []), ...tokenHashes],
    command,
    version,
    over: Boolean(old),
    returns,
    spoolBytes: spoolBytes ?? old?.spoolBytes,
    noAgent: noAgent || old?.noAgent,
    instance: randomBytes(16).toString("hex"),
    key: randomBytes(32).toString("hex"),
  };
}

/** Of server.status. */
interface Status {
  instanceId: string;
  version: string;
  features: string[];
  processes: Work[];
}

/** A real request over the socket, and the place where the process really is. */
async function verify(
  places: Places,
  started: { pid: number; instance: string; key: string },
  facts: Facts,
  world: World,
): Promise<{ lifetime: Lifetime; version: string }> {
  const client = await connectClient(places.socket, answerMs);
  try {
    const { instanceId, version, processes } = (await client
      .request("server.status", {}, started.key, answerMs)
      .catch(({ message, exit }: Failure) => {
        throw cannot(`verify the start: ${message}`, { exit, hint: `see the log "${places.log}"` });
      })) as Status;
    if (instanceId !== started.instance)
      throw cannot(`verify the start: instance ${instanceId} answers, ${started.instance} was started`);
    const own = placeOf(started.pid, world);
    if (await moveWork(own, processes, places, facts, world))
      await client.request("server.admit", { key: started.key, facts }, started.key, answerMs);
    return { lifetime: describeVerdict(judgeWork(own, placesOf(processes, world), facts)), version };
  } finally {
    client.close();
  }
}

/** Says what ends with the daemon that is to be replaced: one of an earlier version, or with plain pipes, leaves nothing to the next. */
async function warnOfReplaced({ client, record }: Reached, { ifIdle, warn }: StartOptions): Promise<void> {
  const status = (await client.request("server.status", {}, record.key, answerMs)) as Status;
  const count = status.features.includes("held") ? 0 : status.processes.filter(({ running }) => running).length;
  const what = `${count} ${count === 1 ? "process" : "processes"} of the daemon (version ${record.version}) cannot go on without it`;
  if (count > 0 && ifIdle) {
    const hint = "leave --if-idle out to end them, or wait for them";
    throw cannot(`replace the daemon: ${what}, and it was to be replaced only if idle`, { exit: exitCodes.busy, hint });
  }
  if (count > 0) warn?.(`${what}, and will be ended`);
  if (!record.stoppingAt) return;
  await client.request("server.admit", { key: record.key }, record.key, answerMs); // revived: its grace is not to end meanwhile
  delete record.stoppingAt;
}

/**
 * The old daemon ends, by its bound name; its public one is the new daemon's already, so that at no time there is none. Who asks that one for
 * processes waits for what this leaves: takeUp().
 */
async function endReplaced({ client, record }: Reached, { warn }: StartOptions): Promise<void> {
  const end = (params: object) => client.request("server.shutdown", params, record.key, answerMs);
  await end({ graceMs: 0, handOver: true })
    .catch((error) => error.code === errorCodes.invalidParams && end({ graceMs: 0 })) // it does not know how, and ends its processes
    .catch(() => undefined);
  client.close();
  if (await isGoneWithin(record, ownerMs)) return;
  warn?.(`the old daemon (pid ${record.pid}) has not left within ${ownerMs / 1000} s: it is ended by SIGKILL`);
  signalIfSame(record, "SIGKILL"); // alone: the new one has its processes, or takes them up
}

/** What a start comes to that is under way; or a daemon that has lost its names. */
async function reachStarting(places: Places): Promise<Reached | undefined> {
  // where the claim cannot even be made, no start is under way
  const claim = await claimSoon(places.claim, startMs).catch(() => ({ release: () => {} }));
  if (!claim) {
    throw cannot(`stop: a start is under way: "${places.claim}" is held`, {
      exit: exitCodes.busy,
      hint: "try again in a moment",
    });
  }
  try {
    return await recallServer(places);
  } finally {
    claim.release();
  }
}

export interface StopOptions {
  /** Output and exits of what has ended go, too. */
  forget?: boolean;
  /** What processes that live are given before TERM; undefined for the daemon's own. */
  graceMs: number | undefined;
  /** Refuses while processes live. */
  ifIdle: boolean;
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
export async function stopServer(places: Places, options: StopOptions, attempt = 1): Promise<Stopped> {
  let reached: Reached | undefined;
  try {
    reached = (await reachServer(places)) || (await reachStarting(places));
  } catch (error) {
    return stopUnreached(places, options, error as Failure);
  }
  if (!reached) {
    await clearDead(places, true);
    const count = await endLeft(places.held, { graceMs: termMs, ifIdle: options.ifIdle });
    if (options.forget) forgetLeft(places.held);
    return { word: count > 0 ? "stopped" : "none", count };
  }
  let answer: unknown;
  try {
    answer = await reached.client.request("server.shutdown", options, reached.record.key, answerMs);
  } catch (error) {
    return await stopUnheard(places, options, attempt, reached.record, error as Failure);
  } finally {
    reached.client.close();
  }
  return awaitStop(places, reached.record, options, (answer as { processes: number }).processes);
}

async function stopUnheard(
  places: Places,
  options: StopOptions,
  attempt: number,
  record: DaemonRecord,
  failure: Failure,
): Promise<Stopped> {
  if (failure.data.processes) throw new Failure(failure.message, { exit: exitCodes.busy });
  if (failure.code !== errorCodes.noDaemon) throw failure;
  if (await isGoneWithin(record, 100)) return awaitStop(places, record, options, 0);
  // another --stop was quicker, and it closed all connections; of many, each does
  const { stoppingAt = 0 } = readRecord(places.record).record ?? {};
  const mayRepeat = attempt < 3 || Date.now() < stoppingAt;
  if (!failure.data.timedOut && mayRepeat) return stopServer(places, options, attempt + 1);
  if (options.ifIdle) throw notAnswering(places.socket, record);
  return killServer(places, record);
}

function stopUnreached(places: Places, { ifIdle }: StopOptions, failure: Failure): Stopped | Promise<Stopped> {
  const { record } = readRecord(places.record);
  if (record && failure.data.reason === "not-answering" && !ifIdle) return killServer(places, record);
  if (record && isOtherHost(record)) return { word: "none", count: 0, note: failure.message };
  throw failure;
}

async function awaitStop(
  places: Places,
  record: DaemonRecord,
  { graceMs }: StopOptions,
  count: number,
): Promise<Stopped> {
  if (count > 0 && graceMs !== 0) await soon(() => !isSame(places.socket, record.socket), retireMs);
  else if (!(await isGoneWithin(record, deathMs))) return killServer(places, record);
  else await soon(() => !livenessOf(record).isPidTaken, endingMs, 5); // its socket refuses some ms before it is gone
  return { word: "stopped", count };
}

/** Ends a daemon that does not answer, and its processes: each identified before, and again before each signal. */
async function killServer(places: Places, record: DaemonRecord): Promise<Stopped> {
  const life = livenessOf(record);
  const doing = `stop the daemon (pid ${record.pid})`;
  if (life.state === "unknown")
    throw cannot(`${doing}: it does not answer, and ${life.why}`, { exit: exitCodes.unavailable });
  const children = life.state === "alive" ? childrenOf(record.pid) : [];
  let processes = familyOf(children).map((pid) => identify(pid));
  if (!(await endBySignal(() => [record].filter(isAlive)))) throw cannot(`${doing}: it is still there after SIGKILL`);
  await clearDead(places, true); // now: a bridge that finds it dead is not to start another
  await endLeft(places.held, { graceMs: termMs, ifIdle: false }); // as far as it held them, with their exits
  // looked for again each time: they may start others meanwhile
  await endBySignal(
    () => (processes = familyOf(processes.filter(isAlive).map(({ pid }) => pid)).map((pid) => identify(pid))),
  );
  return { word: "stopped", count: children.length, note: "it did not answer, and was ended by signal" };
}

/** SIGTERM, and SIGKILL to those that it does not end. Returns whether none is left. */
async function endBySignal(find: () => Identity[]): Promise<boolean> {
  for (const signal of ["SIGTERM", "SIGKILL"] as const) {
    for (const identity of find()) signalIfSame(identity, signal);
    if (await soon(() => find().length === 0, termMs)) return true;
  }
  return false;
}

function signalIfSame(identity: Identity, signal: NodeJS.Signals): void {
  if (!isAlive(identity)) return;
  try {
    process.kill(identity.pid, signal);
  } catch (error) {
    if (errnoOf(error) !== "ESRCH")
      throw osFailure(`send ${signal} to process ${identity.pid}`, error, { exit: exitCodes.noPermission });
  }
}
