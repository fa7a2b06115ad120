/**
 * Starts a daemon's process where lifetime.ts has chosen, moves one that runs, and has it watched over, to be brought back when it dies unmeant.
 *
 *     systemd-run --user --scope … -- <runtime> <file> --serve --launched --socket <path>
 *
 * A scope does not leave the terminal, and setsid does not leave the cgroup: so detached and in a scope. systemd-run executes in place: its pid
 * is the daemon's, and descriptors pass through. Descriptor 3 hands over what the daemon needs, tokens among it, which never stand in arguments
 * or the environment; on 4 it says one line.
 */

import type { ChildProcess } from "node:child_process";
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { closeSync, existsSync, fstatSync, readFileSync } from "node:fs";
import type { Socket } from "node:net";
import { basename } from "node:path";
import type { ExitCode } from "./failure.ts";
import { cannot, Failure, reasonOf, safely } from "./failure.ts";
import type { Facts, Place, World } from "./host.ts";
import { noteScope, placeOf, plainText, probeMs, refusalOf } from "./host.ts";
import type { Launch } from "./lifetime.ts";
import { chooseLaunch, judgePlace, judgeWork } from "./lifetime.ts";
import type { StdioItem } from "./program.ts";
import { build, daemonEnvironment, maskInherited, runtime } from "./program.ts";
import { argumentsOf, createLog, livingProcesses, now, openLog, sleep, soon } from "./record.ts";
import type { Places } from "./socket.ts";

/** For systemd-run to become the daemon. It hangs where the user manager is stopped. */
const scopeMs = 5000;
/** For a runtime that is slow to start, once it runs. */
const daemonStartMs = 20_000;
/** A scope that a running daemon and its processes are moved into is there within a few ms; on a busy host it takes longer. */
const moveMs = 3000;
/** Between attempts, where the user manager of one who lingers is just starting: lingering that comes while it stops has it started again. */
const retryMs = 50;

/** What to start, and what to hand over to it. */
export interface DaemonStart {
  /** Runtime, its flags, script, arguments. */
  command: string[];
  /** As JSON and with the facts, through descriptor 3. */
  handover: object;
  log: string;
}

/** The daemon's one line on descriptor 4. */
export type ReadyMessage =
  | { ok: true; instance: string; pid: number }
  | { ok: false; exit: ExitCode; message: string; hint?: string };

/** How a start came out: the daemon's word, or why there was none. */
type Outcome = ReadyMessage | { silent: string };

/**
 * Launches a daemon and waits for its word. A scope that cannot be made is told in `facts`, and the next best place is taken.
 *
 * @param only Takes this launch and no other (--lifetime).
 * @throws {Failure} The daemon's own reason why it cannot start.
 */
export async function launchDaemon(
  start: DaemonStart,
  facts: Facts,
  only: Launch | undefined,
  world: World,
): Promise<{ pid: number; instance: string }> {
  if (only === "scope" && facts.scope === "no") throw cannotScope(facts);
  if ((only || chooseLaunch(facts).launch) === "scope") {
    const outcome = await launchInScope(start, facts);
    await noteScope(facts, world, "silent" in outcome ? outcome.silent : undefined);
    if (!("silent" in outcome)) return readyOrThrow(outcome);
    if (only === "scope") throw cannotScope(facts);
  }
  const outcome = await runDaemon(start.command, start, facts);
  if (!("silent" in outcome)) return readyOrThrow(outcome);
  throw cannot(`start the daemon: ${outcome.silent}`, { hint: `see the log "${start.log}"` });
}

function readyOrThrow(ready: ReadyMessage): { pid: number; instance: string } {
  if (ready.ok) return ready;
  throw new Failure(ready.message, ready);
}

function cannotScope(facts: Facts): Failure {
  return cannot(`start in a scope: ${facts.scopeProblem}`, {
    hint: "leave --lifetime out: it then takes the best place that the host allows",
  });
}

