/**
 * What a child starts with: its environment, and a command and a working directory that can be waited for.
 *
 * What rots is looked after: PATH is the login shell's, read once; the SSH agent is a link that every bridge points to its own; of the session that
 * started the daemon, and of its tokens, nothing is passed on. To spawn is to wait, with the whole event loop, for chdir(2) and execve(2): the mounts that these will
 * meet must answer.
 */

import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import {
  constants,
  lstatSync,
  readlinkSync,
  realpathSync,
  renameSync,
  statSync,
  symlinkSync,
  unlinkSync,
} from "node:fs";
import { access, open, stat } from "node:fs/promises";
import { userInfo } from "node:os";
import { basename, dirname, join } from "node:path";
import { tryConnect } from "./client.ts";
import { cannot, capture, cleanText, errnoError, errnoOf, exitCodes, Failure, osFailure, safely } from "./failure.ts";
import { resolvePath } from "./files.ts";
import type { Lanes } from "./lanes.ts";
import { hasFarMounts, runInLane } from "./lanes.ts";
import { namesIn, now } from "./record.ts";
import { invalidParam } from "./rpc.ts";
import type { Start } from "./running.ts";
import { maxPathBytes } from "./socket.ts";

/** One look at the SSH agent serves the spawns of so long: a forwarded one is on the user's machine. An agent that hangs is not dead. */
const agentCheckMs = 5000;
const agentAnswerMs = 500;
/** For a login shell that is told to end. */
const loginEndMs = 5000;
/** Of the daemon's environment: ours, and what belongs to a session that is over. */
const notPassedOn = /^(HOLDFAST_.*|CLAUDE_RPC_TOKEN|SSH_CONNECTION|SSH_CLIENT|SSH_TTY|XDG_SESSION_ID)$/;
/** A script may be run by a script, and so on: execve(2) follows four. */
const maxInterpreters = 4;

export interface Environment {
  /** The daemon's. */
  readonly daemon: NodeJS.ProcessEnv;
  readonly home: () => string;
  readonly log: (line: string) => void;
  /** For the login shell to say its PATH. */
  readonly loginPathMs: number;
  /** Ends a login shell that has not answered yet. */
  readonly closed: AbortController;
  /** What the login shell has said, and settled when it has. */
  loginPath: string | undefined;
  isRead: Promise<void> | undefined;
  /** Whether the SSH agent is dead, as it was asked last. */
  agentCheck: Promise<boolean> | undefined;
  /** What children have for SSH_AUTH_SOCK, also while it leads nowhere; undefined: the daemon's own, as long as that lives. */
  readonly agentLink: string | undefined;
}

export function createEnvironment(
  daemon: NodeJS.ProcessEnv,
  home: () => string,
  log: (line: string) => void,
  loginPathMs: number,
  agentLink?: string,
): Environment {
  const closed = new AbortController();
  if (agentLink !== undefined && agentOf(agentLink) === undefined) returnAgent(agentLink, daemon.SSH_AUTH_SOCK);
  return {
    daemon,
    home,
    log,
    loginPathMs,
    closed,
    loginPath: undefined,
    isRead: undefined,
    agentCheck: undefined,
    agentLink,
  };
}

/**
 * What --run hands on of its own environment.
 *
 * @param more Over that.
 * @param given NAME=VALUE, or NAME of our own; over all else.
 * @throws {Failure} With exit code 64.
 */
export function ownEnvironment(more: Record<string, string>, given: string[]): Record<string, string> {
  const own = Object.entries(process.env).filter(([name, value]) => !notPassedOn.test(name) && value !== undefined);
  const env = { ...(Object.fromEntries(own) as Record<string, string>), ...more };
  for (const text of given) {
    const at = text.indexOf("=");
    const name = at < 0 ? text : text.slice(0, at);
    const value = at < 0 ? process.env[name] : text.slice(at + 1);
    if (name === "" || value === undefined)
      throw cannot(`use --env "${text}": it must be NAME=VALUE, or the name of a variable that is set`, {
        exit: exitCodes.usage,
      });
    env[name] = value;
  }
  return env;
}

