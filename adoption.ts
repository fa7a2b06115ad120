/**
 * Takes up what an earlier daemon has left: its children that run, with their ids, pids, seqs and stdins; and those that have ended, with their
 * output and their exits.
 *
 *     <socket name>.held/owner       a claim (record.ts): the one daemon that may read what children say; taken over only from a dead one
 *     <socket name>.held/<random>/   one child: kept.ts, spool.ts, holders.ts
 *
 * What is not ours, is damaged, or of another version is left alone, and said in the log: nobody is signalled for it.
 */

import { lstatSync, mkdtempSync, rmdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Child, Origin, Stdin } from "./children.ts";
import { createChild, finish, leaveChild, pumpStdin } from "./children.ts";
import { cannot, errnoError, exitCodes, Failure, reasonOf, safely, shorten } from "./failure.ts";
import type { Adopted } from "./holders.ts";
import { adoptHeld, closeHolders, probeHolders, sweepHeld } from "./holders.ts";
import type { KeptAbout, KeptExit, Mark } from "./kept.ts";
import {
  claimKept,
  createMark,
  exitFrom,
  isForgotten,
  keptDirectories,
  ownerMs,
  ownerStepMs,
  readAbout,
  readExit,
  readJournal,
  readMark,
  writeMark,
} from "./kept.ts";
import type { Processes, Summary } from "./processes.ts";
import { createProcesses, endAll, endThese, forget, freeId, keep, liveCount, startNoMore } from "./processes.ts";
import type { Engine } from "./pty.ts";
import { adoptTerminal, probeEngines } from "./pty.ts";
import type { Identity } from "./record.ts";
import { livenessOf, now, readClaim, soon, statOf, tryClaim } from "./record.ts";
import type { Ended, HolderRecord, Running, Watch } from "./running.ts";
import { membersOf } from "./running.ts";
import type { Spool } from "./spool.ts";
import { appendOutput, findExit, loadSpool, restSpool, skipTo } from "./spool.ts";

/** What a daemon may have read, and not yet written to a spool: a chunk of each pipe; and what was in the pipes, where nobody holds these. */
const maxGapBytes = 2 * (64 << 10);
const maxLostBytes = 2 * maxGapBytes;
/** How often it is seen whether a child that nobody holds lives. */
const orphanMs = 250;
/** By then the daemon has answered whoever waited for it. */
const sweepMs = 1000;
/** What is just being started is handed over, too: on a busy machine that takes so long. */
const startingMs = 3000;
/** How often another daemon, which is on its way out, is asked to leave. */
const askMs = 1000;

/**
 * Takes up all there is, when the daemon that had it is dead, or has left it; while it has not, process.* waits for that.
 *
 * To be called before the first request is answered.
 *
 * @param afterMs When to end what was begun to be started, and is not known: that reads all of /proc.
 */
export function takeUp(processes: Processes, afterMs = sweepMs): void {
  const { path } = processes.room;
  if (path === undefined) return;
  processes.onClaimed = () => takeUpAll(processes, path, afterMs);
  const isThere = (): boolean => safely(() => lstatSync(path)) !== undefined;
  const isLeft = isThere(); // else another daemon, whose name we have, may yet begin something
  let isDone = false;
  const isOver = (): boolean => (isDone ||= processes.isEnding || (isThere() ? tryTakeUp(processes, path) : isLeft));
  if (isOver()) return;
  const deadline = now() + ownerMs;
  const ask = (): void => (isOver() || !(isLeft || now() < deadline) ? clearInterval(asking) : askOwner(path));
  const asking = setInterval(ask, askMs).unref();
  if (!isLeft) return;
  processes.waiting = soon(isOver, ownerMs, ownerStepMs).then(() => {
    processes.waiting = undefined;
  });
}

/** Whoever was to tell the other daemon to leave may be gone: on SIGCONT it looks after its names, and finds them taken over. */
function askOwner(path: string): void {
  const owner = readClaim(join(path, "owner"));
  if (typeof owner === "object" && livenessOf(owner).state === "alive")
    safely(() => process.kill(owner.pid, "SIGCONT"));
}

