/** Requests: any JSON, in any batch, with and without a token, against a second, naive reading of JSON-RPC 2.0 and of the wire's rules. */

import { errorCodes, Failure } from "../../failure.ts";
import type { Caller, Method, Params, Peer } from "../../rpc.ts";
import * as rpc from "../../rpc.ts";
import { mutateMembers, oddNames, randomJson, randomString, writeArray, writeObject } from "./json.ts";
import type { Random } from "./random.ts";
import { mutateBytes, pick } from "./random.ts";
import type { Target } from "./target.ts";
import { demand } from "./target.ts";

const token = "good token";

export const rpcTarget: Target = { name: "rpc", run: (useCheck) => useCheck(checkRequests) };

/** What a method is to make of its params, read a second time: a result, or an error's code. */
type Second = (params: any, state: State) => { result: unknown } | { code: number };

/** A connection, as far as a token made it known. */
export interface State {
  authenticated: boolean;
  known: boolean;
}

/** Params that the methods below were called with, oldest first. */
let calls: Params[] = [];
let expectedCalls: unknown[] = [];

const invalid = { code: errorCodes.invalidParams };
const own = (params: any, name: string): any =>
  Object.hasOwn(params, name) && params[name] !== null ? params[name] : undefined;
const isText = (value: unknown): boolean => typeof value === "string";
const isPlain = (value: unknown): boolean => value !== null && typeof value === "object" && !Array.isArray(value);

const noteExpected: Second = (params) => {
  expectedCalls.push(params);
  return { result: null };
};
/** Each method twice: what is called, and what is expected of it. */
const methods: Record<string, [Method, Second]> = {
  "server.ping": [() => ({ pong: true }), () => ({ result: { pong: true } })],
  "server.authenticate": [
    (params, caller) => {
      if (rpc.stringParam(params, "token") !== token)
        throw new Failure("Unauthorized: invalid or missing auth token", { code: errorCodes.unauthorized });
      caller.authenticated = caller.known = true;
      return { authenticated: true };
    },
    (params, state) => expectAuthenticated(params, state, token),
  ],
  "test.echo": [(params) => params, (params) => ({ result: params })],
  "test.later": [async (params) => params, (params) => ({ result: params })],
  "test.note": [(params) => void calls.push(params), noteExpected],
  "test.failure": [
    () => {
      throw new Failure("Cannot do it", { code: -32002, data: { applied: 7 } });
    },
    () => ({ code: -32002 }),
  ],
  "test.failureLater": [
    async () => {
      throw new Failure("Cannot do it", { code: -32002, data: { applied: 7 } });
    },
    () => ({ code: -32002 }),
  ],
  "test.error": [
    () => {
      throw new RangeError("out of range");
    },
    () => ({ code: errorCodes.internal }),
  ],
  "test.bigint": [async () => 1n, () => ({ code: errorCodes.internal })],
  "test.string": [
    (params) => rpc.stringParam(params, "id"),
    (params) => {
      const value = own(params, "id");
      return isText(value) && value !== "" ? { result: value } : invalid;
    },
  ],
  "test.own": [
    (params) => rpc.optionalStringParam(params, "__proto__") ?? "absent",
    (params) => {
      const value = own(params, "__proto__");
      return value === undefined ? { result: "absent" } : isText(value) ? { result: value } : invalid;
    },
  ],
  "test.integer": [
    (params) => rpc.integerParam(params, "offset", { min: 0, max: 2 ** 32, default: 7 }),
    (params) => {
      const value = own(params, "offset") ?? 7;
      return typeof value === "number" && value % 1 === 0 && value >= 0 && value <= 2 ** 32
        ? { result: value }
        : invalid;
    },
  ],
  "test.boolean": [
    (params) => rpc.booleanParam(params, "constructor", false),
    (params) => {
      const value = own(params, "constructor") ?? false;
      return value === true || value === false ? { result: value } : invalid;
    },
  ],
  "test.list": [
    (params) => rpc.stringListParam(params, "args"),
    (params) => {
      const value = own(params, "args") ?? [];
      return Array.isArray(value) && value.every(isText) ? { result: value } : invalid;
    },
  ],
  "test.map": [
    (params) => Object.entries(rpc.stringMapParam(params, "env")),
    (params) => {
      const value = own(params, "env") ?? {};
      return isPlain(value) && Object.values(value).every(isText) ? { result: Object.entries(value) } : invalid;
    },
  ],
};
const methodNames = Object.keys(methods);
const paramNames = ["token", "id", "offset", "args", "env", ...oddNames];

