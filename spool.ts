/**
 * What is held of each child's output: a capped ring of segments, in files that outlive the daemon, or in memory where there are none.
 *
 *     <socket name>.held/<random>/0, 1, 2, …    segments, oldest first; when all are taken, the oldest is renamed to the newest and overwritten
 *
 *     ┌────────────┬───────────┬─────────┬──────┬─────────┐
 *     │ length u32 │ stream u8 │ seq u48 │ data │ seq u32 │    a record: written by one writev(2), before anybody is sent it
 *     └────────────┴───────────┴─────────┴──────┴─────────┘
 *
 * A segment ends where a record is not whole, or its seq is not the next: what follows is torn, or of the ring's last round. Files are reused
 * since to allocate pages and to free them costs a quarter of the throughput (measured on ext4 and tmpfs). Nothing is synced: what a
 * dying daemon has written is the kernel's, and of a dying host what is whole is taken.
 */

import {
  closeSync,
  constants,
  fstatSync,
  mkdirSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  statfsSync,
  unlinkSync,
  writevSync,
} from "node:fs";
import { join } from "node:path";
import { cannot, reasonOf, safely } from "./failure.ts";
import { kindOf, namesIn, now, randomName } from "./record.ts";
import { makeDirectories } from "./socket.ts";

/** Raw bytes in one message. */
export const messageBytes = 32 << 10;
/** What a record costs beside its data. */
const headBytes = 4 + 1 + 6;
const recordBytes = headBytes + 4;
/** Of a segment: so much, less where the ring is smaller. A write fits into any: larger chunks are cut. */
const maxSegmentBytes = 4 << 20;
const minSegmentBytes = 128 << 10;
const maxWriteBytes = 64 << 10;
/** A record is found from a list of every so many bytes, by reading on from there. */
const indexBytes = 64 << 10;
/** Read at once for a reader that is behind. */
const blockBytes = 256 << 10;
/** What is free is asked for at most so often. */
const freeMs = 5000;

const streams = [undefined, "stdout", "stderr", "gap", "exit"] as const;
export type Stream = NonNullable<(typeof streams)[number]>;

/** One message: output as it came; of a gap and an exit the members of their messages, as JSON. */
export interface Message {
  seq: number;
  stream: Stream;
  data: Buffer;
}

/** What all spools of a daemon share. */
export interface Room {
  /** A directory for one directory of each child; undefined: nothing is written. */
  readonly path: string | undefined;
  /** Held of one child on disk, and of one that is in memory. */
  readonly spoolBytes: number;
  readonly memoryBytes: number;
  /** Of all together on disk, where a tenth of what is free may be less; and in memory. */
  readonly allDiskBytes: number;
  readonly allMemoryBytes: number;
  readonly spools: Set<Spool>;
  /** What all of them have. */
  usedDiskBytes: number;
  usedMemoryBytes: number;
  /** What they may have on disk, and since when that is known: now(). */
  diskLimit: number;
  askedAt: number;
  log(line: string): void;
}

type Sizes = "path" | "spoolBytes" | "memoryBytes" | "allDiskBytes" | "allMemoryBytes";
export type RoomOptions = { [name in Sizes]?: Room[name] | undefined };

interface Segment {
  /** The name of its file. */
  readonly number: number;
  /** In place of a file. */
  memory: Buffer | undefined;
  readonly firstSeq: number;
  /** Of records in it; and of the file, which may have more, of the round before. */
  bytes: number;
  size: number;
  /** Where some of its records begin: the first of every indexBytes. */
  readonly index: { seq: number; at: number }[];
}

