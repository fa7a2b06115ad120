/**
 * Who reads the output of which child, and how far each is.
 *
 *     a child's spool ──▶ a place for each reader ──▶ sendNext() ──▶ the reader's connection
 *           ▲                                                                │
 *           └──── the child flows, or stands still ◀── fallBehind(), look(), catchUp()
 *
 * A reader is a place in the spool, so live output and replay are one thing: each message is sent to it once, in order. While a connection is
 * behind, the children that it reads stand still, and so do those who write into their pipes; but one that takes nothing for 10 s slows nobody
 * any more: it is detached once the spool drops what it has not been sent. A reader that shares slows nobody, and one that is not to lose
 * anything is waited for as long as its connection lives; or until one comes that overtakes what takes nothing for 10 s: somebody is back whose earlier
 * line fell silent. What a connection is, and how much it buffers itself, is left to the server.
 *
 * Whoever comes to a terminal later is told what its output has set: trackModes().
 */

import type { Params, Peer } from "./rpc.ts";
import { booleanParam } from "./rpc.ts";
import type { Message, Place, Spool } from "./spool.ts";
import { messageBytes, placeAt, readMessages } from "./spool.ts";

/** A connection is looked at so often until it is taken for stalled. */
const looks = 10;

/** What is read: a child. */
export interface Source {
  readonly id: string;
  readonly spool: Spool;
  readonly readers: Set<Reader>;
  /** It says nothing more. */
  readonly isDone: boolean;
  /** Whoever holds it up has changed. */
  onFlow(): void;
}

/** How a reader takes part. */
export interface Manner {
  /** Others keep their streams when it comes, and it keeps its own when others come. */
  share: boolean;
  /** The child stands still for it without limit. */
  lossless: boolean;
  /** While it reads on, the child does not stand still for those that take nothing for long. */
  overtake: boolean;
}

export interface Reader extends Manner {
  readonly source: Source;
  readonly link: Link;
  /** What it has yet to read; what it has read, and not been sent. */
  readonly place: Place;
  ahead: Message[];
}

/** A connection, as the children that it reads see it. */
export interface Link {
  readonly peer: Peer;
  readonly limits: LinkLimits;
  /** In the order in which it is their turn. */
  readonly readers: Set<Reader>;
  isClosed: boolean;
  isBehind: boolean;
  /** Behind, and has taken nothing for stallMs. */
  isStalled: boolean;
  watch: NodeJS.Timeout | undefined;
  /** As last looked at, and how often it was no less since. */
  unsentBytes: number;
  stillLooks: number;
}

export interface LinkLimits {
  /** Handed to one connection, and not yet taken by it: with more it is detached from all that it reads. */
  unsentBytes: number;
  /** A connection that takes nothing for so long is not waited for. */
  stallMs: number;
}

/** The link of a connection: made when it is asked for first, gone when it has closed. */
export function linkOf(links: Map<Peer, Link>, peer: Peer, limits: LinkLimits): Link {
  const known = links.get(peer);
  if (known) return known;
  const link: Link = {
    peer,
    limits,
    readers: new Set(),
    isClosed: false,
    isBehind: false,
    isStalled: false,
    watch: undefined,
    unsentBytes: 0,
    stillLooks: 0,
  };
  links.set(peer, link);
  peer.onDrain(() => catchUp(link));
  peer.onClose(() => {
    links.delete(peer);
    link.isClosed = true;
    clearInterval(link.watch);
    for (const reader of link.readers) detach(reader);
  });
  return link;
}

export function mannerParams(params: Params): Manner {
  const [share, lossless, overtake] = ["share", "lossless", "overtake"].map((name) =>
    booleanParam(params, name, false),
  );
  return { share: share!, lossless: lossless!, overtake: overtake! };
}

/** @param seq The first that it is sent; what is held of it is sent by serve(), or with what comes. */
export function attach(
  source: Source,
  link: Link,
  seq: number,
  { share, lossless, overtake }: Manner = { share: false, lossless: false, overtake: false },
): Reader {
  const place = placeAt(source.spool, seq, lossless || (!share && !link.isStalled));
  const reader: Reader = { source, link, share, lossless, overtake, place, ahead: [] };
  source.readers.add(reader);
  link.readers.add(reader);
  source.onFlow();
  return reader;
}

