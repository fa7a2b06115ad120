/**
 * Where the daemon lives: probe the host, choose a launch, launch, and judge where it really landed.
 *
 * One function judges: judgePlace(place, facts) says whether a process in that place survives logout. Choosing is judging the places that a
 * launch can reach, before it; verifying is judging the place in /proc/<pid>/cgroup, after it. So a promise and its proof cannot differ
 * in their reasoning, only in their facts.
 *
 * Never root, never asks a person, bounded in time. A probe that fails is "unknown", never "no".
 */

import { spawn } from "node:child_process";
import { closeSync, existsSync, fstatSync, openSync, readFileSync } from "node:fs";
import type { Socket } from "node:net";
import { userInfo } from "node:os";
import { callBus, getProperty, unitObject } from "./bus.ts";
import type { BusAnswer, BusCall } from "./bus.ts";
import { cannot, capture, Failure, reasonOf, safely } from "./failure.ts";
import { build, runtime } from "./program.ts";
import { namesIn, openLog, readText, soon } from "./record.ts";

/** All probes together, side by side. */
const probeMs = 2000;
/** A scope that was asked for is there within a few ms. */
const moveMs = 1000;
/** For a runtime that is slow to start, once it runs. */
const daemonStartMs = 20_000;
/** UserStopDelaySec=, when it cannot be read (logind.conf(5)). */
const defaultStopDelayUs = 10_000_000;

export type Trilean = "yes" | "no" | "unknown";

/** The place of a process, by its cgroup. */
export type Place =
  | { kind: "session"; owner: number; unit: string }
  | { kind: "user-manager"; owner: number; unit: string }
  | { kind: "unit"; unit: string }
  | { kind: "none" }
  | { kind: "unknown" };

/** What was measured on the host. Plain data: it travels to the daemon and into --status. */
export interface Facts {
  uid: number;
  user: string;
  /** Booted with systemd: /run/systemd/system exists (sd_booted(3)). */
  systemd: boolean;
  /** 0 where it cannot be told. */
  systemdVersion?: number;
  /** Where this process is. */
  place: Place;
  /** Names the owner of the session or user manager that we are in, when it is not our user (sudo, su). */
  owner?: string;
  /** Does logind kill the processes of that owner's session when it ends? And by which setting. */
  killed: Trilean;
  policy: string;
  /** UserStopDelayUSec: how long the user manager outlives the last session. "infinity" where it does for ever. */
  stopDelayUs: number | "infinity";
  /** Is our user lingering? */
  linger: Trilean;
  /** Is the owner of the user manager that we are in lingering, when that is another user? */
  ownerLinger?: Trilean;
  /** Can a scope be made under our user manager? And why not. */
  scope: Trilean;
  scopeProblem?: string;
  /** LoadState= or ActiveState= of our user manager, where no scope could be made: "masked", "inactive", "active" (and not answering). */
  manager?: string;
  /** KillMode= of the system unit that we are in (systemd.kill(5)). */
  killMode?: string;
  /** Why lingering could not be switched on, when it was asked for. */
  lingerRefused?: string;
  /** Lingering was switched on by this start. */
  lingerSwitchedOn?: boolean;
}

/** Does it survive the logout of the user? "until": for the stop delay of the user manager longer than the last session. */
export type Survival = "yes" | "no" | "until" | "unknown";

export interface Verdict {
  survives: Survival;
  /** Completes "survives logout: ": "yes", "until about 10 s after your last session ends", … */
  words: string;
  /** Where it lives, in words: "in a scope of its own under your user manager". */
  where: string;
  place: Place;
  warnings: Warning[];
}

/** One of the documented warnings; `name` is its anchor in README. */
export interface Warning {
  name: string;
  message: string;
  hint: string;
}

/** What is needed of the host. Handed in, so that tests can be any host. */
export interface World {
  uid: number;
  user: string;
  /** Calls methods of the system's services, or of our user manager: directly, which needs no bus of the user's (dbus-user-session). */
  ask(whom: "system" | "user manager", calls: BusCall[], timeoutMs: number): Promise<BusAnswer[]>;
  /** A file's text; undefined when it cannot be read. */
  readFile(path: string): string | undefined;
  exists(path: string): boolean;
}

