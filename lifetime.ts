/**
 * Where a daemon would live, and whether it survives there: probe the host, judge places, choose a launch. launch.ts carries it out.
 *
 * One function judges: judgePlace(place, facts) says whether a process in that place survives logout. Choosing is judging the places that a
 * launch can reach, before it; verifying is judging the place in /proc/<pid>/cgroup, after it. So a promise and its proof cannot differ
 * in their reasoning, only in their facts.
 *
 * The host is asked with systemd's own tools, those that a person would type: loginctl, systemctl, systemd-run. Never root, never asks a
 * person, bounded in time. A probe that fails is "unknown", never "no".
 */

import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { userInfo } from "node:os";
import type { Readable } from "node:stream";
import { capture, reasonOf, safely } from "./failure.ts";
import { readText } from "./record.ts";

/** All probes together, side by side. */
export const probeMs = 2000;
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
  /** The user has no bus of its own (dbus-user-session), which is needed to move a daemon that runs. */
  lacksBus?: boolean;
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
  /** Runs one of the host's tools to its end, as a person of our user would type it. Never rejects. */
  run(command: string[], timeoutMs: number): Promise<CommandResult>;
  /** A file's text; undefined when it cannot be read. */
  readFile(path: string): string | undefined;
  exists(path: string): boolean;
}

/** How a command ended, and what it said, without colours. */
export interface CommandResult {
  /** Null when it did not start, or did not end by itself. */
  code: number | null;
  stdout: string;
  stderr: string;
  /** Why there is no exit code: "is not installed", "did not answer within 2000 ms". */
  problem?: string;
}

export function realWorld(): World {
  const uid = process.getuid!();
  const runtimeDirectory = `/run/user/${uid}`;
  // su and sudo keep another user's, and cron has none
  const env = { XDG_RUNTIME_DIR: runtimeDirectory, DBUS_SESSION_BUS_ADDRESS: `unix:path=${runtimeDirectory}/bus` };
  return {
    uid,
    // one without an entry in the passwd database is named by its number, which loginctl takes as well
    user: safely(() => userInfo().username) || String(uid),
    readFile: readText,
    exists: existsSync,
    run: (command, timeoutMs) => runCommand(command, timeoutMs, env),
  };
}

/** Runs a command to its end, bounded in time, in plain English, with nothing to ask a person on. Never rejects. */
export function runCommand(
  command: string[],
  timeoutMs: number,
  env: Record<string, string> = {},
): Promise<CommandResult> {
  return new Promise((done) => {
    const child = spawn(command[0]!, command.slice(1), {
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...process.env, ...env, LC_ALL: "C" },
    });
    const said = { stdout: "", stderr: "" };
    const pipes = child as { stdout?: Readable; stderr?: Readable }; // none when there were no descriptors
    const finish = (code: number | null, problem?: string): void => {
      clearTimeout(timer);
      pipes.stdout?.destroy();
      pipes.stderr?.destroy();
      done({ code, stdout: plainText(said.stdout), stderr: plainText(said.stderr), ...(problem ? { problem } : {}) });
    };
    const timer = setTimeout(() => {
      child.kill("SIGKILL");
      finish(null, `did not answer within ${timeoutMs} ms`); // not when its pipes close: something it started may hold them
    }, timeoutMs);
    pipes.stdout?.setEncoding("utf8").on("data", (text: string) => (said.stdout += text));
    pipes.stderr?.setEncoding("utf8").on("data", (text: string) => (said.stderr += text));
    child.once("error", (error: NodeJS.ErrnoException) =>
      finish(null, error.code === "ENOENT" ? "is not installed" : reasonOf(error)),
    );
    child.once("close", (code, signal) => finish(code, code === null ? `was ended by ${signal}` : undefined));
  });
}

