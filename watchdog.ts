/**
 * Brings a daemon back that has died and was not meant to, though nobody connects.
 *
 *     daemon ═══ a pipe that nobody else writes ═══▶ sh, in `read`
 *
 * The word `up` comes when the daemon has a name: until then whoever starts it sees its death, and a --revive tries again. The word `over` is a meant
 * end. The pipe's end without it is a death: then the sh becomes `--serve --revive`, which heals as a bridge does: what
 * provably died, and was not stopped. At most 3 times in a minute, and only with the very file that the daemon was started from: another one is a
 * person's to start. A daemon in the foreground has a supervisor, and none of this; nor has one that is pid 1, with which all ends.
 */

import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { closeSync, existsSync, readFileSync } from "node:fs";
import type { Socket } from "node:net";
import type { StartOptions } from "./control.ts";
import { reachOtherwise } from "./control.ts";
import { cannot, reasonOf, safely } from "./failure.ts";
import { answerMs, deathMs, explainAbsence, isGoneWithin, maxReturns, returnsMs, tryReach } from "./reach.ts";
import { createLog, openLog, readRecord, sleep } from "./record.ts";
import type { Places } from "./socket.ts";

const shell = "/bin/sh";
/** From a start that has failed to the next. */
const againMs = 100;
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

/**
 * Starts a daemon again that has died, unless it was stopped, or somebody was quicker; and again when that one dies before it has a name. What there is
 * to say goes to its log.
 */
export async function revive(places: Places, healing: Omit<StartOptions, "tokenHashes">): Promise<void> {
  for (let known: number[] = []; ; await sleep(againMs)) {
    const { record } = readRecord(places.record);
    if (!record || !(await isGoneWithin(record, deathMs))) return;
    const say = safely(() => createLog(record.log)) || (() => {});
    const returns = recent([...(record.returns ?? []), ...known]);
    if (returns.length >= maxReturns) {
      return say(
        `[Watchdog] The daemon is dead again, after ${returns.length} returns within ${returnsMs / 1000} s: now --serve or --bridge is to start it`,
      );
    }
    const outcome = await tryReach(places, answerMs);
    if ("socket" in outcome) return void outcome.socket.destroy();
    known = [...returns, Date.now()];
    const progress = (line: string) => say(`[Watchdog] ${line}`);
    const reached = await reachOtherwise(places, outcome, { ...healing, progress, returns: known });
    if ("destroy" in reached) return void reached.destroy();
    progress(reached.message);
    if (!explainAbsence(places, outcome).healable) return;
  }
}

/** Each once: the record has what is known, when the one that was started got so far. */
function recent(returns: number[]): number[] {
  return [...new Set(returns)].filter((at) => Math.abs(Date.now() - at) < returnsMs);
}
