/**
 * The library as an application sees it: each type and member, with units, defaults and errors, and the one class of what it rejects with. The
 * declarations of the package are made of this module; docs/library.md tells it in order.
 *
 *     const there = await connect({ command: ["ssh", "host", "./holdfast.js --bridge"], token, reconnect: true });
 *     const make = await there.spawn({ id: "build", command: "make" });
 *     for await (const { data } of make.output) process.stdout.write(data);
 *     console.log(await make.exit);                      // { exitCode: 0 }
 *     await there.close();
 *
 * Three rules hold for all of it. What rejects does so with a HoldfastError, or with the reason of the AbortSignal that ended it. Times are in
 * milliseconds, sizes in bytes. An exception in a function of the application is the application's: it is reported as node reports one of a
 * listener ("uncaughtException"), and stops nothing here.
 */

import type { Readable, Writable } from "node:stream";

/** @internal `await using`, where the runtime knows it: Node from 18.18 on. */
export const asyncDispose: typeof Symbol.asyncDispose = Symbol.asyncDispose || Symbol.for("nodejs.asyncDispose");

/**
 * Why, in one word. Of a daemon that is not there: what the daemon's host says. Of a command: what it ended with, and its words on stderr. Of all
 * else: what this library knows.
 */
export type Reason =
  /** The daemon's host: none was started; one was, and was stopped, ended at logout, by a reboot, by an error, … */
  | "never-started"
  | "stopped"
  | "rebooted"
  | "killed-at-logout"
  | "user-manager-stopped"
  | "user-manager-ended"
  | "idle-stop"
  | "unit-stopped"
  | "out-of-memory"
  | "host-shutdown"
  | "replaced"
  | "crashed"
  | "other-host"
  | "permission"
  /** No answer in time, or none to the heartbeat: not known to be dead. */
  | "not-answering"
  /** The command of a connection: it is not there; ssh could not connect; the login was refused; the host's key is not the known one. */
  | "no-command"
  | "no-such-host"
  | "no-route"
  | "connection-refused"
  | "timed-out"
  | "host-key"
  | "login-refused"
  /** On the host: no node (exit code 127 of a shell); no such file; the file may not be run. */
  | "no-runtime"
  | "no-file"
  | "not-executable"
  /** The command ended otherwise: `exitCode` and `stderr` have it. */
  | "command-failed"
  /** The connection ended; by close() of this side; the token is not good. */
  | "closed"
  | "closed-here"
  | "unauthorized"
  /** A process: no such id; its output went to another connection; it ended otherwise than `check` wants. */
  | "not-found"
  | "detached"
  | "exit-code"
  /** A limit of the application's own: timeoutMs, maxBytes. */
  | "time-limit"
  | "too-large"
  /** A word that a later daemon has. */
  | (string & {});

/** What everything here rejects with. */
export class HoldfastError extends Error {
  override name = "HoldfastError";
  /** The JSON-RPC error code: -32010 when there is no daemon or the connection is lost, -32001 for a wrong token, -32602 for wrong parameters. */
  declare readonly code: number;
  /** A command that mends it, or one sentence of what to do next; undefined where nobody knows one. */
  declare readonly hint: string | undefined;
  /** What the daemon said beside the words: `errno`, `reason`, `applied`, … An empty object where there is nothing. */
  declare readonly data: Record<string, unknown>;

  /** @internal */
  constructor(
    message: string,
    details: { code: number; hint?: string; data?: Record<string, unknown>; cause?: unknown },
  ) {
    const { code, hint, data = {}, cause } = details;
    super(message, cause === undefined ? undefined : { cause });
    Object.assign(this, { code, hint, data });
  }

  /** Why, in one word; undefined where the code says all. */
  get reason(): Reason | undefined {
    return this.data.reason as Reason | undefined;
  }
  /** The operating system's name of an error, such as "ENOENT". */
  get errno(): string | undefined {
    return this.data.errno as string | undefined;
  }
  /** The end (2000 characters) of what the command of the connection, or of a deployment, said on stderr. */
  get stderr(): string | undefined {
    return this.data.stderr as string | undefined;
  }
  /** The exit code of that command: 255 is ssh's own, 127 "not found". Null when a signal ended it. */
  get exitCode(): number | null | undefined {
    return this.data.exitCode as number | null | undefined;
  }
}

