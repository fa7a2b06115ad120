/**
 * What is measured of the host: where a process is, what logind does there when a session ends, who lingers, what the user database says of a user.
 *
 * Asked with systemd's own tools, those that a person would type (loginctl, systemctl, systemd-run, userdbctl), and of files. Never root, never asks a
 * person, bounded in time. A probe that fails is "unknown", never "no". What it comes to is lifetime.ts's.
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
  /** A session of elogind, which has no units. */
  | { kind: "elogind"; unit: string }
  /** A batch job: "Slurm job 4711". */
  | { kind: "job"; unit: string }
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
  /** The session is ended once it has been idle for so long, whatever the policy (StopIdleSessionSec=); undefined where it is not. */
  idleStopUs?: number;
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
  /** KillMode= of the unit that we are in (systemd.kill(5)). */
  killMode?: string;
  /** A scope that we are in ends before it is empty: with the units that it is part of, or when it is so old, in microseconds. */
  bound?: { unit: string; to: string; afterUs?: number };
  /** RemoveIPC=: logind removes a user's shared memory at his last logout. */
  removesIpc?: boolean;
  /** The home is systemd-homed's, which locks it at the last logout. */
  homed?: boolean;
  /** In a container of podman or docker that a user runs without root: it is in that user's session or user manager, outside. */
  rootless?: boolean;
  /** In WSL, which stops a distribution seconds after its last window. */
  wsl?: boolean;
  /** Why lingering could not be switched on, when it was asked for. */
  lingerRefused?: string;
  /** Lingering was switched on by this start. */
  lingerSwitchedOn?: boolean;
}

// The tools

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

// Where a process is

/**
 * Finds the place of a process in the text of its /proc/<pid>/cgroup.
 *
 * The unified hierarchy has "0::/path"; hybrid and legacy ones have "N:name=systemd:/path" beside or instead of it. XDG_SESSION_ID proves
 * nothing: it is inherited. The owner is that of the session, who need not be our user.
 */
export function parsePlace(cgroup: string): Place {
  const lines = [...cgroup.matchAll(/^\d+:([^:\n]*):(\/.*)$/gm)].map(([, hierarchy, path]) => ({
    hierarchy,
    path: path!,
  }));
  // a job has cgroups of its own in those hierarchies that bound it, and ends with them, whatever session it came from
  const job = lines.map(({ path }) => jobOf(path)).find((found) => found !== undefined);
  if (job) return { kind: "job", unit: job };
  const elogind = lines.find(({ hierarchy, path }) => hierarchy === "name=elogind" && path !== "/");
  if (elogind) return { kind: "elogind", unit: `session ${elogind.path.slice(1)}` };
  const known = lines.filter(({ hierarchy }) => hierarchy === "" || hierarchy === "name=systemd");
  const path = known.find((line) => line.path !== "/")?.path;
  if (!path) return { kind: known.length > 0 ? "none" : "unknown" };
  const session = /\/user-(\d+)\.slice\/(session-[^/]+\.scope)/.exec(path);
  if (session) return { kind: "session", owner: Number(session[1]), unit: session[2]! };
  const unit = path
    .split("/")
    .filter((name) => /\.(service|scope)$/.test(name))
    .pop();
  const manager = /\/user@(\d+)\.service/.exec(path);
  if (manager) return { kind: "user-manager", owner: Number(manager[1]), unit: unit || `user@${manager[1]}.service` };
  return unit ? { kind: "unit", unit } : { kind: "none" };
}

/** By their manuals: pam_slurm_adopt(8) puts ssh sessions into a job's cgroup, too. */
function jobOf(path: string): string | undefined {
  const slurm = capture(/\/slurm[^/]*\/(?:.*\/)?job_(\d+)(?:\/|$)/, path);
  if (slurm) return `Slurm job ${slurm}`;
  const pbs = capture(/\/pbs[^/]*\.service\/jobid\/([^/]+)/, path);
  return pbs && `PBS job ${pbs}`;
}

/** "user@1000.service" is the user manager itself. */
export function isService(unit: string): boolean {
  return unit.endsWith(".service") && !unit.startsWith("user@");
}

/**
 * Reads where a process is now, whatever else can be seen of systemd from here: what is in a session's cgroup ends with that session in a chroot or a
 * container's mount namespace, too.
 */
export function placeOf(pid: number | "self", world: Pick<World, "readFile">): Place {
  const text = world.readFile(`/proc/${pid}/cgroup`);
  if (text === undefined) return { kind: "unknown" };
  const session = capture(/^0::\/(c?\d+)$/m, text); // elogind's, on the unified hierarchy
  if (session && world.readFile(`/run/systemd/sessions/${session}`) !== undefined)
    return { kind: "elogind", unit: `session ${session}` };
  return parsePlace(text);
}