/**
 * Makes the environment of one child: the request's, over what the login shell says of PATH, over the daemon's.
 *
 * @param needsPath The command is looked for in PATH: waits for the login shell, the first time.
 */
export async function makeEnvironment(
  environment: Environment,
  requested: Record<string, string>,
  needsPath: boolean,
): Promise<NodeJS.ProcessEnv> {
  const made = passedOn(environment);
  if (requested.PATH === undefined) {
    environment.isRead ??= readLoginPath(environment);
    if (needsPath) await environment.isRead;
    if (environment.loginPath) made.PATH = environment.loginPath;
  }
  if (environment.agentLink !== undefined && Buffer.byteLength(environment.agentLink) <= maxPathBytes)
    made.SSH_AUTH_SOCK = environment.agentLink;
  else if (made.SSH_AUTH_SOCK && (await isAgentDead(environment, made.SSH_AUTH_SOCK))) delete made.SSH_AUTH_SOCK;
  return { ...made, ...requested };
}

/** No path, argument or variable can have a NUL in it: what comes after would be lost. Half a surrogate pair would become U+FFFD. */
export function refuseNul({
  command,
  args,
  env,
}: Pick<Start, "command" | "args"> & { env: Record<string, string> }): void {
  const lossy = /[\0\p{Cs}]/u;
  if (lossy.test(command)) throw invalidParam("command", command, "without NUL and half characters");
  if (args.some((text) => lossy.test(text))) throw invalidParam("args", args, "without NUL and half characters");
  if (Object.entries(env).some(([name, value]) => /^$|=/.test(name) || lossy.test(name + value)))
    throw invalidParam("env", env, "names without =, and no NUL and half characters");
}

/** Finds where a child starts: in `cwd`, or at home, or in / where there is no home. */
export async function findDirectory(cwd: string | undefined, home: () => string, lanes: Lanes): Promise<string> {
  if (cwd !== undefined) return resolvePath(cwd, home, "cwd");
  const stats = await runInLane(lanes, home(), () => stat(home())).catch((error: unknown) => {
    if (error instanceof Failure) throw error; // its mount is silent: / would be another place
  });
  return stats?.isDirectory() ? home() : "/";
}

/** @throws {Failure} A mount that a start would meet does not answer. */
export async function requireAnswers(command: string, cwd: string, path: string, lanes: Lanes): Promise<void> {
  if (!hasFarMounts(lanes)) return;
  await isThere(cwd, lanes);
  for (const directory of command.includes("/") ? [""] : path.split(":")) {
    let file = resolvePath(directory === "" ? command : `${directory}/${command}`, () => cwd);
    if (!(await isThere(file, lanes))) continue;
    for (let i = 0; i < maxInterpreters; i++) {
      const interpreter = await interpreterOf(file, lanes);
      if (!interpreter) return;
      file = resolvePath(interpreter, () => cwd);
      if (!(await isThere(file, lanes))) return;
    }
    return;
  }
}

/** Says why a start has failed: execve(2) and chdir(2) have the same ENOENT for a command, its interpreter and a working directory. */
export async function startFailure(command: string, cwd: string, path: string, error: unknown): Promise<Failure> {
  const name = cleanText(command, 100);
  try {
    if (!(await stat(cwd)).isDirectory()) throw errnoError("ENOTDIR", "not a directory");
    await access(cwd, constants.X_OK);
  } catch (reason) {
    return osFailure(`start "${name}" in working directory "${cwd}"`, reason);
  }
  if (errnoOf(error) !== "ENOENT") return osFailure(`start "${name}"`, error);
  const isFile =
    command.includes("/") && (await stat(resolvePath(command, () => cwd)).catch(() => undefined)) !== undefined;
  const absent = command.includes("/") ? "no such file" : `no such command in PATH "${path}"`;
  const why = isFile ? "the interpreter that its first line names does not exist" : absent;
  return cannot(`start "${name}": ${why} (ENOENT)`, { data: { errno: "ENOENT" }, cause: error });
}