/** What every call takes. */
export interface CallOptions {
  /** Ends the call: it rejects with the signal's reason. A request that is under way may be carried out all the same. */
  signal?: AbortSignal;
  /** How long it may take, in milliseconds; 0 for ever. By default `requestTimeoutMs` of the connection. */
  timeoutMs?: number;
}

export interface ConnectOptions {
  /** A daemon's socket on this machine; the default one when neither this nor `command` is given. */
  socket?: string;
  /** Program and arguments whose stdin and stdout lead to a daemon: `["ssh", "host", "./holdfast.js --bridge"]`. */
  command?: string[];
  /** A token of the daemon. Not needed for a socket whose record is ours to read, nor with `--bridge --as-owner`. */
  token?: string;
  /** Ends the attempt to connect; the connection afterwards is not touched by it. */
  signal?: AbortSignal;
  /** For the connection and the first answer, in milliseconds; 20000 by default, 0 for ever. With `reconnect` for each attempt. */
  timeoutMs?: number;
  /** The time limit of each request that has none of its own, in milliseconds; 60000 by default, 0 for none. */
  requestTimeoutMs?: number;
  /**
   * After so long without a byte from the daemon it is asked for one, and after as long again without one the connection is lost, in milliseconds;
   * 15000 by default, 0 for never. A network that is gone says nothing by itself.
   */
  heartbeatMs?: number;
  /** A lost line is dialled again: streams go on where they were, writes are not doubled. Off by default; `true` takes the defaults. */
  reconnect?: boolean | ReconnectOptions;
  /** Takes what `command` writes to stderr, as it comes; the end of it is in errors all the same. */
  onStderr?: (text: string) => void;
}

export interface ReconnectOptions {
  /** The first pause, in milliseconds; 500 by default. Each is twice the one before, less up to a half at random. */
  minDelayMs?: number;
  /** The longest pause, in milliseconds; 30000 by default. */
  maxDelayMs?: number;
  /** After so long without a connection it is lost for good, in milliseconds; 0, the default, is never. */
  giveUpAfterMs?: number;
}

/** Why a connection ended. */
export interface Loss {
  reason: Reason;
  /** One sentence of what happened. */
  message: string;
  hint?: string;
  /** What the requests that were under way rejected with. Absent when it was closed here. */
  error?: HoldfastError;
}

export interface ConnectionEvents {
  /** The line was lost, and is dialled again. Only with `reconnect`. */
  lost: Loss;
  /** An attempt has failed; the next one comes after `delayMs`. */
  retry: { attempt: number; delayMs: number; error: HoldfastError };
  /** It is there again, and processes were taken up. `sameDaemon` is false when the daemon is another one: what it did not take over is lost. */
  reconnected: { attempt: number; instanceId: string; sameDaemon: boolean };
  /** It has ended for good: what `closed` resolves to. */
  closed: Loss;
}

export interface Connection {
  /** Tells one daemon from the next. A new one takes over the processes of the one before, where the host can do that. */
  readonly instanceId: string;
  /** The answer to server.capabilities: `version`, `methods`, `features`, `lifetime`, … */
  readonly capabilities: Record<string, unknown>;
  /**
   * Calls any method of the protocol (docs/protocol.md). With `reconnect` it waits for the line; but what was under way when the line was lost
   * rejects, as it may have been carried out.
   *
   * @throws {HoldfastError} The daemon's error; "not-answering" after the time limit; the loss of the connection.
   */
  request(method: string, params?: Record<string, unknown>, options?: CallOptions): Promise<unknown>;
  /**
   * Starts a process, whose output comes to this connection. It goes on when the connection ends.
   *
   * @throws {HoldfastError} There is no such command (errno "ENOENT"), no such directory, or the id is that of a process that lives.
   */
  spawn(options: SpawnOptions): Promise<RemoteProcess>;
  /**
   * Takes up a process that runs, or has ended: its output after `fromSeq`. The connection that had it loses it, unless `share` is set.
   *
   * @throws {HoldfastError} There is no such process: reason "not-found".
   */
  reattach(id: string, options?: ReattachOptions): Promise<RemoteProcess>;
  /**
   * Runs a process to its end, and collects what it writes. Its record at the daemon is removed afterwards.
   *
   * @throws {HoldfastError} As spawn(); "time-limit" or the signal's reason, and then the process is ended; "too-large"; with `check` "exit-code".
   */
  run(options: RunOptions): Promise<RunResult>;
  /** All processes that the daemon knows: those that run, and those that have ended and are kept. */
  list(options?: CallOptions): Promise<ProcessSummary[]>;
  /** Removes a process that has ended, with its output. @throws {HoldfastError} It lives, or there is none: code -32602. */
  forget(id: string, options?: CallOptions): Promise<void>;
  /** Sends a signal to a process's group, SIGTERM by default. @throws {HoldfastError} There is no such process: code -32602. */
  kill(id: string, signal?: string, options?: CallOptions): Promise<void>;
  /** The daemon: pid, memory, connections, processes, where it lives. */
  status(options?: CallOptions): Promise<Status>;
  /** Ends the daemon, and so this connection. @throws {HoldfastError} With `ifIdle`, when processes live. */
  stop(options?: StopOptions): Promise<{ processes: number }>;
  /** The files of the host, as the daemon's user has them. `~` is that user's home, and relative paths begin there. */
  readonly files: Files;
  /** Calls a function at each event; twice, when it is given twice. */
  on<E extends keyof ConnectionEvents>(event: E, listener: (details: ConnectionEvents[E]) => void): Connection;
  /** Takes a listener back. */
  off<E extends keyof ConnectionEvents>(event: E, listener: (details: ConnectionEvents[E]) => void): Connection;
  /** Ends the connection, and resolves when it has ended. Processes go on. */
  close(): Promise<void>;
  /** Resolves when the connection has ended for good, to why. Never rejects. */
  readonly closed: Promise<Loss>;
  /** close(). */
  [Symbol.asyncDispose](): Promise<void>;
}