// The probe

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
  const facts = factsWithoutTools(place, world);
  if (!facts.systemd && (place.kind === "none" || place.kind === "job")) return facts;
  const owner = "owner" in place ? place.owner : world.uid;
  const isOther = owner !== world.uid;
  const [manager, user, ownerUser, version, unit, session, asked, ownerAsked] = await Promise.all([
    ask(world, ["loginctl", "--no-ask-password", "show-user", "--all"]),
    askUser(world, world.uid),
    isOther ? askUser(world, owner) : undefined,
    ask(world, ["systemd-run", "--version"]),
    askUnit(world, place),
    askSession(world, place),
    askRecord(world, world.uid),
    isOther ? askRecord(world, owner) : undefined,
  ]);
  noteTool(facts, version);
  const record = asked || recordInFiles(world.uid, facts, world);
  const ownerRecord = isOther ? ownerAsked || recordInFiles(owner, facts, world) : record;
  const name = ownerUser ? ownerUser.properties.get("Name") || String(owner) : world.user;
  const policy = { ...readPolicy(manager.properties, manager.problem), record: ownerRecord };
  [facts.killed, facts.policy] = judgePolicy(policy, name, owner);
  noteStops(facts, manager, session, place.kind === "user-manager" ? ownerRecord : record);
  facts.linger = readLinger(user.properties, world.user, world);
  if (ownerUser) {
    facts.owner = name;
    facts.ownerLinger = name === String(owner) ? "unknown" : readLinger(ownerUser.properties, name, world);
  }
  if (record?.isHomed) facts.homed = true;
  if (unit && "unit" in place) noteUnit(facts, place.unit, unit);
  if (tryScope && facts.scope !== "no") await noteScope(facts, world, await tryScopeOfNothing(world));
  return facts;
}

function noteUnit(facts: Facts, unit: string, { properties }: Answer): void {
  const killMode = properties.get("KillMode");
  if (killMode && !unit.endsWith(".scope")) facts.killMode = killMode; // a scope is not ended by the end of a process
  const to = ["PartOf", "BindsTo"]
    .flatMap((name) => (properties.get(name) || "").split(" "))
    .filter((word) => word !== "");
  const afterUs = parseSpan(properties.get("RuntimeMaxUSec"));
  if (typeof afterUs === "number") facts.bound = { unit, to: to.join(" "), afterUs };
  else if (to.length > 0) facts.bound = { unit, to: to.join(" ") };
}

/** One that does not answer in time says nothing of scopes. */
function noteTool(facts: Facts, { said, problem }: Answer): void {
  facts.systemdVersion = Number(capture(/^systemd v?(\d+)/, said)) || 0;
  if (facts.scope === "no" || !problem?.endsWith("is not installed")) return;
  facts.scope = "no";
  facts.scopeProblem = problem;
}

/** What files tell: the place, the init, and WSL. */
function factsWithoutTools(place: Place, world: World): Facts {
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
  if (/microsoft/i.test(world.readFile("/proc/sys/kernel/osrelease") || "")) facts.wsl = true;
  if (isRootless(world)) facts.rootless = true;
  if (facts.systemd) return facts;
  facts.scope = "no";
  facts.scopeProblem = "systemd cannot be reached from here: there is no /run/systemd/system";
  if (place.kind === "elogind") facts.scopeProblem = "elogind has no user managers";
  if (place.kind !== "none") return facts;
  facts.scopeProblem = "this host was not booted with systemd";
  facts.linger = "no";
  return facts;
}

/** By the marks that they leave, and by whom root is outside (user_namespaces(7)): a user; of docker with a range of its own it is none. */
function isRootless(world: World): boolean {
  const root = capture(/^\s*0\s+(\d+\s+\d+)\s*$/m, world.readFile("/proc/self/uid_map"))?.replace(/\s+/, " ");
  if (world.exists("/run/.containerenv")) return root !== undefined && root !== "0 4294967295";
  return world.exists("/.dockerenv") && root !== undefined && root !== "0 1" && root.endsWith(" 1");
}

/** What ends a session or a user manager at some time, and what goes with it. */
function noteStops(facts: Facts, manager: Answer, session: Answer | undefined, record: UserRecord | undefined): void {
  const delay = parseSpan(manager.properties.get("UserStopDelayUSec"));
  facts.stopDelayUs = record?.stopDelayUs ?? delay ?? defaultStopDelayUs;
  if (manager.properties.get("RemoveIPC") === "yes") facts.removesIpc = true;
  const idle = parseSpan(manager.properties.get("StopIdleSessionUSec")); // before 252 there is none
  if (typeof idle === "number" && idle > 0 && session && canBeIdle(session)) facts.idleStopUs = idle;
}

