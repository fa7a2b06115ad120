/**
 * Real machines for tests: systemd, logind and sshd in namespaces of their own, reached by the OpenSSH client.
 *
 *     await withHost({ killUserProcesses: true }, async (host) => {
 *       await host.copy("dev", "dist/holdfast.js", "server");
 *       const started = await host.ssh("dev", "node server --serve --socket ~/s");
 *       await host.sleepUntilLoggedOut("dev");
 *       assert.is(host.processes("--serve").length, 1);
 *     });
 *
 * `testhost.sh` beside this file boots and ends them; test files are run with the project's root as working directory.
 * Everything that looks (processes, files, sessions, cgroups) looks from outside, so that it opens no session and wakes
 * no service of the machine. Only `root()` and `setKillUserProcesses()` log in, as root.
 */

import type { ChildProcessByStdio, ChildProcessWithoutNullStreams } from "node:child_process";
import { spawn } from "node:child_process";
import {
  accessSync,
  chownSync,
  constants,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from "node:fs";
import { resolve } from "node:path";
import { createInterface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import { busyMs, eventually } from "../daemon.ts";

/** Waits until something of a host is so. */
export { eventually as until } from "../daemon.ts";

const scripts = "tests/host";
/** On a hybrid machine the second hierarchy is here; on a unified one all of it is in /sys/fs/cgroup. */
const cgroupRoot = existsSync("/sys/fs/cgroup/unified") ? "/sys/fs/cgroup/unified" : "/sys/fs/cgroup";

export interface HostOptions {
  /** Users to make, `name` or `name+linger`. `["dev"]` by default. */
  users?: string[];
  /** logind's KillUserProcesses=; the root's own default when absent. */
  killUserProcesses?: boolean;
  /** More lines for logind.conf: `UserStopDelaySec=1` turns waits of 10 s into 1 s. */
  logind?: string[];
  /** More lines for sshd_config: `UsePAM no`. */
  sshd?: string[];
  /** false: as if polkit were not installed; users may not enable linger for themselves. */
  polkit?: boolean;
  /** Directories of this machine to show in the host, by their path there: `{ "/home/dev": directory }`. */
  binds?: Record<string, string>;
  /** Image file with the changes of earlier boots; made when missing. Without it every boot starts afresh. */
  disk?: string;
  /** Bash to run before the boot as root of this machine, with the host's root directory in `$root`. */
  pre?: string;
  /** Root directory to boot: that of the suite under test by default, else this machine's. Never written to. */
  lower?: string;
  /** Clients agree on keys as a person's do. By default they do it with a fifth of the processor time: curve25519-sha256. */
  ownKeyExchange?: boolean;
}

export interface Result {
  /** Exit code: of the remote command for ssh, 255 when ssh itself failed, null when the client was killed. */
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
  /** From start to the end of output, in milliseconds. */
  ms: number;
  /** The time limit was reached and the client killed. */
  timedOut: boolean;
}

export interface RunOptions {
  /** Time limit, in milliseconds. 20 s by default, and more on a busy machine. */
  timeoutMs?: number;
  /** What the command reads; nothing by default. */
  stdin?: string | Uint8Array;
  /** More arguments for the ssh client: `-tt`. */
  sshArgs?: string[];
}

export interface HostProcess {
  /** Its pid on this machine, for /proc and kill. */
  pid: number;
  /** Its pid on the host. */
  inside: number;
  /** The pid of its parent on this machine. */
  parent: number;
  uid: number;
  /** Its cgroup as the host names it: `/user.slice/user-1000.slice/session-3.scope`. */
  cgroup: string;
  /** Its arguments, joined by spaces. */
  command: string;
}

export type Host = Awaited<ReturnType<typeof bootHost>>;

/** A `pre` of hosts on which no user has a manager. */
export const maskedManager = "ln -s /dev/null $root/etc/systemd/system/user@.service";

/** Boots a host, hands it to `use`, and ends it, however `use` ends. */
export async function withHost<T>(options: HostOptions, use: (host: Host) => Promise<T>): Promise<T> {
  const host = await bootHost(options);
  try {
    return await use(host);
  } finally {
    await host.end();
  }
}

/**
 * Tests of a suite that need nothing of a host but a user of their own have one together: it boots with the first and ends after the last.
 *
 * @param options `users` are those of all of them.
 */
export function shareHost(suite: { after(end: () => Promise<void>): void }, options: HostOptions): () => Promise<Host> {
  let booting: Promise<Host> | undefined;
  suite.after(async () => (await booting)?.end());
  return () => (booting ??= bootHost(options));
}

/** Why no host can be booted on this machine; undefined when one can. */
export function hostsCanRun(): string | undefined {
  if (process.platform !== "linux") return "hosts need Linux";
  if (process.getuid?.() !== 0) return "hosts need root";
  try {
    accessSync(`${cgroupRoot}/cgroup.procs`, constants.W_OK);
  } catch {
    return "hosts need a writable cgroup v2";
  }
  const outside = [
    "systemd-container /usr/bin/systemd-nspawn",
    "openssh-client /usr/bin/ssh",
    "util-linux /usr/bin/nsenter",
  ];
  // with a suite of its own, the root has all that a host is made of
  const inside = [
    "systemd-sysv /sbin/init",
    "dbus /usr/bin/dbus-daemon",
    "dbus-user-session /usr/lib/systemd/user/dbus.socket",
    "libpam-systemd /usr/share/pam-configs/systemd",
    "openssh-server /usr/sbin/sshd",
    "polkitd /usr/share/polkit-1/actions/org.freedesktop.policykit.policy",
    "make /usr/bin/make",
    "gcc /usr/bin/gcc",
  ];
  const suite = process.env.HOLDFAST_TEST_SUITE;
  const needed = [...outside, ...(suite ? ["debootstrap /usr/sbin/debootstrap"] : inside)].map((line) =>
    line.split(" "),
  );
  const missing = needed.filter(([, path]) => !existsSync(path as string)).map(([name]) => name);
  return missing.length === 0 ? undefined : `hosts need the packages ${missing.join(", ")}`;
}

/**
 * Ends this test file, with its tests counted as skipped, where no host can be booted. Call it before the first test.
 *
 * @param testCount How many tests the file has.
 */
export function requireHosts(testCount: number): void {
  const why = hostsCanRun();
  if (why === undefined) return;
  console.log(`SKIP ${testCount} ${why}`);
  process.exit(0);
}

/** Builds the root directory of a Debian suite, once for all runs, and gives its path. Takes a minute or two. */
export async function suiteRoot(suite: string): Promise<string> {
  const built = await run("bash", [`${scripts}/suiteroot.sh`, suite], { timeoutMs: 600_000 });
  if (built.code !== 0) throw new Error(`Cannot build the root of "${suite}": ${built.stderr}`);
  return built.stdout.trim();
}

/** A host that has booted, as it is reached from here. */
interface Machine {
  /** testhost.sh. */
  script: ChildProcessByStdio<Writable, Readable, null>;
  /** The pid of the host's init on this machine. */
  init: number;
  /** The host's cgroup directory: `${cgroup}/user.slice/…`. */
  cgroup: string;
  /** … and as /proc/PID/cgroup names it. */
  cgroupPath: string;
  /** What the host needs on this machine, removed at its end. Its last part is the pid of testhost.sh. */
  directory: string;
  /** The host's root directory, as seen from here. */
  root: string;
  /** Resolves when the host has ended, by whatever cause. */
  ended: Promise<void>;
  /** Arguments of ssh and scp: no configuration, the host's key, nothing asked. */
  login: string[];
  /** ssh clients that run, to be killed with the host at the latest. */
  clients: Set<ChildProcessWithoutNullStreams>;
}

/** Boots a host. The caller ends it; `withHost()` does both. */
export async function bootHost(options: HostOptions) {
  const machine = await bootMachine(options);
  const { init, cgroup, directory, root, ended } = machine;
  const reach = reachOf(machine);
  return {
    ...{ init, cgroup, directory, ended },
    /** What ssh and scp need to log in, in the host's network. */
    sshArguments: machine.login,
    /** The command that runs a program in the host's network; with ssh and these arguments a person can log in, too. */
    loginCommand: (user: string): string[] => [...enterNetwork(init), "ssh", ...machine.login, `${user}@127.0.0.1`],
    ...reach,
    /** The path on this machine of a host's file. Symbolic links with absolute targets lead out of the host. */
    file: (path: string) => `${root}${path}`,
    ...sightOf(machine, reach),
    ...changesOf(machine, reach),
  };
}

async function bootMachine(options: HostOptions): Promise<Machine> {
  const suite = process.env.HOLDFAST_TEST_SUITE;
  const lower = options.lower ?? (suite ? await suiteRoot(suite) : "/");
  // A group of its own: when this file's group is killed, the script sees its stdin end and clears up.
  const script = spawn("bash", [`${scripts}/testhost.sh`], {
    detached: true,
    stdio: ["pipe", "pipe", "inherit"],
    env: bootVariables(options, lower),
  });
  const ended = new Promise<void>((resolve) => script.once("close", () => resolve()));
  script.stdin.on("error", () => {}); // it ended first
  const [word, init, directory, path] = (await firstLine(script.stdout)).split(" ");
  if (word !== "READY") throw new Error(`Cannot boot a host: ${word} ${init} ${directory} ${path}`);
  const settings = [
    "IdentitiesOnly=yes",
    "BatchMode=yes",
    "StrictHostKeyChecking=no",
    "UserKnownHostsFile=/dev/null",
    "LogLevel=ERROR",
    ...(options.ownKeyExchange ? [] : ["KexAlgorithms=curve25519-sha256"]),
  ];
  return {
    ...{ script, ended, init: Number(init), directory: directory!, root: `/proc/${init}/root` },
    ...{ cgroup: `${cgroupRoot}${path}`, cgroupPath: path!, clients: new Set() },
    login: ["-F", "none", "-i", `${directory}/key`, ...settings.flatMap((option) => ["-o", option])],
  };
}

function bootVariables(options: HostOptions, lower: string): NodeJS.ProcessEnv {
  return {
    PATH: process.env.PATH,
    HOST_LOWER: lower,
    HOST_DISK: options.disk ?? "",
    HOST_USERS: (options.users ?? ["dev"]).join(" "),
    HOST_KILL: options.killUserProcesses === undefined ? "" : yesNo(options.killUserProcesses),
    HOST_LOGIND: (options.logind ?? []).join("\n"),
    HOST_SSHD: (options.sshd ?? []).join("\n"),
    HOST_POLKIT: yesNo(options.polkit ?? true),
    HOST_BINDS: Object.entries(options.binds ?? {})
      .map(([inside, outside]) => `${outside}:${inside}`)
      .join("\n"),
    HOST_PRE: options.pre ?? "",
    HOST_NODE: process.execPath,
  };
}

const enterNetwork = (init: number): string[] => ["nsenter", "-t", String(init), "-n"];

/** What runs on the host. */
function reachOf({ init, root, login, clients }: Machine) {
  const network = enterNetwork(init).slice(1);
  const ssh = (user: string, command: string, options: RunOptions = {}): Promise<Result> =>
    run("nsenter", [...network, "ssh", ...login, ...(options.sshArgs ?? []), `${user}@127.0.0.1`, command], options);
  return {
    /** Runs a shell command over ssh, in a connection and so a session of its own. */
    ssh,
    /** The same as root. */
    root: (command: string, options: RunOptions = {}) => ssh("root", command, options),

    /** Starts an ssh client whose streams are the caller's. It is killed with the host at the latest. */
    spawnSsh(user: string, command: string, sshArgs: string[] = []) {
      const child = spawn("nsenter", [...network, "ssh", ...login, ...sshArgs, `${user}@127.0.0.1`, command]);
      clients.add(child.once("close", () => clients.delete(child)));
      return child;
    },

    /** Gives a user a file of this machine, as scp does, but without a session: the path is absolute, or below the home directory. */
    async copy(user: string, localFile: string, remotePath: string) {
      give(root, user, remotePath, (path) => copyFileSync(localFile, path));
    },

    /** Gives a user a directory `.run` and a file `token`, for him alone, where he has none. */
    async prepare(user: string) {
      give(root, user, ".run", (path) => mkdirSync(path, { mode: 0o700, recursive: true }));
      give(root, user, "token", (path) => writeFileSync(path, "secret\n", { mode: 0o600 }));
    },

    /** Runs a program in all the host's namespaces without a session. Not for loginctl: logind would not know its cgroup. */
    inside: (argv: string[], options: RunOptions = {}) =>
      run("nsenter", ["-t", String(init), "-a", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", ...argv], options),
  };
}

type Reach = ReturnType<typeof reachOf>;

/** What is to be seen of it from outside. */
function sightOf(machine: Machine, { inside }: Reach) {
  const { root, cgroup, cgroupPath } = machine;
  const uidOf = (user: string): number => userOn(root, user).uid;
  const sessions = (user?: string): HostSession[] => sessionsOf(root, user === undefined ? undefined : uidOf(user));
  const hasUserManager = (user: string): boolean =>
    existsSync(`${cgroup}/user.slice/user-${uidOf(user)}.slice/user@${uidOf(user)}.service`);
  const processes = (pattern: string | RegExp = ""): HostProcess[] => {
    const matching = readdirSync("/proc")
      .filter((name) => /^\d+$/.test(name))
      .map((name) => readProcess(Number(name), cgroupPath))
      .filter((found) => found !== undefined)
      .filter(({ command }) => (typeof pattern === "string" ? command.includes(pattern) : pattern.test(command)));
    return matching.filter((found) => !isDoubleOf(found, matching));
  };
  return {
    uid: uidOf,
    /** The living processes of the host, or those whose arguments, joined by spaces, match. */
    processes,
    isAlive: (pid: number): boolean => processes().some((found) => found.inside === pid),
    /** The sessions that logind knows of: all, or one user's, with their state: active, online, closing. */
    sessions,

    /** Waits until the user's sessions have ended, and all processes that end with them. */
    async sleepUntilLoggedOut(user: string) {
      await eventually(() => sessions(user).every(({ state }) => state === "closing"), `"${user}" to be logged out`);
      await eventually(async () => {
        // what logind leaves alone stays in a scope that it has abandoned, and the session stays "closing"
        const show = ["systemctl", "show", "-p", "SubState", "--value"];
        const scopes = await Promise.all(sessions(user).map(({ id }) => inside([...show, `session-${id}.scope`])));
        return scopes.every(({ stdout }) => /abandoned|dead|failed/.test(stdout));
      }, `the sessions of "${user}" to end`);
    },

    /** Whether `user@UID.service` runs; without linger it ends 10 s (UserStopDelaySec=) after the last session. */
    hasUserManager,
    sleepUntilUserManagerEnded: (user: string) =>
      eventually(() => !hasUserManager(user), `the user manager of "${user}" to end`, 30_000),
  };
}

/** What changes it, and ends it. */
function changesOf({ init, script, clients, ended }: Machine, { root, inside }: Reach) {
  return {
    /** Makes a user, as those of `HostOptions.users`. */
    async addUser(name: string, { linger = false } = {}) {
      await checked(inside(["useradd", "-m", "-s", "/bin/bash", "-p", "*", name]));
      if (linger) await checked(root(`loginctl enable-linger ${name}`));
    },

    /** Changes logind's policy while it runs; open sessions stay. */
    async setKillUserProcesses(yes: boolean) {
      const [file, reload] = ["/etc/systemd/logind.conf.d/90-kill.conf", "systemctl kill -s HUP systemd-logind"];
      const show = "loginctl show-user -p KillUserProcesses --value";
      const wait = `for i in $(seq 100); do [ "$(${show})" = ${yesNo(yes)} ] && exit; sleep 0.02; done; exit 1`;
      await checked(root(`printf '[Login]\\nKillUserProcesses=${yesNo(yes)}\\n' >${file}; ${reload}; ${wait}`));
    },

    /** Cuts all its connections, with no word to either end, as a cable that is pulled; and lets them go on. */
    async setNetwork(isUp: boolean) {
      const words = ["busybox", "ip", "link", "set", "lo", isUp ? "up" : "down"];
      await checked(run("nsenter", ["-t", String(init), "-n", ...words]));
    },

    /** Shuts the host down in order, as before a reboot, and waits for it. A process that ignores SIGTERM holds it up for 90 s. */
    async powerOff() {
      script.stdin.write("poweroff\n");
      await ended;
    },

    /** Ends the host at once, as a power cut does. */
    async end() {
      script.stdin.end();
      for (const child of clients) child.kill("SIGKILL");
      await ended;
    },
  };
}

interface HostSession {
  id: string;
  uid: number;
  state: string;
}

/** Makes something at a path of a host, from outside, that is the user's. */
function give(root: string, user: string, remotePath: string, make: (path: string) => void): void {
  const { uid, gid, home } = userOn(root, user);
  const path = `${root}${resolve(home, remotePath)}`;
  make(path);
  chownSync(path, uid, gid);
}

function userOn(root: string, user: string): { uid: number; gid: number; home: string } {
  const line = readFileSync(`${root}/etc/passwd`, "utf8")
    .split("\n")
    .find((line) => line.startsWith(`${user}:`));
  if (line === undefined) throw new Error(`The host has no user "${user}"`);
  const [, , uid, gid, , home] = line.split(":");
  return { uid: Number(uid), gid: Number(gid), home: home! };
}

function sessionsOf(root: string, uid: number | undefined): HostSession[] {
  const directory = `${root}/run/systemd/sessions`;
  const sessions = readdirSync(directory)
    .filter((id) => !id.endsWith(".ref"))
    .map((id) => {
      const text = readIfThere(`${directory}/${id}`);
      // from systemd 256 on the user manager has a session too, which stays as long as it does
      const isLogin = !/^CLASS=manager/m.test(text);
      const state = (isLogin && /^STATE=(.*)/m.exec(text)?.[1]) || "gone";
      return { id, uid: Number(/^UID=(\d+)/m.exec(text)?.[1]), state };
    });
  return sessions.filter((session) => session.state !== "gone" && (uid === undefined || session.uid === uid));
}

/** Runs a program to its end. Killed when its time limit is reached. */
async function run(
  program: string,
  args: string[],
  { stdin, timeoutMs = busyMs(20_000) }: RunOptions = {},
): Promise<Result> {
  const start = Date.now();
  const child = spawn(program, args);
  let timedOut = false;
  const timer = setTimeout(() => (timedOut = child.kill("SIGKILL")), timeoutMs);
  const output = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const)
    child[name].setEncoding("utf8").on("data", (text) => (output[name] += text));
  child.stdin.on("error", () => {}); // it did not read all
  child.stdin.end(stdin);
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code, signal) => {
      clearTimeout(timer);
      resolve({ code, signal, ...output, ms: Date.now() - start, timedOut });
    });
  });
}