/** How the output of a process is taken. Several ways may be used at once: those that are begun in one turn get the same. */
export interface OutputOptions {
  /** Called for each piece of output, in order, before `exit` resolves. Nothing waits for what it returns: use `output` for that. */
  onOutput?: (output: Output) => void;
  /** Told of what is missing between two pieces of output: so many messages, that the daemon holds no longer; or so many bytes at most, lost as it was killed. */
  onGap?: (gap: { messages?: number; maxBytes?: number }) => void;
  /** The process stands still, without limit, while this connection is there and does not read. Off by default: then it goes on, and what is not held is a gap. */
  lossless?: boolean;
}

export interface SpawnOptions extends OutputOptions {
  /** The name of the process, to reattach by: at most 256 characters. A random one by default. */
  id?: string;
  /** A path, or a name that is looked for in PATH. No shell: `{ command: "sh", args: ["-c", "…"] }` is one. */
  command: string;
  args?: string[];
  /** Its working directory; the home of the daemon's user by default. */
  cwd?: string;
  /** Merged over the daemon's environment. */
  env?: Record<string, string>;
  /** `env` is all that it gets. */
  clearEnv?: boolean;
  /** Of the process, such as 0o077; the daemon's by default. */
  umask?: number;
  /** "none": its stdin is at its end from the beginning. "open" by default. */
  stdin?: "open" | "none";
  /** It has a terminal of this size; all it writes is "stdout". Where capabilities.features has "terminal". */
  terminal?: { rows: number; columns: number; term?: string };
  /** Ends the process (SIGTERM, SIGKILL after 3 s) when it is aborted, as node's spawn does. */
  signal?: AbortSignal;
  /** Ends the process after so long, in milliseconds; 0, the default, is never. */
  timeoutMs?: number;
}

export interface ReattachOptions extends OutputOptions, CallOptions {
  /** The last message that was seen: `lastSeq` of the earlier RemoteProcess. 0 by default: from the beginning. -n: the last n messages. */
  fromSeq?: number;
  /** Leaves other readers their streams. */
  share?: boolean;
}

export interface Output {
  stream: "stdout" | "stderr";
  data: Uint8Array;
  /** Counts from 1 over both streams, without gaps. */
  seq: number;
}

export interface Exit {
  /** 128 and the signal's number when a signal ended it. Null when nobody could see how it ended: `reason` says why. */
  exitCode: number | null;
  signal?: string;
  /** "client" when it was killed through the daemon, "shutdown" when it was ended with it. */
  killedBy?: string;
  /** Why the exit code is not known, in words: "its holder was killed", "the host was booted again", … */
  reason?: string;
}

