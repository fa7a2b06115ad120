/**
 * Requests to methods to answers: JSON-RPC 2.0, the checks every request passes, and what an error looks like.
 *
 *     body -> parse -> auth -> jsonrpc, id -> method -> params -> the method -> answer
 *
 * It knows no method: the table is handed in (server.ts joins its own with those of processes.ts and files.ts). It knows no
 * framing and no stream: a body goes in, an answer's text comes out.
 */

import { cannot, errnoOf, errorCodes, Failure, reasonOf, safely } from "./failure.ts";
import { lengthOf, maxBodyBytes } from "./frame.ts";

/** Requests in one batch. They run side by side, so this bounds what one frame can set going. */
export const maxBatchLength = 1000;
/** What JSON.parse takes its time for, some 1 us each: objects, arrays, and members of objects. A batch of 1000 starts has 20 000. */
export const maxMembers = 32_768;
/** Values of arrays: a tenth of that each. The longest argument list of a process has 200 000. */
export const maxItems = 204_800;
/** Bytes of the names of members: V8 keeps each name once, and looks for it. */
export const maxNameBytes = 4 << 20;
/** Of a larger body so much is read at once, some 5 ms: others have their turn between. JSON.parse of all of it takes 10 ms, at most 40. Strangers send none. */
export const pieceBytes = 1 << 20;
/** Characters in an `id` that is a string. Every answer repeats it, also the one that says that another was too large. */
export const maxIdLength = 256;

/** What each answer of a batch has for itself in their frame. The one that says "too large" needs 1800, with the longest id. */
const reservedBytes = 2048;
/** Characters of a peer's own words that an error repeats; they may have 16 million. */
const maxEchoLength = 120;
/** Calling it is what makes a connection known, so it is the one method that needs no `auth`. */
const authenticateMethod = "server.authenticate";

export interface Peer {
  /** Names the connection in logs and in `detached` messages: "c12". */
  readonly id: string;
  /** Sends one message in the peer's own framing. Returns false when the peer has fallen behind; the message is sent all the same. */
  send(message: object): boolean;
  /** Bytes handed to send() and not yet taken by the kernel. */
  readonly unsentBytes: number;
  /** Calls `listener` each time a peer that had fallen behind has caught up. Returns a function that takes it back. */
  onDrain(listener: () => void): () => void;
  /** Calls `listener` once, when the connection has closed. Returns a function that takes it back. */
  onClose(listener: () => void): () => void;
  /** Closes the connection of a peer that speaks lines: clients of the public protocol know an end, not a `detached`. Returns whether it did. */
  endLines?(): boolean;
}

/** The `params` of a request: an object, or nothing (an empty object). By-position params are refused. */
export type Params = Record<string, unknown>;

/** One connection as its requests see it. */
export interface Caller {
  readonly peer: Peer;
  /** server.authenticate was called with a good token: later requests need no `auth`. */
  authenticated: boolean;
  /** A good token was seen at least once: the limits for strangers are off. */
  known: boolean;
  /** Requests that were refused for want of a good token, batched ones and notifications too. */
  refusals?: number;
  /** Set while not all methods of a batch have been called: what comes after it waits for that. */
  calling?: Promise<void> | undefined;
}

/** A result that is JSON already, without newlines: a large one is made, and sent, piece by piece, so that others have their turn. */
export class JsonPieces {
  readonly pieces: Buffer[];

  constructor(pieces: Buffer[]) {
    this.pieces = pieces;
  }
}

/** Returns the result or a promise of it; undefined answers null. Throws a Failure to answer an error of its own making. */
export type Method = (params: Params, caller: Caller) => unknown;
export type Methods = ReadonlyMap<string, Method>;

/** What requests need: the methods, and who judges tokens. */
export interface Rpc {
  /** By full name: "process.spawn". */
  methods: Methods;
  /** Says whether a token is good, in constant time. */
  isToken(token: string): boolean;
  /** Says where the token is, to whoever has none. */
  tokenHint?: string;
  /** Called for each request that is refused for want of a good token, batched ones and notifications too. */
  onUnauthorized?(caller: Caller): void;
  /** Called for each request that a method refuses or fails. */
  onFailure?(failure: Failure): void;
  /** Says that others are to have their turn before the next request of a batch. */
  isTurnOver?(): boolean;
  /** Settled when no large body is being read any more: one after the other. */
  reading?: Promise<unknown>;
}