export function realWorld(): World {
  const uid = process.getuid!();
  let name: string | undefined;
  return {
    uid,
    get user() {
      // a uid without an entry in the passwd database is named by its number, which loginctl takes as well
      return (name ??= safely(() => userInfo().username) || String(uid));
    },
    readFile: readText,
    exists: existsSync,
    ask: (whom, calls, timeoutMs) =>
      callBus(whom === "system" ? "/run/dbus/system_bus_socket" : `/run/user/${uid}/systemd/private`, calls, timeoutMs),
  };
}

/** A soft limit of this process, by its name in /proc/self/limits; infinity where it is none. */
export function readLimit(name: string, world: Pick<World, "readFile">): number {
  return Number(capture(new RegExp(`^${name}\\s+(\\d+)`, "m"), world.readFile("/proc/self/limits")) || Infinity);
}

/**
 * Finds the place of a process in the text of its /proc/<pid>/cgroup.
 *
 * The unified hierarchy has "0::/path"; hybrid and legacy ones have "N:name=systemd:/path" beside or instead of it. XDG_SESSION_ID proves
 * nothing: it is inherited. The owner is that of the session, who need not be our user.
 */
export function parsePlace(cgroup: string): Place {
  const paths = [...cgroup.matchAll(/^\d+:(?:name=systemd)?:(\/.*)$/gm)].map((match) => match[1]!);
  const path = paths.find((candidate) => candidate !== "/");
  if (!path) return paths.length > 0 ? { kind: "none" } : { kind: "unknown" };
  const unit = path
    .split("/")
    .filter((name) => /\.(service|scope)$/.test(name))
    .pop();
  const session = /\/user-(\d+)\.slice\/(session-[^/]+\.scope)/.exec(path);
  if (session) return { kind: "session", owner: Number(session[1]), unit: session[2]! };
  const manager = /\/user@(\d+)\.service/.exec(path);
  if (manager) return { kind: "user-manager", owner: Number(manager[1]), unit: unit! };
  return unit ? { kind: "unit", unit } : { kind: "none" };
}

/** Reads where a process is now. */
export function placeOf(pid: number | "self", world: Pick<World, "readFile" | "exists">): Place {
  if (!world.exists("/run/systemd/system")) return { kind: "none" };
  const text = world.readFile(`/proc/${pid}/cgroup`);
  return text === undefined ? { kind: "unknown" } : parsePlace(text);
}

/**
 * Measures the host, in at most 2 s, all side by side.
 *
 * @param pid The process whose place counts: this one, or a running daemon.
 * @param tryScope Makes a scope around nothing, too (--doctor). A launch makes its own, which proves more.
 */
export async function probeHost(
  world: World,
  { pid = "self" as number | "self", tryScope = false } = {},
): Promise<Facts> {
  const place = placeOf(pid, world);
  const facts: Facts = {
    uid: world.uid,
    user: world.user,
    systemd: world.exists("/run/systemd/system"),
    place,
    killed: "no",
    policy: "no logind",
    stopDelayUs: defaultStopDelayUs,
    linger: "unknown",
    scope: "unknown",
  };
  if (!facts.systemd)
    return { ...facts, linger: "no", scope: "no", scopeProblem: "this host was not booted with systemd" };
  const owner = "owner" in place ? place.owner : world.uid;
  const [kill, only, exclude, delay, linger, version, ownerName, killMode] = await world.ask(
    "system",
    [
      ...["KillUserProcesses", "KillOnlyUsers", "KillExcludeUsers", "UserStopDelayUSec"].map((property) =>
        getProperty("login1", property),
      ),
      getProperty("login1", "Linger", `/user/_${world.uid}`, "User"),
      getProperty("systemd1", "Version"),
      getProperty("login1", "Name", `/user/_${owner}`, "User"),
      ...(place.kind === "unit"
        ? [
            getProperty(
              "systemd1",
              "KillMode",
              unitObject(place.unit),
              place.unit.endsWith(".scope") ? "Scope" : "Service",
            ),
          ]
        : []),
    ],
    probeMs,
  );
  const name = owner === world.uid ? world.user : String(ownerName!.value || owner);
  if (delay!.value !== undefined) facts.stopDelayUs = delay!.value === 2 ** 64 ? "infinity" : (delay!.value as number); // 2^64 - 1 is systemd's infinity
  [facts.killed, facts.policy] = judgePolicy(
    { killUserProcesses: kill!.value, only: only!.value, exclude: exclude!.value, problem: kill!.problem } as Policy,
    name,
    owner,
  );
  const lingers = linger!.value; // logind knows nothing of a user who is neither logged in nor lingering
  facts.linger = lingers === undefined ? lingerFile(world.user, world) : lingers ? "yes" : "no";
  if (owner !== world.uid) {
    facts.owner = name;
    facts.ownerLinger = ownerName!.value ? lingerFile(name, world) : "unknown";
  }
  facts.systemdVersion = Number(capture(/(\d+)/, version!.value as string)) || 0;
  if (killMode?.value) facts.killMode = String(killMode.value);
  if (tryScope) await noteScope(facts, world, await tryScopeOfNothing(world));
  return facts;
}

