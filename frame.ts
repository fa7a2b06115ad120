/**
 * Bytes to messages and back, both framings.
 *
 *     native   length (4 bytes, big-endian)  body         first byte 0x00: a body has at most 2^24 - 1 bytes
 *     lines    body "\n"  or  body "\r\n"                 any other first byte; blank lines are ignored
 *
 * A connection's first byte decides for the whole connection. A body is UTF-8 JSON: rpc.ts finds out whether it really is.
 * What a body over the limit is answered with, and closing the connection, are left to server.ts and bridge.ts.
 */

import { Buffer } from "node:buffer";
import { cannot } from "./failure.ts";

/** 2^24 - 1: so the first byte of a native frame is 0x00, which no JSON text begins with. */
export const maxBodyBytes = 16_777_215;
/** The limit until a connection has shown a good token: ample for a first request, and 64 strangers hold 64 MiB at most. */
export const strangerBodyBytes = 1024 * 1024;
/** A body over the limit is read past up to here, so that an honest mistake does not cost the connection. */
export const maxSkippedBytes = 64 * 1024 * 1024;

const headerBytes = 4;
/** The first allocation for a body that a chunk's end cuts; it doubles from there. */
const firstStoreBytes = 1024;
const newline = 0x0a;
const carriageReturn = 0x0d;
const space = 0x20;

export type Framing = "native" | "lines";

export type FrameEvent =
  /** One whole body; a native one may have 0 bytes. */
  | { body: Buffer }
  /**
   * A body over the limit, reported once. When `fatal` it is over maxSkippedBytes too and not read past: the decoder takes
   * nothing more. The size is the header's, or what was read of the line, a "\r" counted.
   */
  | { oversizeBytes: number; fatal: boolean };

export interface FrameDecoder {
  /** What the first byte decided; undefined until it came. */
  readonly framing: Framing | undefined;
  /** The limit. May be set at any time, also between two chunks of one body. */
  maxBodyBytes: number;
  /**
   * Takes the next bytes. After a fatal event they are ignored.
   *
   * @param chunk Any number of bytes, cut anywhere. Bodies that lie within it are views of it: do not write to it again.
   * @returns What became known with this chunk, oldest first; often nothing.
   */
  push(chunk: Uint8Array): FrameEvent[];
  /** Says, once, that no more bytes come. A last line without its newline counts as a line. */
  end(): FrameEvent[];
}

/**
 * Encodes one body as a frame, in one allocation.
 *
 * @param body JSON. In lines framing its newlines become spaces: in JSON they can only be white space.
 * @param ascii What else the body has, at its end: base64 need not be looked at.
 * @throws {Failure} The body is over maxBodyBytes, in either framing.
 */
export function encodeFrame(body: string | Uint8Array, framing: Framing, ...ascii: string[]): Buffer {
  let bodyBytes = typeof body === "string" ? Buffer.byteLength(body) : body.length;
  const asciiAt = bodyBytes;
  for (const text of ascii) bodyBytes += text.length;
  if (bodyBytes > maxBodyBytes) {
    throw cannot(`encode frame: its body has ${bodyBytes} bytes, at most ${maxBodyBytes} are accepted`);
  }
  const start = framing === "native" ? headerBytes : 0;
  const frame = Buffer.allocUnsafe(framing === "native" ? headerBytes + bodyBytes : bodyBytes + 1);
  if (typeof body === "string") frame.write(body, start);
  else frame.set(body, start);
  for (let i = 0, at = start + asciiAt; i < ascii.length; i++) at += frame.write(ascii[i]!, at, "latin1");
  if (framing === "native") {
    frame.writeUInt32BE(bodyBytes);
  } else {
    frame[bodyBytes] = newline;
    for (let at = frame.indexOf(newline); at < bodyBytes; at = frame.indexOf(newline, at)) frame[at] = space;
  }
  return frame;
}

/** Encodes one body that is in pieces already, without newlines and not over the limit, as a frame in pieces. */
export function framePieces(pieces: Buffer[], framing: Framing): Buffer[] {
  if (framing === "lines") return [...pieces, Buffer.from("\n")];
  const header = Buffer.alloc(headerBytes);
  header.writeUInt32BE(lengthOf(pieces));
  return [header, ...pieces];
}

export function lengthOf(pieces: Buffer[]): number {
  return pieces.reduce((sum, { length }) => sum + length, 0);
}

/**
 * Decodes the frames of one connection.
 *
 * Time is linear in the bytes, however they are cut. A header's word for the length allocates nothing: memory is at most
 * twice what has arrived of the one body under way.
 */
