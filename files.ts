/**
 * files.*: what a client may ask of the host's files: stat, list, read, write, validate.
 *
 * `~` and `~/x` mean the user's home, and a relative path begins there too: the daemon's own directory means nothing to a client.
 * Symbolic links are followed. Only regular files are opened: a FIFO would hang, and to open a device can set it going. Nothing here
 * blocks the event loop; a file system that does not answer is left to lanes.ts.
 */

import { Buffer } from "node:buffer";
import { randomBytes } from "node:crypto";
import { constants } from "node:fs";
import type { Stats } from "node:fs";
import { lstat, mkdir, open, opendir, readlink, realpath, rename, stat, unlink } from "node:fs/promises";
import type { FileHandle } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { cannot, errnoOf, Failure, osFailure, reasonOf } from "./failure.ts";
import { maxBodyBytes } from "./frame.ts";
import { createLanes, runInLane } from "./lanes.ts";
import type { Lanes } from "./lanes.ts";
import { booleanParam, integerParam, invalidParam, JsonPieces, optionalStringParam, stringParam } from "./rpc.ts";
import type { Method, Methods, Params } from "./rpc.ts";

/** files.read without maxBytes: enough for a source file, little enough for any connection. */
const defaultReadBytes = 262_144;
/** One read(2), and so what a small file costs. */
const readStepBytes = 1 << 16;
/** A window of UTF-8 that is smaller may hold no whole character, and a client that pages would stand still. */
const minTextBytes = 4;
/** As many links as the kernel follows (path_resolution(7)). */
const maxLinks = 40;
/** Entries that are read, sorted or encoded at once, some 0.5 ms: between two such steps others have their turn. */
const listStep = 128;

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

