/**
 * What an application imports: `import { connect, serve, deploy } from "holdfast"`. connect() and serve() are api.ts's.
 *
 * deploy() puts the program on a host, starts it there or joins what runs, and connects. What examples/deploy.sh does, for applications.
 *
 *     1  is this very file there?  then --serve                          one command, in the common case
 *     2  else: the file through stdin, whole or not at all, then --serve
 *     3  --bridge, over a session of its own: what later sessions will find
 *
 * The remote commands are one line each, in single quotes, without !, \ or ' in them: so they mean the same in sh, bash, fish and tcsh. The file is
 * run as `sh holdfast.js`: its first lines find the runtime, and a home that is mounted noexec does not matter.
 */

import { readFileSync } from "node:fs";
import { connect } from "./api.ts";
import type { Command, Outcome } from "./client.ts";
import { diagnose, outcomeWords, runCommand, withLimit, withSignal } from "./client.ts";
import { cannot, capture, cleanText, errorCodes, type Failure, osFailure, safely } from "./failure.ts";
import type { CallOptions, Deployment, DeployOptions, Served } from "./library.ts";
import { besideFile } from "./program.ts";

export { connect, serve } from "./api.ts";
export type * from "./library.ts";
export { HoldfastError } from "./library.ts";

const deployMs = 120_000;
/** What the host answers is one line, and what its start-up files say. */
const maxAnswerLength = 1 << 20;
/** The file is another one, or there is none: nobody else's exit code. */
const differs = 97;

/**
 * Puts holdfast on a host where it is not, or is another one; starts it or joins the one that runs; and connects to it.
 *
 * Several hosts at once: `Promise.allSettled(hosts.map((host) => deploy({ ssh: ["ssh", host] })))`. Each failure names its command.
 *
 * @throws {HoldfastError} What failed, and why: `reason`, `hint`, and the command's `stderr` and `exitCode`.
 */
export async function deploy(options: DeployOptions): Promise<Deployment> {
  const { ssh, program, directory = ".holdfast", signal, deployTimeoutMs = deployMs, ...rest } = options;
  signal?.throwIfAborted(); // what has begun on a host may come through without us
  if (!/^[\w./][\w./-]*$/.test(directory))
    throw cannot(`deploy to the directory "${directory}": it must have letters, digits, and . _ - / alone`);
  const file = readProgram(besideFile(program));
  const limits = { signal, timeoutMs: deployTimeoutMs };
  const script = `sh ${directory}/holdfast.js`;
  const serve = `${script} --serve --json${serveFlags(options)}`;
  const found = `grep -qs ${file.hash} ${directory}/holdfast.js || exit ${differs}; exec ${serve}`;
  let answer = await runThere(ssh, found, undefined, limits);
  const isOther = answer.outcome.code === differs;
  if (isOther) answer = await runThere(ssh, installScript(file, directory, script, serve), file.bytes, limits);
  const served = readServed(answer);
  const { onStderr, timeoutMs, requestTimeoutMs, heartbeatMs, reconnect } = rest;
  const line = { onStderr, timeoutMs, requestTimeoutMs, heartbeatMs, reconnect, signal };
  const connection = await connect({ ...line, command: [...ssh, `${script} --bridge --as-owner`] });
  if (connection.instanceId === served.instance)
    return Object.assign(connection, { copied: isOther && /^copied$/m.test(answer.stdout), served });
  await connection.close();
  const words = `the daemon ${served.instance} was ${served.how}, but another session reaches ${connection.instanceId}`;
  throw failed(answer, words, errorCodes.noDaemon);
}

interface Program {
  bytes: Buffer;
  hash: string;
}

function readProgram(path: string): Program {
  try {
    const bytes = readFileSync(path);
    const hash = capture(/^ *sha256: "([0-9a-f]{64})"/m, bytes.toString("latin1"));
    if (hash) return { bytes, hash };
  } catch (error) {
    throw osFailure(`read "${path}"`, error);
  }
  throw cannot(`deploy "${path}": it carries no hash, it must be a built holdfast.js`, {
    hint: "name one with `program`",
  });
}

