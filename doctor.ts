/**
 * What people are told of a host and its daemon: --doctor, what it does to daemons at logout, what these and their users depend on, and the command
 * that mends what is wrong; --status; and the table of --list.
 */

import { accessSync, constants, statfsSync, statSync } from "node:fs";
import { userInfo } from "node:os";
import { basename, dirname, join } from "node:path";
import { keptWords, tryHolding } from "./adoption.ts";
import type { ConnectFailure } from "./client.ts";
import { createClient } from "./client.ts";
import {
  capture,
  cleanText,
  clockWords,
  durationWords,
  exitCodes,
  quoteWord,
  reasonOf,
  safely,
  sizeWords,
} from "./failure.ts";
import type { CommandResult, Facts, Trilean, World } from "./host.ts";
import { probeHost, readLimit, realWorld } from "./host.ts";
import type { Lifetime } from "./lifetime.ts";
import { chooseLaunch, spanWords } from "./lifetime.ts";
import type { ChildSummary, Summary } from "./processes.ts";
import { runtime } from "./program.ts";
import { answerMs, connectOwned, explainAbsence, programWords, tryReach } from "./reach.ts";
import { identify, kindOf, namesIn, readRecord } from "./record.ts";
import type { Places } from "./socket.ts";
import { homeDirectory, maxPathBytes } from "./socket.ts";
import { inColour, jsonLine, say } from "./terminal.ts";

/** One thing that was looked at. */
export interface Finding {
  state: "ok" | "warning" | "failure";
  name: string;
  /** What was found. */
  evidence: string;
  /** The command that mends it; and whether it needs an administrator. */
  remedy?: string;
  administrator?: boolean;
}

function finding(
  state: Finding["state"],
  name: string,
  evidence: string,
  remedy?: string,
  administrator?: boolean,
): Finding {
  return { state, name, evidence, remedy, administrator };
}

/** A command that was run, so that a person can repeat it, and what it said. */
interface Evidence extends CommandResult {
  command: string;
}

/** A world that notes what is run in it. */
function noteCommands(world: World, evidence: Evidence[]): World {
  return {
    ...world,
    async run(command, timeoutMs) {
      const at = evidence.push({ command: command.map(shellWord).join(" "), code: null, stdout: "", stderr: "" }) - 1;
      const result = await world.run(command, timeoutMs);
      Object.assign(evidence[at]!, result);
      return result;
    },
  };
}

/** Which needs no quotes. */
const plainWord = /^[\w@%+=:,./-]+$/;

/** As a shell takes it for one word. */
function shellWord(word: string): string {
  return plainWord.test(word) ? word : quoteWord(word);
}

/** Looks at everything and prints it. Returns the exit code: 1 when something is a failure. */
export async function printDoctor(places: Places, json: boolean): Promise<number> {
  const evidence: Evidence[] = [];
  const world = noteCommands(realWorld(), evidence);
  const findings = await examineHost(places, world);
  const failed = findings.some(({ state }) => state === "failure");
  say(
    json
      ? jsonLine({ host: identify().host, user: world.user, findings, evidence })
      : findings.map(findingWords).join(""),
  );
  return failed ? exitCodes.failed : exitCodes.done;
}

function findingWords({ state, name, evidence, remedy, administrator }: Finding): string {
  const colour = { ok: 32, warning: 33, failure: 31 }[state];
  const word = inColour(1, colour, state.padEnd(8));
  const mend = remedy
    ? `${" ".repeat(9)}${administrator ? "mend, as an administrator:" : "mend:"} ${cleanText(remedy)}\n`
    : "";
  return `${word} ${name.padEnd(11)} ${cleanText(evidence, 1000)}\n${mend}`;
}