/** systemd 247 writes colours into a pipe, too. */
export function plainText(text: string): string {
  return text.replace(/\x1b\[[0-9;?]*[A-Za-z]/g, "");
}

/** Why a command gave nothing, in its own words; undefined where it ended well. */
export function refusalOf([program]: string[], { code, stderr, problem }: CommandResult): string | undefined {
  if (code === 0) return undefined;
  if (problem) return `${program} ${problem}`;
  return stderr.trim().replace(/\s*\n\s*/g, "; ") || `${program} ended with exit code ${code}, and said nothing`;
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
  if (manager) return { kind: "user-manager", owner: Number(manager[1]), unit: unit || `user@${manager[1]}.service` };
  return unit ? { kind: "unit", unit } : { kind: "none" };
}

/**
 * Reads where a process is now, whatever else can be seen of systemd from here: what is in a session's cgroup ends with that session in a chroot or a
 * container's mount namespace, too.
 */
export function placeOf(pid: number | "self", world: Pick<World, "readFile">): Place {
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
  if (!facts.systemd) {
    facts.scope = "no";
    facts.scopeProblem = "this host was not booted with systemd";
    if (place.kind === "none") return { ...facts, linger: "no" };
  }
  const owner = "owner" in place ? place.owner : world.uid;
  const [manager, user, ownerUser, version, unit] = await Promise.all([
    ask(world, ["loginctl", "--no-ask-password", "show-user", "--all"]),
    askUser(world, world.uid),
    owner === world.uid ? undefined : askUser(world, owner),
    ask(world, ["systemd-run", "--version"]),
    place.kind === "unit" ? ask(world, ["systemctl", "show", "--property=KillMode", place.unit]) : undefined,
  ]);
  const name = ownerUser ? ownerUser.properties.get("Name") || String(owner) : world.user;
  facts.stopDelayUs = parseSpan(manager.properties.get("UserStopDelayUSec")) ?? defaultStopDelayUs;
  [facts.killed, facts.policy] = judgePolicy(policyOf(manager), name, owner);
  facts.linger = lingerOf(user, world.user, world);
  if (ownerUser) {
    facts.owner = name;
    facts.ownerLinger = name === String(owner) ? "unknown" : lingerOf(ownerUser, name, world);
  }
  facts.systemdVersion = Number(capture(/^systemd v?(\d+)/, version.said)) || 0;
  if (version.problem?.endsWith("is not installed")) {
    facts.scope = "no";
    facts.scopeProblem = version.problem;
  }
  const killMode = unit?.properties.get("KillMode");
  if (killMode) facts.killMode = killMode;
  if (tryScope && facts.scope !== "no") await noteScope(facts, world, await tryScopeOfNothing(world));
  return facts;
}

/** What a tool said of something: its properties by name; a name that is absent is unknown, an empty value is empty. */
interface Answer {
  properties: Map<string, string>;
  said: string;
  /** Why there is none. */
  problem?: string;
}

async function ask(world: World, command: string[]): Promise<Answer> {
  const result = await world.run(command, probeMs);
  const lines = [...result.stdout.matchAll(/^(\w+)=(.*)$/gm)];
  return {
    properties: new Map(lines.map(([, name, value]) => [name!, value!])),
    said: result.stdout,
    problem: refusalOf(command, result),
  };
}

function askUser(world: World, uid: number): Promise<Answer> {
  return ask(world, [
    "loginctl",
    "--no-ask-password",
    "show-user",
    "--property=Name",
    "--property=Linger",
    String(uid),
  ]);
}

/** Microseconds of a time span, as systemd's tools write it: "1min 3.500000s", "0", "infinity"; undefined for anything else. */
export function parseSpan(text: string | undefined): number | "infinity" | undefined {
  if (text === "infinity") return "infinity";
  if (text === "0") return 0;
  const parts = text?.split(" ").map((part) => /^(\d+(?:\.\d+)?)([a-z]+)$/.exec(part)) ?? [undefined];
  const spans = parts.map((part) => Number(part?.[1]) * (spanUnits[part?.[2] ?? ""] ?? Number.NaN));
  const sum = spans.reduce((total, span) => total + span, 0);
  return Number.isNaN(sum) ? undefined : sum;
}

/** In microseconds: systemd.time(7). */
const spanUnits: Record<string, number> = {
  us: 1,
  ms: 1e3,
  s: 1e6,
  min: 60e6,
  h: 3600e6,
  d: 86_400e6,
  w: 604_800e6,
  month: 2_629_800e6,
  y: 31_557_600e6,
};

/**
 * Notes whether a scope can be made, and where not, what the user manager is.
 *
 * @param problem Why no scope could be made; undefined when one was.
 */
export async function noteScope(facts: Facts, world: World, problem: string | undefined): Promise<void> {
  facts.scope = problem === undefined ? "yes" : "no";
  delete facts.scopeProblem;
  if (problem === undefined) return;
  facts.scopeProblem = problem;
  const unit = `user@${facts.uid}.service`;
  const { properties } = await ask(world, [
    "systemctl",
    "show",
    "--property=LoadState",
    "--property=ActiveState",
    unit,
  ]);
  const active = properties.get("ActiveState");
  if (active) facts.manager = properties.get("LoadState") === "masked" ? "masked" : active;
}

interface Policy {
  killUserProcesses?: boolean;
  only?: string[];
  exclude?: string[];
  /** Why nobody says so. */
  problem?: string;
}

function policyOf({ properties, problem = "loginctl does not name all of them" }: Answer): Policy {
  const [kill, only, exclude] = ["KillUserProcesses", "KillOnlyUsers", "KillExcludeUsers"].map((name) =>
    properties.get(name),
  );
  if ((kill !== "yes" && kill !== "no") || only === undefined || exclude === undefined) return { problem };
  const names = (list: string): string[] => list.split(" ").filter((name) => name !== "");
  return { killUserProcesses: kill === "yes", only: names(only), exclude: names(exclude) };
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

/** logind knows nothing of a user who is neither logged in nor lingering; its file tells then, which it makes with the first such user. */
function lingerOf({ properties }: Answer, user: string, world: World): Trilean {
  const linger = properties.get("Linger");
  if (linger === "yes" || linger === "no") return linger;
  if (world.exists(`/var/lib/systemd/linger/${user}`)) return "yes";
  return world.exists("/run/systemd/system") && world.exists("/var/lib/systemd") ? "no" : "unknown";
}

/** @returns Why no scope can be made; undefined when one could. */
async function tryScopeOfNothing(world: World): Promise<string | undefined> {
  const command = ["systemd-run", "--user", "--scope", "--quiet", "--collect", "--", "true"];
  return refusalOf(command, await world.run(command, probeMs));
}

/**
 * Judges whether a process in a place survives logout.
 *
 * The table is in README, "What survives where"; it was measured on systemd 247, 252, 257 and 262.
 */
export function judgePlace(place: Place, facts: Facts): Verdict {
  switch (place.kind) {
    case "none":
      return verdictOf(place, "yes", "detached; nothing here ends it at logout");
    case "unknown":
      return verdictOf(place, "unknown", "in a place that cannot be read", [warnings.mayEnd(facts)]);
    case "unit":
      return judgeUnit(place, facts);
    case "session":
      return judgeSession(place, facts);
    case "user-manager":
      return judgeManager(place, facts);
  }
}

function verdictOf(
  place: Place,
  survives: Survival,
  where: string,
  found: Warning[] = [],
  words: string = survives,
): Verdict {
  return { survives, where, place, warnings: found, words };
}

function judgeUnit(place: Place & { kind: "unit" }, facts: Facts): Verdict {
  const kept = facts.killMode === "process" || facts.killMode === "none";
  if (!isPerConnection(place.unit))
    return verdictOf(place, "yes", kept ? "detached" : `detached in ${place.unit}; stopping that unit ends it`);
  if (kept) return verdictOf(place, "yes", `detached in ${place.unit}`);
  return verdictOf(place, "no", `in ${place.unit}`, [warnings.endsWithConnection(facts)]);
}

function judgeSession(place: Place & { kind: "session" }, facts: Facts): Verdict {
  const whose = place.owner === facts.uid ? "the session" : `a session of ${facts.owner || `user ${place.owner}`}`;
  const where = `detached in ${whose}`;
  if (facts.killed === "no") return verdictOf(place, "yes", where);
  if (facts.killed === "yes") return verdictOf(place, "no", where, [warnings.endsWithSession(facts)]);
  return verdictOf(place, "unknown", where, [warnings.mayEnd(facts)]);
}

function judgeManager(place: Place & { kind: "user-manager" }, facts: Facts): Verdict {
  const own = place.owner === facts.uid;
  const where = own
    ? `in ${place.unit} under your user manager`
    : `under the user manager of ${facts.owner || `user ${place.owner}`}`;
  const linger = own ? facts.linger : facts.ownerLinger || "unknown";
  if (linger === "yes" || facts.stopDelayUs === "infinity")
    return verdictOf(place, "yes", where, warnings.lingering(facts));
  if (linger === "unknown") return verdictOf(place, "unknown", where, [warnings.mayEnd(facts)]);
  const words = `until about ${delayWords(facts)} after your last session ends`;
  return verdictOf(place, "until", where, [warnings.endsAfterLogout(facts)], words);
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
  if (facts.lacksBus) return "as an administrator: apt-get install dbus-user-session";
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
  // by name: without one it is asked of the session, and there may be none
  const command = ["loginctl", "--no-ask-password", "enable-linger", world.user];
  facts.lingerRefused = refusalOf(command, await world.run(command, probeMs))?.replace(
    /^Could not enable linger: /,
    "",
  );
  if (facts.lingerRefused) return;
  facts.linger = "yes";
  facts.lingerSwitchedOn = true;
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
