/**
 * Bytes to messages and back, both framings.
 *
 *     native   length (4 bytes, big-endian)  body         first byte 0x00: a body has at most 2^24 - 1 bytes
 *     lines    body "\n"  or  body "\r\n"                 any other first byte; blank lines are ignored
 *
 * A connection's first byte decides for the whole connection. A body is UTF-8 JSON: rpc.ts finds out whether it really is.
 * What a body over the limit is answered with, and closing the connection, are left to connections.ts and bridge.ts.
 */

import { cannot } from "./failure.ts";

/** 2^24 - 1: so the first byte of a native frame is 0x00, which no JSON text begins with. */
export const maxBodyBytes = 16_777_215;
/** The limit until a connection has shown a good token: ample for a first request, and 64 strangers hold 64 MiB at most. */
export const strangerBodyBytes = 1024 * 1024;
/** A body over the limit is read past up to here, so that an honest mistake does not cost the connection. */
export const maxSkippedBytes = 64 * 1024 * 1024;

/** As much of a body's beginning, and of its end, is kept for those who follow frames: the longest id has 256 characters, each of up to 6 bytes. */
export const edgeBytes = 2048;

const headerBytes = 4;
/** The first allocation for a body that a chunk's end cuts; it doubles from there. */
const firstStoreBytes = 1024;
/** From here on a store is of the kind that can be given back: its memory is new each time, which takes longer than to copy. */
const largeStoreBytes = 2 * 1024 * 1024;
const newline = 0x0a;
const carriageReturn = 0x0d;
const space = 0x20;
const nothing = Buffer.alloc(0);

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
  /** Memory that the body under way takes. */
  readonly heldBytes: number;
  /**
   * Takes the next bytes. After a fatal event they are ignored.
   *
   * @param chunk Any number of bytes, cut anywhere. Bodies that lie within it are views of it: do not write to it again.
   * @param maxEvents What stops it before the end of the chunk: see takenBytes.
   * @returns What became known with this chunk, oldest first; often nothing.
   */
  push(chunk: Uint8Array, maxEvents?: number): FrameEvent[];
  /** How many bytes of the last chunk were taken: all, unless there were as many events as there may be. */
  readonly takenBytes: number;
  /** Says, once, that no more bytes come. A last line without its newline counts as a line. */
  end(): FrameEvent[];
  /** Gives up the body under way, for its memory: what comes of it is read past, and no event tells of it. */
  giveUp(): void;
}

/**
 * Encodes one body as a frame, in one allocation, or none.
 *
 * @param body JSON. In lines framing its newlines become spaces: in JSON they can only be white space.
 * @param ascii What else the body has, at its end: base64 need not be looked at.
 * @param into Where the frame is made, if it fits.
 * @throws {Failure} The body is over maxBodyBytes, in either framing.
 */
export function encodeFrame(
  body: string | Uint8Array,
  framing: Framing,
  ascii: string[] = [],
  into: Buffer = nothing,
): Buffer {
  let bodyBytes = typeof body === "string" ? Buffer.byteLength(body) : body.length;
  const asciiAt = bodyBytes;
  for (const text of ascii) bodyBytes += text.length;
  if (bodyBytes > maxBodyBytes) {
    throw cannot(`encode frame: its body has ${bodyBytes} bytes, at most ${maxBodyBytes} are accepted`);
  }
  const start = framing === "native" ? headerBytes : 0;
  const frameBytes = framing === "native" ? headerBytes + bodyBytes : bodyBytes + 1;
  const frame = frameBytes <= into.length ? into.subarray(0, frameBytes) : Buffer.allocUnsafe(frameBytes);
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
  const decoding: Decoding = {
    framing: undefined,
    maxBodyBytes: options.maxBodyBytes ?? maxBodyBytes,
    headerRead: 0,
    bodyBytes: 0,
    bodyRead: 0,
    isJudged: false,
    isSkipping: false,
    isGivenUp: false,
    isLost: false,
    store: nothing,
    storedBytes: 0,
    takenBytes: 0,
  };
  return {
    get framing() {
      return decoding.framing;
    },
    get maxBodyBytes() {
      return decoding.maxBodyBytes;
    },
    set maxBodyBytes(bytes) {
      decoding.maxBodyBytes = bytes;
    },
    get heldBytes() {
      return decoding.store.length;
    },
    get takenBytes() {
      return decoding.takenBytes;
    },
    push: (chunk, maxEvents = Infinity) => pushChunk(decoding, chunk, maxEvents),
    end: () => endChunks(decoding),
    giveUp: () => giveUp(decoding),
  };
}