/** @param problem Why no scope could be made; undefined when one was. */
async function noteScope(facts: Facts, world: World, problem: string | undefined): Promise<void> {
  facts.scope = problem === undefined ? "yes" : "no";
  delete facts.scopeProblem;
  if (problem === undefined) return;
  facts.scopeProblem = problem;
  const unit = unitObject(`user@${facts.uid}.service`);
  const [load, active] = await world.ask(
    "system",
    ["LoadState", "ActiveState"].map((name) => getProperty("systemd1", name, unit, "Unit")),
    probeMs,
  );
  if (active!.value) facts.manager = String(load!.value === "masked" ? "masked" : active!.value);
}

interface Policy {
  killUserProcesses?: boolean;
  only?: string[];
  exclude?: string[];
  /** Why nobody says so. */
  problem?: string;
}

/** Decides as logind does, in its order: shallKill() of the session's owner. Returns the answer and the setting that gives it. */
export function judgePolicy(policy: Policy, owner: string, ownerUid: number): [Trilean, string] {
  const { killUserProcesses, only = [], exclude = [], problem } = policy;
  if (killUserProcesses === undefined) return ["unknown", `logind's settings cannot be read: ${problem}`];
  if (ownerUid === 0 && exclude.length === 0) return ["no", "root is exempt"];
  if (exclude.includes(owner)) return ["no", `KillExcludeUsers= has ${owner}`];
  if (only.length > 0)
    return only.includes(owner)
      ? ["yes", `KillOnlyUsers= has ${owner}`]
      : ["no", `KillOnlyUsers= has others, not ${owner}`];
  return killUserProcesses ? ["yes", "KillUserProcesses=yes"] : ["no", "KillUserProcesses=no"];
}

function lingerFile(user: string, world: World): Trilean {
  if (world.exists(`/var/lib/systemd/linger/${user}`)) return "yes";
  return world.exists("/var/lib/systemd") ? "no" : "unknown"; // logind makes the directory with the first lingering user
}

/** Around a process that does nothing, and is ended with it. */
async function tryScopeOfNothing(world: World): Promise<string | undefined> {
  const child = spawn("sleep", ["10"], { stdio: "ignore" }).on("error", () => {});
  const problem = child.pid ? await moveIntoScope([child.pid], world) : "no process could be started for it";
  child.kill("SIGKILL");
  return problem;
}

/**
 * Judges whether a process in a place survives logout.
 *
 * The table is in README, "What survives where"; it was measured on systemd 247, 252, 257 and 262.
 */
