/** Why there is no daemon to talk to: from the record, the kernel and what the daemon could still note, to a reason and words. */

import type { ConnectFailure } from "./client.ts";
import { cannot, elsewhere, errnoOf, errorCodes, exitCodes, type Failure, reasonOf, safely } from "./failure.ts";
import { programPath } from "./program.ts";
import type { DaemonRecord, Liveness } from "./record.ts";
import { identify, livenessOf, readRecord } from "./record.ts";
import type { Places } from "./socket.ts";
import { lookAt } from "./socket.ts";

/** Why there is no daemon to talk to. The words of the wire: `data.reason` of error -32010. */
export type Reason =
  | "never-started"
  | "stopped"
  | "rebooted"
  | "killed-at-logout"
  | "user-manager-stopped"
  | "other-host"
  | "not-answering"
  | "crashed"
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

function explainElsewhere({ record, daemon }: Case): Finding | undefined {
  const { host } = identify();
  if (record.host === host) return undefined;
  const message = `${daemon} was started on host "${record.host}", this is "${host}"`;
  return explain("other-host", message, `ssh ${record.host} …, or ${elsewhere}`);
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
  const how = `killed by SIGKILL, or for want of memory (${life.why}); its log is "${record.log}"`;
  return explain("crashed", `${daemon} is gone without a word: ${how}`, serve, true);
}

function explainNoted(
  { record, daemon, serve }: Case,
  { reason, at, detail }: NonNullable<DaemonRecord["ended"]>,
): Finding {
  const when = timeWords(at);
  switch (reason) {
    case "killed-at-logout": {
      const message = `${daemon} was ended by systemd-logind ${when}, as the session ended that it was started in`;
      return explain(reason, message, `${serve} --enable-linger`, true);
    }
    case "user-manager-stopped": {
      const message = `${daemon} was ended ${when}, as systemd stopped the user manager after the last logout`;
      return explain(reason, message, `${serve} --enable-linger`, true);
    }
    case "crashed": {
      const message = `${daemon} ended ${when} by an error of its own: ${detail}; its log is "${record.log}"`;
      return explain(reason, message, serve, true);
    }
    default: {
      const how = reason === "terminated" ? `ended ${when} by ${detail}` : `stopped on purpose ${when}`;
      return explain("stopped", `${daemon} was ${how}`, serve);
    }
  }
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

export function durationWords(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1000));
  return seconds < 120
    ? `${seconds} s`
    : seconds < 7200
      ? `${Math.round(seconds / 60)} min`
      : seconds < 172_800
        ? `${Math.round(seconds / 3600)} h`
        : `${Math.round(seconds / 86_400)} days`;
}