let refused = 0;
const tested: rpc.Rpc = {
  methods: new Map(Object.entries(methods).map(([name, [method]]) => [name, method])),
  isToken: (given) => given === token,
  onUnauthorized: () => void refused++,
};
const peer: Peer = { id: "c1", send: () => true, unsentBytes: 0, onDrain: () => () => {}, onClose: () => () => {} };
const ownMembers = Reflect.ownKeys(Object.prototype).length;

export function checkRequests(random: Random): void | Promise<void> {
  const authenticated = random(4) === 0;
  const caller: Caller = { peer, authenticated, known: authenticated };
  return checkBodies(
    Array.from({ length: random(4) === 0 ? 2 : 1 }, () => randomBody(random)),
    caller,
    { authenticated, known: authenticated },
  );
}

/** One after the other, as on one connection; waits only where it has to. */
function checkBodies([body, ...rest]: Buffer[], caller: Caller, state: State): void | Promise<void> {
  if (body === undefined) return;
  calls = [];
  expectedCalls = [];
  refused = 0;
  const expected = expectAnswers(body, state, token, (name, params) => methods[name]![1](params, state), methodNames);
  const answer = rpc.handleBody(tested, body, caller);
  const check = (given: rpc.Answer): void | Promise<void> => {
    const text = typeof given === "object" ? String(Buffer.concat(given)) : given;
    const problem = answersProblem(text, expected);
    demand(problem === undefined, `${problem}`, body, text, expected);
    if (calls.length > 0 || expectedCalls.length > 0)
      demand(
        JSON.stringify(calls) === JSON.stringify(expectedCalls),
        "Other calls were made",
        body,
        calls,
        expectedCalls,
      );
    demand(
      caller.known === state.known && caller.authenticated === state.authenticated,
      "The token was judged otherwise",
      body,
      caller,
      state,
    );
    demand(refused === expected.refused, "Refusals were not told of", body, refused, expected.refused);
    demand(Reflect.ownKeys(Object.prototype).length === ownMembers, "Object.prototype has changed", body);
    return checkBodies(rest, caller, state);
  };
  return answer instanceof Promise ? answer.then(check) : check(answer);
}

function randomBody(random: Random): Buffer {
  const kind = random(16);
  const requests = (length: number): string[] =>
    Array.from({ length }, () => (random(8) === 0 ? randomJson(random) : randomRequest(random)));
  const text =
    kind === 0
      ? randomJson(random)
      : kind > 3
        ? randomRequest(random)
        : random(1000) > 0
          ? writeArray(random, requests(random(5)))
          : writeArray(
              random,
              Array.from({ length: rpc.maxBatchLength - 1 + random(3) }, () => pick(random, ["1", "{}", ping])),
            );
  const body = Buffer.from(random(50) === 0 ? `\ufeff${text}` : text);
  return random(4) === 0 ? mutateBytes(random, body) : body;
}

const ping = JSON.stringify({ jsonrpc: "2.0", id: 1, method: "server.ping", auth: token });

