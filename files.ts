/**
 * files.*: what a client may ask of the host's files: stat, list, read, write, validate.
 *
 * `~` and `~/x` mean the user's home, and a relative path begins there too: the daemon's own directory means nothing to a client. A path that is
 * not UTF-8 is given, and listed, as the base64 of its bytes. Symbolic links are followed. Only regular files are opened: a FIFO would hang, and to open a device can set it going. Nothing here
 * blocks the event loop; a file system that does not answer is left to lanes.ts.
 */

import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import type { Dirent, Stats } from "node:fs";
import { constants } from "node:fs";
import type { FileHandle } from "node:fs/promises";
import { lstat, mkdir, open, opendir, readlink, realpath, rename, stat, unlink } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { cannot, errnoError, errnoOf, Failure, osFailure, reasonOf } from "./failure.ts";
import { maxBodyBytes } from "./frame.ts";
import type { Lanes } from "./lanes.ts";
import { createLanes, maxLinks, runInLane } from "./lanes.ts";
import { runtime } from "./program.ts";
import type { Method, Methods, Params } from "./rpc.ts";
import {
  booleanParam,
  decodeBase64,
  integerParam,
  invalidParam,
  isObject,
  JsonPieces,
  knownParams,
  limitParam,
  optionalStringParam,
  othersTurn,
  stringParam,
} from "./rpc.ts";

/** files.read without maxBytes: enough for a source file, little enough for any connection. */
const defaultReadBytes = 262_144;
/** One read(2), and so what a small file costs. */
const readStepBytes = 1 << 16;
/** A window of UTF-8 that is smaller may hold no whole character, and a client that pages would stand still. */
const minTextBytes = 4;
/** Of a file so much is encoded at once, some 1 ms: whole groups of base64. */
const encodeStepBytes = 3 << 16;
/** Entries that are read, sorted or encoded at once, some 0.5 ms: between two such steps others have their turn. */
const listStep = 128;

/** Where no file can be made beside the old one, or take its place: an unwritable or sticky directory, a mount point, /proc and /sys. */
const inPlaceErrnos = new Set("EACCES EPERM EROFS EBUSY EXDEV ENOENT EINVAL ENOTSUP EOPNOTSUPP".split(" "));

/** Opens without waiting for the other end of a FIFO, and without taking a terminal. */
const carefully = constants.O_NONBLOCK | constants.O_NOCTTY;
/** Type bits, letter in ls(1), words. What is none of these is a regular file. */
const fileTypes = [
  [constants.S_IFDIR, "d", "a directory"],
  [constants.S_IFLNK, "l", "a symbolic link"],
  [constants.S_IFIFO, "p", "a FIFO"],
  [constants.S_IFSOCK, "s", "a socket"],
  [constants.S_IFCHR, "c", "a character device"],
  [constants.S_IFBLK, "b", "a block device"],
] as const;

/** A path as its bytes, one character for each: what is not UTF-8 can be a path, too. */
type BytePath = string;

interface Entry {
  name: string;
  path: string;
  /** Of what a symbolic link leads to. */
  isDir: boolean;
  isSymlink?: true;
  /** It is not UTF-8: name and path have U+FFFD in them, and `raw` is what it can be used by. */
  lossy?: true;
  /** The path's bytes in base64. */
  raw?: string;
}
/** Entries in order: of each its key, NUL, which sorts before all else, and its JSON. As strings, of which V8 has less to tidy up. */
type Run = string[];

/**
 * Makes the methods, by full name.
 *
 * @param home Finds the user's home directory. Called only where a path needs it; it may throw a Failure.
 * @param lanes Shared with processes.ts, so that each learns from the other what does not answer.
 */
