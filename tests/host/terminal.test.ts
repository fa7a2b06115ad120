// time limit: 240 s
/**
 * --run --terminal, and --attach, looked at as a person does: in a tmux of this machine, over ssh -t to a host that kills what stays in a session.
 *
 *     tmux ── ssh -t ── sshd of the host ── bash ── hf --run --terminal ── daemon ══ the process, in a terminal of its own
 */

import { spawnSync } from "node:child_process";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { builtFile } from "../daemon.ts";
import type { Host } from "./host.ts";
import { requireHosts, until, withHost } from "./host.ts";

const testCount = 6;
requireHosts(testCount);
const missing = Object.entries({ tmux: "tmux", vi: "vim-tiny", top: "procps" }).filter(
  ([program]) => spawnSync("sh", ["-c", `command -v ${program}`]).status !== 0,
);
if (missing.length > 0) {
  console.log(`SKIP ${testCount} terminals need the packages ${missing.map(([, name]) => name).join(", ")}`);
  process.exit(0);
}

/** A server of our own; it ends with its last session. */
const tmux = (...words: string[]): string => {
  const { status, stdout, stderr, error } = spawnSync(
    "tmux",
    ["-L", `holdfast-${process.pid}`, "-f", "/dev/null", "-u", ...words],
    {
      encoding: "utf8",
    },
  );
  if (error || status !== 0) throw new Error(`tmux ${words[0]}: ${error?.message ?? stderr}`);
  return stdout;
};

/** A terminal with a person at it, who has logged in. */
interface Pane {
  name: string;
  /** What is to be seen, a line each, without what is blank at their ends. */
  text(): string;
  type(...keys: string[]): void;
  resize(columns: number, rows: number): void;
  /** What tmux knows of it: "#{alternate_on}". */
  ask(format: string): string;
  sees(what: RegExp | string): Promise<void>;
  /** Types a command of the shell. */
  says(line: string): void;
  end(): void;
}

let paneCount = 0;

async function openPane(host: Host, columns: number, rows: number): Promise<Pane> {
  const name = `p${++paneCount}`;
  const login = host.loginCommand("ann");
  const command = [...login.slice(0, -1), "-t", login.at(-1)!, "PS1='ready> ' exec bash --norc"];
  tmux("new-session", "-d", "-s", name, "-x", String(columns), "-y", String(rows), ...command);
  const pane: Pane = {
    name,
    text: () => tmux("capture-pane", "-p", "-t", name).replace(/ +$/gm, ""),
    type: (...keys) => void tmux("send-keys", "-t", name, ...keys),
    resize: (width, height) => void tmux("resize-window", "-t", name, "-x", String(width), "-y", String(height)),
    ask: (format) => tmux("display-message", "-p", "-t", name, format).trim(),
    async sees(what) {
      const isThere = (): boolean => (typeof what === "string" ? pane.text().includes(what) : what.test(pane.text()));
      await until(isThere, `${what}`, 30_000).catch((error: Error) => {
        throw new Error(`${error.message}:\n${pane.text()}`);
      });
    },
    says: (line) => pane.type("-l", `${line}\n`),
    end: () => void tmux("kill-session", "-t", name),
  };
  await pane.sees("ready>");
  return pane;
}

/** The ssh client of a pane. */
function killClient({ ask }: Pane): void {
  process.kill(Number(ask("#{pane_pid}")), "SIGKILL");
}

async function killDaemon(host: Host): Promise<void> {
  const [daemon, ...more] = host.processes("--serve --launched");
  assert.ok(daemon && more.length === 0);
  process.kill(daemon.pid, "SIGKILL");
}

const terminals = suite("--run --terminal");

const onHost = (what: string, test: (host: Host) => Promise<void>): void =>
  terminals(what, () =>
    withHost({ killUserProcesses: true, users: ["ann+linger"] }, async (host) => {
      await host.copy("ann", builtFile, "hf");
      if (await hasTerminals(host)) await test(host);
    }),
  );

/** Of other suites not all have them: these say why. */
async function hasTerminals(host: Host): Promise<boolean> {
  if (!process.env.HOLDFAST_TEST_SUITE) return true;
  const { code, stderr } = await host.ssh("ann", "./hf --run --detach --terminal true");
  if (code !== 0) assert.match(stderr, /^holdfast: error: Cannot start "true" in a terminal: /m);
  return code === 0;
}

