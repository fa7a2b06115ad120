/**
 * Our own ends: what we print, with nothing lost; and our terminal, while a process on the host has one of its own: --run --terminal, and --attach.
 *
 *     keys ─▶ takeKeys() ─▶ the process         all but the key that leaves it
 *     screen ◀─ noteModes() ◀─ the process      as it comes; what it sets is noted, so that it can be set back
 *
 * Ours is raw meanwhile, and is put back as it was however we end: by a key, with the process, with the line, by a signal or an error.
 */

import { spawnSync } from "node:child_process";
import { createWriteStream, fstatSync, writeSync } from "node:fs";
import { Socket } from "node:net";
import type { Writable } from "node:stream";
import { isatty } from "node:tty";
import type { Failure } from "./failure.ts";
import { cannot, capture, cleanText, errnoOf, exitCodes, osFailure, safely } from "./failure.ts";
import type { Size } from "./pty.ts";
import type { Sequence } from "./readers.ts";
import { findSequences } from "./readers.ts";

/** How often a full pipe is tried that somebody has made non-blocking. */
const retryMs = 5;
/** For the second one of the key that leaves, which makes one of both. */
const secondKeyMs = 400;
/** What a key sends comes in one piece; an Escape that is alone for so long is the key. */
const escapeMs = 20;
/** Whoever types sets the size, at most this often. */
const sizedMs = 1000;
/** Of what a process has said, so much is shown to somebody who comes back. */
const replayBytes = 64 << 10;

// What we print

/**
 * Writes all of it before it returns. Where nobody reads, the daemon is not read from either: it slows the process, or goes on without us. Had
 * process.stdout been written to, all output would pile up here.
 */
export function print(fd: 1 | 2, output: string | Uint8Array): void {
  const bytes = Buffer.from(output as string);
  for (let at = 0; at < bytes.length; ) {
    try {
      at += writeSync(fd, bytes, at);
    } catch (error) {
      if (errnoOf(error) !== "EAGAIN") throw osFailure("write the output", error);
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, retryMs);
    }
  }
}

/** Prints the answer of a mode. To somebody who has stopped reading there is nothing to say; a full disk is told. */
export function say(words: string): number {
  try {
    print(1, words);
  } catch (error) {
    if ((error as Failure).errno !== "EPIPE") throw error;
  }
  return exitCodes.done;
}

/** A word in colour, where it goes to a terminal that has colours, and nobody has asked for none (no-color.org). */
export function inColour(fd: 1 | 2, colour: number, word: string): string {
  const { NO_COLOR, TERM } = process.env;
  return word !== "" && isatty(fd) && !NO_COLOR && TERM !== "dumb" ? `\x1b[${colour}m${word}\x1b[0m` : word;
}

/** An answer as JSON, on one line. */
export function jsonLine(answer: unknown): string {
  return `${cleanText(JSON.stringify(answer))}\n`;
}

/**
 * Opens a descriptor of ours for writing.
 *
 * Not process.stdout: whether its writes to a pipe block is left to the runtime. If they did, a client that writes much before it reads would stop both
 * directions for good.
 */
export function openOutput(fd: 1 | 2): Writable {
  const stats = fstatSync(fd);
  // never closed: libuv aborts where one of its own pipes, which took this number then, is
  if (!stats.isFIFO() && !stats.isSocket()) return createWriteStream("", { fd, autoClose: false });
  return new Socket({ fd, readable: false, writable: true });
}

/** Until all of it is written, or cannot be. It is not ended: of a socket that is all who have it. @returns What went wrong meanwhile. */
export function flush(output: Writable): Promise<unknown> {
  return new Promise((done) => {
    if (output.destroyed || output.errored) done(undefined);
    else output.once("error", done).write("", done);
  });
}

// Which key leaves

/** A key that leaves: by its byte, and as terminals send it to programs that have asked for more about keys. */
export interface DetachKey {
  /** "Ctrl-\". */
  name: string;
  pattern: RegExp;
}

export const defaultKey = "ctrl-\\";

/**
 * Reads --detach-key: "ctrl-a", "^A", "C-a"; or "none".
 *
 * @throws {Failure} With exit code 64.
 */
