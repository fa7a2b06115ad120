/**
 * Whether a daemon survives, in the places that it can have: judge places, choose a launch, say so; and who ended it, when it does not. host.ts measures,
 * launch.ts carries it out.
 *
 * One function judges: judgePlace(place, facts) says whether a process in that place survives logout. Choosing is judging the places that a
 * launch can reach, before it; verifying is judging the place in /proc/<pid>/cgroup, after it. So a promise and its proof cannot differ
 * in their reasoning, only in their facts.
 */

import { watch } from "node:fs";
import { capture, cleanText, durationWords, safely } from "./failure.ts";
import type { Facts, Place, World } from "./host.ts";
import { isService, refusalOf } from "./host.ts";
import type { EndReason } from "./record.ts";
import { readText } from "./record.ts";

/** Users up to this are the system's: RemoveIPC= does not concern them. */
const maxSystemUid = 999;

/** Does it survive the logout of the user? "until": what the words say. */
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

/**
 * Judges whether a process in a place survives logout.
 *
 * The table is in docs/survival.md, "What survives where"; it was measured on systemd 247, 252, 257 and 262.
 */
export function judgePlace(place: Place, facts: Facts): Verdict {
  const verdict = judgeKind(place, facts);
  if (facts.wsl && ranking.indexOf(verdict.survives) < ranking.indexOf("until")) {
    const words = "until WSL stops this distribution, seconds after its last window is closed";
    return { ...verdict, survives: "until", words, warnings: [...verdict.warnings, warnings.endsWithWsl()] };
  }
  if (!facts.homed || verdict.survives !== "yes") return verdict;
  return {
    ...verdict,
    survives: "unknown",
    words: "unknown",
    warnings: [...verdict.warnings, warnings.homeIsLocked(facts)],
  };
}

/**
 * Judges a daemon with its work: it is as badly off as the worst of them, which is named.
 *
 * @param work Where its processes are, by their ids: a daemon that has died left them where it was, and the next one may be elsewhere.
 */
export function judgeWork(own: Place, work: [id: string, place: Place][], facts: Facts): Verdict {
  const verdict = judgePlace(own, facts);
  const isWorse = (one: Verdict, other: Verdict) => ranking.indexOf(one.survives) > ranking.indexOf(other.survives);
  const left = work
    .map(([id, place]) => ({ id, found: judgePlace(place, facts) }))
    .filter(({ found }) => isWorse(found, verdict));
  if (left.length === 0) return verdict;
  const { survives, words, where } = left.map(({ found }) => found).reduce((a, b) => (isWorse(b, a) ? b : a));
  const ids = left.map(({ id }) => id);
  return { ...verdict, survives, words, warnings: [...verdict.warnings, warnings.workLeftBehind(ids, where)] };
}