export function judgePlace(place: Place, facts: Facts): Verdict {
  const verdict = (survives: Survival, where: string, ...warnings: Warning[]): Verdict => ({
    survives,
    where,
    place,
    warnings,
    words: survives === "until" ? `until about ${delayWords(facts)} after your last session ends` : survives,
  });
  switch (place.kind) {
    case "none":
      return verdict("yes", "detached; nothing here ends it at logout");
    case "unknown":
      return verdict("unknown", "in a place that cannot be read", warnings.mayEnd(facts));
    case "unit": {
      const kept = facts.killMode === "process" || facts.killMode === "none";
      if (!isPerConnection(place.unit))
        return verdict("yes", kept ? "detached" : `detached in ${place.unit}; stopping that unit ends it`);
      return kept
        ? verdict("yes", `detached in ${place.unit}`)
        : verdict("no", `in ${place.unit}`, warnings.endsWithConnection(facts));
    }
    case "session": {
      const where =
        place.owner === facts.uid
          ? "detached in the session"
          : `detached in a session of ${facts.owner || `user ${place.owner}`}`;
      if (facts.killed === "yes") return verdict("no", where, warnings.endsWithSession(facts));
      return facts.killed === "no" ? verdict("yes", where) : verdict("unknown", where, warnings.mayEnd(facts));
    }
    case "user-manager": {
      const own = place.owner === facts.uid;
      const where = own
        ? `in ${place.unit} under your user manager`
        : `under the user manager of ${facts.owner || `user ${place.owner}`}`;
      const linger = own ? facts.linger : facts.ownerLinger || "unknown";
      if (linger === "yes" || facts.stopDelayUs === "infinity")
        return verdict("yes", where, ...warnings.lingering(facts));
      return linger === "no"
        ? verdict("until", where, warnings.endsAfterLogout(facts))
        : verdict("unknown", where, warnings.mayEnd(facts));
    }
  }
}

/** sshd@N-local:22-peer:port.service: one per connection; "sshd.service" itself outlives them. */
function isPerConnection(unit: string): boolean {
  return /^[^@]+@.*\.service$/.test(unit) && /ssh|dropbear/.test(unit);
}

/** Of a finite one: with an infinite one nothing ends. */
function delayWords(facts: Facts): string {
  return `${Math.round(Number(facts.stopDelayUs) / 1e6)} s`;
}

function noScope(facts: Facts): string {
  return `and no scope could be made to leave it: ${facts.scopeProblem || "the launch was not to use one"}`;
}

/** The documented warnings. Each names its cause and the command that mends it, and has its anchor in README. */
const warnings = {
  endsAfterLogout: (facts: Facts): Warning => ({
    name: "ends-after-last-logout",
    message:
      `${facts.killed === "yes" ? "logind kills what stays in your sessions" : "it lives under your user manager"} (${facts.policy}) and user ` +
      `${facts.user} is not lingering: it ends about ${delayWords(facts)} after your last session` +
      (facts.lingerRefused ? `; lingering could not be switched on: ${facts.lingerRefused}` : ""),
    hint: `${facts.lingerRefused ? "ask an administrator for: " : ""}${enableLinger(facts)}`,
  }),
  endsWithSession: (facts: Facts): Warning => ({
    name: "ends-with-session",
    message: `logind kills what stays in ${facts.owner ? `the session of ${facts.owner}` : "your sessions"} (${facts.policy}), ${noScope(facts)}`,
    hint: leaveSession(facts),
  }),
  endsWithConnection: (facts: Facts): Warning => ({
    name: "ends-with-connection",
    message: `the service of this connection kills what it started when it ends (KillMode=${facts.killMode || "control-group"}), ${noScope(facts)}`,
    hint: enableLinger(facts),
  }),
  mayEnd: (facts: Facts): Warning => ({
    name: "may-end-with-session",
    message:
      `whether logind kills what stays in your sessions could not be found out (${facts.policy}): it may end with this session` +
      (facts.scopeProblem ? `, ${noScope(facts)}` : ""),
    hint: leaveSession(facts),
  }),
  /** systemd/systemd#43361: from 255 to 256.2 the manager of a lingering user may be stopped at the last logout. */
  lingering: (facts: Facts): Warning[] =>
    facts.systemdVersion !== 255 && facts.systemdVersion !== 256
      ? []
      : [
          {
            name: "lingering-unreliable",
            message: `systemd ${facts.systemdVersion} may end the user manager of a lingering user at the last logout (mended in 256.3)`,
            hint: "update systemd to 256.3 or later",
          },
        ],
};

function enableLinger(facts: Facts): string {
  return `loginctl enable-linger ${facts.user}`;
}

/**
 * What mends a place in a session. Lingering starts a user manager that is merely not there; not one that is masked, and one that hangs is there
 * already: then the user is to be left alone. root is named too: it is exempt only while the list is empty.
 */