/** A program, how it is used, and how it is known again. */
interface Program {
  command: string;
  /** It is there, and used. */
  use(pane: Pane): Promise<void>;
  /** After a change to 100 by 30. */
  isLarge(pane: Pane): Promise<void>;
  /** Somebody has come back, in 90 by 20. */
  isSame(pane: Pane): Promise<void>;
  isAlternate: boolean;
}
const programs: Record<string, Program> = {
  bash: {
    command: "bash --norc --noprofile",
    async use(pane) {
      pane.says("x=4; PS1='inner> '; clear");
      await pane.sees("inner>");
      pane.says("echo $((x*10))2 is said; stty size");
      await pane.sees("402 is said\n24 80");
    },
    async isLarge(pane) {
      pane.says("stty size");
      await pane.sees("\n30 100\n");
      pane.type("-l", "echo half a li");
      await pane.sees("inner> echo half a li");
    },
    async isSame(pane) {
      await pane.sees("402 is said");
      await pane.sees("inner> echo half a li");
      pane.says("ne $x; stty size; echo $TERM");
      await pane.sees(/^half a line 4\n20 90\n(screen|tmux)/m);
    },
    isAlternate: false,
  },
  vim: {
    command: "vi -u NONE -N -n notes",
    async use(pane) {
      await pane.sees(/^~\n~$/m);
      pane.type("-l", "ifirst line\nsecond");
      await pane.sees(/^first line\nsecond$/m);
    },
    async isLarge(pane) {
      await pane.sees(/^first line\nsecond\n(~\n){27}/m);
    },
    async isSame(pane) {
      await pane.sees(/^first line\nsecond\n(~\n){17}/);
      pane.type("-l", " line"); // it is inserting still
      await pane.sees(/^first line\nsecond line\n~/);
      pane.type("Escape");
      pane.type("-l", ":set columns? lines?\n");
      await pane.sees(/columns=90\s+lines=20/);
      pane.type("-l", "\n:w\n");
      await pane.sees(/"notes".* written|2L, 23/);
    },
    isAlternate: true,
  },
  top: {
    command: "top -d 1",
    async use(pane) {
      await pane.sees(/^top - [\s\S]*\n *PID USER/m);
      pane.type("-l", "i"); // only what does something
    },
    async isLarge(pane) {
      await until(
        () =>
          pane
            .text()
            .split("\n")
            .some((line) => line.length > 81) || pane.ask("#{window_width}") === "100",
        "it is wide",
      );
      await pane.sees(/^top - /m);
    },
    async isSame(pane) {
      await pane.sees(/^top - [\s\S]*\n *PID USER/m);
    },
    isAlternate: false,
  },
};

for (const [name, program] of Object.entries(programs))
  onHost(`of ${name} is used, lost, and come back to, over the death of its daemon`, async (host) => {
    if (name === "vim" && (await host.inside(["sh", "-c", "command -v vi"])).code !== 0) return; // the roots of other suites
    const first = await openPane(host, 80, 24);
    first.says(`./hf --run --terminal --id it ${program.command}`);
    await program.use(first);
    first.resize(100, 30);
    await untilSize(host, 30, 100);
    await program.isLarge(first);
    const pidOf = (): number | undefined =>
      host.processes(program.command).find(({ command }) => command.startsWith(program.command))?.inside;
    const pid = pidOf();
    assert.ok(pid !== undefined);
    killClient(first);
    await host.sleepUntilLoggedOut("ann");
    await killDaemon(host);
    const second = await openPane(host, 90, 20);
    second.says("clear; ./hf --attach it");
    await untilSize(host, 20, 90);
    await program.isSame(second);
    assert.is(second.ask("#{alternate_on}"), program.isAlternate ? "1" : "0");
    assert.is(pidOf(), pid, "the same process");
    // … while somebody looks at it
    await killDaemon(host);
    await until(() => host.processes("--serve --launched").length === 1, "it is started again", 30_000);
    await second.sees(/started it again|^top - |^first line\n/m);
    second.type("C-\\");
    await second.sees('"it" goes on: --attach it');
    second.says("./hf --kill it KILL; ./hf --wait it; echo code $?");
    await second.sees("code 137");
    second.end();
  });

/** All that a program may leave behind. */
const state =
  "#{alternate_on} #{cursor_flag} #{insert_flag} #{keypad_cursor_flag} #{keypad_flag} #{mouse_any_flag} #{wrap_flag} #{scroll_region_upper} #{scroll_region_lower}";
const setter =
  "printf '\\033[?1049h\\033[?25l\\033[4h\\033[?1h\\033=\\033[?1003h\\033[?1006h\\033[?7l\\033[3;5r\\033[?2004hset'; trap 'printf set' WINCH; while :; do sleep 0.1; done";

