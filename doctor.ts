/** What is wrong and what mends it: from the record, the kernel and the probes to a reason and words. */

import type { ConnectOutcome } from "./client.ts";
import { errnoOf, errorCodes, exitCodes, Failure, reasonOf } from "./failure.ts";
import { identify, livenessOf, lookAt, readRecord } from "./socket.ts";
import type { DaemonRecord, Places } from "./socket.ts";

/** Why there is no daemon to talk to. The words of the wire: `data.reason` of error -32010. */
export type Reason =
  | "never-started" | "stopped" | "rebooted" | "killed-at-logout" | "user-manager-stopped" | "other-host" | "not-answering" | "crashed" | "permission";

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
export function explainAbsence(places: Places, outcome?: Exclude<ConnectOutcome, { socket: unknown }>): Explanation {
  const serve = `${programWords()} --serve --socket '${places.socket}'`;
  const found = readRecord(places.record);
  const record = found !== undefined && "record" in found ? found.record : undefined;
  const explain = (reason: Reason, message: string, hint: string, healable = false): Explanation => ({
    reason, message, hint, healable, ...(record === undefined ? {} : { record }),
  });
  const errno = outcome !== undefined && "error" in outcome ? errnoOf(outcome.error) : undefined;
  if (errno === "EACCES" || errno === "EPERM") return explain("permission", `the socket "${places.socket}" may not be used: ${reasonOf(outcome && "error" in outcome ? outcome.error : "")}${ownerWords(places)}`, `choose your own with --socket`);
  if (found !== undefined && "problem" in found) {
    return explain(found.exit === exitCodes.noPermission ? "permission" : "not-answering", found.problem, `choose another place with --socket, or remove "${places.record}"`);
  }
  if (record === undefined) {
    return explain("never-started", `no daemon has been started at "${places.socket}": there is no record of one`, serve);
  }
  const daemon = `the daemon (pid ${record.pid}, started ${timeWords(record.startedAt)})`;
  if (record.host !== identify().host) {
    return explain("other-host", `${daemon} was started on host "${record.host}", this is "${identify().host}"`, `ssh ${record.host} …, or choose another place with --socket`);
  }
  const life = livenessOf(record);
  const { ended, stoppingAt } = record;
  if (life.state === "alive" && (stoppingAt !== undefined || ended?.reason === "stopped")) {
    return explain("stopped", `${daemon} was told to stop${stoppingAt === undefined ? "" : `, and ends ${timeWords(stoppingAt).replace(/ \(.*/, "")}`}`, serve);
  }
  if (ended !== undefined && life.state !== "alive") {
    const at = timeWords(ended.at);
    switch (ended.reason) {
      case "stopped":
      case "replaced":
        return explain("stopped", `${daemon} was stopped on purpose ${at}`, serve);
      case "terminated":
        return explain("stopped", `${daemon} was ended ${at} by ${ended.detail}`, serve);
      case "killed-at-logout":
        return explain("killed-at-logout", `${daemon} was ended by systemd-logind ${at}, as the session ended that it was started in`, `${serve} --enable-linger`, true);
      case "user-manager-stopped":
        return explain("user-manager-stopped", `${daemon} was ended ${at}, as systemd stopped the user manager after the last logout`, `${serve} --enable-linger`, true);
      case "crashed":
        return explain("crashed", `${daemon} ended ${at} by an error of its own: ${ended.detail}`, `less '${record.log}'`, true);
    }
  }
  if (life.state === "dead") {
    const rebooted = record.bootId !== identify().bootId;
    return rebooted ? explain("rebooted", `${daemon} is gone: the host has been booted again since`, serve, true)
      : explain("crashed", `${daemon} is gone without a word: killed by SIGKILL, or for want of memory (${life.why})`, `less '${record.log}'`, true);
  }
  if (life.state === "unknown" && errno === "ECONNREFUSED") {
    return explain("crashed", `${daemon} does not listen any more (${life.why})`, serve, true);
  }
  return explain("not-answering", `${daemon} is not answering${life.state === "unknown" ? `, and ${life.why}` : ""}: it is not known to be dead, and was left alone`, `${programWords()} --stop --socket '${places.socket}'`);
}

function ownerWords(places: Places): string {
  try {
    const there = lookAt(places.socket);
    return there.kind === "socket" ? `; it belongs to user ${there.uid}` : "";
  } catch {
    return "";
  }
}

/** The explanation as an error: -32010 to a client, exit code 69 to a shell. */
export function absenceFailure({ reason, message, hint }: Explanation): Failure {
  return new Failure(`Cannot reach a daemon: ${message}`, { code: errorCodes.noDaemon, exit: reason === "permission" ? exitCodes.noPermission : exitCodes.unavailable, hint, data: { reason } });
}

/** How this program was called, as it can be pasted. */
function programWords(): string {
  return `node '${process.argv[1] ?? "holdfast.js"}'`;
}

/** "at 14:03:22 (2 h ago)"; with the date when it was another day. */
export function timeWords(at: number): string {
  const time = new Date(at);
  const day = time.toDateString() === new Date().toDateString() ? "" : `${time.toISOString().slice(0, 10)} `;
  return `at ${day}${time.toTimeString().slice(0, 8)} (${durationWords(Date.now() - at)} ago)`;
}

export function durationWords(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1000));
  return seconds < 120 ? `${seconds} s` : seconds < 7200 ? `${Math.round(seconds / 60)} min` : seconds < 172_800 ? `${Math.round(seconds / 3600)} h`
    : `${Math.round(seconds / 86_400)} days`;
}

export async function printDoctor(_places: Places, _json: boolean, say: (text: string) => number): Promise<number> { return say(""); }