type Id = string | number | null;
type Request = Record<string, unknown>;
export type Answer = string | Buffer[] | undefined;
/** Bytes left in a frame beyond the reserved ones. The answers of a batch share one, first come, first served. */
interface Room {
  bytes: number;
}

/** For a body that is decoded whole: it keeps nothing. */
const utf8 = new TextDecoder("utf-8", { fatal: true });

/** A body on its way to a message. */
interface Reading {
  readonly body: Uint8Array;
  readonly decoder: typeof utf8;
  /** What is decoded of it, from its start: nothing as long as it is ASCII, and may be taken as it is. */
  text: string;
  /** All of its bytes in one: below 0x80 it is ASCII so far. A small one is decoded in any case. */
  bits: number;
  /** How far it is decoded, and counted: where an escape is cut, a byte further. */
  at: number;
  countedAt: number;
  isInString: boolean;
  /** Where the last string began. */
  stringAt: number;
  members: number;
  items: number;
  nameBytes: number;
}

/**
 * Carries out the request, notification or batch in one body.
 *
 * Every method in it has been called, in order, when this returns, but for a large body, and for what is left of a batch: see `calling` of its
 * caller. A promise comes back only for that, or if one of them returned one.
 *
 * @param body As it came in a frame, not yet checked in any way.
 * @returns The answer's JSON, at most maxBodyBytes, in pieces or as one; undefined when there is nothing to answer. Never throws or rejects
 * for what a peer sends.
 */
export function handleBody(rpc: Rpc, body: Uint8Array, caller: Caller): Answer | Promise<Answer> {
  const isLarge = body.length > pieceBytes;
  const decoder = isLarge ? new TextDecoder("utf-8", { fatal: true }) : utf8;
  const reading: Reading = {
    ...{ body, decoder, text: "", bits: isLarge ? 0 : 0xff, at: 0, countedAt: 0 },
    ...{ isInString: false, stringAt: 0, members: 0, items: 0, nameBytes: 0 },
  };
  if (isLarge) return handleLarge(rpc, reading, caller);
  let message: unknown;
  try {
    readPiece(reading);
    message = JSON.parse(reading.text);
  } catch (error) {
    return refuseBody(reading, error);
  }
  return handleMessage(rpc, message, caller);
}

/** What comes after it waits until its methods have been called. */
function handleLarge(rpc: Rpc, reading: Reading, caller: Caller): Promise<Answer> {
  let answer: Answer | Promise<Answer>;
  const calling = readPieces(rpc.reading, reading).then(
    (message) => {
      caller.calling = undefined;
      answer = handleMessage(rpc, message, caller);
    },
    (error: unknown) => {
      caller.calling = undefined;
      answer = refuseBody(reading, error);
    },
  );
  rpc.reading = caller.calling = calling;
  return calling.then(() => answer);
}

async function readPieces(before: Promise<unknown> | undefined, reading: Reading): Promise<unknown> {
  for (await before; reading.at < reading.body.length; await othersTurn()) readPiece(reading);
  if (reading.bits < 0x80) reading.text = latin1Of(reading.body, reading.body.length);
  const message: unknown = JSON.parse(reading.text);
  await othersTurn();
  return message;
}

export function othersTurn(): Promise<void> {
  return new Promise((done) => setImmediate(done));
}

/** @throws {Failure} It is made to take long. {TypeError} It is not UTF-8. */
function readPiece(reading: Reading): void {
  const { body, at, decoder } = reading;
  const end = Math.min(at + pieceBytes, body.length);
  const wasAscii = reading.bits < 0x80;
  if (body.length > maxMembers) countParts(reading, end);
  if (wasAscii && reading.bits >= 0x80) reading.text = latin1Of(body, at);
  if (reading.bits >= 0x80) reading.text += decoder.decode(body.subarray(at, end), { stream: end < body.length });
  reading.at = end;
}

/** Of what is ASCII the same as decoded, but it takes no place in the heap, where 16 MB are several times as many while they are read. */
function latin1Of({ buffer, byteOffset }: Uint8Array, length: number): string {
  return Buffer.from(buffer, byteOffset, length).toString("latin1");
}