/** Without a word it was systemd-run that failed; or the runtime, which then fails again without a scope, and is told of. */
async function launchInScope(start: DaemonStart, facts: Facts): Promise<Outcome> {
  let knowsOomPolicy = facts.systemdVersion! >= 252;
  for (const deadline = now() + (facts.linger === "yes" ? probeMs : 0); ; await sleep(retryMs)) {
    const command = [...scopeCommand(start.command, facts, knowsOomPolicy), ...start.command];
    const outcome = await runDaemon(command, start, { ...facts, scope: "yes" });
    if (!("silent" in outcome)) return outcome;
    if (knowsOomPolicy && outcome.silent.includes("OOMPolicy")) {
      knowsOomPolicy = false; // the user manager may be older than the tool
      continue;
    }
    if (now() > deadline || !outcome.silent.startsWith("Failed to")) return outcome;
  }
}

/**
 * No fixed name: a scope that has failed blocks it. TimeoutStopSec: a daemon that hung would block the user's next login for 90 s.
 *
 * From 258 on "$" in arguments is expanded in scopes, too; the option against it is known from 254 on.
 */
function scopeCommand(command: string[], facts: Facts, knowsOomPolicy: boolean): string[] {
  return [
    ...["systemd-run", "--user", "--scope", "--quiet", "--collect", "--property=TimeoutStopSec=10"],
    ...(knowsOomPolicy ? ["--property=OOMPolicy=continue"] : []),
    ...(facts.systemdVersion! >= 254 && command.join().includes("$") ? ["--expand-environment=no"] : []),
    "--",
  ];
}

/** Runs a daemon in a session of its own, with nothing of the caller's descriptors, until it has said its word or cannot. */
async function runDaemon(command: string[], { log, handover }: DaemonStart, facts: Facts): Promise<Outcome> {
  const logDescriptor = openLog(log);
  const logged = fstatSync(logDescriptor).size;
  const child = spawnDetached(command, logDescriptor);
  closeSync(logDescriptor);
  const [, , , give, take] = (child.stdio || []) as unknown as Socket[]; // without descriptors it has no pipes either
  give?.on("error", () => {}); // it ended before it took the handover: "exit" tells
  give?.end(JSON.stringify({ ...handover, facts }));
  try {
    const word = await wordOf(child, take, basename(command[0]!));
    if (word.startsWith("{")) return JSON.parse(word) as ReadyMessage;
    const own = said(log, logged);
    return { silent: child.pid && own !== "" && command[0] === "systemd-run" ? own : `${word}${own && `: ${own}`}` };
  } finally {
    child.unref();
    give?.destroy();
    take?.destroy();
  }
}

/** A child with descriptors 3 and 4 as pipes. What else its caller left open is nothing to it. */
function spawnDetached([program, ...args]: string[], log: number): ChildProcess {
  const stdio: StdioItem[] = ["ignore", log, log, "pipe", "pipe"];
  const nothing = maskInherited(stdio, build?.main && runtime === "node" ? 15 : 4); // what an application opened since is its own business
  const env = { ...daemonEnvironment(process.env), XDG_RUNTIME_DIR: `/run/user/${process.getuid!()}` }; // of our own user manager: su keeps the other's
  try {
    return spawn(program!, args, { detached: true, cwd: "/", env, stdio });
  } finally {
    for (const descriptor of nothing) closeSync(descriptor);
  }
}

/**
 * Waits for the daemon's line on descriptor 4.
 *
 * @returns The line; or, of a start that failed without one, what is known of its end.
 */
function wordOf(child: ChildProcess, take: Socket | undefined, program: string): Promise<string> {
  return new Promise((settle) => {
    const giveUp = (who: string, ms: number): void => {
      child.kill("SIGKILL"); // our own child, not yet reaped: the pid cannot be another's
      settle(`${who} did not answer within ${ms / 1000} s`);
    };
    const timers = [
      setTimeout(() => isScopeMaker(child.pid!) && giveUp("systemd-run", scopeMs), scopeMs),
      setTimeout(() => giveUp(`"${program}"`, daemonStartMs), daemonStartMs),
    ];
    const finish = (word: string): void => {
      timers.forEach(clearTimeout);
      settle(word);
    };
    let text = "";
    take?.setEncoding("utf8").on("data", (chunk: string) => {
      text += chunk;
      if (text.includes("\n")) finish(text);
    });
    child.once("error", (error) => finish(`Cannot run "${program}": ${reasonOf(error)}`));
    child.once("exit", (code, signal) => {
      const how = signal === null ? `with exit code ${code}` : `by ${signal}`;
      setTimeout(() => finish(`"${program}" ended ${how}`), 50); // now and then its end is heard of before what it said
    });
  });
}

