/** Why there is no daemon to talk to: from the record, the kernel and what the daemon could still note, to a reason and words. */

import type { ConnectFailure } from "./client.ts";
import {
  cannot,
  durationWords,
  elsewhere,
  errnoOf,
  errorCodes,
  exitCodes,
  type Failure,
  reasonOf,
  safely,
} from "./failure.ts";
import { readOomKills } from "./lifetime.ts";
import { programPath } from "./program.ts";
import type { DaemonRecord, EndReason, Liveness } from "./record.ts";
import { identify, isOtherHost, livenessOf, readRecord } from "./record.ts";
import type { Places } from "./socket.ts";
import { lookAt } from "./socket.ts";

/** A daemon that has died comes back by itself at most so often within so long: watchdog.ts. */
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

/** It lives, and was told to end. */
function explainStop({ record: { ended, stoppingAt }, life, daemon, serve }: Case): Finding | undefined {
  if (life.state !== "alive" || !(stoppingAt || ended?.reason === "stopped")) return undefined;
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
  const kills = oomKillsSince(record);
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

/** Since the daemon noted it last, which it does every 30 s. */
function oomKillsSince({ oomKills }: DaemonRecord): number {
  return oomKills === undefined ? 0 : (readOomKills() ?? 0) - oomKills;
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
  "user-manager-ended": {
    was: (when) => `was ended ${when}, as somebody stopped the user manager, not by a logout`,
  },
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

/** "at 14:03:22 (2 h ago)". */
export function timeWords(at: number): string {
  return `${clockWords(at)} (${durationWords(Date.now() - at)} ago)`;
}

/** "at 14:03:22"; with the date when it is another day. */
export function clockWords(at: number): string {
  const time = new Date(at);
  const day = time.toDateString() === new Date().toDateString() ? "" : `${time.toISOString().slice(0, 10)} `;
  return `at ${day}${time.toTimeString().slice(0, 8)}`;
}

export function sizeWords(bytes: number): string {
  return bytes < 10_000
    ? `${bytes} B`
    : bytes < 1e7
      ? `${Math.round(bytes / 1e3)} kB`
      : bytes < 1e10
        ? `${Math.round(bytes / 1e6)} MB`
        : `${Math.round(bytes / 1e9)} GB`;
}