/** @param by Who has the stream now, or why it is taken, told to the reader, or by an end; it is told nothing when this is left out. */
export function detach(reader: Reader, by?: string): void {
  const { source, link, place } = reader;
  source.spool.places.delete(place);
  source.readers.delete(reader);
  link.readers.delete(reader);
  if (by && !link.peer.endLines?.()) send(link, { type: "detached", processId: source.id, by });
  source.onFlow();
}

/** Hands on what a child has just said, when it is in the spool. */
export function deliver(source: Source, messages: Message[]): void {
  for (const reader of source.readers) {
    const { place, link } = reader;
    for (const message of messages) {
      if (link.isBehind || place.seq !== message.seq || reader.ahead.length > 0) break;
      place.seq++;
      place.segment = undefined;
      sendTo(reader, message);
    }
    if (!reader.share) noteLoss(reader); // one that shares is told when it is its turn, of all that it has missed by then
    while (!link.isBehind && source.readers.has(reader) && sendNext(reader));
  }
}

/** Sends what is held for a connection, a message of each child in turn, until it falls behind. */
export function serve(link: Link): void {
  for (const reader of link.readers) {
    if (link.isBehind) return;
    if (!sendNext(reader) || !link.readers.has(reader)) continue;
    link.readers.delete(reader);
    link.readers.add(reader); // to the end of the line, where this loop meets it again
  }
}

/** Whether a child may go on writing: nobody that it waits for is behind. */
export function mayFlow({ readers }: Source): boolean {
  const isOvertaken = [...readers].some(({ link, overtake }) => overtake && !link.isBehind);
  return ![...readers].some(({ link, place }) => link.isBehind && place.holds && !(link.isStalled && isOvertaken));
}

function sendNext(reader: Reader): boolean {
  const { source, link, place } = reader;
  if (reader.ahead.length === 0) {
    noteLoss(reader);
    reader.ahead.push(...readMessages(source.spool, place));
  }
  const message = reader.ahead.shift();
  if (!message || link.isClosed) {
    if (source.isDone && place.seq > source.spool.lastSeq) detach(reader);
    return false;
  }
  sendTo(reader, message);
  return true;
}

function sendTo(reader: Reader, message: Message): void {
  send(reader.link, encodeMessage(reader.source.id, message));
  if (message.stream === "exit") detach(reader); // what a grandchild says later is sent to those who ask for it
}

/** The spool has dropped what it was to be sent. One that shares is told how much, and goes on; another's stream is taken from it. */
function noteLoss(reader: Reader): void {
  const { source, place, share } = reader;
  const { firstSeq } = source.spool;
  if (place.seq >= firstSeq) return;
  if (!share) {
    detach(reader, "backpressure");
    return;
  }
  const maxBytes = (firstSeq - place.seq) * messageBytes;
  place.seq = firstSeq;
  reader.ahead.push({ seq: firstSeq - 1, stream: "gap", data: Buffer.from(JSON.stringify({ maxBytes })) });
}

function encodeMessage(processId: string, { seq, stream, data }: Message): object {
  if (stream === "stdout" || stream === "stderr")
    return { type: "stream", processId, stream, seq, data: data.toString("base64") };
  return { type: "stream", processId, seq, stream, ...JSON.parse(data.toString()) };
}

function send(link: Link, message: object): void {
  if (!link.peer.send(message) && !link.isBehind) fallBehind(link);
}

function fallBehind(link: Link): void {
  link.isBehind = true;
  link.unsentBytes = link.peer.unsentBytes;
  link.stillLooks = 0;
  link.watch = setInterval(look, link.limits.stallMs / looks, link).unref();
  announceFlow(link);
}

/** Counts looks, not time: while the host was suspended, nobody could take anything. */
function look(link: Link): void {
  const { unsentBytes } = link.peer;
  if (unsentBytes > link.limits.unsentBytes) for (const reader of link.readers) detach(reader, "backpressure");
  link.stillLooks = unsentBytes < link.unsentBytes ? 0 : link.stillLooks + 1;
  link.unsentBytes = unsentBytes;
  link.isStalled = link.stillLooks >= looks;
  announceFlow(link);
}

function catchUp(link: Link): void {
  if (!link.isBehind) return;
  link.isBehind = link.isStalled = false;
  clearInterval(link.watch);
  serve(link);
  announceFlow(link);
}

