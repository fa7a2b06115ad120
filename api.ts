/**
 * The API of this program when it is imported: for scripts in JavaScript that start daemons, connect to them, and run processes there.
 *
 *     import { connect, serve } from "./holdfast.cjs";   // or: const { connect, serve } = require("./holdfast.js")
 *
 *     const there = await connect({ command: ["ssh", "host", "./holdfast.js --bridge"], token });
 *     const make = await there.spawn({ id: "build", command: "make", onOutput: ({ data }) => process.stdout.write(data) });
 *     console.log(await make.exit);                      // { exitCode: 0 }
 *     there.close();
 *
 * After a lost connection: connect again, then `there.reattach("build", { fromSeq: make.lastSeq, onOutput })`, and nothing is missed.
 */

import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import type { Client, Message } from "./client.ts";
import { connectClient, createClient } from "./client.ts";
import { startServer } from "./control.ts";
import { cannot, errorCodes, Failure } from "./failure.ts";
import { daemonCommand, version } from "./program.ts";
import { connectOwned } from "./reach.ts";
import { sleep } from "./record.ts";
import { hashToken, makeRunDirectory, ownToken, placesOf } from "./socket.ts";

const connectMs = 20_000;
/** A stdin request carries this much, before base64. */
const stdinChunkBytes = 256 << 10;
const stdinRetryMs = 20;
/** What the command of a connection says on stderr is kept for the words of its failure, this much of its end. */
const maxStderrLength = 2000;

export interface ConnectOptions {
  /** A daemon's socket on this machine; the default one when neither this nor `command` is given. */
  socket?: string;
  /** Program and arguments whose stdin and stdout lead to a daemon: `["ssh", "host", "./holdfast.js --bridge"]`. */
  command?: string[];
  /** A token of the daemon. Not needed for a socket whose record is ours to read. */
  token?: string;
  /** For the connection and the first answer, in milliseconds; 20000 by default. */
  timeoutMs?: number;
  /** Takes what `command` writes to stderr; else it is kept for the words of a failure. */
  onStderr?: (text: string) => void;
}

/** What `request` and all others reject with. */
export interface HoldfastError extends Error {
  /** The JSON-RPC error code: -32010 when there is no daemon, or the connection is lost. */
  code: number;
  /** The command that mends it, if one does. */
  hint: string | undefined;
  /** `errno`, or the `reason` why there is no daemon. */
  data: Record<string, unknown> | undefined;
}

export interface Connection {
  /** Tells one daemon from the next: as long as it stays the same, the processes are still there. */
  readonly instanceId: string;
  /** The answer to server.capabilities. */
  readonly capabilities: Record<string, unknown>;
  /** Calls any method of the protocol. Rejects with a HoldfastError. */
  request(method: string, params?: Record<string, unknown>, options?: { timeoutMs?: number }): Promise<unknown>;
  /** Starts a process, whose output comes to this connection. */
  spawn(options: SpawnOptions): Promise<RemoteProcess>;
  /** Takes up a process that runs, or has ended: its output from after `fromSeq` on. Rejects when there is no such process. */
  reattach(id: string, options?: ReattachOptions): Promise<RemoteProcess>;
  /** Ends the connection. Processes go on. */
  close(): void;
  /** Resolves when the connection has ended, to why. */
  readonly closed: Promise<{ reason: string; message: string; hint?: string }>;
}

export interface SpawnOptions {
  /** The name of the process, to reattach by; a random one by default. */
  id?: string;
  command: string;
  args?: string[];
  cwd?: string;
  /** Merged over the daemon's environment. */
  env?: Record<string, string>;
  onOutput?: (output: Output) => void;
}

export interface ReattachOptions {
  /** The last message that was seen: `lastSeq` of the earlier RemoteProcess. 0 by default: from the beginning. */
  fromSeq?: number;
  onOutput?: (output: Output) => void;
}

export interface Output {
  stream: "stdout" | "stderr";
  data: Uint8Array;
  /** Counts from 1 over both streams, without gaps. */
  seq: number;
}

export interface Exit {
  /** 128 and the signal's number when a signal ended it. */
  exitCode: number;
  signal?: string;
  /** "client" when it was killed through the daemon. */
  killedBy?: string;
}

export interface RemoteProcess {
  readonly id: string;
  /** Of the last message that was seen. */
  readonly lastSeq: number;
  /** So many messages were not held any more when it was reattached. */
  readonly missed: number;
  /** Resolves at its end, after all output. Rejects when the connection is lost, or another one takes the process over. */
  readonly exit: Promise<Exit>;
  /** Writes to its stdin, in order. Resolves when the daemon has taken all of it. */
  write(data: string | Uint8Array): Promise<void>;
  /** Closes its stdin, after what was written. */
  end(): Promise<void>;
  /** Sends a signal to its process group, SIGTERM by default. */
  kill(signal?: string): Promise<void>;
}