export interface RemoteProcess {
  readonly id: string;
  /** Undefined for a process that was taken up. */
  readonly pid: number | undefined;
  /** Of the last message that the application was given: where a later reattach() goes on. */
  readonly lastSeq: number;
  /** So many messages were not held any more when they were asked for. */
  readonly missed: number;
  /**
   * Resolves at its end, when its output is here.
   *
   * Rejects when the connection is lost for good (the process goes on), when another one takes the process over ("detached"), when a new daemon does
   * not know it ("not-found"), or when `signal` or `timeoutMs` ended it.
   */
  readonly exit: Promise<Exit>;
  /**
   * Both outputs in order, for `for await`. Leaving the loop ends the reading, not the process.
   *
   * Who is slow slows the process, and loses nothing, where this connection has no other process that is waited for. Where it has, it is read for those:
   * what was let go is asked for again, of the 64 MiB that the daemon holds; what came before these is a gap.
   */
  readonly output: AsyncIterable<Output>;
  /** Its stdout as a node stream, from the first access on. As with node, a stream that was asked for must be read. */
  readonly stdout: Readable;
  /** Its stderr as a node stream. */
  readonly stderr: Readable;
  /** Its stdin as a node stream. Ending the stream ends its stdin. */
  readonly stdin: Writable;
  /**
   * Writes to its stdin, in order. Resolves when the daemon has taken all of it, which may be as long as the process reads nothing: no time limit by
   * default.
   *
   * @throws {HoldfastError} It has ended, or its stdin has (errno "EPIPE"); the connection is lost for good.
   */
  write(data: string | Uint8Array, options?: { signal?: AbortSignal }): Promise<void>;
  /** Closes its stdin, after what was written. */
  end(): Promise<void>;
  /** Sends a signal to its process group, SIGTERM by default. */
  kill(signal?: string, options?: CallOptions): Promise<void>;
  /** Sends SIGTERM, after `graceMs` (3000 by default, 30000 at most) SIGKILL, to its group, and resolves when it is dead. */
  terminate(options?: { graceMs?: number; signal?: string }): Promise<{ died: boolean }>;
  /** Sets the size of its terminal. @throws {HoldfastError} It has none: code -32602. */
  resize(size: { rows: number; columns: number }, options?: CallOptions): Promise<void>;
  /** Ends the process, as node's ChildProcess does: terminate(). A process that is to go on is not declared with `await using`. */
  [Symbol.asyncDispose](): Promise<void>;
}

export interface RunOptions extends Omit<SpawnOptions, "stdin" | "terminal"> {
  /** Written to its stdin, which then ends. Without it, stdin is at its end from the beginning. */
  input?: string | Uint8Array;
  /** Of stdout and stderr together; 16777216 (16 MiB) by default. With more the process is ended, and run() rejects with "too-large". */
  maxBytes?: number;
  /** Rejects with "exit-code" unless the exit code is 0. Off by default. `data.result` of the error has the RunResult. */
  check?: boolean;
}

export interface RunResult extends Exit {
  /** As UTF-8. */
  stdout: string;
  stderr: string;
  stdoutBytes: Uint8Array;
  stderrBytes: Uint8Array;
}

export interface ProcessSummary {
  id: string;
  command: string;
  args?: string[];
  pid: number;
  cwd: string;
  running: boolean;
  /** Once it has ended; -1 when nobody could see how: `unknown` says why. */
  exitCode?: number | null;
  signal?: string;
  unknown?: string;
  /** The first message that is held, and the last. */
  firstSeq: number;
  lastSeq: number;
  /** Unix time in milliseconds. */
  startedAt: number;
  /** So many bytes of stdin were taken. */
  stdinApplied: number;
  [more: string]: unknown;
}

export interface Status {
  version: string;
  instanceId: string;
  pid: number;
  /** Unix time in milliseconds. */
  startedAt: number;
  uptimeMs: number;
  rssBytes: number;
  connections: number;
  processes: { id: string; pid: number; command: string; running: boolean; bytes: number; ageMs: number }[];
  lifetime: Lifetime;
  log: string;
  [more: string]: unknown;
}

export interface StopOptions extends CallOptions {
  /** What its processes are given to end by themselves before SIGTERM, in milliseconds; 10000 by default. */
  graceMs?: number;
  /** Refuses while processes live. */
  ifIdle?: boolean;
}

/** A path; or the bytes of one that is not UTF-8, in base64, as files.list gives it. */
export type HostPath = string | { raw: string };