const [quote, comma, colon, bracket, backslash, brace] = [0x22, 0x2c, 0x3a, 0x5b, 0x5c, 0x7b];

/** 16 MiB of empty objects would take JSON.parse 4 s. What is not JSON is counted as if it were, and for JSON.parse to refuse. */
function countParts(reading: Reading, end: number): void {
  const { body } = reading;
  let { countedAt: at, bits, isInString, stringAt, members, items, nameBytes } = reading;
  for (; at < end; at++) {
    const byte = body[at]!;
    bits |= byte;
    if (byte === quote) {
      isInString = !isInString;
      if (isInString) stringAt = at;
    } else if (isInString) at += byte === backslash ? 1 : 0;
    else if (byte === comma) items++;
    else if (byte === brace || byte === bracket) members++;
    else if (byte === colon) {
      members++;
      nameBytes += at - stringAt;
    }
  }
  Object.assign(reading, { countedAt: at, bits, isInString, stringAt, members, items, nameBytes });
  if (members <= maxMembers && items <= maxItems && nameBytes <= maxNameBytes) return;
  const most = `at most ${maxMembers} objects, arrays and members, ${maxNameBytes} bytes of their names, and ${maxItems} values of arrays`;
  throw invalidRequest(`it has more parts than can be read at once, ${most} are accepted`);
}

function refuseBody({ body, text }: Reading, error: unknown): Answer {
  if (error instanceof Failure) return encodeError(null, error);
  const isText = !(error instanceof TypeError);
  const reason = body.length === 0 ? "the body is empty" : isText ? cut(reasonOf(error)) : "it is not UTF-8";
  const hint = isText && isPart(text) ? 'send one object a line: {"jsonrpc":"2.0","id":1,"method":…}' : undefined;
  return encodeError(null, new Failure("Parse error", { code: errorCodes.parse, data: { reason }, hint }));
}

/** What is not an object, or not a whole one: pretty-printed JSON comes in such lines. */
function isPart(text: string): boolean {
  const trimmed = text.trim();
  return trimmed !== "" && !(/^[{[]/.test(trimmed) && /[}\]]$/.test(trimmed));
}

function handleMessage(rpc: Rpc, message: unknown, caller: Caller): Answer | Promise<Answer> {
  return Array.isArray(message) ? handleBatch(rpc, message, caller) : handleRequest(rpc, message, caller);
}

function handleBatch(rpc: Rpc, batch: unknown[], caller: Caller): Answer | Promise<Answer> {
  if (batch.length === 0 || batch.length > maxBatchLength) {
    return encodeError(
      null,
      invalidRequest(`the batch has ${batch.length} requests, it must have 1 to ${maxBatchLength}`),
    );
  }
  const room = { bytes: maxBodyBytes - batch.length * (reservedBytes + "[]".length) };
  const answers: (Answer | Promise<Answer>)[] = [];
  if (!callSome(rpc, batch, answers, caller, room)) {
    caller.calling = callRest(rpc, batch, answers, caller, room).finally(() => {
      caller.calling = undefined;
    });
    return caller.calling.then(() => Promise.all(answers)).then(joinAnswers);
  }
  return answers.some((answer) => answer instanceof Promise)
    ? Promise.all(answers).then(joinAnswers)
    : joinAnswers(answers as Answer[]);
}

/** Calls methods of a batch until the turn is over. @returns Whether those were all. */
function callSome(rpc: Rpc, batch: unknown[], answers: unknown[], caller: Caller, room: Room): boolean {
  while (answers.length < batch.length) {
    if (answers.length > 0 && rpc.isTurnOver?.()) return false;
    answers.push(handleRequest(rpc, batch[answers.length], caller, room));
  }
  return true;
}

async function callRest(rpc: Rpc, batch: unknown[], answers: unknown[], caller: Caller, room: Room): Promise<void> {
  do await othersTurn();
  while (!callSome(rpc, batch, answers, caller, room));
}

