// The main job on this machine, narrated: a daemon started from one shell is there for the next one, when the first is gone.
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const program = new URL("dist/holdfast.js", import.meta.url).pathname;
const directory = mkdtempSync(join(tmpdir(), "holdfast-demo-"));
const socket = join(directory, "rpc.sock");
const [bold, plain] = process.stdout.isTTY && !process.env.NO_COLOR ? ["\x1b[1m", "\x1b[0m"] : ["", ""];

const tell = (text) => console.log(`\n${bold}${text}${plain}`);
const quote = (word) => (/^[\w./-]+$/.test(word) ? word : `'${word}'`);

/** Runs a command line in a shell of its own, as an SSH session would, and shows both. The shell is gone when it returns. */
function shell(args, input = "") {
  const line = `node dist/holdfast.js ${args.map(quote).join(" ")}`;
  console.log(`$ ${input === "" ? "" : `echo ${quote(input.trim())} | `}${line}`);
  const { status, stdout, stderr, pid } = spawnSync(
    "sh",
    ["-c", `"$0" "$@"; exit $?`, process.execPath, program, ...args],
    { input, encoding: "utf8" },
  );
  process.stdout.write(stdout + stderr);
  if (status !== 0) throw new Error(`It ended with exit code ${status}`);
  return { stdout, pid };
}

try {
  tell("1. A first shell starts the daemon. In real life: ssh host node holdfast.js --serve");
  const first = shell(["--serve", "--socket", socket]);
  const daemon = Number(/pid (\d+)/.exec(first.stdout)[1]);

  tell(`2. That shell (pid ${first.pid}) is gone. The daemon (pid ${daemon}) is not:`);
  if (existsSync(`/proc/${first.pid}`)) throw new Error("The first shell is still there");
  process.kill(daemon, 0);
  console.log(
    spawnSync("ps", ["-o", "pid,ppid,sid,etime,args", "-p", String(daemon)], { encoding: "utf8" }).stdout.trimEnd(),
  );

  tell("3. A second shell makes it work, and leaves before the work is done.");
  const job = { id: "job", command: "sh", args: ["-c", "for i in 1 2 3; do echo line $i; sleep 0.3; done"] };
  const spawning = spawn(
    "sh",
    [
      "-c",
      `exec "$0" "$@"`,
      process.execPath,
      program,
      "--call",
      "process.spawn",
      JSON.stringify(job),
      "--socket",
      socket,
    ],
    { stdio: ["ignore", "pipe", "inherit"] },
  );
  console.log(`$ node dist/holdfast.js --call process.spawn ${quote(JSON.stringify(job))} --socket ${socket}`);
  await new Promise((done) =>
    spawning.stdout.once("data", (data) => {
      process.stdout.write(data);
      spawning.once("close", done);
      spawning.kill("SIGKILL");
    }),
  );
  console.log("(killed with -9)");

  tell("4. A third one takes it up again: nothing is lost.");
  shell(["--call", "process.reattach", '{"id":"job"}', "--socket", socket]);

  tell("5. A client's handshake through --bridge, in lines framing; the record's owner needs no token for --call.");
  const { stdout } = spawnSync(
    process.execPath,
    ["-p", `require("fs").readFileSync(${JSON.stringify(`${socket}.token`)}, "utf8").trim()`],
    { encoding: "utf8" },
  );
  shell(
    ["--bridge", "--socket", socket],
    `${JSON.stringify({ jsonrpc: "2.0", id: 1, method: "server.ping", auth: stdout.trim() })}\n`,
  );

  tell("6. The end.");
  shell(["--stop", "--socket", socket]);
  tell("That was it. On a real host: node dist/holdfast.js --doctor tells what it does to daemons at logout.");
} finally {
  if (existsSync(socket)) spawnSync(process.execPath, [program, "--stop", "--now", "--socket", socket]);
  rmSync(directory, { recursive: true, force: true });
}