/** Measures what --serve would, and what it and its users depend on. Changes nothing; bounded in time. */
async function examineHost(places: Places, world: World): Promise<Finding[]> {
  const [facts, mayLinger, noise, daemon, overQuota, { notHeld, engine }] = await Promise.all([
    probeHost(world, { tryScope: true }),
    askMayLinger(world),
    listenToShell(world),
    examineDaemon(places),
    askQuota(world),
    tryHolding(process.env),
  ]);
  return [
    finding(
      "ok",
      "runtime",
      `${runtime[0]!.toUpperCase()}${runtime.slice(1)} ${process.versions[runtime]}, ${process.execPath}`,
    ),
    finding("ok", "systemd", initWords(facts)),
    finding("ok", "where", `${placeWords(facts)}${facts.wsl ? ", in WSL" : ""}`),
    ...(facts.systemd || "owner" in facts.place || facts.place.kind === "elogind" ? [examinePolicy(facts, world)] : []),
    ...(facts.systemd ? [examineLinger(facts, mayLinger), examineManager(facts)] : []),
    examinePlan(facts, mayLinger),
    examineDirectory(places, overQuota),
    finding("ok", "socket", `${places.socket}: ${Buffer.byteLength(places.socket)} of at most ${maxPathBytes} bytes`),
    examineLimits(world),
    daemon,
    notHeld === undefined
      ? finding("ok", "processes", "outlive the daemon: the next one takes them up")
      : finding("warning", "processes", `end with the daemon: ${notHeld}`),
    typeof engine === "string"
      ? finding("warning", "terminals", `cannot be given to processes: ${engine}`)
      : finding("ok", "terminals", `are made by ${engine.path}`),
    noise,
  ];
}

function initWords({ systemd, systemdVersion, place }: Facts): string {
  if (systemd) return `version ${systemdVersion || "unknown"}`;
  if (place.kind === "elogind") return "this host was not booted with systemd: its sessions are elogind's";
  return place.kind === "none"
    ? "this host was not booted with systemd: nothing ends a daemon at logout"
    : "cannot be reached from here (there is no /run/systemd/system), and yet it has put us where we are";
}

function placeWords({ place, user, owner }: Facts): string {
  switch (place.kind) {
    case "session":
      return `in a session of ${owner || user} (${place.unit})${owner ? `, as ${user}` : ""}`;
    case "user-manager":
      return `under the user manager of ${owner || user} (${place.unit})`;
    case "unit":
      return `in the system unit ${place.unit}`;
    case "elogind":
      return `in ${place.unit} of elogind`;
    case "job":
      return `in the cgroup of ${place.unit}`;
    case "none":
      return "in no unit of systemd";
    case "unknown":
      return "/proc/self/cgroup cannot be read";
  }
}

function examinePolicy(facts: Facts, world: World): Finding {
  const does = {
    yes: "kills what stays in a session",
    no: "leaves what stays in a session alone",
    unknown: "could not be asked",
  }[facts.killed];
  const fromFile = /^(kill|logind's settings)/.test(facts.policy) || !facts.systemd ? "" : policyFile(world); // a user's record names its own
  const idle =
    facts.idleStopUs === undefined
      ? ""
      : `; and ends this session when it has been idle for ${spanWords(facts.idleStopUs)}`;
  return finding(
    facts.killed === "unknown" ? "warning" : "ok",
    "policy",
    `${facts.policy}${fromFile}: ${facts.place.kind === "elogind" ? "elogind" : "logind"} ${does}${idle}`,
  );
}

/** The file that has the last word: drop-ins by name, those of /etc over /run over /usr/lib of the same name (logind.conf(5)). */
function policyFile(world: World): string {
  const byName = new Map<string, string>();
  for (const base of ["/usr/lib", "/run", "/etc"]) {
    const directory = `${base}/systemd/logind.conf.d`;
    for (const name of namesIn(directory)) if (name.endsWith(".conf")) byName.set(name, `${directory}/${name}`);
  }
  const files = [
    "/usr/lib/systemd/logind.conf",
    "/etc/systemd/logind.conf",
    ...[...byName].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, path]) => path),
  ];
  const setters = files.filter((path) =>
    /^\s*Kill(UserProcesses|OnlyUsers|ExcludeUsers)=/m.test(world.readFile(path) || ""),
  );
  return setters.length === 0 ? " (the default)" : ` (set in ${setters.join(", ")})`;
}

function examineLinger({ linger, user, homed }: Facts, may: Trilean): Finding {
  if (linger === "unknown") return finding("warning", "linger", "could not be found out");
  return finding(
    "ok",
    "linger",
    linger === "yes"
      ? `on for ${user}${homed ? ", whose home is systemd-homed's: it is locked at the last logout all the same" : ""}`
      : `off for ${user}, who ${{ yes: "may", no: "may not", unknown: "may or may not" }[may]} switch it on`,
  );
}

/** Asks polkit whether we may do it, without doing it. Without polkit, logind refuses everybody but root. */
async function askMayLinger(world: World): Promise<Trilean> {
  if (world.uid === 0) return "yes";
  const { code, problem } = await world.run(
    ["pkcheck", "--action-id", "org.freedesktop.login1.set-self-linger", "--process", String(process.pid)],
    2000,
  );
  if (code === 0) return "yes";
  if (problem === "is not installed") return world.exists("/usr/share/polkit-1") ? "unknown" : "no";
  return problem === undefined ? "no" : "unknown"; // polkit is started by the question, which may take long
}