export interface Spool {
  readonly room: Room;
  /** Whose it is, for the log. */
  readonly name: string;
  /** The child's own directory; undefined where there is none. */
  readonly directory: string | undefined;
  /** Oldest first. What is written goes into the last. */
  segments: Segment[];
  /** Of the oldest message held, and of the newest there was: when nothing is held, firstSeq is lastSeq + 1. */
  firstSeq: number;
  lastSeq: number;
  /** Open on the last segment's file. */
  descriptor: number | undefined;
  /** Nothing is written to disk, or not any more: it is full, or broken. */
  isInMemory: boolean;
  /** Of its readers. */
  readonly places: Set<Place>;
  /** When its child ended: now(). Where room is needed, the output of these goes first. */
  endedAt: number | undefined;
  /** The exit message: it is not dropped. */
  exit: Message | undefined;
}

/** How far one reader is. */
export interface Place {
  /** The next that it has not read. */
  seq: number;
  /** It is waited for: what it has not read is not overwritten. */
  holds: boolean;
  /** Where that begins, once it is known. */
  segment: Segment | undefined;
  at: number;
}

export function createRoom(log: (line: string) => void, options: RoomOptions = {}): Room {
  const { path, spoolBytes = 64 << 20, memoryBytes = 16 << 20 } = options;
  const { allDiskBytes = 1 << 30, allMemoryBytes = 256 << 20 } = options;
  return {
    ...{ path, spoolBytes, memoryBytes, allDiskBytes, allMemoryBytes },
    spools: new Set(),
    usedDiskBytes: 0,
    usedMemoryBytes: 0,
    diskLimit: Infinity,
    askedAt: -Infinity,
    log,
  };
}

/**
 * Makes the spool of a new child.
 *
 * @param made The child's own directory, where there is one. Else one is made, 0700; where that cannot be, the spool is in memory.
 */
export function createSpool(room: Room, name: string, made?: string): Spool {
  const { path } = room;
  if (made !== undefined) return enterRoom(room, name, made);
  if (path === undefined) return enterRoom(room, name, undefined);
  try {
    makeDirectories(path);
    const directory = join(path, randomName(12));
    mkdirSync(directory, { mode: 0o700 });
    return enterRoom(room, name, directory);
  } catch (error) {
    room.log(`[Process] Nothing of "${name}" is kept on disk: ${reasonOf(error)}`);
    return enterRoom(room, name, undefined);
  }
}

/**
 * Takes up the spool that another daemon has left. Only its newest segment is read: writing goes on at its torn end.
 *
 * @throws {Failure} A segment is not a file of ours.
 */
export function loadSpool(room: Room, name: string, directory: string): Spool {
  const numbers = namesIn(directory).filter((file) => /^(0|[1-9]\d{0,14})$/.test(file));
  const segments = numbers
    .map(Number)
    .sort((a, b) => a - b)
    .map((number) => loadSegment(directory, number))
    .filter((segment) => segment !== undefined);
  // the newest may be one that was renamed, and not yet written to
  while (segments.length > 1 && segments.at(-1)!.firstSeq <= segments.at(-2)!.firstSeq) segments.pop();
  const spool = enterRoom(room, name, directory);
  spool.segments = segments;
  for (const number of numbers.map(Number))
    if (!segments.some((segment) => segment.number === number)) removeFile(spool, number);
  for (const { size } of segments) room.usedDiskBytes += size;
  spool.firstSeq = segments[0]?.firstSeq ?? 1;
  const last = segments.at(-1);
  spool.lastSeq = last ? scanSegment(spool, last) : 0;
  if (last?.bytes === 0) dropSegment(spool, last);
  return spool;
}

/** Messages up to a seq were in an earlier daemon's memory: what is held ends before them, and goes. */
export function skipTo(spool: Spool, seq: number): void {
  if (seq <= spool.lastSeq) return;
  for (const segment of [...spool.segments]) dropSegment(spool, segment);
  spool.lastSeq = seq;
  spool.firstSeq = seq + 1;
}

/** @param directory Of its own; undefined for one in memory. */
export function enterRoom(room: Room, name: string, directory: string | undefined): Spool {
  const spool: Spool = {
    room,
    name,
    directory,
    segments: [],
    firstSeq: 1,
    lastSeq: 0,
    descriptor: undefined,
    isInMemory: directory === undefined || room.spoolBytes === 0,
    places: new Set(),
    endedAt: undefined,
    exit: undefined,
  };
  room.spools.add(spool);
  return spool;
}