/** @returns Whether it is done, or cannot be: while another daemon has it, it is not. */
function tryTakeUp(processes: Processes, path: string): boolean {
  try {
    return claimKept(processes, path);
  } catch (error) {
    processes.log(`[Process] Cannot take up what is in "${path}": ${reasonOf(error)}`);
    return true;
  }
}

/**
 * Ends what a dead daemon has left, as it would have: for --stop.
 *
 * @returns How many processes were alive.
 * @throws {Failure} Some are, and it was to be only if idle (exit code 75): they are left as they are.
 */
export async function endLeft(
  path: string,
  { graceMs, ifIdle }: { graceMs: number; ifIdle: boolean },
): Promise<number> {
  if (!safely(() => lstatSync(path))) return 0;
  const log = (): void => {};
  const processes = createProcesses({ env: {}, log, keptPath: path });
  takeUp(processes, 0);
  await processes.waiting;
  await processes.sweeping;
  const count = liveCount(processes);
  if (ifIdle && count > 0) {
    for (const child of processes.children.values()) if (child.mark) leaveChild(processes, child);
    processes.claim?.release();
    throw cannot(`stop: a dead daemon left ${count} of its processes alive, and it was to be stopped only if idle`, {
      exit: exitCodes.busy,
      data: { processes: count },
    });
  }
  await endAll(processes, { graceMs });
  return count;
}

/** Removes output and exits of what has ended. @throws {Failure} A daemon has it. */
export function forgetLeft(path: string): void {
  if (!safely(() => lstatSync(path))) return;
  const claim = tryClaim(join(path, "owner"));
  if (!("release" in claim)) throw cannot(`forget "${path}": process ${claim.heldBy?.pid ?? "?"} has it`);
  for (const directory of keptDirectories(path).directories) rmSync(directory, { recursive: true, force: true });
  claim.release();
  safely(() => rmdirSync(path));
}

/**
 * Leaves all that is held to the next daemon, which takes it up; ends the others, whose pipes end with this one.
 *
 * @returns How many had to be ended.
 */
export async function leaveAll(processes: Processes, { graceMs }: { graceMs: number }): Promise<number> {
  await startNoMore(processes, startingMs);
  const children = [...processes.children.values(), ...processes.forgotten];
  const others = children.filter(({ mark }) => !mark);
  for (const child of children.filter(({ mark }) => mark)) {
    leaveChild(processes, child);
    processes.children.delete(child.id); // whoever ends all that there is meanwhile (a second SIGTERM) has nothing to do with it
    processes.forgotten.delete(child);
  }
  return endThese(processes, others, graceMs);
}

/** Nothing that runs would end by leaveAll(). */
export function canLeaveAll({ children }: Processes): boolean {
  return [...children.values()].every(({ isOver, mark }) => isOver || mark);
}

/** Tries whether children can be held on this host, and be in a terminal: for --doctor. @returns Why not; and what makes it, or why nothing does. */
export async function tryHolding(env: NodeJS.ProcessEnv): Promise<{ notHeld?: string; engine: Engine | string }> {
  const path = safely(() => mkdtempSync(join(tmpdir(), "holdfast-doctor-")));
  const found = path === undefined ? `nothing can be written in "${tmpdir()}"` : await probeHolders(path, env);
  const isHeld = typeof found !== "string";
  const engine = isHeld ? await probeEngines(found, env) : "a process in a terminal has to outlive the daemon";
  if (isHeld) await closeHolders(found);
  if (path !== undefined) safely(() => rmSync(path, { recursive: true, force: true }));
  return isHeld ? { engine } : { notHeld: found, engine };
}

/** Rows of --status. */
export function keptWords({ takenUp, notHeld }: Pick<Summary, "takenUp" | "notHeld">): [string, string][] {
  const rows: [string, string][] = notHeld === undefined ? [] : [["not held", `they end with the daemon: ${notHeld}`]];
  const { running, ended, instances, problems } = takenUp;
  if (running + ended > 0)
    rows.push(["taken up", `${running} running, ${ended} ended, of instance ${instances.join(", ")}`]);
  for (const problem of problems) rows.push(["left alone", problem]);
  return rows;
}