/** Only the time of a terminal's last use is looked at, and a desktop's own word; where logind knows no terminal, as of ssh without utmp, none. */
function canBeIdle({ properties, problem }: Answer): boolean {
  const isDesktop = ["x11", "wayland", "mir"].includes(properties.get("Type") || "");
  return problem !== undefined || isDesktop || properties.get("TTY") !== "";
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

function propertiesOf(...names: string[]): string[] {
  return names.map((name) => `--property=${name}`);
}

function askUser(world: World, uid: number): Promise<Answer> {
  return ask(world, ["loginctl", "--no-ask-password", "show-user", ...propertiesOf("Name", "Linger"), String(uid)]);
}

/** Of the id in the cgroup's path: XDG_SESSION_ID is inherited, and proves nothing. */
function askSession(world: World, place: Place): Promise<Answer> | undefined {
  const id = place.kind === "session" && capture(/^session-(.+)\.scope$/, place.unit);
  const properties = propertiesOf("Type", "Class", "Service", "TTY", "Leader", "State");
  return id ? ask(world, ["loginctl", "--no-ask-password", "show-session", ...properties, id]) : undefined;
}

/** What ends it beside its processes. */
function askUnit(world: World, place: Place): Promise<Answer> | undefined {
  const isOurs = place.kind === "user-manager" && place.owner === world.uid && place.unit !== "init.scope";
  if (place.kind !== "unit" && !isOurs) return undefined;
  const properties = propertiesOf("KillMode", "PartOf", "BindsTo", "RuntimeMaxUSec");
  return ask(world, ["systemctl", ...(isOurs ? ["--user"] : []), "show", ...properties, place.unit]);
}

/** From whatever service knows the user (LDAP, systemd-homed), where that can be asked. */
async function askRecord(world: World, uid: number): Promise<UserRecord | undefined> {
  const command = ["userdbctl", "user", "--output=json", String(uid)];
  const { said, problem } = await ask(world, command);
  return problem === undefined ? parseUserRecord(said, `what ${command.join(" ")} prints`, world) : undefined;
}

/** systemd looks for records in files from 249 on. */
function recordInFiles(uid: number, { systemdVersion }: Facts, world: World): UserRecord | undefined {
  return systemdVersion === 0 || systemdVersion! >= 249 ? readUserRecord(uid, world) : undefined;
}

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
  const show = ["systemctl", "show", ...propertiesOf("LoadState", "ActiveState"), `user@${facts.uid}.service`];
  const { properties } = await ask(world, show);
  const active = properties.get("ActiveState");
  if (active) facts.manager = properties.get("LoadState") === "masked" ? "masked" : active;
}

/** @returns Why no scope can be made; undefined when one could. */
async function tryScopeOfNothing(world: World): Promise<string | undefined> {
  const command = ["systemd-run", "--user", "--scope", "--quiet", "--collect", "--", "true"];
  return refusalOf(command, await world.run(command, probeMs));
}

// Spans of time

/** Microseconds of a time span, as systemd's tools write it: "1min 3.500000s", "0", "infinity"; undefined for anything else. */
export function parseSpan(text: string | undefined): number | "infinity" | undefined {
  if (text === "infinity") return "infinity";
  if (text === "0") return 0;
  const parts = text?.split(" ").map((part) => /^(\d+(?:\.\d+)?)([a-z]+)$/.exec(part)) ?? [undefined];
  const spans = parts.map((part) => Number(part?.[1]) * (spanUnits.get(part?.[2] ?? "") ?? NaN));
  const sum = spans.reduce((total, span) => total + span, 0);
  return Number.isNaN(sum) ? undefined : sum;
}

/** In microseconds: systemd.time(7). */
const spanUnits = new Map([
  ["us", 1],
  ["ms", 1e3],
  ["s", 1e6],
  ["min", 60e6],
  ["h", 3600e6],
  ["d", 86_400e6],
  ["w", 604_800e6],
  ["month", 2_629_800e6],
  ["y", 31_557_600e6],
]);

// logind's policy

/** What decides whether logind kills what stays in a session: logind.conf(5), and the record of the session's owner. */
export interface Policy {
  /** KillUserProcesses=, KillOnlyUsers=, KillExcludeUsers=. */
  killUserProcesses?: boolean;
  only?: string[];
  exclude?: string[];
  /** Why nobody says so. */
  problem?: string;
  record?: UserRecord;
}

