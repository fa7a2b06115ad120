/** The daemon's log: a line per event, with its time; never payloads, tokens or stdin. Its errors never end the daemon. */

import { closeSync, fstatSync, renameSync, writeSync } from "node:fs";
import { openLog, safely } from "./socket.ts";

/** At this size the log is renamed to "<log>.1", in the place of the one before, and begun anew. */
const maxLogBytes = 4 << 20;
/** A line is cut here: a peer may choose what stands in it. */
const maxLineLength = 1000;

export type Log = (line: string) => void;

/**
 * Opens the log.
 *
 * @throws {Failure} It cannot be opened, or is not ours (exit codes 73, 77).
 */
export function createLog(path: string): Log {
  let descriptor = openLog(path);
  let bytes = fstatSync(descriptor).size;
  return (line) => {
    const text = `${new Date().toISOString()} ${cleanText(line, maxLineLength)}\n`;
    safely(() => {
      if (bytes > maxLogBytes) {
        renameSync(path, `${path}.1`);
        const next = openLog(path);
        closeSync(descriptor);
        descriptor = next;
        bytes = 0;
      }
      bytes += writeSync(descriptor, text);
    });
  };
}

/** Makes text from elsewhere harmless on a terminal and in a log: control characters shown as \\xNN, cut to a length. */
export function cleanText(text: string, maxLength: number): string {
  const cut = text.length > maxLength ? `${text.slice(0, maxLength)}…` : text;
  // C0, DEL, C1, and the characters that turn the direction of writing
  return cut.replace(/[\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]/g, (found) => `\\x${found.charCodeAt(0).toString(16).padStart(2, "0")}`);
}