function examineManager(facts: Facts): Finding {
  if (facts.scope === "yes") return finding("ok", "manager", "the user manager makes scopes");
  return finding(
    "warning",
    "manager",
    `${facts.scopeProblem}${facts.manager ? ` (user@${facts.uid}.service is ${facts.manager})` : ""}`,
  );
}

function examinePlan(facts: Facts, mayLinger: Trilean): Finding {
  const { launch, verdict } = chooseLaunch(facts);
  const evidence = `--serve would ${launch === "scope" ? "detach into a scope of its own" : "detach, and stay where it is"}; survives logout: ${verdict.words}`;
  const [warning] = verdict.warnings;
  const state = verdict.survives === "yes" ? "ok" : verdict.survives === "no" ? "failure" : "warning";
  if (!warning) return finding(state, "plan", `${evidence}${restartWords(facts, launch)}`);
  const command = warning.hint.replace(/^as an administrator: /, "");
  const administrator = command !== warning.hint || (mayLinger === "no" && command.startsWith("loginctl"));
  return finding(
    state === "ok" ? "warning" : state,
    "plan",
    `${evidence}: ${warning.message}`,
    command,
    administrator || undefined,
  );
}

/** From 257 on a restarted logind forgets sessions that are closing, and stops what stayed in them 10 s later. */
function restartWords(facts: Facts, launch: string): string {
  return launch === "detach" && facts.place.kind === "session" && facts.linger === "no" && facts.systemdVersion! >= 257
    ? `; a restart of systemd-logind after it would end it, unless ${facts.user} lingers`
    : "";
}

/** statfs(2) magic numbers of file systems that are shared between hosts. */
const networkFileSystems = new Map([
  [0x6969, "NFS"],
  [0xff534d42, "CIFS"],
  [0xfe534d42, "SMB"],
  [0x01021997, "9p"],
  [0x5346414f, "AFS"],
  [0x00c36400, "Ceph"],
  [0x0bd00bd0, "Lustre"],
]);

/** quota(1), where it is installed: with -q it speaks only of what is over a limit. */
async function askQuota(world: World): Promise<string> {
  return (await world.run(["quota", "-q"], 2000)).stdout.trim().replace(/\s+/g, " ");
}

function examineDirectory(places: Places, overQuota: string): Finding {
  const found = (state: Finding["state"], evidence: string, remedy?: string): Finding =>
    finding(state, "directory", `${places.directory}: ${evidence}`, remedy);
  let there = places.directory;
  while (safely(() => statSync(there)) === undefined && dirname(there) !== there) there = dirname(there);
  const elsewhere = `${programWords()} --serve --socket /tmp/holdfast-${process.getuid!()}/rpc.sock`;
  try {
    const stats = statSync(there);
    if (!stats.isDirectory())
      return found("failure", `"${there}" is ${kindOf(stats)}, a directory is needed`, elsewhere);
    accessSync(there, constants.W_OK | constants.X_OK);
    const { type, bavail, bsize, ffree, files } = statfsSync(there);
    const network = networkFileSystems.get(type >>> 0);
    const owner =
      there === places.directory
        ? `user ${stats.uid}, mode ${(stats.mode & 0o777).toString(8)}`
        : `to be made in "${there}"`;
    const evidence = `${owner}, ${network || "local"} file system, ${sizeWords(bavail * bsize)} free`;
    if (bavail * bsize < 1 << 20 || (files > 0 && ffree === 0))
      return found("failure", `${evidence}: that is too little`, elsewhere);
    return overQuota === "" ? found("ok", evidence) : found("warning", `${evidence}, but over quota: ${overQuota}`);
  } catch (error) {
    return found("failure", `cannot write in "${there}": ${reasonOf(error)}`, elsewhere);
  }
}

/** Below these a user of ordinary size runs into them. */
const fewOpenFiles = 1024;

const fewProcesses = 256;

function examineLimits(world: World): Finding {
  const [openFiles, processes] = [readLimit("Max open files", world), readLimit("Max processes", world)];
  const inotify = (name: string): string => (world.readFile(`/proc/sys/fs/inotify/${name}`) || "unknown").trim();
  const words = (count: number): string => (count === Infinity ? "any number of" : String(count));
  const isLittle = openFiles < fewOpenFiles;
  return finding(
    isLittle || processes < fewProcesses ? "warning" : "ok",
    "limits",
    `${words(openFiles)} open files, ${words(processes)} processes, ${inotify("max_user_watches")} inotify watches, ${inotify("max_user_instances")} instances`,
    isLittle
      ? `ulimit -n ${capture(/^Max open files\s+\d+\s+(\d+)/m, world.readFile("/proc/self/limits")) || fewOpenFiles}`
      : undefined,
  );
}