function leaveSession(facts: Facts): string {
  const { scope, linger, manager = "inactive", owner, user } = facts;
  return scope !== "no" || (linger !== "yes" && manager === "inactive")
    ? enableLinger(facts)
    : "as an administrator: mkdir -p /etc/systemd/logind.conf.d && " +
        `printf '[Login]\\nKillExcludeUsers=root ${owner || user}\\n' > /etc/systemd/logind.conf.d/holdfast.conf && systemctl kill -s HUP systemd-logind`;
}

/** How a daemon is launched. */
export type Launch = "detach" | "scope";

/** From the best to the worst. A scope that is sure to end after logout comes after a place that may well survive it. */
const ranking: Survival[] = ["yes", "unknown", "until", "no"];

/**
 * Chooses the launch that survives best; of equals, the plain detach.
 *
 * So a scope is used only where staying is worse: without linger it would end 10 s after the last logout on a host where a plain
 * detached process lives on.
 */
export function chooseLaunch(facts: Facts): { launch: Launch; verdict: Verdict } {
  const stay = judgePlace(facts.place, facts);
  if (facts.scope === "no") return { launch: "detach", verdict: stay };
  const scope = judgePlace({ kind: "user-manager", owner: facts.uid, unit: "a scope of its own" }, facts);
  return ranking.indexOf(scope.survives) < ranking.indexOf(stay.survives)
    ? { launch: "scope", verdict: scope }
    : { launch: "detach", verdict: stay };
}

/**
 * Switches lingering on, when that is what it takes to survive logout; else does nothing. It is persistent, and starts the user's manager at
 * boot: so only where it was asked for. Nobody is asked for a password.
 */
export async function switchLingerOn(facts: Facts, world: World): Promise<void> {
  if (!facts.systemd || facts.linger === "yes" || chooseLaunch(facts).verdict.survives === "yes") return;
  const [answer] = await world.ask(
    "system",
    [{ service: "login1", method: "SetUserLinger", signature: "ubb", values: [facts.uid, true, false] }],
    probeMs,
  );
  facts.lingerRefused = answer!.problem;
  if (facts.lingerRefused) return;
  facts.linger = "yes";
  facts.lingerSwitchedOn = true;
}

/** What to start, and what to hand over to it. */
export interface DaemonStart {
  /** Runtime, its flags, script, arguments. */
  command: string[];
  /** As JSON and with the facts, through descriptor 3: tokens never stand in arguments or the environment. */
  handover: object;
  log: string;
}

/** The daemon's one line on descriptor 4. */
export type ReadyMessage =
  | { ok: true; instance: string; pid: number }
  | { ok: false; exit: number; message: string; hint?: string };

/** A process that is to be the daemon. It boots, and then waits for what it is to serve; without that it ends, and has done nothing. */
export interface DaemonProcess {
  /** 0 where it could not be spawned. */
  pid: number;
  /**
   * Hands over, and waits for the daemon's word.
   *
   * @throws {Failure} Why it cannot start: the daemon's own reason, or how it ended.
   */
  begin(handover: string): Promise<{ pid: number; instance: string }>;
  discard(): void;
}

/**
 * Launches a daemon, moves it into a scope where that is better, and waits for its word. A scope that cannot be made is told in `facts`, and the
 * next best place is taken.
 *
 * @param only Takes this launch and no other (--lifetime).
 * @param prepared Has been spawned already, while the host was measured.
 * @throws {Failure} The daemon's own reason why it cannot start.
 */
export async function launchDaemon(
  { command, log, handover }: DaemonStart,
  facts: Facts,
  only: Launch | undefined,
  world: World,
  prepared?: DaemonProcess,
): Promise<{ pid: number; instance: string }> {
  if (only === "scope" && facts.scope === "no") throw cannotScope(facts);
  const daemon = prepared || spawnDaemon(command, log);
  try {
    if (daemon.pid > 0 && (only || chooseLaunch(facts).launch) === "scope") {
      await makeScope([daemon.pid], facts, world, facts.linger === "yes");
      if (only === "scope" && (facts.scope as Trilean) === "no") throw cannotScope(facts);
    }
    return await daemon.begin(JSON.stringify({ ...handover, facts }));
  } finally {
    daemon.discard();
  }
}

