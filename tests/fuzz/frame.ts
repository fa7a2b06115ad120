/**
 * Frames: any bytes, cut anywhere, under limits that change, against a second reading; and what is encoded is read again.
 *
 * The second reading has all the bytes before it, and for each byte the limit that stood when it came.
 */

import type { FrameEvent, Framing } from "../../frame.ts";
import { createFrameDecoder, encodeFrame, maxBodyBytes, maxSkippedBytes } from "../../frame.ts";
import type { Random } from "./random.ts";
import { cutAnywhere, mutateBytes, pick } from "./random.ts";
import type { Target } from "./target.ts";
import { demand } from "./target.ts";

export const frameTarget: Target = { name: "frame", run: (useCheck) => useCheck(checkFrames) };

export function checkFrames(random: Random): void {
  const limitBytes = random(100) === 0 ? 1 + random(3000) : 1 + random(24);
  const framing = pick(random, ["native", "lines"] as const);
  const bodies = Array.from({ length: random(6) }, () => randomBody(random, limitBytes));
  const whole = Buffer.concat(bodies.map((body) => checkEncoded(random, body, framing)));
  const bytes = random(3) === 0 ? whole : mutateBytes(random, whole);
  const chunks = cutAnywhere(random, bytes);
  const changes = random(3) === 0;
  const limits = chunks.map(() =>
    changes ? pick(random, [limitBytes, limitBytes >> 1, 2 * limitBytes, 0, maxBodyBytes]) : limitBytes,
  );
  const lastLimit = limits.at(-1) ?? limitBytes;

  const decoder = createFrameDecoder({ maxBodyBytes: limitBytes });
  const events: FrameEvent[] = [];
  for (const [at, chunk] of chunks.entries()) {
    decoder.maxBodyBytes = limits[at]!;
    const given = Buffer.from(chunk);
    events.push(...decoder.push(given).map(copyEvent));
    given.fill(0xaa); // nothing of it may be kept
  }
  events.push(...decoder.end().map(copyEvent));

  const expected = bytes[0] === 0 ? rereadNative(chunks, limits, lastLimit) : rereadLines(chunks, limits, lastLimit);
  demand(
    sameEvents(events, expected),
    "The frames were read otherwise than a second time",
    bytes,
    { cuts: chunks.map(({ length }) => length), limits },
    events,
    expected,
  );
  demand(
    decoder.framing === (bytes.length === 0 ? undefined : bytes[0] === 0 ? "native" : "lines"),
    "Another framing",
    bytes,
  );
}

/** Encodes a body, as a string when it is one, and judges the bytes by the format's definition. */
function checkEncoded(random: Random, body: Buffer, framing: Framing): Buffer {
  const text = body.toString();
  const isText = random(2) === 0 && Buffer.from(text).equals(body);
  const frame = encodeFrame(isText ? text : body, framing);
  const expected =
    framing === "native"
      ? [0, 0, body.length >> 8, body.length & 255, ...body]
      : [...body.map((byte) => (byte === 0x0a ? 0x20 : byte)), 0x0a];
  demand(frame.equals(Buffer.from(expected)), "A body was encoded otherwise", body, frame);
  return frame;
}

/** Mostly about as long as the limit, or short, or empty; rich in the bytes that mean something. */
function randomBody(random: Random, limitBytes: number): Buffer {
  const length = [0, 1, random(10), limitBytes - 1, limitBytes, limitBytes + 1, limitBytes + 2, random(2 * limitBytes)][
    random(8)
  ]!;
  const body = Buffer.alloc(length);
  for (let at = 0; at < length; at++) body[at] = [0x0d, 0x00, 0x20, 0x7b, 0x0a, random(256)][random(6)]!;
  return body;
}

/**
 * The wire's rules once more, for bytes that are all there.
 *
 * A body is judged by the limit that stands when its header is there; behind another frame in the same chunk, by the one of the next chunk,
 * unless all of it is there, or no limit would do.
 */
export function rereadNative(chunks: Buffer[], limits: number[], lastLimit: number): FrameEvent[] {
  const bytes = Buffer.concat(chunks);
  const { chunkOf, limitOf, endOf } = placesIn(chunks, limits);
  const events: FrameEvent[] = [];
  let lastEventIn = -1; // the chunk that completed the event before
  for (let at = 0; at < bytes.length; ) {
    const from = at + 4;
    if (from > bytes.length) return events;
    const length = bytes.readUInt32BE(at);
    const here = chunkOf[from - 1]!;
    const isWhole = from + length <= endOf[here]!;
    const waits = lastEventIn === here && !isWhole && length <= maxBodyBytes;
    const judgedIn = waits ? chunkOf[endOf[here]!] : here;
    const isOver = length > (judgedIn === undefined ? lastLimit : limitOf[judgedIn]!);
    if (isOver) {
      lastEventIn = judgedIn ?? -1;
      const fatal = length > maxSkippedBytes;
      events.push({ oversizeBytes: length, fatal });
      if (fatal) return events;
    }
    at = from + length;
    if (at > bytes.length) return events;
    if (isOver) continue;
    events.push({ body: bytes.subarray(from, at) });
    lastEventIn = chunkOf[at - 1]!;
  }
  return events;
}

/** A line is over the limit as soon as it has two bytes more, for the last may be its "\r"; or when it ends, by what stands then. */
export function rereadLines(chunks: Buffer[], limits: number[], lastLimit: number): FrameEvent[] {
  const bytes = Buffer.concat(chunks);
  const { chunkOf, limitOf, endOf } = placesIn(chunks, limits);
  const events: FrameEvent[] = [];
  for (let at = 0; at <= bytes.length; ) {
    const newline = bytes.indexOf(0x0a, at);
    const end = newline < 0 ? bytes.length : newline;
    const body = bytes.subarray(at, end > at && bytes[end - 1] === 0x0d ? end - 1 : end);
    let isOver = body.length > (newline < 0 ? lastLimit : limitOf[chunkOf[newline]!]!);
    for (let chunk = chunkOf[at] ?? limits.length; chunk < limits.length && endOf[chunk - 1]! < end; chunk++) {
      const isEmpty = endOf[chunk] === endOf[chunk - 1];
      if (!isEmpty && Math.min(end, endOf[chunk]!) - at > limitOf[chunk]! + 1) isOver = true;
    }
    if (isOver) events.push({ oversizeBytes: end - at, fatal: false });
    else if (body.length > 0) events.push({ body });
    at = end + 1;
  }
  return events;
}

/** For each byte its chunk; for each chunk its limit and the place of its end. Before the first chunk is place 0. */
function placesIn(chunks: Buffer[], limits: number[]) {
  const chunkOf: number[] = [];
  const endOf: Record<number, number> = { [-1]: -1 };
  let at = 0;
  for (const [index, chunk] of chunks.entries()) {
    for (let i = 0; i < chunk.length; i++) chunkOf[at++] = index;
    endOf[index] = at;
  }
  return { chunkOf, endOf, limitOf: limits };
}

function copyEvent(event: FrameEvent): FrameEvent {
  return "body" in event ? { body: Buffer.from(event.body) } : event;
}

function sameEvents(events: FrameEvent[], expected: FrameEvent[]): boolean {
  return (
    events.length === expected.length &&
    events.every((event, at) => {
      const other = expected[at]!;
      if ("body" in event) return "body" in other && event.body.equals(other.body);
      return "oversizeBytes" in other && event.oversizeBytes === other.oversizeBytes && event.fatal === other.fatal;
    })
  );
}
