/**
 * Finds the daemon of a socket from outside: by its public name, by the one it was bound to, or as a process that has lost both. Or says why there is
 * none: from the record, the kernel and what the daemon could still note, to a reason and words.
 */

import { readlinkSync, statSync } from "node:fs";
import { basename, dirname } from "node:path";
import type { Client, ConnectFailure, ConnectOutcome } from "./client.ts";
import { connectClient, createClient, proveAnswering, refusedBy, tryConnect } from "./client.ts";
import {
  cannot,
  clockWords,
  elsewhere,
  errnoError,
  errnoOf,
  errorCodes,
  exitCodes,
  Failure,
  osFailure,
  reasonOf,
  safely,
  timeWords,
} from "./failure.ts";
import { readOomKills } from "./lifetime.ts";
import { programPath } from "./program.ts";
import type { DaemonRecord, EndReason, FoundRecord, Identity, Liveness } from "./record.ts";
import {
  argumentsOf,
  claimSoon,
  identify,
  isOtherHost,
  livenessOf,
  livingProcesses,
  now,
  readRecord,
  readText,
  sleep,
  soon,
  writeRecord,
} from "./record.ts";
import type { Places } from "./socket.ts";
import { isLeftBy, isSame, lookAt, notASocket, readToken, retireName } from "./socket.ts";

/** A healthy daemon answers within a few ms; a busy host may take seconds. */
export const answerMs = 5000;

/** How long a daemon that is ending, or was told to, is waited for. */
export const deathMs = 6000;

/** How long a publication may take that is being made; and a daemon to make its names again. */
const publicationMs = 1000;

const recallMs = 3000;
/** Without /proc one that has lost its names is not seen: it makes them again within so much (watchMs in server.ts). */
const unseenMs = 300;

/** How long what has ended may take to leave the kernel: closing sockets is a matter of ms, a core dump of a second; a thread on a dead mount never goes. */
export const endingMs = 2000;
/** So soon a living server that has no business with us has closed the connection or said something, or is none. */
const silentMs = 200;

/** A daemon that is there: connected to, with its record. */
export interface Reached {
  client: Client;
  record: DaemonRecord;
}

/**
 * Connects to the daemon of a socket: by its public name; or, when that is gone (deleted, or retired within the grace of a --stop), by the
 * name it was bound to. A daemon whose names or record were deleted is asked to make them again.
 *
 * @returns Undefined when there provably is none: then what it left can be cleared away.
 * @throws {Failure} There is something, and it cannot be used: why.
 */
export async function reachServer(places: Places): Promise<Reached | undefined> {
  let deadline: number | undefined;
  for (;;) {
    const outcome = await lookForServer(places);
    if (!(outcome instanceof Failure)) return outcome;
    deadline ??= now() + (callDaemons(places).length > 0 ? recallMs : publicationMs);
    if (now() > deadline) throw outcome;
    await sleep(20);
  }
}

/**
 * Finds a daemon that lives and has lost everything that leads to it: its run directory was deleted. Only with the start claimed: else it may be
 * one that is just starting.
 *
 * @returns Undefined when there is none at all.
 * @throws {Failure} It does not publish itself again: a second daemon beside it would make an orphan of it and its processes.
 */
export async function recallServer(places: Places): Promise<Reached | undefined> {
  const there = await reachServer(places);
  if (there) return there;
  await clearDead(places);
  const [pid] = callDaemons(places);
  const isUnseen = identify(process.pid).startTime === "" && !readRecord(places.record).record; // one may be there
  if (!pid && !isUnseen) return undefined;
  for (const deadline = now() + (pid ? answerMs : unseenMs); now() < deadline; await sleep(20)) {
    const reached = await reachServer(places);
    if (reached || (pid && daemonsOf(places).length === 0)) return reached; // none is left: it was ending
  }
  if (!pid) return undefined;
  throw cannot(
    `use the socket "${places.socket}": process ${pid} serves it, and has not published it again within ${answerMs / 1000} s`,
    { exit: exitCodes.busy, hint: `see why in its log, or end it: kill ${pid}` },
  );
}

/** Asks the daemons of a socket to look after their names, by SIGCONT: whoever else had the pid by then is not harmed by it. */
function callDaemons(places: Places): number[] {
  const { record } = readRecord(places.record);
  const pids = daemonsOf(places);
  if (record && isAlive(record)) pids.push(record.pid);
  for (const pid of pids) safely(() => process.kill(pid, "SIGCONT"));
  return pids;
}