/**
 * Holds what a child has said, cut into messages.
 *
 * @param data Of a gap or an exit: as it is, in one message.
 * @returns What it has become, oldest first: views of `data`. It is on disk then, or in memory.
 */
export function appendOutput(spool: Spool, stream: Stream, data: Buffer): Message[] {
  const messages: Message[] = [];
  for (let at = 0; at < data.length; at += maxWriteBytes) {
    const piece = data.subarray(at, at + maxWriteBytes);
    const batch: Message[] = [];
    for (let from = 0; from < piece.length; from += messageBytes)
      batch.push({ seq: spool.lastSeq + 1 + batch.length, stream, data: piece.subarray(from, from + messageBytes) });
    writeMessages(spool, batch);
    messages.push(...batch);
  }
  if (stream === "exit") spool.exit = messages[0];
  makeRoom(spool.room);
  return messages;
}

/** How much a spool holds, with what it costs. */
export function heldBytes(spool: Spool): number {
  return spool.segments.reduce((sum, { bytes }) => sum + bytes, 0);
}

/**
 * Reads on from a place, and moves it.
 *
 * @returns Some of the next messages; none when there are none. What is found damaged is dropped: firstSeq is beyond the place then.
 */
export function readMessages(spool: Spool, place: Place): Message[] {
  while (place.seq >= spool.firstSeq && place.seq <= spool.lastSeq) {
    const segment = spool.segments.filter(({ firstSeq }) => firstSeq <= place.seq).at(-1)!;
    let { seq, at } = place.segment === segment ? place : findRecord(segment, place.seq);
    for (;;) {
      const { messages, bytes } = decodeRecords(
        safely(() => readBlock(spool, segment, at)),
        seq,
      );
      if (messages.length === 0) break;
      at += bytes;
      seq += messages.length;
      if (seq <= place.seq) continue;
      const wanted = messages.filter((message) => message.seq >= place.seq);
      Object.assign(place, { seq, segment, at });
      return wanted;
    }
    spool.room.log(`[Process] Output of "${spool.name}" cannot be read from message ${seq} on: it is dropped`);
    dropSegment(spool, segment);
  }
  return [];
}

/** Whether the exit message is held: it may have said its seq, and a grandchild may have said more since. */
export function findExit(spool: Spool, seq = 0): boolean {
  if (spool.exit) return true;
  const [message] = readMessages(spool, { seq, holds: false, segment: undefined, at: 0 });
  if (message?.stream !== "exit") return false;
  spool.exit = message;
  return true;
}

/** Makes a place before the message of a seq. */
export function placeAt(spool: Spool, seq: number, holds: boolean): Place {
  const place = { seq, holds, segment: undefined, at: 0 };
  spool.places.add(place);
  return place;
}

/** Drops all that is held of an ended child but its exit. */
export function dropOutput(spool: Spool): void {
  for (const segment of [...spool.segments]) dropSegment(spool, segment);
  const { exit } = spool;
  if (exit?.seq !== spool.lastSeq) return;
  spool.lastSeq--;
  spool.firstSeq = exit.seq;
  writeMessages(spool, [exit]);
}

/** Its child has ended, and says nothing more: its file need not be open. */
export function restSpool(spool: Spool): void {
  if (spool.descriptor !== undefined) closeSync(spool.descriptor);
  spool.descriptor = undefined;
}

/** Forgets all that a child has said. */
export function emptySpool(spool: Spool): void {
  for (const segment of [...spool.segments]) dropSegment(spool, segment);
  spool.room.spools.delete(spool);
}

/** Leaves no trace of a child. */
export function removeSpool(spool: Spool): void {
  emptySpool(spool);
  if (spool.directory !== undefined) safely(() => rmSync(spool.directory!, { recursive: true, force: true }));
}

// Records

