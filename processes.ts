/**
 * process.*: the daemon's children, and what each of them has said.
 *
 *     stdout ─┐           ┌─ firstSeq ─── nextSeq ─── lastSeq ─┐
 *             ├─ hold() ─▶│     the child's replay buffer      │─▶ sendNext() ─▶ its reader's connection
 *     stderr ─┘           └────────────────────────────────────┘                          │
 *         ▲                                                                               │
 *         └────── setFlow(): pause, resume ◀────── fallBehind(), catchUp(), look() ◀──────┘
 *
 * A reader is a place in the buffer, nextSeq. So live output and replay are one thing: each message is sent to it once, in order.
 * While a reader's connection is behind, the pipes of its children stand still, and so do those who write into them. A connection that
 * takes nothing for 10 s slows nobody any more: output flows into the buffer again, and its reader is detached once the buffer would
 * drop what it has not been sent. What a connection is, and how much it buffers itself, is left to server.ts.
 *
 * The signals. Until node has reaped a child, its pid, and so its group's, cannot be anyone else's. After that the group may live on
 * with grandchildren: it is provably the same one, and is signalled, as long as a member is alive that was seen in it before.
 */

import { Buffer } from "node:buffer";
import { spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { constants } from "node:fs";
import { access, stat } from "node:fs/promises";
import { constants as osConstants } from "node:os";
import { basename } from "node:path";
import { createEnvironment } from "./environment.ts";
import { cannot, cleanText, errnoOf, errorCodes, Failure, osFailure, safely } from "./failure.ts";
import { decodeBase64, resolvePath } from "./files.ts";
import { createLanes, hasFarMounts, runInLane } from "./lanes.ts";
import type { Lanes } from "./lanes.ts";
import { livingProcesses, now, soon } from "./record.ts";
import {
  booleanParam,
  integerParam,
  invalidParam,
  optionalStringParam,
  stringListParam,
  stringMapParam,
  stringParam,
} from "./rpc.ts";
import type { Caller, Method, Methods, Params, Peer } from "./rpc.ts";
import { homeDirectory } from "./socket.ts";

export const defaultLimits = {
  /** Raw bytes in one stream message. */
  messageBytes: 32 << 10,
  /** Output held of one child, raw, and the messages that it is in: each costs some 400 bytes beside. The oldest go first. */
  replayBytes: 16 << 20,
  replayMessages: 65_536,
  /** Accepted for one child's stdin, and not yet taken by it. */
  stdinBytes: 16 << 20,
  /** Handed to one connection, and not yet taken by it: with more it is detached from all its children. */
  unsentBytes: 16 << 20,
  /** A connection that takes nothing for so long is not waited for. */
  stallMs: 10_000,
  /** From a child's end to its exit message, when a grandchild holds its pipes. */
  exitGraceMs: 5_000,
  /** Output of ended children is held for so long. Then they keep only their exit. */
  keepMs: 15 * 60_000,
  /** Held of all children together: output, and what waits for a stdin. First, the output goes of those that ended first; then, of the one that has most. */
  keepBytes: 256 << 20,
  /** Ended children that keep only their exit. */
  keepExits: 1000,
  /** For the login shell to say its PATH. */
  loginPathMs: 4_000,
};

/** A message that nobody has seen yet grows to this size, so that output in small pieces does not cost 400 bytes for each. */
const joinBytes = 4096;
/** What a message costs beside its output. */
const messageCost = 400;
/** What a child leaves in its pipes is read as it ends, whatever the reader's pace: some 200 KiB each. A grandchild may write on. */
const lastReadBytes = 4 << 20;
/** From KILL to giving up on a process in uninterruptible sleep. */
const killWaitMs = 1000;
/** A signal counts as the cause of an exit for so long: the longest killAndWait. */
const killedByMs = 30_000;
/** Characters of args up to which process.list repeats them. */
const maxListedArgs = 4096;

export interface ProcessWorld {
  /** The daemon's environment. Children get it without HOLDFAST_*. */
  env: NodeJS.ProcessEnv;
  log(line: string): void;
  /** No child is alive any more. */
  onAllExited?(): void;
  limits?: Partial<typeof defaultLimits>;
  /** For what a start looks at. */
  lanes?: Lanes;
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

export interface Processes {
  methods: Methods;
  /** Children that are being started, or have no exit message yet. */
  liveCount(): number;
  summary(): ChildSummary[];
  /**
   * Ends every process group: TERM, and after `graceMs` KILL to what is left. No child is started from then on.
   *
   * May be called again meanwhile, with less grace.
   *
   * @returns How many children were alive.
   */
  endAll(options: { graceMs: number }): Promise<number>;
}

type Message = { stream: "stdout" | "stderr"; data: Buffer } | ({ stream: "exit"; killedBy?: string } & Exit);
/** A child that a signal ended has the exit code that a shell would give it: 128 + the signal's number. */
type Exit = { exitCode: number; signal?: NodeJS.Signals };

interface Request {
  id: string;
  command: string;
  args: string[];
  cwd: string | undefined;
  env: Record<string, string>;
}

interface Child {
  readonly id: string;
  readonly command: string;
  readonly args: readonly string[] | undefined;
  readonly cwd: string;
  /** What it was given of that which rots. */
  readonly env: { path: string | null; home: string | null; sshAuthSock: string | null };
  readonly pid: number;
  /** By the clock on the wall, which may jump; and by now(). */
  readonly startedAt: number;
  readonly bornAt: number;
  /** Until the exit message. */
  handle: ChildProcess | undefined;

  /** By seq, firstSeq to lastSeq. The exit message is never dropped. */
  messages: Map<number, Message>;
  firstSeq: number;
  lastSeq: number;
  /** Somebody has been sent, or told of, the messages up to here: they do not change any more. */
  toldSeq: number;
  heldBytes: number;
  outputBytes: number;

  /** The connection of its reader, and the reader's place. */
  link?: Link | undefined;
  nextSeq: number;

  stdin: "open" | "ended" | "broken";
  stdinApplied: number;
  stdinQueued: number;

  /** How the child itself ended. Its pipes may still be open. */
  exit?: Exit;
  exitTimer?: NodeJS.Timeout;
  /** Bytes read since then. */
  lastRead: number;
  /** The exit message is in the buffer, and nothing comes after it. */
  isOver: boolean;
  keepTimer?: NodeJS.Timeout;
  killed?: { by: "client" | "shutdown"; at: number };
  /** Members of its group alive after it: "pid start-time". */
  survivors: Set<string>;
}

/** A connection, as the children that it reads see it. */
interface Link {
  readonly peer: Peer;
  /** In the order in which it is their turn. */
  readonly children: Set<Child>;
  isClosed: boolean;
  isBehind: boolean;
  /** Behind, and has taken nothing for stallMs. */
  isStalled: boolean;
  watch: NodeJS.Timeout | undefined;
  /** As last looked at, and how often it was no less since. */
  unsentBytes: number;
  stillTicks: number;
}

export function createProcesses(world: ProcessWorld): Processes {
  const limits = { ...defaultLimits, ...world.limits };
  const lanes = world.lanes || createLanes();
  const children = new Map<string, Child>();
  /** Settled when the child is there, or is not going to be. */
  const starting = new Map<string, Promise<void>>();
  const links = new Map<Peer, Link>();
  /** Ended children, in the order of their ends: with their output, and with only their exit. */
  const kept = new Set<Child>();
  const exits = new Set<Child>();
  /** Forgotten children whose groups may live on with grandchildren: endAll() ends those, too. */
  const forgotten = new Set<Child>();
  const home = () => safely(() => homeDirectory(world.env)) || "/";
  const environment = createEnvironment(world, home, limits.loginPathMs);
  let isEnding = false;
  /** Of all children: output with what its messages cost, and what waits for a stdin. */
  let totalBytes = 0;
  let totalQueued = 0;

  const methods: Methods = new Map<string, Method>([
    ["process.spawn", spawnChild],
    ["process.stdin", withChild(writeStdin)],
    ["process.kill", withChild(kill)],
    ["process.killAndWait", withChild(killAndWait, { found: false, died: false })],
    [
      "process.reattach",
      withChild(reattach, { found: false, running: false, firstSeq: 0, lastSeq: 0, stdinApplied: 0 }),
    ],
    ["process.list", () => ({ processes: [...children.values()].map(describeChild) })],
  ]);

  /** A request that comes while its child is being started waits for that: clients need not wait for the answer to process.spawn. */
  function withChild(run: (child: Child, params: Params, caller: Caller) => unknown, absent?: object): Method {
    return (params, caller) => {
      const id = stringParam(params, "id");
      const act = () => {
        const child = children.get(id);
        if (child) return run(child, params, caller);
        if (absent !== undefined) return absent;
        throw cannot(`find process "${shorten(id)}": no process has this id`, { code: errorCodes.invalidParams });
      };
      const start = starting.get(id);
      return start ? start.then(act) : act();
    };
  }

  // Starting

  async function spawnChild(params: Params, { peer }: Caller): Promise<object> {
    const request: Request = {
      id: stringParam(params, "id"),
      command: stringParam(params, "command"),
      args: stringListParam(params, "args"),
      cwd: optionalStringParam(params, "cwd"),
      env: stringMapParam(params, "env"),
    };
    refuseNul(request);
    const { id } = request;
    const old = children.get(id);
    if (starting.has(id) || (old && (!old.isOver || (old.link && !old.link.isStalled)))) {
      throw cannot(`start process "${shorten(id)}": a process with this id is alive`, {
        code: errorCodes.invalidParams,
      });
    }
    const link = linkOf(peer); // now: it may close while we wait
    let settle!: () => void;
    starting.set(id, new Promise((done) => (settle = done)));
    try {
      const child = await startChild(request);
      const before = children.get(id);
      if (before) forget(before, peer.id);
      children.set(id, child);
      if (!link.isClosed) attach(child, link, 1);
      return { success: true, pid: child.pid };
    } finally {
      starting.delete(id);
      settle();
      announceIdle();
    }
  }

  async function startChild({ id, command, args, cwd, env }: Request): Promise<Child> {
    const used = await environment.make(env, !command.includes("/"));
    const directory =
      cwd !== undefined ? resolvePath(cwd, home, "cwd") : (await isDirectory(home(), lanes)) ? home() : "/";
    const path = used.PATH || "";
    if (hasFarMounts(lanes)) await requireAnswers(command, directory, path, lanes);
    if (isEnding) throw cannot(`start "${shorten(command)}": the daemon is ending`);
    let handle: ChildProcess;
    try {
      handle = await openProcess(command, args, directory, used);
    } catch (error) {
      throw await startFailure(command, directory, path, error);
    }
    const child: Child = {
      id,
      command,
      cwd: directory,
      args: args.join("").length > maxListedArgs ? undefined : args,
      env: { path: path || null, home: used.HOME || null, sshAuthSock: used.SSH_AUTH_SOCK || null },
      pid: handle.pid!,
      startedAt: Date.now(),
      bornAt: now(),
      handle,
      messages: new Map(),
      firstSeq: 1,
      lastSeq: 0,
      toldSeq: 0,
      heldBytes: 0,
      outputBytes: 0,
      nextSeq: 1,
      stdin: "open",
      stdinApplied: 0,
      stdinQueued: 0,
      lastRead: 0,
      isOver: false,
      survivors: new Set(),
    };
    for (const stream of ["stdout", "stderr"] as const) {
      handle[stream]!.on("data", (chunk: Buffer) => hold(child, stream, chunk)).on("error", () => {}); // "close" follows
    }
    const breakStdin = () => void (child.stdin === "open" && (child.stdin = "broken"));
    handle.stdin!.on("error", breakStdin).on("close", breakStdin);
    handle.on("exit", (code, signal) => onExit(child, code, signal)).on("close", () => finish(child));
    world.log(`[Process] Started "${shorten(id)}": pid ${child.pid}, ${shorten(basename(command))}`);
    return child;
  }

  // Output: from the pipes into the buffer, from the buffer to the reader

  function hold(child: Child, stream: "stdout" | "stderr", chunk: Buffer): void {
    if (child.isOver) return;
    child.outputBytes += chunk.length;
    child.heldBytes += chunk.length;
    totalBytes += chunk.length;
    const last = child.lastSeq > child.toldSeq ? child.messages.get(child.lastSeq) : undefined;
    if (
      last &&
      last.stream === stream &&
      last.data.length < joinBytes &&
      last.data.length + chunk.length <= limits.messageBytes
    ) {
      last.data = Buffer.concat([last.data, chunk]);
    } else {
      for (let at = 0; at < chunk.length; at += limits.messageBytes) {
        child.messages.set(++child.lastSeq, { stream, data: chunk.subarray(at, at + limits.messageBytes) });
        totalBytes += messageCost;
      }
    }
    while (sendNext(child));
    trim(child);
    trimAll();
    if (child.exit) child.lastRead += chunk.length;
    setFlow(child); // each time: node itself resumes the pipes of a child that has ended
  }

  /** What a reader has yet to be sent stays while it is being read: its pipes stand still, so that this is little. */
  function trim(child: Child): void {
    while (child.heldBytes > limits.replayBytes || child.messages.size > limits.replayMessages) {
      if (isReadFirst(child)) return;
      dropOldest(child);
    }
  }

  function isReadFirst(child: Child): boolean {
    return child.nextSeq === child.firstSeq && child.link?.isStalled === false;
  }

  function trimAll(): void {
    for (const first of kept) {
      if (totalBytes <= limits.keepBytes) return;
      dropOutput(first);
    }
    while (totalBytes > limits.keepBytes) {
      let most: Child | undefined;
      for (const child of children.values()) {
        if (child.messages.size > 1 && !isReadFirst(child) && (!most || child.heldBytes > most.heldBytes)) most = child;
      }
      if (most === undefined) return;
      dropOldest(most);
    }
  }

  function dropOldest(child: Child): void {
    if (child.link && child.nextSeq === child.firstSeq) detach(child, "backpressure");
    const message = child.messages.get(child.firstSeq)!;
    child.messages.delete(child.firstSeq++);
    if (message.stream === "exit") return;
    child.heldBytes -= message.data.length;
    totalBytes -= message.data.length + messageCost;
  }

  function sendNext(child: Child): boolean {
    const { link, nextSeq: seq } = child;
    if (!link || link.isBehind || seq > child.lastSeq) return false;
    const message = child.messages.get(seq)!;
    child.nextSeq++;
    child.toldSeq = Math.max(child.toldSeq, seq);
    send(link, encodeMessage(child.id, seq, message));
    if (message.stream === "exit") detach(child);
    return true;
  }

  function setFlow({ link, handle, exit, lastRead }: Child): void {
    const flows = !link || !link.isBehind || link.isStalled || (exit && lastRead < lastReadBytes);
    for (const pipe of [handle?.stdout, handle?.stderr]) flows ? pipe?.resume() : pipe?.pause();
  }

  // Readers and their connections

  function linkOf(peer: Peer): Link {
    const known = links.get(peer);
    if (known) return known;
    const link: Link = {
      peer,
      children: new Set(),
      isClosed: false,
      isBehind: false,
      isStalled: false,
      watch: undefined,
      unsentBytes: 0,
      stillTicks: 0,
    };
    links.set(peer, link);
    peer.onDrain(() => catchUp(link));
    peer.onClose(() => {
      links.delete(peer);
      link.isClosed = true;
      clearInterval(link.watch);
      for (const child of link.children) detach(child);
    });
    return link;
  }

  function attach(child: Child, link: Link, nextSeq: number): void {
    child.link = link;
    child.nextSeq = nextSeq;
    link.children.add(child);
    setFlow(child);
  }

  /** @param by Who has the stream now, told to the reader; nobody is told when it is left out. */
  function detach(child: Child, by?: string): void {
    const { link } = child;
    if (!link) return;
    child.link = undefined;
    link.children.delete(child);
    if (by) send(link, { type: "detached", processId: child.id, by });
    setFlow(child);
  }

  function send(link: Link, message: object): void {
    if (!link.peer.send(message) && !link.isBehind) fallBehind(link);
  }

  function fallBehind(link: Link): void {
    link.isBehind = true;
    link.unsentBytes = link.peer.unsentBytes;
    link.stillTicks = 0;
    link.watch = setInterval(look, limits.stallMs / 10, link).unref();
    link.children.forEach(setFlow);
  }

  /** Counts looks, not time: while the host was suspended, nobody could take anything. */
  function look(link: Link): void {
    const { unsentBytes } = link.peer;
    if (unsentBytes > limits.unsentBytes) for (const child of link.children) detach(child, "backpressure");
    link.stillTicks = unsentBytes < link.unsentBytes ? 0 : link.stillTicks + 1;
    link.unsentBytes = unsentBytes;
    link.isStalled = link.stillTicks >= 10;
    link.children.forEach(setFlow);
  }

  function catchUp(link: Link): void {
    if (!link.isBehind) return;
    link.isBehind = link.isStalled = false;
    clearInterval(link.watch);
    serve(link);
    link.children.forEach(setFlow);
  }

  /** Sends what is held for a connection, a message of each child in turn, until it falls behind. */
  function serve(link: Link): void {
    for (const child of link.children) {
      if (link.isBehind) return;
      if (!sendNext(child) || child.link !== link) continue;
      link.children.delete(child);
      link.children.add(child); // to the end of the line, where this loop meets it again
    }
  }

  /** The answer goes first, the messages follow. */
  function reattach(child: Child, params: Params, { peer }: Caller): object {
    const fromSeq = integerParam(params, "fromSeq", { min: 0, max: Number.MAX_SAFE_INTEGER, default: 0 });
    if (fromSeq > child.lastSeq)
      throw invalidParam("fromSeq", fromSeq, `at most ${child.lastSeq}, the last that this process has`);
    const link = linkOf(peer);
    detach(child, child.link === link ? undefined : peer.id);
    if (!child.isOver || fromSeq < child.lastSeq) attach(child, link, Math.max(fromSeq + 1, child.firstSeq));
    child.toldSeq = child.lastSeq;
    setImmediate(serve, link);
    const { firstSeq, lastSeq, stdinApplied, isOver, exit } = child;
    return { found: true, running: !isOver, firstSeq, lastSeq, stdinApplied, ...(isOver ? exit : {}) };
  }

  // stdin

  /** Takes the data before it returns: writes are applied in the order in which they arrive. */
  function writeStdin(child: Child, params: Params): object {
    const text = optionalStringParam(params, "data") || "";
    const bytes = decodeBase64(text, "data");
    const offset = integerParam(params, "offset", {
      min: 0,
      max: Number.MAX_SAFE_INTEGER,
      default: child.stdinApplied,
    });
    const isEnd = booleanParam(params, "end", false);
    if (offset > child.stdinApplied) {
      const data = { applied: child.stdinApplied };
      throw new Failure("stdin offset gap: offset ahead of applied bytes", { code: errorCodes.stdinGap, data });
    }
    const fresh = bytes.subarray(child.stdinApplied - offset);
    if (fresh.length > 0) {
      refuseClosedStdin(child);
      if (child.stdinQueued + fresh.length > limits.stdinBytes || totalQueued + fresh.length > limits.keepBytes) {
        throw new Failure("stdin backpressure: queue full", {
          code: errorCodes.stdinFull,
          data: { applied: child.stdinApplied },
        });
      }
      child.stdinApplied += fresh.length;
      child.stdinQueued += fresh.length;
      totalQueued += fresh.length;
      child.handle!.stdin!.write(fresh, () => {
        child.stdinQueued -= fresh.length;
        totalQueued -= fresh.length;
      });
    }
    const endsNow = isEnd && child.stdin === "open";
    if (endsNow) {
      child.stdin = "ended";
      child.handle!.stdin!.end();
    }
    const isDuplicate = fresh.length === 0 && (bytes.length > 0 || (isEnd && !endsNow));
    return { success: true, applied: child.stdinApplied, ...(isDuplicate ? { duplicate: true } : {}) };
  }

  // Signals

  function kill(child: Child, params: Params): object {
    return signalGroup(child, signalParam(params), "client")
      ? { success: true }
      : { success: true, alreadyExited: true };
  }

  async function killAndWait(child: Child, params: Params): Promise<object> {
    const signal = signalParam(params);
    const timeoutMs = Math.min(
      integerParam(params, "timeoutMs", { min: 0, max: Number.MAX_SAFE_INTEGER, default: 3000 }),
      30_000,
    );
    const escalate = booleanParam(params, "escalate", true);
    if (!signalGroup(child, signal, "client") && child.exit) return { found: true, died: true, alreadyExited: true };
    if (await haveEnded([child], timeoutMs)) return { found: true, died: true };
    if (!escalate) return { found: true, died: Boolean(child.exit) };
    signalGroup(child, "SIGKILL", "client");
    await haveEnded([child], killWaitMs);
    return { found: true, died: Boolean(child.exit), escalated: true };
  }

  async function endAll({ graceMs }: { graceMs: number }): Promise<number> {
    isEnding = true;
    environment.close();
    await Promise.all(starting.values());
    const groups = [...children.values(), ...forgotten].filter(isGroupAlive);
    const alive = groups.filter(({ exit }) => !exit).length;
    for (const child of groups) safely(() => signalGroup(child, "SIGTERM", "shutdown")); // EPERM: a set-uid program
    if (await haveEnded(groups, graceMs)) return alive;
    for (const child of groups) safely(() => signalGroup(child, "SIGKILL", "shutdown"));
    await haveEnded(groups, killWaitMs);
    return alive;
  }

  /** @returns false if there is nobody left to signal. */
  function signalGroup(child: Child, signal: NodeJS.Signals, by: "client" | "shutdown"): boolean {
    if (!isGroupAlive(child)) return false;
    try {
      process.kill(-child.pid, signal);
    } catch (error) {
      if (errnoOf(error) === "ESRCH") return false;
      throw osFailure(`send ${signal} to process "${shorten(child.id)}"`, error);
    }
    if (/^SIG(TERM|INT|HUP|QUIT|KILL)$/.test(signal)) child.killed = { by, at: now() };
    return true;
  }

  // Ending

  function onExit(child: Child, code: number | null, signal: NodeJS.Signals | null): void {
    child.exit = signal === null ? { exitCode: code ?? -1 } : { exitCode: 128 + osConstants.signals[signal], signal };
    child.survivors = new Set(groupMembers(child.pid));
    child.exitTimer = setTimeout(finish, limits.exitGraceMs, child);
    setFlow(child);
  }

  function finish(child: Child): void {
    const { exit, handle, killed } = child;
    if (child.isOver || !exit) return;
    clearTimeout(child.exitTimer);
    child.isOver = true;
    for (const pipe of [handle?.stdin, handle?.stdout, handle?.stderr]) pipe?.destroy(); // a grandchild may hold the other ends
    child.handle = undefined;
    if (child.stdin === "open") child.stdin = "broken";
    const killedBy = killed && now() - killed.at < killedByMs ? { killedBy: killed.by } : {};
    child.messages.set(++child.lastSeq, { stream: "exit", ...exit, ...killedBy });
    while (sendNext(child));
    keep(child);
    world.log(
      `[Process] Ended "${shorten(child.id)}": pid ${child.pid}, ${exit.signal || `exit code ${exit.exitCode}`}`,
    );
    announceIdle();
  }

  function keep(child: Child): void {
    kept.add(child);
    child.keepTimer = setTimeout(dropOutput, limits.keepMs, child).unref();
    trimAll();
  }

  function dropOutput(child: Child): void {
    clearTimeout(child.keepTimer);
    while (child.messages.size > 1) dropOldest(child);
    kept.delete(child);
    exits.add(child);
    for (const first of exits) if (exits.size > limits.keepExits) forget(first, "expired");
  }

  function forget(child: Child, by: string): void {
    clearTimeout(child.keepTimer);
    detach(child, by);
    while (child.messages.size > 0) dropOldest(child);
    kept.delete(child);
    exits.delete(child);
    children.delete(child.id);
    child.messages.clear();
    if (child.survivors.size > 0) forgotten.add(child);
    for (const first of [...forgotten].slice(0, 2))
      if (forgotten.delete(first) && isGroupAlive(first)) forgotten.add(first); // looked at in turn
  }

  function announceIdle(): void {
    if (liveCount() === 0) world.onAllExited?.();
  }

  // What there is

  function liveCount(): number {
    return starting.size + [...children.values()].filter(({ isOver }) => !isOver).length;
  }

  function summary(): ChildSummary[] {
    return [...children.values()].map(({ id, pid, command, isOver, outputBytes, bornAt }) => {
      return { id, pid, command, running: !isOver, bytes: outputBytes, ageMs: Math.round(now() - bornAt) };
    });
  }

  return { methods, liveCount, summary, endAll };
}

function encodeMessage(processId: string, seq: number, message: Message): object {
  if (message.stream === "exit") return { type: "stream", processId, seq, ...message };
  return { type: "stream", processId, stream: message.stream, seq, data: message.data.toString("base64") };
}

/** @returns An entry of process.list. */
function describeChild(child: Child): object {
  const { id, command, args, pid, cwd, isOver, exit, firstSeq, lastSeq, stdinApplied, startedAt, link, env } = child;
  child.toldSeq = lastSeq;
  const state = {
    running: !isOver,
    ...(isOver ? exit : {}),
    firstSeq,
    lastSeq,
    stdinApplied,
    startedAt,
    attached: link ? link.peer.id : null,
  };
  return { id, command, args, pid, cwd, ...state, env };
}

function refuseClosedStdin({ id, exit, stdin, stdinApplied }: Child): void {
  if (!exit && stdin === "open") return;
  const closed = stdin === "ended" ? "it was ended by an earlier write" : "the process has closed it";
  const why = exit ? "the process has ended" : closed;
  const data = { errno: "EPIPE", applied: stdinApplied };
  throw cannot(`write to stdin of process "${shorten(id)}": ${why}`, { data });
}

/** "SIGTERM" or "TERM" or 15; TERM when it is absent. */
function signalParam(params: Params): NodeJS.Signals {
  const value = params.signal ?? "TERM";
  const isThis = ([name, number]: [string, number]) =>
    [name, name.slice("SIG".length), number].includes(value as string);
  const found = Object.entries(osConstants.signals).find(isThis);
  if (!found) throw invalidParam("signal", value, 'the name of a signal, such as "SIGTERM", or its number');
  return found[0] as NodeJS.Signals;
}

/** No path, argument or variable can have a NUL in it: what comes after would be lost. */
function refuseNul({ command, args, env }: Request): void {
  if (command.includes("\0")) throw invalidParam("command", command, "without NUL");
  if (args.some((text) => text.includes("\0"))) throw invalidParam("args", args, "without NUL");
  if (Object.entries(env).some(([name, value]) => !/^[^=\0]+$/.test(name) || value.includes("\0")))
    throw invalidParam("env", env, "names without =, and no NUL");
}

/** A part of a client's own text, for the log and for errors. */
function shorten(text: string): string {
  return cleanText(text, 100);
}

async function isDirectory(path: string, lanes: Lanes): Promise<boolean> {
  return (await runInLane(lanes, path, () => stat(path)).catch(() => undefined))?.isDirectory() === true;
}

/** To spawn is to wait, with the whole event loop, for chdir(2) and execve(2): the mounts that they will meet must answer. */
async function requireAnswers(command: string, cwd: string, path: string, lanes: Lanes): Promise<void> {
  const isThere = (file: string): Promise<boolean> =>
    runInLane(lanes, file, () => access(file, constants.X_OK)).then(
      () => true,
      (error: unknown) => {
        if (error instanceof Failure) throw error;
        return false;
      },
    );
  await isThere(cwd);
  for (const directory of command.includes("/") ? [""] : path.split(":")) {
    if (await isThere(resolvePath(directory === "" ? command : `${directory}/${command}`, () => cwd))) return;
  }
}

/** Starts a process that leads its own group. Descriptors other than 0 to 2 are not inherited: node opens its own with O_CLOEXEC. */
function openProcess(command: string, args: string[], cwd: string, env: NodeJS.ProcessEnv): Promise<ChildProcess> {
  return new Promise((resolve, reject) => {
    const handle = spawn(command, args, { cwd, env, detached: true, stdio: "pipe" });
    handle.on("error", reject); // at once or thrown, as it pleases node; later ones say nothing that "exit" does not
    if (handle.pid) resolve(handle);
  });
}

/** Says why: execve(2) and chdir(2) have the same ENOENT for a command, its interpreter and a working directory. */
async function startFailure(command: string, cwd: string, path: string, error: unknown): Promise<Failure> {
  const name = shorten(command);
  try {
    if (!(await stat(cwd)).isDirectory())
      throw Object.assign(new Error("ENOTDIR: not a directory"), { code: "ENOTDIR" });
    await access(cwd, constants.X_OK);
  } catch (reason) {
    return osFailure(`start "${name}" in working directory "${cwd}"`, reason);
  }
  if (errnoOf(error) !== "ENOENT") return osFailure(`start "${name}"`, error);
  const isThere =
    command.includes("/") && (await stat(resolvePath(command, () => cwd)).catch(() => undefined)) !== undefined;
  const absent = command.includes("/") ? "no such file" : `no such command in PATH "${path}"`;
  const why = isThere ? "the interpreter that its first line names does not exist" : absent;
  return cannot(`start "${name}": ${why} (ENOENT)`, { data: { errno: "ENOENT" }, cause: error });
}

/** Waits for the whole group of each: grandchildren are to end, too. */
function haveEnded(children: Child[], withinMs: number): Promise<boolean> {
  return soon(() => !children.some(isGroupAlive), withinMs);
}

/** Says whether there is someone to signal, and that it is the child's group, not another that has its number by now. */
function isGroupAlive(child: Child): boolean {
  if (!child.exit) return true;
  if (child.survivors.size === 0) return false;
  const members = groupMembers(child.pid);
  child.survivors = new Set(members.some((member) => child.survivors.has(member)) ? members : []);
  return child.survivors.size > 0;
}

/** Finds the living members of a process group: "pid start-time". Nobody where there is no /proc. */
function groupMembers(group: number): string[] {
  try {
    process.kill(-group, 0); // one system call, where /proc is one for each process of the host
  } catch (error) {
    if (errnoOf(error) === "ESRCH") return [];
  }
  return livingProcesses()
    .filter((process) => process.group === group)
    .map(({ pid, startTime }) => `${pid} ${startTime}`);
}
