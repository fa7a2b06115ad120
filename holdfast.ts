/**
 * What is run: arguments to one mode, its wiring, words on stdout and stderr, and the exit code; of the modes only --call, one request. Imported, it is
 * the API of api.ts.
 */

import { closeSync, readFileSync, writeSync } from "node:fs";
import { constants } from "node:os";
import { isatty } from "node:tty";
import { createConnection } from "./api.ts";
import type { CommandLine } from "./arguments.ts";
import { help, helpOf, parseArguments, sizeOf, usage } from "./arguments.ts";
import { channelEnds, runBridge } from "./bridge.ts";
import type { Client } from "./client.ts";
import type { Started, StartOptions } from "./control.ts";
import { reachOtherwise, revive, startHere, startServer, stopServer } from "./control.ts";
import { pageOf, printDoctor, printStatus, unknownEndWords } from "./doctor.ts";
import { lendAgent } from "./environment.ts";
import {
  cannot,
  cleanText,
  defer,
  errnoOf,
  errorCodes,
  exitCodes,
  Failure,
  nearest,
  osFailure,
  quoteWord,
  safely,
} from "./failure.ts";
import type { JobsWorld } from "./jobs.ts";
import { ask, attach, printList, printLogs, run as runJob, wait } from "./jobs.ts";
import type { ReadyMessage, Watchdog } from "./launch.ts";
import { startWatchdog } from "./launch.ts";
import type { Output, ReattachOptions, RemoteProcess } from "./library.ts";
import { build, daemonCommand, keepYoungSmall, refuseDebuggers, version, versionFacts } from "./program.ts";
import { connectOwned, explainLoss, explainSilence, isEndedDaemon, ownerKey } from "./reach.ts";
import { readRecord } from "./record.ts";
import { isObject } from "./rpc.ts";
import type { Handover } from "./server.ts";
import { startDaemon } from "./server.ts";
import type { Places } from "./socket.ts";
import { hashToken, makeRunDirectory, ownToken, placesOf, readToken } from "./socket.ts";
import { defaultKey, detachKeyOf, inColour, jsonLine, print, say } from "./terminal.ts";

export { connect, deploy, HoldfastError, serve } from "./deploy.ts";

async function main(): Promise<number> {
  if (process.platform === "win32")
    throw cannot("run on Windows: holdfast needs Unix sockets, process groups and signals");
  const args = process.argv.slice(2);
  if (args.length === 0) {
    print(2, help);
    return exitCodes.usage;
  }
  const line = parseArguments(args);
  const { mode, options, words } = line;
  if (mode === "help") return say(pageOf(words[0] ?? "") ?? helpOf(words[0]));
  if (mode === "version") return say(options.json ? `${JSON.stringify(versionFacts())}\n` : `holdfast ${version()}\n`);
  if (options.launched) return launched();
  const places = placesOf({ socket: text(options, "socket"), log: text(options, "log") });
  if (options.revive) return revive(places, healingOf(places)).then(() => exitCodes.done);
  switch (mode) {
    case "serve":
      return serveHost(places, options);
    case "bridge":
      return bridge(places, options["no-start"] === undefined, options["as-owner"] === true);
    case "stop":
      return stop(places, options);
    case "status":
      return printStatus(places, options.json === true);
    case "doctor":
      return printDoctor(places, options.json === true);
    case "call":
      return call(places, words[0]!, words[1], text(options, "token-file"));
    default:
      return jobs(places, line);
  }
}

const text = (options: CommandLine["options"], name: string): string | undefined => options[name] as string | undefined;

// --call

/**
 * Carries out one call.
 *
 * The result is printed as JSON; or, for process.spawn and process.reattach, the process's output is, on the streams it came from. When the
 * connection is lost the process goes on, and process.reattach takes it up again.
 *
 * @param paramsText JSON; "-" reads it from stdin.
 * @returns 0; or the exit code of the process, 128 and the signal's number when a signal ended it.
 */
async function call(
  places: Places,
  method: string,
  paramsText: string | undefined,
  tokenFile: string | undefined,
): Promise<number> {
  const params = parseParams(paramsText === "-" ? readParams() : (paramsText ?? "{}"));
  const { client, auth } = await connectOwned(places, tokenFile);
  try {
    await client.request("server.authenticate", { token: auth }); // first of all: what a stranger may send is little
    if (method === "process.spawn" || method === "process.reattach") return await stream(client, method, params);
    return say(jsonLine(await client.request(method, params)));
  } catch (error) {
    throw await explainRefusal(client, method, error as Failure);
  } finally {
    client.close();
  }
}