/** The daemons of our user that were launched for a socket, in our own namespaces: elsewhere the path is another one. */
function daemonsOf(places: Places): number[] {
  // the kernel's list of bound sockets, where a deleted one still has its name, spares a look at each process of the host
  if (readText("/proc/net/unix")?.includes(` ${dirname(places.socket)}/`) === false) return [];
  const own = ["pid", "mnt"].map((name) => safely(() => readlinkSync(`/proc/self/ns/${name}`)));
  return livingProcesses()
    .map(({ pid }) => pid)
    .filter((pid) =>
      safely(
        () =>
          isServing(argumentsOf(pid), places.socket) &&
          statSync(`/proc/${pid}`).uid === process.getuid!() &&
          ["pid", "mnt"].every((name, i) => readlinkSync(`/proc/${pid}/ns/${name}`) === own[i]),
      ),
    );
}

/** By its arguments. A systemd-run that hangs has those of the daemon that it is to become. */
function isServing(words: string[], socket: string): boolean {
  return words.slice(-3).join(" ") === `--launched --socket ${socket}` && basename(words[0]!) !== "systemd-run";
}

/** A Failure is returned, not thrown, where it may be otherwise in a moment: in the middle of a publication, or when a daemon has been called. */
async function lookForServer(places: Places): Promise<Reached | Failure | undefined> {
  const { socket } = places;
  const there = lookAt(socket);
  if (there.kind === "other") throw notASocket(socket, there.what);
  const found = readRecord(places.record);
  const { record, problem } = found;
  if (record && livenessOf(record).isEnding) await isGoneWithin(record, deathMs);
  if (there.kind === "socket") {
    const reached = await connectPublished(places, there.uid, found);
    if (reached) return reached;
  } else if (problem) {
    return new Failure(problem.message, { exit: exitCodes.noPermission, hint: `rm '${places.record}'` });
  }
  return record && lookForRecorded(socket, record);
}

/** @returns Undefined when the record proves that nobody listens at the name, and that it is ours. */
async function connectPublished(
  places: Places,
  uid: number,
  { record, problem }: FoundRecord,
): Promise<Reached | Failure | undefined> {
  const { socket } = places;
  const found = record
    ? `the record "${places.record}" is of another socket`
    : problem?.message || `there is no record "${places.record}"`;
  const outcome = await tryConnect(socket, answerMs);
  if ("timedOut" in outcome) throw notAnswering(socket, record);
  if ("socket" in outcome) {
    const isItsOwn = record && isSame(socket, record.socket);
    if (isItsOwn && livenessOf(record).state !== "dead")
      return { client: createClient(outcome.socket, socket), record };
    outcome.socket.destroy();
    if (isItsOwn) return undefined; // a process of its has that open yet, and nobody ever takes the connection
    const details = { exit: exitCodes.noPermission, hint: `${elsewhere}, or end that server` };
    return cannot(`use the socket "${socket}": a server answers there, but ${found}`, details);
  }
  if (errnoOf(outcome.error) === "ECONNRESET") return osFailure(`connect to "${socket}"`, outcome.error); // it ended as we came
  throwUnlessRefused(socket, uid, record, outcome.error);
  if (record && isOtherHost(record)) throw ofOtherHost(socket, record); // whose sockets refuse here, alive or not
  if (record && isLeftBy(record, socket)) return undefined;
  const details = { exit: exitCodes.cannotCreate, hint: `rm '${socket}'` };
  return cannot(`use the socket "${socket}": nothing listens there, and it is not provably ours: ${found}`, details);
}

/** Only where a connection was refused, or the name has just gone, nobody listens. */
function throwUnlessRefused(
  socket: string,
  uid: number,
  record: DaemonRecord | undefined,
  error: NodeJS.ErrnoException,
): void {
  const errno = errnoOf(error);
  if (errno === "ECONNREFUSED" || errno === "ENOENT") return;
  if (errno === "EAGAIN") throw notAnswering(socket, record); // its backlog is full: unix(7)
  const details = errno === "EACCES" && {
    exit: exitCodes.noPermission,
    hint: `it belongs to user ${uid}: ${elsewhere}`,
  };
  throw osFailure(`connect to "${socket}"`, error, details || {});
}