function encodeRecord({ seq, stream, data }: Message): Buffer[] {
  const head = Buffer.allocUnsafe(headBytes);
  head.writeUInt32BE(data.length, 0);
  head[4] = streams.indexOf(stream);
  head.writeUIntBE(seq, 5, 6);
  const tail = Buffer.allocUnsafe(4);
  tail.writeUInt32BE(seq % 2 ** 32, 0);
  return [head, data, tail];
}

/** @returns The whole records at the beginning of a block, of which the first has a seq and the others follow it. */
function decodeRecords(block: Buffer | undefined, firstSeq: number): { messages: Message[]; bytes: number } {
  const messages: Message[] = [];
  let at = 0;
  if (!block) return { messages, bytes: at };
  while (block.length - at >= recordBytes) {
    const seq = firstSeq + messages.length;
    const length = block.readUInt32BE(at);
    const stream = streams[block[at + 4]!];
    const end = at + headBytes + length;
    if (length > messageBytes || !stream || block.readUIntBE(at + 5, 6) !== seq || end + 4 > block.length) break;
    if (block.readUInt32BE(end) !== seq % 2 ** 32) break;
    messages.push({ seq, stream, data: block.subarray(at + headBytes, end) });
    at = end + 4;
  }
  return { messages, bytes: at };
}

// Segments: to write

function writeMessages(spool: Spool, messages: Message[]): void {
  const records = messages.flatMap(encodeRecord);
  const length = records.reduce((sum, { length: bytes }) => sum + bytes, 0);
  const seq = messages[0]!.seq;
  try {
    if (!spool.isInMemory) writeToFile(spool, records, length, seq);
  } catch (error) {
    useMemory(spool, reasonOf(error));
  }
  if (spool.isInMemory) writeToMemory(spool, records, length, seq);
  spool.lastSeq = messages.at(-1)!.seq;
}

function useMemory(spool: Spool, why: string): void {
  spool.isInMemory = true;
  spool.room.log(`[Process] The output of "${spool.name}" is held in memory from now on: ${why}`);
}

function writeToFile(spool: Spool, records: Buffer[], length: number, seq: number): void {
  const segmentBytes = segmentBytesOf(spool.room.spoolBytes);
  let segment = spool.segments.at(-1);
  if (!segment || segment.memory || segment.bytes + length > segmentBytes) {
    const count = Math.max(2, Math.floor(spool.room.spoolBytes / segmentBytes));
    while (spool.segments.length > count && isRead(spool, spool.segments[0]!)) dropSegment(spool, spool.segments[0]!);
    segment = openSegment(spool, seq, spool.segments.length >= count);
  } else if (spool.descriptor === undefined) {
    spool.descriptor = openSync(pathOf(spool, segment.number), constants.O_RDWR | constants.O_NOFOLLOW);
  }
  const written = writevSync(spool.descriptor!, records, segment.bytes);
  if (written < length) throw cannot(`write ${length} bytes: the disk took ${written}`);
  note(segment, seq, length);
  spool.room.usedDiskBytes += Math.max(0, segment.bytes - segment.size);
  segment.size = Math.max(segment.size, segment.bytes);
}

/** Begins a new file, or the oldest anew, when its readers allow. */
function openSegment(spool: Spool, firstSeq: number, isFull: boolean): Segment {
  const number = (spool.segments.at(-1)?.number ?? -1) + 1;
  const path = pathOf(spool, number);
  const oldest = spool.segments[0];
  restSpool(spool);
  let size = 0;
  if (isFull && oldest && !oldest.memory && isRead(spool, oldest)) {
    renameSync(pathOf(spool, oldest.number), path);
    spool.descriptor = openSync(path, constants.O_RDWR | constants.O_NOFOLLOW);
    spool.segments.shift();
    size = oldest.size;
  } else {
    const flags = constants.O_RDWR | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
    spool.descriptor = openSync(path, flags, 0o600);
  }
  return enterSegment(spool, { number, memory: undefined, firstSeq, bytes: 0, size, index: [] });
}