export function createFiles(home: () => string, lanes = createLanes()): Methods {
  const on =
    (
      names: string[],
      run: (path: BytePath, params: Params) => Promise<object>,
      sizeOf?: (params: Params) => "small" | "large",
    ): Method =>
    (params, caller) => {
      knownParams(params, ["path", ...names]);
      const path = pathParam(params, home);
      return runInLane(lanes, wordsOf(path), () => run(path, params), sizeOf?.(params), sizeOf && caller?.peer);
    };
  const sizeOfRead = ({ maxBytes }: Params) => (Number(maxBytes) > defaultReadBytes ? "large" : "small");
  return new Map<string, Method>([
    ["files.stat", on([], statPath)],
    [
      "files.list",
      on(
        ["includeHidden"],
        (path, params) => listDirectory(path, booleanParam(params, "includeHidden", false), lanes),
        () => "large",
      ),
    ],
    ["files.read", on(["maxBytes", "offset", "encoding"], readFile, sizeOfRead)],
    ["files.write", on(["content", "encoding", "mode", "createDirs"], writeFile)],
    ["files.validate", on([], validatePath)],
  ]);
}

/** Reads `path`: text, or an object with the base64 of its bytes. */
function pathParam(params: Params, home: () => string): BytePath {
  const { path } = params;
  if (!isObject(path)) return bytesOf(resolvePath(stringParam(params, "path"), home));
  knownParams(path, ["raw"]);
  const bytes = decodeBase64(stringParam(path, "raw"), "path.raw").toString("latin1");
  if (bytes.includes("\0")) throw invalidParam("path.raw", path.raw, "a path without NUL");
  return bytes.startsWith("/") ? bytes : `${bytesOf(home())}/${bytes}`;
}

const isAscii = (text: string): boolean => /^[\0-\x7f]*$/.test(text);

function bytesOf(text: string | Buffer): BytePath {
  return typeof text === "string" && isAscii(text) ? text : Buffer.from(text as string).toString("latin1");
}

/** For an error, an answer and a log; with U+FFFD where it is not UTF-8. */
function wordsOf(path: BytePath): string {
  return isAscii(path) ? path : Buffer.from(path, "latin1").toString("utf8");
}

/** For node:fs. Text where that is possible. */
function onDisk(path: BytePath): string | Buffer {
  const words = wordsOf(path);
  if (!isLossy(path, words)) return words;
  if (runtime !== "deno") return Buffer.from(path, "latin1");
  throw cannot(`use "${words}": under Deno a path must be UTF-8`); // it would take another one, without a word
}

function isLossy(path: BytePath, words: string): boolean {
  return words.includes("\ufffd") && bytesOf(words) !== path;
}

/**
 * Makes a client's path absolute: `~`, `~/x` and what is relative begin at home.
 *
 * `..` stays in it: after a symbolic link only the kernel knows where it leads.
 *
 * @param name The parameter's, for the error.
 * @throws {Failure} It has a NUL in it, as no path can, or half a surrogate pair, which would become U+FFFD: another file (-32602).
 */
export function resolvePath(path: string, home: () => string, name = "path"): string {
  if (/[\0\p{Cs}]/u.test(path)) throw invalidParam(name, path, "a path without NUL and half characters");
  if (path.startsWith("/")) return path;
  return path === "~" || path.startsWith("~/") ? home() + path.slice(1) : `${home()}/${path}`;
}

async function statPath(path: BytePath): Promise<object> {
  const stats = await during(`stat "${wordsOf(path)}"`, () => unlessAbsent(stat(onDisk(path))));
  if (!stats) return { exists: false, isDir: false, size: 0, mode: "" };
  const { size, mode, mtimeMs } = stats;
  return { exists: true, isDir: stats.isDirectory(), size, mode: describeMode(mode), mtimeMs: Math.floor(mtimeMs) };
}

/** As ls(1) writes it: "-rw-r--r--", "drwxrwxrwt", "-rwsr-xr-x". */
function describeMode(mode: number): string {
  const letters = [..."rwxrwxrwx"].map((letter, bit) => (mode & (0o400 >> bit) ? letter : "-"));
  for (const [bit, place, letter] of [
    [0o4000, 2, "s"],
    [0o2000, 5, "s"],
    [0o1000, 8, "t"],
  ] as const) {
    if (mode & bit) letters[place] = letters[place] === "x" ? letter : letter.toUpperCase();
  }
  return (typeOf(mode)?.[1] || "-") + letters.join("");
}