function randomRequest(random: Random): string {
  const name =
    random(12) === 0
      ? pick(random, [`server.${pick(random, oddNames)}`, `${pick(random, oddNames)}.x`, pick(random, oddNames)])
      : pick(random, methodNames);
  const good = name === "server.authenticate" && random(2) === 0;
  const params = good
    ? JSON.stringify({ token })
    : random(20) === 0
      ? randomJson(random)
      : writeObject(random, randomParams(random));
  return writeObject(
    random,
    mutateMembers(random, [
      ["jsonrpc", '"2.0"'],
      ...(random(8) === 0 ? [] : [["id", randomId(random)] as [string, string]]),
      ["method", randomString(random, name)],
      ...(random(4) === 0 ? [] : [["params", params] as [string, string]]),
      ...(random(6) === 0 ? [] : [["auth", random(12) === 0 ? '"bad"' : JSON.stringify(token)] as [string, string]]),
    ]),
  );
}

function randomParams(random: Random): [string, string][] {
  return Array.from({ length: random(4) }, () => {
    const name = pick(random, paramNames);
    const texts: Record<string, string> = {
      args: '["a",""]',
      env: '{"A":"b","__proto__":"c"}',
      offset: pick(random, ["0", "5", "4294967296", "4294967297"]),
    };
    return [name, random(3) === 0 ? randomJson(random) : (texts[name] ?? '"text"')];
  });
}

function randomId(random: Random): string {
  return random(3) === 0
    ? randomJson(random)
    : pick(random, ["1", "2", "7", '"a"', '"7"', "null", `"${"i".repeat(256)}"`, `"${"i".repeat(257)}"`]);
}

// What must come back, read a second time

/** What server.authenticate makes of its params, and of the connection. */
export function expectAuthenticated(params: any, state: State, token: string): { result: unknown } | { code: number } {
  const given = own(params, "token");
  if (!isText(given) || given === "") return invalid;
  if (given !== token) return { code: errorCodes.unauthorized };
  state.authenticated = state.known = true;
  return { result: { authenticated: true } };
}

export interface ExpectedAnswer {
  id: unknown;
  /** Of an error; undefined of a result, or when either will do. */
  code?: number;
  result?: unknown;
  /** The beginning of the error's message. */
  words?: string;
  /** The method's own business. */
  any?: true;
}

export interface Expected {
  isBatch: boolean;
  answers: ExpectedAnswer[];
  /** Requests refused for want of a good token. */
  refused: number;
}

/**
 * Says what a body is to be answered with.
 *
 * @param call What is expected of a method of the table; undefined when any result or error will do.
 */
export function expectAnswers(
  body: Buffer,
  state: State,
  token: string,
  call: (name: string, params: any) => { result: unknown } | { code: number } | undefined,
  names: string[],
): Expected {
  const expected: Expected = { isBatch: false, answers: [], refused: 0 };
  const fail = (id: unknown, code: number, words?: string) => ({ id, code, ...(words === undefined ? {} : { words }) });
  const text = body.toString();
  let message: any;
  try {
    message = JSON.parse(text.replace(/^\ufeff/, ""));
  } catch {
    return { ...expected, answers: [fail(null, -32700, "Parse error")] };
  }
  if (!Buffer.from(text).equals(body)) return { ...expected, answers: [fail(null, -32700, "Parse error")] };
  if (!Array.isArray(message)) {
    expected.answers = answer(message);
    return expected;
  }
  if (message.length < 1 || message.length > 1000)
    return { ...expected, answers: [fail(null, -32600, "Invalid request: the batch has")] };
  expected.isBatch = true;
  expected.answers = message.flatMap(answer);
  return expected;

  function answer(request: any): ExpectedAnswer[] {
    if (!isPlain(request)) return [fail(null, -32600, "Invalid request: it is ")];
    const { jsonrpc, id, method } = request;
    const isId = canBeId(id);
    const isNotification = !("id" in request) && jsonrpc === "2.0" && isText(method);
    const one = judge(request, isId ? id : null);
    return isNotification ? [] : [one];
  }

  function judge(request: any, id: unknown): ExpectedAnswer {
    const { method, auth } = request;
    if (auth === token) state.known = true;
    else if (method !== "server.authenticate" && !((auth ?? null) === null && state.authenticated)) {
      expected.refused++;
      return fail(id, -32001, "Unauthorized: invalid or missing auth token");
    }
    const words = wordsOfInvalid(request);
    if (words !== undefined) return fail(id, -32600, words);
    if (!names.includes(method)) return fail(id, -32601, wordsOfUnknown(method, names));
    const params = request.params ?? {};
    if (!isPlain(params)) return fail(id, -32602, "Cannot use params: they are ");
    const outcome = call(method, params);
    return outcome === undefined ? { id, any: true } : { id, ...outcome };
  }
}