async function explainRefusal(client: Client, method: string, error: Failure): Promise<Failure> {
  const { message, code, data } = error;
  if (code === errorCodes.unauthorized)
    return new Failure(message, { exit: exitCodes.noPermission, hint: "give the daemon's token with --token-file" });
  if (code !== errorCodes.unknownMethod) return error;
  const known = (await client.request("server.capabilities", {}).catch(() => ({}))) as { methods?: string[] };
  const near = nearest(method, known.methods ?? []);
  return new Failure(message, {
    code,
    data,
    hint: near ? `did you mean ${near}?` : "see the methods of --call server.capabilities",
  });
}

/** All of stdin. What is not UTF-8 would name another file. */
function readParams(): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(readFileSync(0));
  } catch (error) {
    if (errnoOf(error) === undefined) throw cannot("read PARAMS: they are not UTF-8", { exit: exitCodes.usage });
    throw osFailure("read PARAMS from stdin", error);
  }
}

function parseParams(text: string): Record<string, unknown> {
  const params = safely((): unknown => JSON.parse(text.replace(/^\ufeff/, ""))); // a BOM, of a file from Windows
  if (isObject(params)) return params;
  throw cannot(`read PARAMS: it is ${JSON.stringify(text.slice(0, 50))}, a JSON object is needed`, {
    exit: exitCodes.usage,
    hint: `quote it for the shell: '{"id":"a"}'`,
  });
}

/** @returns The exit code of the process. */
async function stream(client: Client, method: string, given: Record<string, unknown>): Promise<number> {
  const { id, fromSeq, share, lossless, ...others } = given as ReattachOptions & { id: string } & typeof given;
  const [other] = Object.keys(others);
  if (method !== "process.spawn" && other !== undefined)
    throw cannot(`reattach by --call with "${other}": it takes id, fromSeq, share and lossless`, {
      exit: exitCodes.usage,
    });
  const connection = createConnection(client);
  let told = 0;
  const tellMissed = ({ missed }: RemoteProcess): void => {
    if (missed > told) print(2, `holdfast: ${missed - told} older messages are not held any more\n`);
    told = missed;
  };
  const broken = defer<never>();
  const onOutput = ({ stream: name, data }: Output): void => {
    try {
      print(name === "stdout" ? 1 : 2, data);
    } catch (error) {
      broken.reject(new Failure(`${(error as Error).message}; the process goes on`, { cause: error }));
    }
  };
  let remote: RemoteProcess | undefined;
  try {
    remote = await (method === "process.spawn"
      ? connection.spawn({ command: "", ...given, onOutput })
      : connection.reattach(id, { fromSeq, share, lossless, onOutput }));
    tellMissed(remote);
    const { exitCode, reason } = await Promise.race([remote.exit, broken.promise]);
    tellMissed(remote); // of what came while nobody read our own stdout for so long that the daemon went on without us
    if (reason !== undefined) note(unknownEndWords(remote.id, reason));
    return exitCode ?? 125;
  } catch (error) {
    const { message, code } = error as Failure;
    const isLost = code === errorCodes.noDaemon;
    if (!remote && !isLost) throw error; // refused
    const known = remote?.id ?? id; // a line that is lost before the answer leaves open whether it was started
    throw new Failure(message, {
      exit: isLost ? exitCodes.unavailable : exitCodes.failed,
      hint: known
        ? `--call process.reattach ${quoteWord(JSON.stringify({ id: known }))}`
        : "--call process.list tells whether it was started",
      cause: error,
    });
  }
}

// --run, --attach, --logs, --wait, --list, --kill, --forget

function jobs(places: Places, { mode, options, words, env = [] }: CommandLine): Promise<number> {
  const world: JobsWorld = {
    places,
    start: {
      ...healingOf(places),
      enableLinger: options["enable-linger"] === true,
    },
    tokenHashes: () => {
      makeRunDirectory(places.directory);
      return [hashToken(ownToken(places.token))];
    },
    note,
    warn,
  };
  const [word = "", ...more] = words;
  if (mode === "run" || mode === "attach") lendOwnAgent(places);
  switch (mode) {
    case "run":
      return runJob(world, {
        command: word,
        args: more,
        id: text(options, "id"),
        cwd: text(options, "cwd"),
        env,
        isDetached: options.detach === true,
        hasTerminal: options.terminal === true,
        detachKey: keyOf(options),
        startsAlways: options["enable-linger"] === true || options["require-survival"] === true,
        requiresSurvival: options["require-survival"] === true,
      });
    case "attach":
      return attach(world, word, options["no-stdin"] === undefined, keyOf(options));
    case "logs":
      return printLogs(world, word, linesOf(text(options, "lines")), options.follow === true);
    case "wait":
      return wait(world, word);
    case "list":
      return printList(world, options.json === true);
    case "kill":
      return ask(world, "process.kill", { id: word, signal: signalOf(more[0]) });
    default:
      return ask(world, "process.forget", { id: word });
  }
}

