// The main job on this machine, told step by step: work that outlives the shell that began it, the line of who looks on, and the daemon itself.
import { spawn, spawnSync } from "node:child_process";
import { copyFileSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** All of it happens in here: what a user of this machine runs with holdfast has another socket. */
const cwd = mkdtempSync(join(tmpdir(), "holdfast-demo-"));
const program = join(cwd, "holdfast.js");
copyFileSync(new URL("dist/holdfast.js", import.meta.url), program);
const [bold, plain] = process.stdout.isTTY && !process.env.NO_COLOR ? ["\x1b[1m", "\x1b[0m"] : ["", ""];

const tell = (text) => console.log(`\n${bold}${text}${plain}`);
const quote = (word) => (/^[\w./-]+$/.test(word) ? word : `'${word}'`);
/** The arguments with the socket in here, before the words of a command. */
const here = ([mode, ...rest]) => [mode, "--socket", "demo.sock", ...rest];
const show = (args, before = "") => console.log(`$ ${before}./holdfast.js ${here(args).map(quote).join(" ")}`);

/** Runs a command line in a shell of its own, as an SSH session would, and shows both. The shell is gone when it returns. */
function shell(args, input = "") {
  show(args, input === "" ? "" : `echo ${quote(input.trim())} | `);
  const words = ["-c", `"$0" "$@"; exit $?`, process.execPath, program, ...here(args)];
  const { status } = spawnSync("sh", words, { input, cwd, stdio: ["pipe", "inherit", "inherit"] });
  if (status !== 0) throw new Error(`It ended with exit code ${status}`);
}

/** Runs a command line until it has said something, and ends it then as a lost line does: with no word. */
async function cut(args) {
  show(args);
  const child = spawn(process.execPath, [program, ...here(args)], { cwd, stdio: ["ignore", "pipe", "inherit"] });
  const ended = new Promise((done) => child.once("close", done));
  child.stdout.once("data", (data) => {
    process.stdout.write(data);
    child.kill("SIGKILL");
  });
  await ended;
}

try {
  tell("1. A first shell starts some work, and with it the daemon. In real life: ssh host ./holdfast.js --run …");
  const work = "for i in 1 2 3 4; do echo line $i; sleep 1; done";
  shell(["--run", "--detach", "--id", "job", "--", "sh", "-c", work]);

  tell("2. That shell is gone. A second one looks on, and its line is cut (kill -9).");
  await cut(["--attach", "job"]);

  const status = spawnSync(process.execPath, [program, ...here(["--status", "--json"])], { cwd, encoding: "utf8" });
  const { pid } = JSON.parse(status.stdout);
  process.kill(pid, "SIGKILL");
  tell(
    `3. Now the daemon itself (pid ${pid}) is killed, with -9. Who comes next finds another one, and all of the work:`,
  );
  shell(["--attach", "job"]);

  tell("4. How it ended:");
  shell(["--list"]);

  tell("5. A program speaks to it through --bridge, over ssh as well as here.");
  shell(["--bridge", "--as-owner"], '{"jsonrpc":"2.0","id":1,"method":"server.ping"}\n');

  tell("6. The end.");
  shell(["--stop"]);
  tell(
    "That was it. On a real host, begin with ./holdfast.js --doctor: it tells what the host does to daemons at logout.",
  );
} finally {
  spawnSync(process.execPath, [program, ...here(["--stop", "--now", "--forget"])], { cwd });
  rmSync(cwd, { recursive: true, force: true });
}