/** How the error of what is no request begins; undefined where it is one. */
function wordsOfInvalid(request: any): string | undefined {
  if (request.jsonrpc !== "2.0") return "Invalid JSON-RPC version";
  if ("id" in request && !canBeId(request.id)) return "Invalid request: the id is ";
  return isText(request.method) ? undefined : "Invalid request: the method is ";
}

function canBeId(id: unknown): boolean {
  if (typeof id === "number") return id > -(2 ** 53) && id < 2 ** 53;
  return id === null || (typeof id === "string" && id.length <= 256);
}

/** How the error of a method that is not there begins. */
function wordsOfUnknown(method: string, names: string[]): string {
  const [, space] = /^([^.]+)\.[\s\S]/.exec(method) ?? [];
  if (space === undefined) return "Invalid method format: ";
  return names.some((name) => name.split(".")[0] === space) ? "Unknown method: " : "Unknown namespace: ";
}

/** Words that no error has for a peer: they are of somebody who did not look at what came. */
const clumsy =
  /undefined|is not a function|is not iterable|Cannot read prop|Cannot convert|call stack|\[object |\n {4}at /;

/** Compares what came with what must. Returns what is wrong. */
export function answersProblem(text: string | undefined, { isBatch, answers }: Expected): string | undefined {
  if (answers.length === 0) return text === undefined ? undefined : "There is an answer to nothing but notifications";
  if (text === undefined) return "There is no answer";
  if (Buffer.from(text).toString() !== text) return "The answer is not UTF-8";
  const found = JSON.parse(text);
  if (Array.isArray(found) !== isBatch) return isBatch ? "The answer is no batch" : "The answer is a batch";
  const list: any[] = isBatch ? found : [found];
  if (list.length !== answers.length) return `There are ${list.length} answers, ${answers.length} were expected`;
  for (const [at, one] of list.entries()) {
    const problem = answerProblem(one, answers[at]!);
    if (problem !== undefined) return `${problem} (answer ${at})`;
  }
  return undefined;
}

export function answerProblem(found: any, expected: ExpectedAnswer): string | undefined {
  if (!isPlain(found)) return "The answer is no object";
  const isError = "error" in found;
  if (Object.keys(found).join() !== (isError ? "jsonrpc,id,error" : "jsonrpc,id,result"))
    return `It has the members ${Object.keys(found)}`;
  if (found.jsonrpc !== "2.0") return "It has another version";
  if (!Object.is(found.id, expected.id) && !(found.id === 0 && expected.id === 0))
    return `It has the id ${JSON.stringify(found.id)}, not ${JSON.stringify(expected.id)}`;
  if (isError) return errorProblem(found.error, expected);
  if (expected.any) return undefined;
  if (expected.code !== undefined) return `It is a result, not the error ${expected.code}`;
  return JSON.stringify(found.result) === JSON.stringify(expected.result) ? undefined : "It has another result";
}

function errorProblem({ code, message, data, ...rest }: any, expected: ExpectedAnswer): string | undefined {
  if (!Number.isInteger(code) || typeof message !== "string" || message === "" || message.length > 1000)
    return "It is a malformed error";
  if (Object.keys(rest).length > 0 || (data !== undefined && !isPlain(data))) return "Its error has other members";
  if (clumsy.test(message)) return "Its words are those of an error of ours";
  if (expected.any) return undefined;
  if (code !== expected.code) return `It has the code ${code}, not ${expected.code}`;
  return expected.words === undefined || message.startsWith(expected.words)
    ? undefined
    : `It does not begin with "${expected.words}"`;
}