function writeToMemory(spool: Spool, records: Buffer[], length: number, seq: number): void {
  const { room } = spool;
  const segmentBytes = segmentBytesOf(room.memoryBytes);
  const limit = room.memoryBytes - segmentBytes;
  let segment = spool.segments.at(-1);
  if (!segment?.memory || segment.bytes + length > segmentBytes) {
    // from the front, where some may yet be on disk: what is held has no holes
    while (spool.segments.length > 0 && memoryOf(spool) > limit && isRead(spool, spool.segments[0]!))
      dropSegment(spool, spool.segments[0]!);
    const number = (segment?.number ?? -1) + 1;
    segment = enterSegment(spool, { number, memory: Buffer.alloc(0), firstSeq: seq, bytes: 0, size: 0, index: [] });
  }
  growMemory(room, segment, segment.bytes + length, segmentBytes);
  let at = segment.bytes;
  for (const record of records) at += record.copy(segment.memory!, at);
  note(segment, seq, length);
}

function memoryOf({ segments }: Spool): number {
  return segments.reduce((sum, { memory, bytes }) => sum + (memory ? bytes : 0), 0);
}

/** A child that says little costs little. */
function growMemory(room: Room, segment: Segment, bytes: number, segmentBytes: number): void {
  const old = segment.memory!;
  if (bytes <= old.length) return;
  const size = Math.min(segmentBytes, Math.max(bytes, 2 * old.length, 4096));
  segment.memory = Buffer.allocUnsafeSlow(size);
  old.copy(segment.memory, 0, 0, segment.bytes);
  room.usedMemoryBytes += size - old.length;
}

function note(segment: Segment, seq: number, length: number): void {
  const last = segment.index.at(-1);
  if (!last || segment.bytes - last.at >= indexBytes) segment.index.push({ seq, at: segment.bytes });
  segment.bytes += length;
}

function enterSegment(spool: Spool, segment: Segment): Segment {
  spool.segments.push(segment);
  spool.firstSeq = spool.segments[0]!.firstSeq;
  return segment;
}

function segmentBytesOf(spoolBytes: number): number {
  return Math.min(maxSegmentBytes, Math.max(minSegmentBytes, Math.ceil(spoolBytes / 16)));
}

function pathOf(spool: Spool, number: number): string {
  return join(spool.directory!, String(number));
}

// Segments: to read

/** A record that is not behind the one of a seq, and not far before it. */
function findRecord({ firstSeq, index }: Segment, seq: number): { seq: number; at: number } {
  return index.filter((entry) => entry.seq <= seq).at(-1) || { seq: firstSeq, at: 0 };
}

function readBlock(spool: Spool, segment: Segment, at: number): Buffer {
  const length = Math.min(segment.bytes - at, blockBytes);
  if (segment.memory) return segment.memory.subarray(at, at + length);
  const isOpen = segment === spool.segments.at(-1) && spool.descriptor !== undefined;
  const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
  const descriptor = isOpen ? spool.descriptor! : openSync(pathOf(spool, segment.number), flags);
  try {
    const block = Buffer.allocUnsafe(length);
    return block.subarray(0, readSync(descriptor, block, 0, length, at));
  } finally {
    if (!isOpen) closeSync(descriptor);
  }
}

/** Only the first record of it is read: of those before the last, all there is to be known is where they begin. */
function loadSegment(directory: string, number: number): Segment | undefined {
  const path = join(directory, String(number));
  const descriptor = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  try {
    const stats = fstatSync(descriptor);
    if (!stats.isFile()) throw cannot(`read "${path}": it is ${kindOf(stats)}, a regular file is needed`);
    if (stats.uid !== process.getuid!()) throw cannot(`read "${path}": it belongs to user ${stats.uid}`);
    const head = Buffer.alloc(headBytes);
    if (readSync(descriptor, head, 0, headBytes, 0) < headBytes) return undefined;
    const firstSeq = head.readUIntBE(5, 6);
    return { number, memory: undefined, firstSeq, bytes: stats.size, size: stats.size, index: [] };
  } finally {
    closeSync(descriptor);
  }
}