export interface ServeOptions {
  /** The default one of this user when absent. */
  socket?: string;
  /** A token to be accepted; else one is made, and `tokenFile` of the answer says where it is. */
  token?: string;
  log?: string;
  lifetime?: "auto" | "scope" | "detach";
  enableLinger?: boolean;
  /** Ends the daemon that runs there first. */
  replace?: boolean;
}

export interface Served {
  socket: string;
  pid: number;
  instance: string;
  /** Of the daemon, which may be older than this file. */
  version: string;
  how: "started" | "joined" | "revived";
  lifetime: {
    placement: string;
    survivesLogout: "yes" | "no" | "until" | "unknown";
    where: string;
    words: string;
    warnings: { name: string; message: string; hint: string }[];
  };
  log: string;
  tokenFile?: string;
}

/**
 * Starts a daemon on this machine, or joins the one that runs: what --serve does.
 *
 * The daemon is this very file, run by the runtime of this process, without its flags.
 *
 * @throws {HoldfastError} Why it could not be started.
 */
export async function serve(options: ServeOptions = {}): Promise<Served> {
  const places = placesOf({ socket: options.socket, log: options.log });
  if (options.token === undefined) makeRunDirectory(places.directory);
  const {
    pid,
    instance,
    lifetime,
    how,
    version: started,
  } = await startServer({
    places,
    tokenHashes: [hashToken(options.token ?? ownToken(places.token))],
    launch: options.lifetime || "auto",
    enableLinger: options.enableLinger === true,
    replace: options.replace === true,
    command: daemonCommand(places, true),
    version: version(),
    progress: () => {},
  });
  return {
    socket: places.socket,
    pid,
    instance,
    version: started,
    how,
    lifetime,
    log: places.log,
    ...(options.token === undefined ? { tokenFile: places.token } : {}),
  };
}

/**
 * Connects to a daemon, by its socket or over a command, and authenticates.
 *
 * @throws {HoldfastError} There is no daemon and why, the token is refused, or the command failed and what it said.
 */
export async function connect(options: ConnectOptions = {}): Promise<Connection> {
  const timeoutMs = options.timeoutMs ?? connectMs;
  const { client, auth, explain, end } =
    options.command === undefined ? await openSocket(options, timeoutMs) : openCommand(options);
  try {
    if (auth !== undefined) await client.request("server.authenticate", { token: auth }, undefined, timeoutMs);
    const capabilities = (await client.request("server.capabilities", {}, undefined, timeoutMs)) as Record<
      string,
      unknown
    >;
    return createConnection(client, capabilities, end);
  } catch (error) {
    const failure = await explain(error as Failure);
    end();
    throw failure;
  }
}

interface Channel {
  client: Client;
  auth: string | undefined;
  /** Adds to a failure of the first requests what is known of the channel. */
  explain(failure: Failure): Promise<Failure>;
  /** Ends it from this side: the connection, and the command of it, which may be an ssh that has lost its network. */
  end(): void;
}

async function openSocket({ socket, token }: ConnectOptions, timeoutMs: number): Promise<Channel> {
  const places = placesOf({ socket });
  const opened =
    token === undefined
      ? await connectOwned(places)
      : { client: await connectClient(places.socket, timeoutMs), auth: token };
  return { ...opened, explain: async (failure) => failure, end: () => opened.client.close() };
}

function openCommand({ command, token, onStderr }: ConnectOptions): Channel {
  const [program, ...args] = command!;
  if (!program) throw cannot("connect: command is empty, it must have a program");
  const child = spawn(program, args, { stdio: ["pipe", "pipe", "pipe"] });
  let stderr = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    if (!onStderr) stderr = (stderr + text).slice(-maxStderrLength);
    else onStderr(text);
  });
  const ended = new Promise<string>((done) => {
    child.once("error", (error) => done(error.message));
    child.once("close", (code, signal) =>
      done(signal === null ? `it ended with exit code ${code}` : `it was ended by ${signal}`),
    );
  });
  const name = command!.join(" ");
  const explain = async (failure: Failure): Promise<Failure> => {
    if (failure.code !== errorCodes.noDaemon || failure.data.reason) return failure;
    const words = await Promise.race([ended, sleep(1000).then(() => failure.message)]);
    return cannot(`connect over "${name}": ${words}${stderr.trim() === "" ? "" : `: ${stderr.trim()}`}`, {
      code: errorCodes.noDaemon,
      cause: failure,
      hint: failure.hint,
    });
  };
  const destroy = (): void => {
    child.stdout.destroy();
    child.stdin.destroy();
    child.kill();
  };
  const client = createClient({ input: child.stdout, output: child.stdin, destroy }, name);
  child.once("error", client.close);
  return { client, auth: token, explain, end: client.close };
}