function serveFlags({ lifetime, enableLinger, replace }: DeployOptions): string {
  if (lifetime !== undefined && !/^(auto|scope|detach)$/.test(lifetime))
    throw cannot(`deploy with the lifetime "${lifetime}": it must be auto, scope or detach`);
  return [lifetime && ` --lifetime ${lifetime}`, enableLinger && " --enable-linger", replace && " --replace"]
    .filter(Boolean)
    .join("");
}

/**
 * Of several at once the first copies; a lock that is 20 s old is nobody's any more. An older daemon that is idle makes room, one that has work is
 * joined as it is, or replaced.
 */
function installScript({ bytes, hash }: Program, directory: string, script: string, serve: string): string {
  return [
    `umask 077; d=${directory}; f=$d/holdfast.js; n=$d/new.$$; l=$d/lock; t=0`,
    `mkdir -p $d && cat > $n && [ $(($(wc -c < $n))) -eq ${bytes.length} ] && chmod 700 $n || { rm -f $n; exit 73; }`,
    `until ln $n $l 2> /dev/null || [ $t -ge 20 ]; do sleep 1; t=$((t + 1)); done`,
    `grep -qs ${hash} $f || { mv $n $f && echo copied; ${script} --stop --if-idle > /dev/null 2>&1; }`,
    `rm -f $n $l; exec ${serve}`,
  ].join("; ");
}

interface Answer {
  command: Command;
  outcome: Outcome;
  stdout: string;
}

/** Runs a script on the host, by a POSIX shell, whatever the login shell is. */
async function runThere(
  ssh: string[],
  script: string,
  stdin: Buffer | undefined,
  limits: CallOptions,
): Promise<Answer> {
  const command = runCommand([...ssh, `sh -c '${script}'`]);
  const name = ssh.join(" ");
  let stdout = "";
  command.line.input.on("data", (chunk: Buffer) => {
    stdout = (stdout + chunk.toString()).slice(-maxAnswerLength);
  });
  command.line.output.end(stdin);
  const { timeoutMs = 0, signal } = limits;
  try {
    const ended = withLimit(command.ended, timeoutMs, () => late(name, timeoutMs));
    const outcome = await withSignal(ended, signal);
    return { command: { ...command, name }, outcome, stdout };
  } catch (error) {
    command.line.destroy();
    throw error;
  }
}

function late(name: string, timeoutMs: number): Failure {
  return cannot(`deploy over "${name}": it has not ended within ${timeoutMs / 1000} s`, {
    code: errorCodes.noDaemon,
    data: { reason: "time-limit" },
  });
}

/** Start-up files of the login shell may have their own words on stdout. */
function readServed(answer: Answer): Served {
  const { outcome, stdout } = answer;
  const line = stdout
    .split("\n")
    .filter((text) => text.startsWith('{"socket":'))
    .pop();
  const served = line && safely(() => JSON.parse(line) as Served);
  if (outcome.code === 0 && served) return served;
  const said = cleanText(stdout.trim(), 200);
  throw failed(answer, outcome.code === 0 ? `--serve said no JSON: ${said}` : undefined);
}

/** What holdfast itself said on stderr, else how the command ended, and what else it said. */
function failed({ command, outcome }: Answer, words?: string, code?: number): Failure {
  const { stderr, name } = command;
  const own = capture(/^holdfast: error: (.*)/m, stderr);
  const { reason, hint } = diagnose(outcome, stderr);
  const isOwn = own !== undefined && reason !== "no-runtime";
  const said = isOwn ? own : `${outcomeWords(outcome)}${stderr.trim() === "" ? "" : `: ${stderr.trim()}`}`;
  return cannot(`deploy over "${name}": ${words ?? said}`, {
    code,
    hint: isOwn ? capture(/^holdfast: hint: (.*)/m, stderr) : hint,
    data: { ...(reason && !isOwn ? { reason } : {}), stderr, exitCode: outcome.code },
  });
}