function cannotScope(facts: Facts): Failure {
  return cannot(`start in a scope: ${facts.scopeProblem}`, {
    hint: "leave --lifetime out: it then takes the best place that the host allows",
  });
}

/** @param retries Tries again for a while. Lingering that comes while the user manager stops, after a last logout, has it started again. */
async function makeScope(pids: number[], facts: Facts, world: World, retries: boolean): Promise<void> {
  let problem: string | undefined;
  await soon(async () => !(problem = await moveIntoScope(pids, world)), retries ? probeMs : 0, 50);
  await noteScope(facts, world, problem);
}

/** Processes that wait for their handover: no daemons yet. */
export const waitingDaemons = new Set<number>();

/** Spawns a daemon in a session of its own, with nothing of the caller's descriptors. */
export function spawnDaemon(command: string[], log: string): DaemonProcess {
  const [program, ...args] = command as [string, ...string[]];
  const logDescriptor = openLog(log);
  const logged = fstatSync(logDescriptor).size;
  const nothing = openSync("/dev/null", "r"); // the daemon's own processes get it, too
  const stdio: ("ignore" | "pipe" | number)[] = ["ignore", logDescriptor, logDescriptor, "pipe", "pipe"];
  for (const descriptor of inheritedDescriptors()) {
    while (stdio.length < descriptor) stdio.push("ignore"); // of those above 2, that one is left as it is: closed
    stdio[descriptor] = nothing;
  }
  const env = { ...process.env, XDG_RUNTIME_DIR: `/run/user/${process.getuid!()}` }; // its processes are to find our own user manager: su keeps the other's
  const child = spawn(program, args, { detached: true, cwd: "/", env, stdio });
  closeSync(nothing);
  closeSync(logDescriptor);
  const { pid = 0 } = child;
  waitingDaemons.add(pid);
  const [, , , give, take] = (child.stdio || []) as unknown as Socket[]; // without descriptors it has no pipes either
  let text = "";
  let settle: (outcome: string) => void;
  const settled = new Promise<string>((done) => (settle = done));
  child.once("error", (error) => settle(`Cannot run "${program}": ${reasonOf(error)}`));
  child.once("exit", (code, signal) => {
    waitingDaemons.delete(pid);
    // now and then its end is heard of before what it said
    setTimeout(() => settle(`"${program}" ended ${signal === null ? `with exit code ${code}` : `by ${signal}`}`), 50);
  });
  give?.on("error", () => {}); // it ended before it took the handover: "exit" tells
  take?.setEncoding("utf8").on("data", (chunk: string) => {
    text += chunk;
    if (text.includes("\n")) settle("");
  });
  /** Its end is what tells one that waits that it is not wanted. */
  const discard = (): void => {
    child.unref();
    give?.destroy();
    take?.destroy();
  };

  return {
    pid,
    discard,
    async begin(handover) {
      const timer = setTimeout(() => {
        child.kill("SIGKILL"); // our own child, not yet reaped: the pid cannot be another's
        settle(`"${program}" did not answer within ${daemonStartMs / 1000} s`);
      }, daemonStartMs);
      waitingDaemons.delete(pid);
      give?.end(handover);
      const problem = await settled;
      clearTimeout(timer);
      if (problem !== "")
        throw cannot(`start the daemon: ${problem}${said(log, logged)}`, { hint: `see the log "${log}"` });
      const ready = JSON.parse(text) as ReadyMessage;
      if (ready.ok) return ready;
      throw new Failure(ready.message, ready);
    },
  };
}

/**
 * Descriptors that our caller left open and a child would inherit. Node marks those it was given close-on-exec up to 15, and from there to the first
 * gap; whatever is beyond would stay open in the daemon, and keep a caller waiting who waits for the end of a pipe.
 */
function inheritedDescriptors(): number[] {
  const marked = build?.main && runtime === "node" ? 15 : 4; // what an application opened since is its own business
  const isInherited = (descriptor: number): boolean =>
    (parseInt(capture(/^flags:\s+(\d+)/m, readText(`/proc/self/fdinfo/${descriptor}`)) || "2000000", 8) & 0o2000000) ===
    0; // O_CLOEXEC
  return namesIn("/proc/self/fdinfo")
    .map(Number)
    .filter(
      (descriptor) =>
        descriptor > marked &&
        isInherited(descriptor) &&
        descriptor < readLimit("Max open files", { readFile: readText }),
    ); // dup2(2) takes none beyond it
}