/** The daemon of a record whose public name leads to none. */
async function lookForRecorded(socket: string, record: DaemonRecord): Promise<Reached | Failure | undefined> {
  if (isOtherHost(record)) throw ofOtherHost(socket, record);
  // Where it runs in another pid namespace, the refused connection has said all: it is the same kernel's.
  const { state } = livenessOf(record);
  const isUnseen = state === "unknown" && record.startTime === ""; // no /proc: whoever listens at the name that it was bound to is the one
  if (state !== "alive" && !isUnseen) return undefined;
  if (!record.ended || isUnseen) {
    const { bound } = record.socket;
    const outcome = await tryConnect(bound, answerMs);
    if ("socket" in outcome) return { client: createClient(outcome.socket, bound), record };
    if ("timedOut" in outcome) throw notAnswering(bound, record);
    return isUnseen ? undefined : notAnswering(bound, record, reasonOf(outcome.error)); // it is just ending, or its names were deleted
  }
  if (await isGoneWithin(record, deathMs)) return undefined;
  throw notAnswering(socket, record, "it is ending, and has not ended yet");
}

function ofOtherHost(socket: string, { host }: DaemonRecord): Failure {
  return cannot(`use "${socket}": its daemon was started on host "${host}", this is "${identify().host}"`, {
    exit: exitCodes.unavailable,
    hint: `log in to ${host}, or ${elsewhere}`,
  });
}

export function notAnswering(
  path: string,
  record: DaemonRecord | undefined,
  why = `no answer within ${answerMs / 1000} s`,
): Failure {
  const who = record ? `The daemon (pid ${record.pid})` : "The daemon";
  return new Failure(`${who} at "${path}" is not answering: ${why}. It is not known to be dead, and was left alone`, {
    exit: exitCodes.unavailable,
    code: errorCodes.noDaemon,
    hint: "try again; or end it with --stop, and its processes with it",
    data: { reason: "not-answering" },
  });
}

/**
 * Connects to the daemon of a socket as the owner of its record, or with a token.
 *
 * @throws {Failure} There is no daemon, and why (exit code 69); or no way to authenticate (77).
 */
export async function connectOwned(places: Places, tokenFile?: string): Promise<{ client: Client; auth: string }> {
  let client: Client;
  try {
    client = await connectClient(places.socket, answerMs);
  } catch (error) {
    const errno = (error as Failure).data.errno;
    throw absenceFailure(
      explainAbsence(places, errno ? { error: (error as Failure).cause as NodeJS.ErrnoException } : { timedOut: true }),
    );
  }
  if (tokenFile) return { client, auth: await readToken(tokenFile) };
  const { record, problem } = readRecord(places.record);
  if (record) return { client, auth: record.key };
  client.close();
  throw cannot(`authenticate: ${problem ? problem.message : `there is no record "${places.record}"`}`, {
    exit: exitCodes.noPermission,
    hint: "give a token with --token-file",
  });
}

/** Asks a daemon that has been silent whether it answers at all: any answer will do, a refusal too. A method may take its time. */
export async function explainSilence(places: Places): Promise<Failure | undefined> {
  try {
    await proveAnswering(places.socket, answerMs);
    return undefined;
  } catch {
    return absenceFailure(explainAbsence(places, { timedOut: true }));
  }
}

/** Says why a connection that was there has ended: from what the daemon could still note, as soon as it is known. */
export async function explainLoss(places: Places, instance?: string): Promise<Failure> {
  const { record } = readRecord(places.record);
  if (record && instance !== undefined && record.instance !== instance && !record.ended)
    return new Failure(
      `The daemon was replaced by another one (pid ${record.pid}, started ${timeWords(record.startedAt)}), which has its processes`,
      { code: errorCodes.noDaemon, data: { reason: "replaced" }, hint: "connect again" },
    );
  if (record && !record.ended && !record.stoppingAt && !(await isGoneWithin(record, 500))) {
    return new Failure(
      `The daemon (pid ${record.pid}, started ${timeWords(record.startedAt)}) closed the connection: see its log "${record.log}"`,
      {
        code: errorCodes.noDaemon,
        data: { reason: "closed" },
        hint: "connect again",
      },
    );
  }
  // where its process cannot be seen, that nobody listens any more is all that tells
  return absenceFailure(explainAbsence(places, { error: errnoError("ECONNREFUSED", "nobody listens there any more") }));
}

