/** What is run: arguments to one mode, its wiring, words on stdout and stderr, and the exit code. */

import { closeSync, readFileSync, writeSync } from "node:fs";
import { dirname, join } from "node:path";
import { help, parseArguments, usage } from "./arguments.ts";
import type { CommandLine } from "./arguments.ts";
import type { BridgeWorld } from "./bridge.ts";
import type { Started, StartOptions } from "./control.ts";
import { exitCodes, Failure } from "./failure.ts";
import type { ReadyMessage, Warning } from "./lifetime.ts";
import { placesOf } from "./socket.ts";
import type { Places } from "./socket.ts";

/** Set by the build; from source it is read from package.json. */
declare const __VERSION__: string;

async function main(): Promise<number> {
  if (process.platform === "win32") throw new Failure("Cannot run on Windows: holdfast needs Unix sockets, process groups and signals");
  const { mode, options, words } = parseArguments(process.argv.slice(2));
  const text = (name: string): string | undefined => options[name] as string | undefined;
  if (mode === "help") return say(help);
  if (mode === "version") return say(options.json ? `${JSON.stringify({ version: version(), node: process.versions.node })}\n` : `holdfast ${version()}\n`);
  if (options.launched) return launched();
  const places = placesOf({ socket: text("socket"), log: text("log") });
  switch (mode) {
    case "serve": return serve(places, options);
    case "bridge": return bridge(places, options["no-start"] === undefined);
    case "stop": return stop(places, options);
    case "status": return (await import("./status.ts")).printStatus(places, options.json === true, say);
    case "doctor": return (await import("./doctor.ts")).printDoctor(places, options.json === true, say);
    default: return (await import("./call.ts")).call(places, words[0]!, words[1], text("token-file"));
  }
}

// --serve

async function serve(places: Places, options: CommandLine["options"]): Promise<number> {
  const launch = options.lifetime ?? "auto";
  if (launch !== "auto" && launch !== "scope" && launch !== "detach" && launch !== "foreground") {
    throw usage(`--lifetime is "${launch}", it must be auto, scope, detach or foreground`);
  }
  const { hashToken, makeRunDirectory, ownToken, readToken } = await import("./socket.ts");
  // first of all, and once: it may be a pipe
  const given = options["token-file"] === undefined ? undefined : await readToken(options["token-file"] as string);
  if (given === undefined) makeRunDirectory(places.directory);
  const start: StartOptions = {
    places, tokenHashes: [hashToken(given ?? ownToken(places.token))], launch: launch === "foreground" ? "detach" : launch,
    enableLinger: options["enable-linger"] === true, replace: options.replace === true, command: daemonCommand(places), version: version(),
    progress: (line) => process.stderr.isTTY && process.stderr.write(`holdfast: ${line} …\n`),
  };
  const tokenFile = given === undefined ? places.token : undefined;
  if (launch === "foreground") return serveHere(start, tokenFile, options);
  const [{ startServer }, { realWorld }] = await Promise.all([import("./control.ts"), import("./lifetime.ts")]);
  const started = await startServer(start, realWorld());
  return report(started, start, tokenFile, options);
}

/** In this process, for a supervisor (systemd, a container): until it is stopped. */
async function serveHere(start: StartOptions, tokenFile: string | undefined, options: CommandLine["options"]): Promise<number> {
  const { startHere } = await import("./control.ts");
  const { realWorld } = await import("./lifetime.ts");
  const { startDaemon } = await import("./server.ts");
  const { started, ended } = await startHere(start, realWorld(), startDaemon);
  const code = report(started, start, tokenFile, options);
  if (code !== exitCodes.done) warn(`exit code ${code} is given as it ends: in the foreground it serves all the same`, undefined);
  return Math.max(await ended, code);
}

/** The daemon itself: what it needs comes through descriptor 3, what it has to say goes through 4. */
async function launched(): Promise<number> {
  const report = (message: ReadyMessage): void => {
    try {
      writeSync(4, JSON.stringify(message) + "\n");
      closeSync(4);
    } catch {
      // the launcher is gone: the daemon it started is wanted all the same
    }
  };
  try {
    const handover = JSON.parse(readFileSync(3, "utf8"));
    closeSync(3);
    const { startDaemon } = await import("./server.ts");
    const { realWorld } = await import("./lifetime.ts");
    const { record, ended } = await startDaemon(handover, realWorld());
    report({ ok: true, pid: process.pid, instance: record.instance });
    return await ended;
  } catch (error) {
    const { message, exit = exitCodes.failed, hint } = error as Failure;
    report({ ok: false, message, exit, ...(hint === undefined ? {} : { hint }) });
    return exit;
  }
}

/** What runs such a daemon: the runtime and flags that this process was started with. */
function daemonCommand(places: Places): string[] {
  const flags = "Deno" in globalThis ? ["run", "--allow-all"] : process.execArgv;
  return [process.execPath, ...flags, process.argv[1]!, "--serve", "--launched", "--socket", places.socket];
}