async function examineDaemon(places: Places): Promise<Finding> {
  const { record } = readRecord(places.record);
  const outcome = await tryReach(places, 2000);
  let failure: ConnectFailure | undefined;
  if (!("socket" in outcome)) failure = outcome;
  else if (!record) outcome.socket.destroy();
  else {
    const client = createClient(outcome.socket, places.socket);
    try {
      const { lifetime, version } = (await client.request("server.capabilities", {}, record.key, 2000)) as {
        lifetime: Lifetime;
        version: string;
      };
      const {
        where,
        words,
        warnings: [warning],
      } = lifetime;
      const evidence = `pid ${record.pid}, version ${version}, up ${durationWords(Date.now() - record.startedAt)}, ${where}; survives logout: ${words}`;
      return finding(warning ? "warning" : "ok", "daemon", evidence, warning?.hint);
    } catch {
      failure = { timedOut: true };
    } finally {
      client.close();
    }
  }
  const { reason, message, hint, healable } = explainAbsence(places, failure);
  if (reason === "never-started" && failure) return finding("ok", "daemon", "none has been started yet");
  return reason === "stopped"
    ? finding("ok", "daemon", message)
    : finding(healable ? "warning" : "failure", "daemon", `${reason}: ${message}`, hint);
}

/** What a shell reads when sshd runs a command with it; and how each begins so that only a person's shell goes on. */
const shellFiles: Record<string, { files: string[]; guard: string }> = {
  bash: { files: [".bashrc", ".bash_profile", ".profile"], guard: "case $- in *i*) ;; *) return ;; esac" },
  zsh: { files: [".zshenv", ".zshrc"], guard: "[[ -o interactive ]] || return" },
  fish: { files: [".config/fish/config.fish"], guard: "status is-interactive; or exit" },
  tcsh: { files: [".tcshrc", ".cshrc"], guard: "if (! $?prompt) exit" },
  csh: { files: [".cshrc"], guard: "if (! $?prompt) exit" },
};

/** Runs the login shell once, as sshd does, with nothing to do: whatever it says comes before the first frame of a bridge. */
async function listenToShell(world: World): Promise<Finding> {
  const home = safely(() => homeDirectory()) || "/";
  const shell = safely(() => userInfo().shell) || "/bin/sh";
  // bash reads .bashrc for a command too when it takes itself to be run by sshd: SSH_CLIENT set, and no shell above it
  const { stdout, problem } = await world.run(
    ["env", "-u", "SHLVL", `SSH_CLIENT=${process.env.SSH_CLIENT || "127.0.0.1 0 22"}`, shell, "-c", ":"],
    3000,
  );
  if (problem) return finding("warning", "shell", `${shell} ${problem}`);
  if (stdout === "") return finding("ok", "shell", `${shell} says nothing of its own before a command`);
  const { files, guard } = shellFiles[basename(shell)] || { files: [".profile"], guard: undefined };
  const words = stdout.split(/\s+/).filter((word) => word.length > 2);
  const file = files.find((name) => words.some((word) => world.readFile(join(home, name))?.includes(word)));
  const evidence = `${shell} says ${Buffer.byteLength(stdout)} bytes before a command, which corrupt a stream: ${JSON.stringify(stdout.slice(0, 60))}${file ? `, from ${join(home, file)}` : ""}`;
  return finding("failure", "shell", evidence, file && guard && `sed -i '1i ${guard}' ${join(home, file)}`);
}

// --status

/** So many processes are listed; of more, only how many. */
const maxListed = 12;

interface Status extends Summary {
  version: string;
  instanceId: string;
  startedAt: number;
  pid: number;
  uptimeMs: number;
  /** Undefined where there is no /proc. */
  rssBytes?: number;
  connections: number;
  log: string;
  socket: string;
  lifetime: Lifetime;
  /** Left out where there is no logind to tell. */
  logoutsOutlived?: number;
}