async function listDirectory(path: BytePath, includeHidden: boolean, lanes: Lanes): Promise<JsonPieces> {
  const runs: Run[] = [];
  const run: Run = [];
  const prefix = path.endsWith("/") ? path : `${path}/`;
  const doing = `list "${wordsOf(path)}"`;
  let bytes = 0;
  await during(doing, async () => {
    // the types know no bytes here, nor does Bun; Deno gives text all the same
    const encoding = (runtime === "bun" ? "utf8" : "buffer") as BufferEncoding;
    const options = { bufferSize: listStep, encoding };
    for await (const entry of await opendir(onDisk(path), options)) {
      const name = bytesOf(entry.name as string | Buffer);
      if (name.startsWith(".") && !includeHidden) continue;
      run.push(`${name}\0${JSON.stringify(await describeEntry(entry, name, prefix + name, lanes))}`);
      if (run.length === listStep) runs.push(run.splice(0).sort());
      bytes += name.length + prefix.length + name.length;
      if (bytes > maxBodyBytes)
        throw cannot(`${doing}: the names in it have more than ${maxBodyBytes} bytes, an answer has at most that many`);
    }
  });
  runs.push(run.sort());
  while (runs.length > 1) runs.push(await merge(runs.shift()!, runs.shift()!));
  return encodeList(runs[0]!);
}

async function describeEntry(entry: Dirent, name: BytePath, path: BytePath, lanes: Lanes): Promise<Entry> {
  const isSymlink = entry.isSymbolicLink();
  const words = wordsOf(path);
  const isDir = isSymlink
    ? (await runInLane(lanes, words, () => stat(onDisk(path)), "nested").catch(() => undefined))?.isDirectory() === true
    : entry.isDirectory();
  const found: Entry = { name: wordsOf(name), path: words, isDir };
  if (isSymlink) found.isSymlink = true;
  if (isLossy(path, words)) Object.assign(found, { lossy: true, raw: Buffer.from(path, "latin1").toString("base64") });
  return found;
}

async function encodeList(all: Run): Promise<JsonPieces> {
  const pieces = [Buffer.from('{"entries":[')];
  for (let at = 0; at < all.length; at += listStep) {
    if (at > 0) await othersTurn();
    const entries = all.slice(at, at + listStep).map((text) => text.slice(text.indexOf("\0") + 1));
    pieces.push(Buffer.from((at > 0 ? "," : "") + entries.join()));
  }
  return new JsonPieces([...pieces, Buffer.from("]}")]);
}

async function merge(a: Run, b: Run): Promise<Run> {
  const merged: Run = [];
  for (let i = 0, j = 0; i < a.length || j < b.length; ) {
    merged.push(j === b.length || (i < a.length && a[i]! < b[j]!) ? a[i++]! : b[j++]!);
    if (merged.length % listStep === 0) await othersTurn();
  }
  return merged;
}

/**
 * Without `offset` the whole file must fit into `maxBytes`. With it, at most `maxBytes` from there on are read, and `nextOffset` says
 * where to go on. Characters that the edges of such a window cut are left to its neighbours.
 */