function handleRequest(rpc: Rpc, request: unknown, caller: Caller, room?: Room): Answer | Promise<Answer> {
  if (!isObject(request))
    return encodeError(null, invalidRequest(`it is ${describe(request)}, it must be an object`), room);
  const id = isId(request.id) ? request.id : null;
  const silent = isNotification(request);
  const succeed = (result: unknown) => (silent ? undefined : encodeResult(id, result, room));
  const fail = (error: unknown) => {
    if (error instanceof Failure) rpc.onFailure?.(error);
    return silent ? undefined : encodeError(id, error, room);
  };
  try {
    checkAuth(rpc, request, caller);
    checkVersionAndId(request);
    const method = findMethod(rpc, request.method);
    const result = method(checkParams(request.params), caller);
    return result instanceof Promise ? result.then(succeed).catch(fail) : succeed(result);
  } catch (error) {
    return fail(error);
  }
}

/** A wrong token is refused even where none is needed; only server.authenticate is left to judge for itself. */
function checkAuth(rpc: Rpc, { auth, method }: Request, caller: Caller): void {
  const isMissing = auth === undefined || auth === null;
  if (typeof auth === "string" && rpc.isToken(auth)) caller.known = true;
  else if (method !== authenticateMethod && !(isMissing && caller.authenticated)) {
    caller.refusals = (caller.refusals ?? 0) + 1;
    rpc.onUnauthorized?.(caller);
    throw unauthorized(rpc.tokenHint);
  }
}

function findMethod({ methods }: Rpc, name: unknown): Method {
  if (typeof name !== "string") throw invalidRequest(`the method is ${describe(name)}, it must be a string`);
  const method = methods.get(name);
  if (method) return method;
  const dot = name.indexOf(".");
  if (dot < 1 || dot === name.length - 1) throw unknownMethod("Invalid method format", name);
  const namespace = name.slice(0, dot);
  const isKnown = [...methods.keys()].some((key) => key.startsWith(`${namespace}.`));
  throw isKnown ? unknownMethod("Unknown method", name) : unknownMethod("Unknown namespace", namespace);
}

/** Answers a frame that was not read because its body is over the limit. */
export function oversizeAnswer(oversizeBytes: number, limitBytes: number): string {
  return encodeError(
    null,
    cannot(`read frame: its body has ${oversizeBytes} bytes, at most ${limitBytes} are accepted`, {
      code: errorCodes.invalidRequest,
      hint:
        limitBytes < maxBodyBytes
          ? `call ${authenticateMethod} first: after it ${maxBodyBytes} are accepted`
          : undefined,
    }),
  );
}

/** One error, or an array of them for a batch; undefined where only notifications came. What cannot be read is answered with id null. */
export function answerTo(body: Buffer, failure: Failure): unknown {
  const answersTo = (request: unknown): unknown[] => {
    if (typeof request !== "object" || request === null) return [errorOf(null, failure)];
    return "id" in request ? [errorOf(request.id, failure)] : [];
  };
  const requests = safely((): unknown => JSON.parse(body.toString("utf8")));
  if (!Array.isArray(requests) || requests.length === 0) return answersTo(Array.isArray(requests) ? null : requests)[0];
  const answers = requests.flatMap(answersTo);
  return answers.length === 0 ? undefined : answers;
}

export function errorOf(id: unknown, { code, message, data, hint }: Failure): unknown {
  return { jsonrpc: "2.0", id, error: { code, message, data: { ...data, hint } } };
}

// What a method may ask of its params. Each helper reads one of them, and says in a -32602 Failure what is wrong with which.
// A parameter that may be absent may also be null: Python and Go clients send that.

/**
 * Refuses members that a method does not know: what is misspelt would else be a default, without a word.
 *
 * @param names Those that it knows, in the order in which they are to be told.
 */
export function knownParams(params: Params, names: readonly string[]): void {
  const unknown = Object.keys(params).find((name) => !names.includes(name));
  if (unknown === undefined) return;
  const known = names.length === 0 ? "it takes none" : `it takes ${names.join(", ")}`;
  throw cannot(`use parameter "${cut(unknown)}": this method does not know it, ${known}`, {
    code: errorCodes.invalidParams,
  });
}

/** Reads a string that must be there, and not be empty unless `empty` is true. */
export function stringParam(params: Params, name: string, options: { empty?: boolean } = {}): string {
  const value = Object.hasOwn(params, name) ? params[name] : undefined;
  if (typeof value === "string" && (value !== "" || options.empty === true)) return value;
  throw invalidParam(name, value, options.empty === true ? "a string" : "a non-empty string");
}