interface Entry {
  name: string;
  path: string;
  /** Of what a symbolic link leads to. */
  isDir: boolean;
  isSymlink?: true;
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
    (run: (path: string, params: Params) => Promise<object>, sizeOf?: (params: Params) => "small" | "large"): Method =>
    (params, caller) => {
      const path = resolvePath(stringParam(params, "path"), home);
      return runInLane(lanes, path, () => run(path, params), sizeOf?.(params), sizeOf && caller?.peer);
    };
  return new Map<string, Method>([
    ["files.stat", on(statPath)],
    [
      "files.list",
      on(
        (path, params) => listDirectory(path, booleanParam(params, "includeHidden", false), lanes),
        () => "large",
      ),
    ],
    ["files.read", on(readFile, ({ maxBytes }) => (Number(maxBytes) > defaultReadBytes ? "large" : "small"))],
    ["files.write", on(writeFile)],
    ["files.validate", on(validatePath)],
  ]);
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

/**
 * Decodes base64 strictly: with its padding, and nothing in between (RFC 4648, section 4).
 *
 * @param name The parameter's, for the error.
 */
export function decodeBase64(text: string, name: string): Buffer {
  const bytes = Buffer.from(text, "base64");
  // Buffer.from skips what is not base64, takes the URL's alphabet too and ends at a "=": the way back shows all of that
  if (bytes.toString("base64") === text) return bytes;
  throw invalidParam(name, text, "base64 with padding");
}

async function statPath(path: string): Promise<object> {
  const stats = await during(`stat "${path}"`, () => unlessAbsent(stat(path)));
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

/** A name that is not UTF-8 is listed with U+FFFD in it, and cannot be opened by that: JSON has no other bytes. */
async function listDirectory(path: string, includeHidden: boolean, lanes: Lanes): Promise<JsonPieces> {
  const runs: Run[] = [];
  let run: Run = [];
  const prefix = path.endsWith("/") ? path : `${path}/`;
  let bytes = 0;
  await during(`list "${path}"`, async () => {
    for await (const entry of await opendir(path, { bufferSize: listStep })) {
      const { name } = entry;
      if (name.startsWith(".") && !includeHidden) continue;
      const isSymlink = entry.isSymbolicLink();
      const full = prefix + name;
      const isDir = isSymlink
        ? (await runInLane(lanes, full, () => stat(full), "nested").catch(() => undefined))?.isDirectory() === true
        : entry.isDirectory();
      const found: Entry = { name, path: full, isDir, ...(isSymlink ? { isSymlink } : {}) };
      if (run.push(`${sortKey(name)}\0${JSON.stringify(found)}`) === listStep) runs.push(run.sort()), (run = []);
      if ((bytes += name.length + full.length) > maxBodyBytes) {
        throw cannot(
          `list "${path}": the names in it have more than ${maxBodyBytes} bytes, an answer has at most that many`,
        );
      }
    }
  });
  runs.push(run.sort());
  while (runs.length > 1) runs.push(await merge(runs.shift()!, runs.shift()!));
  const [all] = runs as [Run];
  const pieces = [Buffer.from('{"entries":[')];
  for (let at = 0; at < all.length; at += listStep) {
    if (at > 0) await othersTurn();
    pieces.push(
      Buffer.from(
        (at > 0 ? "," : "") +
          all
            .slice(at, at + listStep)
            .map((text) => text.slice(text.indexOf("\0") + 1))
            .join(),
      ),
    );
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

function othersTurn(): Promise<void> {
  return new Promise((done) => setImmediate(done));
}

/** `<` compares UTF-16 units, which is the order of UTF-8 bytes only up to U+D7FF. One character per byte gives it for all names. */
function sortKey(name: string): string {
  return /^[\0-\x7f]*$/.test(name) ? name : Buffer.from(name).toString("latin1");
}

/**
 * Without `offset` the whole file must fit into `maxBytes`. With it, at most `maxBytes` from there on are read, and `nextOffset` says
 * where to go on. Characters that the edges of such a window cut are left to its neighbours.
 */
async function readFile(path: string, params: Params): Promise<object> {
  const encoding = encodingParam(params);
  const isWindow = (params.offset ?? undefined) !== undefined;
  const offset = integerParam(params, "offset", { min: 0, max: Number.MAX_SAFE_INTEGER, default: 0 });
  const asked = integerParam(params, "maxBytes", { min: 1, max: Number.MAX_SAFE_INTEGER, default: defaultReadBytes });
  const maxBytes = Math.min(isWindow && encoding === "utf8" ? Math.max(asked, minTextBytes) : asked, maxBodyBytes);
  return during(`read "${path}"`, async () => {
    const handle = await unlessAbsent(openRegularFile(path));
    if (!handle) return { content: "", exists: false };
    try {
      const { size } = await handle.stat();
      if (!isWindow && size > maxBytes) throw tooLarge(path, `${size}`, maxBytes);
      const bytes = await readBytes(handle, offset, isWindow ? maxBytes : maxBytes + 1);
      if (!isWindow && bytes.length > maxBytes) throw tooLarge(path, `more than ${maxBytes}`, maxBytes); // in /proc, or it grows
      const answer = (content: string, nextOffset: number): object => {
        const found = { content, exists: true, size: Math.max(size, bytes.length === 0 ? 0 : offset + bytes.length) };
        return isWindow ? { ...found, nextOffset } : found;
      };
      if (encoding === "base64") return answer(bytes.toString("base64"), offset + bytes.length);
      const from = offset > 0 ? /^[\x80-\xbf]{0,3}/.exec(bytes.toString("latin1", 0, 3))![0].length : 0; // of a character that the last window left
      const content = decodeText(bytes.subarray(from), path, isWindow);
      return answer(content, offset + from + Buffer.byteLength(content));
    } finally {
      await handle.close();
    }
  });
}

/** Looks before it opens, and again after: between the two the path may have become another file, for which O_NONBLOCK is there. */
async function openRegularFile(path: string): Promise<FileHandle> {
  requireRegularFile(await stat(path), `read "${path}"`);
  const handle = await open(path, constants.O_RDONLY | carefully);
  try {
    requireRegularFile(await handle.stat(), `read "${path}"`);
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

/**
 * Refuses what is not UTF-8: with replacement characters in it, a file that is read, edited and written would be spoilt.
 *
 * @param stream A character that the end cuts is left out, but not when it is all there is.
 */
function decodeText(bytes: Buffer, path: string, stream: boolean): string {
  try {
    const options = { fatal: true, ignoreBOM: true }; // ignoreBOM keeps it
    return (
      new TextDecoder("utf-8", options).decode(bytes, { stream }) || new TextDecoder("utf-8", options).decode(bytes)
    );
  } catch (error) {
    const data = { errno: "EILSEQ" };
    throw cannot(`read "${path}" as utf8: it is not UTF-8`, {
      data,
      hint: 'read it with encoding "base64"',
      cause: error,
    });
  }
}

function tooLarge(path: string, size: string, maxBytes: number): Failure {
  return cannot(`read "${path}": it has ${size} bytes, at most ${maxBytes} are read at once`, {
    data: { errno: "EFBIG", maxBytes },
    hint: "raise maxBytes, or read it in parts with offset",
  });
}

/**
 * Replaces a file's content at once or not at all: the bytes go to a temporary file beside it, to the disk, and then under its name.
 *
 * The mode is the one given, else that of the file replaced, else what the umask leaves of 0666. The owner is kept where we may do
 * that, and a file that we may not write is refused, though its directory would let us. Other hard links keep the old content.
 */
async function writeFile(path: string, params: Params): Promise<object> {
  const content = stringParam(params, "content", { empty: true });
  const bytes = encodingParam(params) === "base64" ? decodeBase64(content, "content") : Buffer.from(content);
  const mode = modeParam(params);
  const createDirs = booleanParam(params, "createDirs", false);
  const doing = `write "${path}"`;
  return during(doing, async () => {
    if (path.endsWith("/")) throw notRegularFile("a directory", doing, "EISDIR");
    if (createDirs) await mkdir(dirname(path), { recursive: true });
    const { target, old } = await followLinks(path);
    if (old) {
      requireRegularFile(old, doing);
      await requireWritable(target);
    }
    await replaceFile(target, bytes, mode, old);
    return { written: bytes.length };
  });
}

/** By opening it: Deno's access(2) is its own, and knows no root. A program that runs may be replaced, though not be written. */
async function requireWritable(path: string): Promise<void> {
  const handle = await open(path, constants.O_WRONLY | carefully).catch((error: unknown) => {
    if (errnoOf(error) !== "ETXTBSY") throw error;
  });
  await handle?.close();
}

/** Finds the file that a path means, and whether it exists: a link to what is not there yet means that. */
async function followLinks(path: string): Promise<{ target: string; old: Stats | undefined }> {
  let next = path;
  for (let links = 0; links <= maxLinks; links++) {
    const directory = await realpath(dirname(next));
    const target = join(directory, basename(next));
    const old = await unlessAbsent(lstat(target));
    if (!old?.isSymbolicLink()) return { target, old };
    const link = await readlink(target);
    next = link.startsWith("/") ? link : `${directory}/${link}`;
  }
  throw Object.assign(new Error("ELOOP: too many symbolic links encountered"), { code: "ELOOP" });
}

async function replaceFile(
  target: string,
  bytes: Buffer,
  mode: number | undefined,
  old: Stats | undefined,
): Promise<void> {
  const temporary = join(dirname(target), `.holdfast-${randomBytes(8).toString("hex")}.tmp`);
  const handle = await open(temporary, "wx", mode === undefined && !old ? 0o666 : 0o600);
  try {
    try {
      await handle.writeFile(bytes);
      const isOwned =
        !old ||
        (await handle.chown(old.uid, old.gid).then(
          () => true,
          () => false,
        ));
      const kept = old && old.mode & (isOwned ? 0o7777 : 0o777); // set-uid of another user is not ours to give
      const wanted = mode === undefined ? kept : mode;
      if (wanted !== undefined) await handle.chmod(wanted); // after chown, which clears set-uid
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(temporary, target);
  } catch (error) {
    await unlink(temporary).catch(() => {});
    throw error;
  }
  await syncDirectory(dirname(target)).catch(() => {}); // not every file system can; the file itself is safe
}

async function syncDirectory(path: string): Promise<void> {
  const handle = await open(path, constants.O_RDONLY | constants.O_DIRECTORY);
  await handle.sync().finally(() => handle.close());
}

/** Valid is what can be used: a file that can be read, a directory that can be entered and listed. */
async function validatePath(path: string): Promise<object> {
  let isDir = false;
  try {
    isDir = (await stat(path)).isDirectory();
    if (isDir) await stat(`${path}/.`); // the permission to enter it
    await (await (isDir ? opendir(path) : openRegularFile(path))).close();
    return { valid: true, isDir };
  } catch (error) {
    return {
      valid: false,
      isDir,
      error: error instanceof Failure ? error.message : `Cannot use "${path}": ${reasonOf(error)}`,
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

/** Turns a promise that fails because there is no such file into one of undefined. "/etc/passwd/x" is absent, too. */
async function unlessAbsent<T>(promise: Promise<T>): Promise<T | undefined> {
  return promise.catch((error: unknown) => {
    if (["ENOENT", "ENOTDIR"].includes(errnoOf(error) || "")) return undefined;
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