export function detachKeyOf(text: string): DetachKey | undefined {
  if (text === "none") return undefined;
  const letter = capture(/^(?:ctrl-|c-|\^)([a-z@[\\\]^_])$/i, text);
  if (letter === undefined)
    throw cannot(`leave by --detach-key "${text}": it must be ctrl- and a letter or one of @ [ \\ ] ^ _, or none`, {
      exit: exitCodes.usage,
    });
  const byte = letter.toUpperCase().charCodeAt(0) & 0x1f;
  const code = letter.toLowerCase().charCodeAt(0);
  const hex = byte.toString(16).padStart(2, "0");
  // xterm's modifyOtherKeys, and kitty's protocol with its kinds of event; 5 is Ctrl, the others have a lock on besides
  const pattern = `\\x${hex}|\\x1b\\[27;5;${code}~|\\x1b\\[${code}(?::\\d*)*;(?:5|69|133|197)(?::(\\d))?u`;
  return { name: `Ctrl-${letter.toUpperCase()}`, pattern: new RegExp(pattern, "g") };
}

/** What has been typed, as far as it is not yet known whose it is. */
export interface Keys {
  readonly key: DetachKey | undefined;
  /** The key that leaves was the last one. */
  isArmed: boolean;
  /** A part of what a key sends. */
  held: string;
}

/** What is the process's of what was typed; or we leave it. */
interface Typed {
  bytes: Buffer;
  leaves: boolean;
}

export function createKeys(key: DetachKey | undefined): Keys {
  return { key, isArmed: false, held: "" };
}

/**
 * Takes what was typed. When nothing more comes for restMs(), settleKeys() is to be called.
 *
 * @param chunk Cut anywhere.
 */