function passedOn({ daemon, home }: Environment): NodeJS.ProcessEnv {
  const kept = Object.fromEntries(Object.entries(daemon).filter(([name]) => !notPassedOn.test(name)));
  return { ...kept, HOME: daemon.HOME || home() };
}

async function readLoginPath(environment: Environment): Promise<void> {
  const { daemon, loginPathMs, closed, log } = environment;
  const shell = daemon.SHELL || safely(() => userInfo().shell) || "/bin/sh";
  const start = now();
  const asked = askLoginShell(shell, passedOn(environment), loginPathMs, closed.signal);
  environment.loginPath = await asked.catch(() => undefined);
  const outcome = environment.loginPath ? "has said its PATH" : "does not say its PATH: the daemon's is used";
  log(`[Process] The login shell ${cleanText(shell, 100)} ${outcome} (${Math.round(now() - start)} ms)`);
}

function isAgentDead(environment: Environment, path: string): Promise<boolean> {
  environment.agentCheck ??= isDeadSocket(path).finally(() => {
    setTimeout(() => (environment.agentCheck = undefined), agentCheckMs).unref();
  });
  return environment.agentCheck;
}

async function isThere(file: string, lanes: Lanes): Promise<boolean> {
  return runInLane(lanes, file, () => access(file, constants.X_OK)).then(
    () => true,
    (error: unknown) => {
      if (error instanceof Failure) throw error;
      return false;
    },
  );
}