async function readFile(path: BytePath, params: Params): Promise<object> {
  const encoding = encodingParam(params);
  const isWindow = (params.offset ?? undefined) !== undefined;
  const offset = integerParam(params, "offset", { min: 0, max: Number.MAX_SAFE_INTEGER, default: 0 });
  const asked = limitParam(params, "maxBytes", { max: Number.MAX_SAFE_INTEGER, default: defaultReadBytes });
  const maxBytes = Math.min(isWindow && encoding === "utf8" ? Math.max(asked, minTextBytes) : asked, maxBodyBytes);
  const words = wordsOf(path);
  return during(`read "${words}"`, async () => {
    const handle = await unlessAbsent(openRegularFile(path));
    if (!handle) return { content: "", exists: false };
    try {
      const { size } = await handle.stat();
      if (!isWindow && size > maxBytes) throw tooLarge(words, `${size}`, maxBytes);
      const bytes = await readBytes(handle, offset, isWindow ? maxBytes : maxBytes + 1);
      if (!isWindow && bytes.length > maxBytes) throw tooLarge(words, `more than ${maxBytes}`, maxBytes); // in /proc, or it grows
      const isText = encoding === "utf8";
      const start = isText && offset > 0 ? bytes.toString("latin1", 0, 3).search(/[^\x80-\xbf]|$/) : 0; // of a character that the last window left
      const texts = await encodeContent(bytes.subarray(start), words, isText, isWindow);
      const found = { exists: true, size: Math.max(size, bytes.length === 0 ? 0 : offset + bytes.length) };
      const textBytes = texts.reduce((sum, text) => sum + Buffer.byteLength(text), 0);
      const end = offset + (isText ? start + textBytes : bytes.length);
      return joinContent(texts, isWindow ? { ...found, nextOffset: end } : found);
    } finally {
      await handle.close();
    }
  });
}

/** @param isWindow A character that the end cuts is left out, but not when it is all there is. */
async function encodeContent(bytes: Buffer, words: string, isText: boolean, isWindow: boolean): Promise<string[]> {
  const decoder = createDecoder();
  const texts: string[] = [];
  for (let at = 0; at < bytes.length; at += encodeStepBytes) {
    if (at > 0) await othersTurn();
    const piece = bytes.subarray(at, at + encodeStepBytes);
    const isMore = isWindow || at + encodeStepBytes < bytes.length;
    texts.push(isText ? decodeText(decoder, piece, words, isMore) : piece.toString("base64"));
  }
  if (texts.length === 1 && texts[0] === "") return [decodeText(createDecoder(), bytes, words, false)];
  return texts;
}

async function joinContent(texts: string[], rest: object): Promise<object> {
  if (texts.length <= 1) return { content: texts[0] ?? "", ...rest };
  const pieces = [Buffer.from('{"content":"')];
  for (const text of texts) {
    pieces.push(Buffer.from(JSON.stringify(text).slice(1, -1)));
    await othersTurn();
  }
  return new JsonPieces([...pieces, Buffer.from(`",${JSON.stringify(rest).slice(1)}`)]);
}

/** Looks before it opens, and again after: between the two the path may have become another file, for which O_NONBLOCK is there. */
async function openRegularFile(path: BytePath): Promise<FileHandle> {
  const doing = `read "${wordsOf(path)}"`;
  requireRegularFile(await stat(onDisk(path)), doing);
  const handle = await open(onDisk(path), constants.O_RDONLY | carefully);
  try {
    requireRegularFile(await handle.stat(), doing);
    return handle;
  } catch (error) {
    await handle.close();
    throw error;
  }
}

/** Reads to the end: what a file's size says is 0 in /proc, and old in a log. */
async function readBytes(handle: FileHandle, offset: number, maxBytes: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for (let length = 0; length < maxBytes; ) {
    const chunk = Buffer.allocUnsafe(Math.min(readStepBytes, maxBytes - length));
    const { bytesRead } = await handle.read(chunk, 0, chunk.length, offset + length);
    if (bytesRead === 0) break;
    chunks.push(chunk.subarray(0, bytesRead));
    length += bytesRead;
  }
  return Buffer.concat(chunks);
}

const createDecoder = () => new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }); // ignoreBOM keeps it

/**
 * Refuses what is not UTF-8: with replacement characters in it, a file that is read, edited and written would be spoilt.
 *
 * @param stream A character that the end cuts comes with the next bytes.
 */
