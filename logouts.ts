/** Counts the logouts that the daemon has outlived: what --serve promised, proven. */

import { watch } from "node:fs";
import { safely } from "./failure.ts";
import { readText } from "./record.ts";

/** Beyond the stop delay of the user manager, for what is to end by then to have ended. */
const marginMs = 2000;

export interface Logouts {
  /** How often our user had no session left, and the daemon lived on; undefined where there is no logind to tell. */
  outlived(): number | undefined;
  close(): void;
}

/**
 * Watches the state that logind keeps of a user in /run/systemd/users (sd_uid_get_state(3)): no polling, no process.
 *
 * @param stopDelayMs How long a user manager outlives the last session; a logout counts when it is over.
 */
export function watchLogouts(uid: number, stopDelayMs: number, directory = "/run/systemd/users"): Logouts {
  let count = 0;
  let loggedIn = isLoggedIn(directory, uid);
  let timer: NodeJS.Timeout | undefined;
  const watcher = safely(() =>
    watch(directory, { persistent: false }, (_event, name) => {
      if (name !== null && name !== String(uid)) return;
      const now = isLoggedIn(directory, uid);
      if (now === loggedIn) return;
      loggedIn = now;
      clearTimeout(timer);
      if (!now) timer = setTimeout(() => void count++, stopDelayMs + marginMs).unref();
    }).on("error", () => {}),
  ); // the directory went away: nothing more is counted
  return {
    outlived: () => watcher && count,
    close() {
      clearTimeout(timer);
      if (watcher) watcher.close();
    },
  };
}

/** No file: offline. */
function isLoggedIn(directory: string, uid: number): boolean {
  return /^STATE=(active|online)$/m.test(readText(`${directory}/${uid}`) || "");
}