export function isAlive(identity: Identity): boolean {
  return livenessOf(identity).state === "alive";
}

/** Also waits for a death that is under way: what the daemon has open is closed then. */
export async function isGoneWithin(record: DaemonRecord, timeoutMs: number): Promise<boolean> {
  if (!(await soon(() => isGone(record), timeoutMs))) return false;
  await soon(() => !livenessOf(record).isEnding, endingMs, 5);
  return true;
}

/**
 * The key of the daemon at the socket.
 *
 * @throws {Failure} The socket is not provably that daemon's: whoever planted another one would be sent the key.
 */
export function ownerKey(places: Places): string {
  const { record, problem } = readRecord(places.record);
  if (record && [places.socket, record.socket.bound].some((path) => isSame(path, record.socket))) return record.key;
  const why = problem?.message || (record ? "the socket is not the one of its record" : "there is no record");
  throw cannot(`use the daemon at "${places.socket}" as its owner: ${why}`, { exit: exitCodes.noPermission });
}

/** Connects to the socket. That of a dead daemon refuses, though a process of its may have it open yet: Deno once handed it on. */
export async function tryReach(places: Places, timeoutMs: number): Promise<ConnectOutcome> {
  const outcome = await tryConnect(places.socket, timeoutMs);
  return "socket" in outcome && isEndedDaemon(places) ? refusedBy(outcome.socket) : outcome;
}

/** The daemon of these places is provably dead, or on its way out. */
export function isEndedDaemon(places: Places): boolean {
  const { record } = readRecord(places.record);
  return record !== undefined && livenessOf(record).state === "dead";
}

/** Where its process cannot be seen (another pid namespace, no /proc), a daemon of this host is gone when its socket refuses. */
export async function isGone(record: DaemonRecord): Promise<boolean> {
  const { state } = livenessOf(record);
  return state !== "unknown" || isOtherHost(record) ? state === "dead" : refuses(record.socket.bound);
}

/** Nobody listens there; or the daemon is dead, and who has its socket open yet takes no connection. Another server, to which its inode was given, does. */
async function isUnserved(path: string, record: DaemonRecord): Promise<boolean> {
  const outcome = await tryConnect(path, 1000);
  if (!("socket" in outcome)) return "error" in outcome;
  const { socket } = outcome;
  const { state, isEnding } = livenessOf(record);
  const isSilent = new Promise<boolean>((done) => {
    for (const event of ["data", "end", "error"]) socket.on(event, () => done(false));
    setTimeout(done, silentMs, true);
  });
  const isUnserved = state === "dead" && !isEnding && (await isSilent);
  socket.destroy();
  return isUnserved;
}

export async function refuses(path: string): Promise<boolean> {
  const outcome = await tryConnect(path, 1000);
  if ("socket" in outcome) outcome.socket.destroy();
  return "error" in outcome;
}

/**
 * Clears away the names of a dead daemon: only what its record proves to be its own.
 *
 * @param stopped Notes that it was stopped on purpose, where it could not do so itself: no bridge is to start it again.
 */
export async function clearDead(places: Places, stopped = false): Promise<void> {
  if (readRecord(places.record).record === undefined) return;
  const claim = await claimSoon(`${places.record}.lock`, 1000).catch(() => undefined); // nor can a name be removed where none can be made
  if (!claim) return;
  try {
    const { record } = readRecord(places.record); // again: another daemon may have published meanwhile
    if (!record || !(await isGone(record))) return;
    for (const name of [places.socket, record.socket.bound]) {
      // or the last of its threads is just ending
      const there =
        isLeftBy(record, name) &&
        (await soon(() => isUnserved(name, record), 200)) &&
        isLeftBy(record, name) &&
        lookAt(name);
      if (there && there.kind === "socket") retireName(name, there);
    }
    if (!stopped || record.ended?.reason === "stopped") return;
    writeRecord(places.record, {
      ...record,
      ended: { at: Date.now(), reason: "stopped", detail: "noted by --stop: it was gone, or did not answer" },
    });
  } finally {
    claim.release();
  }
}

// Why there is none

/** A daemon that has died comes back by itself at most so often within so long: revive(). */
export const maxReturns = 3;
export const returnsMs = 60_000;