/** For as long as we live: what runs on here is to find the agent of whoever is connected. */
function lendOwnAgent({ agent, record }: Places): void {
  if (readRecord(record).record?.noAgent) return;
  const takeBack = lendAgent(agent, process.env.SSH_AUTH_SOCK);
  if (!takeBack) return;
  process.on("exit", takeBack);
  for (const signal of ["SIGHUP", "SIGTERM"] as const)
    process.on(signal, () => process.listenerCount(signal) === 1 && process.exit(128 + constants.signals[signal])); // --run has its own
}

const keyOf = (options: CommandLine["options"]) => detachKeyOf(text(options, "detach-key") ?? defaultKey);

function linesOf(given: string | undefined): number | undefined {
  if (given === undefined) return undefined;
  if (/^\d{1,9}$/.test(given)) return Number(given);
  throw usage(`--lines is "${given}", it must be a number`);
}

/** "TERM", "SIGTERM", "15", and as kill(1) takes it: "-15", "-TERM". */
function signalOf(given = "TERM"): string | number {
  const name = given.replace(/^-/, "").toUpperCase();
  return /^\d+$/.test(name) ? Number(name) : name;
}

// --serve

async function serveHost(places: Places, options: CommandLine["options"]): Promise<number> {
  const launch = (options.lifetime || "auto") as "auto" | "scope" | "detach" | "foreground";
  if (!/^(auto|scope|detach|foreground)$/.test(launch)) {
    throw usage(`--lifetime is "${launch}", it must be auto, scope, detach or foreground`);
  }
  const given = await givenToken(options);
  if (given === undefined) makeRunDirectory(places.directory);
  const token = given || ownToken(places.token);
  const start: StartOptions = {
    places,
    tokenHashes: [hashToken(token)],
    launch: launch === "foreground" ? "detach" : launch,
    enableLinger: options["enable-linger"] === true,
    replace: options.replace === true,
    noAgent: options["no-agent"] === true,
    ifIdle: options["if-idle"] === true,
    spoolBytes: options.spool === undefined ? undefined : sizeOf(options.spool as string),
    command: daemonCommand(places),
    version: version(),
    progress: (line) => isatty(2) && note(`${line} …`),
    warn: (line) => warn(line, undefined),
  };
  const tokenFile = given === undefined ? places.token : undefined;
  if (launch === "foreground") return serveHere(start, tokenFile, options);
  return report(await startServer(start), start, tokenFile, options);
}

/** First of all, and once: it may be a pipe. */
async function givenToken(options: CommandLine["options"]): Promise<string | undefined> {
  const fd = text(options, "token-fd");
  if (fd !== undefined && !/^\d{1,9}$/.test(fd))
    throw usage(`--token-fd is "${fd}", it must be the number of a descriptor`);
  const source = fd === undefined ? text(options, "token-file") : Number(fd);
  return source === undefined ? undefined : readToken(source, warn);
}

/** In this process, for a supervisor (systemd, a container): until it is stopped. */
async function serveHere(
  start: StartOptions,
  tokenFile: string | undefined,
  options: CommandLine["options"],
): Promise<number> {
  const { started, ended } = await startHere(start, startDaemon);
  await keepYoungSmall();
  const code = report(started, start, tokenFile, options);
  if (code !== exitCodes.done)
    warn(`exit code ${code} is given as it ends: in the foreground it serves all the same`, undefined);
  return Math.max(await ended, code);
}

/** The daemon itself: what it needs comes through descriptor 3, what it has to say goes through 4. */
async function launched(): Promise<number> {
  const report = (message: ReadyMessage): void => {
    try {
      writeSync(4, `${JSON.stringify(message)}\n`);
      closeSync(4);
    } catch {
      // the launcher is gone: the daemon it started is wanted all the same
    }
  };
  let watchdog: Watchdog | undefined;
  try {
    const handover = readFileSync(3, "utf8");
    closeSync(3);
    if (handover === "") process.exit(); // it is not wanted
    const start = JSON.parse(handover) as Handover;
    watchdog = startWatchdog(start, process.env);
    const { record, ended } = await startDaemon(start, undefined, () => watchdog?.rise());
    report({ ok: true, pid: process.pid, instance: record.instance });
    await keepYoungSmall();
    const code = await ended;
    if (code === exitCodes.done) watchdog?.stand(); // else it has come to grief
    if (record.ended?.reason !== "stopped") process.exit(code); // systemd, or whoever ended it, is not to wait for a disk
    return code;
  } catch (error) {
    watchdog?.stand();
    const { message, exit = exitCodes.failed, hint } = error as Failure;
    report({ ok: false, message, exit, hint });
    return exit;
  }
}