function decodeText(decoder: ReturnType<typeof createDecoder>, bytes: Buffer, path: string, stream: boolean): string {
  try {
    return decoder.decode(bytes, { stream });
  } catch (cause) {
    const hint = 'read it with encoding "base64"';
    throw cannot(`read "${path}" as utf8: it is not UTF-8`, { data: { errno: "EILSEQ" }, hint, cause });
  }
}

function tooLarge(path: string, size: string, maxBytes: number): Failure {
  return cannot(`read "${path}": it has ${size} bytes, at most ${maxBytes} are read at once`, {
    data: { errno: "EFBIG", maxBytes },
    hint: "raise maxBytes, or read it in parts with offset",
  });
}

/**
 * Replaces a file's content at once or not at all: the bytes go to a temporary file beside it, to the disk, and then under its name; where that would
 * change who may read or write it, or cannot be, into the file itself.
 *
 * The mode is the one given, else that of the file replaced, else what the umask leaves of 0666. A file that we may not write is refused, though its
 * directory would let us.
 */
async function writeFile(path: BytePath, params: Params): Promise<object> {
  const content = stringParam(params, "content", { empty: true });
  const bytes = encodingParam(params) === "base64" ? decodeBase64(content, "content") : encodeText(content);
  const mode = modeParam(params);
  const createDirs = booleanParam(params, "createDirs", false);
  const doing = `write "${wordsOf(path)}"`;
  return during(doing, async () => {
    if (path.endsWith("/")) throw notRegularFile("a directory", doing, "EISDIR");
    if (createDirs) await makeParents(path);
    const { target, old } = await followLinks(path);
    const written = bytes.length;
    if (!old) {
      await replaceFile(target, bytes, mode, old);
      return { written };
    }
    requireRegularFile(old, doing);
    await requireWritable(target);
    if (old.nlink === 1 && (await replaceFile(target, bytes, mode, old))) return { written };
    await overwriteFile(target, bytes, mode, old, doing);
    return { written, inPlace: true };
  });
}

/** Refuses half a character, which would become U+FFFD without a word. That is looked for first: it takes no time. */
function encodeText(content: string): Buffer {
  const bytes = Buffer.from(content);
  if (bytes.includes("\ufffd") && /\p{Cs}/u.test(content))
    throw invalidParam("content", content, "text without half characters");
  return bytes;
}

/** Not by mkdir's own `recursive`: see makeDirectories() of socket.ts. */
async function makeParents(path: BytePath): Promise<void> {
  const parent = dirname(path);
  const isThere = () => unlessAbsent(stat(onDisk(parent)));
  if (await isThere()) return;
  await makeParents(parent);
  await mkdir(onDisk(parent)).catch(async (error: unknown) => {
    if (!(await isThere())) throw error; // else another was quicker
  });
}

/** By opening it: Deno's access(2) is its own, and knows no root. A program that runs may be replaced, though not be written. */
async function requireWritable(path: BytePath): Promise<void> {
  const handle = await open(onDisk(path), constants.O_WRONLY | carefully).catch((error: unknown) => {
    if (errnoOf(error) !== "ETXTBSY") throw error;
  });
  await handle?.close();
}

/** Finds the file that a path means, and whether it exists: a link to what is not there yet means that. */
async function followLinks(path: BytePath): Promise<{ target: BytePath; old: Stats | undefined }> {
  let next = path;
  for (let links = 0; links <= maxLinks; links++) {
    const directory = bytesOf(await realpath(onDisk(dirname(next)), "buffer"));
    const target = join(directory, basename(next));
    const old = await unlessAbsent(lstat(onDisk(target)));
    if (!old?.isSymbolicLink()) return { target, old };
    await refusePlanted(target, old, directory);
    const link = bytesOf(await readlink(onDisk(target), "buffer"));
    next = link.startsWith("/") ? link : `${directory}/${link}`;
  }
  throw errnoError("ELOOP", "too many symbolic links encountered");
}