/** What a program that ended early wrote to the log, which is its stderr: the reason, in its own words. */
function said(log: string, from: number): string {
  const text = safely(() => readFileSync(log).toString("utf8", from, from + 2000)) || "";
  const lines = text.split("\n").filter((line) => line !== "" && !/^\d{4}-\d\d-\d\dT/.test(line)); // not those of a daemon that is to be replaced
  return lines.length === 0 ? "" : `: ${lines.slice(0, 5).join("; ")}`;
}

/**
 * Moves a daemon, as it is, into a scope of its own under the user manager (StartTransientUnit, org.freedesktop.systemd1(5)). What it has opened, its
 * parent and its environment stay. No fixed name: one that has failed blocks it. TimeoutStopUSec: a daemon that hung would block the user's next login
 * for 90 s. OOMPolicy: systemd before 252 does not know it, and refuses the call for it.
 *
 * @param pids The daemon's first, then those of its processes.
 * @returns Why it could not; undefined when it was moved.
 */
async function moveIntoScope(pids: number[], world: World): Promise<string | undefined> {
  const pid = pids[0]!;
  const name = `holdfast-${pid}-${Date.now().toString(36)}.scope`;
  const properties = [
    ["PIDs", ["au", pids]],
    ["TimeoutStopUSec", ["t", 10_000_000]],
    ["CollectMode", ["s", "inactive-or-failed"]],
  ];
  const start = async (...more: unknown[]): Promise<string | undefined> =>
    (
      await world.ask(
        "user manager",
        [
          {
            service: "systemd1",
            method: "StartTransientUnit",
            signature: "ssa(sv)a(sa(sv))",
            values: [name, "fail", [...properties, ...more], []],
          },
        ],
        probeMs,
      )
    )[0]!.problem;
  let problem = await start(["OOMPolicy", ["s", "continue"]]);
  if (problem?.includes("OOMPolicy")) problem = await start(); // it may be older than pid 1, whose version we know
  if (problem) return problem;
  const hasMoved = await soon(() => (placeOf(pid, world) as { unit?: string }).unit === name, moveMs, 2);
  return hasMoved ? undefined : "the user manager took the call, but the daemon has not moved";
}

/** Moves a running daemon that stays where it would be killed, and notes in `facts` how that went. */
export async function moveRunning(pids: number[], facts: Facts, world: World): Promise<void> {
  await makeScope(pids, facts, world, facts.lingerSwitchedOn === true);
  if (facts.scopeProblem) facts.scopeProblem = `the running daemon could not be moved: ${facts.scopeProblem}`;
  facts.place = placeOf(pids[0]!, world);
}

/** Which signals came together with SIGTERM, and so who ended the daemon (logind and the user manager send SIGCONT after SIGTERM). */
export function judgeSignals(seen: ReadonlySet<string>): {
  reason: "killed-at-logout" | "user-manager-stopped" | "terminated";
  detail: string;
} {
  const detail = [...seen].sort().join(", ");
  if (!seen.has("SIGCONT")) return { reason: "terminated", detail: `${detail}: by a person or a program` };
  return seen.has("SIGHUP")
    ? { reason: "killed-at-logout", detail: `${detail}: by systemd, as its session ended` }
    : { reason: "user-manager-stopped", detail: `${detail}: by systemd, as the user manager stopped` };
}

/** A verdict as `server.capabilities` shows it. */
export interface Lifetime {
  placement: "session-scope" | "user-manager" | "system-unit" | "none" | "unknown";
  unit?: string;
  survivesLogout: Survival;
  /** Both in words, as --serve prints them. */
  where: string;
  words: string;
  warnings: Warning[];
}

export function describeVerdict({ survives, words, where, place, warnings: found }: Verdict): Lifetime {
  const placement = place.kind === "session" ? "session-scope" : place.kind === "unit" ? "system-unit" : place.kind;
  return {
    placement,
    ...("unit" in place ? { unit: place.unit } : {}),
    survivesLogout: survives,
    where,
    words,
    warnings: found,
  };
}