/** It waits for the user manager still, and has not become what it is to run. */
function isScopeMaker(pid: number): boolean {
  return basename(safely(() => argumentsOf(pid))?.[0] || "") === "systemd-run";
}

/** What a program that ended early wrote to the log, which is its stderr: the reason, in its own words. */
function said(log: string, from: number): string {
  const text = safely(() => readFileSync(log).toString("utf8", from, from + 2000)) || "";
  const lines = plainText(text).split("\n");
  const own = lines.filter((line) => line !== "" && !/^\d{4}-\d\d-\d\dT/.test(line)); // not those of a daemon that is to be replaced
  return own.slice(0, 5).join("; ");
}

/**
 * Moves processes that a daemon which is dead has left where they end sooner than the new one, to be where that is. What cannot be moved stays, and
 * is named by the verdict.
 *
 * @returns Whether there were any.
 */
export async function moveWork(own: Place, work: Work[], places: Places, facts: Facts, world: World): Promise<boolean> {
  if (judgeWork(own, placesOf(work, world), facts).survives === judgePlace(own, facts).survives) return false;
  const move = async (): Promise<boolean> => {
    const pids = familyOf(holdersOf(work, places)); // each time: one that has just ended has all of them refused
    if (pids.length === 0 || (await moveIntoScope(pids, facts, world)) === undefined) return true;
    return facts.lacksBus === true && !facts.lingerSwitchedOn;
  };
  await soon(move, probeMs, retryMs);
  return true;
}

/** Moves a running daemon that stays where it would be killed, with its processes, and notes in `facts` how that went. */
export async function moveRunning(pids: number[], facts: Facts, world: World): Promise<void> {
  let problem: string | undefined;
  const move = async (): Promise<boolean> => {
    problem = await moveIntoScope(pids, facts, world);
    return problem === undefined;
  };
  await soon(move, facts.lingerSwitchedOn ? probeMs : 0, retryMs);
  await noteScope(facts, world, problem && `the running daemon could not be moved: ${problem}`);
  facts.place = placeOf(pids[0]!, world);
}

/**
 * Moves processes, as they are, into a scope of their own (StartTransientUnit, org.freedesktop.systemd1(5)): systemd-run makes one only around what
 * it starts. What they have opened, their parents and their environment stay.
 *
 * @param pids The daemon's first, then those of its processes.
 * @returns Why it could not; undefined when they were moved.
 */
