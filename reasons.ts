/** Why there is no daemon to talk to: from the record, the kernel and what the daemon could still note, to a reason and words. */

import type { ConnectFailure } from "./client.ts";
import { cannot, elsewhere, errnoOf, errorCodes, exitCodes, Failure, reasonOf, safely } from "./failure.ts";
import { identify, livenessOf, readRecord } from "./record.ts";
import type { DaemonRecord } from "./record.ts";
import { lookAt } from "./socket.ts";
import type { Places } from "./socket.ts";

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
  const explain = (reason: Reason, message: string, hint: string, healable = false): Explanation => ({
    reason,
    message,
    hint,
    healable,
    record,
  });
  const { error } = Object(outcome) as { error?: NodeJS.ErrnoException };
  const errno = errnoOf(error);
  if (errno === "EACCES" || errno === "EPERM") {
    return explain(
      "permission",
      `the socket "${places.socket}" may not be used: ${reasonOf(error)}${ownerWords(places)}`,
      `choose your own with --socket`,
    );
  }
  if (problem) {
    return explain(
      problem.exit === exitCodes.noPermission ? "permission" : "not-answering",
      problem.message,
      `${elsewhere}, or remove "${places.record}"`,
    );
  }
  if (!record) {
    return explain(
      "never-started",
      `no daemon has been started at "${places.socket}": there is no record of one`,
      serve,
    );
  }
  const daemon = `the daemon (pid ${record.pid}, started ${timeWords(record.startedAt)})`;
  if (record.host !== identify().host) {
    return explain(
      "other-host",
      `${daemon} was started on host "${record.host}", this is "${identify().host}"`,
      `ssh ${record.host} …, or ${elsewhere}`,
    );
  }
  const life = livenessOf(record);
  const { ended, stoppingAt } = record;
  if (life.state === "alive" && (stoppingAt || (ended && ended.reason === "stopped"))) {
    return explain(
      "stopped",
      `${daemon} was told to stop${stoppingAt ? `, and ends ${clockWords(stoppingAt)}` : ""}`,
      serve,
    );
  }
  if (ended && life.state !== "alive") {
    const { reason, detail } = ended;
    const at = timeWords(ended.at);
    switch (reason) {
      case "killed-at-logout":
        return explain(
          reason,
          `${daemon} was ended by systemd-logind ${at}, as the session ended that it was started in`,
          `${serve} --enable-linger`,
          true,
        );
      case "user-manager-stopped":
        return explain(
          reason,
          `${daemon} was ended ${at}, as systemd stopped the user manager after the last logout`,
          `${serve} --enable-linger`,
          true,
        );
      case "crashed":
        return explain(
          reason,
          `${daemon} ended ${at} by an error of its own: ${detail}; its log is "${record.log}"`,
          serve,
          true,
        );
      default:
        return explain(
          "stopped",
          `${daemon} was ${reason === "terminated" ? `ended ${at} by ${detail}` : `stopped on purpose ${at}`}`,
          serve,
        );
    }
  }
  if (life.state === "dead") {
    const rebooted = record.bootId !== identify().bootId;
    return rebooted
      ? explain("rebooted", `${daemon} is gone: the host has been booted again since`, serve, true)
      : explain(
          "crashed",
          `${daemon} is gone without a word: killed by SIGKILL, or for want of memory (${life.why}); its log is "${record.log}"`,
          serve,
          true,
        );
  }
  if (life.state === "unknown" && errno === "ECONNREFUSED") {
    return explain("crashed", `${daemon} does not listen any more (${life.why})`, serve, true);
  }
  return explain(
    "not-answering",
    `${daemon} is not answering${life.state === "unknown" ? `, and ${life.why}` : ""}: it is not known to be dead, and was left alone`,
    `${programWords()} --stop --socket '${places.socket}'`,
  );
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
  return `node '${process.argv[1] || "holdfast.js"}'`;
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