export function createFrameDecoder(options: { maxBodyBytes?: number } = {}): FrameDecoder {
  const store = createStore();
  let framing: Framing | undefined;
  let headerRead = 0; // bytes of it that are in bodyBytes; native only
  let bodyBytes = 0; // as the header says; native only
  let bodyRead = 0; // of the body or line under way
  let judged = false; // against the limit; native only
  let skipping = false;
  let lost = false;

  function pushNative(chunk: Buffer, events: FrameEvent[]): void {
    for (let at = 0; at < chunk.length && !lost; ) {
      if (headerRead < headerBytes) {
        bodyBytes = bodyBytes * 256 + chunk[at++]!;
        if (++headerRead < headerBytes) continue;
      }
      const piece = chunk.subarray(at, at + bodyBytes - bodyRead);
      at += piece.length;
      bodyRead += piece.length;
      // Judged as soon as the header is here; but if other frames came in the same chunk, only with the next one: a token
      // may lie in them, and the caller raises the limit when it sees it. Otherwise where the kernel happens to cut the
      // bytes would decide whether a large second request is accepted.
      if (!judged && (events.length === 0 || bodyRead === bodyBytes || bodyBytes > maxBodyBytes)) judgeNative(events);
      if (bodyRead < bodyBytes) {
        if (!skipping) store.keep(piece, bodyBytes);
        continue;
      }
      if (!skipping) events.push({ body: store.take(piece) });
      headerRead = bodyBytes = bodyRead = 0;
      judged = skipping = false;
    }
  }

  function judgeNative(events: FrameEvent[]): void {
    judged = true;
    skipping = bodyBytes > decoder.maxBodyBytes;
    if (!skipping) return;
    store.forget();
    lost = bodyBytes > maxSkippedBytes;
    events.push({ oversizeBytes: bodyBytes, fatal: lost });
  }

  function pushLines(chunk: Buffer, events: FrameEvent[]): void {
    for (let at = 0; at < chunk.length && !lost; ) {
      const found = chunk.indexOf(newline, at);
      const piece = chunk.subarray(at, found < 0 ? chunk.length : found);
      at += piece.length + 1;
      bodyRead += piece.length;
      skipping ||= bodyRead > decoder.maxBodyBytes + 1; // one more: the last may be the "\r"
      lost = bodyRead > maxSkippedBytes;
      if (skipping) store.forget();
      if (lost) events.push({ oversizeBytes: bodyRead, fatal: true });
      else if (found >= 0) endLine(piece, events);
      else if (!skipping) store.keep(piece, decoder.maxBodyBytes + 1);
    }
  }

  function endLine(piece: Buffer, events: FrameEvent[]): void {
    const line = store.take(piece);
    const body = line[line.length - 1] === carriageReturn ? line.subarray(0, -1) : line;
    if (skipping || body.length > decoder.maxBodyBytes) events.push({ oversizeBytes: bodyRead, fatal: false });
    else if (body.length > 0) events.push({ body });
    bodyRead = 0;
    skipping = false;
  }

  const decoder: FrameDecoder = {
    maxBodyBytes: options.maxBodyBytes ?? maxBodyBytes,
    get framing() {
      return framing;
    },
    push(chunk) {
      const events: FrameEvent[] = [];
      if (chunk.length > 0) framing ??= chunk[0] === 0 ? "native" : "lines";
      const bytes = Buffer.isBuffer(chunk) ? chunk : Buffer.from(chunk.buffer, chunk.byteOffset, chunk.length);
      if (framing === "native") pushNative(bytes, events);
      else pushLines(bytes, events);
      return events;
    },
    end() {
      const events: FrameEvent[] = [];
      if (lost) return events;
      if (framing !== "native") endLine(Buffer.alloc(0), events);
      else if (headerRead === headerBytes && !judged) judgeNative(events);
      return events;
    },
  };
  return decoder;
}

/**
 * Holds the beginning of one body until the rest comes.
 *
 * It copies, so that a body fed a byte at a time does not hold one chunk for each byte, and doubles, so that the copying
 * stays linear.
 */
function createStore() {
  const none = Buffer.alloc(0);
  let bytes: Buffer = none;
  let length = 0;

  function keep(piece: Buffer, mostBytes: number): void {
    const wanted = length + piece.length;
    if (wanted > bytes.length) {
      const grown = Buffer.allocUnsafe(Math.min(Math.max(2 * wanted, firstStoreBytes), mostBytes));
      bytes.copy(grown, 0, 0, length);
      bytes = grown;
    }
    piece.copy(bytes, length);
    length = wanted;
  }

  function forget(): void {
    bytes = none;
    length = 0;
  }

  /** Returns what was kept and `piece` after it, and begins anew. When nothing was kept that is the piece itself. */
  function take(piece: Buffer): Buffer {
    if (length === 0) return piece;
    keep(piece, length + piece.length);
    const body = bytes.subarray(0, length);
    forget();
    return body;
  }

  return { keep, forget, take };
}