/** Reads a string, empty or not; undefined when it is absent. */
export function optionalStringParam(params: Params, name: string): string | undefined {
  const value = memberOf(params, name);
  if (value === undefined || typeof value === "string") return value;
  throw invalidParam(name, value, "a string");
}

/** Reads an integer from `min` to `max`. Without a default it must be there. */
export function integerParam(
  params: Params,
  name: string,
  range: { min: number; max: number; default?: number },
): number {
  const value = memberOf(params, name, range.default);
  if (typeof value === "number" && Number.isInteger(value) && value >= range.min && value <= range.max) return value;
  throw invalidParam(name, value, `an integer from ${range.min} to ${range.max}`);
}

/** Reads a limit, an integer of at most `max`. To clients of the public protocol 0 and negative numbers stand for the default: here, too. */
export function limitParam(params: Params, name: string, range: { max: number; default: number }): number {
  const value = integerParam(params, name, { min: Number.MIN_SAFE_INTEGER, ...range });
  return value > 0 ? value : range.default;
}

/** Reads true or false. */
export function booleanParam(params: Params, name: string, absent: boolean): boolean {
  const value = memberOf(params, name, absent);
  if (typeof value === "boolean") return value;
  throw invalidParam(name, value, "true or false");
}

/** Reads an array of strings; an empty one when it is absent. */
export function stringListParam(params: Params, name: string): string[] {
  const value = memberOf(params, name, []);
  if (!Array.isArray(value)) throw invalidParam(name, value, "an array of strings");
  return value.map((item: unknown, at) => {
    if (typeof item === "string") return item;
    throw invalidParam(`${name}[${at}]`, item, "a string");
  });
}

/** Reads an object whose values are strings. The one returned has no prototype: any name in it is just a name. */
export function stringMapParam(params: Params, name: string): Record<string, string> {
  const value = memberOf(params, name, {});
  if (!isObject(value)) throw invalidParam(name, value, "an object with string values");
  const map: Record<string, string> = Object.create(null);
  for (const [key, item] of Object.entries(value)) {
    if (typeof item !== "string") throw invalidParam(`${name}.${key}`, item, "a string");
    map[key] = item;
  }
  return map;
}

/**
 * Decodes base64 strictly: with its padding, and nothing in between (RFC 4648, section 4).
 *
 * @param name The parameter's, for the error.
 */
export function decodeBase64(text: string, name: string): Buffer {
  const bytes = Buffer.from(text, "base64");
  // Buffer.from skips what is not base64 and ends at a "=": then bytes are missing. It takes the URL's alphabet, too, and bits that are too many.
  const isWhole = text.length === Math.ceil(bytes.length / 3) * 4 && !text.includes("-") && !text.includes("_");
  if (isWhole && bytes.toString("base64", bytes.length - (bytes.length % 3 || 3)) === text.slice(-4)) return bytes;
  throw invalidParam(name, text, "base64 with padding");
}

/** Makes the Failure of the helpers above, for a method whose own check is another: `must` completes "it must be …". */
export function invalidParam(name: string, value: unknown, must: string): Failure {
  return cannot(`use parameter "${cut(name)}": it is ${describe(value)}, it must be ${must}`, {
    code: errorCodes.invalidParams,
  });
}

function memberOf(params: Params, name: string, absent?: unknown): unknown {
  return Object.hasOwn(params, name) && params[name] !== null && params[name] !== undefined ? params[name] : absent;
}

function joinAnswers(answers: Answer[]): Answer {
  const given = answers.filter((answer) => answer !== undefined);
  if (given.length === 0) return undefined;
  if (given.every((answer) => typeof answer === "string")) return `[${given.join(",")}]`;
  const pieces = given.flatMap((answer, at) => [
    Buffer.from(at === 0 ? "[" : ","),
    ...(typeof answer === "string" ? [Buffer.from(answer)] : answer!),
  ]);
  return [...pieces, Buffer.from("]")];
}

/** It is carried out, and never answered. */
export function isNotification(request: unknown): boolean {
  return (
    isObject(request) && request.id === undefined && request.jsonrpc === "2.0" && typeof request.method === "string"
  );
}