/** @param properties What `loginctl show-user` prints without a user. A name that is absent is unknown, an empty value is empty. */
export function readPolicy(properties: ReadonlyMap<string, string>, problem?: string): Policy {
  const [kill, only, exclude] = ["KillUserProcesses", "KillOnlyUsers", "KillExcludeUsers"].map((name) =>
    properties.get(name),
  );
  if ((kill !== "yes" && kill !== "no") || only === undefined || exclude === undefined)
    return { problem: problem || "loginctl does not name all of them" };
  const names = (list: string): string[] => list.split(" ").filter((name) => name !== "");
  return { killUserProcesses: kill === "yes", only: names(only), exclude: names(exclude) };
}

/** Decides as logind does, in its order. Returns the answer and the setting that gives it. */
export function judgePolicy(policy: Policy, owner: string, ownerUid: number): [Trilean, string] {
  const { killUserProcesses, only = [], exclude = [], problem, record } = policy;
  if (record?.killProcesses !== undefined)
    return [record.killProcesses ? "yes" : "no", `killProcesses=${record.killProcesses} in ${record.source}`];
  if (killUserProcesses === undefined) return ["unknown", `logind's settings cannot be read: ${problem}`];
  if (ownerUid === 0 && exclude.length === 0) return ["no", "root is exempt"];
  if (exclude.includes(owner)) return ["no", `KillExcludeUsers= has ${owner}`];
  if (only.length > 0)
    return only.includes(owner)
      ? ["yes", `KillOnlyUsers= has ${owner}`]
      : ["no", `KillOnlyUsers= has others, not ${owner}`];
  return killUserProcesses ? ["yes", "KillUserProcesses=yes"] : ["no", "KillUserProcesses=no"];
}

/**
 * Tells whether a user lingers: from what `loginctl show-user <uid>` printed; and of one whom logind does not know, who is neither logged in nor
 * lingering, from its files. The directory is made with the first such user.
 */
export function readLinger(properties: ReadonlyMap<string, string>, user: string, world: World): Trilean {
  const linger = properties.get("Linger");
  if (linger === "yes" || linger === "no") return linger;
  if (world.exists(`/var/lib/systemd/linger/${user}`)) return "yes";
  return world.exists("/run/systemd/system") && world.exists("/var/lib/systemd") ? "no" : "unknown";
}

// The user's record

/** What matters here of a user's JSON record (https://systemd.io/USER_RECORD). */
export interface UserRecord {
  /** Wins over all that logind.conf says. */
  killProcesses?: boolean;
  /** Wins over UserStopDelaySec=. In microseconds. */
  stopDelayUs?: number | "infinity";
  /** The home is systemd-homed's, and is locked at the last logout. */
  isHomed: boolean;
  /** The file, or the command that printed it. */
  source: string;
}

/** systemd looks into them in this order: CONF_PATHS, and what a host hands to a container. */
const recordDirectories = ["/etc", "/run", "/run/host", "/usr/local/lib", "/usr/lib"].map((base) => `${base}/userdb`);

/** Reads a record from the files, as logind does where no service has one: by number. */
export function readUserRecord(uid: number, world: Pick<World, "readFile">): UserRecord | undefined {
  for (const directory of recordDirectories) {
    const path = `${directory}/${uid}.user`;
    const record = parseUserRecord(world.readFile(path), path, world);
    if (record) return record;
  }
  return undefined;
}

/** @returns Undefined for what is no record. */
export function parseUserRecord(
  text: string | undefined,
  source: string,
  world: Pick<World, "readFile">,
): UserRecord | undefined {
  const value = safely((): unknown => JSON.parse((text || "").slice((text || "").indexOf("{"))));
  if (typeof Object(value).userName !== "string") return undefined;
  const machine = world.readFile("/etc/machine-id")?.trim() || "";
  const whole = value as Json;
  const ours = (Array.isArray(whole.perMachine) ? whole.perMachine : []).filter((part) => isFor(Object(part), machine));
  const { killProcesses, stopDelayUSec, storage } = Object.assign({}, whole, ...ours) as Json;
  const { service } = Object(Object(whole.status)[machine]) as Json;
  const record: UserRecord = { isHomed: service === "io.systemd.Home" || isHomedStorage(storage), source };
  if (typeof killProcesses === "boolean") record.killProcesses = killProcesses;
  if (typeof stopDelayUSec === "number" && stopDelayUSec >= 0)
    record.stopDelayUs = stopDelayUSec >= 2 ** 63 ? "infinity" : stopDelayUSec; // 2^64 - 1 is systemd's infinity
  return record;
}

type Json = Record<string, unknown>;

function isFor({ matchMachineId }: Json, machine: string): boolean {
  return machine !== "" && [matchMachineId].flat().includes(machine);
}

/** "classic" homes are plain directories that are always there. */
function isHomedStorage(storage: unknown): boolean {
  return ["luks", "directory", "subvolume", "fscrypt", "cifs"].includes(storage as string);
}
