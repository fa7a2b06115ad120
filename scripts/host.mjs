/**
 * Boots a host to play on, until Ctrl-C: `npm run host [-- --suite trixie] [--keep] [--linger]`
 *
 * A machine of its own with systemd, logind and sshd, as the tests boot it: its user "dev" has ./holdfast.js, and what stays in a session is killed at logout.
 *
 *     --keep     what stays in a session is not killed (KillUserProcesses=no)
 *     --linger   dev's user manager runs without a login
 *     --suite    another Debian suite than this machine: bullseye, trixie, forky
 */

import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { loadHosts } from "./hosts.mjs";

const { values: options } = parseArgs({
  options: { suite: { type: "string" }, keep: { type: "boolean" }, linger: { type: "boolean" } },
});
process.chdir(fileURLToPath(new URL("..", import.meta.url)));
if (options.suite) process.env.HOLDFAST_TEST_SUITE = options.suite;
const hosts = await loadHosts();
if (typeof hosts === "string") {
  console.error(`error: Cannot boot a host: ${hosts}`);
  process.exit(1);
}
const host = await hosts.bootHost({
  users: [options.linger ? "dev+linger" : "dev"],
  killUserProcesses: options.keep !== true,
  ownKeyExchange: true,
});
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.once(signal, () => host.end());
await host.copy("dev", "dist/holdfast.js", "holdfast.js");
const quote = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word}'`);
console.log(`Booted: dev has ./holdfast.js; ${options.keep ? "nothing is killed" : "what stays in a session is killed"} at logout.
A shell (append a command to run only that; -t for a terminal):

    ${host.loginCommand("dev").map(quote).join(" ")}

As root: the same with root@127.0.0.1. Ctrl-C here ends the host, and all on it.`);
await host.ended;