function announceFlow(link: Link): void {
  for (const { place, lossless, share, source } of link.readers) {
    place.holds = lossless || (!share && !link.isStalled);
    source.onFlow();
  }
}

// What output sets in a terminal (pty.ts): a reader that comes later is told

/** How far output is, which may be cut anywhere. */
export interface Sequence {
  /** What there is of a sequence after its escape; undefined between two of them. */
  part: string | undefined;
}

/** Which modes are not what they are at first. */
export interface Modes extends Sequence {
  bits: number;
}

const maxSequence = 256;
const [cancel, substitute, escapeByte] = [0x18, 0x1a, 0x1b];

/**
 * Finds the sequences in output. What is in a title, or another string, is as text: an escape that does not end it begins a sequence there, too.
 *
 * @param take Takes each: what is between its escape and its last character, and that one.
 */
export function findSequences(at: Sequence, chunk: Buffer, take: (part: string, letter: string) => void): void {
  for (let i = 0; i < chunk.length; i++) {
    if (at.part === undefined) i = chunk.indexOf(escapeByte, i);
    if (i === -1) return;
    readByte(at, chunk[i]!, take);
  }
}

function readByte(at: Sequence, byte: number, take: (part: string, letter: string) => void): void {
  const { part = "" } = at;
  const letter = String.fromCharCode(byte);
  const isLast = part.startsWith("[") ? byte >= 0x40 : letter >= "0" && part + letter !== "[";
  if (byte === escapeByte) at.part = "";
  else if (byte === cancel || byte === substitute) at.part = undefined;
  else if (byte < 0x20 || byte === 0x7f)
    return; // carried out by itself, or nothing, in the middle of the sequence
  else if (!isLast) at.part = (part + letter).slice(0, maxSequence);
  else {
    at.part = undefined;
    if (byte < 0x80) take(part, letter);
  }
}

/** The alternate screen is one, whichever of these has shown it: two bits; then the keypad's, then one for each mode. */
const alternates = [47, 1047, 1049];
export const alternateBits = 3;
const keypadBit = 4;
/** DEC private modes, in the order in which they are set again. Those that are set at first are told when they are reset. */
const modeNumbers = [1, 7, 25, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1015, 2004];
const setAtFirst = [7, 25];
const bitOf = (at: number): number => 8 << at;
export const allModes = bitOf(modeNumbers.length) - 1;
/** DECSTR leaves the screens, the mouse and pasting as they are. */
const softResetBits = keypadBit | bitOf(modeNumbers.indexOf(1)) | bitOf(modeNumbers.indexOf(25));

/** Reads output, and notes what it sets. */
export function trackModes(modes: Modes, chunk: Buffer): void {
  findSequences(modes, chunk, (part, letter) => {
    if (part === "" && letter === "=") modes.bits |= keypadBit;
    else if (part === "" && letter === ">") modes.bits &= ~keypadBit;
    else if (part === "" && letter === "c") modes.bits = 0;
    else if (part === "[!" && letter === "p") modes.bits &= ~softResetBits;
    else if (/^\[\?[\d;]+$/.test(part) && /[hl]/.test(letter)) setModes(modes, part.slice(2), letter === "h");
  });
}

function setModes(modes: Modes, numbers: string, isSet: boolean): void {
  for (const number of numbers.split(";").map(Number)) {
    const at = modeNumbers.indexOf(number);
    if (alternates.includes(number))
      modes.bits = (modes.bits & ~alternateBits) | (isSet ? alternates.indexOf(number) + 1 : 0);
    else if (at !== -1 && isSet !== setAtFirst.includes(number)) modes.bits |= bitOf(at);
    else if (at !== -1) modes.bits &= ~bitOf(at);
  }
}

/** What sets them in a terminal that is as at first. */
export function modesText(bits: number): string {
  const alternate = alternates[(bits & alternateBits) - 1];
  const others = modeNumbers.filter((_, at) => bits & bitOf(at));
  return [
    alternate === undefined ? "" : `\x1b[?${alternate}h`,
    ...others.map((number) => `\x1b[?${number}${setAtFirst.includes(number) ? "l" : "h"}`),
    bits & keypadBit ? "\x1b=" : "",
  ].join("");
}