function takeUpAll(processes: Processes, path: string, afterMs: number): void {
  const { takenUp, log } = processes;
  const { directories, problems } = keptDirectories(path);
  const found: { directory: string; about: KeptAbout }[] = [];
  const begun: string[] = [];
  const tryEach = <T extends { directory: string }>(items: T[], action: (item: T) => void): void => {
    for (const item of items) {
      try {
        action(item);
      } catch (error) {
        problems.push(
          error instanceof Failure ? reasonOf(error) : `Cannot take up "${item.directory}": ${reasonOf(error)}`,
        );
      }
    }
  };
  const each = directories.map((directory) => ({ directory }));
  tryEach(each, ({ directory }) => {
    const about = readAbout(directory);
    if (about) found.push({ directory, about });
    else begun.push(directory);
  });
  found.sort((a, b) => a.about.startedAt - b.about.startedAt);
  const children: Child[] = [];
  tryEach(found, ({ directory, about }) => {
    const child = takeUpOne(processes, directory, about);
    if (isForgotten(directory)) forget(processes, child, "forgotten");
    else children.push(child);
  });
  if (afterMs === 0) processes.sweeping = sweepHeld(begun);
  else setTimeout(sweepHeld, afterMs, begun).unref();
  const over = children.filter(({ isOver }) => isOver).sort((a, b) => a.endedAt! - b.endedAt!);
  for (const child of over) keep(processes, child);
  const instances = [...new Set(found.map(({ about }) => about.instance))];
  Object.assign(takenUp, { running: children.length - over.length, ended: over.length, problems, instances });
  for (const problem of problems) log(`[Process] Not taken up: ${problem}`);
  if (children.length > 0)
    log(
      `[Process] Taken up: ${takenUp.running} processes run, ${takenUp.ended} have ended (of ${instances.join(", ")})`,
    );
}

/** @throws {Error} Why it is left alone. */
function takeUpOne(processes: Processes, directory: string, about: KeptAbout): Child {
  const found = findChild(processes.watch, directory, about);
  const spool = loadSpool(processes.room, shorten(about.id), directory);
  const { mark, wasLeft } = takeMark(directory);
  if (mark) skipTo(spool, mark.seqLimit);
  const kept = readExit(directory) ?? exitIn(spool);
  const restored = restoreStdin(processes, directory, mark, "running" in found ? about.holder : undefined);
  const child = createChild(processes, {
    about: { ...about, id: freeId(processes, about.id) },
    spool,
    running: "running" in found ? found.running : undefined,
    outputBytes: mark?.outputBytes ?? 0,
    ...restored,
    terminal: adoptTerminal(about.holder, restored.mark, mark?.terminal, spool),
  });
  processes.children.set(child.id, child);
  if (!about.holder) child.known = about.process;
  if ("running" in found && !wasLeft && !found.isArmed) nameGap(child, maxGapBytes);
  if (kept) restoreEnd(child, kept, about);
  else if ("running" in found) pumpStdin(processes, child);
  else {
    nameGap(child, maxLostBytes);
    endNow(processes, child, found.ended);
  }
  return child;
}

/** @returns Whether its daemon had left it in order; which holds only until it is read again. */
function takeMark(directory: string): { mark: Mark | undefined; wasLeft: boolean } {
  const mark = readMark(directory);
  const wasLeft = mark !== undefined && mark.leftAt > 0;
  if (wasLeft) writeMark(directory, Object.assign(mark, { leftAt: 0 }));
  return { mark, wasLeft };
}

function exitIn({ exit }: Spool): KeptExit | undefined {
  return exit && { exit: JSON.parse(exit.data.toString()), endedAt: Date.now() };
}