function checkVersionAndId(request: Request): void {
  if (request.jsonrpc !== "2.0") throw new Failure("Invalid JSON-RPC version", { code: errorCodes.invalidRequest });
  if (request.id === undefined || isId(request.id)) return;
  throw invalidRequest(
    `the id is ${describe(request.id)}, it must be a string of at most ${maxIdLength} characters, a number of at most 2^53 - 1 or null`,
  );
}

function checkParams(params: unknown): Params {
  if (params === undefined || params === null) return {};
  if (isObject(params)) return params;
  throw cannot(`use params: they are ${describe(params)}, they must be an object`, { code: errorCodes.invalidParams });
}

/** JSON.parse rounds a larger number, or makes infinity of it: the answer would have an id that nobody waits for. */
export function isId(value: unknown): value is Id {
  return (
    value === null ||
    (typeof value === "string"
      ? value.length <= maxIdLength
      : typeof value === "number" && Math.abs(value) <= Number.MAX_SAFE_INTEGER)
  );
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export function unauthorized(hint?: string): Failure {
  return new Failure("Unauthorized: invalid or missing auth token", { code: errorCodes.unauthorized, hint });
}

function invalidRequest(why: string): Failure {
  return new Failure(`Invalid request: ${why}`, { code: errorCodes.invalidRequest });
}

function unknownMethod(what: string, name: string): Failure {
  return new Failure(`${what}: ${cut(name)}`, { code: errorCodes.unknownMethod });
}

function encodeResult(id: Id, result: unknown, room?: Room): string | Buffer[] {
  if (result instanceof JsonPieces)
    return fit(
      id,
      [Buffer.from(`{"jsonrpc":"2.0","id":${JSON.stringify(id)},"result":`), ...result.pieces, Buffer.from("}")],
      room,
    );
  return fit(id, JSON.stringify({ jsonrpc: "2.0", id, result: result ?? null }), room);
}

/** @param id Null where there was no request, or it is not going to be read. */
export function encodeError(id: Id, error: unknown, room?: Room): string {
  return fit(id, JSON.stringify({ jsonrpc: "2.0", id, error: errorObject(error) }), room);
}

/** Never a stack: it is of no use to the peer, and names the daemon's files. */
function errorObject(error: unknown): { code: number; message: string; data?: object } {
  const isFailure = error instanceof Failure;
  const errno = errnoOf(error);
  const data: Record<string, unknown> = isFailure ? { ...error.data } : errno ? { errno } : {};
  if (isFailure && error.hint) data.hint = error.hint;
  return {
    code: isFailure ? error.code : errorCodes.internal,
    message: isFailure ? error.message : reasonOf(error),
    ...(Object.keys(data).length === 0 ? {} : { data }),
  };
}

/** Takes an answer's bytes from the room; where they do not fit, a short error goes in its place. */
function fit<T extends string | Buffer[]>(
  id: Id,
  answer: T,
  room: Room = { bytes: maxBodyBytes - reservedBytes },
): T | string {
  const bytes = typeof answer === "string" ? Buffer.byteLength(answer) : lengthOf(answer as Buffer[]);
  const bytesBeyond = Math.max(0, bytes - reservedBytes);
  if (bytesBeyond <= room.bytes) {
    room.bytes -= bytesBeyond;
    return answer;
  }
  const message = `Cannot send answer: it has ${bytes} bytes, its frame has room for ${room.bytes + reservedBytes}`;
  return JSON.stringify({ jsonrpc: "2.0", id, error: { code: errorCodes.internal, message } });
}

/** Says what a value from a peer is, briefly. */
function describe(value: unknown): string {
  if (value === undefined) return "absent";
  if (Array.isArray(value)) return "an array";
  if (isObject(value)) return "an object";
  return typeof value === "string" ? JSON.stringify(cut(value)) : String(value);
}

/** Cuts a peer's text to a length that can be repeated. Half a surrogate pair is left out: strict JSON parsers refuse it. */
function cut(text: string): string {
  return text.length <= maxEchoLength ? text : `${text.slice(0, maxEchoLength).replace(/[\uD800-\uDBFF]$/, "")}…`;
}
