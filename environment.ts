/** The environment of a child: what rots is looked after. PATH is the login shell's, read once; an SSH agent that is dead is left out. */

import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { userInfo } from "node:os";
import { tryConnect } from "./client.ts";
import { cleanText, errnoOf, safely } from "./failure.ts";
import { now } from "./record.ts";

/** One look at the SSH agent serves the spawns of so long: a forwarded one is on the user's machine. An agent that hangs is not dead. */
const agentCheckMs = 5000;
const agentAnswerMs = 500;

export interface Environment {
  /**
   * Makes the environment of one child: the request's, over what the login shell says of PATH, over the daemon's.
   *
   * @param needsPath The command is looked for in PATH: waits for the login shell, the first time.
   */
  make(requested: Record<string, string>, needsPath: boolean): Promise<NodeJS.ProcessEnv>;
  /** Ends a login shell that has not answered yet. */
  close(): void;
}

/**
 * @param daemon The daemon's environment, and its log.
 * @param loginPathMs For the login shell to say its PATH.
 */
export function createEnvironment(
  { env, log }: { env: NodeJS.ProcessEnv; log(line: string): void },
  home: () => string,
  loginPathMs: number,
): Environment {
  const closed = new AbortController();
  let loginPath: string | undefined;
  let isRead: Promise<void> | undefined;
  let agentCheck: Promise<boolean> | undefined;

  function base(): NodeJS.ProcessEnv {
    const ours = Object.fromEntries(Object.entries(env).filter(([name]) => !name.startsWith("HOLDFAST_")));
    return { ...ours, HOME: env.HOME || home() };
  }

  async function make(requested: Record<string, string>, needsPath: boolean): Promise<NodeJS.ProcessEnv> {
    const made = base();
    if (requested.PATH === undefined) {
      isRead ??= readLoginPath();
      if (needsPath) await isRead;
      if (loginPath) made.PATH = loginPath;
    }
    if (made.SSH_AUTH_SOCK && (await isAgentDead(made.SSH_AUTH_SOCK))) delete made.SSH_AUTH_SOCK;
    return { ...made, ...requested };
  }

  async function readLoginPath(): Promise<void> {
    const shell = env.SHELL || safely(() => userInfo().shell) || "/bin/sh";
    const start = now();
    loginPath = await askLoginShell(shell, base(), loginPathMs, closed.signal).catch(() => undefined);
    const outcome = loginPath ? "has said its PATH" : "does not say its PATH: the daemon's is used";
    log(`[Process] The login shell ${cleanText(shell, 100)} ${outcome} (${Math.round(now() - start)} ms)`);
  }

  function isAgentDead(path: string): Promise<boolean> {
    agentCheck ??= isDeadSocket(path).finally(() => setTimeout(() => (agentCheck = undefined), agentCheckMs).unref());
    return agentCheck;
  }

  return { make, close: () => closed.abort() };
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
    const giveUp = (signal: NodeJS.Signals) => {
      if (handle.exitCode === null && handle.signalCode === null) safely(() => process.kill(-handle.pid!, signal));
      finish();
    };
    const timer = setTimeout(giveUp, limitMs, "SIGKILL"); // also ends a shell that has answered, and does not end
    const close = () => giveUp("SIGTERM"); // a lock that a start-up file has made (pyenv) is not left behind
    closed.addEventListener("abort", close);
    handle
      .on("error", () => finish())
      .on("exit", () => closed.removeEventListener("abort", close))
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
