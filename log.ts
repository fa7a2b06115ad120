/** The daemon's log: a line per event, with its time; never payloads, tokens or stdin. Its errors never end the daemon. */

import { closeSync, fstatSync, lstatSync, renameSync, writeSync } from "node:fs";
import { cleanText, safely } from "./failure.ts";
import { openLog } from "./record.ts";

/** At this size the log is renamed to "<log>.1", in the place of the one before, and begun anew. */
const maxLogBytes = 4 << 20;
/** A line is cut here: a peer may choose what stands in it. */
const maxLineLength = 1000;

export type Log = (line: string) => void;

/**
 * Opens the log. It is begun anew when its name was deleted, or came to lead elsewhere.
 *
 * @throws {Failure} It cannot be opened, or is not ours (exit codes 73, 77).
 */
export function createLog(path: string): Log {
  let descriptor = openLog(path);
  return (line) => {
    const text = `${new Date().toISOString()} ${cleanText(line, maxLineLength)}\n`;
    safely(() => {
      if (isOpenAt(path, descriptor)) {
        if (fstatSync(descriptor).size <= maxLogBytes) return;
        renameSync(path, `${path}.1`);
      }
      const next = openLog(path); // where none can be, the old one is written on
      closeSync(descriptor);
      descriptor = next;
    });
    safely(() => writeSync(descriptor, text));
  };
}

function isOpenAt(path: string, descriptor: number): boolean {
  const [named, open] = [safely(() => lstatSync(path)), fstatSync(descriptor)];
  return named !== undefined && named.ino === open.ino && named.dev === open.dev;
}