async function checked(running: Promise<Result>): Promise<void> {
  const { code, stdout, stderr } = await running;
  if (code !== 0) throw new Error(`A command on the host ended with ${code}: ${stdout}${stderr}`);
}

/** What a daemon has forked has its arguments, until it is another program in a moment: it is no second daemon. */
function isDoubleOf({ parent, command }: HostProcess, others: HostProcess[]): boolean {
  return command.includes(" --launched") && others.some((other) => other.pid === parent && other.command === command);
}

/** Reads what /proc has on a process of the host with this cgroup; undefined for others, and for those that just ended. */
function readProcess(pid: number, hostCgroup: string): HostProcess | undefined {
  const cgroup = /^0::(.*)$/m.exec(readIfThere(`/proc/${pid}/cgroup`))?.[1];
  if (cgroup === undefined || !`${cgroup}/`.startsWith(`${hostCgroup}/`)) return undefined;
  const status = readIfThere(`/proc/${pid}/status`);
  const command = readIfThere(`/proc/${pid}/cmdline`).replace(/\0$/, "").replaceAll("\0", " ");
  const inside = Number(/^NSpid:.*\s(\d+)$/m.exec(status)?.[1]);
  const [parent, uid] = [/^PPid:\s(\d+)/m, /^Uid:\s(\d+)/m].map((field) => Number(field.exec(status)?.[1])) as [
    number,
    number,
  ];
  return /^State:\s[^ZX]/m.test(status)
    ? { pid, inside, parent, uid, cgroup: cgroup.slice(hostCgroup.length), command }
    : undefined;
}

/** Reads a file that may vanish at any time, as those of /proc; "" when it has. */
export function readIfThere(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}

async function firstLine(stream: NodeJS.ReadableStream): Promise<string> {
  for await (const line of createInterface({ input: stream })) return line;
  return "FAILED it ended without a word";
}

const yesNo = (yes: boolean): string => (yes ? "yes" : "no");
