/** What the processes of the soak say: numbered lines, so that each byte has its place, and a gap or a double shows. */

import type { Line } from "./line.ts";
import { Wrong } from "./line.ts";

/** A line is eight digits and a newline. */
const lineBytes = 9;
const firstNumber = 10_000_000;
export const lineCount = 2_400_000; // 20.6 MiB: more than the daemon holds of one process
/** At most, raw, in one stream message. */
const messageBytes = 32 << 10;

/** All the lines that there are. What a process says is a part of them. */
const table = Buffer.alloc(lineCount * lineBytes, "\n");
for (let index = 0, at = 0; index < lineCount; index++, at += lineBytes) {
  for (let digit = 7, number = firstNumber + index; digit >= 0; digit--, number = Math.floor(number / 10))
    table[at + digit] = 48 + (number % 10);
}

/** @returns What `seq` is given to say the lines from one index to another. */
export function seqOf(from: number, to: number): string {
  return `seq ${firstNumber + from} ${firstNumber + to - 1}`;
}

export function linesOf(from: number, to: number): Buffer {
  return table.subarray(from * lineBytes, to * lineBytes);
}

export interface Exit {
  exitCode: number;
  signal?: string;
  killedBy?: string;
}

/** What a client has seen of one process, over any number of connections. */
export interface Track {
  readonly id: string;
  readonly pid: number;
  lastSeq: number;
  /** Of stdout, in order; bytes in gaps count. */
  seenBytes: number;
  stderr: string;
  exit: Exit | undefined;
  /** Gaps that a reattach has named, in messages. */
  gaps: number;
  /** "backpressure", or the connection that has taken it. */
  detachedBy: string | undefined;
  /** Takes its messages from a connection, from now on. */
  follow(line: Line): void;
  /** Reattaches on a connection, and takes what comes. @returns The answer. */
  takeUp(line: Line): Promise<any>;
  /** Throws what was wrong with a message, if one was; and at the end unless all was said. */
  check(isComplete?: boolean): void;
}

/**
 * Follows a process that says lines on stdout.
 *
 * @param from Index of its first line.
 * @param to Of the line after its last.
 */
export function createTrack(id: string, pid: number, from: number, to: number): Track {
  const expected = linesOf(from, to);
  let wrong: string | undefined;
  /** Messages that were dropped before the next one. */
  let missing = 0;
  const track: Track = {
    id,
    pid,
    lastSeq: 0,
    seenBytes: 0,
    stderr: "",
    exit: undefined,
    gaps: 0,
    detachedBy: undefined,
    follow: (line) => line.onStream(id, take),
    takeUp: (line) => {
      track.follow(line);
      track.detachedBy = undefined;
      return line.request("process.reattach", { id, fromSeq: track.lastSeq }, ({ found, firstSeq, lastSeq }) => {
        if (!found) {
          wrong ??= "it is not found by the daemon that started it";
          return;
        }
        if (lastSeq < track.lastSeq) wrong ??= `lastSeq ${lastSeq} is answered after ${track.lastSeq} was sent`;
        if (firstSeq <= track.lastSeq + 1) return;
        track.gaps++;
        missing += firstSeq - track.lastSeq - 1;
        track.lastSeq = firstSeq - 1;
      });
    },
    check: (isComplete = false) => {
      if (wrong !== undefined) throw new Wrong(`process "${id}": ${wrong}`);
      if (isComplete && track.seenBytes !== expected.length)
        throw new Wrong(`process "${id}": ${track.seenBytes} bytes were seen, it said ${expected.length}`);
    },
  };
  return track;

  function take(message: any): void {
    if (message.type === "detached") {
      track.detachedBy = message.by;
      return;
    }
    if (message.seq !== track.lastSeq + 1) wrong ??= `seq ${message.seq} after ${track.lastSeq}`;
    track.lastSeq = message.seq;
    if (message.stream === "exit") {
      const { type, processId, stream, seq, ...exit } = message;
      track.exit = exit;
      return;
    }
    if (message.stream === "gap") wrong ??= `seq ${message.seq}: a gap is named, though its daemon lives`;
    const bytes = Buffer.from(message.data ?? "", "base64");
    if (message.stream === "stderr") {
      track.stderr += bytes.toString("latin1");
      return;
    }
    if (bytes.length === 0 || bytes.length > messageBytes) wrong ??= `a message has ${bytes.length} bytes`;
    if (missing > 0) findPlace(bytes);
    if (!bytes.equals(expected.subarray(track.seenBytes, track.seenBytes + bytes.length)))
      wrong ??= `seq ${message.seq}: the ${bytes.length} bytes at ${track.seenBytes} are others`;
    track.seenBytes += bytes.length;
  }

  /** After a gap the first whole line says where it goes on. Its bytes must fit into the messages that were named. */
  function findPlace(bytes: Buffer): void {
    const line = /(?:^|\n)(\d{8})\n/.exec(bytes.toString("latin1", 0, 3 * lineBytes));
    if (line === null) {
      wrong ??= "no line is found after a gap";
      return;
    }
    const place = (Number(line[1]) - firstNumber - from) * lineBytes - line.index - line[0].indexOf(line[1]!);
    if (place <= track.seenBytes || place - track.seenBytes > missing * messageBytes) {
      wrong ??= `${missing} messages are named, ${place - track.seenBytes} bytes are missing`;
    }
    track.seenBytes = place;
    missing = 0;
  }
}