async function moveIntoScope(pids: number[], facts: Facts, world: World): Promise<string | undefined> {
  const bus = `/run/user/${facts.uid}/bus`;
  facts.lacksBus = !world.exists(bus);
  if (facts.lacksBus) return `there is no "${bus}"`;
  const pid = pids[0]!;
  const name = `holdfast-${pid}-${Date.now().toString(36)}.scope`;
  const properties = [
    ["PIDs", "au", String(pids.length), ...pids.map(String)],
    ["TimeoutStopUSec", "t", "10000000"],
    ["CollectMode", "s", "inactive-or-failed"],
    ...(facts.systemdVersion! >= 252 ? [["OOMPolicy", "s", "continue"]] : []),
  ];
  const command = [
    ...["busctl", "--user", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1"],
    ...["org.freedesktop.systemd1.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))", name, "fail"],
    ...[String(properties.length), ...properties.flat(), "0"],
  ];
  const problem = refusalOf(command, await world.run(command, probeMs));
  if (problem) return problem;
  // one after the other; what has ended meanwhile has no place
  const isThere = (place: Place): boolean => place.kind === "unknown" || ("unit" in place && place.unit === name);
  const hasMoved = await soon(() => pids.every((each) => isThere(placeOf(each, world))), moveMs, 2);
  return hasMoved ? undefined : "the user manager took the call, but the daemon has not moved";
}

/** A process in server.status. */
export interface Work {
  id: string;
  pid: number;
  running: boolean;
}

export function placesOf(work: Work[], world: World): [id: string, place: Place][] {
  return work.filter(({ running }) => running).map(({ id, pid }) => [id, placeOf(pid, world)]);
}

/** The holders of processes, by their arguments: the parent of what an earlier daemon has left without one may be anybody. */
export function holdersOf(work: Work[], { held }: Places): number[] {
  const pids = new Set(work.map(({ pid }) => pid));
  const isHolder = (pid: number) => safely(() => argumentsOf(pid).some((word) => word.startsWith(`${held}/`)));
  return livingProcesses().flatMap(({ pid, parent }) => (pids.has(pid) && isHolder(parent) ? [parent] : []));
}

export function childrenOf(daemon: number): number[] {
  return livingProcesses()
    .filter(({ parent }) => parent === daemon)
    .map(({ pid }) => pid);
}

/** Some living processes, and all that is theirs: descendants, and those that have left their parents, but not the session. */
export function familyOf(pids: number[]): number[] {
  const living = livingProcesses();
  const family = new Set(pids);
  for (let size = -1; size < family.size; ) {
    size = family.size;
    for (const { pid, parent, session } of living) if (family.has(parent) || family.has(session)) family.add(pid);
  }
  return [...family];
}

// Who brings it back
//
//     daemon ═══ a pipe that nobody else writes ═══▶ sh, in `read`
//
// The word `up` comes when the daemon has a name: until then whoever starts it sees its death, and a --revive tries again. The word `over` is a meant
// end. The pipe's end without it is a death: then the sh becomes `--serve --revive`, which heals as a bridge does: what
// provably died, and was not stopped. At most 3 times in a minute, and only with the very file that the daemon was started from: another one is a
// person's to start. A daemon in the foreground has a supervisor, and none of this; nor has one that is pid 1, with which all ends.

const shell = "/bin/sh";
/** $1 the hash of $2, the program; the rest: the command. Compared before any of it runs. */
const script = `
read -r HOLDFAST_WORD && [ "$HOLDFAST_WORD" = up ] || exit 0
read -r HOLDFAST_WORD; [ "$HOLDFAST_WORD" != over ] || exit 0
if ! printf '%s  %s\\n' "$1" "$2" | sha256sum -c >/dev/null 2>&1; then
echo "$(date -u +%Y-%m-%dT%H:%M:%SZ) [Watchdog] The daemon is dead, and is not started again: $2 is not the file it was started from"; exit 1; fi
shift 2; exec "$@"`;

export interface Watchdog {
  /** The daemon has a name. Before its launcher hears of it: there is no moment in which nobody sees its death. */
  rise(): void;
  /** The daemon's end is meant. */
  stand(): void;
}

/**
 * Makes the one that is to watch over this daemon, before it has a name: what cannot be made is in the log by then.
 *
 * @returns Undefined where it is not to be, or cannot be, which is in the log.
 */
export function startWatchdog(
  { command, places }: { command: string[]; places: Places },
  env: NodeJS.ProcessEnv,
): Watchdog | undefined {
  if (process.pid === 1 || env.HOLDFAST_WATCHDOG === "off") return undefined;
  const log = (why: string) =>
    safely(() => createLog(places.log)(`[Watchdog] Nobody watches over this daemon: ${why}`));
  const at = command.lastIndexOf("--serve");
  const file = command[at - 1]!;
  const again = [...command.slice(0, at), "--serve", "--revive", "--socket", places.socket];
  try {
    if (!hasHashTool(env)) throw cannot("compare files: there is no sha256sum in PATH");
    const hash = createHash("sha256").update(readFileSync(file)).digest("hex");
    const words = openLog(places.log);
    const stdio = ["pipe", words, words] as const;
    const options = { cwd: "/", env, detached: true, stdio: [...stdio] };
    const handle = spawn(shell, ["-c", script, "holdfast", hash, file, ...again], options);
    closeSync(words);
    handle.on("error", (error) => log(error.message));
    handle.on("exit", () => log("it was ended"));
    handle.stdin!.on("error", () => {}); // it was killed
    handle.unref();
    (handle.stdin as Socket).unref();
    return {
      rise() {
        handle.stdin!.write("up\n");
      },
      stand() {
        handle.removeAllListeners("exit");
        handle.stdin!.end("over\n");
      },
    };
  } catch (error) {
    log(reasonOf(error));
    return undefined;
  }
}

function hasHashTool(env: NodeJS.ProcessEnv): boolean {
  return (env.PATH || "").split(":").some((directory) => directory && existsSync(`${directory}/sha256sum`));
}