/** The program that the first line of a script names. */
async function interpreterOf(file: string, lanes: Lanes): Promise<string | undefined> {
  const read = async (): Promise<string | undefined> => {
    const handle = await open(file, constants.O_RDONLY | constants.O_NONBLOCK).catch(() => undefined);
    try {
      const head = await handle?.read(Buffer.alloc(256), 0, 256, 0).catch(() => undefined);
      return head && capture(/^#![ \t]*([^ \t\n]+)/, head.buffer.toString("latin1", 0, head.bytesRead));
    } finally {
      await handle?.close();
    }
  };
  return runInLane(lanes, file, read);
}

/**
 * Asks a login shell for its PATH. What else it prints is skipped; it cannot read, and when the time is up its group is killed.
 *
 * The command means the same to sh, bash, zsh, fish and tcsh: one external command, with an argument in single quotes.
 */
function askLoginShell(
  shell: string,
  env: NodeJS.ProcessEnv,
  limitMs: number,
  closed: AbortSignal,
): Promise<string | undefined> {
  const mark = randomBytes(16).toString("hex");
  const command = `/bin/sh -c 'printf %s "${mark}\${PATH}${mark}"'`;
  const options = /csh$/.test(shell) ? ["-c"] : ["-l", "-c"]; // tcsh takes -l only by itself, but reads .tcshrc in any case
  if (closed.aborted) return Promise.resolve(undefined);
  return new Promise((resolve) => {
    const handle = spawn(shell, [...options, command], {
      cwd: "/",
      env,
      detached: true,
      stdio: ["ignore", "pipe", "ignore"],
    });
    const finish = (path?: string) => {
      handle.stdout?.destroy(); // not there when there were no descriptors
      resolve(path || undefined);
    };
    let kill: NodeJS.Timeout | undefined;
    const end = (signal: NodeJS.Signals) => {
      if (handle.exitCode === null && handle.signalCode === null) safely(() => process.kill(-handle.pid!, signal));
    };
    // a lock that a start-up file has made (pyenv's) would keep each later login waiting, if it was left behind
    const close = () => {
      end("SIGTERM");
      kill = setTimeout(end, loginEndMs, "SIGKILL").unref();
      finish();
    };
    const timer = setTimeout(close, limitMs); // also ends a shell that has answered, and does not end
    closed.addEventListener("abort", close);
    handle
      .on("error", () => finish())
      .on("exit", () => {
        clearTimeout(kill);
        closed.removeEventListener("abort", close);
      })
      .on("close", () => {
        clearTimeout(timer);
        finish();
      });
    let text = "";
    handle.stdout
      ?.on("error", () => {})
      .on("data", (chunk: Buffer) => {
        text += chunk.toString("latin1");
        const [before, path, after] = text.split(mark);
        if (after !== undefined) finish(Buffer.from(path!, "latin1").toString());
        else if (path === undefined) text = before!.slice(-mark.length);
      });
  });
}

/** Nobody listens there. One that does not answer, or may not be asked, is left alone. */
async function isDeadSocket(path: string): Promise<boolean> {
  const outcome = await tryConnect(path, agentAnswerMs);
  if ("socket" in outcome) outcome.socket.destroy();
  return "error" in outcome && /^(ENOENT|ENOTDIR|ENOTSOCK|ECONNREFUSED)$/.test(errnoOf(outcome.error) || "");
}

// The link to the SSH agent of whoever is connected
//
//     rpc.sock.agent        the link that children have: to the agent of the newest connection that is left
//     rpc.sock.agent.PID    of a bridge, --run or --attach that lives: to its own agent

/**
 * Points the link to the agent of this process.
 *
 * @returns Takes that back; undefined where this process has no agent that could be lent.
 */
export function lendAgent(link: string, agent: string | undefined): (() => void) | undefined {
  if (agent === undefined || !isLendable(link, agent)) return undefined;
  const ours = `${link}.${process.pid}`;
  safely(() => pointTo(ours, agent));
  safely(() => pointTo(link, agent));
  return () => {
    safely(() => unlinkSync(ours));
    returnAgent(link);
  };
}

/** Points the link to the newest agent that is left, and tidies away what the dead have left; leaves it as it is where there is none. */
function returnAgent(link: string, own?: string): void {
  const prefix = `${basename(link)}.`;
  const lent = namesIn(dirname(link))
    .filter((name) => name.startsWith(prefix) && /^\d+$/.test(name.slice(prefix.length)))
    .map((name) => ({ path: join(dirname(link), name), pid: Number(name.slice(prefix.length)) }));
  for (const { path, pid } of lent) if (!safely(() => process.kill(pid, 0))) safely(() => unlinkSync(path));
  const left = lent.flatMap(({ path }) => {
    const agent = agentOf(path);
    const since = safely(() => lstatSync(path).mtimeMs);
    return agent === undefined || since === undefined || !isLendable(link, agent) ? [] : [{ agent, since }];
  });
  const newest = left.sort((a, b) => b.since - a.since)[0]?.agent ?? (own && isLendable(link, own) ? own : undefined);
  if (newest !== undefined && newest !== agentOf(link)) safely(() => pointTo(link, newest));
}

function agentOf(link: string): string | undefined {
  return safely(() => readlinkSync(link));
}

/** A socket of our user that is there, and neither the link itself nor below the run directory: it would lead to itself. */
function isLendable(link: string, agent: string): boolean {
  const stats = safely(() => statSync(agent));
  const real = safely(() => realpathSync(agent));
  const home = safely(() => realpathSync(dirname(link))) ?? dirname(link);
  const isOurs = stats?.isSocket() === true && stats.uid === process.getuid!();
  return isOurs && agent.startsWith("/") && agent !== link && real !== undefined && !real.startsWith(`${home}/`);
}

/** In one step: nobody finds it missing. */
function pointTo(link: string, agent: string): void {
  const between = `${link}.${randomBytes(6).toString("hex")}.new`;
  symlinkSync(agent, between);
  renameSync(between, link);
}