/** What a decoder knows of the body under way. */
interface Decoding {
  framing: Framing | undefined;
  maxBodyBytes: number;
  /** Bytes of the header that are in bodyBytes, and the length that it says; native only. */
  headerRead: number;
  bodyBytes: number;
  /** Bytes of the body or line that have come. */
  bodyRead: number;
  /** The length was compared with the limit; native only. */
  isJudged: boolean;
  /** It is over the limit, or given up: read past. */
  isSkipping: boolean;
  isGivenUp: boolean;
  /** Nothing can be decoded any more. */
  isLost: boolean;
  /** What has come of a body that a chunk's end has cut: the first storedBytes of this. */
  store: Buffer;
  storedBytes: number;
  /** Of the last chunk. */
  takenBytes: number;
}

function pushChunk(decoding: Decoding, chunk: Uint8Array, maxEvents: number): FrameEvent[] {
  const events: FrameEvent[] = [];
  if (chunk.length > 0) decoding.framing ??= chunk[0] === 0 ? "native" : "lines";
  const bytes = Buffer.isBuffer(chunk) ? chunk : Buffer.from(chunk.buffer, chunk.byteOffset, chunk.length);
  const push = decoding.framing === "native" ? pushNative : pushLines;
  decoding.takenBytes = push(decoding, bytes, events, maxEvents);
  return events;
}

function endChunks(decoding: Decoding): FrameEvent[] {
  const events: FrameEvent[] = [];
  if (decoding.isLost) return events;
  if (decoding.framing !== "native") endLine(decoding, nothing, events);
  else if (decoding.headerRead === headerBytes && !decoding.isJudged) judgeBody(decoding, events);
  return events;
}

function giveUp(decoding: Decoding): void {
  decoding.isSkipping = decoding.isGivenUp = decoding.isJudged = true;
  forget(decoding);
}

/** @returns How many bytes it has taken. */
function pushNative(decoding: Decoding, chunk: Buffer, events: FrameEvent[], maxEvents: number): number {
  let at = 0;
  while (at < chunk.length && events.length < maxEvents && !decoding.isLost) {
    if (decoding.headerRead < headerBytes) {
      decoding.bodyBytes = decoding.bodyBytes * 256 + chunk[at++]!;
      if (++decoding.headerRead < headerBytes) continue;
    }
    const piece = chunk.subarray(at, at + decoding.bodyBytes - decoding.bodyRead);
    at += piece.length;
    decoding.bodyRead += piece.length;
    takeNative(decoding, piece, events);
  }
  return decoding.isLost ? chunk.length : at;
}

/** Takes the next piece of a body. The header is here. */
function takeNative(decoding: Decoding, piece: Buffer, events: FrameEvent[]): void {
  const { bodyBytes } = decoding;
  const isWhole = decoding.bodyRead === bodyBytes;
  // Judged as soon as the header is here; but if other frames came in the same chunk, only with the next one: a token
  // may lie in them, and the caller raises the limit when it sees it. Otherwise where the kernel happens to cut the
  // bytes would decide whether a large second request is accepted.
  if (!decoding.isJudged && (events.length === 0 || isWhole || bodyBytes > maxBodyBytes)) judgeBody(decoding, events);
  if (!isWhole) {
    if (!decoding.isSkipping) keep(decoding, piece, bodyBytes);
    return;
  }
  if (!decoding.isSkipping) events.push({ body: take(decoding, piece) });
  decoding.headerRead = decoding.bodyBytes = decoding.bodyRead = 0;
  decoding.isJudged = decoding.isSkipping = decoding.isGivenUp = false;
}

