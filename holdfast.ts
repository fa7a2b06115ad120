/**
 * What is run: arguments to one mode, its wiring, words on stdout and stderr, and the exit code. Imported, it is the API of api.ts.
 *
 * A mode loads the modules that it needs, and no others: a bridge is started for each connection.
 */

import { closeSync, readFileSync, writeSync } from "node:fs";
import type * as api from "./api.ts";
import { help, parseArguments, usage } from "./arguments.ts";
import type { CommandLine } from "./arguments.ts";
import type { BridgeWorld } from "./bridge.ts";
import type { Started, StartOptions } from "./control.ts";
import { cannot, cleanText, exitCodes, Failure } from "./failure.ts";
import type { ReadyMessage } from "./lifetime.ts";
import { daemonCommand, keepCompiled } from "./program.ts";
import { hashToken, makeRunDirectory, ownToken, placesOf, readToken } from "./socket.ts";
import type { Places } from "./socket.ts";
import { build, runtime, version } from "./version.ts";

export const connect: typeof api.connect = async (options) => (await import("./api.ts")).connect(options);
export const serve: typeof api.serve = async (options) => (await import("./api.ts")).serve(options);

async function main(): Promise<number> {
  if (process.platform === "win32")
    throw cannot("run on Windows: holdfast needs Unix sockets, process groups and signals");
  const { mode, options, words } = parseArguments(process.argv.slice(2));
  const text = (name: string): string | undefined => options[name] as string | undefined;
  if (mode === "help") return say(help);
  if (mode === "version") return say(options.json ? `${JSON.stringify(versionFacts())}\n` : `holdfast ${version()}\n`);
  if (options.launched) return launched();
  const places = placesOf({ socket: text("socket"), log: text("log") });
  switch (mode) {
    case "serve":
      return serveHost(places, options);
    case "bridge":
      return bridge(places, options["no-start"] === undefined);
    case "stop":
      return stop(places, options);
    case "status":
      return (await import("./status.ts")).printStatus(places, options.json === true, say);
    case "doctor":
      return (await import("./doctor.ts")).printDoctor(places, options.json === true, say);
    default:
      return (await import("./call.ts")).call(places, words[0]!, words[1], text("token-file"));
  }
}

// --serve

async function serveHost(places: Places, options: CommandLine["options"]): Promise<number> {
  const launch = (options.lifetime || "auto") as "auto" | "scope" | "detach" | "foreground";
  if (!/^(auto|scope|detach|foreground)$/.test(launch)) {
    throw usage(`--lifetime is "${launch}", it must be auto, scope, detach or foreground`);
  }
  // first of all, and once: it may be a pipe
  const given = options["token-file"] === undefined ? undefined : await readToken(options["token-file"] as string);
  if (given === undefined) makeRunDirectory(places.directory);
  const token = given || ownToken(places.token);
  const start: StartOptions = {
    places,
    get tokenHashes() {
      return [hashToken(token)];
    },
    launch: launch === "foreground" ? "detach" : launch,
    enableLinger: options["enable-linger"] === true,
    replace: options.replace === true,
    command: daemonCommand(places),
    version: version(),
    progress: (line) => process.stderr.isTTY && process.stderr.write(`holdfast: ${line} …\n`),
  };
  const tokenFile = given === undefined ? places.token : undefined;
  if (launch === "foreground") return serveHere(start, tokenFile, options);
  const starting = (await import("./control.ts")).startServer(start);
  void process.stdout; // takes node 1 ms to open: while the daemon boots
  return report(await starting, start, tokenFile, options);
}