/** Somebody has come, and what was drawn again has its size. */
const untilSize = (host: Host, rows: number, columns: number): Promise<void> =>
  until(async () => {
    const { stdout } = await host.ssh("ann", "./hf --list --json");
    const { terminal } = JSON.parse(stdout).processes.find(({ id }: { id: string }) => id === "it");
    return terminal.rows === rows && terminal.columns === columns;
  }, `a size of ${rows} by ${columns}`);

/** The node that --attach runs in. */
function attachedTo(host: Host): number {
  const [found, ...more] = host.processes(/^\S*node \S*hf --attach it$/);
  assert.ok(found && more.length === 0);
  return found.pid;
}

/** How we end, and the exit code that it has. */
const ends: [what: string, end: (pane: Pane, host: Host) => Promise<void>, code: number][] = [
  ["the key", async (pane) => pane.type("C-\\"), 0],
  ...(["SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT"] as const).map((signal): (typeof ends)[number] => [
    signal,
    async (_pane, host) => void process.kill(attachedTo(host), signal),
    125,
  ]),
  ["the end of the process", async (_pane, host) => void (await host.ssh("ann", "./hf --kill it KILL")), 137],
  ["the end of the daemon", async (_pane, host) => void (await host.ssh("ann", "./hf --stop --now")), 125],
];

onHost("puts our terminal back, however it ends", async (host) => {
  const pane = await openPane(host, 80, 24);
  pane.says("clear; stty -a >before");
  const before = pane.ask(state);
  for (const [what, end, code] of ends) {
    if (/end of/.test(what) || what === "the key")
      await host.ssh("ann", `./hf --run --detach --terminal --id it -- sh -c "${setter.replaceAll("\\", "\\\\")}"`);
    pane.says("clear; ./hf --attach it; echo code $?; stty -a >after; cmp before after && echo all the same");
    await pane.sees("set");
    await until(
      () => pane.ask("#{alternate_on} #{cursor_flag} #{mouse_any_flag}") === "1 0 1",
      `it has set all: ${pane.ask(state)}`,
    );
    await end(pane, host);
    await pane.sees(new RegExp(`^code ${what === "the end of the daemon" ? "(125|137)" : code}\\nall the same$`, "m"));
    assert.is(pane.ask(state), before, what);
  }
  pane.end();
});

onHost("has the size of whoever typed last, and shows all the same", async (host) => {
  const panes = [await openPane(host, 80, 24), await openPane(host, 70, 15)];
  panes[0]!.says("clear; ./hf --run --terminal --id it --env 'PS1=inner> ' bash --norc");
  await panes[0]!.sees(/^inner>/m);
  panes[1]!.says("clear; ./hf --attach it");
  await panes[1]!.sees("inner>");
  await untilSize(host, 15, 70);
  for (const [at, rows, columns] of [
    [0, 24, 80],
    [1, 15, 70],
    [0, 24, 80],
  ] as const) {
    await new Promise((done) => setTimeout(done, 1100)); // who types sets it at most once in a second
    panes[at]!.type("-l", "\n");
    await untilSize(host, rows, columns);
    panes[at]!.says("clear; echo size: $(stty size)");
    for (const pane of panes) await pane.sees(`size: ${rows} ${columns}`);
  }
  panes[0]!.says("clear; exit 5");
  await panes[1]!.sees(/^exit\nready>/m);
  panes[1]!.says("echo code $?");
  await panes[1]!.sees("code 5");
  for (const pane of panes) pane.end();
});

onHost("says what it needs where there is no terminal", async (host) => {
  const none = await host.ssh("ann", "./hf --run --terminal top");
  assert.equal([none.code, none.stdout], [64, ""]);
  assert.match(
    none.stderr,
    /^holdfast: error: Cannot run "top" in a terminal: stdin and stdout are none here\nholdfast: hint: ssh -t HOST …/,
  );
  const started = await host.ssh(
    "ann",
    "./hf --run --detach --terminal --id it sh -c 'stty size; read line; echo got $line; cat'",
  );
  assert.equal([started.code, started.stdout], [0, "it\n"], started.stderr);
  await until(async () => (await host.ssh("ann", "./hf --logs it")).stdout === "24 80\r\n", "it has a size");
  const refused = await host.ssh("ann", "./hf --attach it");
  assert.is(refused.code, 64);
  assert.match(refused.stderr, /Cannot attach to "it" in its terminal: .*\n.*hint: ssh -t HOST …/);
  const pane = await openPane(host, 80, 24);
  pane.says("clear; ./hf --attach it");
  await pane.sees("24 80");
  pane.says("a word");
  await pane.sees("got a word");
  pane.type("C-c");
  await pane.sees(/\^C\n?ready>/);
  assert.match((await host.ssh("ann", "./hf --list")).stdout, /^it +(exit 130|SIGINT) /m);
  pane.end();
});

terminals.run();