/** Why there is no daemon to talk to. The words of the wire: `data.reason` of error -32010. */
export type Reason =
  | "never-started"
  | "stopped"
  | "replaced"
  | "rebooted"
  | "host-shutdown"
  | "killed-at-logout"
  | "idle-stop"
  | "unit-stopped"
  | "user-manager-stopped"
  | "user-manager-ended"
  | "out-of-memory"
  | "crashed"
  | "other-host"
  | "not-answering"
  | "permission";

export interface Explanation {
  reason: Reason;
  /** One sentence of what happened, with times. */
  message: string;
  /** One command that mends it. */
  hint: string;
  /** It provably ended, and nobody meant it to: the bridge may start one with the tokens of this record. */
  healable: boolean;
  record?: DaemonRecord;
}

/** What is known of a daemon that could not be reached. */
interface Case {
  places: Places;
  record: DaemonRecord;
  life: Liveness;
  /** How the connect failed. */
  errno: string | undefined;
  /** "the daemon (pid 4711, started at 14:03:22)". */
  daemon: string;
  /** The command that starts one. */
  serve: string;
}

/** An explanation, but for the record. */
type Finding = Omit<Explanation, "record">;

/**
 * Explains why a connect to the socket did not reach a daemon, from evidence: the record, boot id, host, /proc, and what the daemon noted at its end.
 *
 * A timeout is "not-answering", never "dead".
 *
 * @param outcome How the connect failed; undefined when the socket is absent or it was not tried.
 */
export function explainAbsence(places: Places, outcome?: ConnectFailure): Explanation {
  const serve = `${programWords()} --serve --socket '${places.socket}'`;
  const { record, problem } = readRecord(places.record);
  const { error } = Object(outcome) as { error?: NodeJS.ErrnoException };
  const errno = errnoOf(error);
  if (errno === "EACCES" || errno === "EPERM") {
    const message = `the socket "${places.socket}" may not be used: ${reasonOf(error)}${ownerWords(places)}`;
    return { ...explain("permission", message, "choose your own with --socket"), record };
  }
  if (problem) {
    const reason = problem.exit === exitCodes.noPermission ? "permission" : "not-answering";
    return explain(reason, problem.message, `${elsewhere}, or remove "${places.record}"`);
  }
  if (!record) {
    const message = `no daemon has been started at "${places.socket}": there is no record of one`;
    return explain("never-started", message, serve);
  }
  const daemon = `the daemon (pid ${record.pid}, started ${timeWords(record.startedAt)})`;
  const found: Case = { places, record, life: livenessOf(record), errno, daemon, serve };
  return { ...(explainElsewhere(found) || explainStop(found) || explainEnd(found) || explainSilenceOf(found)), record };
}

function explain(reason: Reason, message: string, hint: string, healable = false): Finding {
  return { reason, message, hint, healable };
}

function explainElsewhere({ places, record, daemon }: Case): Finding | undefined {
  if (!isOtherHost(record)) return undefined;
  const { host } = identify();
  const message = `${daemon} was started on host "${record.host}", this is "${host}"`;
  const hint = `ssh ${record.host} …, or ${elsewhere}; where ${record.host} is this very host, before it was renamed and booted: rm '${places.record}'`;
  return explain("other-host", message, hint);
}

/** It lives, as far as can be known, and was told to end. */
function explainStop({ record: { ended, stoppingAt }, life, daemon, serve }: Case): Finding | undefined {
  if (life.state === "dead" || (life.state === "unknown" && ended)) return undefined;
  if (!stoppingAt && ended?.reason !== "stopped") return undefined;
  return explain(
    "stopped",
    `${daemon} was told to stop${stoppingAt ? `, and ends ${clockWords(stoppingAt)}` : ""}`,
    serve,
  );
}