/** Without a holder it has lost its pipes, but may go on. */
function findChild(watch: Watch, directory: string, about: KeptAbout): Exclude<Adopted, { problem: string }> {
  if (!about.holder) {
    if (livenessOf(about.process).state === "alive") return { running: runningOrphan(about.process), isArmed: false };
    return { ended: { code: null, signal: null, unknown: "its daemon died, and with it its pipes" } };
  }
  const found = adoptHeld({ watch }, directory, about.holder);
  if ("problem" in found) throw cannot(`take up "${directory}": ${found.problem}`);
  return found;
}

/** What an earlier daemon had accepted of its stdin, and what it had not given to it. @param holder Of one that is held and runs. */
function restoreStdin(
  processes: Processes,
  directory: string,
  found: Mark | undefined,
  holder: object | undefined,
): Pick<Origin, "mark" | "stdin"> {
  if (!holder || !found) {
    const mark = holder ? createMark() : undefined;
    return { mark, stdin: { state: "broken", applied: found?.applied ?? 0 } };
  }
  const sent = found.delivered + found.intent; // whether a pipe was written to nothing tells: not its times either, on Linux 6.18
  const applied = Math.max(found.applied, sent);
  const bytes = readJournal(directory, sent, applied);
  const isLost = sent + bytes.length < applied;
  const unsure = { from: found.intent > 0 ? found.delivered : sent + bytes.length, to: isLost ? applied : sent };
  const stdin: Partial<Stdin> = {
    state: found.stdin,
    applied,
    queue: bytes.length > 0 ? [{ bytes, start: 0, end: bytes.length }] : [],
    queuedBytes: bytes.length,
    journalEnd: isLost ? Infinity : bytes.length > 0 ? applied : 0,
    ...(unsure.to > unsure.from ? { unsure } : {}),
  };
  processes.queuedBytes += bytes.length;
  return { mark: { ...found, delivered: applied - bytes.length, intent: 0, applied }, stdin };
}

/** It had ended before, and its exit was told: what a grandchild says goes on. */
function restoreEnd(child: Child, { exit, endedAt, seq }: KeptExit, { holder }: KeptAbout): void {
  Object.assign(child, { exit, endedAt, isOver: true });
  child.stdin.state = "broken";
  child.spool.endedAt = now() - Math.max(0, Date.now() - endedAt);
  if (!findExit(child.spool, seq)) appendOutput(child.spool, "exit", Buffer.from(JSON.stringify(exit)));
  if (child.running && holder) child.survivors = survivorsOf(holder as HolderRecord);
  if (!child.running) restSpool(child.spool);
}

/** As long as it is a zombie its group's number is nobody else's. Of a terminal's session the leader may yet live. */
function survivorsOf({ child, terminal }: HolderRecord): Set<string> {
  const { pid, startTime } = terminal?.leader ?? child;
  return new Set(statOf(pid)[19] === startTime ? membersOf(pid, terminal ? "session" : "group") : []);
}

/** Says how much may be missing. */
function nameGap({ spool }: Child, maxBytes: number): void {
  appendOutput(spool, "gap", Buffer.from(JSON.stringify({ maxBytes })));
}

/** Its pid may be anybody's by now: there is nobody to signal. */
function endNow(processes: Processes, child: Child, { code, signal, unknown }: Ended): void {
  child.exit = exitFrom({ code, signal, unknown });
  child.endedAt = Date.now();
  finish(processes, child);
  restSpool(child.spool);
}

/** A process that only its pid and its start time are known of. */
function runningOrphan(identity: Identity): Running {
  let timer: NodeJS.Timeout | undefined;
  return {
    pid: identity.pid,
    pendingBytes: 0,
    listen: (events) => {
      timer = setInterval(() => {
        if (livenessOf(identity).state !== "dead") return;
        clearInterval(timer);
        events.ended({ code: null, signal: null, unknown: "its daemon had died: nobody was told" });
        events.closed();
      }, orphanMs).unref();
    },
    setFlow: () => {},
    write: () => {
      throw errnoError("EPIPE", "broken pipe, write");
    },
    endStdin: () => {},
    reap: () => {},
    release: () => clearInterval(timer),
  };
}