function report(started: Started, { places }: StartOptions, tokenFile: string | undefined, options: CommandLine["options"]): number {
  const { pid, instance, lifetime, facts, how } = started;
  if (options.json) {
    say(`${JSON.stringify({ socket: places.socket, pid, instance, version: started.version, how, lifetime, log: places.log, ...(tokenFile === undefined ? {} : { tokenFile }) })}\n`);
  } else {
    say(`Remote server listening on ${places.socket} (pid ${pid}, instance ${instance}, ${lifetime.where}; survives logout: ${lifetime.words})\n`);
    if (tokenFile !== undefined) note(`its token is in ${tokenFile}`);
  }
  if (how !== "started") note(how === "joined" ? "joined the daemon that was running" : "revived the daemon that was stopping, with its processes");
  if (started.version !== version()) {
    warn(`the daemon is of version ${started.version}, this is ${version()}`, "--serve --replace starts this one in its place; its processes end");
  }
  if (facts.lingerSwitchedOn) note(`lingering was switched on for ${facts.user}; "loginctl disable-linger ${facts.user}" undoes it, and then the daemon ends with the last session`);
  if (facts.systemd && facts.scopeProblem !== undefined && lifetime.survivesLogout === "yes" && facts.killed === "yes") note(facts.scopeProblem);
  for (const warning of lifetime.warnings) warnOf(warning);
  if (!options["require-survival"] || lifetime.survivesLogout === "yes") return exitCodes.done;
  fail(new Failure(`The daemon runs, but is not sure to survive logout: ${lifetime.words}`, { hint: lifetime.warnings[0]?.hint ?? "see --doctor" }));
  return exitCodes.willNotSurvive;
}

// --bridge

async function bridge(places: Places, mayStart: boolean): Promise<number> {
  const [{ channelEnds, runBridge }, { tryConnect }] = await Promise.all([import("./bridge.ts"), import("./client.ts")]);
  const world: BridgeWorld = {
    ...channelEnds(),
    reach: async () => {
      const outcome = await tryConnect(places.socket, 5000);
      return "socket" in outcome ? outcome.socket : (await import("./control.ts")).reachOtherwise(places, outcome, mayStart ? healing(places) : undefined);
    },
    warn: fail,
    explainLoss: async () => (await import("./control.ts")).explainLoss(places),
  };
  return runBridge(world);
}

function healing(places: Places): Omit<StartOptions, "tokenHashes"> {
  return { places, launch: "auto", enableLinger: false, replace: false, command: daemonCommand(places), version: version(), progress: note };
}

// --stop

async function stop(places: Places, options: CommandLine["options"]): Promise<number> {
  const { stopServer } = await import("./control.ts");
  const seconds = options.now ? 0 : options.grace === undefined ? 10 : Number(options.grace);
  if (!(seconds >= 0 && seconds <= 86_400)) throw usage(`--grace is "${options.grace}", it must be from 0 to 86400 seconds`);
  const { word, count, note: words } = await stopServer(places, { graceMs: Math.round(seconds * 1000), ifIdle: options["if-idle"] === true });
  say(options.json ? `${JSON.stringify({ word, count })}\n` : `${word} ${count}\n`);
  if (words !== undefined) note(words);
  return exitCodes.done;
}

// Words

function version(): string {
  // from source there is no build to set it: the file stands beside the script
  return typeof __VERSION__ === "string" ? __VERSION__ : (JSON.parse(readFileSync(join(dirname(process.argv[1]!), "package.json"), "utf8")) as { version: string }).version;
}

function say(text: string): number {
  process.stdout.write(text);
  return exitCodes.done;
}

/** Lines on stderr begin alike, so that they can be told from those of ssh and of a program. */
function tell(kind: string, text: string, colour: number): void {
  const word = process.stderr.isTTY && !process.env.NO_COLOR ? `\x1b[${colour}m${kind}\x1b[0m` : kind;
  process.stderr.write(`holdfast: ${word}${kind === "" ? "" : ": "}${text}\n`);
}

function note(text: string): void {
  tell("", text, 0);
}

function warn(text: string, hint: string | undefined): void {
  tell("warning", text, 33);
  if (hint !== undefined) tell("hint", hint, 36);
}

function warnOf({ name, message, hint }: Warning): void {
  warn(`${message} [README: ${name}]`, hint);
}

function fail({ message, hint }: Failure): void {
  tell("error", message, 31);
  if (hint !== undefined) tell("hint", hint, 36);
}

main().then(
  (code) => {
    process.exitCode = code;
    // what was written to a pipe is on its way by now; a handle of a mode that is done must not keep us
    process.stdout.write("", () => process.exit(code));
  },
  (error: unknown) => {
    fail(error instanceof Failure ? error : new Failure(`Internal error: ${(error as Error).stack ?? error}`));
    process.exit(error instanceof Failure ? error.exit : exitCodes.failed);
  },
);