function judgeBody(decoding: Decoding, events: FrameEvent[]): void {
  const { bodyBytes } = decoding;
  decoding.isJudged = true;
  decoding.isSkipping = bodyBytes > decoding.maxBodyBytes;
  if (!decoding.isSkipping) return;
  forget(decoding);
  decoding.isLost = bodyBytes > maxSkippedBytes;
  events.push({ oversizeBytes: bodyBytes, fatal: decoding.isLost });
}

/** @returns How many bytes it has taken. */
function pushLines(decoding: Decoding, chunk: Buffer, events: FrameEvent[], maxEvents: number): number {
  let at = 0;
  while (at < chunk.length && events.length < maxEvents && !decoding.isLost) {
    const found = chunk.indexOf(newline, at);
    const piece = chunk.subarray(at, found < 0 ? chunk.length : found);
    at += piece.length + 1;
    decoding.bodyRead += piece.length;
    decoding.isSkipping ||= decoding.bodyRead > decoding.maxBodyBytes + 1; // one more: the last may be the "\r"
    decoding.isLost = decoding.bodyRead > maxSkippedBytes;
    if (decoding.isSkipping) forget(decoding);
    if (decoding.isLost) events.push({ oversizeBytes: decoding.bodyRead, fatal: true });
    else if (found >= 0) endLine(decoding, piece, events);
    else if (!decoding.isSkipping) keep(decoding, piece, decoding.maxBodyBytes + 1);
  }
  return decoding.isLost ? chunk.length : Math.min(at, chunk.length);
}

function endLine(decoding: Decoding, piece: Buffer, events: FrameEvent[]): void {
  const line = take(decoding, piece);
  const body = line[line.length - 1] === carriageReturn ? line.subarray(0, -1) : line;
  const isOver = decoding.isSkipping || body.length > decoding.maxBodyBytes;
  if (isOver && !decoding.isGivenUp) events.push({ oversizeBytes: decoding.bodyRead, fatal: false });
  else if (!isOver && body.length > 0) events.push({ body });
  decoding.bodyRead = 0;
  decoding.isSkipping = decoding.isGivenUp = false;
}

// The beginning of one body, until the rest comes. It is copied, so that a body fed a byte at a time does not hold one chunk for each byte,
// and the store doubles, so that the copying stays linear. A large store is of the kind that grows where it is and is given back at once: as garbage
// it would stay for as long as an idle daemon collects none. Node 18 does not have that kind.

type Store = Pick<Decoding, "store" | "storedBytes">;

function keep(decoding: Store, piece: Buffer, mostBytes: number): void {
  const wanted = decoding.storedBytes + piece.length;
  if (wanted > decoding.store.length) growStore(decoding, Math.min(Math.max(2 * wanted, firstStoreBytes), mostBytes));
  piece.copy(decoding.store, decoding.storedBytes);
  decoding.storedBytes = wanted;
}

function growStore(decoding: Store, bytes: number): void {
  const { store, storedBytes } = decoding;
  const memory = memoryOf(store);
  if (memory) {
    memory.resize(bytes);
    decoding.store = Buffer.from(memory);
    return;
  }
  decoding.store = bytes < largeStoreBytes ? Buffer.allocUnsafe(bytes) : createLargeStore(bytes);
  store.copy(decoding.store, 0, 0, storedBytes);
}

/** ES2024; `lib` is of what Node 18 has. */
type Resizable = ArrayBuffer & { resizable?: boolean; resize(bytes: number): void };
const ResizableBuffer = ArrayBuffer as new (bytes: number, options: { maxByteLength: number }) => ArrayBuffer;

function createLargeStore(bytes: number): Buffer {
  return Buffer.from(new ResizableBuffer(bytes, { maxByteLength: maxBodyBytes + 1 }));
}

/** That of a large store; undefined for any other. */
function memoryOf(store: Buffer): Resizable | undefined {
  const memory = store.buffer as Resizable;
  return memory.resizable === true ? memory : undefined;
}