export interface FileStat {
  exists: boolean;
  isDir: boolean;
  size: number;
  /** As ls(1) writes it: "-rw-r--r--". */
  mode: string;
  /** Unix time in milliseconds. */
  mtimeMs?: number;
}

export interface FileEntry {
  name: string;
  path: string;
  isDir: boolean;
  isSymlink?: boolean;
  /** The name is not UTF-8: use `{ raw }`. */
  lossy?: boolean;
  raw?: string;
}

/** All reject with a HoldfastError. What the operating system refuses has `errno`. */
export interface Files {
  /** What is there; `exists: false` when nothing is. */
  stat(path: HostPath, options?: CallOptions): Promise<FileStat>;
  /** The entries of a directory, sorted by bytes; those that begin with "." only with `includeHidden`. */
  list(path: HostPath, options?: CallOptions & { includeHidden?: boolean }): Promise<FileEntry[]>;
  /** A regular file's bytes, fetched in pieces. @throws {HoldfastError} errno "ENOENT"; "too-large" over `maxBytes` (67108864, 64 MiB, by default). */
  read(path: HostPath, options?: CallOptions & { maxBytes?: number }): Promise<Uint8Array>;
  /** read(), as UTF-8. @throws {HoldfastError} It is not UTF-8: errno "EILSEQ". */
  readText(path: HostPath, options?: CallOptions & { maxBytes?: number }): Promise<string>;
  /**
   * Replaces a file's content, whole or not at all, and keeps owner, mode and attributes. `mode` such as 0o600 or "0600"; `createDirs` makes the
   * directories above it. At most 12 MB: longer files go through `run({ command: "tee", … })`. `inPlace` says that it could not be renamed into place.
   */
  write(
    path: HostPath,
    content: string | Uint8Array,
    options?: CallOptions & { mode?: number | string; createDirs?: boolean },
  ): Promise<{ written: number; inPlace?: boolean }>;
  /** Whether a file can be read, or a directory entered and listed; `error` says why not. */
  validate(path: HostPath, options?: CallOptions): Promise<{ valid: boolean; isDir: boolean; error?: string }>;
}

export interface ServeOptions {
  /** The default one of this user when absent. */
  socket?: string;
  /** A token to be accepted; else one is made, and `tokenFile` of the answer says where it is. */
  token?: string;
  /** The log's path; beside the socket by default. */
  log?: string;
  /** Where it is to live; "auto" measures the host and chooses. */
  lifetime?: "auto" | "scope" | "detach";
  /** Switches lingering on for this user where the daemon would not survive the logout else. It stays on. */
  enableLinger?: boolean;
  /** Puts this version in the place of the daemon that runs there. */
  replace?: boolean;
  /** The path of holdfast.js; beside this library by default. Needed where an application was bundled into one file. */
  program?: string;
}

/** Where a daemon lives, and whether it survives the logout. */
export interface Lifetime {
  placement: string;
  survivesLogout: "yes" | "no" | "until" | "unknown";
  where: string;
  words: string;
  warnings: { name: string; message: string; hint: string }[];
}

export interface Served {
  socket: string;
  pid: number;
  instance: string;
  /** Of the daemon, which may be older than this file. */
  version: string;
  how: "started" | "joined" | "revived";
  lifetime: Lifetime;
  log: string;
  /** Where the token is that was made. Absent when one was given. */
  tokenFile?: string;
}

export interface DeployOptions extends Omit<ConnectOptions, "socket" | "command" | "token"> {
  /** Program and arguments that run a command on the host, which is put behind them: `["ssh", "-o", "BatchMode=yes", "host"]`. */
  ssh: string[];
  /** The path of holdfast.js here; beside this library by default. */
  program?: string;
  /** Where it is put on the host, below the home: letters, digits, and . _ - / alone. ".holdfast" by default. */
  directory?: string;
  /** As for serve(). */
  lifetime?: "auto" | "scope" | "detach";
  enableLinger?: boolean;
  /** Replaces the daemon that runs, at each call: its work goes on, other connections to it end. By default it is joined, unless it is idle and the file another one. */
  replace?: boolean;
  /** For copying and starting, in milliseconds; 120000 by default, 0 for ever. `timeoutMs` is for the connection afterwards. */
  deployTimeoutMs?: number;
}

/** A connection to a host that the program was put on. */
export interface Deployment extends Connection {
  /** The file was copied: the host had none, or another one. */
  readonly copied: boolean;
  /** What --serve said. */
  readonly served: Served;
}