export function takeKeys(keys: Keys, chunk: Buffer): Typed {
  const text = keys.held + chunk.toString("latin1");
  keys.held = "";
  if (!keys.key) return { bytes: Buffer.from(text, "latin1"), leaves: false };
  let passed = "";
  let from = 0;
  for (const { 0: found, 1: event, index } of text.matchAll(keys.key.pattern)) {
    if (keys.isArmed && index > from) return { bytes: Buffer.from(passed, "latin1"), leaves: true };
    passed += text.slice(from, index);
    from = index + found.length;
    if (event === "2" || event === "3") continue; // it is held, or let go: none is pressed
    if (keys.isArmed) passed += found;
    keys.isArmed = !keys.isArmed;
  }
  const rest = text.slice(from);
  keys.held = /\x1b(?:\[[\d:;]{0,16})?$/.exec(rest)?.[0] ?? "";
  const whole = rest.slice(0, rest.length - keys.held.length);
  if (keys.isArmed && whole !== "") return { bytes: Buffer.from(passed, "latin1"), leaves: true };
  return { bytes: Buffer.from(passed + whole, "latin1"), leaves: false };
}

/** How long to wait for more; undefined where nothing is waited for. */
function restMs({ isArmed, held }: Keys): number | undefined {
  if (isArmed) return secondKeyMs;
  return held === "" ? undefined : escapeMs;
}

export function settleKeys(keys: Keys): Typed {
  const bytes = Buffer.from(keys.isArmed ? "" : keys.held, "latin1");
  keys.held = "";
  return { bytes, leaves: keys.isArmed };
}

// What a program sets

/** What is not as a terminal has it at first, and what sets it back. */
export interface Modes extends Sequence {
  readonly set: Map<string, string>;
}

export function createModes(): Modes {
  return { set: new Map(), part: undefined };
}

const alternateModes = ["47", "1047", "1049"];
/** Private modes that are off at first: cursor keys, mouse, focus, paste, the other screen, updates as a whole, colours' changes. */
const offModes = "1 9 1000 1001 1002 1003 1004 1005 1006 1015 1016 2004 2026 2031".split(" ").concat(alternateModes);
/** … and that are on: wrapping, the cursor. */
const onModes = ["7", "25"];

/** Notes what these bytes of a process set. Cut anywhere. */
export function noteModes(modes: Modes, bytes: Buffer): void {
  findSequences(modes, bytes, (part, letter) => {
    const [, mark, values, middle] = /^\[([<-?]?)([\d;:]*)([ !"$']?)$/.exec(part) ?? [];
    if (values !== undefined) noteControl(modes, `${mark}${middle}${letter}`, values);
    else if (part === "(") note(modes, "charset", letter !== "B", "\x1b(B");
    else if (part !== "") return;
    else if (letter === "c") modes.set.clear();
    else if (letter === "=" || letter === ">") note(modes, "keypad", letter === "=", "\x1b>");
  });
}

function noteControl(modes: Modes, kind: string, values: string): void {
  const isOn = kind.endsWith("h");
  if (kind === "?h" || kind === "?l")
    for (const mode of values.split(";")) {
      if (offModes.includes(mode)) note(modes, mode, isOn, `\x1b[?${mode}l`);
      if (onModes.includes(mode)) note(modes, mode, !isOn, `\x1b[?${mode}h`);
    }
  else if ((kind === "h" || kind === "l") && values === "4") note(modes, "insert", isOn, "\x1b[4l");
  else if (kind === "r") note(modes, "region", values !== "", "\x1b7\x1b[r\x1b8");
  else if (kind === " q") note(modes, "cursor", !/^0?$/.test(values), "\x1b[0 q");
  else if (kind === ">m" && values.startsWith("4")) note(modes, "keys", /^4;[1-9]/.test(values), "\x1b[>4m");
  else if (kind === ">u" || kind === "=u" || kind === "<u") note(modes, "kitty", kind !== "<u", "\x1b[=0u");
  else if (kind === "!p") modes.set.clear();
}

function note({ set }: Modes, name: string, isOn: boolean, back: string): void {
  set.delete(name);
  if (isOn) set.set(name, back);
}

/** What sets all of it back: the screen last, as each has some of these of its own. */
export function backFrom(modes: Modes): string {
  const names = [...modes.set.keys()].sort(
    (a, b) => Number(alternateModes.includes(a)) - Number(alternateModes.includes(b)),
  );
  return `\x1b[m${names.map((name) => modes.set.get(name)).join("")}`;
}

// What is shown again

/** What a terminal answers: its answer would be typed into the process. And what it does: to ring, to take into the clipboard, to notify. */
const asking = new RegExp(
  [
    "\x1b\\[\\??[\\d;]*n", // DSR
    "\x1b\\[[>=?]?[\\d;]*c|\x1bZ", // DA
    "\x1b\\[\\??[\\d;]*\\$p", // DECRQM
    "\x1b\\[>[\\d;]*q|\x1b\\[\\?u|\x1b\\[[\\d;]*x", // XTVERSION, kitty's keys, DECREQTPARM
    "\x1b\\[(?:1[1345689]|2[01])[\\d;]*t", // the window
    "\x1bP[+$]q[^\x1b]*\x1b\\\\|\x1b_G[^\x1b]*a=q[^\x1b]*\x1b\\\\", // XTGETTCAP, DECRQSS, kitty's pictures
    "\x1b\\](?:9|52|99|777);[^\x07\x1b]*(?:\x07|\x1b\\\\)",
    "\x1b\\][^\x07\x1b]*;\\?(?:;[^\x07\x1b]*)?(?:\x07|\x1b\\\\)", // colours
    "\x05",
  ].join("|"),
  "g",
);
const bells = /(\x1b[\]P_^X][^\x07\x1b]*(?:\x07|\x1b\\))|\x07/g;
const toAlternate = /\x1b\[\?(?:47|1047|1049)h/;
const fromAlternate = /\x1b\[\?(?:47|1047|1049)l/;

/**
 * The end of what a process has said, for a terminal that is to show it again: from the start of a line, without what was on the alternate screen, and
 * without questions.
 */
export function replayOf(said: Buffer): Buffer {
  const text = withoutAlternate(said.toString("latin1")).replace(asking, "").replace(bells, "$1");
  if (text.length <= replayBytes) return Buffer.from(text, "latin1");
  const tail = text.slice(-replayBytes);
  return Buffer.from(tail.slice(tail.indexOf("\n") + 1), "latin1");
}

function withoutAlternate(text: string): string {
  let kept = "";
  for (let rest = text; ; ) {
    const back = fromAlternate.exec(rest);
    const there = toAlternate.exec(rest);
    if (!back) return kept + (there ? rest.slice(0, there.index) : rest);
    kept += there && there.index < back.index ? rest.slice(0, there.index) : "";
    rest = rest.slice(back.index + back[0].length);
  }
}

// … or printed, where there is no terminal

/** What a process has said, of which only the end is to be shown. */
export interface Tail {
  lines: number;
  /** Where it has caught up. */
  untilSeq: number;
  pieces: { stream: "stdout" | "stderr"; bytes: Buffer }[];
  /** Newlines in them. */
  count: number;
  /** It comes from a terminal, and goes to one. */
  isReplay: boolean;
  /** When they are printed. */
  shown?: () => void;
}

export function createTail(lines: number, untilSeq: number): Tail {
  return { lines, untilSeq, pieces: [], count: 0, isReplay: false };
}

/** @param isDrawn What is there is drawn again: nothing is to be shown before. */
export function createReplay(untilSeq: number, isDrawn: boolean): Tail {
  return { ...createTail(isDrawn ? 0 : Infinity, untilSeq), isReplay: true };
}

export function keepTail(tail: Tail, name: "stdout" | "stderr", bytes: Buffer): void {
  if (tail.lines === 0) return;
  tail.pieces.push({ stream: name, bytes });
  tail.count += newlinesIn(bytes);
  for (let first = tail.pieces[0]!; tail.count - newlinesIn(first.bytes) > tail.lines; first = tail.pieces[0]!) {
    tail.count -= newlinesIn(first.bytes);
    tail.pieces.shift();
  }
}

/** What is to be shown of it. */
export function endOf(tail: Tail): Tail["pieces"] {
  if (!tail.isReplay) return lastLines(tail);
  return [{ stream: "stdout", bytes: replayOf(Buffer.concat(tail.pieces.map(({ bytes }) => bytes))) }];
}

/** Cuts pieces to so many lines, counted from the end; a last one without its newline is one, too. */
export function lastLines({ lines, pieces }: Pick<Tail, "lines" | "pieces">): Tail["pieces"] {
  let wanted = lines;
  if (pieces.at(-1)?.bytes.at(-1) === 0x0a) wanted++;
  for (let i = pieces.length - 1; i >= 0; i--) {
    const { stream: name, bytes } = pieces[i]!;
    for (let at = bytes.lastIndexOf(0x0a); at >= 0; at = at === 0 ? -1 : bytes.lastIndexOf(0x0a, at - 1))
      if (--wanted === 0) return [{ stream: name, bytes: bytes.subarray(at + 1) }, ...pieces.slice(i + 1)];
  }
  return pieces;
}

function newlinesIn(bytes: Buffer): number {
  let count = 0;
  for (let at = bytes.indexOf(0x0a); at >= 0; at = bytes.indexOf(0x0a, at + 1)) count++;
  return count;
}

// Our own terminal

export const hasTerminal = (): boolean => isatty(0) && isatty(1);

/**
 * @param doing Completes "Cannot …".
 * @throws {Failure} stdin and stdout are no terminal: exit code 64.
 */
export function requireTerminal(doing: string, hint: string): void {
  if (!hasTerminal()) throw cannot(`${doing}: stdin and stdout are none here`, { exit: exitCodes.usage, hint });
}

const stty = (...words: string[]) => spawnSync("stty", words, { stdio: ["inherit", "pipe", "pipe"], encoding: "utf8" });

/** The size of ours; that of the first terminals where it has none, as that of `ssh -tt` without one. */
export function ownSize(): Size {
  const [rows, columns] = hasTerminal() ? `${stty("size").stdout}`.split(" ").map(Number) : [];
  return { rows: rows || 24, columns: columns || 80 };
}

/**
 * Makes the terminal at our stdin pass all bytes as they are, both ways, until we exit. By stty(1): the raw mode of node's own goes on turning newlines
 * into two bytes.
 *
 * @param doing Completes "Cannot …", where it fails.
 * @returns Puts it back; to be called once or more.
 */
export function setRaw(doing: string, hint: string): () => void {
  const before = stty("-g");
  const { error, status, stderr } = before.status === 0 ? stty("raw", "-echo", "-iexten") : before;
  if (error || status !== 0)
    throw cannot(`${doing}: it cannot be set raw by stty(1): ${error?.message ?? stderr.trim()}`, { hint });
  let isRaw = true;
  const putBack = (): void => {
    if (isRaw) stty(before.stdout.trim());
    isRaw = false;
  };
  process.on("exit", putBack);
  return putBack;
}

/** What a screen is the other end of. */
export interface ScreenWorld {
  key: DetachKey | undefined;
  /** Nothing that is typed is the process's, nor is the size ours. */
  isWatching: boolean;
  /** Sends what was typed, when all before it was sent. */
  type(bytes: Buffer): Promise<void>;
  resize(size: Size, redraw: boolean): void;
  /** The key was pressed that leaves. */
  leave(): void;
  /** Our terminal is not there any more. */
  lose(): void;
}

/** Our terminal, while it is the process's. */
export interface Screen {
  world: ScreenWorld;
  keys: Keys;
  modes: Modes;
  size: Size;
  /** When the process was told last. */
  sizedAt: number;
  /** Until it is known whose the last key was. */
  timer: NodeJS.Timeout | undefined;
  /** What was typed is on its way. */
  typing: Promise<void>;
  isOpen: boolean;
  putBack(): void;
}

/** Sets ours raw, and takes what is typed. */
export function openScreen(world: ScreenWorld): Screen {
  const screen: Screen = {
    ...{ world, keys: createKeys(world.key), modes: createModes(), size: ownSize(), sizedAt: 0 },
    ...{ timer: undefined, typing: Promise.resolve(), isOpen: true },
    putBack: () => {},
  };
  process.on("exit", () => closeScreen(screen)); // before the terminal is cooked again
  screen.putBack = setRaw("take your terminal for it", "start it without --terminal");
  process.stdin
    .on("data", (chunk: Buffer) => takeChunk(screen, chunk))
    .on("end", world.lose)
    .on("error", world.lose);
  process.on("SIGWINCH", () => {
    const size = ownSize();
    if (size.rows === screen.size.rows && size.columns === screen.size.columns) return;
    screen.size = size;
    resizeTo(screen);
  });
  return screen;
}

function takeChunk(screen: Screen, chunk: Buffer): void {
  if (!screen.isOpen) return;
  clearTimeout(screen.timer);
  if (screen.world.isWatching && chunk.includes(3)) screen.world.leave(); // nobody else hears a Ctrl-C
  takeTyped(screen, takeKeys(screen.keys, chunk));
  const ms = restMs(screen.keys);
  if (ms !== undefined) screen.timer = setTimeout(() => takeTyped(screen, settleKeys(screen.keys)), ms);
}

function takeTyped(screen: Screen, { bytes, leaves }: Typed): void {
  const { world } = screen;
  if (bytes.length > 0 && !world.isWatching) {
    if (performance.now() - screen.sizedAt > sizedMs) resizeTo(screen);
    screen.typing = screen.typing.then(() => world.type(bytes));
  }
  if (leaves) world.leave();
}

function resizeTo(screen: Screen, redraw = false): void {
  if (screen.world.isWatching || !screen.isOpen) return;
  screen.sizedAt = performance.now();
  screen.world.resize(screen.size, redraw);
}

/** Has the process draw what it shows, in our size; or, for one that only watches, in the one it has. */
export function redrawOn(screen: Screen, size = screen.size): void {
  screen.sizedAt = performance.now();
  if (screen.isOpen) screen.world.resize(screen.world.isWatching ? size : screen.size, true);
}

/** Words beside what the process shows: on lines of their own, which a redraw takes away. */
export function besideScreen<T extends unknown[]>(
  screen: () => Screen | undefined,
  say: (...words: T) => void,
): (...words: T) => void {
  return (...words) => {
    const isRaw = screen()?.isOpen && isatty(2);
    if (isRaw) safely(() => print(2, "\r\n"));
    say(...words);
    if (isRaw) safely(() => print(2, "\r"));
  };
}

/**
 * Sets back what the process has set, and puts our terminal back.
 *
 * @param isLeft The process goes on: what we have to say is not to stand beside what it shows.
 */
export function closeScreen(screen: Screen, isLeft = false): void {
  if (!screen.isOpen) return;
  screen.isOpen = false;
  clearTimeout(screen.timer);
  const { modes } = screen;
  const isBelow = isLeft && !alternateModes.some((mode) => modes.set.has(mode));
  safely(() => print(1, `${backFrom(modes)}${isBelow ? "\r\n" : ""}`));
  screen.putBack();
}