/** In this process, for a supervisor (systemd, a container): until it is stopped. */
async function serveHere(
  start: StartOptions,
  tokenFile: string | undefined,
  options: CommandLine["options"],
): Promise<number> {
  const { started, ended } = await (await import("./control.ts")).startHere(
    start,
    (await import("./server.ts")).startDaemon,
  );
  const code = report(started, start, tokenFile, options);
  if (code !== exitCodes.done)
    warn(`exit code ${code} is given as it ends: in the foreground it serves all the same`, undefined);
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
    (await import("./server.ts")).prepareDaemon();
    const handover = readFileSync(3, "utf8");
    closeSync(3);
    if (handover === "") process.exit(); // it is not wanted
    const { record, ended } = await (await import("./server.ts")).startDaemon(JSON.parse(handover));
    report({ ok: true, pid: process.pid, instance: record.instance });
    const code = await ended;
    if (record.ended?.reason !== "stopped") process.exit(code); // systemd, or whoever ended it, is not to wait for a disk
    return code;
  } catch (error) {
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
  const { pid, instance, lifetime, facts, how } = started;
  if (options.json) {
    say(
      `${cleanText(JSON.stringify({ socket: places.socket, pid, instance, version: started.version, how, lifetime, log: places.log, tokenFile }))}\n`,
    );
  } else {
    say(
      `Remote server listening on ${cleanText(places.socket)} (pid ${pid}, instance ${instance}, ${lifetime.where}; survives logout: ${lifetime.words})\n`,
    );
    if (tokenFile) note(`its token is in ${tokenFile}`);
  }
  if (how !== "started")
    note(
      how === "joined"
        ? "joined the daemon that was running"
        : "revived the daemon that was stopping, with its processes",
    );
  if (started.version !== version()) {
    warn(
      `the daemon is of version ${started.version}, this is ${version()}`,
      "--serve --replace starts this one in its place; its processes end",
    );
  }
  if (facts.lingerSwitchedOn)
    note(
      `lingering was switched on for ${facts.user}; "loginctl disable-linger ${facts.user}" undoes it, and then the daemon ends with the last session`,
    );
  for (const { name, message, hint } of lifetime.warnings) warn(`${message} [README: ${name}]`, hint);
  if (!options["require-survival"] || lifetime.survivesLogout === "yes") return exitCodes.done;
  fail(
    new Failure(`The daemon runs, but is not sure to survive logout: ${lifetime.words}`, {
      hint: lifetime.warnings[0]?.hint || "see --doctor",
    }),
  );
  return exitCodes.willNotSurvive;
}

// --bridge

async function bridge(places: Places, mayStart: boolean): Promise<number> {
  const world: BridgeWorld = {
    ...(await import("./bridge.ts")).channelEnds(),
    socket: places.socket,
    warn: fail,
    reachOtherwise: async (outcome) =>
      (await import("./control.ts")).reachOtherwise(places, outcome, mayStart ? healing(places) : undefined),
    explainSilence: async () => (await import("./control.ts")).explainSilence(places),
    explainLoss: async () => (await import("./control.ts")).explainLoss(places),
  };
  return (await import("./bridge.ts")).runBridge(world);
}

function healing(places: Places): Omit<StartOptions, "tokenHashes"> {
  return { places, launch: "auto", command: daemonCommand(places), version: version(), progress: note };
}

// --stop

async function stop(places: Places, options: CommandLine["options"]): Promise<number> {
  const graceMs = options.now ? 0 : options.grace ? Math.round(Number(options.grace) * 1000) : undefined; // the daemon has a grace of its own
  if (graceMs !== undefined && !(graceMs >= 0 && graceMs <= 86_400_000))
    throw usage(`--grace is "${options.grace}", it must be from 0 to 86400 seconds`);
  const {
    word,
    count,
    note: words,
  } = await (await import("./control.ts")).stopServer(places, { graceMs, ifIdle: options["if-idle"] === true });
  say(options.json ? `${JSON.stringify({ word, count })}\n` : `${word} ${count}\n`);
  if (words !== undefined) note(words);
  return exitCodes.done;
}

// Words

function versionFacts(): Record<string, unknown> {
  const { sha256, file = process.argv[1] } = build || {};
  return { version: version(), sha256, runtime, runtimeVersion: process.versions[runtime], file };
}

function say(text: string): number {
  process.stdout.write(text);
  return exitCodes.done;
}

/** Lines on stderr begin alike, so that they can be told from those of ssh and of a program. */
function tell(kind: string, colour: number, text: string, hint?: string): void {
  const word = process.stderr.isTTY && !process.env.NO_COLOR ? `\x1b[${colour}m${kind}\x1b[0m` : kind;
  process.stderr.write(`holdfast: ${word}${kind === "" ? "" : ": "}${cleanText(text)}\n`);
  if (hint) tell("hint", 36, hint);
}

function note(text: string): void {
  tell("", 0, text);
}

function warn(text: string, hint: string | undefined): void {
  tell("warning", 33, text, hint);
}

function fail({ message, hint }: Failure): void {
  tell("error", 31, message, hint);
}

function run(): void {
  main().then(
    (code) => {
      process.exitCode = code;
      // what was written to a pipe is on its way by now; a handle of a mode that is done must not keep us
      process.stdout.write("", () => {
        if (code === exitCodes.done) keepCompiled();
        process.exit(code);
      });
    },
    (error: unknown) => {
      // {0,} is *, which before a / would end the comment that the program is in
      fail(
        error instanceof Failure
          ? error
          : new Failure(`Internal error: ${String((error as Error).stack || error).replace(/\n\s{0,}/g, "; ")}`),
      );
      process.exit(error instanceof Failure ? error.exit : exitCodes.failed);
    },
  );
}

// from source: Node has import.meta.main from 24.2 on, Deno and Bun always
if (
  build?.main ??
  (import.meta as { main?: boolean }).main ??
  (import.meta as { filename?: string }).filename === process.argv[1]
)
  run();