/** @returns The seq of its last whole record. */
function scanSegment(spool: Spool, segment: Segment): number {
  let seq = segment.firstSeq;
  for (let at = 0; ; ) {
    const { messages, bytes } = decodeRecords(readBlock(spool, segment, at), seq);
    if (messages.length === 0) {
      segment.bytes = at;
      return seq - 1;
    }
    segment.index.push({ seq, at });
    const last = messages.at(-1)!;
    if (last.stream === "exit") spool.exit = last;
    seq = last.seq + 1;
    at += bytes;
  }
}

// Room

/** Nobody who is waited for has yet to read something in it. */
function isRead(spool: Spool, segment: Segment): boolean {
  const at = spool.segments.indexOf(segment);
  const end = spool.segments[at + 1]?.firstSeq ?? spool.lastSeq + 1;
  return ![...spool.places].some(({ holds, seq }) => holds && seq < end);
}

/** Drops one, and those before it. */
function dropSegment(spool: Spool, segment: Segment): void {
  const at = spool.segments.indexOf(segment);
  for (const { memory, size, number } of spool.segments.splice(0, at + 1)) {
    if (memory) spool.room.usedMemoryBytes -= memory.length;
    else {
      spool.room.usedDiskBytes -= size;
      removeFile(spool, number);
    }
  }
  if (spool.segments.length === 0) restSpool(spool);
  spool.firstSeq = spool.segments[0]?.firstSeq ?? spool.lastSeq + 1;
}

function removeFile(spool: Spool, number: number): void {
  safely(() => unlinkSync(pathOf(spool, number)));
}

/** First goes the output of those that have ended, the first of them first; then, of whoever has most, the oldest. */
function makeRoom(room: Room): void {
  if (room.usedMemoryBytes > room.allMemoryBytes) {
    dropUntil(room, memoryOf, () => room.usedMemoryBytes <= room.allMemoryBytes);
  }
  if (room.usedDiskBytes === 0) return;
  if (now() - room.askedAt > freeMs) {
    room.askedAt = now();
    room.diskLimit = Math.min(room.allDiskBytes, (freeBytes(room.path!) + room.usedDiskBytes) / 10);
  }
  if (room.usedDiskBytes > room.diskLimit) dropUntil(room, diskOf, () => room.usedDiskBytes <= room.diskLimit);
}

function diskOf({ segments }: Spool): number {
  return segments.reduce((sum, { memory, size }) => sum + (memory ? 0 : size), 0);
}

function freeBytes(path: string): number {
  const stats = safely(() => statfsSync(path));
  return stats ? stats.bavail * stats.bsize : Infinity;
}

function dropUntil(room: Room, used: (spool: Spool) => number, isEnough: () => boolean): void {
  const ended = [...room.spools].filter((spool) => spool.endedAt !== undefined && heldBytes(spool) > exitBytes(spool));
  for (const spool of ended.sort((a, b) => a.endedAt! - b.endedAt!)) {
    if (isEnough()) return;
    if (used(spool) > 0) dropOutput(spool);
  }
  const living = [...room.spools].filter((spool) => spool.endedAt === undefined && used(spool) > 0);
  const isOnDisk = used === diskOf;
  while (!isEnough()) {
    living.sort((a, b) => used(b) - used(a));
    const most = living.find((spool) => {
      const [oldest, next] = spool.segments;
      return oldest && isRead(spool, oldest) && (next || !isOnDisk);
    });
    if (!most) break;
    dropSegment(most, most.segments[0]!);
  }
  // of files that are all the newest of somebody nothing is dropped: they do not grow any more
  const largest = isOnDisk && !isEnough() && living.find(({ isInMemory }) => !isInMemory);
  if (largest) useMemory(largest, "there is no more room for it on the disk");
}

function exitBytes({ exit }: Spool): number {
  return exit ? exit.data.length + recordBytes : 0;
}