/** It is dead: by what it could still note, or without a word. */
function explainEnd(found: Case): Finding | undefined {
  const { record, life, errno, daemon, serve } = found;
  const { ended } = record;
  if (ended && life.state !== "alive") return explainNoted(found, ended);
  if (life.state === "unknown" && errno === "ECONNREFUSED")
    return explain("crashed", `${daemon} does not listen any more (${life.why})`, serve, true);
  if (life.state !== "dead") return undefined;
  if (record.bootId !== identify().bootId)
    return explain("rebooted", `${daemon} is gone: the host has been booted again since`, serve, true);
  const kills = record.oomKills === undefined ? 0 : (readOomKills() ?? 0) - record.oomKills; // looked at every 30 s
  if (kills > 0) {
    const what = kills === 1 ? "a process" : `${kills} processes`;
    const message = `${daemon} is gone without a word, and the kernel has killed ${what} for want of memory at that time`;
    return explain("out-of-memory", message, "journalctl --dmesg --grep 'out of memory|oom-kill' --no-pager", true);
  }
  const isTired = (record.returns?.length ?? 0) >= maxReturns;
  const again = isTired
    ? `, after it had come back by itself ${maxReturns} times within a minute: it does so no more`
    : "";
  const how = `killed by SIGKILL (${life.why})${again}; its log is "${record.log}"`;
  return explain("crashed", `${daemon} is gone without a word: ${how}`, serve, true);
}

/** What each end was; where somebody meant it, no bridge is to start another daemon. */
interface EndWords {
  was(when: string, detail: string): string;
  isMeant?: boolean;
  /** A place under a lingering user manager would have outlived it. */
  lingers?: boolean;
}

const ends: Record<Exclude<EndReason, "terminated">, EndWords> = {
  stopped: { was: (when) => `was stopped on purpose ${when}`, isMeant: true },
  replaced: { was: (when) => `was replaced by another one ${when}` },
  crashed: { was: (when, detail) => `ended ${when} by an error of its own: ${detail}` },
  "killed-at-logout": {
    was: (when) => `was ended by systemd-logind ${when}, as the session ended that it was started in`,
    lingers: true,
  },
  "idle-stop": {
    was: (when) =>
      `was ended by systemd-logind ${when}, as the session had been idle for too long that it was started in`,
    lingers: true,
  },
  "unit-stopped": {
    was: (when, detail) => `was ended ${when} with the unit that it was in (${detail})`,
    lingers: true,
  },
  "user-manager-stopped": {
    was: (when) => `was ended ${when}, as systemd stopped the user manager after the last logout`,
    lingers: true,
  },
  "user-manager-ended": { was: (when) => `was ended ${when}, as somebody stopped the user manager, not by a logout` },
  "host-shutdown": { was: (when) => `was ended ${when}, as the host was shut down` },
};

function explainNoted(
  { record, daemon, serve }: Case,
  { reason, at, detail }: NonNullable<DaemonRecord["ended"]>,
): Finding {
  const when = timeWords(at);
  if (reason === "terminated") return explain("stopped", `${daemon} was ended ${when} by ${detail}`, serve);
  const known = Object.hasOwn(ends, reason) ? reason : "stopped"; // a newer version may know others
  const { was, isMeant, lingers } = ends[known];
  const log = reason === "crashed" ? `; its log is "${record.log}"` : "";
  const hint = lingers ? lastingHint(record, serve) : serve;
  return explain(known, `${daemon} ${was(when, detail)}${log}`, hint, !isMeant);
}

/** What was said to mend it at its start, where that was not lingering: an administrator's command. */
function lastingHint({ lifetime }: DaemonRecord, serve: string): string {
  const { warnings: found } = Object(lifetime) as { warnings?: unknown };
  const hint: unknown = Array.isArray(found) ? Object(found[0]).hint : undefined;
  const isOther = typeof hint === "string" && hint !== "" && !hint.startsWith("loginctl enable-linger");
  return isOther ? hint : `${serve} --enable-linger`;
}

function explainSilenceOf({ places, life, daemon }: Case): Finding {
  const doubt = life.state === "unknown" ? `, and ${life.why}` : "";
  const message = `${daemon} is not answering${doubt}: it is not known to be dead, and was left alone`;
  return explain("not-answering", message, `${programWords()} --stop --socket '${places.socket}'`);
}

function ownerWords(places: Places): string {
  const there = safely(() => lookAt(places.socket));
  return there && there.kind === "socket" ? `; it belongs to user ${there.uid}` : "";
}

/** The explanation as an error: -32010 to a client, exit code 69 to a shell. */
export function absenceFailure({ reason, message, hint }: Explanation): Failure {
  return cannot(`reach a daemon: ${message}`, {
    code: errorCodes.noDaemon,
    exit: reason === "permission" ? exitCodes.noPermission : exitCodes.unavailable,
    hint,
    data: { reason },
  });
}

/** How this program was called, as it can be pasted. */
export function programWords(): string {
  return `node '${programPath()}'`;
}