/** As the kernel does by fs.protected_symlinks, where it is on: in /tmp anybody may plant a link for us to write through (proc(5)). */
async function refusePlanted(target: BytePath, link: Stats, directory: BytePath): Promise<void> {
  const { mode, uid } = await stat(onDisk(directory));
  const isShared = (mode & constants.S_IFMT) === constants.S_IFDIR && (mode & 0o1002) === 0o1002;
  if (!isShared || link.uid === process.geteuid!() || link.uid === uid) return;
  throw cannot(
    `follow "${wordsOf(target)}": it is a link of user ${link.uid} in a directory that anybody may write to, it must be ours`,
    { data: { errno: "EACCES" } },
  );
}

/** @returns False, and nothing is changed, where a new file would not be the old one's equal, or cannot take its place. */
async function replaceFile(
  target: BytePath,
  bytes: Buffer,
  mode: number | undefined,
  old: Stats | undefined,
): Promise<boolean> {
  const temporary = join(dirname(target), `.holdfast-${randomBytes(8).toString("hex")}.tmp`);
  let isReplaced = false;
  try {
    const handle = await open(onDisk(temporary), "wx", mode === undefined && !old ? 0o666 : 0o600);
    try {
      if (old && !(await makeEqual(handle, temporary, target, old))) return false;
      await handle.writeFile(bytes);
      const wanted = mode ?? (old && old.mode & 0o7777);
      if (wanted !== undefined) await handle.chmod(wanted); // after writing, which clears set-uid
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(onDisk(temporary), onDisk(target));
    isReplaced = true;
  } catch (error) {
    if (!old || !inPlaceErrnos.has(errnoOf(error) || "")) throw error;
    return false;
  } finally {
    if (!isReplaced) await unlink(onDisk(temporary)).catch(() => {});
  }
  await syncDirectory(dirname(target)).catch(() => {}); // not every file system can; the file itself is safe
  return true;
}

/**
 * Gives an empty new file, 0600 until then, to those who have the old one: owner, group, mode, and what Node cannot copy: ACL and extended attributes.
 *
 * The group first, and by ourselves: cp(1) goes on in silence where it may not give a file away, and the old group's bits would be another's.
 *
 * @returns Whether it is the old one's equal now.
 */
async function makeEqual(handle: FileHandle, temporary: BytePath, target: BytePath, old: Stats): Promise<boolean> {
  const { uid, gid } = await handle.stat();
  try {
    if (uid !== old.uid || gid !== old.gid) await handle.chown(old.uid, old.gid);
  } catch {
    return false;
  }
  const [from, to] = [onDisk(target), onDisk(temporary)];
  if (typeof from !== "string" || typeof to !== "string" || !(await copyAttributes(from, to))) return false;
  const made = await handle.stat();
  return made.uid === old.uid && made.gid === old.gid && ((made.mode ^ old.mode) & 0o7777) === 0;
}

/** By the cp(1) of GNU, which takes 1 ms; another one refuses the option. */
function copyAttributes(from: string, to: string): Promise<boolean> {
  const args = ["--attributes-only", "--preserve=mode,ownership,xattr", "--", from, to];
  return new Promise((done) => {
    execFile("cp", args, { timeout: 10_000 }, (error) => done(error === null));
  });
}

/** Writes into the file itself, if it is still the one that was looked at. */
async function overwriteFile(
  target: BytePath,
  bytes: Buffer,
  mode: number | undefined,
  old: Stats,
  doing: string,
): Promise<void> {
  const handle = await open(onDisk(target), constants.O_WRONLY | constants.O_NOFOLLOW | carefully);
  try {
    const { dev, ino } = await handle.stat();
    if (dev !== old.dev || ino !== old.ino) throw cannot(`${doing}: it has become another file meanwhile`);
    if (mode !== undefined) await handle.chmod(mode);
    await writeInto(handle, bytes, old.size);
    const { mode: left } = await handle.stat();
    if (mode === undefined && left !== old.mode) await handle.chmod(old.mode & 0o7777).catch(() => {}); // set-uid, if it is ours to give
    await unlessImpossible(handle.sync());
  } finally {
    await handle.close();
  }
}

/** What needs more room than there was comes first: where the disk is full, the old content stays. */
async function writeInto(handle: FileHandle, bytes: Buffer, oldBytes: number): Promise<void> {
  const write = async (at: number, end: number): Promise<void> => {
    // those of /proc have no length, and take no position
    while (at < end) at += (await handle.write(bytes, at, end - at, oldBytes === 0 ? null : at)).bytesWritten;
  };
  try {
    await write(oldBytes, bytes.length);
  } catch (error) {
    await unlessImpossible(handle.truncate(oldBytes));
    throw error;
  }
  await write(0, Math.min(bytes.length, oldBytes));
  await unlessImpossible(handle.truncate(bytes.length));
}

/** Files of /proc and /sys have no length and no disk. */
async function unlessImpossible(action: Promise<void>): Promise<void> {
  await action.catch((error: unknown) => {
    if (!["EINVAL", "ENOTSUP", "EOPNOTSUPP"].includes(errnoOf(error) || "")) throw error;
  });
}

async function syncDirectory(path: BytePath): Promise<void> {
  const handle = await open(onDisk(path), constants.O_RDONLY | constants.O_DIRECTORY);
  await handle.sync().finally(() => handle.close());
}

/** Valid is what can be used: a file that can be read, a directory that can be entered and listed. */
async function validatePath(path: BytePath): Promise<object> {
  let isDir = false;
  try {
    isDir = (await stat(onDisk(path))).isDirectory();
    if (isDir) await stat(onDisk(`${path}/.`)); // the permission to enter it
    await (await (isDir ? opendir(onDisk(path)) : openRegularFile(path))).close();
    return { valid: true, isDir };
  } catch (error) {
    return {
      valid: false,
      isDir,
      error: error instanceof Failure ? error.message : `Cannot use "${wordsOf(path)}": ${reasonOf(error)}`,
    };
  }
}

function encodingParam(params: Params): "utf8" | "base64" {
  const encoding = optionalStringParam(params, "encoding") ?? "utf8";
  if (encoding === "utf8" || encoding === "utf-8") return "utf8";
  if (encoding === "base64") return "base64";
  throw invalidParam("encoding", encoding, '"utf8" or "base64"');
}

/** Octal digits, "0644", or the number itself, which JSON writes 420. */
function modeParam(params: Params): number | undefined {
  const value = params.mode ?? undefined;
  if (value === undefined) return undefined;
  const mode =
    typeof value === "string" && /^(0o)?[0-7]{1,5}$/.test(value) ? parseInt(value.replace("0o", ""), 8) : value;
  if (typeof mode === "number" && Number.isInteger(mode) && mode >= 0 && mode <= 0o7777) return mode;
  throw invalidParam("mode", value, 'octal digits such as "0644", or their number (420), at most 07777');
}

function requireRegularFile({ mode }: Stats, doing: string): void {
  const type = typeOf(mode);
  if (type !== undefined) throw notRegularFile(type[2], doing, type[1] === "d" ? "EISDIR" : "EINVAL");
}

function notRegularFile(what: string, doing: string, errno: string): Failure {
  return cannot(`${doing}: it is ${what}, it must be a regular file`, { data: { errno } });
}

function typeOf(mode: number): (typeof fileTypes)[number] | undefined {
  return fileTypes.find(([bits]) => (mode & constants.S_IFMT) === bits);
}

/** Turns a promise that fails because there is no such file into one of undefined. "/etc/passwd/x" is not absent, but wrong (ENOTDIR). */
async function unlessAbsent<T>(promise: Promise<T>): Promise<T | undefined> {
  return promise.catch((error: unknown) => {
    if (errnoOf(error) === "ENOENT") return undefined;
    throw error;
  });
}

/** Runs what completes "Cannot …", and makes its errors say so. */
async function during<T>(doing: string, action: () => Promise<T>): Promise<T> {
  try {
    return await action();
  } catch (error) {
    throw osFailure(doing, error);
  }
}