function report(
  started: Started,
  { places }: StartOptions,
  tokenFile: string | undefined,
  options: CommandLine["options"],
): number {
  const { pid, instance, lifetime, facts, how, version: running } = started;
  if (options.json) {
    const { socket, log } = places;
    say(jsonLine({ socket, pid, instance, version: running, how, lifetime, log, tokenFile }));
  } else {
    const where = `pid ${pid}, instance ${instance}, ${lifetime.where}; survives logout: ${lifetime.words}`;
    say(`Remote server listening on ${cleanText(places.socket)} (${where})\n`);
    if (tokenFile) note(`its token is in ${tokenFile}`);
  }
  if (how === "joined") note("joined the daemon that was running");
  if (how === "revived") note("revived the daemon that was stopping, with its processes");
  if (running !== version()) {
    const hint = "--serve --replace starts this one in its place; its processes go on";
    warn(`the daemon is of version ${running}, this is ${version()}`, hint);
  }
  if (facts.lingerSwitchedOn) {
    const undo = `"loginctl disable-linger ${facts.user}" undoes it, and then the daemon ends with the last session`;
    note(`lingering was switched on for ${facts.user}; ${undo}`);
  }
  for (const { name, message, hint } of lifetime.warnings) warn(`${message} [--help ${name}]`, hint);
  if (!options["require-survival"] || lifetime.survivesLogout === "yes") return exitCodes.done;
  const hint = lifetime.warnings[0]?.hint || "see --doctor";
  fail(new Failure(`The daemon runs, but is not sure to survive logout: ${lifetime.words}`, { hint }));
  return exitCodes.willNotSurvive;
}

// --bridge

/** What a daemon is started with in the place of one that has died. */
function healingOf(places: Places) {
  return { places, launch: "auto", command: daemonCommand(places), version: version(), progress: note } as const;
}

async function bridge(places: Places, mayStart: boolean, asOwner: boolean): Promise<number> {
  const healing = healingOf(places);
  lendOwnAgent(places);
  return runBridge({
    ...channelEnds(),
    socket: places.socket,
    ownerKey: asOwner ? () => ownerKey(places) : undefined,
    instance: () => readRecord(places.record).record?.instance,
    isDead: () => isEndedDaemon(places),
    warn: fail,
    reachOtherwise: (outcome) => reachOtherwise(places, outcome, mayStart ? healing : undefined),
    explainSilence: () => explainSilence(places),
    explainLoss: (instance) => explainLoss(places, instance),
  });
}

// --stop

async function stop(places: Places, options: CommandLine["options"]): Promise<number> {
  const stopped = await stopServer(places, {
    graceMs: graceOf(options),
    ifIdle: options["if-idle"] === true,
    forget: options.forget === true,
  });
  const { word, count } = stopped;
  say(options.json ? jsonLine({ word, count }) : `${word} ${count}\n`);
  if (stopped.note !== undefined) note(stopped.note);
  return exitCodes.done;
}

/** Undefined where none is given: the daemon has a grace of its own. */
function graceOf({ now, grace }: CommandLine["options"]): number | undefined {
  if (now || grace === undefined) return now ? 0 : undefined;
  const graceMs = Math.round(Number(grace) * 1000);
  if (graceMs >= 0 && graceMs <= 86_400_000) return graceMs;
  throw usage(`--grace is "${grace}", it must be from 0 to 86400 seconds`);
}

// Words

/** Lines on stderr begin alike, so that they can be told from those of ssh and of a program. */
function tell(kind: string, colour: number, words: string, hint?: string): void {
  const start = kind === "" ? "" : `${inColour(2, colour, kind)}: `;
  safely(() => print(2, `holdfast: ${start}${cleanText(words)}\n`)); // nobody may read it
  if (hint) tell("hint", 36, hint);
}

function note(words: string): void {
  tell("", 0, words);
}

function warn(words: string, hint: string | undefined): void {
  tell("warning", 33, words, hint);
}

function fail({ message, hint }: Failure): void {
  tell("error", 31, message, hint);
}

function run(): void {
  void refuseDebuggers();
  const end = (error: unknown): never => {
    const words = String((error as Error).stack || error).replace(/\n\s*/g, "; ");
    fail(error instanceof Failure ? error : new Failure(`Internal error: ${words}`));
    process.exit(error instanceof Failure ? error.exit : exitCodes.failed);
  };
  // else node ends in silence, with 0, when a mode waits for what nothing keeps it for
  process.once("beforeExit", () => end("the mode waits, and nothing is left to wait for"));
  main().then((code) => process.exit(code), end); // a handle of a mode that is done must not keep us
}

/** From source: Node has import.meta.main from 24.2 on, Deno and Bun always. */
function isRun(): boolean {
  const isThis = (import.meta as { filename?: string }).filename === process.argv[1];
  return build?.main ?? (import.meta as { main?: boolean }).main ?? isThis;
}

if (isRun()) run();