function judgeKind(place: Place, facts: Facts): Verdict {
  switch (place.kind) {
    case "none":
      return facts.rootless
        ? verdictOf(place, "unknown", "detached in a rootless container", [warnings.endsWithContainer()])
        : verdictOf(place, "yes", "detached; nothing here ends it at logout");
    case "unknown":
      return verdictOf(place, "unknown", "in a place that cannot be read", [warnings.mayEnd(facts)]);
    case "job":
      return verdictOf(
        place,
        "until",
        `in ${place.unit}`,
        [warnings.endsWithJob(place.unit)],
        `until ${place.unit} ends`,
      );
    case "unit":
      return judgeUnit(place, facts);
    case "session":
    case "elogind":
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
  const { unit } = place;
  const ipc =
    facts.removesIpc && facts.linger !== "yes" && facts.uid > maxSystemUid ? [warnings.removesIpc(facts)] : [];
  if (isKept(facts)) return verdictOf(place, "yes", isPerConnection(unit) ? `detached in ${unit}` : "detached", ipc);
  if (isPerConnection(unit)) return verdictOf(place, "no", `in ${unit}`, [warnings.endsWithConnection(facts)]);
  if (isBound(unit, facts)) return judgeScope(place, unit, facts);
  if (!isService(unit) || loginServices.test(unit))
    return verdictOf(place, "yes", `detached in ${unit}; stopping that unit ends it`, ipc);
  return judgeService(place, unit, facts);
}

/** A service ends all that is in its cgroup when it ends, by itself or by others. */
function judgeService(place: Place, unit: string, facts: Facts): Verdict {
  const found = [warnings.endsWithUnit(facts, unit)];
  return facts.killMode === undefined
    ? verdictOf(place, "unknown", `in ${unit}`, found)
    : verdictOf(place, "until", `in ${unit}`, found, `until ${unit} ends`);
}

/** A scope ends when it is empty; but it may be part of what ends before, or be given a time. */
function judgeScope(place: Place, unit: string, facts: Facts): Verdict {
  const { to, afterUs } = facts.bound!;
  const words = afterUs === undefined ? `until ${to} ends` : `until ${unit} is ${spanWords(afterUs)} old`;
  return verdictOf(place, "until", `in ${unit}`, [warnings.endsWithUnit(facts, unit)], words);
}

function isBound(unit: string, { bound }: Facts): boolean {
  return unit.endsWith(".scope") && bound?.unit === unit;
}

function isKept({ killMode }: Facts): boolean {
  return killMode === "process" || killMode === "none";
}

/** They are there from boot to shutdown, and what they have let in is not restarted with them, but where KillMode= says so. */
const loginServices = /^(sshd?|dropbear|crond?|cronie|atd)\.service$/;

/** sshd@N-local:22-peer:port.service: one per connection; "sshd.service" itself outlives them. */
function isPerConnection(unit: string): boolean {
  return /^[^@]+@.*\.service$/.test(unit) && /ssh|dropbear/.test(unit);
}

function judgeSession(place: Place & { kind: "session" | "elogind" }, facts: Facts): Verdict {
  const isOurs = place.kind === "elogind" || place.owner === facts.uid;
  const where = `detached in ${isOurs ? "the session" : `a session of ${facts.owner || `user ${place.owner}`}`}`;
  if (facts.killed === "yes") return verdictOf(place, "no", where, [warnings.endsWithSession(facts)]);
  const unsure = facts.killed === "unknown" ? [warnings.mayEnd(facts)] : [];
  if (facts.idleStopUs === undefined) return verdictOf(place, facts.killed === "no" ? "yes" : "unknown", where, unsure);
  const words = `until this session has been idle for ${spanWords(facts.idleStopUs)}`;
  return verdictOf(place, "until", where, [warnings.endsWhenIdle(facts), ...unsure], words);
}

function judgeManager(place: Place & { kind: "user-manager" }, facts: Facts): Verdict {
  const { unit } = place;
  const isOurs = place.owner === facts.uid;
  const where = isOurs
    ? `in ${unit} under your user manager`
    : `under the user manager of ${facts.owner || `user ${place.owner}`}`;
  const linger = isOurs ? facts.linger : facts.ownerLinger || "unknown";
  if (isBound(unit, facts) || (isService(unit) && !isKept(facts))) {
    const inUnit = isService(unit) ? judgeService(place, unit, facts) : judgeScope(place, unit, facts);
    const end = linger === "no" && facts.stopDelayUs !== "infinity" ? [warnings.endsAfterLogout(facts)] : [];
    return { ...inUnit, where, warnings: [...inUnit.warnings, ...end] };
  }
  if (linger === "yes" || facts.stopDelayUs === "infinity")
    return verdictOf(place, "yes", where, warnings.lingering(facts));
  if (linger === "unknown") return verdictOf(place, "unknown", where, [warnings.mayEnd(facts)]);
  const words = `until about ${stopDelayWords(facts)} after your last session ends`;
  return verdictOf(place, "until", where, [warnings.endsAfterLogout(facts)], words);
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
  // a job's processes are to stay where its limits are
  if (facts.scope === "no" || facts.place.kind === "job") return { launch: "detach", verdict: stay };
  const scope = judgePlace({ kind: "user-manager", owner: facts.uid, unit: "a scope of its own" }, facts);
  return ranking.indexOf(scope.survives) < ranking.indexOf(stay.survives)
    ? { launch: "scope", verdict: scope }
    : { launch: "detach", verdict: stay };
}

/** For logind to switch lingering on: it asks polkit, which the question may have to start. */
const lingerMs = 6000;

/**
 * Switches lingering on, when that is what it takes to survive logout; else does nothing. It is persistent, and starts the user's manager at
 * boot: so only where it was asked for. Nobody is asked for a password.
 */
export async function switchLingerOn(facts: Facts, world: World): Promise<void> {
  if (!facts.systemd || facts.linger === "yes" || chooseLaunch(facts).verdict.survives === "yes") return;
  if (facts.homed) {
    facts.lingerRefused = "your home is systemd-homed's, and lingering cannot unlock it";
    return;
  }
  // by name: without one it is asked of the session, and there may be none
  const command = ["loginctl", "--no-ask-password", "enable-linger", world.user];
  facts.lingerRefused = refusalOf(command, await world.run(command, lingerMs))?.replace(
    /^Could not enable linger: /,
    "",
  );
  if (facts.lingerRefused) return;
  facts.linger = "yes";
  facts.lingerSwitchedOn = true;
}

/** A verdict as `server.capabilities` shows it. */
export interface Lifetime {
  placement: "session-scope" | "user-manager" | "system-unit" | "batch-job" | "none" | "unknown";
  unit?: string;
  survivesLogout: Survival;
  /** Both in words, as --serve prints them. */
  where: string;
  words: string;
  warnings: Warning[];
}

const placements = {
  session: "session-scope",
  elogind: "session-scope",
  "user-manager": "user-manager",
  unit: "system-unit",
  job: "batch-job",
  none: "none",
  unknown: "unknown",
} as const;

export function describeVerdict({ survives, words, where, place, warnings: found }: Verdict): Lifetime {
  const unit = "unit" in place ? { unit: place.unit } : {};
  return { placement: placements[place.kind], ...unit, survivesLogout: survives, where, words, warnings: found };
}

// The documented warnings

/** One of the documented warnings; `name` is the heading of its page. */
export interface Warning {
  name: string;
  message: string;
  hint: string;
}

/** Each names its cause and the command that mends it. */
export const warnings = {
  endsAfterLogout: (facts: Facts): Warning => ({
    name: "ends-after-last-logout",
    message:
      `${facts.killed === "yes" ? "logind kills what stays in your sessions" : "it lives under your user manager"} (${facts.policy}) and user ` +
      `${facts.user} is not lingering: it ends about ${stopDelayWords(facts)} after your last session` +
      (facts.lingerRefused ? `; lingering could not be switched on: ${facts.lingerRefused}` : ""),
    hint: linger(facts),
  }),
  endsWithSession: (facts: Facts): Warning => ({
    name: "ends-with-session",
    message: `${killer(facts)} kills what stays in ${facts.owner ? `the session of ${facts.owner}` : "your sessions"} (${facts.policy}), ${noScope(facts)}`,
    hint: leaveSession(facts),
  }),
  endsWhenIdle: (facts: Facts): Warning => ({
    name: "ends-when-idle",
    message:
      `logind ends a session with a terminal, and all that stays in it, once it has been idle for ${spanWords(facts.idleStopUs!)} ` +
      `(StopIdleSessionSec=)${facts.scope === "no" ? `, ${noScope(facts)}` : ` and user ${facts.user} is not lingering`}`,
    hint:
      facts.scope === "no" || facts.homed
        ? "start it without a terminal, where no session is idle: ssh without -t, with the command as its argument"
        : linger(facts),
  }),
  endsWithConnection: (facts: Facts): Warning => ({
    name: "ends-with-connection",
    message: `the service of this connection kills what it started when it ends (KillMode=${facts.killMode || "control-group"}), ${noScope(facts)}`,
    hint: linger(facts),
  }),
  endsWithUnit: (facts: Facts, unit: string): Warning => ({
    name: "ends-with-unit",
    message:
      `${unit} takes along all that it has started when it ends (${whyUnitEnds(facts, unit)}), ` +
      (facts.linger === "yes" ? noScope(facts) : `and user ${facts.user} is not lingering`),
    hint: unitHint(facts, unit),
  }),
  endsWithJob: (job: string): Warning => ({
    name: "ends-with-job",
    message: `it is in the cgroup of ${job}, and is ended with it`,
    hint: "start it where no job of yours runs, as on a login node; or ask for a longer job",
  }),
  endsWithContainer: (): Warning => ({
    name: "ends-with-container",
    message:
      "this container is run without root: it ends with the session or the user manager that it is in outside, unless its user lingers there",
    hint: "outside of the container: loginctl enable-linger",
  }),
  endsWithWsl: (): Warning => ({
    name: "ends-with-wsl",
    message: "WSL stops a distribution some 15 s after its last window is closed, whatever runs in it",
    hint: "put into %UserProfile%\\.wslconfig: [general] instanceIdleTimeout=-1 and [wsl2] vmIdleTimeout=-1; then: wsl.exe --shutdown",
  }),
  homeIsLocked: (facts: Facts): Warning => ({
    name: "home-is-locked",
    message: `the home of ${facts.user} is systemd-homed's, which locks it at the last logout: what runs then may not find its files`,
    hint: "stay logged in; lingering does not unlock a home",
  }),
  workLeftBehind: (ids: string[], where: string): Warning => ({
    name: "work-left-behind",
    message:
      `${ids.length === 1 ? "a process" : `${ids.length} processes`} of an earlier daemon (${cleanText(ids.slice(0, 5).join(", "), 100)}) could not be moved ` +
      `to this one: ${where}`,
    hint: "keep that session open until they have ended",
  }),
  removesIpc: (facts: Facts): Warning => ({
    name: "ipc-removed",
    message: `logind removes shared memory and semaphores of ${facts.user} at the last logout (RemoveIPC=yes), also those of what runs here`,
    hint: linger(facts),
  }),
  mayEnd: (facts: Facts): Warning => ({
    name: "may-end-with-session",
    message:
      `whether ${killer(facts)} kills what stays in your sessions could not be found out (${facts.policy}): it may end with this session` +
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

function whyUnitEnds(facts: Facts, unit: string): string {
  if (!isBound(unit, facts)) return facts.killMode ? `KillMode=${facts.killMode}` : "its KillMode= could not be read";
  const { to, afterUs } = facts.bound!;
  return afterUs === undefined ? `it is part of ${to}` : `RuntimeMaxSec= is ${spanWords(afterUs)}`;
}

function unitHint(facts: Facts, unit: string): string {
  const other = isBound(unit, facts)
    ? `start it outside of ${unit}`
    : `KillMode=process in the [Service] section of ${unit}`;
  return facts.linger === "yes" || facts.homed ? other : `${linger(facts)}; or ${other}`;
}

function killer({ place }: Facts): string {
  return place.kind === "elogind" ? "elogind" : "logind";
}

function noScope(facts: Facts): string {
  return `and no scope could be made to leave it: ${facts.scopeProblem || "the launch was not to use one"}`;
}

function linger(facts: Facts): string {
  if (facts.homed) return leaveAlone(facts);
  return `${facts.lingerRefused ? "ask an administrator for: " : ""}loginctl enable-linger ${facts.user}`;
}

/**
 * What mends a place in a session. Lingering starts a user manager that is merely not there; not one that is masked, and one that hangs is there
 * already: then the user is to be left alone.
 */
function leaveSession(facts: Facts): string {
  if (facts.place.kind === "elogind") {
    return (
      "as an administrator: mkdir -p /etc/elogind/logind.conf.d && " +
      "printf '[Login]\\nKillUserProcesses=no\\n' > /etc/elogind/logind.conf.d/holdfast.conf && loginctl reload"
    );
  }
  if (!facts.systemd) return "start it outside of this chroot or container, where systemd can be reached";
  if (facts.lacksBus) return "as an administrator: apt-get install dbus-user-session";
  const { scope, linger: lingers, manager = "inactive" } = facts;
  return scope !== "no" || (lingers !== "yes" && manager === "inactive") ? linger(facts) : leaveAlone(facts);
}

/** root is named too: it is exempt only while the list is empty. */
function leaveAlone({ owner, user }: Facts): string {
  return (
    "as an administrator: mkdir -p /etc/systemd/logind.conf.d && " +
    `printf '[Login]\\nKillExcludeUsers=root ${owner || user}\\n' > /etc/systemd/logind.conf.d/holdfast.conf && systemctl kill -s HUP systemd-logind`
  );
}

/** Of a finite one: with an infinite one nothing ends. */
export function stopDelayWords(facts: Facts): string {
  return spanWords(Number(facts.stopDelayUs));
}

/** Of microseconds: "10 s", "15 min". */
export function spanWords(us: number): string {
  return durationWords(us / 1000);
}

// What has just ended it

/** Systemd's tools are given so long at the end: the daemon is to be gone within 2 s. */
const endProbeMs = 700;

/** What a daemon writes into its record as it ends. */
export interface End {
  reason: EndReason;
  detail: string;
}

/**
 * Tells who ended the daemon, from the signals that came together and from what systemd says at that time.
 *
 * logind and both managers send SIGCONT after SIGTERM, and SIGHUP to a session; but timeout(1) sends SIGCONT, too. So the unit must be stopping, or
 * what is above it.
 */
export async function judgeEnd(seen: ReadonlySet<string>, place: Place, facts: Facts, world: World): Promise<End> {
  const signals = [...seen].sort().join(", ");
  const end = (reason: EndReason, who: string): End => ({ reason, detail: `${signals}: ${who}` });
  const byPerson = end("terminated", "by a person or a program");
  if (!seen.has("SIGCONT")) return byPerson;
  const states = await askStates(place, facts, world);
  if (states.host === "stopping") return end("host-shutdown", "by systemd, as the host shuts down");
  switch (place.kind) {
    case "session":
    case "elogind":
      return seen.has("SIGHUP") ? end(...judgeSessionEnd(facts)) : byPerson;
    case "user-manager":
      if (isManagerStopping(states, place.owner, world)) return end(...judgeManagerEnd(facts, world));
      return isStopping(states.unit) ? end(...judgeUnitEnd(place.unit, states)) : byPerson;
    case "unit":
      return isStopping(states.unit) ? end(...judgeUnitEnd(place.unit, states)) : byPerson;
    default:
      return byPerson;
  }
}

interface States {
  /** What `systemctl is-system-running` says: "stopping". */
  host: string | undefined;
  /** ActiveState= of our user manager, and of the unit that we are in. */
  manager?: string | undefined;
  unit?: string | undefined;
  /** It is we whom the unit runs: in the foreground, for a supervisor. */
  isMain: boolean;
}

async function askStates(place: Place, facts: Facts, world: World): Promise<States> {
  const say = async (...command: string[]): Promise<string> => (await world.run(command, endProbeMs)).stdout.trim();
  const show = ["show", "--property=ActiveState", "--property=MainPID"];
  const user = place.kind === "user-manager" ? ["--user"] : [];
  const [host, unit, manager] = await Promise.all([
    facts.systemd ? say("systemctl", "is-system-running") : undefined,
    "unit" in place && facts.systemd ? say("systemctl", ...user, ...show, place.unit) : undefined,
    place.kind === "user-manager" ? say("systemctl", ...show, `user@${place.owner}.service`) : undefined,
  ]);
  const [ofManager, ofUnit] = [manager, unit].map((said) => capture(/^ActiveState=(.*)$/m, said));
  return { host, manager: ofManager, unit: ofUnit, isMain: capture(/^MainPID=(\d+)$/m, unit) === String(process.pid) };
}

/** A service whose command has ended is "deactivating" while what is left of it is ended; one that has failed is so at once. */
function isStopping(state: string | undefined): boolean {
  return state === "deactivating" || state === "inactive" || state === "failed";
}

/** A busy host's systemctl may not answer in time. Then what logind keeps in a file tells of the last logout. */
function isManagerStopping({ manager }: States, uid: number, world: World): boolean {
  return manager === undefined ? readUserState(uid, world).state === "closing" : isStopping(manager);
}

function judgeSessionEnd(facts: Facts): [EndReason, string] {
  if (facts.killed === "no" && facts.idleStopUs !== undefined)
    return ["idle-stop", `by systemd-logind, as its session had been idle for ${spanWords(facts.idleStopUs)}`];
  if (facts.killed === "no")
    return [
      "unit-stopped",
      "by systemd-logind, as its session was ended (terminate-session, or a restart of systemd-logind)",
    ];
  return ["killed-at-logout", "by systemd, as its session ended"];
}

/** A scope of our own, or a service that is nothing but us, is stopped by who means us. */
function judgeUnitEnd(unit: string, { isMain }: States): [EndReason, string] {
  return isMain || unit.endsWith(".scope")
    ? ["terminated", `by systemd, as ${unit} was stopped`]
    : ["unit-stopped", `by systemd, as ${unit} ended`];
}

/** It goes by itself when nobody is logged in, and nobody lingers: else somebody has stopped it. */
function judgeManagerEnd(facts: Facts, world: World): [EndReason, string] {
  const lingers = world.exists(`/var/lib/systemd/linger/${facts.owner || facts.user}`);
  const { state, sessions } = readUserState("owner" in facts.place ? facts.place.owner : facts.uid, world);
  return lingers || state === "active" || state === "online" || (state !== "closing" && sessions.length > 0)
    ? ["user-manager-ended", "by systemd, as somebody stopped the user manager"]
    : ["user-manager-stopped", "by systemd, as the user manager stopped after the last logout"];
}

/** How often the kernel has killed for want of memory, since it was booted (proc(5), /proc/vmstat); undefined where it does not tell. */
export function readOomKills(read: (path: string) => string | undefined = readText): number | undefined {
  const count = capture(/^oom_kill (\d+)$/m, read("/proc/vmstat"));
  return count === undefined ? undefined : Number(count);
}

// The state that logind keeps

/** Who is logged in, as logind's file of a user says. */
export interface UserState {
  /** "active", "online", "lingering", "closing"; undefined where there is no such file. */
  state: string | undefined;
  sessions: string[];
}

/** Reads /run/systemd/users/<uid> (sd_uid_get_state(3)). */
export function readUserState(uid: number, world: Pick<World, "readFile">): UserState {
  const text = world.readFile(`/run/systemd/users/${uid}`);
  const sessions = capture(/^SESSIONS=(.*)$/m, text) || "";
  return { state: capture(/^STATE=(.*)$/m, text), sessions: sessions.split(" ").filter((id) => id !== "") };
}

/** Beyond the stop delay of the user manager, for what is to end by then to have ended. */
const marginMs = 2000;

/** Counts the logouts that the daemon has outlived: what --serve promised, proven. */
export interface Logouts {
  /** How often our user had no session left, and the daemon lived on; undefined where there is no logind to tell. */
  outlived(): number | undefined;
  close(): void;
}

/**
 * Watches the state that logind keeps of a user in /run/systemd/users: no polling, no process.
 *
 * @param stopDelayMs How long a user manager outlives the last session; a logout counts when it is over.
 */
export function watchLogouts(uid: number, stopDelayMs: number, directory = "/run/systemd/users"): Logouts {
  let count = 0;
  let loggedIn = isLoggedIn(directory, uid);
  let timer: NodeJS.Timeout | undefined;
  const countOne = (): void => {
    count++;
  };
  const watcher = safely(() =>
    watch(directory, { persistent: false }, (_event, name) => {
      if (name !== null && name !== String(uid)) return;
      const now = isLoggedIn(directory, uid);
      if (now === loggedIn) return;
      loggedIn = now;
      clearTimeout(timer);
      if (!now) timer = setTimeout(countOne, stopDelayMs + marginMs).unref();
    }).on("error", () => {}),
  ); // the directory went away: nothing more is counted
  return {
    outlived: () => watcher && count,
    close() {
      clearTimeout(timer);
      watcher?.close();
    },
  };
}

/** No file: offline. */
function isLoggedIn(directory: string, uid: number): boolean {
  return /^STATE=(active|online)$/m.test(readText(`${directory}/${uid}`) || "");
}