/** Asks the daemon and prints the answer. Returns the exit code. */
export async function printStatus(places: Places, json: boolean): Promise<number> {
  const { client, auth } = await connectOwned(places);
  try {
    const status = (await client.request("server.status", {}, auth, answerMs)) as Status;
    return say(json ? jsonLine(status) : statusWords(status));
  } finally {
    client.close();
  }
}

function statusWords(status: Status): string {
  const { lifetime, processes } = status;
  const running = processes.filter((entry) => entry.running).length;
  const rows: [string, string][] = [
    ["daemon", `holdfast ${status.version}, pid ${status.pid}, instance ${status.instanceId}`],
    ["up", `${durationWords(status.uptimeMs)}, started ${clockWords(status.startedAt)}`],
    ["lives", lifetime.where],
    ["survives logout", lifetime.words],
    ...outlivedWords(status),
    ...lifetime.warnings.flatMap(({ message, hint }): [string, string][] => [
      ["warning", message],
      ["hint", hint],
    ]),
    ["connections", String(status.connections)],
    ["memory", status.rssBytes === undefined ? "unknown" : sizeWords(status.rssBytes)],
    ["socket", status.socket],
    ["log", status.log],
    ["processes", `${running} running, ${processes.length - running} ended`],
    ...keptWords(status),
  ];
  const listed = [...processes].sort((a, b) => Number(b.running) - Number(a.running)).slice(0, maxListed);
  const lines = rows.map(([name, text]) => `${name.padEnd(16)}${cleanText(text, 1000)}`);
  for (const entry of listed) lines.push(`  ${cleanText(entry.id, 24).padEnd(24)} ${processWords(entry)}`);
  if (processes.length > listed.length)
    lines.push(`  and ${processes.length - listed.length} more: --call process.list`);
  return `${lines.join("\n")}\n`;
}

function outlivedWords({ logoutsOutlived: count }: Status): [string, string][] {
  return count === undefined ? [] : [["outlived", `${count} ${count === 1 ? "logout" : "logouts"} so far`]];
}

function processWords({ pid, command, running, bytes, ageMs }: ChildSummary): string {
  return `${(running ? `pid ${pid}` : "ended").padEnd(12)} ${durationWords(ageMs).padEnd(8)} ${sizeWords(bytes).padStart(9)}  ${cleanText(command, 40)}`;
}

// --list

/** A row of process.list. */
export interface Listed {
  id: string;
  command: string;
  args: string[];
  pid: number;
  running: boolean;
  startedAt: number;
  bytes: number;
  exitCode?: number;
  signal?: string;
  /** Why nobody knows how it ended. */
  unknown?: string;
}

/** @param why "its holder was killed", … */
export function unknownEndWords(id: string, why: string): string {
  return `"${id}" ended, nobody knows how: ${why}`;
}

export function listWords(processes: Listed[]): string {
  const head = ["ID", "STATE", "PID", "AGE", "SIZE", "COMMAND"];
  const rows = processes.map(({ id, command, args, pid, running, startedAt, bytes, ...exit }) => {
    const end = exit.unknown === undefined ? (exit.signal ?? `exit ${exit.exitCode}`) : "unknown";
    const state = running ? "running" : end;
    const words = [command, ...args].map((word) => (plainWord.test(word) ? word : JSON.stringify(word)));
    return [id, state, String(pid), durationWords(Date.now() - startedAt), sizeWords(bytes), words.join(" ")];
  });
  const table = [head, ...rows].map((row) => row.map((text) => cleanText(text)));
  const widths = head.map((_, at) => Math.max(...table.map((row) => row[at]!.length)));
  return table
    .map((row) => `${row.map((text, at) => (at === 5 ? text : text.padEnd(widths[at]!))).join("  ")}\n`)
    .join("");
}

// --help NAME