function forget(decoding: Store): void {
  const { store } = decoding;
  decoding.store = nothing;
  decoding.storedBytes = 0;
  memoryOf(store)?.resize(0);
}

/** Returns what was kept and `piece` after it, and begins anew. When nothing was kept that is the piece itself. */
function take(decoding: Store, piece: Buffer): Buffer {
  if (decoding.storedBytes === 0) return piece;
  const { store, storedBytes } = decoding;
  const isFull = storedBytes + piece.length === store.length && !memoryOf(store);
  const body = isFull ? store : Buffer.allocUnsafe(storedBytes + piece.length);
  if (!isFull) store.copy(body, 0, 0, storedBytes);
  piece.copy(body, storedBytes);
  forget(decoding);
  return body;
}

/** Follows native frames passing by: where each ends, and what its body begins and ends with. */
export interface Follower {
  header: number;
  headerRead: number;
  left: number;
  /** Of a body that a chunk's end has cut. */
  store: Buffer;
  storedBytes: number;
  /** Whether all of it is kept; undefined until its beginning is there. */
  keepsAll: boolean | undefined;
  isEnough(beginning: Buffer): boolean;
}

/** @param isEnough Tells of a body's beginning whether that, and its end, is all that is asked for. */
export function createFollower(isEnough: Follower["isEnough"] = () => true): Follower {
  return { header: 0, headerRead: 0, left: 0, store: nothing, storedBytes: 0, keepsAll: undefined, isEnough };
}

/** @param onBody Called at each body's end, with all of it; or, where its beginning is enough, with that and its end at least. */
export function follow(follower: Follower, chunk: Buffer, onBody: (body: Buffer) => void): void {
  for (let at = 0; at < chunk.length; ) {
    if (follower.headerRead < headerBytes) {
      follower.header = follower.header * 256 + chunk[at++]!;
      if (++follower.headerRead < headerBytes) continue;
      follower.left = follower.header;
    }
    const piece = chunk.subarray(at, at + follower.left);
    at += piece.length;
    follower.left -= piece.length;
    if (follower.left > 0) {
      keepPart(follower, piece);
      continue;
    }
    const body = take(follower, piece);
    if (body.length > 0) onBody(body);
    follower.header = follower.headerRead = 0;
    follower.keepsAll = undefined;
  }
}

function keepPart(follower: Follower, piece: Buffer): void {
  if (follower.header > maxBodyBytes) follower.keepsAll = false; // nobody reads that
  const isCut = follower.keepsAll === false;
  keep(follower, isCut ? edgesOf(piece) : piece, follower.header);
  const kept = follower.store.subarray(0, follower.storedBytes);
  if (follower.keepsAll === undefined && kept.length >= edgeBytes)
    follower.keepsAll = !follower.isEnough(kept.subarray(0, edgeBytes));
  if (follower.keepsAll !== false || kept.length <= 2 * edgeBytes) return;
  const edges = edgesOf(kept);
  forget(follower);
  keep(follower, edges, follower.header);
}

function edgesOf(bytes: Buffer): Buffer {
  if (bytes.length <= 2 * edgeBytes) return bytes;
  return Buffer.concat([bytes.subarray(0, edgeBytes), bytes.subarray(-edgeBytes)]);
}

export function isBetweenFrames({ headerRead }: Follower): boolean {
  return headerRead === 0;
}

/** What a dead daemon was sent: the requests that it may have read, and the bytes from the first one on that it cannot have read to its end. */
export function partOf(held: Buffer[], error: string | undefined): { read: Buffer[]; unread: Buffer } {
  const bytes = Buffer.concat(held);
  const certain = error === "EPIPE" ? (held.at(-1) || bytes).length : error === "ECONNRESET" ? 1 : 0;
  const read: Buffer[] = [];
  let at = 0;
  for (let end: number; at + 4 <= bytes.length; at = end) {
    end = at + 4 + bytes.readUInt32BE(at);
    if (end > bytes.length - certain) break;
    read.push(bytes.subarray(at + 4, end));
  }
  return { read, unread: bytes.subarray(at) };
}