/** @internal */
export function createConnection(client: Client, capabilities: Record<string, unknown>, end: () => void): Connection {
  const routes = new Map<string, (message: Message) => void>();
  let lost: Message | undefined;
  let closedHere = false;
  client.onMessage((message) => {
    if (message.type === "bridge" && message.event === "lost") lost = message;
    else routes.get(String(message.processId))?.(message);
  });
  const closed = client.closed.then(() =>
    closedHere
      ? { reason: "closed-here", message: "The connection was closed here" }
      : lost || { reason: "closed", message: "The connection ended" },
  ) as Connection["closed"];

  const connection: Connection = {
    instanceId: String(capabilities.instanceId),
    capabilities,
    closed,
    close: () => {
      closedHere = true;
      end();
    },
    request: (method, params = {}, { timeoutMs = 0 } = {}) => client.request(method, params, undefined, timeoutMs),
    spawn: ({ onOutput, ...options }) => {
      const params = { id: randomBytes(8).toString("hex"), ...options };
      return attach("process.spawn", params, 0, onOutput);
    },
    reattach: (id, { fromSeq = 0, onOutput } = {}) => attach("process.reattach", { id, fromSeq }, fromSeq, onOutput),
  };
  return connection;

  async function attach(
    method: string,
    params: { id: string; fromSeq?: number },
    fromSeq: number,
    onOutput: SpawnOptions["onOutput"],
  ): Promise<RemoteProcess> {
    const { id } = params;
    let lastSeq = fromSeq;
    let missed = 0;
    let writing = Promise.resolve();
    let resolveExit: (exit: Exit) => void;
    let rejectExit: (failure: Failure) => void;
    const exit = new Promise<Exit>((resolve, reject) => ([resolveExit, rejectExit] = [resolve, reject]));
    exit.catch(() => {}); // who does not ask need not know
    void closed.then(({ reason, message }) =>
      rejectExit(
        new Failure(`${message}; the process "${id}" goes on`, {
          code: errorCodes.noDaemon,
          data: { reason, lastSeq },
        }),
      ),
    );
    const before = routes.get(id);
    routes.set(id, take);
    try {
      await start(method, params);
    } catch (error) {
      if (!before) routes.delete(id);
      else routes.set(id, before);
      throw error;
    }
    return {
      id,
      exit,
      get lastSeq() {
        return lastSeq;
      },
      get missed() {
        return missed;
      },
      write: (data) =>
        enqueue(() =>
          writeAll(
            typeof data === "string" ? Buffer.from(data) : Buffer.from(data.buffer, data.byteOffset, data.byteLength),
          ),
        ),
      end: () => enqueue(() => writeStdin({ data: "", end: true })),
      kill: async (signal = "SIGTERM") => void (await connection.request("process.kill", { id, signal })),
    };

    function take(message: Message): void {
      if (message.type === "detached") return void detached(String(message.by));
      lastSeq = Number(message.seq);
      if (message.stream === "exit") finish(message);
      else
        onOutput?.({
          stream: message.stream as Output["stream"],
          data: Buffer.from(String(message.data), "base64"),
          seq: lastSeq,
        });
    }

    function finish({ exitCode, signal, killedBy }: Message): void {
      routes.delete(id);
      resolveExit(JSON.parse(JSON.stringify({ exitCode, signal, killedBy }))); // without what is undefined
    }

    async function start(method: string, params: Record<string, unknown>): Promise<void> {
      const from = lastSeq; // it may be further when the answer is looked at: messages came along with it
      const answer = (await connection.request(method, params)) as Message & { firstSeq?: number };
      if (answer.found === false)
        throw cannot(`reattach: no process has the id "${id}"`, {
          data: { reason: "not-found" },
          hint: "--call process.list",
        });
      missed += Math.max((answer.firstSeq || 0) - from - 1, 0);
      if (answer.running === false && answer.lastSeq === from) finish(answer); // all of it had been seen: nothing follows
    }

    /** By the daemon, since we read too slowly: taken up again. By another connection: its process now. */
    async function detached(by: string): Promise<void> {
      if (by === "backpressure")
        return start("process.reattach", { id, fromSeq: lastSeq }).catch((error: Failure) => rejectExit(error));
      rejectExit(
        new Failure(`Another connection (${by}) has taken the output over; the process "${id}" goes on`, {
          data: { reason: "detached", lastSeq },
        }),
      );
    }

    function enqueue(action: () => Promise<void>): Promise<void> {
      const done = writing.then(action);
      writing = done.catch(() => {});
      return done;
    }

    async function writeAll(data: Buffer): Promise<void> {
      for (let at = 0; at < data.length; at += stdinChunkBytes)
        await writeStdin({ data: data.toString("base64", at, at + stdinChunkBytes) });
    }

    /** Waits where the queue of the process is full. */
    async function writeStdin(params: { data: string; end?: boolean }): Promise<void> {
      for (;;) {
        try {
          return void (await connection.request("process.stdin", { id, ...params }));
        } catch (error) {
          if ((error as Failure).code !== errorCodes.stdinFull) throw error;
          await sleep(stdinRetryMs);
        }
      }
    }
  }
}