/** What each warning means, and what mends it, as docs/survival.md has it: `--help NAME` prints it on a host that has only the one file. */
const pages: Record<string, string> = {
  "ends-after-last-logout":
    "The daemon lives in a scope under your user manager, because logind kills what stays in your sessions; but " +
    "without lingering the user manager itself stops about 10 s (UserStopDelaySec=) after your last session, with " +
    "all its scopes. Mend it: loginctl enable-linger <user>; any start with --enable-linger does the same. " +
    "Lingering is persistent and starts your user manager at boot, so it is never switched on unasked; loginctl " +
    "disable-linger <user> undoes it. Where polkit refuses, an administrator can: loginctl enable-linger <user> " +
    "as root. Even without it a bridge starts the daemon again; its processes are lost.",
  "ends-with-session":
    "logind kills what stays in this session, and no scope could be made to leave it: there is no systemd-run, " +
    "the user manager is masked or does not answer, or the system bus is down; a daemon that runs cannot be moved " +
    "without the user's own bus (dbus-user-session). The warning says which. Mend it with the command it names: " +
    "lingering starts a user manager that is merely not there; otherwise an administrator can except the user: " +
    "KillExcludeUsers=root <user> in a drop-in of logind.conf (root is exempt only while that list is empty), or " +
    "KillUserProcesses=no.",
  "ends-with-connection":
    "The connection has a service of its own (sshd@….service, dropbear under socket activation) whose KillMode= " +
    "ends all it started. Mend it: loginctl enable-linger <user> gives you a user manager, and the next start a " +
    "scope in it; or KillMode=process in that service.",
  "may-end-with-session":
    "logind's policy could not be read, since there is no loginctl, the system bus is down, or logind does not " +
    "answer: the daemon stays where it survives the default policy. Mend it: loginctl enable-linger <user> makes " +
    "a scope safe whatever the policy is; where that is so already and no scope can be made, an " +
    "administrator can except the user: KillExcludeUsers=root <user> in a drop-in of logind.conf.",
  "ends-when-idle":
    "logind ends a session with a terminal, and kills all that is in it, once it has been idle for a time " +
    "(StopIdleSessionSec= in logind.conf, often 10 or 15 minutes on company hosts): also while you are logged in, " +
    "and whatever KillUserProcesses= and the exclude list say. Mend it: loginctl enable-linger <user>: the next " +
    "start takes a scope, which such an end does not reach. Or start it without a terminal (ssh host node " +
    "holdfast.js --serve, no -t): a session without one is never idle.",
  "ends-with-unit":
    "It was started by a service of systemd (a timer, a deploy unit, a CI job, systemd-run that waits), and a " +
    "service takes along all that it has started when it ends; or in a scope that ends with another unit, or after " +
    "a time. Mend it: loginctl enable-linger <user> gives the user a manager, and the next start a scope in it that " +
    "outlives the service; or KillMode=process in the [Service] section of that unit.",
  "ends-with-job":
    "It is in the cgroup of a batch job: Slurm and PBS end all that is in it with the job, and an ssh session " +
    "into a node is put into the job as well (pam_slurm_adopt). holdfast does not leave it: its limits are meant. " +
    "Mend it: start it where no job of yours runs, as on a login node; or ask for a longer job.",
  "ends-with-container":
    "It is in a container that a user runs without root (podman, rootless docker). From inside nothing ends it at " +
    "a logout; but the container itself is in the session or the user manager of that user, and ends with it, 10 s " +
    "after the last logout. Mend it: outside, as that user: loginctl enable-linger.",
  "ends-with-wsl":
    "WSL stops a distribution some 15 s after its last window is closed, whatever runs in it. Mend it: in " +
    "%UserProfile%\\.wslconfig, instanceIdleTimeout=-1 in [general] and vmIdleTimeout=-1 in [wsl2], then wsl.exe " +
    "--shutdown.",
  "home-is-locked":
    "The home is systemd-homed's, which locks it at the last logout. What runs then may find its files gone, and " +
    "lingering cannot unlock a home: so it is not advised, and --enable-linger refuses. Mend it: stay logged in, " +
    "or use a user with an ordinary home.",
  "work-left-behind":
    "A daemon had died, and another one has taken up its processes; but these are still where the first one was, " +
    "and end sooner than the daemon does. It tries to move them into a scope of their own, which needs " +
    "/run/user/UID/bus (dbus-user-session). Mend it: --serve once more, which tries it again; or keep that session " +
    "open until they have ended.",
  "ipc-removed":
    "The daemon lives in a unit of the system, and outlives your logout; but logind removes shared memory " +
    "(/dev/shm) and System V semaphores of a user at his last logout (RemoveIPC=yes, the default), also those " +
    "that processes of the daemon use, PostgreSQL's for example. Mend it: loginctl enable-linger <user>; or " +
    "RemoveIPC=no in logind.conf.",
  "lingering-unreliable":
    "systemd 255 to 256.2 may stop the user manager of a lingering user at the last logout. Mend it: update " +
    "systemd. A bridge starts the daemon again.",
};

/** The page of a warning, for a screen of 80 columns; undefined where there is none of that name. */
export function pageOf(name: string): string | undefined {
  if (!Object.hasOwn(pages, name)) return undefined;
  return `${name}\n\n${pages[name]!.replace(/(.{1,78})(?: |$)/g, "  $1\n")}`;
}
